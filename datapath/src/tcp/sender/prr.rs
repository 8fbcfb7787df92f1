//! Proportional rate reduction: what may leave while losses are repaired (RFC 6937).

/// One recovery. Octets throughout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prr {
    /// What was in flight when it began (RecoverFS).
    flight_size: usize,
    /// Where the window is to be when it ends.
    ssthresh: usize,
    delivered: usize,
    out: usize,
    /// Octets that may be in flight now.
    window: usize,
}

impl Prr {
    pub(super) fn new(flight_size: usize, ssthresh: usize, pipe: usize) -> Prr {
        Prr {
            flight_size: flight_size.max(1),
            ssthresh,
            delivered: 0,
            out: 0,
            window: pipe,
        }
    }

    /// RFC 6937 §3. `safe`: the acknowledgment moved forward and found no further loss, so that the
    /// window may grow as in slow start (PRR-SSRB); it is bound to what arrives otherwise (PRR-CRB).
    pub(super) fn on_ack(&mut self, delivered: usize, pipe: usize, mss: usize, safe: bool) {
        self.delivered += delivered;
        let sendable = if pipe > self.ssthresh {
            let target = (self.delivered * self.ssthresh).div_ceil(self.flight_size);
            target.saturating_sub(self.out)
        } else {
            let mut limit = self.delivered.saturating_sub(self.out).max(delivered);
            if safe {
                limit += mss;
            }
            limit.min(self.ssthresh - pipe)
        };
        self.window = pipe + sendable;
    }

    pub(super) fn on_sent(&mut self, octets: usize) {
        self.out += octets;
    }

    /// More was lost: nothing but `pipe` is in flight, and nothing was delivered for it.
    pub(super) fn narrow(&mut self, pipe: usize) {
        self.window = self.window.min(pipe);
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 6937 §3. Half of 10,000 octets may be in flight in the end.
    fn recovery() -> Prr {
        Prr::new(10_000, 5_000, 9_000)
    }

    #[test]
    fn above_ssthresh_half_of_what_arrives_may_leave_rounded_up() {
        let mut prr = recovery();
        assert_eq!(prr.window(), 9_000);
        prr.on_ack(1_001, 8_000, 1_000, true);
        assert_eq!(prr.window(), 8_000 + 501);
        prr.on_sent(500);
        prr.on_sent(500);
        prr.on_ack(1_000, 8_000, 1_000, true);
        assert_eq!(
            prr.window(),
            8_000 + 1,
            "half of 2,001 but for the 1,000 that left"
        );
        // Just above, and where nothing may be added.
        prr.on_ack(1_000, 5_001, 1_000, true);
        assert_eq!(prr.window(), 5_001 + 501);
        prr.on_ack(1_000, 5_000, 1_000, true);
        assert_eq!(prr.window(), 5_000);
    }

    #[test]
    fn below_ssthresh_as_much_as_arrives_may_leave_and_a_segment_more_if_that_is_safe() {
        let mut prr = recovery();
        prr.on_ack(700, 1_000, 1_000, false);
        assert_eq!(prr.window(), 1_700);
        prr.on_ack(700, 1_000, 1_000, true);
        assert_eq!(
            prr.window(),
            3_400,
            "all that arrived and did not leave yet"
        );
        prr.on_sent(1_400);
        prr.on_ack(700, 1_000, 1_000, true);
        assert_eq!(prr.window(), 2_700);
        prr.on_sent(5_000);
        prr.on_ack(700, 1_000, 1_000, false);
        assert_eq!(prr.window(), 1_700, "more has left than arrived");
        prr.on_ack(9_000, 4_500, 1_000, true);
        assert_eq!(prr.window(), 5_000);
    }
}
