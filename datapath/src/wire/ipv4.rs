//! IPv4 (RFC 791).

use super::{IpPacket, ParseError, checksum};
use std::net::Ipv4Addr;

/// Octets of the header that this stack sends: no options.
pub const HEADER_LEN: usize = 20;

/// A packet of `protocol`; any other one is [`ParseError::NotTcp`]. Options are skipped; octets after
/// the total length (Ethernet padding) are cut off.
#[inline]
pub(crate) fn parse(packet: &[u8], protocol: u8) -> Result<IpPacket<'_>, ParseError> {
    let fixed = packet
        .first_chunk::<HEADER_LEN>()
        .ok_or(ParseError::Truncated)?;
    if fixed[0] >> 4 != 4 {
        return Err(ParseError::BadHeader);
    }
    let header_len = 4 * usize::from(fixed[0] & 0x0f);
    let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if header_len < HEADER_LEN || total_len < header_len {
        return Err(ParseError::BadHeader);
    }
    let packet = packet.get(..total_len).ok_or(ParseError::Truncated)?;
    let (header, payload) = packet.split_at(header_len);
    if checksum::sum(header) != 0xffff {
        return Err(ParseError::BadIpChecksum);
    }
    let fragment = u16::from_be_bytes([fixed[6], fixed[7]]);
    if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return Err(ParseError::Fragment);
    }
    if fixed[9] != protocol {
        return Err(ParseError::NotTcp);
    }
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *fixed;
    Ok(IpPacket {
        src: Ipv4Addr::new(s0, s1, s2, s3).into(),
        dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
        traffic_class: fixed[1],
        pseudo_header_sum: checksum::pseudo_header(
            &[s0, s1, s2, s3],
            &[d0, d1, d2, d3],
            protocol,
            payload.len(),
        ),
        payload,
    })
}

/// Writes a header in front of `payload_len` octets.
///
/// DF is always set, so that the identification has no use (RFC 6864 §4.1) and is 0.
#[inline]
pub(crate) fn emit(
    packet: &mut [u8],
    src: Ipv4Addr,
    dst: Ipv4Addr,
    traffic_class: u8,
    payload_len: usize,
) {
    let header = &mut packet[..HEADER_LEN];
    let total_len = (HEADER_LEN + payload_len) as u16;
    header[0] = 0x45;
    header[1] = traffic_class;
    header[2..4].copy_from_slice(&total_len.to_be_bytes());
    header[4..6].copy_from_slice(&[0, 0]);
    header[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    header[8] = super::HOP_LIMIT;
    header[9] = super::PROTOCOL_TCP;
    header[10..12].copy_from_slice(&[0, 0]);
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let checksum = !checksum::sum(header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff;
