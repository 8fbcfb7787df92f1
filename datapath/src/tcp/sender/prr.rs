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

    /// RFC 6937 §3.1. `safe`: the acknowledgment moved forward and found no further loss, so that the
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
