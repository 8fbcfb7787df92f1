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
    btf_maps::{Array, HashMap, HashOfMaps, PerCpuArray, XskMap},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use mpx_ebpf::{
    Config, ConfigWords, ENTRY_ADDRESS, ENTRY_SERVICE, FLOWS_MAX, FlowKey, INTERFACES_MAX,
    SERVICES_MAX, SLOTS_MAX, ServiceKey, VERDICTS, Verdict, address_key,
    decode::{self, Bytes, Walk},
    service_key, slot,
};

#[btf_map]
static SERVICES: HashMap<ServiceKey, u32, { SERVICES_MAX as usize }> = HashMap::new();

#[btf_map]
static FLOWS: HashMap<FlowKey, u32, { FLOWS_MAX as usize }> = HashMap::new();

#[btf_map]
static CONFIG: Array<ConfigWords, 1> = Array::new();

/// One XSKMAP per interface, found by the interface's index. So one program with one set of
/// services and counters serves every interface, and nothing has to be pinned for several instances
/// to share it: there is no BPF file system to pin in where `ip netns exec` has mounted a new /sys.
#[btf_map]
static XSKS: HashOfMaps<u32, XskMap<{ SLOTS_MAX as usize }>, { INTERFACES_MAX as usize }> =
    HashOfMaps::new();

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
        | Verdict::DropNoSocket
        | Verdict::DropWrongQueue => xdp_action::XDP_DROP,
        Verdict::PassNotIp
        | Verdict::PassNotTcp
        | Verdict::PassNotOurs
        | Verdict::PassKernelJoin
        | Verdict::PassTruncated
        | Verdict::PassFragment
        | Verdict::PassTooDeep => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn judge(ctx: &XdpContext) -> Verdict {
    match decode::walk(&Frame(ctx)) {
        Walk::Segment(segment) => {
            if is_service(segment.destination, segment.destination_port) {
                redirect(ctx)
            } else {
                Verdict::PassNotOurs
            }
        }
        Walk::FirstFragment {
            destination,
            destination_port,
        } => {
            // Without its port it is taken for ours where its address is: the kernel could still
            // put it together with the rest.
            let ours = match destination_port {
                Some(port) => is_service(destination, port),
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
            source_port,
        } => {
            if !is_service(source, source_port) {
                return Verdict::PassNotTcp;
            }
            // What is quoted of TCP names no owner, but one worker owns every connection.
            match redirect(ctx) {
                Verdict::RedirectHome => Verdict::RedirectTooBig,
                refused => refused,
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

/// Sets the redirect up, if there is a socket that the frame can reach.
#[inline(always)]
fn redirect(ctx: &XdpContext) -> Verdict {
    let Some(config) = CONFIG.get(0).map(Config::from_words) else {
        return Verdict::DropNoSocket;
    };
    let interface = ctx.ingress_ifindex() as u32;
    // SAFETY: the loader fills this map before it attaches the program and removes nothing from it.
    let Some(sockets) = (unsafe { XSKS.get(&interface) }) else {
        return Verdict::DropNoSocket;
    };
    let queue = ctx.rx_queue_index();
    let slot = slot(queue, config.workers, OWNER);
    match sockets.get(slot) {
        // AF_XDP delivers only to a socket of the very queue; the kernel drops others uncounted.
        Some(bound) if bound != queue => Verdict::DropWrongQueue,
        Some(_) => match sockets.redirect(slot, xdp_action::XDP_DROP as u64) {
            Ok(_) => Verdict::RedirectHome,
            Err(_) => Verdict::DropNoSocket,
        },
        None => Verdict::DropNoSocket,
    }
}

/// One worker owns every connection.
const OWNER: u32 = 0;

#[inline(always)]
fn is_service(address: [u8; 16], port: u16) -> bool {
    entry(&service_key(address, port)) == Some(ENTRY_SERVICE)
}

#[inline(always)]
fn is_served(address: [u8; 16]) -> bool {
    entry(&address_key(address)) == Some(ENTRY_ADDRESS)
}

#[inline(always)]
fn entry(key: &ServiceKey) -> Option<u32> {
    // SAFETY: the value is one word, copied out at once, and user space does not remove entries
    // while the program runs.
    unsafe { SERVICES.get(key).copied() }
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
