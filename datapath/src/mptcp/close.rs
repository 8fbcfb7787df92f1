//! Ends: FIN and DATA_FIN, RST and MP_FASTCLOSE, and what happens to the data of a lost subflow.

use super::connection::{Connection, End, Mode, Retired, TimeWaitState};
use super::subflow::{Reset, Subflow};
use crate::metrics::Metrics;
use crate::tcp::State;
use crate::time::{Duration, Instant};
use crate::wire::mptcp::MpTcprst;

/// MP_TCPRST reasons (RFC 8684 §3.6).
pub const RST_UNSPECIFIED: u8 = 0x00;
pub const RST_MPTCP_SPECIFIC: u8 = 0x01;
pub const RST_NO_RESOURCES: u8 = 0x02;
pub const RST_PROHIBITED: u8 = 0x03;
pub const RST_PERFORMANCE: u8 = 0x05;
pub const RST_MIDDLEBOX: u8 = 0x06;

/// Timeouts in a row after which a subflow may no longer hold the send buffer.
const PINNING_BACKOFF: u32 = 2;
/// And after so long without a sound one whose timeout is that much backed off, although it gets on
/// now and then.
const PINNING_AGE: Duration = Duration::from_secs(1);

impl Connection {
    /// The app writes no more.
    pub fn close_write(&mut self) {
        self.snd.fin_queued = true;
    }

    /// The app wants no more of it: MP_FASTCLOSE on every subflow (RFC 8684 §3.5), RST for TCP.
    pub fn abort(&mut self, end: End, metrics: &mut Metrics) {
        // Nobody will read what is left of a connection that has otherwise finished.
        if self.end.is_none() || self.end == Some(End::Finished) {
            self.end = Some(end);
        }
        let fastclose_key = (self.mode == Mode::Mptcp).then_some(self.remote_key);
        if fastclose_key.is_some() {
            metrics.mp_fastclose_tx += 1;
        }
        self.reset_all(Reset {
            fastclose_key,
            ..Reset::default()
        });
    }

    /// Ends every subflow with a RST that says `reset`.
    pub fn reset_all(&mut self, reset: Reset) {
        for (_, subflow) in &mut self.subflows {
            subflow.reset.get_or_insert(reset);
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
            iface: subflow.iface,
            link: subflow.link,
            snd_nxt: subflow.tx.snd_nxt,
            rcv_nxt: subflow.rx.rcv_nxt,
            ts: subflow.ts,
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
        match self.mode {
            Mode::Tcp if self.streams_closed() => {
                self.end.get_or_insert(End::Finished);
                self.give_up_at
                    .get_or_insert(now + self.settings.fin_timeout);
            }
            Mode::Mptcp if self.streams_closed() => {
                // RFC 8684 §3.3.3: both DATA_FINs are acknowledged. The peer's FIN is waited for a
                // while, so that TIME-WAIT stays with it.
                if self.fin_hold_at.is_none() && self.give_up_at.is_none() {
                    self.fin_hold_at = Some(now + self.settings.fin_hold);
                    self.give_up_at = Some(now + self.settings.fin_timeout);
                    self.end.get_or_insert(End::Finished);
                }
                for (_, subflow) in &mut self.subflows {
                    if subflow.state == State::CloseWait {
                        subflow.fin_wanted = true;
                    }
                }
            }
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
