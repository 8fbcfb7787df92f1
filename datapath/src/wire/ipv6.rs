//! IPv6 (RFC 8200).

use super::bytes::{Reader, Writer};
use super::{IpPacket, ParseError, checksum};
use mpx_ebpf::decode::EXTENSION_HEADERS_MAX;
use std::net::Ipv6Addr;

/// Octets of the header that this stack sends: no extension headers.
pub const HEADER_LEN: usize = 40;

/// A packet of `protocol`; any other one is [`ParseError::NotTcp`]. Extension headers are skipped;
/// octets after the payload length are cut off.
#[inline]
pub(crate) fn parse(packet: &[u8], protocol: u8) -> Result<IpPacket<'_>, ParseError> {
    let mut reader = Reader::new(packet);
    let mut read = || {
        let version_class_label = reader.u32()?;
        let payload_len = usize::from(reader.u16()?);
        let next_header = reader.u8()?;
        let _hop_limit = reader.u8()?;
        let src: [u8; 16] = reader.array()?;
        let dst: [u8; 16] = reader.array()?;
        Some((version_class_label, payload_len, next_header, src, dst))
    };
    let (version_class_label, payload_len, next_header, src, dst) =
        read().ok_or(ParseError::Truncated)?;
    if version_class_label >> 28 != 6 {
        return Err(ParseError::BadHeader);
    }
    let (src, dst) = (Ipv6Addr::from(src), Ipv6Addr::from(dst));
    // RFC 4291 §2.5.5.2: a mapped address is a way to write an IPv4 one inside of a machine. From
    // the network it would pass for the IPv4 host.
    if src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some() {
        return Err(ParseError::BadHeader);
    }
    let payload = reader
        .rest()
        .get(..payload_len)
        .ok_or(ParseError::Truncated)?;
    let payload = if next_header == protocol {
        payload
    } else {
        skip_extensions(next_header, payload, protocol)?
    };
    Ok(IpPacket {
        src: src.into(),
        dst: dst.into(),
        traffic_class: (version_class_label >> 20) as u8,
        pseudo_header_sum: checksum::pseudo_header(
            &src.octets(),
            &dst.octets(),
            protocol,
            payload.len(),
        ),
        payload,
    })
}

/// What lies behind the extension headers, where that is `protocol`.
#[cold]
fn skip_extensions(
    mut next_header: u8,
    mut rest: &[u8],
    protocol: u8,
) -> Result<&[u8], ParseError> {
    for _ in 0..EXTENSION_HEADERS_MAX {
        match next_header {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {}
            FRAGMENT => return Err(ParseError::Fragment),
            _ => return Err(ParseError::NotTcp),
        }
        let [next, units, _, segments_left] =
            *rest.first_chunk::<4>().ok_or(ParseError::Truncated)?;
        // RFC 8200 §4.4: we are on the way, not at the end, of a route with segments left.
        if next_header == ROUTING && segments_left != 0 {
            return Err(ParseError::NotTcp);
        }
        rest = rest
            .get(8 * (usize::from(units) + 1)..)
            .ok_or(ParseError::Truncated)?;
        next_header = next;
        if next_header == protocol {
            return Ok(rest);
        }
    }
    Err(ParseError::TooDeep)
}

/// Writes a header in front of `payload_len` octets; the flow label is 0.
#[inline]
pub(crate) fn emit(
    packet: &mut [u8],
    src: Ipv6Addr,
    dst: Ipv6Addr,
    traffic_class: u8,
    payload_len: usize,
) {
    let mut writer = Writer::new(&mut packet[..HEADER_LEN]);
    writer.u32(6 << 28 | u32::from(traffic_class) << 20);
    writer.u16(payload_len as u16);
    writer.u8(super::PROTOCOL_TCP);
    writer.u8(super::HOP_LIMIT);
    writer.bytes(&src.octets());
    writer.bytes(&dst.octets());
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
