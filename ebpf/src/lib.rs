//! What the XDP program and user space share: the names and types of the maps, the arithmetic that
//! names the owner of a connection, the verdicts, and the header walk.
//!
//! Keys and values of maps are plain arrays of integers, so that user space needs no unsafe code to
//! hand them to the kernel; the functions here give them meaning.
#![no_std]

pub mod crowd;
pub mod decode;
mod flow;

pub use flow::{
    Claim, FlowKey, FlowOwner, FlowWords, Numbers, flow_key, flow_key_of, home, queue_home,
};

use core::net::{IpAddr, SocketAddr};

/// Name of the XDP program in the object.
pub const PROGRAM: &str = "mpx_xdp";

/// [`ServiceKey`] to what is known of it, as `ENTRY_…` bits.
pub const MAP_SERVICES: &str = "SERVICES";
/// [`FlowKey`] to the [`FlowOwner`], as [`FlowWords`], of a flow that neither its timestamps nor [`home`]
/// name the owner of: a worker, never a slot.
pub const MAP_FLOWS: &str = "FLOWS";
/// Array of one [`Config`], as [`ConfigWords`].
pub const MAP_CONFIG: &str = "CONFIG";
/// Interface index to that interface's XSKMAP, whose slots [`slot`] numbers.
pub const MAP_XSKS: &str = "XSKS";
/// [`crowd::SourceKey`] to [`crowd::SourceWords`]: from where clients have come lately. The oldest give
/// way.
pub const MAP_SOURCES: &str = "SOURCES";
/// Frames per [`Verdict`], an array per CPU.
pub const MAP_COUNTERS: &str = "COUNTERS";

/// Interfaces that the program can serve.
pub const INTERFACES_MAX: u32 = 64;
/// Slots of one interface: queues × workers must not exceed it.
pub const SLOTS_MAX: u32 = 4096;
/// Entries of the services map: one per address and port, and one per address.
pub const SERVICES_MAX: u32 = 4096;
/// Entries of the flows map, one per subflow that needs one. 25 MB of kernel memory.
pub const FLOWS_MAX: u32 = 1 << 18;

/// Entries of the map of sources.
pub const SOURCES_MAX: u32 = 1 << 16;

/// The XSKMAP slot of the socket that worker `owner` of `workers` holds on `queue`.
#[inline(always)]
pub const fn slot(queue: u32, workers: u32, owner: u32) -> u32 {
    queue.wrapping_mul(workers).wrapping_add(owner)
}

/// The owner of a connection by its token, out of `owners = servers * workers`. Tokens are uniform,
/// so every owner gets an equal share of them.
#[inline(always)]
pub const fn owner_of(token: u32, owners: u32) -> u32 {
    ((token as u64 * owners as u64) >> 32) as u32
}

/// Low bits of a TSval that hold the owner, unless configured otherwise.
pub const OWNER_BITS_DEFAULT: u32 = 8;

/// The owner in the low `owner_bits` (at most 31) of a timestamp of ours, as a TSecr echoes it.
#[inline(always)]
pub const fn owner_of_timestamp(timestamp: u32, owner_bits: u32) -> u32 {
    timestamp & owner_mask(owner_bits)
}

/// `timestamp` with its low `owner_bits` (at most 31) replaced by `owner`.
#[inline(always)]
pub const fn timestamp_with_owner(timestamp: u32, owner: u32, owner_bits: u32) -> u32 {
    let mask = owner_mask(owner_bits);
    (timestamp & !mask) | (owner & mask)
}

const fn owner_mask(owner_bits: u32) -> u32 {
    (1u32 << (owner_bits & 31)) - 1
}

/// Address, IPv4 as IPv4-mapped IPv6 (RFC 4291 §2.5.5.2), then the port in network order, then zeros.
pub type ServiceKey = [u8; 20];

/// The key of an address and a port.
#[inline(always)]
pub const fn service_key(address: [u8; 16], port: u16) -> ServiceKey {
    let mut key = [0; 20];
    let mut at = 0;
    while at < 16 {
        key[at] = address[at];
        at += 1;
    }
    let port = port.to_be_bytes();
    key[16] = port[0];
    key[17] = port[1];
    key
}

/// The key that marks an address as served on some port. Its entry has the value
/// [`ENTRY_ADDRESS`], so that a segment to port 0 does not pass for one to a service.
#[inline(always)]
pub const fn address_key(address: [u8; 16]) -> ServiceKey {
    service_key(address, 0)
}

/// [`service_key`] of a socket address.
pub fn service_key_of(service: SocketAddr) -> ServiceKey {
    service_key(address_octets(service.ip()), service.port())
}

/// An address of either family in the 16 octets that keys hold.
pub fn address_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// In the services map: this address and port is a service.
pub const ENTRY_SERVICE: u32 = 1;
/// This address has services. Set in its [`address_key`] only.
pub const ENTRY_ADDRESS: u32 = 1 << 1;
/// Joins are taken at this address and port, or, in an [`address_key`], at any port.
pub const ENTRY_JOINS: u32 = 1 << 2;
/// A kernel socket that does MPTCP listens at this address and port: joins to it are the kernel's.
pub const ENTRY_KERNEL: u32 = 1 << 3;
/// The kernel does not have this address: ARP requests and neighbour solicitations for it are ours.
/// Set in its [`address_key`] only.
pub const ENTRY_ANNOUNCE: u32 = 1 << 4;

/// Frames go to the socket of their owner. Without it they go to the home worker of their queue,
/// and workers pass them on.
pub const FLAG_DIRECT: u32 = 1;
/// [`home`] of an initial subflow is the home worker of the queue it arrives on: the NIC hashes.
pub const FLAG_FLOW_HASH_NIC: u32 = 1 << 1;
/// Joins that are malformed, or for a port where none are taken, are dropped at once.
pub const FLAG_DROP_INVALID_JOINS: u32 = 1 << 2;

/// What the program must know besides the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Workers of this server, at least 1.
    pub workers: u32,
    /// Low bits of a TSval that hold the owner's number.
    pub owner_bits: u32,
    /// Servers times workers.
    pub owners: u32,
    /// Number of this server's first worker among the owners.
    pub first_owner: u32,
    /// `FLAG_…` bits.
    pub flags: u32,
    /// Of [`home`].
    pub hash_key: [u64; 2],
    /// SYNs that are let through on one CPU in a window, see [`crowd`].
    pub syns_per_window: u32,
    /// And segments that claim no flow that could be known.
    pub strays_per_window: u32,
}

/// A [`Config`] as the map holds it; the words not used yet are 0.
pub type ConfigWords = [u32; 12];

impl Config {
    pub const fn to_words(self) -> ConfigWords {
        let [k0, k1] = self.hash_key;
        [
            self.workers,
            self.owner_bits,
            self.owners,
            self.first_owner,
            self.flags,
            k0 as u32,
            (k0 >> 32) as u32,
            k1 as u32,
            (k1 >> 32) as u32,
            self.syns_per_window,
            self.strays_per_window,
            0,
        ]
    }

    #[inline(always)]
    pub const fn from_words(words: &ConfigWords) -> Self {
        Self {
            workers: words[0],
            owner_bits: words[1],
            owners: words[2],
            first_owner: words[3],
            flags: words[4],
            hash_key: [
                words[5] as u64 | (words[6] as u64) << 32,
                words[7] as u64 | (words[8] as u64) << 32,
            ],
            syns_per_window: words[9],
            strays_per_window: words[10],
        }
    }

    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Which worker of this server has the number `owner`, if any.
    #[inline(always)]
    pub const fn worker_of(&self, owner: u32) -> Option<u32> {
        let worker = owner.wrapping_sub(self.first_owner);
        if worker < self.workers {
            Some(worker)
        } else {
            None
        }
    }

    /// Which worker of this server owns the connection of a token, if any.
    #[inline(always)]
    pub const fn worker_of_token(&self, token: u32) -> Option<u32> {
        self.worker_of(owner_of(token, self.owners))
    }

    /// Which worker of this server a timestamp of ours names, if any.
    #[inline(always)]
    pub const fn worker_of_timestamp(&self, timestamp: u32) -> Option<u32> {
        self.worker_of(owner_of_timestamp(timestamp, self.owner_bits))
    }
}

macro_rules! verdicts {
    ($( $(#[doc = $doc:literal])* $variant:ident ),+ $(,)?) => {
        /// What became of a frame. The discriminant is the index into the counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Verdict { $( $(#[doc = $doc])* $variant ),+ }

        impl Verdict {
            /// Every verdict, in the order of the counters.
            pub const ALL: &'static [Verdict] = &[ $( Verdict::$variant ),+ ];

            /// Name of the counter.
            pub const fn name(self) -> &'static str {
                match self { $( Verdict::$variant => concat!("Xdp", stringify!($variant)) ),+ }
            }
        }
    };
}

verdicts! {
    /// To the owner of the connection that a join names by its token.
    RedirectToken,
    /// To the worker that the timestamp echoed names.
    RedirectTimestamp,
    /// To the worker that the flows map names.
    RedirectFlow,
    /// To the home worker of the flow.
    RedirectHome,
    /// To the home worker of the queue, as all that is ours without [`FLAG_DIRECT`].
    RedirectMesh,
    /// An ICMP error that says that a segment of ours was too big.
    RedirectTooBig,
    /// A question for the link-layer address of an address that we announce.
    RedirectNeighbor,
    /// To the kernel: neither IPv4 nor IPv6, or under more VLAN tags than the walk follows.
    PassNotIp,
    /// To the kernel: IP, but no TCP and no ICMP error about a segment of a service.
    PassNotTcp,
    /// To the kernel: TCP, but no service of ours.
    PassNotOurs,
    /// To the kernel: a join to a port where a kernel socket that does MPTCP listens.
    PassKernelJoin,
    /// To the kernel: a question for the link-layer address of an address that we do not announce.
    PassNeighbor,
    /// To the kernel: ends in the middle of a header.
    PassTruncated,
    /// To the kernel: a later fragment to a served address. It names no port, and it cannot be
    /// completed there because the first one never arrives.
    PassFragment,
    /// To the kernel: more extension headers than the walk follows, to an address we do not serve.
    PassTooDeep,
    /// A fragment that starts a segment to a service: the kernel would put the segment together and
    /// reset our flow.
    DropFragment,
    /// More extension headers than the walk follows, to an address we serve: whether it is for a
    /// service is not known, and the kernel could reset our flow.
    DropTooDeep,
    /// A join that is malformed, or for a port where none are taken.
    DropInvalidJoin,
    /// One SYN too many, from where no client is known to be.
    DropCrowdedSyn,
    /// One segment too many of those that claim no flow that could be known.
    DropCrowdedStray,
    /// Ours, but the slot holds no socket.
    DropNoSocket,
    /// Ours, but the slot holds a socket of another queue: the kernel would drop it uncounted.
    DropWrongQueue,
}

/// Number of verdicts, which is the size of the counters map.
pub const VERDICTS: u32 = Verdict::ALL.len() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_share_the_tokens_equally() {
        for owners in [1, 2, 3, 7, 16, 256] {
            assert_eq!(owner_of(0, owners), 0);
            assert_eq!(owner_of(u32::MAX, owners), owners - 1);
            let mut hits = [0u32; 256];
            for step in 0..65_536u32 {
                hits[owner_of(step << 16, owners) as usize] += 1;
            }
            let share = 65_536 / owners;
            for &count in &hits[..owners as usize] {
                assert!((share..=share + 1).contains(&count));
            }
        }
    }

    #[test]
    fn slots_of_an_interface_do_not_collide() {
        let mut seen = [false; 24];
        for queue in 0..6 {
            for owner in 0..4 {
                let slot = slot(queue, 4, owner) as usize;
                assert!(!core::mem::replace(&mut seen[slot], true));
            }
        }
        assert!(seen.iter().all(|&taken| taken));
    }

    #[test]
    fn a_timestamp_carries_its_owner() {
        let timestamp = timestamp_with_owner(0xdead_beef, 0x42, OWNER_BITS_DEFAULT);
        assert_eq!(timestamp, 0xdead_be42);
        assert_eq!(owner_of_timestamp(timestamp, OWNER_BITS_DEFAULT), 0x42);
        assert_eq!(timestamp_with_owner(7, 3, 0), 7);
    }

    #[test]
    fn what_the_map_holds_is_what_was_configured() {
        let config = Config {
            workers: 1,
            owner_bits: 2,
            owners: 3,
            first_owner: 4,
            flags: 5,
            hash_key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
            syns_per_window: 6,
            strays_per_window: 7,
        };
        assert_eq!(Config::from_words(&config.to_words()), config);
    }

    #[test]
    fn workers_of_other_servers_are_none_of_ours() {
        let config = Config {
            workers: 2,
            owner_bits: 8,
            owners: 6,
            first_owner: 2,
            flags: FLAG_DIRECT,
            hash_key: [0; 2],
            syns_per_window: 1,
            strays_per_window: 1,
        };
        let workers = [0, 1, 2, 3, 4, u32::MAX].map(|owner| config.worker_of(owner));
        assert_eq!(workers, [None, None, Some(0), Some(1), None, None]);
        // The middle third of all tokens is this server's.
        assert_eq!(config.worker_of_token(u32::MAX / 3 - 1), None);
        assert_eq!(config.worker_of_token(u32::MAX / 3 + 1), Some(0));
        assert_eq!(config.worker_of_token(u32::MAX / 3 * 2 - 1), Some(1));
        assert_eq!(config.worker_of_token(u32::MAX / 3 * 2 + 2), None);
        assert_eq!(config.worker_of_timestamp(0xdead_be03), Some(1));
        assert_eq!(config.worker_of_timestamp(0xdead_be04), None);
    }

    #[test]
    fn keys_of_both_families_are_told_apart() {
        let v4 = service_key_of("10.9.1.2:80".parse().unwrap());
        assert_eq!(
            v4,
            [
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 9, 1, 2, 0, 80, 0, 0
            ]
        );
        let v6 = service_key_of("[fd00:9:1::2]:443".parse().unwrap());
        assert_eq!(v6[..2], [0xfd, 0]);
        assert_eq!(v6[16..], [1, 187, 0, 0]);
    }
}
