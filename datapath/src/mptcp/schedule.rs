//! What goes where: lowest RTT first over the subflows that are fit, reinjection of what got stuck,
//! the data-level timer and the persist timer.
//!
//! Segments are cut when a subflow is about to send, never before it was chosen.

use super::close::RST_MIDDLEBOX;
use super::connection::{Connection, End, Mode};
use super::fallback::Fallback;
use super::subflow::{Reset, Subflow};
use crate::metrics::Metrics;
use crate::seq::DataSeq;
use crate::tcp::rtt::{RTO_INITIAL, RTO_MAX};
use crate::time::{Duration, Instant};

/// Reinjected at a time when the data level alone lost something.
const DATA_RETRANSMIT_BYTES: usize = 64 * 1024;
/// DATA_FINs without data sent before a peer that never showed a DSS is taken for plain TCP.
const BARE_DATA_FINS: u32 = 3;
/// Data-level timeouts after which a subflow counts as broken whose peer sends no options any more.
const BARE_TIMEOUTS: u32 = 3;
/// Unanswered data-level retransmissions after which the peer is taken for gone.
const DATA_RETRIES_MAX: u32 = 12;

impl Connection {
    /// The subflow for the next new data: the lowest srtt among those with room in both their
    /// congestion window and their peer's window; backups only if no other one works
    /// (RFC 8684 §3.3.8).
    pub fn best_subflow(&self) -> Option<usize> {
        let any_regular = self
            .subflows
            .iter()
            .any(|(_, s)| s.is_usable() && !s.is_backup());
        self.subflows
            .iter()
            .filter(|(_, s)| s.is_usable() && (!s.is_backup() || !any_regular))
            .filter(|(_, s)| !s.tx.has_lost() && s.tx.cwnd_room() && s.tx.window_room() > 0)
            .filter(|(_, s)| self.may_note_segment(s))
            .min_by_key(|(_, s)| s.tx.rtt.srtt().unwrap_or(Duration::MAX))
            .map(|(index, _)| index)
    }

    /// There is memory to note one more segment in flight.
    pub fn may_note_segment(&self, subflow: &Subflow) -> bool {
        let (held, growth) = (subflow.tx.notes_bytes(), subflow.tx.notes_growth_bytes());
        self.allowance.grants_beyond_first(held, growth)
    }

    /// Any subflow that can carry a signal, the fastest first.
    pub fn signal_subflow(&self) -> Option<usize> {
        self.subflows
            .iter()
            .filter(|(_, s)| s.is_open())
            .min_by_key(|(_, s)| (s.tx.rtt.backoff(), s.tx.rtt.srtt().unwrap_or(Duration::MAX)))
            .map(|(index, _)| index)
    }

    /// The subflow that text leaves on next, a reinjection or new data, if any may leave now.
    pub fn text_goes_to(&self) -> Option<usize> {
        let again = !self.snd.reinject.is_empty();
        if !again && self.snd.unsent() == 0 {
            return None;
        }
        let best = self.best_subflow()?;
        let payload_max = self.subflows[best]
            .tx
            .mss
            .saturating_sub(self.text_options_len(best));
        (again || self.next_new_data(best, payload_max).is_some()).then_some(best)
    }

    /// New data that the best subflow, `index`, is to send now, at most `payload_max` octets.
    pub fn next_new_data(&self, index: usize, payload_max: usize) -> Option<(DataSeq, usize)> {
        let unsent = self.snd.unsent();
        if unsent == 0 {
            return None;
        }
        let wanted = unsent.min(payload_max);
        let room = self
            .snd
            .window_room()
            .min(self.subflows[index].tx.window_room());
        // RFC 9293 §3.8.6.2.1: no silly segments while an acknowledgment is on its way.
        if room == 0 || (room < wanted && self.ack_expected()) {
            return None;
        }
        Some((self.snd.snd_nxt, wanted.min(room)))
    }

    /// An acknowledgment that may open a window is on its way. A subflow stuck in timeouts promises
    /// none.
    fn ack_expected(&self) -> bool {
        self.subflows
            .iter()
            .any(|(_, s)| s.is_usable() && !s.tx.flight_is_empty())
    }

    /// The subflow to probe a closed window on: there is something to send, closed windows are all
    /// that keeps it, and nothing on its way will open them (RFC 9293 §3.8.6.1).
    fn blocked_by_window(&self) -> Option<usize> {
        let again = !self.snd.reinject.is_empty();
        if (self.snd.unsent() == 0 && !again) || self.ack_expected() {
            return None;
        }
        match self.best_subflow() {
            Some(_) if again || self.snd.window_room() > 0 => None,
            Some(index) => Some(index),
            None => self
                .subflows
                .iter()
                .filter(|(_, s)| s.is_usable())
                .min_by_key(|(_, s)| (s.is_backup(), s.tx.rtt.srtt().unwrap_or(Duration::MAX)))
                .map(|(index, _)| index),
        }
    }

    fn anything_in_flight(&self) -> bool {
        self.subflows.iter().any(|(_, s)| !s.tx.flight_is_empty())
    }

    /// Whether subflow `index` has anything to send now; text goes to [`Connection::text_goes_to`].
    pub fn wants_transmit(&self, index: usize, text_goes_to: Option<usize>) -> bool {
        let Some(subflow) = self.subflows.get(index) else {
            return false;
        };
        if subflow.reset.is_some() {
            return true;
        }
        if let Some(wait) = &self.fastclose {
            return wait.due && wait.subflow == index;
        }
        if subflow.state.is_opening() {
            return subflow.handshake_due || subflow.sends_early() && text_goes_to == Some(index);
        }
        subflow.rx.ack_now
            || subflow.fourth_ack_due
            || subflow.fail_due.is_some()
            || subflow.probe_due
            || subflow.data_fin_due
            || self.signal_due(index)
            || subflow.tx.retransmission_ready()
            || subflow.tx.tail_to_probe().is_some()
            || text_goes_to == Some(index)
            || self.fin_ready(index)
    }

    /// Our FIN on this subflow can leave: nothing is left to be sent on it.
    pub fn fin_ready(&self, index: usize) -> bool {
        let Some(subflow) = self.subflows.get(index) else {
            return false;
        };
        // Plain TCP has no DATA_FIN: the FIN itself ends the stream.
        let due = match self.mode {
            Mode::Tcp => self.snd.fin_queued && self.snd.unsent() == 0,
            _ => subflow.fin_wanted,
        };
        due && subflow.state.may_send() && !subflow.tx.has_lost()
    }

    /// Sets what follows from the state as a whole: the persist timer, a DATA_FIN without data, and
    /// window updates. Called once after every change.
    pub fn refresh(&mut self, now: Instant) {
        if self.fastclose.is_some() {
            return;
        }
        if let Some(index) = self.window_update_due() {
            self.subflows[index].rx.ack_now = true;
        }
        if self.mode == Mode::Mptcp
            && self.snd.fin_ready()
            && let Some(index) = self.signal_subflow()
        {
            self.subflows[index].data_fin_due = true;
        }
        // An acknowledgment of a part stops the timer; what is left outstanding starts it again.
        self.arm_data_timer(now);
        if let Some(index) = self.blocked_by_window()
            && !self.subflows[index].state.is_opening()
        {
            let subflow = &mut self.subflows[index];
            let wait = subflow
                .tx
                .rtt
                .rto()
                .saturating_mul(1 << subflow.persist_backoff)
                .min(self.settings.patience.persist_ceiling());
            // Also while a probe is about to leave: it may be lost, and so may its answer.
            subflow.persist_at.get_or_insert(now + wait);
        } else {
            // Another subflow may have brought what opened the window.
            for (_, subflow) in &mut self.subflows {
                subflow.persist_at = None;
            }
        }
    }

    /// RFC 8684 §3.3.6: a data-level timer, above those of the subflows.
    pub fn arm_data_timer(&mut self, now: Instant) {
        if self.mode == Mode::Mptcp
            && self.stranded_since.is_none()
            && self.data_rto_at.is_none()
            && self.snd.snd_una.before(self.snd.snd_nxt)
        {
            // A timeout that is backed off says nothing of how long an answer takes.
            let measured = self
                .subflows
                .iter()
                .filter(|(_, s)| s.tx.rtt.doublings() == 0);
            let slowest = measured
                .map(|(_, s)| s.tx.rtt.rto())
                .max()
                .unwrap_or(RTO_INITIAL);
            let wait = (slowest * 2)
                .saturating_mul(1 << self.data_rto_backoff.min(8))
                .min(RTO_MAX);
            if self.data_rto_backoff == 0 {
                self.data_heard_at = now;
            }
            let at = now + wait;
            let give_up_at = self
                .settings
                .patience
                .user_timeout
                .map(|t| self.data_heard_at + t);
            self.data_rto_at = Some(give_up_at.map_or(at, |give_up_at| at.min(give_up_at)));
        }
    }

    /// RFC 8684 §3.7: the subflow's acknowledgments come, and never one with a DATA_ACK. To repeat
    /// data now would put it into the stream of a peer that fell back. A DATA_FIN alone takes no
    /// sequence space; it may as well have been lost.
    fn looks_like_tcp(&self) -> bool {
        let bare_fins_lost = self.data_rto_backoff > BARE_DATA_FINS;
        self.never_joined()
            && self.subflows.iter().all(|(_, s)| {
                !s.confirmed
                    && s.tx.flight_is_empty()
                    && (s.tx.snd_una != s.tx.iss + 1 || bare_fins_lost && !s.spoken)
            })
    }

    /// RFC 8684 §3.7: a path that took options and takes none any more. Its subflow acknowledges what
    /// the data level never will.
    fn reset_bare(&mut self) {
        for index in 0..self.subflows.capacity() {
            let spoilt = |s: &Subflow| !s.state.is_opening() && s.bare && s.tx.flight_is_empty();
            if self.subflows.get(index).is_some_and(spoilt) {
                self.reset_subflow(index, RST_MIDDLEBOX);
            }
        }
    }

    /// Sends elsewhere what lies on subflows whose timeout is backed off: they may take a minute to
    /// repeat it.
    fn reinject_stuck(&mut self) {
        for index in 0..self.subflows.capacity() {
            let Some(subflow) = self.subflows.get(index) else {
                continue;
            };
            let fit = |s: &Subflow| s.is_usable() && s.tx.rtt.doublings() == 0;
            if subflow.tx.rtt.doublings() > 0 && self.subflows.iter().any(|(_, s)| fit(s)) {
                self.reinject_flight(index);
            }
        }
    }

    /// The data-level timer expired. What fit subflows still have in flight is theirs to repeat;
    /// what they delivered and the peer's data level did not acknowledge is sent again.
    pub fn on_data_timeout(&mut self, now: Instant, metrics: &mut Metrics) {
        self.data_rto_at = None;
        if !self.snd.snd_una.before(self.snd.snd_nxt) {
            return;
        }
        metrics.data_timeouts += 1;
        self.data_rto_backoff += 1;
        if self.looks_like_tcp() && self.fall_back(Fallback::NoDataAck, metrics) {
            metrics.dss_fallback += 1;
            return;
        }
        let over = match self.settings.patience.user_timeout {
            None => self.data_rto_backoff > DATA_RETRIES_MAX,
            Some(timeout) => now.since(self.data_heard_at) >= timeout,
        };
        if over {
            self.end.get_or_insert(End::TimedOut);
            self.reset_all(Reset::default());
            return;
        }
        if self.data_rto_backoff > BARE_TIMEOUTS {
            self.reset_bare();
        }
        if self.snd.all_acked_but_fin() {
            // RFC 8684 §3.3.3: the DATA_FIN is repeated until it is acknowledged.
            for (_, subflow) in &mut self.subflows {
                subflow.data_fin_due = !subflow.state.is_opening();
            }
        } else if !self.anything_in_flight() {
            self.snd
                .mark_reinject(self.snd.snd_una, DATA_RETRANSMIT_BYTES);
        } else {
            self.reinject_stuck();
        }
        self.arm_data_timer(now);
    }
}
