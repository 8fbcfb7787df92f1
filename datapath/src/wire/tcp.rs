//! TCP header and options (RFC 9293 §3.1, RFC 7323, RFC 2018, RFC 7413).

use super::ParseError;
use super::bytes::{Reader, Writer};
use super::mptcp::{self, MptcpOptions};
use crate::seq::TcpSeq;
use std::fmt;
use subtle::ConstantTimeEq;

/// Control bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
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

    /// Whether any bit of `other` is set.
    pub const fn intersects(self, other: TcpFlags) -> bool {
        self.0 & other.0 != 0
    }
}

impl fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let mut separator = "";
        for (bit, name) in NAMES.iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        if self.0 == 0 {
            f.write_str("-")
        } else {
            Ok(())
        }
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
        let Some(slot) = self.blocks.get_mut(usize::from(self.len)) else {
            return false;
        };
        *slot = (left, right);
        self.len += 1;
        true
    }

    pub fn as_slice(&self) -> &[(TcpSeq, TcpSeq)] {
        &self.blocks[..usize::from(self.len)]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [(TcpSeq, TcpSeq)] {
        &mut self.blocks[..usize::from(self.len)]
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A Fast Open cookie (RFC 7413 §4.1.1). Without octets it asks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FastOpenCookie {
    octets: [u8; 16],
    len: u8,
}

impl FastOpenCookie {
    /// RFC 7413 §4.1.1: none, or 4 to 16 octets, and an even number of them.
    pub fn new(cookie: &[u8]) -> Option<FastOpenCookie> {
        let len = cookie.len();
        if !len.is_multiple_of(2) || !matches!(len, 0 | 4..=16) {
            return None;
        }
        let mut octets = [0; 16];
        octets[..len].copy_from_slice(cookie);
        Some(FastOpenCookie {
            octets,
            len: len as u8,
        })
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    pub fn is_request(&self) -> bool {
        self.len == 0
    }

    /// Whether `received` is this one, in constant time.
    pub fn matches(&self, received: &FastOpenCookie) -> bool {
        self.as_slice().ct_eq(received.as_slice()).into()
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
    /// Means nothing but on a SYN (RFC 7413 §4.1.1).
    pub fast_open: Option<FastOpenCookie>,
    pub mptcp: MptcpOptions,
}

impl TcpOptions {
    /// Octets that a header has for options.
    pub const MAX_LEN: usize = 40;

    /// Octets on the wire, a multiple of 4: what [`TcpOptions::emit`] writes.
    pub fn len(&self) -> usize {
        let mut count = Count::default();
        self.lay_out(ALIGNED, &mut count);
        if count.left_out {
            count = Count::default();
            self.lay_out(PACKED, &mut count);
        }
        count.used.next_multiple_of(4)
    }

    /// Whether all options fit in one header, if need be without padding between them.
    pub fn fits(&self) -> bool {
        let mut count = Count::default();
        self.lay_out(PACKED, &mut count);
        !count.left_out
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the options to the front of `out` and returns [`TcpOptions::len`]. Each is padded to
    /// a multiple of 4 octets, or none is where they would not fit else (an ADD_ADDR of 30 octets
    /// and timestamps of 10 fill a header to the brim). What does not fit even so is left out: the
    /// caller budgets.
    ///
    /// # Panics
    /// If `out` is shorter than [`TcpOptions::len`].
    pub fn emit(&self, out: &mut [u8]) -> usize {
        let mut fill = Fill::new();
        self.lay_out(ALIGNED, &mut fill);
        if fill.count.left_out {
            fill = Fill::new();
            self.lay_out(PACKED, &mut fill);
            debug_assert!(
                !fill.count.left_out,
                "options exceed {} octets: {self:?}",
                Self::MAX_LEN
            );
        }
        let len = fill.count.used.next_multiple_of(4);
        out[..len].copy_from_slice(&fill.octets[..len]);
        len
    }

    /// Reads the option field of a header. Of two options of one kind the first counts.
    // RFC 9293 §3.1 (MUST-4 to MUST-7): any segment may have options, unknown ones are skipped by
    // their length; a length that can't be right ends the reading, as nothing after it can be
    // found.
    pub fn parse(field: &[u8]) -> TcpOptions {
        let mut options = TcpOptions::default();
        options.read_field(field);
        options
    }

    /// [`TcpOptions::parse`] in place: a few hundred octets not moved per segment.
    #[inline]
    pub(crate) fn read_field(&mut self, field: &[u8]) {
        let mut rest = field;
        while let [kind, tail @ ..] = rest {
            rest = match *kind {
                KIND_END => break,
                KIND_NOP => tail,
                kind => {
                    let Some(len) = tail.first().map(|len| usize::from(*len)) else {
                        break;
                    };
                    let Some((option, next)) = rest.split_at_checked(len) else {
                        break;
                    };
                    let Some((_, body)) = option.split_at_checked(2) else {
                        break;
                    };
                    self.read(kind, body);
                    next
                }
            };
        }
    }

    /// Takes one option in; a wrong size makes it as good as absent.
    #[inline]
    fn read(&mut self, kind: u8, body: &[u8]) {
        let mut reader = Reader::new(body);
        match kind {
            KIND_TIMESTAMPS => {
                if let (None, Some(tsval), Some(tsecr), 0) =
                    (self.timestamps, reader.u32(), reader.u32(), reader.left())
                {
                    self.timestamps = Some(Timestamps { tsval, tsecr });
                }
            }
            KIND_MPTCP => self.mptcp.read(body),
            KIND_SACK => {
                let (blocks, rest) = body.as_chunks::<8>();
                if self.sack.is_empty() && rest.is_empty() && blocks.len() <= SackBlocks::MAX {
                    for [l0, l1, l2, l3, r0, r1, r2, r3] in blocks {
                        self.sack.push(
                            TcpSeq(u32::from_be_bytes([*l0, *l1, *l2, *l3])),
                            TcpSeq(u32::from_be_bytes([*r0, *r1, *r2, *r3])),
                        );
                    }
                }
            }
            KIND_MSS => {
                if let (None, Some(mss), 0) = (self.mss, reader.u16(), reader.left()) {
                    self.mss = Some(mss);
                }
            }
            KIND_WINDOW_SCALE => {
                if let (None, Some(shift), 0) = (self.window_scale, reader.u8(), reader.left()) {
                    self.window_scale = Some(shift);
                }
            }
            KIND_SACK_PERMITTED => self.sack_permitted |= body.is_empty(),
            KIND_FAST_OPEN if self.fast_open.is_none() => {
                self.fast_open = FastOpenCookie::new(body);
            }
            _ => {}
        }
    }

    /// The one order and spacing of options, for counting and for writing alike. The NOPs of
    /// `align` stand before the classic options, so that their values are aligned (RFC 7323
    /// Appendix A), and after those of MPTCP, whose header takes 4 octets.
    #[inline]
    fn lay_out(&self, align: usize, sink: &mut impl Sink) {
        if let Some(mss) = self.mss {
            sink.option(4, 0, 0, |w| {
                w.bytes(&[KIND_MSS, 4]);
                w.u16(mss);
            });
        }
        // SACK-permitted takes the place of the timestamps' NOPs.
        if self.sack_permitted {
            let before = if self.timestamps.is_some() {
                0
            } else {
                pad(2, align)
            };
            sink.option(2, before, 0, |w| w.bytes(&[KIND_SACK_PERMITTED, 2]));
        }
        if let Some(Timestamps { tsval, tsecr }) = self.timestamps {
            let before = if self.sack_permitted {
                0
            } else {
                pad(10, align)
            };
            sink.option(10, before, 0, |w| {
                w.bytes(&[KIND_TIMESTAMPS, 10]);
                w.u32(tsval);
                w.u32(tsecr);
            });
        }
        if let Some(shift) = self.window_scale {
            sink.option(3, pad(3, align), 0, |w| {
                w.bytes(&[KIND_WINDOW_SCALE, 3, shift])
            });
        }
        if !self.sack.is_empty() {
            let len = 2 + 8 * self.sack.as_slice().len();
            sink.option(len, pad(len, align), 0, |w| {
                w.bytes(&[KIND_SACK, len as u8]);
                for (left, right) in self.sack.as_slice() {
                    w.u32(left.0);
                    w.u32(right.0);
                }
            });
        }
        if let Some(cookie) = &self.fast_open {
            let cookie = cookie.as_slice();
            let len = 2 + cookie.len();
            sink.option(len, pad(len, align), 0, |w| {
                w.bytes(&[KIND_FAST_OPEN, len as u8]);
                w.bytes(cookie);
            });
        }
        self.mptcp.lay_out(align, sink);
    }
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

/// The fixed part of a header, its option field, and the payload.
type SegmentParts<'a> = (&'a [u8; TcpHeader::MIN_LEN], &'a [u8], &'a [u8]);

impl TcpHeader {
    /// Octets of a header without options.
    pub const MIN_LEN: usize = 20;

    /// Cuts a segment where its header says.
    #[inline]
    pub(crate) fn split(segment: &[u8]) -> Result<SegmentParts<'_>, ParseError> {
        let (fixed, rest) = segment
            .split_first_chunk::<{ Self::MIN_LEN }>()
            .ok_or(ParseError::Truncated)?;
        let header_len = 4 * usize::from(fixed[12] >> 4);
        let options_len = header_len
            .checked_sub(Self::MIN_LEN)
            .ok_or(ParseError::BadHeader)?;
        let (options, payload) = rest
            .split_at_checked(options_len)
            .ok_or(ParseError::Truncated)?;
        Ok((fixed, options, payload))
    }

    /// Reads the fixed part; no options yet.
    #[inline]
    pub(crate) fn parse_fixed(fixed: &[u8; Self::MIN_LEN]) -> TcpHeader {
        let be16 = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let be32 = |at: usize| u32::from(be16(at)) << 16 | u32::from(be16(at + 2));
        TcpHeader {
            src_port: be16(0),
            dst_port: be16(2),
            seq: TcpSeq(be32(4)),
            ack: TcpSeq(be32(8)),
            flags: TcpFlags(fixed[13]),
            window: be16(14),
            urgent: be16(18),
            options: TcpOptions::default(),
        }
    }

    /// Writes the header with a zero checksum and returns its length in octets.
    #[inline]
    pub(crate) fn emit(&self, segment: &mut [u8]) -> usize {
        let (fixed, rest) = segment.split_at_mut(Self::MIN_LEN);
        let header_len = Self::MIN_LEN + self.options.emit(rest);
        let mut writer = Writer::new(fixed);
        writer.u16(self.src_port);
        writer.u16(self.dst_port);
        writer.u32(self.seq.0);
        writer.u32(self.ack.0);
        writer.u8((header_len as u8 / 4) << 4);
        writer.u8(self.flags.0);
        writer.u16(self.window);
        writer.u16(0);
        writer.u16(self.urgent);
        header_len
    }
}

const KIND_END: u8 = 0;
const KIND_NOP: u8 = 1;
const KIND_MSS: u8 = 2;
const KIND_WINDOW_SCALE: u8 = 3;
const KIND_SACK_PERMITTED: u8 = 4;
const KIND_SACK: u8 = 5;
const KIND_TIMESTAMPS: u8 = 8;
const KIND_MPTCP: u8 = mptcp::KIND;
const KIND_FAST_OPEN: u8 = 34;

const ALIGNED: usize = 4;
const PACKED: usize = 1;

pub(crate) const fn pad(len: usize, align: usize) -> usize {
    len.next_multiple_of(align) - len
}

/// Where options go one after the other, each whole or not at all.
pub(crate) trait Sink {
    /// An option of `len` octets that `write` fills, with NOPs before and after.
    fn option(
        &mut self,
        len: usize,
        before: usize,
        after: usize,
        write: impl FnOnce(&mut Writer<'_>),
    );
}

/// Counts octets.
#[derive(Default)]
struct Count {
    used: usize,
    left_out: bool,
}

impl Sink for Count {
    #[inline(always)]
    fn option(&mut self, len: usize, before: usize, after: usize, _: impl FnOnce(&mut Writer<'_>)) {
        let used = self.used + before + len + after;
        if used > TcpOptions::MAX_LEN {
            self.left_out = true;
        } else {
            self.used = used;
        }
    }
}

/// Writes over a field of NOPs.
struct Fill {
    octets: [u8; TcpOptions::MAX_LEN],
    count: Count,
}

impl Fill {
    fn new() -> Fill {
        Fill {
            octets: [KIND_NOP; TcpOptions::MAX_LEN],
            count: Count::default(),
        }
    }
}

impl Sink for Fill {
    #[inline(always)]
    fn option(
        &mut self,
        len: usize,
        before: usize,
        after: usize,
        write: impl FnOnce(&mut Writer<'_>),
    ) {
        let start = self.count.used + before;
        self.count.option(len, before, after, |_| {});
        if let Some(place) = self.octets.get_mut(start..start + len)
            && self.count.used == start + len + after
        {
            write(&mut Writer::new(place));
        }
    }
}
