//! The data level (RFC 8684 §3.3): one sequence space each way, above all subflows.

use super::autotune::{ReceiveTuner, SendTuner};
use crate::buffer::{ByteRing, Inserted, Intervals};
use crate::memory::{Allowance, SEND_RESERVE_BYTES};
use crate::seq::DataSeq;
use crate::time::{Duration, Instant};

/// Ranges kept out of order at data level, and ranges to be reinjected.
const RANGES_MAX: usize = 256;

/// RFC 7323 §2.3.
pub const WINDOW_SHIFT_MAX: u8 = 14;

/// The smallest shift with which a window field says `window_bytes`, but for its last unit: a larger
/// unit would round away more of every small step.
pub fn window_shift(window_bytes: usize) -> u8 {
    (0..WINDOW_SHIFT_MAX)
        .find(|shift| window_bytes >> shift <= usize::from(u16::MAX) + 1)
        .unwrap_or(WINDOW_SHIFT_MAX)
}

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
    /// Highest edge ever advertised, as the peer computes it from window fields.
    right_edge: DataSeq,
    /// The highest that the room reached when anything was advertised. Beyond it lies only what whole
    /// units of a scaled window add.
    granted: DataSeq,
    /// The application took octets since then.
    freed: bool,
    tuner: ReceiveTuner,
    /// What the tuner's window is cut to under memory pressure.
    share_bytes: usize,
    /// The least window that a scaled field can say.
    unit_bytes: usize,
}

impl DataReceiver {
    pub fn new(initial_bytes: usize, max_bytes: usize) -> DataReceiver {
        DataReceiver {
            rcv_nxt: DataSeq(0),
            unread: ByteRing::new(max_bytes + max_bytes / 2),
            ranges: Intervals::new(RANGES_MAX),
            fin: None,
            fin_taken: false,
            right_edge: DataSeq(0),
            granted: DataSeq(0),
            freed: false,
            tuner: ReceiveTuner::new(initial_bytes, max_bytes),
            share_bytes: usize::MAX,
            unit_bytes: 1 << window_shift(max_bytes),
        }
    }

    /// The peer's stream begins after `idsn`.
    pub fn start(&mut self, idsn: DataSeq) {
        self.rcv_nxt = idsn + 1;
        self.right_edge = self.rcv_nxt + self.limit_bytes().min(usize::from(u16::MAX));
        self.granted = self.right_edge;
    }

    /// It begins after `idsn` only now: what came before has no numbers (RFC 8684 Appendix B.2), and
    /// may lie unread.
    pub fn restart(&mut self, idsn: DataSeq) {
        let promised = self.ahead_bytes(self.right_edge);
        let granted = self.ahead_bytes(self.granted);
        self.rcv_nxt = idsn + 1;
        self.right_edge = self.rcv_nxt + promised;
        self.granted = self.rcv_nxt + granted;
        self.tuner.restart();
    }

    /// The window in octets from `rcv_nxt`: what the buffer has room for.
    pub fn window_bytes(&self) -> usize {
        self.limit_bytes().saturating_sub(self.unread.len())
    }

    /// The window field that is to be advertised now in units of `1 << shift` octets; `mss` is what
    /// makes a step of the edge worth telling.
    // RFC 8684 §3.3.4: the right edge never goes back. DATA_ACK moves in octets and the field in
    // units, so the field is rounded up where rounding it down would withdraw the rest of a unit
    // (RFC 7323 §2.4); the buffer has room for what that adds up to, see `accept_edge`.
    pub fn window_field(&self, shift: u8, mss: usize) -> u16 {
        let promised = self.ahead_bytes(self.right_edge);
        let room = self.window_bytes();
        // RFC 9293 §3.8.6.2.2: no steps of the edge that would invite silly segments.
        let worth = mss.min(self.limit_bytes() / 2);
        let offered = if room >= promised + worth { room } else { 0 };
        let units = (offered >> shift).max(promised.div_ceil(1 << shift));
        units.min(usize::from(u16::MAX)) as u16
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
        self.granted = self.granted.max(self.room_edge());
        self.freed = false;
    }

    /// What arrives beyond this is not taken in. It is the right edge, unless a peer that sends less
    /// than two units at a time to an application that does not read has moved that far beyond the
    /// room: below one unit, an edge that may not go back moves with every octet.
    fn accept_edge(&self) -> DataSeq {
        let kept = self.granted.max(self.room_edge()) + self.tuner.window_bytes() / 2;
        self.right_edge.min(kept)
    }

    /// Where a full buffer would end.
    fn room_edge(&self) -> DataSeq {
        self.front() + self.limit_bytes()
    }

    /// The first octet that the application has not taken.
    fn front(&self) -> DataSeq {
        self.rcv_nxt - self.unread.len()
    }

    /// Whether `len` octets from `rcv_nxt` on lie inside the window, but beyond what is kept.
    pub fn overruns(&self, len: usize) -> bool {
        let kept = self.accept_edge();
        kept != self.right_edge && len > self.ahead_bytes(kept)
    }

    /// Octets from `rcv_nxt` on that are taken in if they come.
    pub fn acceptable_bytes(&self) -> usize {
        self.ahead_bytes(self.accept_edge())
    }

    /// Octets from `rcv_nxt` to `edge`.
    fn ahead_bytes(&self, edge: DataSeq) -> usize {
        edge.max(self.rcv_nxt).distance(self.rcv_nxt)
    }

    /// The window of an empty buffer.
    pub fn limit_bytes(&self) -> usize {
        let window = self.tuner.window_bytes().min(self.share_bytes);
        window.max(self.unit_bytes)
    }

    /// The application has had its turn: sizes the window, see [`ReceiveTuner::on_taken`].
    pub fn tune(&mut self, now: Instant, mss: usize, rtt: impl FnOnce() -> Option<Duration>) {
        let front = self.front();
        self.tuner.on_taken(now, front, mss, rtt);
    }

    /// From now on no new window is offered beyond this; `usize::MAX` is no bound. What was offered
    /// before stands.
    pub fn set_share(&mut self, share_bytes: usize) {
        self.share_bytes = share_bytes;
    }

    /// Octets of memory held.
    pub fn held_bytes(&self) -> usize {
        self.unread.capacity()
    }

    /// Octets of memory that keeping `len` octets more in order would take beyond those held now.
    pub fn growth_for(&self, len: usize) -> usize {
        self.unread.growth_for(self.unread.len() + len)
    }

    /// The same for octets up to `end`, out of order.
    pub fn growth_to(&self, end: DataSeq) -> usize {
        let end = end.min(self.accept_edge());
        self.growth_for(self.ahead_bytes(end))
    }

    /// Gives back memory that is hardly used.
    pub fn shrink(&mut self) {
        self.unread.shrink();
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
        let edge = self.accept_edge();
        let beyond = if end.after(edge) {
            end.distance(edge)
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
        let end = start + stored;
        if start == self.rcv_nxt {
            // No range of its own: it is taken however many there are.
            let contiguous = self.ranges.pop_front_if_starts_at_or_before(end);
            let contiguous = contiguous.unwrap_or(end);
            self.unread.advance_len(contiguous.distance(self.rcv_nxt));
            self.rcv_nxt = contiguous;
            return Delivered::Buffered;
        }
        match self.ranges.insert(start, end) {
            Inserted::Refused => Delivered::NoRoom,
            Inserted::Duplicate => Delivered::Duplicate,
            Inserted::Added(_) => Delivered::OutOfOrder,
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

    /// Where the stream ends is not known any more, if that was not reached yet.
    pub fn forget_fin(&mut self) {
        if !self.fin_taken {
            self.fin = None;
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
    tuner: SendTuner,
    /// What the tuner's limit is cut to under memory pressure.
    share_bytes: usize,
    /// What the memory of the worker lets the buffer become now.
    capacity_max_bytes: usize,
}

impl DataSender {
    pub fn new(initial_bytes: usize, max_bytes: usize) -> DataSender {
        let zero = DataSeq(0);
        DataSender {
            // What is acknowledged and has to be kept all the same comes on top of the limit.
            buffer: ByteRing::new(max_bytes),
            base: zero,
            snd_una: zero,
            snd_nxt: zero,
            window_edge: zero,
            fin_queued: false,
            fin_sent: false,
            reinject: Intervals::new(RANGES_MAX),
            tuner: SendTuner::new(initial_bytes, max_bytes),
            share_bytes: usize::MAX,
            capacity_max_bytes: max_bytes,
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
            return 0;
        }
        let unacknowledged = self.end().distance(self.snd_una);
        let room = self.limit().saturating_sub(unacknowledged);
        let capacity = self.capacity_max_bytes.min(self.buffer.limit());
        room.min(capacity.saturating_sub(self.buffer.len()))
    }

    /// Whether there is room enough to call the application for: a quarter of what there may be.
    pub fn is_writable(&self) -> bool {
        self.free() >= self.limit().min(self.capacity_max_bytes) / 4
    }

    /// Octets that may be written and not acknowledged.
    pub fn limit(&self) -> usize {
        self.tuner.limit_bytes().min(self.share_bytes)
    }

    /// What the worker's memory leaves: nothing more is written beyond `share_bytes`, and the buffer
    /// grows by `spare_bytes` at most. Its reserve it has in any case.
    pub fn set_memory(&mut self, allowance: &Allowance) {
        self.share_bytes = allowance.share_bytes;
        let reached = self.buffer.capacity_within(allowance.spare_bytes);
        self.capacity_max_bytes = reached.max(SEND_RESERVE_BYTES);
    }

    /// Octets of memory held.
    pub fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// Gives back memory that is hardly used.
    pub fn shrink(&mut self) {
        self.buffer.shrink();
    }

    /// Something was sent, acknowledged or written: sizes the buffer, see [`SendTuner::on_progress`].
    pub fn tune(&mut self, cwnd_bytes: impl FnOnce() -> usize) {
        self.tuner.on_progress(self.buffer.len(), cwnd_bytes);
    }

    /// Memory runs short for what is acknowledged and has to be kept all the same.
    pub fn is_pinned(&self) -> bool {
        self.buffer.free() < self.buffer.limit() / 4
    }

    pub fn push(&mut self, octets: &[u8]) -> usize {
        let n = octets.len().min(self.free());
        self.buffer.push(&octets[..n])
    }

    pub fn write_slice(&mut self) -> &mut [u8] {
        let free = self.free();
        if free == 0 {
            return &mut [];
        }
        let slice = self.buffer.write_slice();
        let n = slice.len().min(free);
        &mut slice[..n]
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

    /// Nothing of it is wanted any more, sent or not.
    pub fn discard(&mut self) {
        let end = self.end();
        self.buffer.consume(self.buffer.len());
        self.buffer.shrink();
        (self.base, self.snd_una, self.snd_nxt) = (end, end, end);
        self.reinject.remove_before(end);
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

    /// Octets in the buffer.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests;
