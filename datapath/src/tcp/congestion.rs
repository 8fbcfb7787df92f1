//! Congestion control: NewReno (RFC 5681, RFC 6582), in bytes.

/// RFC 6928: ten segments.
const INITIAL_WINDOW_SEGMENTS: usize = 10;

/// Congestion window of one subflow.
#[derive(Clone, Debug)]
pub struct NewReno {
    mss: usize,
    cwnd: usize,
    ssthresh: usize,
    /// Octets acknowledged since the window last grew, in congestion avoidance.
    acked_bytes: usize,
}

impl NewReno {
    pub fn new(mss: usize) -> NewReno {
        NewReno {
            mss,
            cwnd: INITIAL_WINDOW_SEGMENTS * mss,
            ssthresh: usize::MAX,
            acked_bytes: 0,
        }
    }

    /// Octets that may be in flight.
    pub fn cwnd(&self) -> usize {
        self.cwnd
    }

    /// Octets.
    pub fn ssthresh(&self) -> usize {
        self.ssthresh
    }

    /// `acked` octets were newly acknowledged while the window was in use (RFC 5681 §3.1).
    pub fn on_ack(&mut self, acked: usize) {
        if self.cwnd < self.ssthresh {
            // Appropriate byte counting with L = 2 (RFC 3465 §2.2).
            self.cwnd += acked.min(2 * self.mss);
        } else {
            self.acked_bytes += acked;
            if self.acked_bytes >= self.cwnd {
                self.acked_bytes -= self.cwnd;
                self.cwnd += self.mss;
            }
        }
    }

    /// A loss was found by duplicate ACKs with `in_flight` octets outstanding (RFC 5681 §3.2).
    pub fn on_loss(&mut self, in_flight: usize) {
        self.ssthresh = (in_flight / 2).max(2 * self.mss);
        self.cwnd = self.ssthresh;
        self.acked_bytes = 0;
    }

    /// The retransmission timer expired (RFC 5681 §3.1, equation 4). `first`: not a repeated
    /// timeout of the same segment, which leaves ssthresh alone.
    pub fn on_timeout(&mut self, in_flight: usize, first: bool) {
        if first {
            self.ssthresh = (in_flight / 2).max(2 * self.mss);
        }
        self.cwnd = self.mss;
        self.acked_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_start_then_one_segment_per_window() {
        let mut cc = NewReno::new(1000);
        assert_eq!(cc.cwnd(), 10_000);
        cc.on_ack(5000); // a stretch ACK counts for two segments
        assert_eq!(cc.cwnd(), 12_000);
        cc.on_loss(12_000);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (6000, 6000));
        for _ in 0..5 {
            cc.on_ack(1000);
        }
        assert_eq!(cc.cwnd(), 6000);
        cc.on_ack(1000);
        assert_eq!(cc.cwnd(), 7000);
    }

    #[test]
    fn timeout_collapses_the_window_and_a_second_one_keeps_ssthresh() {
        let mut cc = NewReno::new(1000);
        cc.on_timeout(8000, true);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (1000, 4000));
        cc.on_timeout(1000, false);
        assert_eq!(cc.ssthresh(), 4000);
    }
}
