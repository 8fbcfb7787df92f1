//! The receive side of one subflow: what is acceptable, reassembly, and when to acknowledge.

use crate::buffer::{ByteRing, Inserted, Intervals};
use crate::seq::TcpSeq;
use crate::time::{Duration, Instant};
use crate::wire::tcp::SackBlocks;
use std::ops::Range;

/// RFC 9293 §3.8.6.3 allows up to 500 ms.
pub const DELAYED_ACK: Duration = Duration::from_millis(40);

/// RFC 9293 §3.7.1: what a segment takes where nobody says more. Shorter ones are never taken for
/// full-sized.
const FULL_SIZE_MIN: usize = 536;

/// Full-sized segments that are acknowledged one by one at the start: a peer in slow start counts
/// acknowledgments (RFC 5681 §3.1).
const QUICK_ACKS: u32 = 16;

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
    /// What came twice and is to be told (RFC 2883).
    duplicate: Option<(TcpSeq, TcpSeq)>,
    /// Octets of a full-sized segment of the peer, as far as what came lets us know.
    full_size: usize,
    last_len: usize,
    quick_acks_left: u32,
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
            duplicate: None,
            full_size: FULL_SIZE_MIN,
            last_len: 0,
            quick_acks_left: QUICK_ACKS,
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
        self.ack_now = false;
        self.delayed_ack_at = None;
    }

    /// Looks at the text of a segment that is not acceptable: as a rule all of it was here before.
    pub fn on_unacceptable(&mut self, seq: TcpSeq, len: usize) {
        let end = (seq + len).min(self.rcv_nxt);
        if seq.before(end) {
            self.report_duplicate((seq, end));
        }
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
        self.measure(payload.len());
        if let Some(known) = self.first_known(seq, end) {
            self.ack_now = true;
            self.report_duplicate(known);
        }
        if seq.before(self.rcv_nxt) {
            range.start = self.rcv_nxt.distance(seq).min(payload.len());
        }
        // RFC 9293 §3.10.7.4: nothing is taken in from beyond the window, nor from behind the FIN.
        let edge = self
            .fin
            .map_or(self.right_edge, |fin| fin.min(self.right_edge));
        if end.after(edge) {
            range.end -= end.distance(edge).min(range.len());
        }
        if range.is_empty() {
            self.ack_now = true;
            return Accepted::Nothing;
        }
        let start = seq + range.start;
        if start == self.rcv_nxt && self.ranges.is_empty() {
            self.rcv_nxt += range.len();
            if self.owes_ack(payload.len()) {
                self.ack_now = true;
            } else if self.delayed_ack_at.is_none() {
                self.delayed_ack_at = Some(now + DELAYED_ACK);
            }
            return Accepted::InPlace(range);
        }
        // RFC 5681 §4.2: out of order, or filling a hole: acknowledge at once.
        self.ack_now = true;
        let end = start + range.len();
        let in_order = start == self.rcv_nxt;
        // What is next in order is no range of its own: it is taken however many there are.
        if !in_order && self.ranges.insert(start, end) == Inserted::Refused {
            return Accepted::Nothing;
        }
        self.recent = Some(start);
        self.reassembly
            .write_at(start.distance(self.rcv_nxt), &payload[range]);
        if !in_order {
            return Accepted::Stored;
        }
        let contiguous = self.ranges.pop_front_if_starts_at_or_before(end);
        let contiguous = contiguous.unwrap_or(end);
        self.reassembly
            .advance_len(contiguous.distance(self.rcv_nxt));
        self.rcv_nxt = contiguous;
        Accepted::Ready
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

    /// Octets of memory held.
    pub fn held_bytes(&self) -> usize {
        self.reassembly.capacity()
    }

    /// Octets of memory that taking in text up to `end` would take beyond those held now.
    pub fn growth_for(&self, seq: TcpSeq, end: TcpSeq) -> usize {
        if seq.at_or_before(self.rcv_nxt) && self.ranges.is_empty() {
            return 0;
        }
        self.reassembly.growth_for(end.distance(self.rcv_nxt))
    }

    /// Up to where text that fills the hole at `rcv_nxt` and ends at `end` may bring the order.
    pub fn ready_end(&self, end: TcpSeq) -> TcpSeq {
        self.ranges.last().map_or(end, |(_, last)| last.max(end))
    }

    /// Drops what is kept out of order (RFC 2018 §8: what was only SACKed may be).
    pub fn discard_out_of_order(&mut self) {
        self.ranges.clear();
        self.recent = None;
        // RFC 2883 §4: without the range around it, it would pass for text that is here.
        self.duplicate = self
            .duplicate
            .filter(|twice| twice.1.at_or_before(self.rcv_nxt));
        self.reassembly.release();
    }

    /// Octets kept out of order.
    pub fn out_of_order_bytes(&self) -> usize {
        self.ranges.covered()
    }

    /// Whether something came twice and was not told yet.
    pub fn has_duplicate(&self) -> bool {
        self.duplicate.is_some()
    }

    /// The first block of the ACK that a duplicate draws; each is told once (RFC 2883 §4).
    pub fn take_duplicate(&mut self) -> Option<(TcpSeq, TcpSeq)> {
        self.duplicate.take()
    }

    /// Adds the blocks to report, the most recent first (RFC 2018 §4), until there are `max`.
    pub fn add_sack_blocks(&self, blocks: &mut SackBlocks, max: usize) {
        if blocks.as_slice().len() >= max || self.ranges.is_empty() {
            return;
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
    }

    /// Whether text that came in order, the last segment of it `len` octets, is worth an ACK.
    // RFC 9293 §3.8.6.3, RFC 5681 §4.2: at least every second full-sized segment. It is more than one
    // that is waited for, not two: options of one size or another make two differ.
    fn owes_ack(&mut self, len: usize) -> bool {
        if len >= self.full_size && self.quick_acks_left > 0 {
            self.quick_acks_left -= 1;
            return true;
        }
        self.rcv_nxt.distance(self.last_ack_sent) > self.full_size
    }

    /// RFC 5681 §4.2: what the peer takes for a full-sized segment may differ from what we announced,
    /// and become less with the path's MTU: then two of the same size follow each other.
    fn measure(&mut self, len: usize) {
        if len > self.full_size || (len == self.last_len && len >= FULL_SIZE_MIN) {
            self.full_size = len;
        }
        self.last_len = len;
    }

    /// The first stretch of `start..end` that is here already (RFC 2883 §4.2).
    fn first_known(&self, start: TcpSeq, end: TcpSeq) -> Option<(TcpSeq, TcpSeq)> {
        if start.before(self.rcv_nxt) {
            return Some((start, end.min(self.rcv_nxt)));
        }
        let (left, right) = self.ranges.at_or_after(start)?;
        left.before(end).then(|| (left.max(start), right.min(end)))
    }

    /// Segments that came twice in a row, before there was an ACK, are told as one.
    fn report_duplicate(&mut self, (left, right): (TcpSeq, TcpSeq)) {
        self.duplicate = match self.duplicate {
            Some((l, r)) if left.at_or_before(r) && l.at_or_before(right) => {
                Some((l.min(left), r.max(right)))
            }
            _ => Some((left, right)),
        };
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

    // RFC 5961 §3.2.
    #[test]
    fn a_reset_is_in_the_window_or_at_rcv_nxt_if_it_is_closed() {
        let rx = receiver();
        let nxt = rx.rcv_nxt;
        assert!(rx.in_window(nxt) && rx.in_window(nxt + 99));
        assert!(!rx.in_window(nxt - 1) && !rx.in_window(nxt + 100));
        let closed = Receiver::new(TcpSeq(7), 1000);
        assert!(closed.in_window(TcpSeq(8)) && !closed.in_window(TcpSeq(9)));
    }

    #[test]
    fn what_is_next_in_order_is_taken_however_many_ranges_lie_beyond() {
        let mut rx = wide_receiver();
        let at = |n: usize| TcpSeq(u32::MAX - 9) + n;
        for n in 1..=RANGES_MAX + 1 {
            let stored = rx.accept(Instant::ZERO, at(3 * n), &[1; 1], false);
            assert_eq!(stored == Accepted::Stored, n <= RANGES_MAX);
        }
        // A hole of three octets, filled from its begin on.
        for (n, nxt) in [(0, 1), (1, 2), (2, 4)] {
            assert_eq!(
                rx.accept(Instant::ZERO, at(n), &[1; 1], false),
                Accepted::Ready
            );
            assert_eq!(rx.rcv_nxt, at(nxt));
        }
        assert_eq!(rx.out_of_order_bytes(), RANGES_MAX - 1);
    }

    #[test]
    fn what_is_out_of_order_takes_memory_until_it_is_dropped() {
        let mut rx = wide_receiver();
        let at = |n: usize| TcpSeq(u32::MAX - 9) + n;
        assert_eq!(rx.growth_for(at(0), at(9000)), 0, "never kept here");
        assert_eq!(rx.growth_for(at(1000), at(9000)), 16_384);
        rx.accept(Instant::ZERO, at(1000), &[1; 8000], false);
        assert_eq!((rx.held_bytes(), rx.out_of_order_bytes()), (16_384, 8000));
        assert_eq!(rx.growth_for(at(0), at(16_384)), 0);
        assert_eq!(rx.growth_for(at(0), at(16_385)), 16_384);
        assert_eq!(rx.ready_end(at(1000)), at(9000));
        assert_eq!(rx.ready_end(at(9001)), at(9001));
        // RFC 2018 §8.
        rx.discard_out_of_order();
        assert_eq!((rx.held_bytes(), rx.out_of_order_bytes()), (0, 0));
        assert_eq!((blocks(&rx), rx.ready_end(at(1000))), (vec![], at(1000)));
    }

    // RFC 2018 §4: as many as there is room for, the most recent first, and none in place of what is
    // there already.
    #[test]
    fn the_blocks_that_came_last_and_lie_lowest_are_reported() {
        let mut rx = wide_receiver();
        let at = |n: usize| TcpSeq(u32::MAX - 9) + n;
        for n in [100, 300, 200] {
            rx.accept(Instant::ZERO, at(n), &[1; 10], false);
        }
        let all = [200, 100, 300].map(|n| (at(n), at(n + 10)));
        let duplicate = (at(0) - 5, at(0));
        for max in 0..=3 {
            let mut blocks = SackBlocks::default();
            rx.add_sack_blocks(&mut blocks, max);
            assert_eq!(blocks.as_slice(), &all[..max]);
            let mut blocks = SackBlocks::default();
            blocks.push(duplicate.0, duplicate.1);
            rx.add_sack_blocks(&mut blocks, max);
            assert_eq!(blocks.as_slice()[0], duplicate);
            assert_eq!(&blocks.as_slice()[1..], &all[..max.saturating_sub(1)]);
        }
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
        assert_eq!(blocks(&rx), [(at(20), at(25)), (at(10), at(15))]);
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

    /// Text in order; whether an ACK is owed at once. If so it is sent.
    fn acked(rx: &mut Receiver, len: usize) -> bool {
        let seq = rx.rcv_nxt;
        rx.accept(Instant::ZERO, seq, &vec![0; len], false);
        let owed = rx.ack_now;
        assert!(owed || rx.delayed_ack_at.is_some());
        if owed {
            rx.on_ack_sent(100_000);
        }
        owed
    }

    fn wide_receiver() -> Receiver {
        let mut rx = Receiver::new(TcpSeq(u32::MAX - 10), 200_000);
        rx.on_ack_sent(100_000);
        rx
    }

    // RFC 9293 §3.8.6.3, RFC 5681 §4.2: more than a full-sized segment is acknowledged at once, what is
    // less waits; at the start each full-sized segment is, for the peer's slow start.
    #[test]
    fn every_second_full_sized_segment_is_acknowledged_at_once() {
        let mut rx = wide_receiver();
        for _ in 0..QUICK_ACKS {
            assert!(acked(&mut rx, 1448));
        }
        for len in [1448, 1436] {
            assert!(!acked(&mut rx, 1448));
            assert_eq!(rx.delayed_ack_at, Some(Instant::ZERO + DELAYED_ACK));
            assert!(
                acked(&mut rx, len),
                "the second one, SACK blocks on it or not"
            );
        }
        // Small ones count by their octets.
        let small = (0..).take_while(|_| !acked(&mut rx, 64)).count();
        assert_eq!(small, 1448 / 64);
        // One that is shorter is none.
        assert!(!acked(&mut rx, 700) && !acked(&mut rx, 100) && acked(&mut rx, 1448));
        // The path's MTU became less.
        let acks = (0..6).filter(|_| acked(&mut rx, 700)).count();
        assert_eq!(acks, 3);
        assert!(!acked(&mut rx, 1448), "a larger one is one");
    }

    #[test]
    fn short_segments_at_the_start_wait_for_the_answer() {
        let mut rx = wide_receiver();
        assert!(!acked(&mut rx, FULL_SIZE_MIN - 1) && !acked(&mut rx, 1));
        assert!(acked(&mut rx, 1));
    }

    /// Segments of 500 octets that came, numbered from `start` as in RFC 2883; then `segments` as
    /// from and to. The blocks of the last ACK, the one that reports a duplicate first.
    fn told(start: u32, segments: &[(u32, u32)]) -> (u32, Vec<(u32, u32)>) {
        // So that everything wraps.
        let base = TcpSeq(0u32.wrapping_sub(1700));
        let mut rx = Receiver::new(base + start as usize - 1, 100_000);
        rx.on_ack_sent(50_000);
        let mut told = Vec::new();
        for &(from, to) in segments {
            let (seq, len) = (base + from as usize, (to - from) as usize);
            if rx.acceptable(seq, len) {
                if rx.accept(Instant::ZERO, seq, &vec![0; len], false) == Accepted::Ready {
                    let mut ring = rx.take_ready();
                    ring.consume(ring.len());
                    rx.return_ready(ring);
                }
            } else {
                rx.on_unacceptable(seq, len);
            }
            told = blocks_with_duplicate(&mut rx);
            rx.on_ack_sent(50_000);
        }
        let number = |seq: TcpSeq| seq.0.wrapping_sub(base.0);
        let told = told.into_iter().map(|(l, r)| (number(l), number(r)));
        (number(rx.rcv_nxt), told.collect())
    }

    fn blocks(rx: &Receiver) -> Vec<(TcpSeq, TcpSeq)> {
        let mut blocks = SackBlocks::default();
        rx.add_sack_blocks(&mut blocks, SackBlocks::MAX);
        blocks.as_slice().to_vec()
    }

    fn blocks_with_duplicate(rx: &mut Receiver) -> Vec<(TcpSeq, TcpSeq)> {
        let duplicate = rx.take_duplicate();
        duplicate.into_iter().chain(blocks(rx)).collect()
    }

    // RFC 2883 §4.1.1 to §4.2.3 and §5.1, each with what came, the acknowledgment and the blocks.
    #[test]
    fn duplicates_are_told_as_in_the_examples_of_rfc_2883() {
        type Example<'a> = (u32, &'a [(u32, u32)], u32, &'a [(u32, u32)]);
        let examples: &[Example<'_>] = &[
            (
                3000,
                &[(3000, 3500), (3500, 4000), (3000, 3500)],
                4000,
                &[(3000, 3500)],
            ),
            (
                3000,
                &[(3000, 3500), (3500, 4000), (4500, 5000), (3000, 3500)],
                4000,
                &[(3000, 3500), (4500, 5000)],
            ),
            (
                3500,
                &[(3500, 4000), (4500, 5000), (5000, 5500), (5000, 5500)],
                4000,
                &[(5000, 5500), (4500, 5500)],
            ),
            (
                500,
                &[(500, 1000), (2000, 2500), (1000, 1500), (1000, 2000)],
                2500,
                &[(1000, 1500)],
            ),
            (
                500,
                &[
                    (500, 1000),
                    (3000, 3500),
                    (1000, 1500),
                    (2000, 2500),
                    (1000, 2500),
                ],
                2500,
                &[(1000, 1500), (3000, 3500)],
            ),
            (
                500,
                &[
                    (500, 1000),
                    (3500, 4000),
                    (1500, 2000),
                    // Its text calls the two "non-contiguous"; the figure has 2000-2499 here.
                    (2500, 3000),
                    (1500, 3000),
                ],
                1000,
                &[(1500, 2000), (1500, 3000), (3500, 4000)],
            ),
            (
                500,
                &[(500, 1000), (1000, 1500), (1000, 1500)],
                1500,
                &[(1000, 1500)],
            ),
        ];
        for &(start, segments, acknowledged, blocks) in examples {
            assert_eq!(told(start, segments), (acknowledged, blocks.to_vec()));
        }
    }

    #[test]
    fn a_duplicate_of_what_was_discarded_is_not_told() {
        let mut rx = wide_receiver();
        let first = rx.rcv_nxt;
        for _ in 0..2 {
            rx.accept(Instant::ZERO, first + 100, &[0; 100], false);
        }
        assert!(rx.has_duplicate());
        rx.discard_out_of_order();
        rx.accept(Instant::ZERO, first, &[0; 100], false);
        assert!(blocks_with_duplicate(&mut rx).is_empty());
    }

    #[test]
    fn each_duplicate_is_told_once_and_those_in_a_row_as_one() {
        let mut rx = wide_receiver();
        let first = rx.rcv_nxt;
        for _ in 0..3 {
            let seq = rx.rcv_nxt;
            rx.accept(Instant::ZERO, seq, &[0; 100], false);
        }
        rx.on_ack_sent(100_000);
        assert_eq!(rx.take_duplicate(), None);
        for n in [0, 1, 2] {
            rx.on_unacceptable(first + 100 * n, 100);
        }
        assert_eq!(rx.take_duplicate(), Some((first, first + 300)));
        assert_eq!(rx.take_duplicate(), None);
        rx.on_unacceptable(first, 100);
        rx.on_unacceptable(first + 200, 50);
        assert_eq!(rx.take_duplicate(), Some((first + 200, first + 250)));
        rx.on_unacceptable(first, 100);
        rx.on_unacceptable(first + 200, 50);
        rx.on_unacceptable(first + 100, 100);
        assert_eq!(rx.take_duplicate(), Some((first + 100, first + 250)));
        rx.on_unacceptable(first + 200, 50);
        rx.on_unacceptable(first, 100);
        assert!(rx.has_duplicate());
        assert_eq!(rx.take_duplicate(), Some((first, first + 100)));
        // Neither what lies beyond the window nor an empty segment came twice.
        rx.on_unacceptable(first + 200_000, 100);
        rx.on_unacceptable(first, 0);
        assert!(!rx.has_duplicate());
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

    // RFC 9293 §3.10.7.4, eighth check: nothing comes behind a FIN.
    #[test]
    fn text_behind_a_fin_is_cut() {
        let mut rx = receiver();
        let nxt = rx.rcv_nxt;
        rx.accept(Instant::ZERO, nxt, &[], false);
        assert!(!rx.ack_now);
        // It asks for what is before it.
        rx.accept(Instant::ZERO, nxt + 10, &[], true);
        assert!(rx.ack_now);
        rx.accept(Instant::ZERO, nxt + 5, &[1; 10], false);
        assert_eq!(
            rx.accept(Instant::ZERO, nxt, &[2; 5], false),
            Accepted::Ready
        );
        let mut ring = rx.take_ready();
        assert_eq!(ring.len(), 10);
        ring.consume(10);
        rx.return_ready(ring);
        assert!(rx.take_fin());
    }
}
