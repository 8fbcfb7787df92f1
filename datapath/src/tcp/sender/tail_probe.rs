//! Tail loss probe: one segment more or again, when the end of a flight is not heard of
//! (RFC 8985 §7).

use crate::seq::TcpSeq;
use crate::time::{Duration, Instant};

/// RFC 8985 §7.2, TLP.max_ack_delay: how late a peer may acknowledge a single segment.
const ACK_DELAY_MAX: Duration = Duration::from_millis(200);
/// Without a measurement.
const TIMEOUT_INITIAL: Duration = Duration::from_secs(1);
/// The grain of the timer wheel: no probe because the clock is coarse.
const GRAIN: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TailProbe {
    /// Then a probe leaves (PTO).
    pub(super) at: Option<Instant>,
    /// One is to leave, whatever the congestion window.
    pub(super) pending: bool,
    /// The one under way: what it ends at (TLP.end_seq), and whether it repeats a segment.
    sent: Option<(TcpSeq, bool)>,
    /// No round trip was measured since the last one left.
    unmeasured: bool,
}

impl TailProbe {
    /// RFC 8985 §7.2. `one`: a single segment is in flight.
    pub(super) fn schedule(
        &mut self,
        now: Instant,
        wanted: bool,
        one: bool,
        srtt: Option<Duration>,
        rto_at: Option<Instant>,
    ) {
        (self.at, self.pending) = (None, false);
        // RFC 8985 §7.3: one at a time, and none that keeps the path from being measured.
        if !wanted || self.sent.is_some() || self.unmeasured {
            return;
        }
        let timeout = match srtt {
            None => TIMEOUT_INITIAL,
            Some(srtt) if one => srtt * 2 + ACK_DELAY_MAX,
            Some(srtt) => srtt * 2 + GRAIN,
        };
        // Never after the retransmission timeout, which it puts off.
        let at = now + timeout;
        self.at = Some(rto_at.map_or(at, |rto_at| at.min(rto_at)));
    }

    pub(super) fn on_sent(&mut self, snd_nxt: TcpSeq, repeats: bool) {
        *self = TailProbe {
            at: None,
            pending: false,
            sent: Some((snd_nxt, repeats)),
            unmeasured: true,
        };
    }

    /// Whether a reported duplicate is the segment that the probe repeated.
    pub(super) fn repeated(&self, dsack: (TcpSeq, TcpSeq)) -> bool {
        self.sent == Some((dsack.1, true))
    }

    /// RFC 8985 §7.4.2: whether the probe has repaired a loss. `repeats`: the acknowledgment is a
    /// duplicate without SACK blocks.
    pub(super) fn on_ack(
        &mut self,
        ack: TcpSeq,
        dsack: Option<(TcpSeq, TcpSeq)>,
        repeats: bool,
    ) -> bool {
        let Some((end, repeated)) = self.sent.filter(|sent| ack.at_or_after(sent.0)) else {
            return false;
        };
        if !repeated || repeats || dsack.is_some_and(|block| self.repeated(block)) {
            // Both copies arrived, or new octets went ahead.
            self.sent = None;
        } else if ack.after(end) {
            self.sent = None;
            return true;
        }
        false
    }

    pub(super) fn on_measured(&mut self) {
        self.unmeasured = false;
    }

    /// Losses are found by other means now.
    pub(super) fn cancel(&mut self) {
        *self = TailProbe {
            unmeasured: self.unmeasured,
            ..TailProbe::default()
        };
    }
}
