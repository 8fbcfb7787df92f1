//! Ends: FIN and DATA_FIN, RST and MP_FASTCLOSE, and what happens to the data of a lost subflow.

use super::connection::{Connection, End, Mode, Retired, TimeWaitState};
use super::subflow::{Reset, Subflow};
use crate::metrics::Metrics;
use crate::tcp::State;
use crate::tcp::rtt::RTO_MAX;
use crate::time::{Duration, Instant};
use crate::wire::frame::Segment;
use crate::wire::mptcp::MpTcprst;
use crate::wire::tcp::TcpFlags;

/// MP_TCPRST reasons (RFC 8684 §3.6).
pub const RST_UNSPECIFIED: u8 = 0x00;
pub const RST_MPTCP_SPECIFIC: u8 = 0x01;
pub const RST_NO_RESOURCES: u8 = 0x02;
pub const RST_PROHIBITED: u8 = 0x03;
pub const RST_PERFORMANCE: u8 = 0x05;
pub const RST_MIDDLEBOX: u8 = 0x06;

/// Retransmissions of an MP_FASTCLOSE that is not answered (RFC 8684 §3.5: RECOMMENDED).
const FASTCLOSE_RETRIES: u32 = 3;

/// Timeouts in a row after which a subflow may no longer hold the send buffer.
const PINNING_BACKOFF: u32 = 2;
/// And after so long without a sound one whose timeout is that much backed off, although it gets on
/// now and then.
const PINNING_AGE: Duration = Duration::from_secs(1);

/// Which DATA_FIN came first: whose place it is to bear TIME-WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedFirst {
    Peer,
    We,
    /// They crossed: ours was not acknowledged when the peer's came.
    Both,
}

/// Our FINs on the subflows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fins {
    /// A stream is still open.
    NotDue,
    /// Until then the peer's are waited for.
    HeldUntil(Instant),
    Due,
}

impl Fins {
    pub fn held_until(self) -> Option<Instant> {
        match self {
            Fins::HeldUntil(at) => Some(at),
            _ => None,
        }
    }
}

/// FASTCLOSE_WAIT (RFC 8684 §3.5): MP_FASTCLOSE leaves on an ACK of one subflow, and a RST is to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastcloseWait {
    pub subflow: usize,
    /// It is to leave now.
    pub due: bool,
    retransmissions: u32,
    pub retry_at: Option<Instant>,
}

impl Connection {
    /// The app writes no more.
    pub fn close_write(&mut self) {
        self.snd.fin_queued = true;
    }

    /// The app wants no more of it. Of the two ways of RFC 8684 §3.5 this is option A, MP_FASTCLOSE on
    /// an ACK of one subflow that is repeated until the peer answers: a RST that is lost, or that comes
    /// ahead of text that was lost, would leave the peer to find a plain RST on every path. The RSTs on
    /// the other subflows carry MP_FASTCLOSE as well, so that none comes before the news. TCP has its RST.
    pub fn abort(&mut self, end: End, metrics: &mut Metrics) {
        metrics.app_aborts += 1;
        let carrier = match self.mode {
            Mode::Mptcp if !self.streams_closed() => self.signal_subflow(),
            _ => None,
        };
        self.abort_at_once(end);
        if let Some(subflow) = carrier {
            self.subflows[subflow].reset = None;
            self.fastclose = Some(FastcloseWait {
                subflow,
                due: true,
                retransmissions: 0,
                retry_at: None,
            });
            // Nobody waits for what they hold.
            self.snd.discard();
            self.rcv.discard();
        }
    }

    /// Option R of RFC 8684 §3.5, for want of time to wait for an answer: MP_FASTCLOSE on a RST of every
    /// subflow. TCP has its RST.
    pub fn abort_at_once(&mut self, end: End) {
        // Nobody will read what is left of a connection that has otherwise finished.
        if self.end.is_none() || self.end == Some(End::Finished) {
            self.end = Some(end);
        }
        let fastclose_key = (self.mode == Mode::Mptcp).then_some(self.remote_key);
        self.reset_all(Reset {
            fastclose_key,
            ..Reset::default()
        });
    }

    /// MP_FASTCLOSE has left on an ACK.
    pub(super) fn on_fastclose_sent(&mut self, now: Instant) {
        if let Some(wait) = &mut self.fastclose {
            let rto = self.subflows[wait.subflow].tx.rtt.rto();
            wait.due = false;
            let backed_off = rto.saturating_mul(1 << wait.retransmissions);
            wait.retry_at = Some(now + backed_off.min(RTO_MAX));
        }
    }

    /// RFC 8684 §3.5: repeated after an RTO, three times, and then a RST ends it that carries it, too.
    pub(super) fn on_fastclose_timeout(&mut self) {
        let Some(wait) = &mut self.fastclose else {
            return;
        };
        wait.retry_at = None;
        if wait.retransmissions < FASTCLOSE_RETRIES {
            wait.retransmissions += 1;
            wait.due = true;
        } else {
            self.fastclose = None;
            self.abort_at_once(End::Aborted);
        }
    }

    /// A segment that comes in FASTCLOSE_WAIT (RFC 8684 §3.5): a RST ends it; so does an MP_FASTCLOSE of
    /// the peer's, which is answered with a RST. Whatever else was on its way is no news any more.
    pub(super) fn on_fastclose_answer(
        &mut self,
        index: usize,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) {
        let header = &segment.tcp;
        let theirs = self.is_fastclose(segment);
        let rx = &self.subflows[index].rx;
        if header.flags.contains(TcpFlags::RST) {
            // Behind text that is not taken in here, its number need not be the next.
            if rx.in_window(header.seq) {
                count_reset(segment, metrics);
                metrics.mp_fastclose_rx += u64::from(theirs);
                self.drop_subflow(index, End::Aborted);
            }
        } else if theirs && rx.acceptable(header.seq, segment.segment_len()) {
            metrics.mp_fastclose_rx += 1;
            self.fastclose = None;
            self.subflows[index].reset = Some(Reset::with_reason(RST_UNSPECIFIED));
        }
    }

    /// MP_FASTCLOSE with our key. With another one it says nothing (RFC 8684 §3.5).
    pub(super) fn is_fastclose(&self, segment: &Segment<'_>) -> bool {
        let fastclose = segment.tcp.options.mptcp.fastclose;
        self.mode == Mode::Mptcp && fastclose.is_some_and(|f| f.receiver_key == self.local_key)
    }

    /// Ends every subflow with a RST that says `reset`.
    pub fn reset_all(&mut self, reset: Reset) {
        for (_, subflow) in &mut self.subflows {
            subflow.reset.get_or_insert(reset);
        }
    }

    /// Forgets all subflows of a connection that has none but in their handshakes, without a RST: what
    /// comes on them later is answered with one, as anything unknown is.
    pub fn drop_handshakes(&mut self) {
        while let Some((index, _)) = self.subflows.iter().next() {
            self.retire(index, None);
        }
    }

    /// Ends one subflow with a RST and MP_TCPRST (RFC 8684 §3.6).
    pub fn reset_subflow(&mut self, index: usize, reason: u8) {
        let reason = (self.mode == Mode::Mptcp).then_some(MpTcprst {
            transient: false,
            reason,
        });
        if let Some(subflow) = self.subflows.get_mut(index) {
            subflow.reset.get_or_insert(Reset {
                reason,
                ..Reset::default()
            });
        }
    }

    /// A subflow is over, without TIME-WAIT. `end` is how the connection ended if this was its
    /// last, nothing else ended it and no other may join.
    pub fn drop_subflow(&mut self, index: usize, end: End) {
        self.retire(index, None);
        if self.subflows.is_empty() && !self.outlives_subflows() {
            self.end.get_or_insert(if self.streams_closed() {
                End::Finished
            } else {
                end
            });
        }
    }

    /// RFC 9293 §3.10.7.4: our FIN is acknowledged and the peer's has come.
    pub fn enter_time_wait(&mut self, index: usize) {
        let subflow = &self.subflows[index];
        let state = TimeWaitState {
            snd_nxt: subflow.tx.snd_nxt,
            rcv_nxt: subflow.rx.rcv_nxt,
            ts: subflow.ts,
            data_ack: (self.mode == Mode::Mptcp).then_some(self.rcv.rcv_nxt),
        };
        self.retire(index, Some(state));
        if self.subflows.is_empty() && !self.outlives_subflows() {
            self.end.get_or_insert(if self.streams_closed() {
                End::Finished
            } else {
                End::PeerAborted
            });
        }
    }

    fn retire(&mut self, index: usize, time_wait: Option<TimeWaitState>) {
        if let Some(subflow) = self.subflows.try_remove(index) {
            if subflow.is_being_opened() {
                self.addresses.on_unreachable();
            }
            self.retired.push(Retired {
                local: subflow.local,
                remote: subflow.remote,
                failed: subflow.state == State::Established
                    && !subflow.fin_wanted
                    && !subflow.barred,
                time_wait,
            });
        }
    }

    /// Everything outstanding on a subflow and not acknowledged at data level may go out again on
    /// another (RFC 8684 §3.3.6).
    pub fn reinject_flight(&mut self, index: usize) {
        if self.mode != Mode::Mptcp {
            return;
        }
        let Some(subflow) = self.subflows.get(index) else {
            return;
        };
        for sent in subflow.tx.flight().filter(|s| s.len > 0) {
            let dsn = sent.mark.dsn + sent.seq.distance(sent.mark.seq);
            self.snd.mark_reinject(dsn, sent.len);
        }
    }

    /// The peer's FIN on a subflow, everything before it received.
    pub fn on_subflow_fin(&mut self, index: usize) {
        if self.mode == Mode::Tcp {
            let dsn = self.rcv.rcv_nxt;
            self.rcv.announce_fin(dsn);
            if self.rcv.take_fin() {
                self.events.readable = true;
            }
        }
        let subflow = &mut self.subflows[index];
        match subflow.state {
            State::Established => subflow.state = State::CloseWait,
            // Our FIN is out: acknowledged or not yet.
            State::FinWait1 => subflow.state = State::Closing,
            State::FinWait2 => {
                subflow.rx.ack_now = true;
                subflow.state = State::Closing;
            }
            _ => {}
        }
        let others_open = self
            .subflows
            .iter()
            .any(|(i, s)| i != index && s.state == State::Established && s.reset.is_none());
        if self.mode == Mode::Mptcp && others_open {
            // RFC 8684 §3.3.3: a FIN closes this subflow only; answered at once, as the
            // connection lives on others. On its last one we go on sending (Appendix D).
            self.subflows[index].fin_wanted = true;
        }
    }

    /// After anything that may have ended a stream: decides which subflows are to send their FIN.
    pub fn after_progress(&mut self, now: Instant) {
        if self.fastclose.is_some() {
            return;
        }
        if self.rcv.fin_taken() && self.closed_first.is_none() {
            self.closed_first = Some(match self.snd.fin_sent() {
                false => ClosedFirst::Peer,
                true if self.snd.fin_acked() => ClosedFirst::We,
                true => ClosedFirst::Both,
            });
        }
        if self.mode == Mode::Tcp {
            self.abandon_openings();
        }
        match self.mode {
            Mode::Tcp if self.streams_closed() => {
                self.end.get_or_insert(End::Finished);
                self.give_up_at
                    .get_or_insert(now + self.settings.closing.fin_timeout);
            }
            Mode::Mptcp if self.streams_closed() => self.end_subflows(now),
            Mode::Mptcp if self.end.is_none() => self.watch_subflows(now),
            _ => {}
        }
        let lowest = self
            .subflows
            .iter()
            .filter_map(|(_, s)| s.lowest_outstanding())
            .reduce(|a, b| a.min(b));
        self.snd.release(lowest);
        if self.snd.is_pinned()
            && let Some(index) = self.pinning_subflow(now)
        {
            let reason = MpTcprst {
                transient: true,
                reason: RST_PERFORMANCE,
            };
            self.subflows[index].reset = Some(Reset {
                reason: Some(reason),
                ..Reset::default()
            });
        }
    }

    /// Both DATA_FINs are acknowledged: every subflow is to end with a FIN (RFC 8684 §3.3.3). Ours
    /// waits a while for the peer's, so that TIME-WAIT is the peer's.
    fn end_subflows(&mut self, now: Instant) {
        self.end.get_or_insert(End::Finished);
        let closing = self.settings.closing;
        if self.fins == Fins::NotDue {
            let hold = match self.closed_first {
                Some(ClosedFirst::Peer) if closing.passive => Some(closing.hold_peer_first),
                Some(ClosedFirst::We) if closing.passive => Some(closing.hold_we_first),
                _ => None,
            };
            match hold {
                Some(hold) => {
                    self.fins = Fins::HeldUntil(now + hold);
                    self.give_up_at = None;
                }
                None => self.release_fins(now),
            }
        }
        let due = self.fins == Fins::Due;
        for (_, subflow) in &mut self.subflows {
            if subflow.state.is_opening() {
                // A join that is under way comes too late, if it comes at all.
                let reset = Reset::with_reason(RST_MPTCP_SPECIFIC);
                subflow.reset.get_or_insert(reset);
            }
            subflow.fin_wanted |= due || subflow.state == State::CloseWait;
        }
    }

    /// Our FINs leave without the peer's; what it owes then is waited for a last time.
    pub fn release_fins(&mut self, now: Instant) {
        self.fins = Fins::Due;
        self.give_up_at = Some(now + self.settings.closing.fin_timeout);
        for (_, subflow) in &mut self.subflows {
            subflow.fin_wanted = true;
        }
    }

    /// A subflow stuck in timeouts whose octets another one brought, and which holds the send
    /// buffer nonetheless: they have to be kept until it acknowledges them (RFC 8684 §3.3.6).
    fn pinning_subflow(&self, now: Instant) -> Option<usize> {
        let fit = |s: &Subflow| s.is_usable() && s.tx.rtt.doublings() == 0;
        if !self.subflows.iter().any(|(_, s)| fit(s)) {
            return None;
        }
        let stuck = |s: &Subflow| {
            s.tx.rtt.backoff() >= PINNING_BACKOFF
                || (s.tx.rtt.doublings() >= PINNING_BACKOFF
                    && s.tx.head_age(now).is_some_and(|age| age >= PINNING_AGE))
        };
        let pins = |s: &Subflow| {
            s.reset.is_none()
                && stuck(s)
                && s.lowest_outstanding()
                    .is_some_and(|lowest| lowest.before(self.snd.snd_una))
        };
        self.subflows
            .iter()
            .find(|(_, s)| pins(s))
            .map(|(index, _)| index)
    }
}

/// A RST that was believed.
pub(super) fn count_reset(segment: &Segment<'_>, metrics: &mut Metrics) {
    let options = &segment.tcp.options.mptcp;
    metrics.resets_received += 1;
    metrics.mp_rst_rx += u64::from(options.tcprst.is_some());
    metrics.mp_fail_rx += u64::from(options.fail.is_some());
}
