//! One TCP segment in one frame: the way in and the way out of the stack.

use super::tcp::TcpHeader;
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
