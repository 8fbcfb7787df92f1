//! Loads the XDP program, fills its maps, attaches it, and reads its counters.
//!
//! The order matters: sockets are registered before the program is attached, because a frame for a
//! slot without a socket is dropped. The program hangs on `bpf_link`s that this process holds, so
//! however the process ends, the kernel detaches the program.

use std::{
    collections::BTreeSet,
    error, fmt, io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    EbpfError, EbpfLoader,
    maps::{Array, HashMap, HashOfMaps, Map, MapData, MapError, PerCpuArray, XskMap},
    programs::{ProgramError, Xdp, XdpMode, links::FdLink, xdp::XdpError},
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_XSKMAP;
use mpx_datapath::engine::Announce;
use mpx_datapath::steering::{FlowMap, FlowRefused, Sources, gives_way};
use mpx_datapath::time::Instant;
use mpx_ebpf::crowd::{self, SourceKey, SourceWords};
use mpx_ebpf::{
    Config, ConfigWords, ENTRY_KERNEL, ENTRY_SERVICE, FlowKey, FlowOwner, FlowWords,
    INTERFACES_MAX, MAP_CONFIG, MAP_COUNTERS, MAP_FLOWS, MAP_SERVICES, MAP_SOURCES, MAP_XSKS,
    PROGRAM, SERVICES_MAX, SLOTS_MAX, ServiceKey, Verdict, address_octets, service_key_of, slot,
};
use rustix::io::Errno;

use crate::config::Generic;
use crate::entries::Entries;
use crate::kernel_joins::Listener;
use crate::nic;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mpx-xdp"));

/// Entries of the services map that the configuration may take; the rest is for what the kernel's
/// own MPTCP sockets listen on.
const CONFIGURED_ENTRIES_MAX: usize = SERVICES_MAX as usize / 2;

/// What the program is loaded for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoadConfig {
    pub(crate) interfaces: Vec<XdpInterface>,
    pub(crate) entries: Entries,
    pub(crate) steering: Config,
}

/// An interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct XdpInterface {
    pub(crate) name: String,
    pub(crate) index: u32,
    /// Receive queues in use.
    pub(crate) queues: u32,
}

/// The loaded program. Dropping it detaches it.
pub(crate) struct XdpProgram {
    // Before the program, so that dropping detaches first.
    links: Vec<FdLink>,
    ebpf: aya::Ebpf,
    interfaces: Vec<Attachable>,
    workers: u32,
    entries: Entries,
    /// Entries that say that a kernel socket takes joins there.
    kernel: BTreeSet<ServiceKey>,
}

struct Attachable {
    interface: XdpInterface,
    sockets: XskMap<MapData>,
}

impl XdpProgram {
    /// Loads the program into the kernel and tells it the services. Nothing is attached yet.
    pub(crate) fn load(config: &LoadConfig) -> Result<Self, BpfError> {
        config.validate()?;
        // The program touches no kernel structures, so the kernel's own BTF is not read.
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .load(OBJECT)
            .map_err(BpfError::load)?;
        let xdp: &mut Xdp = program(&mut ebpf)?;
        xdp.load().map_err(|error| BpfError::load(error.into()))?;

        let mut array = Array::<_, ConfigWords>::try_from(map_mut(&mut ebpf, MAP_CONFIG)?)?;
        array.set(0, config.steering.to_words(), 0)?;

        let mut services =
            HashMap::<_, ServiceKey, u32>::try_from(map_mut(&mut ebpf, MAP_SERVICES)?)?;
        for (key, bits) in &config.entries.bits {
            services.insert(key, bits, 0)?;
        }

        let mut all =
            HashOfMaps::<_, u32, XskMap<MapData>>::try_from(map_mut(&mut ebpf, MAP_XSKS)?)?;
        let mut interfaces = Vec::with_capacity(config.interfaces.len());
        for interface in &config.interfaces {
            let sockets = socket_map()?;
            all.insert(interface.index, &sockets, 0)?;
            interfaces.push(Attachable {
                interface: interface.clone(),
                sockets,
            });
        }
        Ok(Self {
            links: Vec::new(),
            ebpf,
            interfaces,
            workers: config.steering.workers,
            entries: config.entries.clone(),
            kernel: BTreeSet::new(),
        })
    }

    /// Puts the socket that worker `owner` holds on `queue` into the slot where the program looks
    /// for it. `interface` counts from 0 in the order of the config.
    pub(crate) fn register(
        &mut self,
        interface: usize,
        queue: u32,
        owner: u32,
        socket: impl AsRawFd,
    ) -> Result<(), BpfError> {
        let workers = self.workers;
        let Some(target) = self.interfaces.get_mut(interface) else {
            return Err(BpfError::Limit(format!(
                "interface {interface} is not among those the XDP program was loaded for"
            )));
        };
        let XdpInterface { name, queues, .. } = &target.interface;
        if queue >= *queues || owner >= workers {
            return Err(BpfError::Limit(format!(
                "no slot for worker {owner} on queue {queue} of {name}: the XDP program was loaded \
                 for {workers} workers and {queues} queues"
            )));
        }
        Ok(target.sockets.set(slot(queue, workers, owner), socket, 0)?)
    }

    /// Attaches the program to every interface, in the driver if `generic` does not say otherwise.
    /// Where one fails, those before it are detached again.
    pub(crate) fn attach(&mut self, generic: Generic) -> Result<(), BpfError> {
        let xdp: &mut Xdp = program(&mut self.ebpf)?;
        let mut links = Vec::with_capacity(self.interfaces.len());
        for Attachable { interface, .. } in &self.interfaces {
            let mut attach = |mode| {
                let id = xdp.attach_to_if_index(interface.index, mode);
                let link = id.and_then(|id| xdp.take_link(id));
                link.map_err(|error| BpfError::attach(&interface.name, error))
            };
            let native = match generic {
                Generic::Always => None,
                Generic::Never | Generic::Allow => Some(attach(XdpMode::Driver)),
            };
            let link = match native {
                Some(Err(error)) if generic == Generic::Allow && error.is_unsupported() => None,
                Some(attached) => Some(attached?),
                None => None,
            };
            let link = match link {
                Some(link) => link,
                None => {
                    tracing::warn!(
                        "{}: generic XDP, behind the driver: every frame is copied into a kernel \
                         buffer first, and many drivers say queue 0 of all of them",
                        interface.name
                    );
                    attach(XdpMode::Skb)?
                }
            };
            // A link over netlink would outlive a crash; dropping it here detaches it.
            let link = FdLink::try_from(link).map_err(|_| {
                BpfError::Load(
                    "the kernel has no bpf_link for XDP; run Linux 5.9 or newer".to_owned(),
                )
            })?;
            links.push(link);
        }
        self.links = links;
        Ok(())
    }

    /// Takes joins where something is announced of a service from now on. Returns the entries as they
    /// were before, for [`XdpProgram::set_entries`] if nothing comes of it.
    pub(crate) fn take_joins(
        &mut self,
        service: usize,
        announce: &Announce,
    ) -> Result<Entries, BpfError> {
        let mut entries = self.entries.clone();
        entries.announce(service, announce);
        self.set_entries(entries)
    }

    /// Puts these entries in the place of those that are there, which it returns. Where one is refused,
    /// all stays as it was.
    pub(crate) fn set_entries(&mut self, entries: Entries) -> Result<Entries, BpfError> {
        let changed = self.entries.difference(&entries);
        if let Err(error) = self.write_entries(&entries, &changed) {
            // Room that these took is still there.
            self.write_entries(&self.entries.clone(), &changed)?;
            return Err(error);
        }
        Ok(std::mem::replace(&mut self.entries, entries))
    }

    /// Writes those of `entries` that stand at `keys`.
    fn write_entries(&mut self, entries: &Entries, keys: &[ServiceKey]) -> Result<(), BpfError> {
        let mut services =
            HashMap::<_, ServiceKey, u32>::try_from(map_mut(&mut self.ebpf, MAP_SERVICES)?)?;
        for key in keys {
            let kernel = match self.kernel.contains(key) {
                true => ENTRY_KERNEL,
                false => 0,
            };
            let bits = entries.bits.get(key).copied().unwrap_or(0) | kernel;
            if bits != 0 {
                services.insert(key, bits, 0)?;
            } else {
                // It may never have come to be.
                let _ = services.remove(key);
            }
        }
        Ok(())
    }

    /// Leaves joins to where the kernel's own MPTCP sockets listen to the kernel, now that these are
    /// all of them. Services stay ours. Returns how many places have changed.
    pub(crate) fn leave_joins(&mut self, listeners: &[Listener]) -> Result<usize, BpfError> {
        let places = listeners.iter().flat_map(|listener| {
            let addresses = self.entries.addresses.iter();
            let covered = addresses.filter(|&&address| listener.covers(address));
            covered.map(|&address| service_key_of((address, listener.local.port()).into()))
        });
        let configured = |key: &ServiceKey| self.entries.bits.get(key).copied().unwrap_or(0);
        let kernel: BTreeSet<_> = places
            .filter(|key| configured(key) & ENTRY_SERVICE == 0)
            .collect();
        let changed: Vec<_> = kernel.symmetric_difference(&self.kernel).collect();
        let mut services = HashMap::<_, ServiceKey, u32>::try_from(
            self.ebpf.map_mut(MAP_SERVICES).ok_or_else(mismatch)?,
        )?;
        for &key in &changed {
            let bits = configured(key);
            if kernel.contains(key) {
                services.insert(key, bits | ENTRY_KERNEL, 0)?;
            } else if bits != 0 {
                services.insert(key, bits, 0)?;
            } else {
                services.remove(key)?;
            }
        }
        let count = changed.len();
        self.kernel = kernel;
        Ok(count)
    }

    /// Takes the program off every interface. Its counters can still be read.
    pub(crate) fn detach(&mut self) {
        // The kernel detaches when the last descriptor of a link is closed.
        self.links.clear();
    }

    /// The map of flows, in a handle of its own for a worker.
    pub(crate) fn flow_map(&self) -> Result<BpfFlowMap, BpfError> {
        let Some(Map::HashMap(data)) = self.ebpf.map(MAP_FLOWS) else {
            return Err(mismatch());
        };
        Ok(BpfFlowMap(HashMap::try_from(Map::HashMap(another(data)?))?))
    }

    /// The map of sources, in a handle of its own for a worker.
    pub(crate) fn sources(&self) -> Result<BpfSources, BpfError> {
        let Some(Map::LruHashMap(data)) = self.ebpf.map(MAP_SOURCES) else {
            return Err(mismatch());
        };
        let map = Map::LruHashMap(another(data)?);
        Ok(BpfSources(HashMap::try_from(map)?))
    }

    /// Frames per verdict, summed over the CPUs.
    pub(crate) fn counters(&self) -> Result<Vec<(&'static str, u64)>, BpfError> {
        let map = self.ebpf.map(MAP_COUNTERS).ok_or_else(mismatch)?;
        let counters = PerCpuArray::<_, u64>::try_from(map)?;
        let sum = |&verdict: &Verdict| {
            let per_cpu = counters.get(&(verdict as u32), 0)?;
            Ok((verdict.name(), per_cpu.iter().sum()))
        };
        Verdict::ALL.iter().map(sum).collect()
    }
}

/// Another handle of a map.
fn another(map: &MapData) -> Result<MapData, BpfError> {
    let fd = map.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|error| BpfError::Load(format!("a map of the XDP program: {error}")))?;
    Ok(MapData::from_fd(fd)?)
}

/// For an insertion: only where there is no entry yet.
const BPF_NOEXIST: u64 = 1;

/// The map of flows that the program reads. What the kernel refuses shows as an entry that is not
/// there, and the counters of the engine show that.
pub(crate) struct BpfFlowMap(HashMap<MapData, FlowKey, FlowWords>);

impl FlowMap for BpfFlowMap {
    fn insert(&mut self, key: &FlowKey, owner: FlowOwner) -> Result<(), FlowRefused> {
        let old = self.lookup(key);
        if old.is_some_and(|old| !gives_way(old, owner)) {
            return Err(FlowRefused::Taken);
        }
        // Another worker may have been quicker.
        let flags = if old.is_some() { 0 } else { BPF_NOEXIST };
        self.0
            .insert(key, owner.to_words(), flags)
            .map_err(|error| match error {
                MapError::SyscallError(syscall) if is(&syscall.io_error, Errno::EXIST) => {
                    FlowRefused::Taken
                }
                _ => FlowRefused::Full,
            })
    }

    fn remove(&mut self, key: &FlowKey) {
        // It may be gone already.
        let _ = self.0.remove(key);
    }

    fn lookup(&mut self, key: &FlowKey) -> Option<FlowOwner> {
        self.0.get(key, 0).ok().map(FlowOwner::from_words)
    }
}

/// From where clients come, as the program reads it. The kernel makes room.
pub(crate) struct BpfSources(HashMap<MapData, SourceKey, SourceWords>);

impl Sources for BpfSources {
    fn prove(&mut self, now: Instant, source: IpAddr) {
        let key = crowd::source_key(address_octets(source));
        // What is not told is taken for a stranger, and only in a crowd.
        let _ = self.0.insert(key, crowd::proven(now.0), 0);
    }
}

impl LoadConfig {
    /// What the maps of the program hold, and what it is told: no more than fits.
    pub(crate) fn validate(&self) -> Result<(), BpfError> {
        if self.interfaces.len() > INTERFACES_MAX as usize {
            return Err(BpfError::Limit(format!(
                "{} interfaces: the XDP program serves at most {INTERFACES_MAX}",
                self.interfaces.len()
            )));
        }
        let entries = self.entries.bits.len();
        if entries > CONFIGURED_ENTRIES_MAX {
            return Err(BpfError::Limit(format!(
                "{entries} addresses, services and ports for joins: the XDP program holds at most \
                 {CONFIGURED_ENTRIES_MAX}; use joins = \"any-port\" instead of many ports"
            )));
        }
        for XdpInterface { name, queues, .. } in &self.interfaces {
            if u64::from(*queues) * u64::from(self.steering.workers) > u64::from(SLOTS_MAX) {
                return Err(BpfError::Limit(format!(
                    "{name} has {queues} queues for {} workers: at most {SLOTS_MAX} sockets fit; \
                     use fewer queues (ethtool -L {name} combined N)",
                    self.steering.workers
                )));
            }
        }
        Ok(())
    }
}

/// A map like the inner one that the object declares for [`MAP_XSKS`]; the kernel accepts no other
/// shape.
fn socket_map() -> Result<XskMap<MapData>, BpfError> {
    let word = size_of::<u32>() as u32;
    let definition =
        aya_obj::Map::new_from_params(BPF_MAP_TYPE_XSKMAP as u32, word, word, SLOTS_MAX, 0);
    let data = MapData::create(definition, "mpx_sockets", None)?;
    Ok(XskMap::try_from(Map::XskMap(data))?)
}

fn program(ebpf: &mut aya::Ebpf) -> Result<&mut Xdp, BpfError> {
    let program = ebpf.program_mut(PROGRAM).ok_or_else(mismatch)?;
    program.try_into().map_err(|_| mismatch())
}

fn map_mut<'a>(ebpf: &'a mut aya::Ebpf, name: &str) -> Result<&'a mut Map, BpfError> {
    ebpf.map_mut(name).ok_or_else(mismatch)
}

fn mismatch() -> BpfError {
    BpfError::Load("the XDP object is not of this build; run cargo xtask build".to_owned())
}

/// Why the program could not be loaded, filled or attached. One line, with the remedy.
#[derive(Debug)]
pub(crate) enum BpfError {
    /// More than the maps hold.
    Limit(String),
    /// The kernel wants a capability that this process lacks.
    Privilege { step: &'static str },
    /// The kernel refused the program or a map.
    Load(String),
    /// Another XDP program is on the interface; its id, if the kernel still tells.
    Taken {
        interface: String,
        program: Option<u32>,
    },
    /// The kernel refused to attach.
    Attach {
        interface: String,
        source: io::Error,
    },
}

impl BpfError {
    fn load(error: EbpfError) -> Self {
        match error {
            EbpfError::ProgramError(ProgramError::LoadError {
                io_error,
                verifier_log,
            }) => {
                if is(&io_error, Errno::PERM) {
                    return Self::Privilege {
                        step: "load the XDP program",
                    };
                }
                // The last line but the statistics says what the verifier objects to.
                let log = verifier_log.to_string();
                let objection = log
                    .lines()
                    .map(str::trim)
                    .rfind(|line| !line.is_empty() && !is_statistics(line));
                Self::Load(format!(
                    "the kernel refuses the XDP program: {io_error} ({}); report it with the \
                     kernel version",
                    objection.unwrap_or("no reason given")
                ))
            }
            EbpfError::MapError(error) => error.into(),
            other => Self::Load(format!(
                "the XDP object cannot be loaded: {}",
                chain(&other)
            )),
        }
    }

    fn attach(interface: &str, error: ProgramError) -> Self {
        let interface = interface.to_owned();
        let source = match error {
            ProgramError::SyscallError(syscall) => syscall.io_error,
            ProgramError::XdpError(XdpError::NetlinkError(netlink)) => {
                netlink.raw_os_error().map_or_else(
                    || io::Error::other(chain(&netlink)),
                    io::Error::from_raw_os_error,
                )
            }
            other => io::Error::other(chain(&other)),
        };
        if is(&source, Errno::PERM) {
            return Self::Privilege {
                step: "attach the XDP program",
            };
        }
        // EEXIST: a program in another mode than the driver's.
        if is(&source, Errno::BUSY) || is(&source, Errno::EXIST) {
            let program = nic::all()
                .ok()
                .and_then(|all| all.into_iter().find(|nic| nic.name == interface))
                .and_then(|nic| nic.xdp_program);
            return Self::Taken { interface, program };
        }
        Self::Attach { interface, source }
    }
}

impl BpfError {
    /// The driver has no native XDP.
    fn is_unsupported(&self) -> bool {
        matches!(self, Self::Attach { source, .. } if is(source, Errno::OPNOTSUPP))
    }
}

impl From<MapError> for BpfError {
    fn from(error: MapError) -> Self {
        let denied = match &error {
            MapError::CreateError { io_error, .. } => is(io_error, Errno::PERM),
            MapError::SyscallError(syscall) => is(&syscall.io_error, Errno::PERM),
            _ => false,
        };
        if denied {
            return Self::Privilege {
                step: "create and fill the maps of the XDP program",
            };
        }
        Self::Load(format!("a map of the XDP program: {}", chain(&error)))
    }
}

impl fmt::Display for BpfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(problem) | Self::Load(problem) => f.write_str(problem),
            Self::Privilege { step } => write!(
                f,
                "cannot {step}: not permitted; it needs CAP_BPF and CAP_NET_ADMIN (run as root, or \
                 give them with setcap)"
            ),
            Self::Taken { interface, program } => {
                write!(f, "another XDP program ")?;
                if let Some(id) = program {
                    write!(f, "(id {id}) ")?;
                }
                write!(
                    f,
                    "is attached to {interface}; stop its owner or take it off with ip link set \
                     {interface} xdp off"
                )
            }
            Self::Attach { interface, source } => {
                write!(f, "cannot attach the XDP program to {interface}: ")?;
                if is(source, Errno::OPNOTSUPP) {
                    write!(
                        f,
                        "its driver has no native XDP; use an interface that has, or set generic = \
                         \"allow\""
                    )
                } else if is(source, Errno::RANGE) {
                    write!(
                        f,
                        "its MTU, or that of its veth peer, is too large for XDP; lower it with ip \
                         link set {interface} mtu 1500"
                    )
                } else if is(source, Errno::NODEV) {
                    write!(f, "there is no such interface any more")
                } else {
                    write!(f, "{source}; see dmesg for the driver's reason")
                }
            }
        }
    }
}

impl error::Error for BpfError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Attach { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn is_statistics(line: &str) -> bool {
    ["processed ", "verification time ", "stack depth "]
        .iter()
        .any(|start| line.starts_with(start))
}

/// An error with its causes, in one line.
fn chain(error: &dyn error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mpx_ebpf::{ENTRY_JOINS, FLAG_DIRECT, FLOWS_MAX, service_key};

    fn config() -> LoadConfig {
        LoadConfig {
            interfaces: vec![XdpInterface {
                name: "s1".to_owned(),
                index: 7,
                queues: 64,
            }],
            entries: Entries::default(),
            steering: Config {
                workers: 64,
                owner_bits: 8,
                owners: 64,
                first_owner: 0,
                flags: FLAG_DIRECT,
                hash_key: [1, 2],
                syns_per_window: u32::MAX,
                strays_per_window: u32::MAX,
            },
        }
    }

    #[test]
    fn what_the_maps_cannot_hold_is_refused_by_name() {
        assert!(config().validate().is_ok());
        let mut workers = config();
        workers.steering.workers = 65;
        let message = workers.validate().unwrap_err().to_string();
        assert!(
            message.starts_with("s1 has 64 queues for 65 workers"),
            "{message}"
        );
        let mut services = config();
        let key = |port: usize| service_key([0; 16], port as u16);
        let entries = |count| (1..=count).map(|port| (key(port), ENTRY_JOINS)).collect();
        services.entries.bits = entries(CONFIGURED_ENTRIES_MAX);
        assert!(services.validate().is_ok());
        services.entries.bits = entries(CONFIGURED_ENTRIES_MAX + 1);
        assert!(services.validate().is_err());
    }

    #[test]
    fn the_object_holds_what_the_abi_names() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        assert!(object.programs.contains_key(PROGRAM));
        for (name, key, value, entries) in [
            (MAP_SERVICES, size_of::<ServiceKey>(), 4, SERVICES_MAX),
            (
                MAP_FLOWS,
                size_of::<FlowKey>(),
                size_of::<FlowWords>(),
                FLOWS_MAX,
            ),
            (MAP_CONFIG, 4, size_of::<ConfigWords>(), 1),
            (MAP_XSKS, 4, 4, INTERFACES_MAX),
            (MAP_COUNTERS, 4, 8, Verdict::ALL.len() as u32),
        ] {
            let map = &object.maps[name];
            let shape = (map.key_size(), map.value_size(), map.max_entries());
            assert_eq!(shape, (key as u32, value as u32, entries), "{name}");
        }
    }
}
