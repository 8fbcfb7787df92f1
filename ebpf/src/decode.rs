//! The way from the Ethernet header to the TCP ports, or to those that an ICMP error quotes, or to the
//! address that a neighbour asks for: the same code on the host and in BPF.
//!
//! It is written for the verifier: every loop has a constant bound, every read names its offset and
//! length, and no offset exceeds [`OFFSET_MAX`].

mod options;

pub use options::{Join, echoed_timestamp, join};

use crate::flow::{FlowKey, Numbers, flow_key};

/// VLAN tags that are followed (one 802.1ad and one 802.1Q).
pub const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers that are followed.
pub const EXTENSION_HEADERS_MAX: usize = 6;
/// No header that the walk reads starts further in than this, in octets. An extension header can be
/// 2,048 octets long; what goes beyond counts as too deep.
pub const OFFSET_MAX: usize = 1024;

/// A frame to read from.
pub trait Bytes {
    /// The `N` octets from `at` on, `None` where the frame is shorter.
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk().copied()
    }
}

/// What the walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// A whole TCP segment.
    Segment(Segment),
    /// The fragment that starts a TCP segment; no port where it is too short to hold one.
    FirstFragment {
        source: [u8; 16],
        destination: [u8; 16],
        /// Source and destination.
        ports: Option<(u16, u16)>,
    },
    /// Any other fragment of a TCP segment.
    LaterFragment { destination: [u8; 16] },
    /// An ICMP error that says that a TCP segment was too big for a link, and whose that was.
    PacketTooBig {
        source: [u8; 16],
        destination: [u8; 16],
        source_port: u16,
        destination_port: u16,
    },
    /// An ARP request or a neighbour solicitation for this address.
    NeighborRequest { target: [u8; 16] },
    /// More extension headers, or longer ones, than are followed.
    TooDeep { destination: [u8; 16] },
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// IP with something else in it.
    NotTcp,
    /// The frame ends in the middle of a header, or a header contradicts itself.
    Truncated,
}

/// A TCP segment. IPv4 addresses are IPv4-mapped (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    /// Of a meaning only with ACK.
    pub ack: u32,
    /// Octet 13 of the header: CWR ECE URG ACK PSH RST SYN FIN.
    pub flags: u8,
    /// Where the TCP header starts in the frame, in octets.
    pub tcp_offset: usize,
    /// Octets of options in the TCP header, at most 40.
    pub options_len: usize,
}

impl Segment {
    /// Asks for a new flow.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.flags & (FLAG_SYN | FLAG_ACK | FLAG_RST | FLAG_FIN) == FLAG_SYN
    }

    /// Belongs to a flow that both sides know, unless it is forged.
    #[inline(always)]
    pub const fn is_ack(&self) -> bool {
        self.flags & (FLAG_SYN | FLAG_ACK | FLAG_RST) == FLAG_ACK
    }

    /// What it says of its flow.
    #[inline(always)]
    pub const fn numbers(&self) -> Numbers {
        if self.flags & FLAG_ACK != 0 {
            Numbers::Ack(self.ack)
        } else if self.flags & FLAG_RST != 0 {
            Numbers::Reset(self.seq)
        } else {
            Numbers::Neither
        }
    }

    /// The key of its flow; we are the destination.
    #[inline(always)]
    pub const fn flow_key(&self) -> FlowKey {
        flow_key(
            self.source,
            self.source_port,
            self.destination,
            self.destination_port,
        )
    }
}

const FLAG_FIN: u8 = 0x01;
const FLAG_SYN: u8 = 0x02;
const FLAG_RST: u8 = 0x04;
const FLAG_ACK: u8 = 0x10;

/// Follows the headers of an Ethernet frame.
#[inline(always)]
pub fn walk<B: Bytes + ?Sized>(frame: &B) -> Walk {
    let Some(mut ethertype) = be16(frame, 12) else {
        return Walk::Truncated;
    };
    let mut at = 14;
    for _ in 0..VLAN_TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        let Some(inner) = be16(frame, at + 2) else {
            return Walk::Truncated;
        };
        ethertype = inner;
        at += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 => walk_ipv4(frame, at),
        ETHERTYPE_IPV6 => walk_ipv6(frame, at),
        ETHERTYPE_ARP => walk_arp(frame, at),
        _ => Walk::NotIp,
    }
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;

/// RFC 792: destination unreachable, and its code "fragmentation needed and DF set".
pub const ICMP_UNREACHABLE: u8 = 3;
pub const ICMP_FRAGMENTATION_NEEDED: u8 = 4;
/// RFC 4443 §3.2; its code is not looked at.
pub const ICMPV6_PACKET_TOO_BIG: u8 = 2;
/// What precedes the quoted packet.
const ICMP_HEADER_LEN: usize = 8;
/// RFC 4861 §4.3.
pub const ICMPV6_NEIGHBOR_SOLICITATION: u8 = 135;

/// What an ARP request for an IPv4 address over Ethernet begins with (RFC 826).
pub const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];

#[inline(always)]
fn walk_arp<B: Bytes + ?Sized>(frame: &B, at: usize) -> Walk {
    let Some(packet) = frame.read::<28>(at) else {
        return Walk::NotIp;
    };
    let mut differs = 0;
    for (octet, expected) in packet[..8].iter().zip(ARP_REQUEST) {
        differs |= octet ^ expected;
    }
    if differs != 0 {
        return Walk::NotIp;
    }
    let target = mapped([packet[24], packet[25], packet[26], packet[27]]);
    Walk::NeighborRequest { target }
}

#[inline(always)]
fn walk_ipv4<B: Bytes + ?Sized>(frame: &B, at: usize) -> Walk {
    let Some(header) = frame.read::<20>(at) else {
        return Walk::Truncated;
    };
    let header_len = (header[0] & 0x0f) as usize * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return Walk::Truncated;
    }
    // RFC 791 §3.1: three flags, the last of them "more fragments", then the offset in 8 octets.
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if header[9] == PROTOCOL_ICMP && fragment & 0x3fff == 0 {
        return quoted_ipv4(frame, at + header_len).unwrap_or(Walk::NotTcp);
    }
    if header[9] != PROTOCOL_TCP {
        return Walk::NotTcp;
    }
    let source = mapped([header[12], header[13], header[14], header[15]]);
    let destination = mapped([header[16], header[17], header[18], header[19]]);
    let tcp_offset = at + header_len;
    if fragment & 0x1fff != 0 {
        return Walk::LaterFragment { destination };
    }
    if fragment & 0x2000 != 0 {
        return first_fragment(frame, tcp_offset, source, destination);
    }
    segment(frame, tcp_offset, source, destination)
}

#[inline(always)]
fn walk_ipv6<B: Bytes + ?Sized>(frame: &B, ip_at: usize) -> Walk {
    let Some(first) = frame.read::<8>(ip_at) else {
        return Walk::Truncated;
    };
    let Some(source) = frame.read::<16>(ip_at + 8) else {
        return Walk::Truncated;
    };
    let Some(destination) = frame.read::<16>(ip_at + 24) else {
        return Walk::Truncated;
    };
    if first[0] >> 4 != 6 {
        return Walk::Truncated;
    }
    // A mapped address stands for an IPv4 host inside of a machine and never for an IPv6 one: here
    // it would be mistaken for the IPv4 service.
    if is_mapped(&destination) {
        return Walk::NotTcp;
    }
    let mut protocol = first[6];
    let mut at = ip_at + 40;
    let mut fragment = false;
    for _ in 0..EXTENSION_HEADERS_MAX {
        if !is_extension(protocol) {
            break;
        }
        if at > OFFSET_MAX {
            return Walk::TooDeep { destination };
        }
        let Some(header) = frame.read::<4>(at) else {
            return Walk::Truncated;
        };
        at += match protocol {
            EXTENSION_FRAGMENT => {
                // RFC 8200 §4.5: 13 bits of offset, 2 reserved, "more fragments". One that is the
                // only fragment (RFC 6946) starts a segment like any other first one.
                if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                    return later_fragment(header[0], destination);
                }
                fragment = true;
                8
            }
            // RFC 4302 §2.2: in 4 octets, without the first 8.
            EXTENSION_AUTHENTICATION => (header[1] as usize + 2) * 4,
            // RFC 8200 §4: in 8 octets, without the first 8.
            _ => (header[1] as usize + 1) * 8,
        };
        protocol = header[0];
    }
    if is_extension(protocol) || at > OFFSET_MAX {
        return Walk::TooDeep { destination };
    }
    match (protocol, fragment) {
        (PROTOCOL_TCP, false) => segment(frame, at, source, destination),
        (PROTOCOL_TCP, true) => first_fragment(frame, at, source, destination),
        (PROTOCOL_ICMPV6, false) => walk_icmpv6(frame, at),
        _ => Walk::NotTcp,
    }
}

#[inline(always)]
fn walk_icmpv6<B: Bytes + ?Sized>(frame: &B, at: usize) -> Walk {
    match frame.read::<{ ICMP_HEADER_LEN + 16 }>(at) {
        Some(
            [
                ICMPV6_NEIGHBOR_SOLICITATION,
                0,
                _,
                _,
                _,
                _,
                _,
                _,
                target @ ..,
            ],
        ) => {
            // As above: no such IPv6 address asks for one.
            if is_mapped(&target) {
                return Walk::NotTcp;
            }
            Walk::NeighborRequest { target }
        }
        _ => quoted_ipv6(frame, at).unwrap_or(Walk::NotTcp),
    }
}

/// Whose is what is quoted by the ICMP message at `at`, if that says that a TCP segment was too big.
// One read each, at one offset: the verifier loses sight of offsets that are added up. What we send
// has no IP options and no extension headers, so what is quoted with any is none of ours.
#[inline(always)]
fn quoted_ipv4<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<Walk> {
    let octets = frame.read::<{ ICMP_HEADER_LEN + 20 + 4 }>(at)?;
    let [kind, code, _, _, _, _, _, _, ip @ ..] = &octets;
    let fragment_offset = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff;
    let quotes_tcp = ip[0] == 0x45 && ip[9] == PROTOCOL_TCP && fragment_offset == 0;
    if [*kind, *code] != [ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED] || !quotes_tcp {
        return None;
    }
    Some(Walk::PacketTooBig {
        source: mapped([ip[12], ip[13], ip[14], ip[15]]),
        destination: mapped([ip[16], ip[17], ip[18], ip[19]]),
        source_port: u16::from_be_bytes([ip[20], ip[21]]),
        destination_port: u16::from_be_bytes([ip[22], ip[23]]),
    })
}

#[inline(always)]
fn quoted_ipv6<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<Walk> {
    let octets = frame.read::<{ ICMP_HEADER_LEN + 40 + 4 }>(at)?;
    let [kind, _, _, _, _, _, _, _, ip @ ..] = &octets;
    let source = *ip[8..].first_chunk()?;
    let destination = *ip[24..].first_chunk()?;
    let quotes_tcp = ip[0] >> 4 == 6 && ip[6] == PROTOCOL_TCP;
    if *kind != ICMPV6_PACKET_TOO_BIG || !quotes_tcp || is_mapped(&source) {
        return None;
    }
    Some(Walk::PacketTooBig {
        source,
        destination,
        source_port: u16::from_be_bytes([ip[40], ip[41]]),
        destination_port: u16::from_be_bytes([ip[42], ip[43]]),
    })
}

const EXTENSION_HOP_BY_HOP: u8 = 0;
const EXTENSION_ROUTING: u8 = 43;
const EXTENSION_FRAGMENT: u8 = 44;
const EXTENSION_AUTHENTICATION: u8 = 51;
const EXTENSION_DESTINATION: u8 = 60;

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        EXTENSION_HOP_BY_HOP
            | EXTENSION_ROUTING
            | EXTENSION_FRAGMENT
            | EXTENSION_AUTHENTICATION
            | EXTENSION_DESTINATION
    )
}

/// The header after the fragment header may be one more extension header, which only the first
/// fragment shows to its end, so anything that can lead to TCP counts.
#[inline(always)]
fn later_fragment(protocol: u8, destination: [u8; 16]) -> Walk {
    if protocol == PROTOCOL_TCP || is_extension(protocol) {
        Walk::LaterFragment { destination }
    } else {
        Walk::NotTcp
    }
}

#[inline(always)]
fn first_fragment<B: Bytes + ?Sized>(
    frame: &B,
    tcp_offset: usize,
    source: [u8; 16],
    destination: [u8; 16],
) -> Walk {
    let ports = frame.read::<4>(tcp_offset);
    Walk::FirstFragment {
        source,
        destination,
        ports: ports.map(|[s0, s1, d0, d1]| {
            let [source, destination] = [[s0, s1], [d0, d1]].map(u16::from_be_bytes);
            (source, destination)
        }),
    }
}

#[inline(always)]
fn segment<B: Bytes + ?Sized>(
    frame: &B,
    tcp_offset: usize,
    source: [u8; 16],
    destination: [u8; 16],
) -> Walk {
    let Some(header) = frame.read::<14>(tcp_offset) else {
        return Walk::Truncated;
    };
    Walk::Segment(Segment {
        source,
        destination,
        source_port: u16::from_be_bytes([header[0], header[1]]),
        destination_port: u16::from_be_bytes([header[2], header[3]]),
        seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        flags: header[13],
        tcp_offset,
        // RFC 9293 §3.1: the header is so many words long, five of them before the options.
        options_len: ((header[12] >> 4) as usize * 4).saturating_sub(20),
    })
}

#[inline(always)]
fn be16<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<u16> {
    frame.read::<2>(at).map(u16::from_be_bytes)
}

#[inline(always)]
fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    let mut differs = (address[10] ^ 0xff) | (address[11] ^ 0xff);
    for &octet in &address[..10] {
        differs |= octet;
    }
    differs == 0
}

#[cfg(test)]
mod tests;
