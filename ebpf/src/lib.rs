//! What the XDP program and user space share: the names and types of the maps, the arithmetic that
//! names the owner of a connection, the verdicts, and the header walk.
//!
//! Keys and values of maps are plain arrays of integers, so that user space needs no unsafe code to
//! hand them to the kernel; the functions here give them meaning.
#![no_std]

pub mod decode;

use core::net::{IpAddr, SocketAddr};

/// Name of the XDP program in the object.
pub const PROGRAM: &str = "mpx_xdp";

/// [`ServiceKey`] to one of [`ENTRY_SERVICE`] and [`ENTRY_ADDRESS`].
pub const MAP_SERVICES: &str = "SERVICES";
/// Array of one [`Config`], as [`ConfigWords`].
pub const MAP_CONFIG: &str = "CONFIG";
/// Interface index to that interface's XSKMAP, whose slots [`slot`] numbers.
pub const MAP_XSKS: &str = "XSKS";
/// Frames per [`Verdict`], an array per CPU.
pub const MAP_COUNTERS: &str = "COUNTERS";

/// Interfaces that the program can serve.
pub const INTERFACES_MAX: u32 = 64;
/// Slots of one interface: queues × workers must not exceed it.
pub const SLOTS_MAX: u32 = 4096;
/// Entries of the services map: one per address and port, and one per address.
pub const SERVICES_MAX: u32 = 4096;

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

/// Value in the services map: this address and port is a service.
pub const ENTRY_SERVICE: u32 = 1;
/// Value in the services map: this address has services.
pub const ENTRY_ADDRESS: u32 = 2;

/// What the program must know besides the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Workers of this server, at least 1.
    pub workers: u32,
    /// Low bits of a TSval that hold the owner.
    pub owner_bits: u32,
}

/// A [`Config`] as the map holds it; the words not used yet are 0.
pub type ConfigWords = [u32; 4];

impl Config {
    #[inline(always)]
    pub const fn to_words(self) -> ConfigWords {
        [self.workers, self.owner_bits, 0, 0]
    }

    #[inline(always)]
    pub const fn from_words(words: &ConfigWords) -> Self {
        Self {
            workers: words[0],
            owner_bits: words[1],
        }
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
    /// To the socket of the owner.
    Redirect,
    /// To the socket of the owner: an ICMP error that says that a segment of a service was too big.
    RedirectTooBig,
    /// To the kernel: neither IPv4 nor IPv6, or under more VLAN tags than the walk follows.
    PassNotIp,
    /// To the kernel: IP, but no TCP and no ICMP error about a segment of a service.
    PassNotTcp,
    /// To the kernel: TCP, but no service of ours.
    PassNotOurs,
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
