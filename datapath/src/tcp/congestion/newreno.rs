//! NewReno (RFC 5681, RFC 6582).

use super::{Ack, CongestionControl, INITIAL_WINDOW_SEGMENTS};
use crate::time::Instant;

#[derive(Clone, Debug)]
pub struct NewReno {
    mss: usize,
    cwnd: usize,
    ssthresh: usize,
    /// Octets acknowledged since the window last grew, in congestion avoidance.
    acked_bytes: usize,
    /// cwnd and ssthresh before they last fell.
    before: Option<(usize, usize)>,
}

impl NewReno {
    pub fn new(mss: usize) -> NewReno {
        NewReno {
            mss,
            cwnd: INITIAL_WINDOW_SEGMENTS * mss,
            ssthresh: usize::MAX,
            acked_bytes: 0,
            before: None,
        }
    }

    fn fall(&mut self, flight_size: usize) {
        self.ssthresh = (flight_size / 2).max(2 * self.mss);
        self.acked_bytes = 0;
    }
}

impl CongestionControl for NewReno {
    fn name(&self) -> &'static str {
        "reno"
    }

    fn cwnd(&self) -> usize {
        self.cwnd
    }

    fn ssthresh(&self) -> usize {
        self.ssthresh
    }

    // RFC 5681 §3.1.
    fn on_ack(&mut self, ack: &Ack<'_>) {
        if self.cwnd < self.ssthresh {
            // Appropriate byte counting with L = 2 (RFC 3465 §2.2).
            self.cwnd += ack.acked_bytes.min(2 * self.mss);
        } else {
            self.acked_bytes += ack.acked_bytes;
            if self.acked_bytes >= self.cwnd {
                self.acked_bytes -= self.cwnd;
                self.cwnd += self.mss;
            }
        }
    }

    // RFC 5681 §3.2, equation 4.
    fn on_congestion(&mut self, _now: Instant, flight_size: usize) {
        self.before = Some((self.cwnd, self.ssthresh));
        self.fall(flight_size);
        self.cwnd = self.ssthresh;
    }

    fn on_timeout(&mut self, _now: Instant, flight_size: usize, first: bool) {
        if first {
            self.before = Some((self.cwnd, self.ssthresh));
            self.fall(flight_size);
        }
        self.cwnd = self.mss;
        self.acked_bytes = 0;
    }

    fn undo(&mut self) {
        if let Some((cwnd, ssthresh)) = self.before.take() {
            self.cwnd = self.cwnd.max(cwnd);
            self.ssthresh = self.ssthresh.max(ssthresh);
        }
    }

    // RFC 5681 §4.1: the restart window.
    fn on_idle(&mut self) {
        self.cwnd = self.cwnd.min(INITIAL_WINDOW_SEGMENTS * self.mss);
    }

    fn set_mss(&mut self, mss: usize) {
        // As many segments as before, but RFC 4821 §4: never more octets.
        let segments = self.cwnd / self.mss;
        self.cwnd = self.cwnd.min(segments * mss).max(mss);
        self.mss = mss;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seq::TcpSeq;

    fn ack(acked_bytes: usize) -> Ack<'static> {
        Ack {
            now: Instant::ZERO,
            acked_bytes,
            snd_una: TcpSeq(0),
            snd_nxt: TcpSeq(0),
            rtt: None,
            srtt: None,
            min_rtt: None,
            siblings: &[],
        }
    }

    #[test]
    fn slow_start_then_one_segment_per_window() {
        let mut cc = NewReno::new(1000);
        assert_eq!(cc.cwnd(), 10_000);
        cc.on_ack(&ack(5000)); // a stretch ACK counts for two segments
        assert_eq!(cc.cwnd(), 12_000);
        cc.on_congestion(Instant::ZERO, 12_000);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (6000, 6000));
        for _ in 0..5 {
            cc.on_ack(&ack(1000));
        }
        assert_eq!(cc.cwnd(), 6000);
        cc.on_ack(&ack(1000));
        assert_eq!(cc.cwnd(), 7000);
    }

    #[test]
    fn timeout_collapses_the_window_and_a_second_one_keeps_ssthresh() {
        let mut cc = NewReno::new(1000);
        cc.on_timeout(Instant::ZERO, 8000, true);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (1000, 4000));
        cc.on_timeout(Instant::ZERO, 1000, false);
        assert_eq!(cc.ssthresh(), 4000);
    }

    #[test]
    fn undo_restores_what_a_spurious_loss_took_and_only_once() {
        let mut cc = NewReno::new(1000);
        cc.on_ack(&ack(2000));
        cc.on_congestion(Instant::ZERO, 12_000);
        cc.undo();
        assert_eq!((cc.cwnd(), cc.ssthresh()), (12_000, usize::MAX));
        cc.on_congestion(Instant::ZERO, 12_000);
        cc.undo();
        cc.on_timeout(Instant::ZERO, 4000, false);
        cc.undo();
        assert_eq!(cc.cwnd(), 1000);
    }
}
