//! A connection outlives its subflows (RFC 8684 §3.3.3, §3.3.6): while it has none it keeps what was not
//! acknowledged at data level, and a subflow that joins in time carries the streams on. The
//! application sees nothing but silence.

use super::connection::{Connection, Mode};
use super::subflow::Subflow;
use crate::time::Instant;

impl Connection {
    /// Whether it waits for another subflow when the last one goes: its streams have not ended, and
    /// nobody has ended them.
    pub(super) fn outlives_subflows(&self) -> bool {
        self.mode == Mode::Mptcp
            && self.end.is_none()
            && !self.streams_closed()
            && !self.settings.patience.without_subflow.is_zero()
    }

    /// After anything that may have opened or ended a subflow: when the connection is given up for
    /// want of one. A handshake that is not over yet does not buy time.
    pub(super) fn watch_subflows(&mut self, now: Instant) {
        let mut opened = self.subflows.iter().filter(|(_, s)| is_opened(s));
        // RFC 8684 §3.3.3: with FINs on all subflows and no DATA_FIN it is closed after a timeout, too.
        let peer_done = self.rcv.fin_taken();
        if opened.any(|(_, s)| s.state.may_receive() || peer_done) {
            self.give_up_at = None;
        } else if self.give_up_at.is_none() {
            self.give_up_at = Some(now + self.settings.patience.without_subflow);
        }
        let stranded = !self.subflows.iter().any(|(_, s)| is_opened(s));
        if stranded != self.stranded_since.is_some() {
            match stranded {
                true => self.on_stranded(now),
                false => self.on_rejoined(),
            }
        }
    }

    /// The last subflow is gone.
    fn on_stranded(&mut self, now: Instant) {
        self.stranded_since = Some(now);
        self.events.stranded = true;
        // RFC 8684 §3.3.6: all that is not acknowledged at data level is to be sent again.
        self.snd.reinject.clear();
        let outstanding = self.snd.snd_nxt.distance(self.snd.snd_una);
        self.snd.mark_reinject(self.snd.snd_una, outstanding);
        // There is nobody to ask until then; only the user timeout runs on.
        self.data_rto_at = None;
        self.data_rto_backoff = 0;
        if let Some(timeout) = self.settings.patience.user_timeout
            && outstanding > 0
        {
            let user_timeout_at = self.data_heard_at + timeout;
            self.give_up_at = self.give_up_at.map(|at| at.min(user_timeout_at));
        }
    }

    /// A subflow has joined, the first after a while.
    fn on_rejoined(&mut self) {
        self.stranded_since = None;
        self.events.rejoined = true;
        if self.snd.fin_sent()
            && !self.snd.fin_acked()
            && let Some((_, subflow)) = self.subflows.iter_mut().find(|(_, s)| is_opened(s))
        {
            subflow.data_fin_due = true;
        }
    }
}

/// Its handshake was completed.
fn is_opened(subflow: &Subflow) -> bool {
    !subflow.state.is_opening()
}
