//! ICMP errors about segments of ours that were too big for a link on their way: IPv4 "fragmentation
//! needed and DF set" (RFC 792, RFC 1191 §4) and IPv6 "packet too big" (RFC 4443 §3.2).

use super::bytes::Reader;
use super::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, ParseError};
use super::{checksum, ethernet, ipv4, ipv6};
use crate::seq::TcpSeq;
use mpx_ebpf::decode::{ICMP_FRAGMENTATION_NEEDED, ICMP_UNREACHABLE, ICMPV6_PACKET_TOO_BIG};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// What such an error says. All of it may be forged: anybody can send one (RFC 5927 §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketTooBig {
    /// Octets of an IP packet that the next link takes; `None` from routers that are older than the
    /// field (RFC 1191 §5).
    pub next_hop_mtu: Option<usize>,
    pub quoted: Quoted,
}

/// The head of the packet that was too big: a segment of ours, if it is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: TcpSeq,
    /// Octets of the packet, its IP header included.
    pub packet_len: usize,
}

impl PacketTooBig {
    /// Reads a frame from Ethernet to the quoted sequence number, and verifies every length and
    /// checksum but those of the quotation: that is cut off, and routers have changed it.
    ///
    /// # Errors
    /// [`ParseError::NotTcp`] for what is no ICMP, [`ParseError::NotTooBig`] for another message, and
    /// else the first thing found wrong. Nothing in `frame` makes it panic.
    pub fn parse(frame: &[u8]) -> Result<PacketTooBig, ParseError> {
        let (_, ethertype, packet) = ethernet::parse(frame)?;
        let (ip, v6) = match ethertype {
            ethernet::ETHERTYPE_IPV4 => (ipv4::parse(packet, PROTOCOL_ICMP)?, false),
            ethernet::ETHERTYPE_IPV6 => (ipv6::parse(packet, PROTOCOL_ICMPV6)?, true),
            _ => return Err(ParseError::NotTcp),
        };
        // RFC 4443 §2.3: only ICMPv6 sums a pseudo-header, too.
        let pseudo_header_sum = if v6 { ip.pseudo_header_sum } else { 0 };
        if checksum::combine(pseudo_header_sum, checksum::sum(ip.payload)) != 0xffff {
            return Err(ParseError::BadIcmpChecksum);
        }
        let mut reader = Reader::new(ip.payload);
        let too_big = if v6 {
            read_v6(&mut reader)
        } else {
            read_v4(&mut reader)
        };
        // RFC 1122 §3.2.2: an error goes to the sender of what it quotes.
        too_big
            .filter(|too_big| too_big.quoted.src.ip() == ip.dst)
            .ok_or(ParseError::NotTooBig)
    }
}

// RFC 1191 §4: type, code, checksum, 16 bits unused, next-hop MTU, quotation. What we send has no
// options, so a quotation with any is none of ours.
fn read_v4(reader: &mut Reader<'_>) -> Option<PacketTooBig> {
    let kind = (reader.u8()?, reader.u8()?);
    if kind != (ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED) {
        return None;
    }
    let _checksum_and_unused = reader.u32()?;
    let next_hop_mtu = usize::from(reader.u16()?);
    let fixed: [u8; ipv4::HEADER_LEN] = reader.array()?;
    let fragment_offset = u16::from_be_bytes([fixed[6], fixed[7]]) & ipv4::FRAGMENT_OFFSET;
    let quotes_tcp = fixed[0] == 0x45 && fixed[9] == PROTOCOL_TCP && fragment_offset == 0;
    if !quotes_tcp {
        return None;
    }
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = fixed;
    let src = Ipv4Addr::new(s0, s1, s2, s3);
    let dst = Ipv4Addr::new(d0, d1, d2, d3);
    Some(PacketTooBig {
        next_hop_mtu: (next_hop_mtu > 0).then_some(next_hop_mtu),
        quoted: Quoted {
            src: SocketAddr::new(src.into(), reader.u16()?),
            dst: SocketAddr::new(dst.into(), reader.u16()?),
            seq: TcpSeq(reader.u32()?),
            packet_len: usize::from(u16::from_be_bytes([fixed[2], fixed[3]])),
        },
    })
}

// RFC 4443 §3.2: type, code, checksum, MTU, quotation. The code is not looked at, and extension
// headers are as little ours as options.
fn read_v6(reader: &mut Reader<'_>) -> Option<PacketTooBig> {
    let kind = reader.u8()?;
    if kind != ICMPV6_PACKET_TOO_BIG {
        return None;
    }
    let _code = reader.u8()?;
    let _checksum = reader.u16()?;
    let next_hop_mtu = usize::try_from(reader.u32()?).ok()?;
    let version_class_label = reader.u32()?;
    let payload_len = usize::from(reader.u16()?);
    let next_header = reader.u8()?;
    let _hop_limit = reader.u8()?;
    if version_class_label >> 28 != 6 || next_header != PROTOCOL_TCP {
        return None;
    }
    let src: [u8; 16] = reader.array()?;
    let dst: [u8; 16] = reader.array()?;
    Some(PacketTooBig {
        next_hop_mtu: Some(next_hop_mtu),
        quoted: Quoted {
            src: SocketAddr::new(Ipv6Addr::from(src).into(), reader.u16()?),
            dst: SocketAddr::new(Ipv6Addr::from(dst).into(), reader.u16()?),
            seq: TcpSeq(reader.u32()?),
            packet_len: ipv6::HEADER_LEN + payload_len,
        },
    })
}
