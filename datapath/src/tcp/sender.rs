//! The send side of one subflow: what is in flight, what an ACK says of it, what to send again.
//!
//! Loss is found by duplicate ACKs (RFC 5681 §3.2) or, with SACK, by what lies above a hole
//! (RFC 6675 §4, `IsLost`), and else by the retransmission timer (RFC 6298 §5).

use super::congestion::{Ack, CongestionControl, Sibling};
use super::rtt::RttEstimator;
use crate::seq::TcpSeq;
use crate::time::{Duration, Instant};
use crate::wire::tcp::SackBlocks;
use std::collections::VecDeque;

/// RFC 5681 §3.2, RFC 6675 §2 DupThresh.
const DUP_THRESH: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Sent and not heard of: counted in `pipe`.
    Outstanding,
    /// Acknowledged selectively.
    Sacked,
    /// Taken for lost: to be sent again.
    Lost,
}

/// One segment in flight. `mark` says what its octets are; TCP does not look at it.
#[derive(Clone, Copy, Debug)]
pub struct Sent<M> {
    pub seq: TcpSeq,
    /// Octets of text.
    pub len: usize,
    pub fin: bool,
    pub mark: M,
    sent_at: Instant,
    /// When the copy before the last one left.
    previous_at: Option<Instant>,
    transmissions: u32,
    fate: Fate,
}

impl<M> Sent<M> {
    /// Octets of sequence space.
    fn space(&self) -> usize {
        self.len + usize::from(self.fin)
    }

    fn end(&self) -> TcpSeq {
        self.seq + self.space()
    }
}

/// Why `cwnd` is not growing as usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    /// Fast recovery until this is acknowledged (RFC 6582).
    Fast(TcpSeq),
    /// After a timeout; slow start until this is acknowledged.
    Timeout(TcpSeq),
}

/// What an acceptable ACK did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckOutcome {
    /// Sequence space newly acknowledged.
    pub advanced: usize,
    /// A loss was found.
    pub loss_found: bool,
}

#[derive(Debug)]
pub struct Sender<M> {
    pub iss: TcpSeq,
    pub snd_una: TcpSeq,
    pub snd_nxt: TcpSeq,
    /// Peer's window in octets, counted from `snd_una`.
    pub snd_wnd: usize,
    wl1: TcpSeq,
    wl2: TcpSeq,
    /// Largest text per segment, options not yet taken off.
    pub mss: usize,
    pub rtt: RttEstimator,
    pub cc: Box<dyn CongestionControl>,
    /// For an algorithm that couples subflows; filled before each acknowledgment.
    pub siblings: Vec<Sibling>,
    flight: VecDeque<Sent<M>>,
    /// Octets thought to be in the network (RFC 6675 §2).
    pipe: usize,
    lost_segments: usize,
    duplicate_acks: usize,
    /// The first segment of a loss just found goes at once, whatever the congestion window.
    retransmit_now: bool,
    recovery: Option<Recovery>,
    /// RFC 6298 §5.
    pub rto_at: Option<Instant>,
    /// Segments sent again, ever.
    pub retransmits: u64,
}

impl<M: Copy> Sender<M> {
    pub fn new(iss: TcpSeq, mss: usize, cc: Box<dyn CongestionControl>) -> Sender<M> {
        Sender {
            iss,
            snd_una: iss,
            snd_nxt: iss,
            snd_wnd: 0,
            wl1: TcpSeq::default(),
            wl2: iss,
            mss,
            rtt: RttEstimator::default(),
            cc,
            siblings: Vec::new(),
            flight: VecDeque::new(),
            pipe: 0,
            lost_segments: 0,
            duplicate_acks: 0,
            retransmit_now: false,
            recovery: None,
            rto_at: None,
            retransmits: 0,
        }
    }

    /// Our SYN/ACK was acknowledged.
    pub fn on_handshake_done(&mut self, peer_seq: TcpSeq, window_bytes: usize) {
        self.snd_una = self.iss + 1;
        self.snd_nxt = self.iss + 1;
        self.snd_wnd = window_bytes;
        self.wl1 = peer_seq;
        self.wl2 = self.snd_una;
        self.rto_at = None;
        self.rtt.on_progress();
    }

    /// As algorithms of other subflows see this one, once its round trip has been measured.
    pub fn as_sibling(&self) -> Option<Sibling> {
        Some(Sibling {
            cwnd: self.cc.cwnd(),
            ssthresh: self.cc.ssthresh(),
            mss: self.mss,
            srtt: self.rtt.srtt()?,
            recovering: matches!(self.recovery, Some(Recovery::Fast(_))),
        })
    }

    pub fn in_flight(&self) -> usize {
        self.pipe
    }

    pub fn flight_is_empty(&self) -> bool {
        self.flight.is_empty()
    }

    pub fn flight(&self) -> impl Iterator<Item = &Sent<M>> {
        self.flight.iter()
    }

    /// How long ago the oldest segment in flight left last.
    pub fn head_age(&self, now: Instant) -> Option<Duration> {
        self.flight.front().map(|sent| now.since(sent.sent_at))
    }

    /// Octets of new text that the peer's window has room for.
    pub fn window_room(&self) -> usize {
        self.snd_wnd
            .saturating_sub(self.snd_nxt.distance(self.snd_una))
    }

    /// Whether congestion control lets another segment go.
    pub fn cwnd_room(&self) -> bool {
        self.pipe == 0 || self.pipe + self.mss <= self.cc.cwnd()
    }

    /// Something waits to be sent again and may go now.
    // RFC 5681 §3.2 step 3, RFC 6582 §3.2 step 5, RFC 6675 §5 (4.3): the first retransmission does
    // not wait for the halved window to open, which without SACK only its own ACK would do.
    pub fn retransmission_ready(&self) -> bool {
        self.lost_segments > 0 && (self.retransmit_now || self.cwnd_room())
    }

    pub fn has_lost(&self) -> bool {
        self.lost_segments > 0
    }

    /// RFC 9293 §3.10.7.4: whether `ack` is neither too old nor for what was never sent
    /// (RFC 5961 §5 bounds the old side by the largest window).
    pub fn ack_acceptable(&self, ack: TcpSeq) -> bool {
        ack.at_or_before(self.snd_nxt) && ack.at_or_after(self.snd_una - self.snd_wnd.max(1 << 16))
    }

    /// RFC 9293 §3.10.7.4: the window of a segment that is not older than the one that set it.
    /// Returns whether it changed.
    pub fn update_window(&mut self, seq: TcpSeq, ack: TcpSeq, window_bytes: usize) -> bool {
        let newer = self.wl1.before(seq) || (self.wl1 == seq && self.wl2.at_or_before(ack));
        if !newer || ack.before(self.snd_una) {
            return false;
        }
        let changed = self.snd_wnd != window_bytes;
        self.snd_wnd = window_bytes;
        self.wl1 = seq;
        self.wl2 = ack;
        changed
    }

    /// Processes an acceptable ACK. `may_be_duplicate`: the segment has no text, did not change the
    /// window and carries no MPTCP signal (RFC 5681 §2, RFC 8684 §3.4.1). `echoes` says whether its
    /// TSecr is what a segment bore that left at that time; always `false` without timestamps.
    /// `on_acked` sees every segment that is acknowledged whole.
    pub fn on_ack(
        &mut self,
        now: Instant,
        ack: TcpSeq,
        sack: &SackBlocks,
        may_be_duplicate: bool,
        echoes: impl Fn(Instant) -> bool,
        mut on_acked: impl FnMut(&Sent<M>),
    ) -> AckOutcome {
        let mut outcome = AckOutcome::default();
        let was_limited = self.pipe + 2 * self.mss > self.cc.cwnd();
        let flight_size = self.snd_nxt.distance(self.snd_una);
        if ack.after(self.snd_una) {
            outcome.advanced = ack.distance(self.snd_una);
            self.advance(now, ack, &echoes, &mut on_acked);
        }
        let newly_sacked = self.apply_sack(now, sack);
        if outcome.advanced > 0 {
            self.duplicate_acks = 0;
            self.rtt.on_progress();
            match self.recovery {
                Some(Recovery::Fast(recover) | Recovery::Timeout(recover))
                    if ack.at_or_after(recover) =>
                {
                    self.recovery = None;
                }
                Some(Recovery::Fast(_)) => self.on_partial_ack(sack),
                _ => {}
            }
            let grows = !matches!(self.recovery, Some(Recovery::Fast(_)));
            if grows && was_limited {
                self.cc.on_ack(&Ack {
                    now,
                    acked_bytes: outcome.advanced,
                    snd_una: self.snd_una,
                    snd_nxt: self.snd_nxt,
                    rtt: None,
                    srtt: self.rtt.srtt(),
                    min_rtt: None,
                    siblings: &self.siblings,
                });
            }
            self.rearm(now);
        }
        // RFC 6675 §2: news of SACKed octets is a duplicate, even if it moves snd_una.
        let repeats = outcome.advanced == 0 && may_be_duplicate && !self.flight.is_empty();
        if newly_sacked || repeats {
            self.duplicate_acks += 1;
        }
        outcome.loss_found = self.find_losses(now, flight_size);
        outcome
    }

    /// The timer expired: everything not known to have arrived is taken for lost (RFC 6298 §5.4
    /// to §5.6, RFC 5681 §3.1).
    pub fn on_timeout(&mut self, now: Instant) {
        let first = self.rtt.backoff() == 0;
        self.rtt.on_timeout();
        self.cc.on_timeout(now, self.pipe, first);
        // RFC 2018 §8: a head that was SACKed and is not acknowledged means the peer dropped it.
        let reneged = self.flight.front().is_some_and(|s| s.fate == Fate::Sacked);
        for sent in &mut self.flight {
            if sent.fate == Fate::Outstanding || (reneged && sent.fate == Fate::Sacked) {
                sent.fate = Fate::Lost;
            }
        }
        self.pipe = 0;
        self.lost_segments = self.flight.iter().filter(|s| s.fate == Fate::Lost).count();
        self.duplicate_acks = 0;
        self.retransmit_now = false;
        self.recovery = Some(Recovery::Timeout(self.snd_nxt));
        self.rto_at = Some(now + self.rtt.rto());
    }

    /// A new segment left, at `snd_nxt`.
    pub fn on_sent(&mut self, now: Instant, len: usize, fin: bool, mark: M) {
        let sent = Sent {
            seq: self.snd_nxt,
            len,
            fin,
            mark,
            sent_at: now,
            previous_at: None,
            transmissions: 1,
            fate: Fate::Outstanding,
        };
        self.snd_nxt = sent.end();
        self.pipe += sent.space();
        self.flight.push_back(sent);
        if self.rto_at.is_none() {
            self.rto_at = Some(now + self.rtt.rto());
        }
    }

    /// The first segment to send again.
    pub fn next_lost(&self) -> Option<(usize, Sent<M>)> {
        if self.lost_segments == 0 {
            return None;
        }
        let at = self.flight.iter().position(|s| s.fate == Fate::Lost)?;
        Some((at, self.flight[at]))
    }

    /// The segment that [`Sender::next_lost`] named left again.
    pub fn on_retransmitted(&mut self, now: Instant, at: usize) {
        let Some(sent) = self.flight.get_mut(at) else {
            return;
        };
        self.retransmit_now = false;
        sent.fate = Fate::Outstanding;
        sent.transmissions += 1;
        sent.previous_at = Some(sent.sent_at);
        sent.sent_at = now;
        self.pipe += sent.space();
        self.lost_segments -= 1;
        self.retransmits += 1;
        if self.rto_at.is_none() {
            self.rto_at = Some(now + self.rtt.rto());
        }
    }

    /// RFC 6298 §5.2, §5.3.
    fn rearm(&mut self, now: Instant) {
        self.rto_at = (!self.flight.is_empty()).then(|| now + self.rtt.rto());
    }

    fn advance(
        &mut self,
        now: Instant,
        ack: TcpSeq,
        echoes: &impl Fn(Instant) -> bool,
        on_acked: &mut impl FnMut(&Sent<M>),
    ) {
        let mut sample = None;
        while let Some(sent) = self.flight.front_mut() {
            if sent.seq.at_or_after(ack) {
                break;
            }
            let whole = sent.end().at_or_before(ack);
            let covered = if whole {
                sent.space()
            } else {
                ack.distance(sent.seq)
            };
            match sent.fate {
                Fate::Outstanding => self.pipe -= covered,
                Fate::Lost if whole => self.lost_segments -= 1,
                Fate::Lost | Fate::Sacked => {}
            }
            if !whole {
                // Part of it: the rest keeps its mark, which names the whole mapping.
                sent.seq = ack;
                sent.len -= covered;
                break;
            }
            // What was SACKed has waited for others. RFC 6298 §3, Karn's algorithm: what left more
            // than once measures only where the timestamp tells which copy was acknowledged.
            let told_apart = || {
                sent.previous_at
                    .is_some_and(|at| echoes(sent.sent_at) && !echoes(at))
            };
            if sent.fate == Fate::Outstanding && (sent.transmissions == 1 || told_apart()) {
                sample = Some(sent.sent_at);
            }
            if let Some(sent) = self.flight.pop_front() {
                on_acked(&sent);
            }
        }
        self.snd_wnd = self.snd_wnd.saturating_sub(ack.distance(self.snd_una));
        self.snd_una = ack;
        if let Some(sent_at) = sample {
            self.rtt.on_sample(now.since(sent_at));
        }
    }

    /// Marks what the blocks cover; returns whether any of it is news.
    fn apply_sack(&mut self, now: Instant, sack: &SackBlocks) -> bool {
        let mut news = false;
        let mut sample = None;
        for &(left, right) in sack.as_slice() {
            // Blocks at or below snd_una are duplicate reports (RFC 2883).
            if left.before(self.snd_una) || right.after(self.snd_nxt) || !left.before(right) {
                continue;
            }
            let from = self.flight.partition_point(|s| s.seq.before(left));
            for sent in self.flight.range_mut(from..) {
                if sent.end().after(right) {
                    break;
                }
                match sent.fate {
                    Fate::Sacked => continue,
                    Fate::Outstanding => self.pipe -= sent.space(),
                    Fate::Lost => self.lost_segments -= 1,
                }
                sent.fate = Fate::Sacked;
                news = true;
                if sent.transmissions == 1 {
                    sample = sample.max(Some(sent.sent_at));
                }
            }
        }
        // RFC 6298 §3, §5.7: the newest of them is a measurement, and where every window loses
        // something often the only one: a timeout that was backed off would stay so.
        if let Some(sent_at) = sample {
            self.rtt.on_sample(now.since(sent_at));
        }
        news
    }

    /// RFC 6582 §3.2 step 5: without SACK a partial ACK names the next hole.
    fn on_partial_ack(&mut self, sack: &SackBlocks) {
        if sack.is_empty() {
            self.mark_lost(0);
            self.retransmit_now = true;
        }
    }

    /// Takes for lost what enough later segments have overtaken, and enters recovery.
    /// `flight_size`: octets sent and not acknowledged, SACKed ones included (RFC 5681 §2).
    fn find_losses(&mut self, now: Instant, flight_size: usize) -> bool {
        let lost_before = self.lost_segments;
        let mut sacked_above = 0;
        let mut overtaken = 0;
        if self.duplicate_acks > 0 || self.recovery.is_some() {
            // From the end: everything below the third SACKed segment (RFC 6675 §4, IsLost).
            for (at, sent) in self.flight.iter().enumerate().rev() {
                if sent.fate == Fate::Sacked {
                    sacked_above += 1;
                    if sacked_above >= DUP_THRESH {
                        overtaken = at;
                        break;
                    }
                }
            }
        }
        for at in 0..overtaken {
            // What was sent again already is left to the timer.
            if self.flight[at].transmissions == 1 {
                self.mark_lost(at);
            }
        }
        if self.duplicate_acks >= DUP_THRESH && self.recovery.is_none() {
            self.mark_lost(0);
        }
        let found = self.lost_segments > lost_before;
        if found && self.recovery.is_none() {
            self.recovery = Some(Recovery::Fast(self.snd_nxt));
            self.cc.on_congestion(now, flight_size);
            self.retransmit_now = true;
        }
        found
    }

    fn mark_lost(&mut self, at: usize) {
        if let Some(sent) = self.flight.get_mut(at)
            && sent.fate == Fate::Outstanding
        {
            sent.fate = Fate::Lost;
            self.pipe -= sent.space();
            self.lost_segments += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::congestion::NewReno;

    const MSS: usize = 1000;

    fn sender(segments: usize) -> Sender<()> {
        let mut tx = Sender::new(TcpSeq(u32::MAX - 2500), MSS, Box::new(NewReno::new(MSS)));
        tx.on_handshake_done(TcpSeq(1), 100_000);
        for _ in 0..segments {
            tx.on_sent(Instant::ZERO, MSS, false, ());
        }
        tx
    }

    fn ack(tx: &mut Sender<()>, segments: usize, sacked: &[(usize, usize)]) -> AckOutcome {
        let first = tx.iss + 1;
        let mut sack = SackBlocks::default();
        for &(a, b) in sacked {
            sack.push(first + a * MSS, first + b * MSS);
        }
        tx.on_ack(
            Instant::from_millis(10),
            first + segments * MSS,
            &sack,
            true,
            |_| false,
            |_| {},
        )
    }

    #[test]
    fn third_duplicate_ack_fires_and_the_second_does_not() {
        let mut tx = sender(10);
        ack(&mut tx, 1, &[]);
        assert!(!ack(&mut tx, 1, &[]).loss_found && !ack(&mut tx, 1, &[]).loss_found);
        assert!(ack(&mut tx, 1, &[]).loss_found);
        let (at, sent) = tx.next_lost().expect("the head");
        assert_eq!((at, sent.seq), (0, tx.snd_una));
        // RFC 5681 §3.2: half of the nine segments in flight, and the first goes although the other
        // eight more than fill that.
        assert_eq!(tx.cc.cwnd(), 9 * MSS / 2);
        assert!(!tx.cwnd_room() && tx.retransmission_ready());
        tx.on_retransmitted(Instant::from_millis(10), at);
        assert!(tx.next_lost().is_none());
        // A partial ACK names the next hole; a full one ends recovery.
        ack(&mut tx, 3, &[]);
        assert_eq!(tx.next_lost().map(|(_, s)| s.seq), Some(tx.snd_una));
        assert!(!tx.cwnd_room() && tx.retransmission_ready());
        ack(&mut tx, 10, &[]);
        assert!(tx.flight_is_empty() && tx.rto_at.is_none() && tx.in_flight() == 0);
    }

    #[test]
    fn three_segments_sacked_above_a_hole_mark_every_hole_below_them() {
        let mut tx = sender(10);
        assert!(!ack(&mut tx, 0, &[(1, 2), (3, 4)]).loss_found);
        assert!(ack(&mut tx, 0, &[(1, 2), (3, 5)]).loss_found);
        let (at, sent) = tx.next_lost().expect("first hole");
        assert_eq!((at, sent.seq), (0, tx.iss + 1));
        assert_eq!(tx.in_flight(), 7 * MSS - MSS);
        // RFC 6675 §5 (4.2), (4.3): half of what is not acknowledged, SACKed or not.
        assert_eq!(tx.cc.ssthresh(), 5 * MSS);
        assert!(!tx.cwnd_room() && tx.retransmission_ready());
        tx.on_retransmitted(Instant::from_millis(11), at);
        // The second hole lies below two SACKed segments only.
        assert!(tx.next_lost().is_none());
        assert!(ack(&mut tx, 0, &[(1, 2), (3, 6)]).loss_found);
        assert_eq!(tx.next_lost().map(|(at, _)| at), Some(2));
    }

    #[test]
    fn news_of_sacked_octets_is_a_duplicate_although_it_moves_the_acknowledgment() {
        let mut tx = sender(10);
        assert!(ack(&mut tx, 2, &[(3, 6)]).loss_found);
        assert_eq!(tx.next_lost().map(|(_, s)| s.seq), Some(tx.snd_una));
    }

    #[test]
    fn a_sacked_segment_measures_the_path_if_it_was_sent_once() {
        let mut tx = sender(4);
        tx.on_timeout(Instant::from_millis(1000));
        while let Some((at, _)) = tx.next_lost() {
            tx.on_retransmitted(Instant::from_millis(1000), at);
        }
        ack(&mut tx, 0, &[(1, 2)]);
        assert_eq!(tx.rtt.srtt(), None);
        tx.on_sent(Instant::ZERO, MSS, false, ());
        ack(&mut tx, 0, &[(4, 5)]);
        assert_eq!(tx.rtt.srtt(), Some(Duration::from_millis(10)));
        assert!(
            tx.rtt.rto() < Duration::from_secs(1),
            "not backed off any more"
        );
    }

    #[test]
    fn timeout_takes_all_but_sacked_for_lost_and_backs_off() {
        let mut tx = sender(4);
        ack(&mut tx, 0, &[(1, 2)]);
        tx.on_timeout(Instant::from_millis(1000));
        assert_eq!(tx.cc.cwnd(), MSS);
        // Twice the minimum: what was SACKed measured 10 ms.
        assert_eq!(tx.rto_at, Some(Instant::from_millis(1400)));
        let mut again = Vec::new();
        while let Some((at, sent)) = tx.next_lost() {
            again.push(sent.seq.distance(tx.iss + 1) / MSS);
            tx.on_retransmitted(Instant::from_millis(1000), at);
        }
        assert_eq!(again, [0, 2, 3]);
        let measured = tx.rtt.rttvar();
        ack(&mut tx, 4, &[]);
        assert_eq!(tx.rtt.backoff(), 0);
        assert_eq!(
            tx.rtt.rttvar(),
            measured,
            "no sample from what was sent twice"
        );
    }

    /// RFC 6298 §3: a timestamp that tells the copies apart lifts Karn's restriction, and with it the
    /// backed-off timeout; one that both copies bore does not.
    #[test]
    fn a_timestamp_measures_what_was_sent_twice() {
        for (granularity_ms, measures) in [(256, true), (100_000, false)] {
            let mut tx = sender(1);
            tx.on_timeout(Instant::from_millis(1000));
            tx.on_retransmitted(Instant::from_millis(1000), 0);
            let tick = |at: Instant| at.as_millis() / granularity_ms;
            let echoed = tick(Instant::from_millis(1000));
            let (all, none) = (tx.snd_nxt, SackBlocks::default());
            let now = Instant::from_millis(1030);
            tx.on_ack(now, all, &none, false, |at| tick(at) == echoed, |_| {});
            let srtt = measures.then_some(Duration::from_millis(30));
            assert_eq!(tx.rtt.srtt(), srtt);
            assert_eq!(tx.rtt.rto() < Duration::from_secs(1), measures);
        }
    }

    #[test]
    fn part_of_a_segment_acknowledged_leaves_the_rest() {
        let mut tx = sender(1);
        let first = tx.iss + 1;
        tx.on_ack(
            Instant::ZERO,
            first + 300,
            &SackBlocks::default(),
            false,
            |_| false,
            |_| {},
        );
        assert_eq!(tx.in_flight(), 700);
        tx.on_timeout(Instant::ZERO + Duration::from_secs(1));
        let (_, sent) = tx.next_lost().expect("the rest");
        assert_eq!((sent.seq, sent.len), (first + 300, 700));
    }

    #[test]
    fn window_is_taken_from_the_newest_segment_only() {
        let mut tx = sender(1);
        assert!(tx.update_window(TcpSeq(5), tx.snd_una, 500));
        assert!(!tx.update_window(TcpSeq(4), tx.snd_una, 900));
        assert_eq!(tx.snd_wnd, 500);
        assert!(tx.update_window(TcpSeq(5), tx.snd_una, 0));
        assert_eq!(tx.window_room(), 0);
    }
}
