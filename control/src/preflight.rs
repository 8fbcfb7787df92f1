//! What must hold on this machine before anything is touched. `check` stops after it, `run` goes
//! on with the [`Plan`] that it yields.

use crate::config::{Config, ConfigError, InterfaceConfig, Service};
use crate::ethtool;
use crate::net;
use crate::nic::{self, Nic};
use caps::{CapSet, Capability};
use mpx_datapath::port::xsk;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

/// A configuration that fits this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// In the order of the config.
    pub(crate) nics: Vec<Nic>,
    /// The addresses of each service, in the order of the config, wildcards resolved.
    pub(crate) addresses: Vec<Vec<SocketAddr>>,
    /// Addresses that are served and not the kernel's, where an interface announces such.
    pub(crate) announced: Vec<IpAddr>,
    /// Interfaces that take VLAN tags off frames.
    pub(crate) untagged: Vec<String>,
}

/// The largest MTU whose frames, VLAN tags included, fit one UMEM frame.
const MAX_MTU_BYTES: u32 = xsk::max_mtu(xsk::FRAME_SIZE_DEFAULT);

/// How long an XDP program may be seen on an interface: the kernel takes that of a process that was
/// killed off some milliseconds after its end.
const DETACH_PATIENCE: Duration = Duration::from_secs(1);
const DETACH_PAUSE: Duration = Duration::from_millis(10);

impl Plan {
    /// What would be served and where, in one line.
    pub(crate) fn summary(&self, config: &Config) -> String {
        let nics: Vec<_> = self
            .nics
            .iter()
            .map(|nic| {
                format!(
                    "{} (MTU {}, {} queues)",
                    nic.name, nic.mtu_bytes, nic.queues
                )
            })
            .collect();
        let services = config
            .services
            .iter()
            .zip(&self.addresses)
            .map(|(service, addresses)| {
                let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
                format!(
                    "{} ({}) on {}",
                    service.name,
                    service.app.kind(),
                    addresses.join(" ")
                )
            });
        format!(
            "{}; {}",
            nics.join(", "),
            services.collect::<Vec<_>>().join(", ")
        )
    }
}

/// Why the machine does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Config(ConfigError),
    Machine(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Config(error) => error.fmt(f),
            Refusal::Machine(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Refusal {
        Refusal::Config(error)
    }
}

/// Reads the state of the machine and holds `config` against it; changes nothing.
pub(crate) fn check(config: &Config) -> Result<Plan, Refusal> {
    let all = settled_nics(config)?;
    let nics = interfaces(config, &all)?;
    let untagged = vlan_tags(config, &nics, ethtool::takes_off_vlan_tags)?;
    let addresses = addresses(config, &nics)?;
    let announced = announced(config, &all, &addresses);
    if !config.takeover {
        let sockets = net::kernel_sockets().map_err(|error| {
            Refusal::Machine(format!(
                "cannot read /proc/net/tcp ({error}); mount /proc or set takeover = true"
            ))
        })?;
        refuse_taken(config, &nics, &sockets)?;
    }
    privileges()?;
    Ok(Plan {
        nics,
        addresses,
        announced,
        untagged,
    })
}

/// All interfaces, once no configured one has an XDP program or patience is at its end.
fn settled_nics(config: &Config) -> Result<Vec<Nic>, Refusal> {
    let deadline = Instant::now() + DETACH_PATIENCE;
    loop {
        let all = nic::all().map_err(|error| {
            Refusal::Machine(format!(
                "cannot list the network interfaces ({error}); allow AF_NETLINK sockets"
            ))
        })?;
        let taken = all.iter().any(|nic| {
            let wanted = |interface: &InterfaceConfig| interface.name == nic.name;
            nic.xdp_program.is_some() && config.interfaces.iter().any(wanted)
        });
        if !taken || Instant::now() >= deadline {
            return Ok(all);
        }
        thread::sleep(DETACH_PAUSE);
    }
}

fn interfaces(config: &Config, all: &[Nic]) -> Result<Vec<Nic>, ConfigError> {
    const KEY: &str = "interface.name";
    config
        .interfaces
        .iter()
        .map(|wanted| {
            let name = &wanted.name;
            let refuse = |what: String| Err(config.error(wanted.line, KEY, what));
            let Some(nic) = all.iter().find(|nic| nic.name == *name) else {
                let names: Vec<_> = all.iter().map(|nic| nic.name.as_str()).collect();
                return refuse(format!(
                    "no interface {name:?} in this network namespace; there are {}",
                    names.join(", ")
                ));
            };
            if nic.mac == [0; 6] {
                return refuse(format!(
                    "{name:?} has no Ethernet address; name an Ethernet interface"
                ));
            }
            if !nic.up {
                return refuse(format!("{name:?} is down; run `ip link set {name} up`"));
            }
            if nic.mtu_bytes > MAX_MTU_BYTES {
                return refuse(format!(
                    "{name:?} has MTU {}, but a UMEM frame holds {MAX_MTU_BYTES} at most; \
                     run `ip link set {name} mtu {MAX_MTU_BYTES}` or less",
                    nic.mtu_bytes
                ));
            }
            if let Some(id) = nic.xdp_program {
                return refuse(format!(
                    "{name:?} already has XDP program {id}; stop its owner or run \
                     `ip link set {name} xdp off`"
                ));
            }
            Ok(nic.clone())
        })
        .collect()
}

/// Frames of VLANs must come with their tags, or they would be answered without. Returns the interfaces
/// where they do not, and no VLAN is known.
fn vlan_tags(
    config: &Config,
    nics: &[Nic],
    takes_off_vlan_tags: impl Fn(u32) -> io::Result<bool>,
) -> Result<Vec<String>, ConfigError> {
    let mut untagged = Vec::new();
    for (interface, nic) in config.interfaces.iter().zip(nics) {
        // A driver that cannot be asked has no such offload either.
        if !takes_off_vlan_tags(nic.index).unwrap_or(false) {
            continue;
        }
        let name = &nic.name;
        if !nic.vlans.is_empty() {
            return Err(config.error(
                interface.line,
                "interface.name",
                format!(
                    "{name:?} takes VLAN tags off frames, and has VLANs ({}); run `ethtool -K \
                     {name} rxvlan off`",
                    nic.vlans.join(", ")
                ),
            ));
        }
        untagged.push(name.clone());
    }
    Ok(untagged)
}

fn addresses(config: &Config, nics: &[Nic]) -> Result<Vec<Vec<SocketAddr>>, ConfigError> {
    let own = own_addresses(nics);
    let mut all = Vec::new();
    for service in &config.services {
        for listen in &service.listen {
            if listen.addresses(&own).is_empty() {
                let family = if listen.address.is_ipv4() {
                    "IPv4"
                } else {
                    "IPv6"
                };
                return Err(config.error(
                    listen.line,
                    "service.listen",
                    format!(
                        "{} stands for the interfaces' own addresses, and none has an {family} \
                         address; add one with `ip addr add`",
                        listen.address
                    ),
                ));
            }
        }
        all.push(service.addresses(&own));
    }
    Ok(all)
}

/// What is served, in the kernel on no interface, and to be announced on some.
fn announced(config: &Config, all: &[Nic], served: &[Vec<SocketAddr>]) -> Vec<IpAddr> {
    if !config.interfaces.iter().any(|interface| interface.announce) {
        return Vec::new();
    }
    let own = own_addresses(all);
    let mut announced: Vec<_> = served.iter().flatten().map(SocketAddr::ip).collect();
    announced.retain(|address| !own.contains(address));
    announced.sort_unstable();
    announced.dedup();
    announced
}

fn refuse_taken(
    config: &Config,
    nics: &[Nic],
    sockets: &[net::KernelSocket],
) -> Result<(), ConfigError> {
    let own = own_addresses(nics);
    let listens = |service: &Service| service.listen.clone();
    for listen in config.services.iter().flat_map(listens) {
        for address in listen.addresses(&own) {
            let Some(socket) = net::conflict(sockets, address) else {
                continue;
            };
            let process = match socket.process() {
                Some(process) => format!(" of {process}"),
                None => String::new(),
            };
            return Err(config.error(
                listen.line,
                "service.listen",
                format!(
                    "a kernel socket{process} {socket}, where {address} would be served; \
                     stop it or set takeover = true"
                ),
            ));
        }
    }
    Ok(())
}

fn own_addresses(nics: &[Nic]) -> Vec<IpAddr> {
    nics.iter()
        .flat_map(|nic| nic.addresses.iter().copied())
        .collect()
}

fn privileges() -> Result<(), Refusal> {
    let effective = caps::read(None, CapSet::Effective).map_err(|error| {
        Refusal::Machine(format!(
            "cannot read own capabilities ({error}); mount /proc"
        ))
    })?;
    match missing_privileges(|capability| effective.contains(&capability)).as_slice() {
        [] => Ok(()),
        missing => Err(Refusal::Machine(format!(
            "missing {}; run as root, or grant it with `setcap` or systemd's AmbientCapabilities=",
            missing.join(" and ")
        ))),
    }
}

fn missing_privileges(has: impl Fn(Capability) -> bool) -> Vec<&'static str> {
    let wanted = [
        (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN (attach XDP)"),
        (Capability::CAP_NET_RAW, "CAP_NET_RAW (AF_XDP sockets)"),
        (Capability::CAP_BPF, "CAP_BPF (load the XDP program)"),
        (
            Capability::CAP_PERFMON,
            "CAP_PERFMON (let the XDP program reach into frames)",
        ),
        (
            Capability::CAP_IPC_LOCK,
            "CAP_IPC_LOCK (lock the UMEM in memory)",
        ),
    ];
    wanted
        .into_iter()
        // CAP_SYS_ADMIN is the older name for what these two allow (capabilities(7)).
        .filter(|(capability, _)| match capability {
            Capability::CAP_BPF | Capability::CAP_PERFMON => {
                !has(*capability) && !has(Capability::CAP_SYS_ADMIN)
            }
            _ => !has(*capability),
        })
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(port: u16) -> Config {
        let text = format!(
            "[[interface]]\nname = \"s1\"\n[[service]]\nname = \"web\"\n\
             listen = [\"0.0.0.0:{port}\"]\napp = {{ kind = \"echo\" }}\n"
        );
        Config::parse(Path::new("m.toml"), &text).unwrap()
    }

    fn s1() -> Nic {
        Nic {
            name: "s1".into(),
            index: 7,
            mac: [2, 0, 0, 0, 0, 1],
            mtu_bytes: 1500,
            queues: 1,
            up: true,
            xdp_program: None,
            addresses: vec!["10.9.1.2".parse().unwrap()],
            vlans: Vec::new(),
        }
    }

    #[test]
    fn interfaces_that_cannot_be_used() {
        let config = config(80);
        let refused = |nic: Nic| interfaces(&config, &[nic]).unwrap_err().to_string();
        assert_eq!(
            refused(Nic {
                name: "lo".into(),
                ..s1()
            }),
            "m.toml:2: interface.name: no interface \"s1\" in this network namespace; there are lo"
        );
        assert_eq!(
            refused(Nic {
                mtu_bytes: 9000,
                ..s1()
            }),
            "m.toml:2: interface.name: \"s1\" has MTU 9000, but a UMEM frame holds 3818 at most; \
             run `ip link set s1 mtu 3818` or less"
        );
        assert_eq!(
            refused(Nic {
                xdp_program: Some(42),
                ..s1()
            }),
            "m.toml:2: interface.name: \"s1\" already has XDP program 42; stop its owner or run \
             `ip link set s1 xdp off`"
        );
        assert_eq!(
            refused(Nic { up: false, ..s1() }),
            "m.toml:2: interface.name: \"s1\" is down; run `ip link set s1 up`"
        );
        assert_eq!(interfaces(&config, &[s1()]).unwrap(), [s1()]);
    }

    #[test]
    fn vlans_need_their_tags() {
        let config = config(80);
        let vlan = Nic {
            vlans: vec!["s1.7".into()],
            ..s1()
        };
        let check = |nic: &Nic, on| vlan_tags(&config, std::slice::from_ref(nic), |_| Ok(on));
        assert_eq!(
            check(&vlan, true).unwrap_err().to_string(),
            "m.toml:2: interface.name: \"s1\" takes VLAN tags off frames, and has VLANs (s1.7); run \
             `ethtool -K s1 rxvlan off`"
        );
        assert_eq!(check(&vlan, false), Ok(vec![]));
        assert_eq!(check(&s1(), true), Ok(vec!["s1".to_owned()]));
    }

    #[test]
    fn a_wildcard_without_an_address_is_refused() {
        let config = config(80);
        let nic = Nic {
            addresses: vec!["fe80::1".parse().unwrap()],
            ..s1()
        };
        assert_eq!(
            addresses(&config, &[nic]).unwrap_err().to_string(),
            "m.toml:5: service.listen: 0.0.0.0:80 stands for the interfaces' own addresses, \
             and none has an IPv4 address; add one with `ip addr add`"
        );
    }

    #[test]
    fn only_what_the_kernel_does_not_have_is_announced() {
        let mut config = config(80);
        let served = [
            vec![
                "10.9.1.7:80".parse().unwrap(),
                "10.9.1.2:80".parse().unwrap(),
            ],
            vec!["10.9.1.7:443".parse().unwrap()],
        ];
        assert_eq!(announced(&config, &[s1()], &served), Vec::<IpAddr>::new());
        config.interfaces[0].announce = true;
        let expected: Vec<IpAddr> = vec!["10.9.1.7".parse().unwrap()];
        assert_eq!(announced(&config, &[s1()], &served), expected);
    }

    #[test]
    fn a_kernel_listener_behind_a_wildcard_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = config(port);
        let nic = Nic {
            addresses: vec!["127.0.0.1".parse().unwrap()],
            ..s1()
        };
        let sockets = net::kernel_sockets().unwrap();
        let error = refuse_taken(&config, &[nic], &sockets)
            .unwrap_err()
            .to_string();
        let start = "m.toml:5: service.listen: a kernel socket of ";
        let end = format!(
            "({}) listens on 127.0.0.1:{port}, where 127.0.0.1:{port} would be served; \
             stop it or set takeover = true",
            std::process::id()
        );
        assert!(error.starts_with(start) && error.ends_with(&end), "{error}");
        refuse_taken(&config, &[s1()], &sockets).unwrap();
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_privileges(|_| true), Vec::<&str>::new());
        assert_eq!(
            missing_privileges(|c| c != Capability::CAP_NET_RAW),
            ["CAP_NET_RAW (AF_XDP sockets)"]
        );
        assert_eq!(
            missing_privileges(|c| c != Capability::CAP_BPF),
            Vec::<&str>::new(),
            "CAP_SYS_ADMIN stands in"
        );
        assert_eq!(missing_privileges(|_| false).len(), 5);
    }
}
