//! LIA, the "Linked Increases" of RFC 6356 (section numbers are its own): the subflows of a connection
//! together take as much as one TCP would on the best of their paths, and none more than a TCP there.

use super::{Ack, CongestionControl, NewReno, Sibling};
use crate::time::Instant;

/// §3: growth in congestion avoidance is coupled, all else is [`NewReno`]'s.
#[derive(Clone, Debug)]
pub struct Lia {
    reno: NewReno,
}

impl Lia {
    pub fn new(mss: usize) -> Lia {
        Lia {
            reno: NewReno::new(mss),
        }
    }
}

/// §3: what a subflow counts with in cwnd_total and alpha, octets: in fast recovery its ssthresh, and no
/// more than it uses. Backups and what has nothing to send count for nothing, a subflow whose path is
/// dead for the one segment that its timeout left it.
fn window(sibling: &Sibling) -> usize {
    let window = if sibling.recovering {
        sibling.ssthresh
    } else {
        sibling.cwnd
    };
    window.min(sibling.flight_size)
}

/// The part of Reno's growth that is left to a subflow with a window of `cwnd` octets.
// Equation (1) over Reno's mss * acked / cwnd_i is min(alpha * cwnd_i / cwnd_total, 1), and in alpha
// (equation 2) cwnd_total cancels: cwnd_i * max(w / rtt^2) / sum(w / rtt)^2. A few divisions, so it is
// done for every acknowledgment and nothing is kept that another subflow's fall or end would make wrong
// (§4.1 keeps alpha for a round trip, and has integers for kernels that do without floating point).
fn share_of_reno(cwnd: usize, siblings: &[Sibling]) -> f64 {
    let (mut best, mut rate) = (0.0_f64, 0.0);
    for sibling in siblings {
        let rtt_ns = sibling.srtt.as_nanos().max(1) as f64;
        let pace = window(sibling) as f64 / rtt_ns;
        best = best.max(pace / rtt_ns);
        rate += pace;
    }
    // Of what is measured nothing is in flight.
    if rate == 0.0 {
        return 1.0;
    }
    (cwnd as f64 * best / (rate * rate)).min(1.0)
}

impl CongestionControl for Lia {
    fn name(&self) -> &'static str {
        "lia"
    }

    fn cwnd(&self) -> usize {
        self.reno.cwnd()
    }

    fn ssthresh(&self) -> usize {
        self.reno.ssthresh()
    }

    fn is_coupled(&self) -> bool {
        true
    }

    fn on_ack(&mut self, ack: &Ack<'_>) {
        let mut ack = *ack;
        if self.cwnd() >= self.ssthresh() {
            // Reno gathers what is acknowledged until it comes to a segment of growth (as §4.2 does), and
            // at least one octet always counts: no increase is lost to rounding, which §3 forbids.
            let share = share_of_reno(self.cwnd(), ack.siblings);
            ack.acked_bytes = (ack.acked_bytes as f64 * share).ceil() as usize;
        }
        self.reno.on_ack(&ack);
    }

    fn on_congestion(&mut self, now: Instant, flight_size: usize) {
        self.reno.on_congestion(now, flight_size);
    }

    fn on_timeout(&mut self, now: Instant, flight_size: usize, first: bool) {
        self.reno.on_timeout(now, flight_size, first);
    }

    fn undo(&mut self) {
        self.reno.undo();
    }

    fn on_idle(&mut self) {
        self.reno.on_idle();
    }

    fn set_mss(&mut self, mss: usize) {
        self.reno.set_mss(mss);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seq::TcpSeq;
    use crate::time::Duration;

    const MSS: usize = 1000;

    /// With all of `segments` in flight.
    fn sibling(segments: usize, srtt_ms: u64) -> Sibling {
        Sibling {
            cwnd: segments * MSS,
            ssthresh: segments * MSS,
            flight_size: segments * MSS,
            srtt: Duration::from_millis(srtt_ms),
            recovering: false,
        }
    }

    fn ack(acked_bytes: usize, siblings: &[Sibling]) -> Ack<'_> {
        Ack {
            now: Instant::ZERO,
            acked_bytes,
            snd_una: TcpSeq(0),
            snd_nxt: TcpSeq(0),
            rtt: None,
            srtt: None,
            min_rtt: None,
            siblings,
        }
    }

    /// What is left of Reno's growth to each of these subflows, all with their windows in use.
    fn shares(siblings: &[Sibling]) -> Vec<f64> {
        let share = |s: &Sibling| share_of_reno(s.cwnd, siblings);
        siblings.iter().map(share).collect()
    }

    fn assert_shares(siblings: &[Sibling], expected: &[f64]) {
        let shares = shares(siblings);
        let near = std::iter::zip(&shares, expected).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(
            near && shares.len() == expected.len(),
            "{shares:?}, {expected:?}"
        );
    }

    // RFC 6356 §3, equations 1 and 2. Per round trip a subflow grows by alpha * cwnd_i / cwnd_total
    // segments, where Reno grows by one.
    #[test]
    fn alpha_by_hand() {
        // Two equal paths: 20 * (10 / rtt^2) / (20 / rtt)^2 = 1/2. As either window falls by a half
        // alone, that is as fast as one TCP with the window of both.
        assert_shares(&[sibling(10, 50); 2], &[0.25; 2]);
        // Four: 40 * (10 / rtt^2) / (40 / rtt)^2 = 1/4.
        assert_shares(&[sibling(10, 50); 4], &[1.0 / 16.0; 4]);
        // 10 segments each over 100 and 10 ms: 20 * (10 / 0.01^2) / (100 + 1000)^2 = 200 / 121.
        let two_rtts = [sibling(10, 100), sibling(10, 10)];
        assert_shares(&two_rtts, &[100.0 / 121.0; 2]);
        // 30 and 10 over 50 and 20 ms: 40 * max(12,000, 25,000) / (600 + 500)^2 = 100 / 121.
        let both = [sibling(30, 50), sibling(10, 20)];
        assert_shares(&both, &[75.0 / 121.0, 25.0 / 121.0]);
        // 100 and 10 over 100 and 10 ms: alpha is 2.75, which would give the first 2.5 times as much
        // as a TCP has: goal 2 forbids it.
        assert_shares(&[sibling(100, 100), sibling(10, 10)], &[1.0, 0.25]);
        // One.
        assert_shares(&[sibling(7, 33)], &[1.0]);
    }

    // RFC 6356 §3: in recovery ssthresh counts, and never more than is in flight.
    #[test]
    fn siblings_count_with_the_window_that_is_theirs() {
        let me = sibling(10, 50);
        let with = |other: Sibling| share_of_reno(me.cwnd, &[me, other]);
        let inflated = Sibling {
            cwnd: 90 * MSS,
            flight_size: 90 * MSS,
            recovering: true,
            ..me
        };
        assert_eq!(with(inflated), 0.25);
        let drained = Sibling {
            ssthresh: 90 * MSS,
            flight_size: 10 * MSS,
            ..inflated
        };
        assert_eq!(with(drained), 0.25);
        // In slow start cwnd counts, whatever ssthresh is.
        let early = Sibling {
            ssthresh: usize::MAX,
            ..me
        };
        assert_eq!(with(early), 0.25);
        // An application that sends little, on a window that once was large.
        let idling = Sibling {
            cwnd: 90 * MSS,
            ..me
        };
        assert_eq!(with(idling), 0.25);
        // A backup, or what waits for its turn.
        let idle = Sibling {
            flight_size: 0,
            ..me
        };
        assert_eq!(with(idle), 1.0);
    }

    #[test]
    fn without_anything_measured_it_is_reno() {
        assert_eq!(share_of_reno(10 * MSS, &[]), 1.0);
        let idle = Sibling {
            flight_size: 0,
            ..sibling(10, 50)
        };
        assert_eq!(share_of_reno(10 * MSS, &[idle; 2]), 1.0);
        assert_shares(&[sibling(10, 0); 2], &[0.25; 2]);
    }

    fn after_loss_at(segments: usize) -> Lia {
        let mut cc = Lia::new(MSS);
        cc.on_congestion(Instant::ZERO, segments * MSS);
        cc
    }

    #[test]
    fn a_quarter_of_the_growth_takes_four_windows_of_acknowledgments() {
        let mut cc = after_loss_at(20);
        let siblings = [sibling(10, 50); 2];
        for _ in 0..39 {
            cc.on_ack(&ack(MSS, &siblings));
        }
        assert_eq!(cc.cwnd(), 10 * MSS);
        cc.on_ack(&ack(MSS, &siblings));
        assert_eq!(cc.cwnd(), 11 * MSS);
    }

    // RFC 6356 §3: slow start is a TCP's.
    #[test]
    fn slow_start_is_not_coupled() {
        let mut cc = Lia::new(MSS);
        cc.on_ack(&ack(MSS, &[sibling(10, 50); 2]));
        assert_eq!(cc.cwnd(), 11 * MSS);
        cc.on_congestion(Instant::ZERO, 20 * MSS);
        cc.on_timeout(Instant::ZERO, 20 * MSS, true);
        cc.on_ack(&ack(MSS, &[sibling(10, 50); 2]));
        assert_eq!((cc.cwnd(), cc.ssthresh()), (2 * MSS, 10 * MSS));
    }

    // RFC 6356 §3: where the increase would be 0 it is not.
    #[test]
    fn beside_a_huge_window_a_small_one_grows_all_the_same() {
        let mut cc = after_loss_at(4);
        let siblings = [sibling(2, 50), sibling(1_000_000, 50)];
        for _ in 0..2 * MSS {
            assert_eq!(cc.cwnd(), 2 * MSS);
            cc.on_ack(&ack(MSS, &siblings));
        }
        assert_eq!(cc.cwnd(), 3 * MSS);
    }
}
