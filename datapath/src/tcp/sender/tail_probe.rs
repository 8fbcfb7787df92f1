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

#[cfg(test)]
mod tests {
    use super::*;

    const END: TcpSeq = TcpSeq(5);
    /// Of the last segment, which the probe repeats.
    const BLOCK: (TcpSeq, TcpSeq) = (TcpSeq(u32::MAX - 5), END);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// After how long a probe leaves.
    fn wait(
        probe: &mut TailProbe,
        wanted: bool,
        one: bool,
        srtt: Option<Duration>,
        rto: Option<Duration>,
    ) -> Option<Duration> {
        let now = Instant::from_millis(7);
        probe.schedule(now, wanted, one, srtt, rto.map(|rto| now + rto));
        probe.at.map(|at| at.since(now))
    }

    // RFC 8985 §7.2.
    #[test]
    fn two_round_trips_are_waited_and_no_longer_than_for_the_timeout() {
        for (srtt, one, rto, waited) in [
            (Some(ms(100)), false, None, ms(202)),
            (Some(ms(100)), true, None, ms(400)),
            (None, false, None, ms(1000)),
            (Some(ms(100)), true, Some(ms(401)), ms(400)),
            (Some(ms(100)), true, Some(ms(399)), ms(399)),
        ] {
            let mut probe = TailProbe::default();
            assert_eq!(wait(&mut probe, true, one, srtt, rto), Some(waited));
            assert_eq!(wait(&mut probe, false, one, srtt, rto), None);
        }
    }

    // RFC 8985 §7.3.
    #[test]
    fn another_probe_waits_for_the_end_of_the_last_and_for_a_measurement() {
        for (ended, measured) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut probe = TailProbe::default();
            probe.on_sent(END, true);
            if ended {
                probe.cancel();
            }
            if measured {
                probe.on_measured();
            }
            let at = wait(&mut probe, true, true, Some(ms(1)), None);
            assert_eq!(at.is_some(), ended && measured);
        }
    }

    // RFC 8985 §7.4.2.
    #[test]
    fn a_probe_has_repaired_a_loss_unless_something_tells_of_the_other_copy() {
        let other = (BLOCK.0 - 9, BLOCK.0);
        for (repeats_segment, ack, dsack, repeats, repaired, over) in [
            (true, END - 1, None, true, false, false),
            (true, END, None, false, false, false),
            (true, END, None, true, false, true),
            (true, END, Some(BLOCK), false, false, true),
            (true, END + 1, None, false, true, true),
            (true, END + 1, Some(other), false, true, true),
            (true, END + 1, Some(BLOCK), false, false, true),
            (false, END - 1, None, false, false, false),
            (false, END, None, false, false, true),
            (false, END + 1, None, false, false, true),
        ] {
            let mut probe = TailProbe::default();
            probe.on_sent(END, repeats_segment);
            let told = (probe.on_ack(ack, dsack, repeats), probe.sent.is_none());
            assert_eq!(told, (repaired, over), "{ack:?} {dsack:?} {repeats}");
        }
    }
}
