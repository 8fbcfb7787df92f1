//! One TCP segment in one frame: the way in and the way out of the stack.

use super::tcp::{TcpFlags, TcpHeader, TcpOptions};
use super::{PROTOCOL_TCP, ParseError, checksum, ethernet, ipv4, ipv6};
use std::net::IpAddr;

/// Link-layer addressing of a frame. For an answer, [`Link::reversed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Link {
    pub src: [u8; 6],
    pub dst: [u8; 6],
    /// Outer tag first; each is (TPID, TCI).
    pub vlans: [Option<(u16, u16)>; 2],
}

/// A segment as received, all lengths and checksums verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub link: Link,
    pub src: IpAddr,
    pub dst: IpAddr,
    /// IPv4 TOS or IPv6 traffic class; the low two bits are ECN.
    pub traffic_class: u8,
    pub tcp: TcpHeader,
    pub payload: &'a [u8],
    /// Ones' complement sum of `payload` as if it began at an even offset, not inverted: the DSS
    /// checksum is made from it without touching the bytes again.
    pub payload_sum: u16,
}

impl<'a> Segment<'a> {
    /// Reads a frame from Ethernet to TCP options and verifies every length and checksum.
    ///
    /// # Errors
    /// The first thing found wrong. Nothing in `frame` makes it panic.
    pub fn parse(frame: &'a [u8]) -> Result<Segment<'a>, ParseError> {
        let (link, ethertype, packet) = ethernet::parse(frame)?;
        let ip = match ethertype {
            ethernet::ETHERTYPE_IPV4 => ipv4::parse(packet, PROTOCOL_TCP)?,
            ethernet::ETHERTYPE_IPV6 => ipv6::parse(packet, PROTOCOL_TCP)?,
            _ => return Err(ParseError::NotTcp),
        };
        let (fixed, options, payload) = TcpHeader::split(ip.payload)?;
        // All parts but the payload are whole words, so each starts at an even offset.
        let payload_sum = checksum::sum(payload);
        let header_sum = checksum::combine(checksum::sum(fixed), checksum::sum(options));
        let sum = checksum::combine(ip.pseudo_header_sum, header_sum);
        if checksum::combine(sum, payload_sum) != 0xffff {
            return Err(ParseError::BadTcpChecksum);
        }
        let mut segment = Segment {
            link,
            src: ip.src,
            dst: ip.dst,
            traffic_class: ip.traffic_class,
            tcp: TcpHeader::parse_fixed(fixed),
            payload,
            payload_sum,
        };
        segment.tcp.options.read_field(options);
        Ok(segment)
    }

    /// SEG.LEN (RFC 9293 §3.4): octets of sequence space, SYN and FIN included.
    pub fn segment_len(&self) -> usize {
        self.payload.len()
            + usize::from(self.tcp.flags.contains(TcpFlags::SYN))
            + usize::from(self.tcp.flags.contains(TcpFlags::FIN))
    }
}

/// Octets of all headers of a segment, from Ethernet to TCP options: where its payload starts.
#[inline]
pub fn header_len(link: &Link, src: &IpAddr, options: &TcpOptions) -> usize {
    let ip = match src {
        IpAddr::V4(_) => ipv4::HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    };
    link.header_len() + ip + TcpHeader::MIN_LEN + options.len()
}

/// Writes all headers, checksums included, in front of `payload_len` octets that already lie at
/// [`header_len`] and whose sum is `payload_sum`. Returns the length of the frame in octets, or 0
/// where `src` and `dst` are of two families.
///
/// IPv4: DF set, identification 0. TTL or hop limit: 64.
///
/// # Panics
/// If `frame` does not hold the headers.
#[allow(clippy::too_many_arguments)]
pub fn emit(
    frame: &mut [u8],
    link: &Link,
    src: IpAddr,
    dst: IpAddr,
    traffic_class: u8,
    tcp: &TcpHeader,
    payload_len: usize,
    payload_sum: u16,
) -> usize {
    let (ethertype, ip_len) = match src {
        IpAddr::V4(_) => (ethernet::ETHERTYPE_IPV4, ipv4::HEADER_LEN),
        IpAddr::V6(_) => (ethernet::ETHERTYPE_IPV6, ipv6::HEADER_LEN),
    };
    let link_len = ethernet::emit(frame, link, ethertype);
    let (ip, segment) = frame[link_len..].split_at_mut(ip_len);
    let tcp_header_len = tcp.emit(segment);
    let tcp_len = tcp_header_len + payload_len;
    let pseudo_header_sum = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4::emit(ip, src, dst, traffic_class, tcp_len);
            checksum::pseudo_header(&src.octets(), &dst.octets(), PROTOCOL_TCP, tcp_len)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ipv6::emit(ip, src, dst, traffic_class, tcp_len);
            checksum::pseudo_header(&src.octets(), &dst.octets(), PROTOCOL_TCP, tcp_len)
        }
        _ => {
            debug_assert!(false, "no segment goes from {src} to {dst}");
            return 0;
        }
    };
    let header = &mut segment[..tcp_header_len];
    let sum = checksum::combine(checksum::sum(header), pseudo_header_sum);
    let checksum = !checksum::combine(sum, payload_sum);
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    link_len + ip_len + tcp_len
}
