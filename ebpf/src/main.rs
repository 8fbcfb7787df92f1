//! The XDP program: is the frame ours, and whose? Ours go to the socket of their owner, the rest to
//! the kernel; every verdict is counted on the CPU where it fell.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    reason = "packet memory and map values are reached through raw pointers, which the verifier \
              checks when the program is loaded"
)]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap, HashOfMaps, LruHashMap, PerCpuArray, XskMap},
    helpers::bpf_ktime_get_coarse_ns,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use mpx_ebpf::{
    Config, ConfigWords, ENTRY_ADDRESS, ENTRY_ANNOUNCE, ENTRY_JOINS, ENTRY_KERNEL, ENTRY_SERVICE,
    FLAG_DIRECT, FLAG_DROP_INVALID_JOINS, FLAG_FLOW_HASH_NIC, FLOWS_MAX, FlowKey, FlowOwner,
    FlowWords, INTERFACES_MAX, Numbers, SERVICES_MAX, SLOTS_MAX, SOURCES_MAX, ServiceKey, VERDICTS,
    Verdict, address_key,
    crowd::{self, SourceKey, SourceWords, Tally},
    decode::{self, Bytes, Join, Segment, Walk},
    flow_key, home, queue_home, service_key, slot,
};

#[btf_map]
static SERVICES: HashMap<ServiceKey, u32, { SERVICES_MAX as usize }> = HashMap::new();

#[btf_map]
static FLOWS: HashMap<FlowKey, FlowWords, { FLOWS_MAX as usize }> = HashMap::new();

#[btf_map]
static CONFIG: Array<ConfigWords, 1> = Array::new();

/// One XSKMAP per interface, found by the interface's index. So one program with one set of
/// services and counters serves every interface, and nothing has to be pinned for several instances
/// to share it: there is no BPF file system to pin in where `ip netns exec` has mounted a new /sys.
#[btf_map]
static XSKS: HashOfMaps<u32, XskMap<{ SLOTS_MAX as usize }>, { INTERFACES_MAX as usize }> =
    HashOfMaps::new();

/// From where clients have shown that they are there.
#[btf_map]
static SOURCES: LruHashMap<SourceKey, SourceWords, { SOURCES_MAX as usize }> = LruHashMap::new();

/// What was let through of either kind of [`Crowd`], and of SYNs from proven sources.
#[btf_map]
static TALLIES: PerCpuArray<Tally, 3> = PerCpuArray::new();

#[btf_map]
static COUNTERS: PerCpuArray<u64, { VERDICTS as usize }> = PerCpuArray::new();

#[xdp]
fn mpx_xdp(ctx: XdpContext) -> u32 {
    let verdict = judge(&ctx);
    count(verdict);
    match verdict {
        Verdict::RedirectToken
        | Verdict::RedirectTimestamp
        | Verdict::RedirectFlow
        | Verdict::RedirectHome
        | Verdict::RedirectMesh
        | Verdict::RedirectTooBig
        | Verdict::RedirectNeighbor => xdp_action::XDP_REDIRECT,
        Verdict::DropFragment
        | Verdict::DropTooDeep
        | Verdict::DropInvalidJoin
        | Verdict::DropCrowdedSyn
        | Verdict::DropCrowdedStray
        | Verdict::DropNoSocket
        | Verdict::DropWrongQueue => xdp_action::XDP_DROP,
        Verdict::PassNotIp
        | Verdict::PassNotTcp
        | Verdict::PassNotOurs
        | Verdict::PassKernelJoin
        | Verdict::PassNeighbor
        | Verdict::PassTruncated
        | Verdict::PassFragment
        | Verdict::PassTooDeep => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn judge(ctx: &XdpContext) -> Verdict {
    match decode::walk(&Frame(ctx)) {
        Walk::Segment(segment) => judge_segment(ctx, &segment),
        Walk::FirstFragment {
            source,
            destination,
            ports,
        } => {
            // Without its ports it is taken for ours where its address is: the kernel could still
            // put it together with the rest.
            let ours = match ports {
                Some((source_port, port)) => {
                    let key = flow_key(source, source_port, destination, port);
                    entry(&service_key(destination, port)) & ENTRY_SERVICE != 0
                        || flow(&key, Numbers::Neither).is_some()
                }
                None => is_served(destination),
            };
            if ours {
                Verdict::DropFragment
            } else {
                Verdict::PassNotOurs
            }
        }
        Walk::LaterFragment { destination } => {
            if is_served(destination) {
                Verdict::PassFragment
            } else {
                Verdict::PassNotOurs
            }
        }
        Walk::PacketTooBig {
            source,
            destination,
            source_port,
            destination_port,
        } => {
            // It quotes a segment of ours, so its destination is the remote side.
            let key = flow_key(destination, destination_port, source, source_port);
            let is_service = entry(&service_key(source, source_port)) & ENTRY_SERVICE != 0;
            match (flow(&key, Numbers::Neither), is_service) {
                (Some(worker), _) => redirect(ctx, Target::Worker(worker), Verdict::RedirectTooBig),
                (None, true) => redirect(ctx, Target::Home(&key), Verdict::RedirectTooBig),
                (None, false) => Verdict::PassNotTcp,
            }
        }
        Walk::NeighborRequest { target } => {
            if entry(&address_key(target)) & ENTRY_ANNOUNCE != 0 {
                redirect(ctx, Target::Queue, Verdict::RedirectNeighbor)
            } else {
                Verdict::PassNeighbor
            }
        }
        Walk::TooDeep { destination } => {
            if is_served(destination) {
                Verdict::DropTooDeep
            } else {
                Verdict::PassTooDeep
            }
        }
        Walk::NotIp => Verdict::PassNotIp,
        Walk::NotTcp => Verdict::PassNotTcp,
        Walk::Truncated => Verdict::PassTruncated,
    }
}

/// Who is asked first has the last word: the timestamp of an established segment, the limits of what
/// anybody can send, the token of a join, the flows map, and for what is left of a service its home
/// worker. A frame of a flood comes no further than the limits.
#[inline(always)]
fn judge_segment(ctx: &XdpContext, segment: &Segment) -> Verdict {
    let Some(config) = config() else {
        return Verdict::DropNoSocket;
    };
    let local = entry(&service_key(segment.destination, segment.destination_port));
    let is_service = local & ENTRY_SERVICE != 0;
    let crowd = if segment.is_syn() {
        Some(Crowd::Syns)
    } else if is_service && segment.is_ack() {
        match decode::echoed_timestamp(&Frame(ctx), segment) {
            Some(tsecr) => {
                if let Some(worker) = config.worker_of_timestamp(tsecr) {
                    return redirect(ctx, Target::Worker(worker), Verdict::RedirectTimestamp);
                }
                Some(Crowd::Strays)
            }
            // What clients without timestamps send can be told from nothing.
            None => None,
        }
    } else {
        Some(Crowd::Strays)
    };
    if is_service
        && let Some(crowd) = crowd
        && crowd.is_full(&config, segment)
    {
        return crowd.verdict();
    }
    if JOINS
        && segment.is_syn()
        && let Some(verdict) = judge_join(ctx, &config, segment, local)
    {
        return verdict;
    }
    let key = segment.flow_key();
    if let Some(worker) = flow(&key, segment.numbers()) {
        return redirect(ctx, Target::Worker(worker), Verdict::RedirectFlow);
    }
    if !is_service {
        return Verdict::PassNotOurs;
    }
    redirect(ctx, Target::Home(&key), Verdict::RedirectHome)
}

/// What anybody can send, however many.
#[derive(Clone, Copy)]
enum Crowd {
    Syns = 0,
    /// Neither a SYN nor of a flow that its timestamps name, and not of a client without timestamps.
    Strays = 1,
}

/// The tally of SYNs from sources that are known.
const KNOWN: u32 = 2;

/// Counts one more in this CPU's tally, if there may be one.
#[inline(always)]
fn take(tally: u32, window: u32, max: u32) -> bool {
    match TALLIES.get_ptr_mut(tally) {
        // SAFETY: the pointer is to this CPU's own value, and an XDP program is not preempted by
        // another one on its CPU.
        Some(tally) => crowd::take(unsafe { &mut *tally }, window, max),
        None => true,
    }
}

impl Crowd {
    /// The verdict on what is one too many.
    #[inline(always)]
    fn verdict(self) -> Verdict {
        match self {
            Crowd::Syns => Verdict::DropCrowdedSyn,
            Crowd::Strays => Verdict::DropCrowdedStray,
        }
    }

    /// Whether a segment is one too many; if not it is counted.
    #[inline(always)]
    fn is_full(self, config: &Config, segment: &Segment) -> bool {
        let max = match self {
            Crowd::Syns => config.syns_per_window,
            Crowd::Strays => config.strays_per_window,
        };
        // SAFETY: a helper without arguments. Its ticks of some milliseconds are fine enough.
        let window = crowd::window_of(unsafe { bpf_ktime_get_coarse_ns() });
        let mut taken = take(self as u32, window, max);
        if let (false, Crowd::Syns) = (taken, self)
            && let Some(source) = SOURCES.get_ptr_mut(crowd::source_key(segment.source))
        {
            // SAFETY: three words, each read and written on its own. Where another CPU, or user space,
            // does so meanwhile, a few SYNs more or less are counted.
            taken = crowd::take_of_source(unsafe { &mut *source }, window, max)
                && take(KNOWN, window, max.saturating_mul(crowd::SOURCES_TIMES));
        }
        !taken
    }
}

/// Off in the object that the cost of reading joins is measured against.
const JOINS: bool = !cfg!(feature = "without-joins");

/// What becomes of a SYN that joins a connection (RFC 8684 §3.2); `None`: it does not, or nobody
/// takes it here, and it is like any other.
#[inline(always)]
fn judge_join(ctx: &XdpContext, config: &Config, segment: &Segment, local: u32) -> Option<Verdict> {
    let join = decode::join(&Frame(ctx), segment);
    if join == Join::None {
        return None;
    }
    if local & ENTRY_KERNEL != 0 {
        return Some(Verdict::PassKernelJoin);
    }
    let address = entry(&address_key(segment.destination));
    let taken = (local | address) & ENTRY_JOINS != 0;
    match join {
        Join::Token(token) if taken => Some(match config.worker_of_token(token) {
            // Those to services have been counted.
            _ if local & ENTRY_SERVICE == 0 && Crowd::Syns.is_full(config, segment) => {
                Verdict::DropCrowdedSyn
            }
            Some(worker) => redirect(ctx, Target::Worker(worker), Verdict::RedirectToken),
            // No connection of this server has such a token: any worker can say so.
            None => redirect(
                ctx,
                Target::Home(&segment.flow_key()),
                Verdict::RedirectHome,
            ),
        }),
        _ if config.has(FLAG_DROP_INVALID_JOINS) && address & ENTRY_ADDRESS != 0 => {
            Some(Verdict::DropInvalidJoin)
        }
        _ => None,
    }
}

/// Whose socket a frame is for.
enum Target<'a> {
    Worker(u32),
    /// The home worker of a flow.
    Home(&'a FlowKey),
    /// The home worker of the queue.
    Queue,
}

/// Sets the redirect up, if there is a socket that the frame can reach. Returns `verdict` then.
#[inline(always)]
fn redirect(ctx: &XdpContext, target: Target<'_>, verdict: Verdict) -> Verdict {
    let Some(config) = config() else {
        return Verdict::DropNoSocket;
    };
    let interface = ctx.ingress_ifindex() as u32;
    // SAFETY: the loader fills this map before it attaches the program and removes nothing from it.
    let Some(sockets) = (unsafe { XSKS.get(&interface) }) else {
        return Verdict::DropNoSocket;
    };
    let queue = ctx.rx_queue_index();
    let queue_home = queue_home(queue, config.workers);
    let (worker, verdict) = match target {
        Target::Queue => (queue_home, verdict),
        Target::Worker(_) | Target::Home(_) if !config.has(FLAG_DIRECT) => {
            (queue_home, Verdict::RedirectMesh)
        }
        Target::Home(_) if config.has(FLAG_FLOW_HASH_NIC) => (queue_home, verdict),
        Target::Home(key) => (home(key, &config.hash_key, config.workers), verdict),
        Target::Worker(worker) => (worker, verdict),
    };
    // One more would be the first one's of the next queue.
    if worker >= config.workers {
        return Verdict::DropNoSocket;
    }
    let slot = slot(queue, config.workers, worker);
    match sockets.get(slot) {
        // AF_XDP delivers only to a socket of the very queue; the kernel drops others uncounted.
        Some(bound) if bound != queue => Verdict::DropWrongQueue,
        Some(_) => match sockets.redirect(slot, xdp_action::XDP_DROP as u64) {
            Ok(_) => verdict,
            Err(_) => Verdict::DropNoSocket,
        },
        None => Verdict::DropNoSocket,
    }
}

#[inline(always)]
fn config() -> Option<Config> {
    CONFIG.get(0).map(Config::from_words)
}

#[inline(always)]
fn is_served(address: [u8; 16]) -> bool {
    entry(&address_key(address)) & ENTRY_ADDRESS != 0
}

/// The `ENTRY_…` bits of an address and port.
#[inline(always)]
fn entry(key: &ServiceKey) -> u32 {
    // SAFETY: the value is one word, copied out at once. Where user space changes it meanwhile, it is
    // the old or the new one; where it removes the entry of a kernel socket that is gone, at worst
    // that of another, and one join to a port where nobody listens any more goes astray.
    unsafe { SERVICES.get(key).copied() }.unwrap_or(0)
}

/// The worker that the flows map names for a segment that says this of its flow.
#[inline(always)]
fn flow(key: &FlowKey, numbers: Numbers) -> Option<u32> {
    // SAFETY: the value is three words, copied out at once. If its entry is changed, or removed and used
    // again, in between, they are those of another time or flow: the worker that gets the frame passes
    // it on, and a segment that the kernel gets too early comes again.
    let words = unsafe { FLOWS.get(key).copied() }?;
    FlowOwner::from_words(words).of_segment(numbers)
}

#[inline(always)]
fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: the pointer is to this CPU's own value, and an XDP program is not preempted by
        // another one on its CPU.
        unsafe { *counter += 1 };
    }
}

/// The packet between `data` and `data_end`.
struct Frame<'a>(&'a XdpContext);

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        // Without a bound that it can see, the verifier does not follow `data + at`.
        if at > decode::OFFSET_MAX + 64 {
            return None;
        }
        let start = self.0.data() + at;
        if start + N > self.0.data_end() {
            return None;
        }
        let start = start as *const [u8; N];
        // SAFETY: the octets lie before `data_end`, and an array of octets has no alignment.
        Some(unsafe { start.read_unaligned() })
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects what it cannot prove to end, so nothing here may panic: a panic that
    // stays in the program shows as a load error.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
