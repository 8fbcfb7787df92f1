//! TCP header and options (RFC 9293 §3.1, RFC 7323, RFC 2018).

use super::mptcp::MptcpOptions;
use crate::seq::TcpSeq;

/// Control bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: TcpFlags = TcpFlags(0x01);
    pub const SYN: TcpFlags = TcpFlags(0x02);
    pub const RST: TcpFlags = TcpFlags(0x04);
    pub const PSH: TcpFlags = TcpFlags(0x08);
    pub const ACK: TcpFlags = TcpFlags(0x10);
    pub const URG: TcpFlags = TcpFlags(0x20);
    pub const ECE: TcpFlags = TcpFlags(0x40);
    pub const CWR: TcpFlags = TcpFlags(0x80);

    pub const fn contains(self, other: TcpFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for TcpFlags {
    type Output = TcpFlags;
    fn bitor(self, rhs: TcpFlags) -> TcpFlags {
        TcpFlags(self.0 | rhs.0)
    }
}

/// RFC 7323 §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Timestamps {
    pub tsval: u32,
    pub tsecr: u32,
}

/// Up to four SACK blocks, left edge inclusive, right edge exclusive (RFC 2018 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SackBlocks {
    pub(crate) blocks: [(TcpSeq, TcpSeq); 4],
    pub(crate) len: u8,
}

impl SackBlocks {
    pub const MAX: usize = 4;

    /// Adds a block; one too many is left out and `false` comes back.
    pub fn push(&mut self, left: TcpSeq, right: TcpSeq) -> bool {
        let Some(slot) = self.blocks.get_mut(usize::from(self.len)) else { return false };
        *slot = (left, right);
        self.len += 1;
        true
    }

    pub fn as_slice(&self) -> &[(TcpSeq, TcpSeq)] {
        &self.blocks[..usize::from(self.len)]
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// All options of one segment that this stack knows. Unknown ones are skipped, malformed ones
/// ignored (RFC 8684 §3.9 for kind 30; RFC 9293 §3.1 MUST-6/7 for the rest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpOptions {
    /// Octets.
    pub mss: Option<u16>,
    /// Shift count, as sent (the user caps it at 14, RFC 7323 §2.3).
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    pub timestamps: Option<Timestamps>,
    pub sack: SackBlocks,
    pub mptcp: MptcpOptions,
}

/// A segment's header in host terms; the payload travels beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: TcpSeq,
    pub ack: TcpSeq,
    pub flags: TcpFlags,
    /// As on the wire, not scaled.
    pub window: u16,
    pub urgent: u16,
    pub options: TcpOptions,
}
