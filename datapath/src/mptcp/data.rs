//! The data level (RFC 8684 §3.3): one sequence space each way, above all subflows.

use crate::buffer::{ByteRing, Inserted, Intervals};
use crate::seq::DataSeq;

/// Ranges kept out of order at data level, and ranges to be reinjected.
const RANGES_MAX: usize = 256;

/// What became of octets given to [`DataReceiver::accept`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The next in order, with nothing unread before them: offer them where they lie. So many
    /// octets at the front were known already.
    InPlace { skip: usize, len: usize },
    /// In the buffer; something new is in order.
    Buffered,
    /// In the buffer, behind a hole.
    OutOfOrder,
    /// All of it was there before (a reinjection, as a rule).
    Duplicate,
    /// Beyond the window or beyond what is kept out of order.
    NoRoom,
}

/// The data-level receive side: one shared window for all subflows.
#[derive(Debug)]
pub struct DataReceiver {
    /// What DATA_ACK says.
    pub rcv_nxt: DataSeq,
    /// Octets that the application has not taken; behind them, what is out of order.
    unread: ByteRing,
    ranges: Intervals<DataSeq>,
    /// Sequence number of the peer's DATA_FIN, once seen.
    fin: Option<DataSeq>,
    fin_taken: bool,
    /// Highest edge ever advertised.
    right_edge: DataSeq,
    /// The application took octets since then.
    freed: bool,
    limit_bytes: usize,
}

impl DataReceiver {
    pub fn new(limit_bytes: usize) -> DataReceiver {
        DataReceiver {
            rcv_nxt: DataSeq(0),
            unread: ByteRing::new(limit_bytes),
            ranges: Intervals::new(RANGES_MAX),
            fin: None,
            fin_taken: false,
            right_edge: DataSeq(0),
            freed: false,
            limit_bytes,
        }
    }

    /// The peer's stream begins after `idsn`.
    pub fn start(&mut self, idsn: DataSeq) {
        self.rcv_nxt = idsn + 1;
        self.right_edge = self.rcv_nxt + self.limit_bytes.min(usize::from(u16::MAX));
    }

    /// The window in octets from `rcv_nxt`: what the buffer has room for.
    pub fn window_bytes(&self) -> usize {
        self.limit_bytes - self.unread.len().min(self.limit_bytes)
    }

    /// How far a window of `window_bytes` from `rcv_nxt` would move the edge beyond what was
    /// advertised last, if the application made room meanwhile. Room that was there before (more
    /// than the unscaled window of a SYN/ACK can tell) is told with the next acknowledgment.
    pub fn window_gain_bytes(&self, window_bytes: usize) -> usize {
        let edge = self.rcv_nxt + window_bytes;
        if self.freed && edge.after(self.right_edge) {
            edge.distance(self.right_edge)
        } else {
            0
        }
    }

    /// A window of `window_bytes` from `rcv_nxt` is being advertised.
    pub fn on_advertised(&mut self, window_bytes: usize) {
        self.right_edge = self.right_edge.max(self.rcv_nxt + window_bytes);
        self.freed = false;
    }

    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Takes in octets that begin at `dsn`. `in_place`: the caller can offer them where they lie.
    pub fn accept(&mut self, dsn: DataSeq, octets: &[u8], in_place: bool) -> Delivered {
        // Nothing comes after the end of the stream.
        let octets = match self.fin {
            Some(fin) if fin.before(dsn) => return Delivered::NoRoom,
            Some(fin) => &octets[..octets.len().min(fin.distance(dsn))],
            None => octets,
        };
        let end = dsn + octets.len();
        if end.at_or_before(self.rcv_nxt) {
            return Delivered::Duplicate;
        }
        let skip = if dsn.before(self.rcv_nxt) {
            self.rcv_nxt.distance(dsn)
        } else {
            0
        };
        let beyond = if end.after(self.right_edge) {
            end.distance(self.right_edge)
        } else {
            0
        };
        if skip + beyond >= octets.len() {
            return Delivered::NoRoom;
        }
        let kept = &octets[skip..octets.len() - beyond];
        let start = dsn + skip;
        if start == self.rcv_nxt && self.ranges.is_empty() && self.unread.is_empty() && in_place {
            self.rcv_nxt += kept.len();
            return Delivered::InPlace {
                skip,
                len: kept.len(),
            };
        }
        let offset = start.distance(self.rcv_nxt) + self.unread.len();
        // What was verified once stays as it is: only holes are written.
        let stored = self.write_holes(start, offset, kept);
        match self.ranges.insert(start, start + stored) {
            Inserted::Refused => return Delivered::NoRoom,
            Inserted::Duplicate => return Delivered::Duplicate,
            Inserted::Added(_) => {}
        }
        match self.ranges.pop_front_if_starts_at_or_before(self.rcv_nxt) {
            Some(contiguous) => {
                self.unread.advance_len(contiguous.distance(self.rcv_nxt));
                self.rcv_nxt = contiguous;
                Delivered::Buffered
            }
            None => Delivered::OutOfOrder,
        }
    }

    /// The application left these octets of an in-place offer.
    pub fn keep_unread(&mut self, octets: &[u8]) {
        let kept = self.unread.push(octets);
        debug_assert_eq!(kept, octets.len(), "in-place octets were inside the window");
    }

    /// A DATA_FIN at `dsn` was announced. The first one stands, unless octets beyond it are there.
    pub fn announce_fin(&mut self, dsn: DataSeq) {
        let beyond = self.ranges.last().is_some_and(|(_, end)| end.after(dsn));
        if self.fin.is_none() && dsn.at_or_after(self.rcv_nxt) && !beyond {
            self.fin = Some(dsn);
        }
    }

    /// Passes over the DATA_FIN when everything before it has come. True once.
    pub fn take_fin(&mut self) -> bool {
        if self.fin != Some(self.rcv_nxt) || self.fin_taken {
            return false;
        }
        self.rcv_nxt += 1;
        self.fin_taken = true;
        true
    }

    /// The peer's stream has ended and arrived whole.
    pub fn fin_taken(&self) -> bool {
        self.fin_taken
    }

    pub fn unread_bytes(&self) -> usize {
        self.unread.len()
    }

    pub fn out_of_order_bytes(&self) -> usize {
        self.ranges.covered()
    }

    pub fn peek(&self) -> &[u8] {
        self.unread.peek()
    }

    pub fn consume(&mut self, n: usize) {
        self.unread.consume(n);
        self.freed |= n > 0;
    }

    /// Nobody will read any more.
    pub fn discard(&mut self) {
        self.consume(self.unread.len());
    }

    fn write_holes(&mut self, start: DataSeq, offset: usize, octets: &[u8]) -> usize {
        let end = start + octets.len();
        let mut at = start;
        while at.before(end) {
            let known = self.ranges.at_or_after(at).filter(|r| r.0.before(end));
            let hole_end = known.map_or(end, |r| r.0.max(at));
            let (from, to) = (at.distance(start), hole_end.distance(start));
            let stored = self.unread.write_at(offset + from, &octets[from..to]);
            if stored < to - from {
                return from + stored;
            }
            at = known.map_or(end, |r| r.1.min(end));
        }
        octets.len()
    }
}

/// The data-level send side.
#[derive(Debug)]
pub struct DataSender {
    /// Its front is `base`.
    buffer: ByteRing,
    /// The first octet kept: not later than `snd_una` nor than what any subflow may have to send
    /// again (RFC 8684 §3.3.6).
    base: DataSeq,
    pub snd_una: DataSeq,
    pub snd_nxt: DataSeq,
    /// DATA_ACK + window, the largest seen (RFC 8684 §3.3.5).
    pub window_edge: DataSeq,
    pub fin_queued: bool,
    fin_sent: bool,
    /// To be sent again on whatever subflow is fit.
    pub reinject: Intervals<DataSeq>,
}

impl DataSender {
    pub fn new(limit_bytes: usize) -> DataSender {
        let zero = DataSeq(0);
        DataSender {
            buffer: ByteRing::new(limit_bytes),
            base: zero,
            snd_una: zero,
            snd_nxt: zero,
            window_edge: zero,
            fin_queued: false,
            fin_sent: false,
            reinject: Intervals::new(RANGES_MAX),
        }
    }

    /// Our stream begins after `idsn`; `window_bytes` is what the peer's handshake allowed.
    pub fn start(&mut self, idsn: DataSeq, window_bytes: usize) {
        self.base = idsn + 1;
        self.snd_una = self.base;
        self.snd_nxt = self.base;
        self.window_edge = self.base + window_bytes;
    }

    /// Where the stream ends now; the DATA_FIN's number once the stream is closed.
    pub fn end(&self) -> DataSeq {
        self.base + self.buffer.len()
    }

    /// Room for the application, octets.
    pub fn free(&self) -> usize {
        if self.fin_queued {
            0
        } else {
            self.buffer.free()
        }
    }

    pub fn limit(&self) -> usize {
        self.buffer.limit()
    }

    pub fn push(&mut self, octets: &[u8]) -> usize {
        if self.fin_queued {
            0
        } else {
            self.buffer.push(octets)
        }
    }

    pub fn write_slice(&mut self) -> &mut [u8] {
        if self.fin_queued {
            &mut []
        } else {
            self.buffer.write_slice()
        }
    }

    pub fn commit(&mut self, n: usize) {
        self.buffer.commit(n);
    }

    /// Octets that were never sent.
    pub fn unsent(&self) -> usize {
        let end = self.end();
        if self.snd_nxt.before(end) {
            end.distance(self.snd_nxt)
        } else {
            0
        }
    }

    /// Octets of new data that the peer's window has room for.
    pub fn window_room(&self) -> usize {
        if self.snd_nxt.before(self.window_edge) {
            self.window_edge.distance(self.snd_nxt)
        } else {
            0
        }
    }

    /// The octets of `dsn..dsn + len`.
    pub fn octets(&self, dsn: DataSeq, len: usize) -> (&[u8], &[u8]) {
        debug_assert!(
            dsn.at_or_after(self.base),
            "{dsn:?} was released, base {:?}",
            self.base
        );
        self.buffer.slices(dsn.distance(self.base.min(dsn)), len)
    }

    /// `len` octets at `snd_nxt` left, with the DATA_FIN behind them or not.
    pub fn on_sent(&mut self, len: usize, fin: bool) {
        self.snd_nxt += len;
        if fin {
            self.on_fin_sent();
        }
    }

    /// The DATA_FIN can go: everything before it has been sent.
    pub fn fin_ready(&self) -> bool {
        self.fin_queued && !self.fin_sent && self.snd_nxt == self.end()
    }

    pub fn on_fin_sent(&mut self) {
        self.fin_sent = true;
        self.snd_nxt = self.end() + 1;
    }

    pub fn fin_sent(&self) -> bool {
        self.fin_sent
    }

    /// Our DATA_FIN was acknowledged.
    pub fn fin_acked(&self) -> bool {
        self.fin_sent && self.snd_una == self.end() + 1
    }

    /// All data but the DATA_FIN was acknowledged.
    pub fn all_acked_but_fin(&self) -> bool {
        self.fin_sent && self.snd_una == self.end()
    }

    /// A cumulative DATA_ACK; returns whether it moved. What was never sent is not believed.
    pub fn on_ack(&mut self, ack: DataSeq) -> bool {
        if !ack.after(self.snd_una) || ack.after(self.snd_nxt) {
            return false;
        }
        self.snd_una = ack;
        self.reinject.remove_before(ack);
        true
    }

    /// Gives back the memory of everything before `lowest_outstanding` that is acknowledged.
    pub fn release(&mut self, lowest_outstanding: Option<DataSeq>) {
        let keep_from = lowest_outstanding
            .map_or(self.snd_una, |l| l.min(self.snd_una))
            .min(self.end());
        if keep_from.after(self.base) {
            self.buffer.consume(keep_from.distance(self.base));
            self.base = keep_from;
        }
    }

    /// Marks `dsn..dsn + len` to be sent again, as far as it is not acknowledged. Octets that do
    /// not fit the set stay with the data-level timer.
    pub fn mark_reinject(&mut self, dsn: DataSeq, len: usize) {
        let start = dsn.max(self.snd_una);
        // Neither the DATA_FIN nor what was never sent.
        let end = (dsn + len).min(self.end()).min(self.snd_nxt);
        if start.before(end) {
            self.reinject.insert(start, end);
        }
    }

    /// Takes up to `max` octets of what is to be sent again.
    pub fn take_reinject(&mut self, max: usize) -> Option<(DataSeq, usize)> {
        let (start, end) = self.reinject.first()?;
        let len = end.distance(start).min(max);
        self.reinject.remove_before(start + len);
        Some((start, len))
    }

    /// Octets of memory held.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reinjected_octets_never_overwrite_what_arrived_first() {
        let mut rx = DataReceiver::new(1000);
        rx.start(DataSeq(u64::MAX - 5));
        let first = rx.rcv_nxt;
        assert_eq!(rx.accept(first + 10, &[1; 10], true), Delivered::OutOfOrder);
        assert_eq!(rx.accept(first + 5, &[2; 20], true), Delivered::OutOfOrder);
        assert_eq!(rx.accept(first + 10, &[3; 10], true), Delivered::Duplicate);
        assert_eq!(rx.accept(first, &[4; 6], true), Delivered::Buffered);
        assert_eq!(
            rx.peek(),
            [[4; 5].as_slice(), &[2; 5], &[1; 10], &[2; 5]].concat()
        );
    }

    #[test]
    fn in_order_octets_are_offered_in_place_until_something_is_unread() {
        let mut rx = DataReceiver::new(1000);
        rx.start(DataSeq(0));
        assert_eq!(
            rx.accept(DataSeq(1), &[1; 4], true),
            Delivered::InPlace { skip: 0, len: 4 }
        );
        assert_eq!(
            rx.accept(DataSeq(3), &[1; 4], true),
            Delivered::InPlace { skip: 2, len: 2 }
        );
        rx.keep_unread(&[1; 2]);
        assert_eq!(rx.accept(DataSeq(7), &[1; 4], true), Delivered::Buffered);
        assert_eq!(rx.window_bytes(), 1000 - 6);
    }

    #[test]
    fn the_edge_of_the_window_holds() {
        let mut rx = DataReceiver::new(100);
        rx.start(DataSeq(0));
        assert_eq!(rx.accept(DataSeq(101), &[1; 1], true), Delivered::NoRoom);
        assert_eq!(
            rx.accept(DataSeq(100), &[1; 2], true),
            Delivered::OutOfOrder
        );
        assert_eq!(rx.out_of_order_bytes(), 1);
    }

    #[test]
    fn the_fin_waits_for_what_is_before_it() {
        let mut rx = DataReceiver::new(100);
        rx.start(DataSeq(0));
        rx.announce_fin(DataSeq(5));
        assert!(!rx.take_fin());
        rx.accept(DataSeq(1), &[1; 4], true);
        assert!(rx.take_fin() && !rx.take_fin() && rx.fin_taken());
        assert_eq!(rx.accept(DataSeq(6), &[1; 4], true), Delivered::NoRoom);
    }

    #[test]
    fn memory_is_kept_for_the_slowest_subflow() {
        let mut tx = DataSender::new(100);
        tx.start(DataSeq(9), 50);
        assert_eq!(tx.push(&[7; 30]), 30);
        tx.on_sent(30, false);
        assert!(tx.on_ack(DataSeq(30)) && !tx.on_ack(DataSeq(41)));
        tx.release(Some(DataSeq(15)));
        assert_eq!(tx.octets(DataSeq(15), 3).0, [7; 3]);
        assert_eq!(tx.buffered(), 25);
        tx.release(None);
        assert_eq!(tx.buffered(), 10);
        tx.mark_reinject(DataSeq(20), 15);
        assert_eq!(tx.take_reinject(3), Some((DataSeq(30), 3)));
        assert_eq!(tx.take_reinject(9), Some((DataSeq(33), 2)));
        assert_eq!(tx.take_reinject(9), None);
        // Octets that were never sent go out as new ones.
        tx.push(&[8; 50]);
        tx.mark_reinject(tx.snd_una, 100);
        assert_eq!(tx.take_reinject(99), Some((DataSeq(30), 10)));
        assert_eq!(tx.take_reinject(99), None);
    }
}
