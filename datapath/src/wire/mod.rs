//! Wire formats. Parsing is bounds-checked once and never panics; what is malformed comes back as
//! a [`ParseError`] that the engine counts. Emission writes straight into a frame.

pub mod checksum;
pub mod ethernet;
pub mod frame;
pub mod ipv4;
pub mod ipv6;
pub mod mptcp;
pub mod tcp;

/// Why a frame could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParseError {
    /// Shorter than its own headers say.
    Truncated,
    /// Not TCP over IPv4 or IPv6 (counted, never expected behind the XDP program).
    NotTcp,
    /// A fragment: its segment can't be checked or reassembled here.
    Fragment,
    /// A header length or version field that contradicts itself.
    BadHeader,
    /// IPv4 header checksum.
    BadIpChecksum,
    /// TCP checksum.
    BadTcpChecksum,
    /// More VLAN tags or IPv6 extension headers than we walk.
    TooDeep,
}
