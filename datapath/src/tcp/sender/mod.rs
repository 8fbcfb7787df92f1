//! The send side of one subflow: what is in flight, what an ACK says of it, what to send again.
//!
//! With SACK, loss is found by time (RACK, RFC 8985), the tail of a flight by a probe (TLP, same);
//! without, by duplicate ACKs (RFC 5681 §3.2, RFC 6582). The retransmission timer is behind both
//! (RFC 6298 §5). What may leave during recovery follows RFC 6937.

mod pacer;
mod prr;
mod rack;
mod scoreboard;
mod tail_probe;

pub use scoreboard::{LostSegment, Sent};

use super::congestion::{Ack, CongestionControl, Sibling};
use super::path_mtu::ProbeFate;
use super::rtt::RttEstimator;
use crate::seq::TcpSeq;
use crate::time::{Duration, Instant};
use crate::wire::tcp::SackBlocks;
use pacer::Pacer;
use prr::Prr;
use rack::Rack;
use scoreboard::{Delivered, Fate, Scoreboard};
use tail_probe::TailProbe;

/// RFC 5681 §3.2, RFC 6675 §2 DupThresh.
const DUP_THRESH: usize = 3;

/// Why `cwnd` is not growing as usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    /// Fast recovery until this is acknowledged (RFC 6582).
    Fast(TcpSeq),
    /// After a timeout; slow start until this is acknowledged.
    Timeout(TcpSeq),
}

/// A reduction of the window that may yet turn out to have had no reason.
#[derive(Clone, Copy, Debug)]
struct Episode {
    /// Nothing before it was sent again meanwhile.
    from: TcpSeq,
    /// Octets sent again whose duplicates the peer has not reported.
    retransmitted: usize,
    /// No acknowledgment has moved forward since it began.
    undecided: bool,
    /// Once recovery is over: with more than this acknowledged it stands.
    until: Option<TcpSeq>,
}

/// What an acceptable ACK did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckOutcome {
    /// Sequence space newly acknowledged.
    pub advanced: usize,
    /// A loss was found, and recovery begins.
    pub loss_found: bool,
    /// The last reduction of the window was taken back.
    pub undone: bool,
    /// A tail loss probe repaired the loss that it was sent for.
    pub probe_repaired: bool,
    /// The peer reported octets that came twice (RFC 2883).
    pub dsack: bool,
}

/// Why the window does what it does, by the names of Linux's `tcpi_ca_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CongestionState {
    Open,
    /// Something was SACKed or repeated, and nothing is taken for lost.
    Disorder,
    /// The window fell for a congestion mark in this round.
    Cwr,
    Recovery,
    Loss,
}

impl CongestionState {
    pub fn name(self) -> &'static str {
        match self {
            CongestionState::Open => "open",
            CongestionState::Disorder => "disorder",
            CongestionState::Cwr => "cwr",
            CongestionState::Recovery => "recovery",
            CongestionState::Loss => "loss",
        }
    }
}

/// Segments from `snd_una` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlightSegments {
    pub unacked: usize,
    pub sacked: usize,
    /// To be sent again.
    pub lost: usize,
    /// Sent again and not heard of since.
    pub retransmitted: usize,
}

/// What the timers short of the retransmission timeout did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerOutcome {
    pub loss_found: bool,
    /// A tail loss probe is to leave.
    pub tail_probe: bool,
}

#[derive(Debug)]
pub struct Sender<M> {
    pub iss: TcpSeq,
    pub snd_una: TcpSeq,
    pub snd_nxt: TcpSeq,
    /// Peer's window in octets, counted from `snd_una`.
    pub snd_wnd: usize,
    /// The largest it has been (RFC 5961 §5.2, MAX.SND.WND).
    snd_wnd_max: usize,
    wl1: TcpSeq,
    wl2: TcpSeq,
    /// Largest text per segment, options not yet taken off.
    pub mss: usize,
    pub rtt: RttEstimator,
    pub cc: Box<dyn CongestionControl>,
    /// For an algorithm that couples subflows; filled before each acknowledgment.
    pub siblings: Vec<Sibling>,
    /// Both sides sent SACK-permitted (RFC 2018 §2).
    sack: bool,
    board: Scoreboard<M>,
    rack: Rack,
    prr: Option<Prr>,
    tail_probe: TailProbe,
    pacer: Pacer,
    /// In a row; only without SACK.
    duplicate_acks: usize,
    /// The first segment of a loss just found goes at once, whatever the congestion window.
    retransmit_now: bool,
    /// A lost segment waits to be cut until there is memory for it.
    starved: bool,
    recovery: Option<Recovery>,
    /// Something sent since fast recovery began was lost as well.
    lost_since: bool,
    episode: Option<Episode>,
    /// The window fell for a congestion mark, and the peer hears of it in what is sent from here on.
    marked_until: Option<TcpSeq>,
    /// The last octet of the MTU probe in flight (RFC 4821 §7.5).
    mtu_probe: Option<TcpSeq>,
    /// What became of the last one, until it is asked for.
    mtu_probe_fate: Option<ProbeFate>,
    /// The most that was in flight in the present round, which ends there.
    pipe_max: usize,
    pipe_max_until: TcpSeq,
    last_sent_at: Instant,
    /// RFC 6298 §5.
    pub rto_at: Option<Instant>,
    /// RFC 8985 §6.2 step 5: then more may have to be taken for lost.
    reorder_at: Option<Instant>,
    /// Segments sent again, ever.
    pub retransmits: u64,
}

impl<M: Copy> Sender<M> {
    /// Octets of memory that notes of the first segment in flight take.
    pub const FIRST_NOTES_BYTES: usize = Scoreboard::<M>::FIRST_BYTES;

    pub fn new(iss: TcpSeq, mss: usize, sack: bool, cc: Box<dyn CongestionControl>) -> Sender<M> {
        Sender {
            iss,
            snd_una: iss,
            snd_nxt: iss,
            snd_wnd: 0,
            snd_wnd_max: 0,
            wl1: TcpSeq::default(),
            wl2: iss,
            mss,
            rtt: RttEstimator::default(),
            cc,
            siblings: Vec::new(),
            sack,
            board: Scoreboard::new(iss),
            rack: Rack::default(),
            prr: None,
            tail_probe: TailProbe::default(),
            pacer: Pacer::default(),
            duplicate_acks: 0,
            retransmit_now: false,
            starved: false,
            recovery: None,
            lost_since: false,
            episode: None,
            marked_until: None,
            mtu_probe: None,
            mtu_probe_fate: None,
            pipe_max: 0,
            pipe_max_until: iss,
            last_sent_at: Instant::ZERO,
            rto_at: None,
            reorder_at: None,
            retransmits: 0,
        }
    }

    /// Our SYN/ACK was acknowledged.
    pub fn on_handshake_done(&mut self, peer_seq: TcpSeq, window_bytes: usize) {
        self.snd_una = self.iss + 1;
        self.snd_nxt = self.iss + 1;
        self.snd_wnd = window_bytes;
        self.snd_wnd_max = self.snd_wnd_max.max(window_bytes);
        self.wl1 = peer_seq;
        self.wl2 = self.snd_una;
        self.rto_at = None;
        self.rtt.on_progress();
    }

    /// The SYN/ACK, before which text may have left (RFC 7413), is acknowledged.
    pub fn on_syn_ack_acked(&mut self, now: Instant) {
        self.rtt.on_progress();
        let outstanding = !self.board.is_empty();
        self.rto_at = outstanding.then(|| now + self.rtt.rto());
    }

    /// No tail loss probe yet.
    pub fn hold_tail_probe(&mut self) {
        self.tail_probe.cancel();
    }

    /// As algorithms of other subflows see this one, once its round trip has been measured.
    pub fn as_sibling(&self) -> Option<Sibling> {
        Some(Sibling {
            cwnd: self.cc.cwnd(),
            ssthresh: self.cc.ssthresh(),
            flight_size: self.snd_nxt.distance(self.snd_una),
            srtt: self.rtt.srtt()?,
            recovering: matches!(self.recovery, Some(Recovery::Fast(_))),
        })
    }

    /// Octets thought to be in the network (RFC 6675 §2). Without SACK every duplicate ACK stands
    /// for a segment that has left it.
    pub fn in_flight(&self) -> usize {
        self.board.pipe - (self.duplicate_acks * self.mss).min(self.board.pipe)
    }

    pub fn flight_is_empty(&self) -> bool {
        self.board.is_empty()
    }

    pub fn flight(&self) -> impl Iterator<Item = &Sent<M>> {
        self.board.iter()
    }

    /// Octets of memory that hold what is noted of the segments in flight.
    pub fn notes_bytes(&self) -> usize {
        self.board.held_bytes()
    }

    /// By how many octets that grows with the next segment of text.
    pub fn notes_growth_bytes(&self) -> usize {
        self.board.growth_bytes()
    }

    /// Gives back memory that is hardly used.
    pub fn shrink(&mut self) {
        self.board.shrink();
    }

    pub fn congestion_state(&self) -> CongestionState {
        match self.recovery {
            Some(Recovery::Timeout(_)) => CongestionState::Loss,
            Some(Recovery::Fast(_)) => CongestionState::Recovery,
            None if self.fell_for_mark() => CongestionState::Cwr,
            None if self.board.sacked_segments + self.duplicate_acks > 0 => {
                CongestionState::Disorder
            }
            None => CongestionState::Open,
        }
    }

    /// Looks at every segment in flight.
    pub fn flight_segments(&self) -> FlightSegments {
        let again = |sent: &&Sent<M>| sent.is_retransmitted() && sent.fate == Fate::Outstanding;
        FlightSegments {
            unacked: self.board.len(),
            sacked: self.board.sacked_segments,
            lost: self.board.lost_segments,
            retransmitted: self.board.iter().filter(again).count(),
        }
    }

    /// How long ago the oldest segment in flight left last.
    pub fn head_age(&self, now: Instant) -> Option<Duration> {
        self.board.front().map(|sent| now.since(sent.sent_at))
    }

    /// Octets of new text that the peer's window has room for.
    pub fn window_room(&self) -> usize {
        self.snd_wnd
            .saturating_sub(self.snd_nxt.distance(self.snd_una))
    }

    /// Whether congestion control and pace let another segment go.
    pub fn cwnd_room(&self) -> bool {
        self.board.pipe == 0
            || self.tail_probe.pending
            || (self.pacer.held_until.is_none() && self.in_flight() + self.mss <= self.window())
    }

    /// Something waits to be sent again and may go now.
    // RFC 5681 §3.2 step 3, RFC 6582 §3.2 step 5, RFC 6675 §5 (4.3): the first retransmission does
    // not wait for the halved window to open, which without SACK only its own ACK would do.
    pub fn retransmission_ready(&self) -> bool {
        self.board.lost_segments > 0 && !self.starved && (self.retransmit_now || self.cwnd_room())
    }

    pub fn has_lost(&self) -> bool {
        self.board.lost_segments > 0
    }

    /// RFC 9293 §3.10.7.4: whether `ack` is neither too old nor for what was never sent
    /// (RFC 5961 §5.2 bounds the old side by the largest window).
    pub fn ack_acceptable(&self, ack: TcpSeq) -> bool {
        ack.at_or_before(self.snd_nxt) && ack.at_or_after(self.snd_una - self.snd_wnd_max)
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
        self.snd_wnd_max = self.snd_wnd_max.max(window_bytes);
        self.wl1 = seq;
        self.wl2 = ack;
        changed
    }

    /// RFC 5927 §4.1: whether `seq` has been sent and is not acknowledged.
    pub fn is_in_flight(&self, seq: TcpSeq) -> bool {
        seq.at_or_after(self.snd_una) && seq.before(self.snd_nxt)
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
        self.starved = false;
        let mut delivered = Delivered::new(now, self.rtt.min_rtt());
        let outstanding = self.snd_nxt.distance(self.snd_una);
        let dsack = reported_duplicate(ack, sack);
        outcome.dsack = dsack.is_some();
        if ack.after(self.snd_una) {
            outcome.advanced = ack.distance(self.snd_una);
            self.board
                .acknowledge(ack, &mut delivered, &echoes, &mut on_acked);
            self.snd_wnd = self.snd_wnd.saturating_sub(outcome.advanced);
            self.snd_una = ack;
            self.rtt.on_progress();
        }
        if self.sack {
            self.take_sack(sack, &mut delivered, &echoes);
        }
        if let Some(sent_at) = delivered.measures {
            self.rtt.on_sample(now, now.since(sent_at));
            self.tail_probe.on_measured();
        }
        self.rack.on_delivered(now, &delivered);
        if dsack.is_some() {
            self.rack.on_dsack(self.snd_nxt);
        }
        self.rack.on_advance(self.snd_una);

        outcome.undone = self.is_spurious(outcome.advanced, &delivered, dsack);
        if outcome.undone {
            self.undo();
        }
        let repeats = outcome.advanced == 0 && may_be_duplicate && !self.board.is_empty();
        if self
            .tail_probe
            .on_ack(ack, dsack, repeats && sack.is_empty())
        {
            // RFC 8985 §7.4: what the probe repaired was a loss all the same.
            outcome.probe_repaired = true;
            if self.recovery.is_none() && !self.fell_for_mark() {
                self.cc.on_congestion(now, self.flight_size(outstanding));
                // RFC 3168 §6.1.2: a mark in this window counts no more.
                self.marked_until = Some(self.snd_nxt);
                // Not to be taken back with a reduction before it.
                self.episode = None;
            }
        }
        let delivered_bytes = if self.sack {
            delivered.bytes
        } else {
            self.count_duplicates(outcome.advanced, repeats)
        };
        if outcome.advanced > 0 {
            self.on_advance();
            // RFC 3168 §6.1.2: no growth for an echo.
            let repairs = matches!(self.recovery, Some(Recovery::Fast(_)));
            if !repairs && !self.fell_for_mark() && self.was_limited() {
                self.cc.on_ack(&Ack {
                    now,
                    acked_bytes: outcome.advanced,
                    snd_una: self.snd_una,
                    snd_nxt: self.snd_nxt,
                    rtt: delivered.measures.map(|at| now.since(at)),
                    srtt: self.rtt.srtt(),
                    min_rtt: self.rtt.min_rtt(),
                    siblings: &self.siblings,
                });
            }
            self.rto_at = (!self.board.is_empty()).then(|| now + self.rtt.rto());
        }
        let lost_before = self.board.lost_segments;
        outcome.loss_found = self.find_losses(now, outstanding);
        let pipe = self.in_flight();
        if let Some(prr) = &mut self.prr {
            let safe = outcome.advanced > 0 && self.board.lost_segments <= lost_before;
            prr.on_ack(delivered_bytes, pipe, self.mss, safe);
        }
        if outcome.advanced > 0 || delivered.sacked || outcome.undone {
            self.schedule_tail_probe(now);
        }
        outcome
    }

    /// The retransmission timer expired (RFC 6298 §5.4 to §5.6, RFC 5681 §3.1).
    pub fn on_timeout(&mut self, now: Instant) {
        let first = self.rtt.backoff() == 0;
        let flight_size = self.flight_size(self.snd_nxt.distance(self.snd_una));
        if let Some(last) = self.mtu_probe.take() {
            let head = self.board.front();
            self.mtu_probe_fate = Some(if head.is_some_and(|sent| sent.end() == last + 1) {
                ProbeFate::TimedOut
            } else {
                ProbeFate::Inconclusive
            });
        }
        self.rtt.on_timeout();
        self.cc.on_timeout(now, flight_size, first);
        // RFC 2018 §8: a head that was SACKed and is not acknowledged means the peer dropped it.
        if self.board.front().is_some_and(|s| s.fate == Fate::Sacked) {
            self.board.forget_sacked();
        }
        // RFC 8985 §6.3: the head, and what is overdue; without SACK nothing tells more than that
        // all of it is.
        let reo_wnd = self.reo_wnd();
        let (rack, sack) = (&self.rack, self.sack);
        self.board.mark_lost_if(|at, sent| {
            !sack || at == 0 || rack.is_overdue(now, sent.sent_at, reo_wnd)
        });
        self.duplicate_acks = 0;
        self.retransmit_now = true;
        self.starved = false;
        self.recovery = Some(Recovery::Timeout(self.snd_nxt));
        self.lost_since = false;
        self.prr = None;
        self.tail_probe.cancel();
        self.reorder_at = None;
        self.pacer.held_until = None;
        if first || self.episode.is_none() {
            self.begin_episode();
        }
        self.rto_at = Some(now + self.rtt.rto());
    }

    /// The retransmission timer is due. A tail loss probe takes its place (RFC 8985 §7.2).
    pub fn timeout_due(&self, now: Instant) -> bool {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        due(self.rto_at) && !due(self.tail_probe.at)
    }

    /// Any timer but the retransmission timer is due.
    pub fn on_timers(&mut self, now: Instant) -> TimerOutcome {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut outcome = TimerOutcome::default();
        if due(self.pacer.held_until) {
            self.pacer.held_until = None;
        }
        if due(self.reorder_at) {
            let outstanding = self.snd_nxt.distance(self.snd_una);
            outcome.loss_found = self.find_losses(now, outstanding);
            self.narrow_repair();
        }
        if due(self.tail_probe.at) {
            self.tail_probe.at = None;
            self.tail_probe.pending = !self.board.is_empty() && self.recovery.is_none();
            outcome.tail_probe = self.tail_probe.pending;
            // RFC 8985 §7.3: whether the probe can leave or not, the timeout is behind it.
            if !self.board.is_empty() {
                self.rto_at = Some(now + self.rtt.rto());
            }
        }
        outcome
    }

    /// The earliest of all timers.
    pub fn next_deadline(&self) -> Option<Instant> {
        Instant::earliest([
            self.rto_at,
            self.reorder_at,
            self.tail_probe.at,
            self.pacer.held_until,
        ])
    }

    /// A new segment left, at `snd_nxt`.
    pub fn on_sent(&mut self, now: Instant, len: usize, fin: bool, mark: M) {
        if self.board.is_empty() && now.since(self.last_sent_at) > self.rtt.rto() {
            self.cc.on_idle();
        }
        let sent = Sent {
            seq: self.snd_nxt,
            len,
            fin,
            mark,
            sent_at: now,
            previous_at: None,
            fate: Fate::Outstanding,
        };
        self.snd_nxt = sent.end();
        self.board.push(sent);
        if self.board.pipe > self.pipe_max || self.snd_una.at_or_after(self.pipe_max_until) {
            self.pipe_max = self.board.pipe;
            self.pipe_max_until = self.snd_nxt;
        }
        let probe = self.tail_probe.pending;
        if probe {
            self.tail_probe.on_sent(self.snd_nxt, false);
        }
        self.after_sent(now, sent.space(), probe || self.rto_at.is_none());
        if !probe {
            self.schedule_tail_probe(now);
        }
    }

    /// The first segment to send again, with at most `text_max` octets of text.
    /// `None` where it has to be cut, that takes memory, and there is none to be had (`may_grow`): then
    /// nothing is sent again before the next acknowledgment.
    pub fn next_lost(&mut self, text_max: usize, may_grow: bool) -> Option<LostSegment<M>> {
        let lost = self.board.first_lost(text_max, may_grow);
        self.starved = lost.is_none();
        lost
    }

    /// The last segment in flight, if it is to leave again as a tail loss probe: nothing new could
    /// (RFC 8985 §7.3).
    pub fn tail_to_probe(&self) -> Option<(usize, Sent<M>)> {
        let last = self.board.back().filter(|_| self.tail_probe.pending)?;
        // An MTU probe may be more than the path takes: another copy of it asks after nothing.
        let asks = last.fate == Fate::Outstanding && self.mtu_probe != Some(last.end() - 1);
        asks.then(|| (self.board.len() - 1, *last))
    }

    /// Segment `at` left again: lost, or a probe.
    pub fn on_retransmitted(&mut self, now: Instant, at: usize) {
        let Some(sent) = self.board.at(at) else {
            return;
        };
        let space = sent.space();
        self.board.retransmitted(now, at);
        self.retransmit_now = false;
        self.retransmits += 1;
        let probe = self.tail_probe.pending;
        if probe {
            self.tail_probe.on_sent(self.snd_nxt, true);
        } else if let Some(episode) = &mut self.episode {
            episode.retransmitted += space;
        }
        self.after_sent(now, space, probe || at == 0 || self.rto_at.is_none());
    }

    /// The peer echoes a congestion mark (RFC 3168 §6.1.2): once per window that counts as a loss.
    /// `advanced`: octets that the same ACK acknowledged; the mark met them as well. Returns whether
    /// the window fell, which the peer is to be told.
    pub fn on_congestion_echo(&mut self, now: Instant, advanced: usize) -> bool {
        if self.recovery.is_some() {
            // The losses may turn out to be none; a mark of the same window does not.
            self.episode = None;
            return false;
        }
        if self.marked_until.is_some() {
            return false;
        }
        let outstanding = self.snd_nxt.distance(self.snd_una) + advanced;
        self.cc.on_congestion(now, self.flight_size(outstanding));
        self.marked_until = Some(self.snd_nxt);
        // A loss before that may turn out to be none; this fall stands.
        self.episode = None;
        true
    }

    /// Within the window that fell for a mark.
    fn fell_for_mark(&self) -> bool {
        self.marked_until
            .is_some_and(|end| self.snd_una.before(end))
    }

    /// The path takes `mss` octets per segment now, of which `text_max` are text. What is longer and
    /// in flight will not arrive; that says nothing of congestion (RFC 1191 §6.4).
    pub fn set_mss(&mut self, mss: usize, text_max: usize) {
        if mss == self.mss {
            return;
        }
        let shrinks = mss < self.mss;
        self.mss = mss;
        self.cc.set_mss(mss);
        if !shrinks {
            return;
        }
        self.mtu_probe = None;
        let lost_before = self.board.lost_segments;
        self.board.mark_lost_if(|_, sent| sent.len > text_max);
        if self.board.lost_segments > lost_before && self.recovery.is_none() {
            self.repair_without_reduction();
        }
        self.retransmit_now |= self.has_lost();
        self.narrow_repair();
    }

    /// Losses that no acknowledgment brought leave no room for more than is in flight (RFC 6937).
    fn narrow_repair(&mut self) {
        let pipe = self.in_flight();
        if let Some(prr) = &mut self.prr {
            prr.narrow(pipe);
        }
    }

    /// The segment that left last is an MTU probe: its loss alone is no sign of congestion.
    pub fn on_mtu_probe_sent(&mut self) {
        self.mtu_probe = self.board.back().map(|sent| sent.end() - 1);
    }

    /// RFC 4821 §7.4: nothing is lost or being repaired, so that the loss of an MTU probe can be told
    /// from other losses.
    pub fn may_probe_mtu(&self) -> bool {
        self.recovery.is_none()
            && self.board.lost_segments == 0
            && self.board.sacked_segments == 0
            && self.duplicate_acks == 0
            && !self.tail_probe.pending
    }

    /// What became of the MTU probe, once after it is known.
    pub fn take_mtu_probe_fate(&mut self) -> Option<ProbeFate> {
        self.mtu_probe_fate.take()
    }

    /// FlightSize (RFC 5681 §2) of what was `outstanding`: octets sent and not acknowledged, SACKed
    /// ones included, without what limited transmit added to the window (§3.2 step 2).
    fn flight_size(&self, outstanding: usize) -> usize {
        outstanding.min(self.cc.cwnd())
    }

    /// Octets that may be in flight.
    pub fn window(&self) -> usize {
        self.prr.map_or(self.cc.cwnd(), |prr| prr.window())
    }

    /// The window was in use: a sender that does not fill it does not know how much the path takes
    /// (RFC 7661 §1). In slow start half of it is enough: it doubles with the next round.
    fn was_limited(&self) -> bool {
        let cwnd = self.cc.cwnd();
        if cwnd < self.cc.ssthresh() {
            cwnd < 2 * self.pipe_max
        } else {
            cwnd < self.pipe_max + 2 * self.mss
        }
    }

    fn take_sack(
        &mut self,
        sack: &SackBlocks,
        delivered: &mut Delivered,
        echoes: &impl Fn(Instant) -> bool,
    ) {
        let mut blocks = *sack;
        let blocks = blocks.as_mut_slice();
        blocks.sort_unstable_by_key(|block| block.0.offset_from(self.snd_una));
        for &(left, right) in &*blocks {
            // Blocks below snd_una report duplicates (RFC 2883).
            if left.before(self.snd_una) || right.after(self.snd_nxt) || !left.before(right) {
                continue;
            }
            self.board.sack((left, right), delivered, echoes);
        }
    }

    /// Without SACK: counts what repeats, and returns how many octets seem to have been delivered
    /// (RFC 6937 §2, DeliveredData).
    fn count_duplicates(&mut self, advanced: usize, repeats: bool) -> usize {
        if repeats {
            self.duplicate_acks += 1;
            return self.mss;
        }
        if advanced == 0 {
            return 0;
        }
        let counted = self.duplicate_acks * self.mss;
        // A partial acknowledgment covers the hole and what duplicates stood for.
        self.duplicate_acks = match self.recovery {
            Some(Recovery::Fast(_)) => self
                .duplicate_acks
                .saturating_sub((advanced / self.mss).saturating_sub(1)),
            _ => 0,
        };
        advanced.saturating_sub(counted)
    }

    fn on_advance(&mut self) {
        match self.recovery {
            Some(Recovery::Fast(recover) | Recovery::Timeout(recover))
                if self.snd_una.at_or_after(recover) =>
            {
                self.end_recovery();
                self.marked_until = Some(recover);
            }
            // RFC 6582 §3.2 step 5: without SACK a partial ACK names the next hole.
            Some(Recovery::Fast(_)) if !self.sack => {
                self.board.mark_lost(0);
                self.retransmit_now = true;
            }
            _ => {}
        }
        // RFC 3168 §6.1.3: echoes go on until the peer has what bears our CWR.
        if self.marked_until.is_some_and(|end| self.snd_una.after(end)) {
            self.marked_until = None;
        }
        if let Some(Episode {
            until: Some(until), ..
        }) = self.episode
            && self.snd_una.after(until)
        {
            self.episode = None;
        }
    }

    fn end_recovery(&mut self) {
        self.recovery = None;
        self.prr = None;
        self.duplicate_acks = 0;
        self.rack.on_recovery_end();
        if let Some(episode) = &mut self.episode {
            // Reports of duplicates come a round trip after what was sent again.
            episode.until = Some(self.snd_nxt);
        }
    }

    /// Takes for lost what enough or late enough segments have overtaken, and enters recovery.
    /// `outstanding`: octets sent and not acknowledged before this ACK.
    fn find_losses(&mut self, now: Instant, outstanding: usize) -> bool {
        let lost_before = self.board.lost_segments;
        if self.sack {
            let reo_wnd = self.reo_wnd();
            self.reorder_at = self.rack.detect_losses(now, reo_wnd, &mut self.board);
        } else if self.duplicate_acks >= DUP_THRESH && self.recovery.is_none() {
            self.board.mark_lost(0);
        }
        let probe_alone = self.follow_mtu_probe() == Some(ProbeFate::Lost);
        let more = self.board.lost_segments > lost_before;
        if let Some(Recovery::Fast(recover)) = self.recovery {
            // RFC 6675 §5: what was sent since recovery began and is lost as well is the next one's.
            self.lost_since |= more && self.board.lost_to.after(recover);
        }
        let since = self.recovery.is_none()
            && std::mem::take(&mut self.lost_since)
            && self.board.lost_to.after(self.snd_una);
        let found = (more || since) && self.recovery.is_none();
        if found && probe_alone {
            self.repair_without_reduction();
            self.retransmit_now = true;
            return false;
        }
        if found {
            self.recovery = Some(Recovery::Fast(self.snd_nxt));
            // RFC 3168 §6.1.2: marks and losses of one window count once, and a fall for a mark is
            // not taken back.
            if self.fell_for_mark() {
                self.episode = None;
            } else {
                self.cc.on_congestion(now, self.flight_size(outstanding));
                self.begin_episode();
            }
            let sent = self.snd_nxt.distance(self.snd_una);
            self.prr = Some(Prr::new(sent, self.cc.cwnd(), self.in_flight()));
            self.retransmit_now = true;
            self.tail_probe.cancel();
        }
        found
    }

    /// RFC 4821 §7.5: what is known of the MTU probe now.
    fn follow_mtu_probe(&mut self) -> Option<ProbeFate> {
        let fate = match self.board.fate(self.mtu_probe?) {
            None | Some(Fate::Sacked) => ProbeFate::Arrived,
            Some(Fate::Outstanding) => return None,
            Some(Fate::Lost) if self.board.lost_segments == 1 => ProbeFate::Lost,
            Some(Fate::Lost) => ProbeFate::Inconclusive,
        };
        self.mtu_probe = None;
        self.mtu_probe_fate = Some(fate);
        Some(fate)
    }

    /// Enters recovery from losses for which the window does not fall: segments were too big for the
    /// path. What is acknowledged meanwhile behind the holes is no news of congestion.
    fn repair_without_reduction(&mut self) {
        // What is lost for its size is lost, whatever turns out of an earlier reduction.
        self.episode = None;
        self.recovery = Some(Recovery::Fast(self.snd_nxt));
        self.prr = None;
        self.tail_probe.cancel();
    }

    fn reo_wnd(&self) -> Duration {
        let recovering = self.recovery.is_some();
        self.rack
            .reo_wnd(&self.rtt, recovering, self.board.sacked_segments)
    }

    /// Goes on with what the one before has not accounted for.
    fn begin_episode(&mut self) {
        let before = self.episode;
        self.episode = Some(Episode {
            from: before.map_or(self.snd_una, |episode| episode.from),
            retransmitted: before.map_or(0, |episode| episode.retransmitted),
            undecided: true,
            until: None,
        });
    }

    /// The last reduction of the window had no reason: everything sent again was there already.
    fn is_spurious(
        &mut self,
        advanced: usize,
        delivered: &Delivered,
        dsack: Option<(TcpSeq, TcpSeq)>,
    ) -> bool {
        let all_acked = self.board.is_empty();
        let Some(episode) = &mut self.episode else {
            return false;
        };
        if episode.retransmitted == 0 {
            return false;
        }
        // RFC 3522 §3.2: the first acknowledgment to move forward is for the first copy, says its
        // timestamp.
        let undecided = episode.undecided;
        episode.undecided &= advanced == 0;
        if undecided && advanced > 0 && delivered.first_copy {
            return true;
        }
        // RFC 5682 §3.1 step 3 b, without its step 2: after a timeout something arrives that was sent
        // only once, before it, while other octets are still missing. Without SACK that may have been
        // there all the time.
        if let Some(Recovery::Timeout(recover)) = self.recovery
            && self.sack
            && undecided
            && !all_acked
            && delivered
                .original
                .is_some_and(|end| end.at_or_before(recover))
        {
            return true;
        }
        // RFC 3708 §3: all that was sent again came twice, whole: a box may have cut a segment of which
        // one part never arrives.
        if let Some((left, right)) = dsack
            && right.after(episode.from)
            && self.board.was_sent_again(left)
            && !self.tail_probe.repeated((left, right))
        {
            let reported = right.distance(left.min(right));
            episode.retransmitted = episode.retransmitted.saturating_sub(reported);
            return episode.retransmitted == 0;
        }
        false
    }

    fn undo(&mut self) {
        if matches!(self.recovery, Some(Recovery::Timeout(_))) {
            self.rtt.on_spurious_timeout();
        }
        if self.recovery.is_some() {
            self.end_recovery();
        }
        self.episode = None;
        self.lost_since = false;
        self.board.unmark_lost();
        self.retransmit_now = false;
        self.cc.undo();
    }

    fn after_sent(&mut self, now: Instant, octets: usize, arm: bool) {
        self.last_sent_at = now;
        if let Some(prr) = &mut self.prr {
            prr.on_sent(octets);
        }
        if let Some(srtt) = self.rtt.srtt() {
            // Not what recovery leaves of it, which may be nothing at all.
            let window = self.cc.cwnd().max(self.board.pipe);
            let slow_start = self.cc.cwnd() < self.cc.ssthresh();
            self.pacer
                .on_sent(now, octets, window, srtt, self.mss, slow_start);
        }
        if arm {
            self.rto_at = Some(now + self.rtt.rto());
        }
    }

    /// RFC 8985 §7.2: a probe asks after the tail of a flight of which nothing is heard, unless
    /// losses are being found already.
    fn schedule_tail_probe(&mut self, now: Instant) {
        let wanted = self.sack
            && !self.board.is_empty()
            && self.recovery.is_none()
            && self.board.sacked_segments == 0
            && self.rtt.backoff() == 0;
        let one = self.board.len() == 1;
        self.tail_probe
            .schedule(now, wanted, one, self.rtt.srtt(), self.rto_at);
    }
}

/// RFC 2883 §4: the first block reports a duplicate if it lies below the acknowledgment or inside
/// the second block.
fn reported_duplicate(ack: TcpSeq, sack: &SackBlocks) -> Option<(TcpSeq, TcpSeq)> {
    let (first, others) = sack.as_slice().split_first()?;
    let inside = others
        .first()
        .is_some_and(|second| first.0.at_or_after(second.0) && first.1.at_or_before(second.1));
    (first.1.at_or_before(ack) || inside).then_some(*first)
}

#[cfg(test)]
mod tests;
