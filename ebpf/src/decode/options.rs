//! What the program reads of TCP options: the token of a join, and the timestamp that is echoed.

use super::{Bytes, Segment};

/// Octets of a header without options.
const FIXED_LEN: usize = 20;
/// Octets of options that a header can hold, so no more options than that are looked at.
const OPTIONS_LEN_MAX: usize = 40;

const KIND_END: u8 = 0;
const KIND_NOP: u8 = 1;
const KIND_TIMESTAMPS: u8 = 8;
const KIND_MPTCP: u8 = 30;

const TIMESTAMPS_LEN: u8 = 10;
/// Two NOPs before the option, so that its values are aligned (RFC 7323 Appendix A).
const TIMESTAMPS_ALIGNED: [u8; 4] = [KIND_NOP, KIND_NOP, KIND_TIMESTAMPS, TIMESTAMPS_LEN];

const SUBTYPE_JOIN: u8 = 1;
// RFC 8684 §3.2: MP_JOIN on a SYN, a SYN/ACK and an ACK, told apart by their lengths.
const JOIN_SYN_LEN: u8 = 12;
const JOIN_SYN_ACK_LEN: u8 = 16;
const JOIN_ACK_LEN: u8 = 24;

/// What a SYN says of a connection to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Nothing: it opens one.
    None,
    /// The one that this token names.
    Token(u32),
    /// It has an MP_JOIN, but not one for a SYN.
    Malformed,
}

/// The MP_JOIN of a SYN.
#[inline(always)]
pub fn join<B: Bytes + ?Sized>(frame: &B, segment: &Segment) -> Join {
    let mut found = Join::None;
    let mut walk = Options::of(segment);
    for _ in 0..OPTIONS_LEN_MAX {
        match walk.next(frame) {
            Next::End => break,
            Next::Nop => {}
            Next::Option { kind, len, at } => {
                if kind != KIND_MPTCP || len < 3 {
                    continue;
                }
                let Some([_, subtype]) = frame.read::<2>(at + 1) else {
                    break;
                };
                if subtype >> 4 != SUBTYPE_JOIN {
                    continue;
                }
                // One of no known length is as good as absent if a better one follows.
                found = Join::Malformed;
                if len == JOIN_SYN_LEN {
                    if let Some(token) = frame.read::<4>(at + 4) {
                        found = Join::Token(u32::from_be_bytes(token));
                    }
                    break;
                }
                if len == JOIN_SYN_ACK_LEN || len == JOIN_ACK_LEN {
                    break;
                }
            }
        }
    }
    found
}

/// TSecr (RFC 7323 §3.2): what a segment echoes of our clock.
#[inline(always)]
pub fn echoed_timestamp<B: Bytes + ?Sized>(frame: &B, segment: &Segment) -> Option<u32> {
    let at = segment.tcp_offset + FIXED_LEN;
    if segment.options_len >= 12
        && let Some([a, b, c, d, _, _, _, _, tsecr @ ..]) = frame.read::<12>(at)
        && [a, b, c, d] == TIMESTAMPS_ALIGNED
    {
        return Some(u32::from_be_bytes(tsecr));
    }
    let mut walk = Options::of(segment);
    for _ in 0..OPTIONS_LEN_MAX {
        match walk.next(frame) {
            Next::End => break,
            Next::Option { kind, len, at } if kind == KIND_TIMESTAMPS && len == TIMESTAMPS_LEN => {
                return frame.read::<4>(at + 6).map(u32::from_be_bytes);
            }
            Next::Nop | Next::Option { .. } => {}
        }
    }
    None
}

/// Where a walk through the options has got to.
struct Options {
    at: usize,
    end: usize,
}

enum Next {
    End,
    Nop,
    /// `at`: where its kind stands in the frame.
    Option {
        kind: u8,
        len: u8,
        at: usize,
    },
}

impl Options {
    #[inline(always)]
    fn of(segment: &Segment) -> Self {
        let at = segment.tcp_offset + FIXED_LEN;
        Self {
            at,
            end: at + segment.options_len,
        }
    }

    // RFC 9293 §3.1: a length that cannot be right ends the reading, as nothing after it can be
    // found. The same is done in the datapath.
    #[inline(always)]
    fn next<B: Bytes + ?Sized>(&mut self, frame: &B) -> Next {
        // It is less anyway. With this the verifier knows as much of the offset in every round, and
        // need not follow each by itself.
        let at = self.at & 0xfff;
        if at >= self.end {
            return Next::End;
        }
        // Two octets at once, as the verifier does not follow a read of one; where there is only one
        // more, no option begins.
        let (kind, len) = match frame.read::<2>(at) {
            None | Some([KIND_END, _]) => return Next::End,
            Some([KIND_NOP, _]) => {
                self.at = at + 1;
                return Next::Nop;
            }
            Some([kind, len]) => (kind, len),
        };
        let next = at + len as usize;
        if len < 2 || next > self.end {
            return Next::End;
        }
        self.at = next;
        Next::Option { kind, len, at }
    }
}
