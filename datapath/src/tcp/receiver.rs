//! The receive side of one subflow: what is acceptable, reassembly, and when to acknowledge.

use crate::buffer::{ByteRing, Inserted, Intervals};
use crate::seq::TcpSeq;
use crate::time::{Duration, Instant};
use crate::wire::tcp::SackBlocks;
use std::ops::Range;

/// RFC 9293 §3.8.6.3 allows up to 500 ms.
pub const DELAYED_ACK: Duration = Duration::from_millis(40);

/// Ranges kept out of order; a peer that makes more holes than this sends the surplus again.
const RANGES_MAX: usize = 128;

/// What became of a segment's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Nothing new in it, or no room for it.
    Nothing,
    /// These octets of the payload are the next in order; `rcv_nxt` is behind them.
    InPlace(Range<usize>),
    /// Kept until what is before it has come.
    Stored,
    /// A hole was filled: [`Receiver::take_ready`] has octets in order, up to `rcv_nxt`.
    Ready,
}

#[derive(Debug)]
pub struct Receiver {
    pub irs: TcpSeq,
    pub rcv_nxt: TcpSeq,
    /// Highest edge ever advertised: what is below it is honoured (RFC 7323 §2.4).
    right_edge: TcpSeq,
    /// Sequence number of the peer's FIN, once seen.
    fin: Option<TcpSeq>,
    /// Its front is `rcv_nxt`, but while ready octets wait to be taken.
    reassembly: ByteRing,
    ranges: Intervals<TcpSeq>,
    /// The range that the last out-of-order segment went into: the first SACK block (RFC 2018 §4).
    recent: Option<TcpSeq>,
    unacked_segments: u32,
    /// An ACK is owed at once.
    pub ack_now: bool,
    /// An ACK is owed by then.
    pub delayed_ack_at: Option<Instant>,
    /// Last.ACK.sent of RFC 7323.
    pub last_ack_sent: TcpSeq,
}

impl Receiver {
    /// For a peer whose SYN had sequence number `irs`.
    pub fn new(irs: TcpSeq, window_limit_bytes: usize) -> Receiver {
        let rcv_nxt = irs + 1;
        Receiver {
            irs,
            rcv_nxt,
            right_edge: rcv_nxt,
            fin: None,
            reassembly: ByteRing::new(window_limit_bytes),
            ranges: Intervals::new(RANGES_MAX),
            recent: None,
            unacked_segments: 0,
            ack_now: false,
            delayed_ack_at: None,
            last_ack_sent: rcv_nxt,
        }
    }

    /// RFC 9293 §3.10.7.4, first check. Two allowances beside its table: with the window closed the
    /// text at `rcv_nxt` is cut off but its ACK is taken, and a segment without text may stand on
    /// the right edge, where a peer that filled the window sends its ACKs from.
    pub fn acceptable(&self, seq: TcpSeq, segment_len: usize) -> bool {
        let in_window = |s: TcpSeq| s.at_or_after(self.rcv_nxt) && s.before(self.right_edge);
        match segment_len {
            0 => seq.at_or_after(self.rcv_nxt) && seq.at_or_before(self.right_edge),
            n => seq == self.rcv_nxt || in_window(seq) || in_window(seq + (n - 1)),
        }
    }

    /// Whether a RST with this sequence number lies in the window at all (RFC 5961 §3.2).
    pub fn in_window(&self, seq: TcpSeq) -> bool {
        seq == self.rcv_nxt || (seq.after(self.rcv_nxt) && seq.before(self.right_edge))
    }

    /// The window was advertised with an edge `window_bytes` after `rcv_nxt`, in an ACK that is
    /// leaving now.
    pub fn on_ack_sent(&mut self, window_bytes: usize) {
        self.right_edge = self.right_edge.max(self.rcv_nxt + window_bytes);
        self.last_ack_sent = self.rcv_nxt;
        self.unacked_segments = 0;
        self.ack_now = false;
        self.delayed_ack_at = None;
    }

    /// Takes in the text of an acceptable segment.
    pub fn accept(&mut self, now: Instant, seq: TcpSeq, payload: &[u8], fin: bool) -> Accepted {
        let mut range = 0..payload.len();
        let end = seq + payload.len();
        if fin && !end.after(self.right_edge) {
            self.fin = Some(end);
        }
        if payload.is_empty() {
            // A bare FIN ahead of its time asks for what is missing.
            self.ack_now |= fin;
            return Accepted::Nothing;
        }
        if seq.before(self.rcv_nxt) {
            range.start = self.rcv_nxt.distance(seq).min(payload.len());
        }
        if end.after(self.right_edge) {
            range.end -= end.distance(self.right_edge).min(range.len());
        }
        if range.is_empty() {
            self.ack_now = true;
            return Accepted::Nothing;
        }
        let start = seq + range.start;
        if start == self.rcv_nxt && self.ranges.is_empty() {
            self.rcv_nxt += range.len();
            self.unacked_segments += 1;
            if self.unacked_segments >= 2 {
                // RFC 9293 §3.8.6.3: an ACK for at least every second full-sized segment.
                self.ack_now = true;
            } else if self.delayed_ack_at.is_none() {
                self.delayed_ack_at = Some(now + DELAYED_ACK);
            }
            return Accepted::InPlace(range);
        }
        // RFC 5681 §4.2: out of order, or filling a hole: acknowledge at once.
        self.ack_now = true;
        if self.ranges.insert(start, start + range.len()) == Inserted::Refused {
            return Accepted::Nothing;
        }
        self.recent = Some(start);
        self.reassembly
            .write_at(start.distance(self.rcv_nxt), &payload[range]);
        match self.ranges.pop_front_if_starts_at_or_before(self.rcv_nxt) {
            Some(contiguous) => {
                self.reassembly
                    .advance_len(contiguous.distance(self.rcv_nxt));
                self.rcv_nxt = contiguous;
                Accepted::Ready
            }
            None => Accepted::Stored,
        }
    }

    /// Octets in order that end at `rcv_nxt`, to be consumed whole and given back to
    /// [`Receiver::return_ready`] with what lies ahead of them.
    pub fn take_ready(&mut self) -> ByteRing {
        std::mem::take(&mut self.reassembly)
    }

    pub fn return_ready(&mut self, ring: ByteRing) {
        debug_assert!(ring.is_empty());
        self.reassembly = ring;
    }

    /// Passes over the peer's FIN when everything before it has come. True once.
    pub fn take_fin(&mut self) -> bool {
        if self.fin != Some(self.rcv_nxt) {
            return false;
        }
        self.fin = None;
        self.rcv_nxt += 1;
        self.ack_now = true;
        true
    }

    /// Octets kept out of order.
    pub fn out_of_order_bytes(&self) -> usize {
        self.ranges.covered()
    }

    /// Blocks to report, the most recent first (RFC 2018 §4), at most `max`.
    pub fn sack_blocks(&self, max: usize) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        if max == 0 || self.ranges.is_empty() {
            return blocks;
        }
        let first = self.recent.and_then(|s| self.ranges.at_or_after(s));
        if let Some((left, right)) = first {
            blocks.push(left, right);
        }
        for (left, right) in self.ranges.iter() {
            if blocks.as_slice().len() >= max {
                break;
            }
            if Some((left, right)) != first {
                blocks.push(left, right);
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver() -> Receiver {
        let mut rx = Receiver::new(TcpSeq(u32::MAX - 10), 1000);
        rx.on_ack_sent(100);
        rx
    }

    #[test]
    fn acceptability_at_both_edges_of_the_window() {
        let rx = receiver();
        let nxt = rx.rcv_nxt;
        assert!(rx.acceptable(nxt, 1) && rx.acceptable(nxt + 99, 1));
        assert!(!rx.acceptable(nxt + 100, 1) && !rx.acceptable(nxt - 1, 1));
        assert!(rx.acceptable(nxt - 1, 2));
        assert!(!rx.acceptable(nxt - 1, 0) && rx.acceptable(nxt, 0));
        assert!(rx.acceptable(nxt + 100, 0) && !rx.acceptable(nxt + 101, 0));
        let mut closed = Receiver::new(TcpSeq(7), 1000);
        assert!(closed.acceptable(TcpSeq(8), 1) && !closed.acceptable(TcpSeq(9), 1));
        assert_eq!(
            closed.accept(Instant::ZERO, TcpSeq(8), &[1], false),
            Accepted::Nothing
        );
        assert!(closed.ack_now);
    }

    #[test]
    fn holes_are_filled_in_any_order_and_reported() {
        let mut rx = receiver();
        let nxt = rx.rcv_nxt;
        let at = |n: usize| nxt + n;
        assert_eq!(
            rx.accept(Instant::ZERO, at(10), &[1; 5], false),
            Accepted::Stored
        );
        assert_eq!(
            rx.accept(Instant::ZERO, at(20), &[2; 5], true),
            Accepted::Stored
        );
        assert_eq!(
            rx.sack_blocks(4).as_slice(),
            [(at(20), at(25)), (at(10), at(15))]
        );
        assert_eq!(
            rx.accept(Instant::ZERO, at(0), &[3; 12], false),
            Accepted::Ready
        );
        let mut ring = rx.take_ready();
        assert_eq!(ring.len(), 15);
        ring.consume(15);
        rx.return_ready(ring);
        assert!(!rx.take_fin());
        assert_eq!(
            rx.accept(Instant::ZERO, at(14), &[4; 6], false),
            Accepted::Ready
        );
        let mut ring = rx.take_ready();
        assert_eq!(ring.peek(), [4, 4, 4, 4, 4, 2, 2, 2, 2, 2]);
        ring.consume(10);
        rx.return_ready(ring);
        assert!(rx.take_fin() && !rx.take_fin());
        assert_eq!(rx.rcv_nxt, at(26));
    }

    #[test]
    fn every_second_segment_is_acknowledged_at_once_and_the_first_within_the_delay() {
        let mut rx = receiver();
        let first = rx.rcv_nxt;
        rx.accept(Instant::ZERO, first, &[0; 10], false);
        assert!(!rx.ack_now);
        assert_eq!(rx.delayed_ack_at, Some(Instant::ZERO + DELAYED_ACK));
        rx.accept(Instant::ZERO, first + 10, &[0; 10], false);
        assert!(rx.ack_now);
        rx.on_ack_sent(100);
        assert!(!rx.ack_now && rx.delayed_ack_at.is_none());
        rx.accept(Instant::ZERO, first, &[0; 10], false);
        assert!(rx.ack_now, "a duplicate is acknowledged at once");
    }

    #[test]
    fn text_beyond_the_window_is_cut_and_its_fin_with_it() {
        let mut rx = receiver();
        let nxt = rx.rcv_nxt;
        assert_eq!(
            rx.accept(Instant::ZERO, nxt, &[0; 120], true),
            Accepted::InPlace(0..100)
        );
        assert!(!rx.take_fin());
    }
}
