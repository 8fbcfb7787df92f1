//! Wire formats. Parsing is bounds-checked once and never panics; what is malformed comes back as
//! a [`ParseError`] that the engine counts. Emission writes straight into a frame.

mod bytes;
pub mod checksum;
pub mod ethernet;
pub mod frame;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod mptcp;
pub mod neighbor;
pub mod tcp;

use std::net::IpAddr;

/// Why a frame could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParseError {
    /// Shorter than its own headers say.
    Truncated,
    /// Not the protocol that is looked for over IPv4 or IPv6: TCP, or else ICMP. What is neither is
    /// counted, and never expected behind the XDP program.
    NotTcp,
    /// A fragment: its segment can't be checked or reassembled here.
    Fragment,
    /// A header length or version field that contradicts itself.
    BadHeader,
    /// IPv4 header checksum.
    BadIpChecksum,
    /// TCP checksum.
    BadTcpChecksum,
    /// ICMP checksum.
    BadIcmpChecksum,
    /// ICMP that does not say that a TCP segment was too big, or says it of no whole quotation.
    NotTooBig,
    /// More VLAN tags or IPv6 extension headers than we walk.
    TooDeep,
}

/// What the network layer says of a packet.
pub(crate) struct IpPacket<'a> {
    src: IpAddr,
    dst: IpAddr,
    /// IPv4 TOS or IPv6 traffic class.
    traffic_class: u8,
    /// Of the pseudo-header of the protocol inside.
    pseudo_header_sum: u16,
    payload: &'a [u8],
}

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;

/// TTL or hop limit of what we send.
const HOP_LIMIT: u8 = 64;

#[cfg(test)]
mod tests;
