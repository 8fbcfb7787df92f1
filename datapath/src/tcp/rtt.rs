//! Round-trip time and retransmission timeout (RFC 6298).

use crate::time::{Duration, Instant};

/// RFC 6298 §2.1: before the first measurement.
pub const RTO_INITIAL: Duration = Duration::from_secs(1);
/// RFC 6298 §2.4 says 1 s for the whole; this is kept above srtt, as Linux does: on a path whose round
/// trip never varies a delayed acknowledgment is not late.
pub const RTO_MIN: Duration = Duration::from_millis(200);
/// RFC 6298 §2.5 allows a ceiling of 60 s or more.
pub const RTO_MAX: Duration = Duration::from_secs(60);
/// How long the smallest round trip is remembered: paths change (RFC 8985 §6.2 step 1).
const MIN_RTT_VALID: Duration = Duration::from_secs(300);

/// Smoothed round-trip time of one subflow.
#[derive(Clone, Debug)]
pub struct RttEstimator {
    srtt: Option<Duration>,
    rttvar: Duration,
    rto: Duration,
    /// The smallest of late, and when it was measured.
    min_rtt: Option<(Duration, Instant)>,
    /// Timeouts in a row without progress.
    backoff: u32,
    /// Doublings of the timeout, until it is measured again.
    doublings: u32,
}

impl Default for RttEstimator {
    fn default() -> Self {
        RttEstimator {
            srtt: None,
            rttvar: Duration::ZERO,
            rto: RTO_INITIAL,
            min_rtt: None,
            backoff: 0,
            doublings: 0,
        }
    }
}

impl RttEstimator {
    /// RFC 6298 §2.2, §2.3. The caller holds to Karn's algorithm (§3): no samples from what was
    /// sent more than once. Until the first one after a timeout the timeout stays backed off
    /// (§5.7): a path that has become slower could not be measured otherwise.
    pub fn on_sample(&mut self, now: Instant, rtt: Duration) {
        self.doublings = 0;
        if self
            .min_rtt
            .is_none_or(|(min, at)| rtt <= min || now.since(at) > MIN_RTT_VALID)
        {
            self.min_rtt = Some((rtt, now));
        }
        match self.srtt {
            None => {
                self.srtt = Some(rtt);
                self.rttvar = rtt / 2;
            }
            Some(srtt) => {
                self.rttvar = self.rttvar * 3 / 4 + srtt.abs_diff(rtt) / 4;
                self.srtt = Some(srtt * 7 / 8 + rtt / 8);
            }
        }
        let srtt = self.srtt.unwrap_or(rtt);
        self.rto = (srtt + (self.rttvar * 4).max(RTO_MIN)).min(RTO_MAX);
    }

    /// RFC 6298 §5.5: the timer expired, back it off.
    pub fn on_timeout(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
        self.doublings = self.doublings.saturating_add(1);
    }

    /// The last timeout was spurious: the path is as fast as it was measured.
    pub fn on_spurious_timeout(&mut self) {
        self.backoff = 0;
        self.doublings = 0;
    }

    /// New data was acknowledged: the path works.
    pub fn on_progress(&mut self) {
        self.backoff = 0;
    }

    /// Timeouts in a row without progress.
    pub fn backoff(&self) -> u32 {
        self.backoff
    }

    /// Doublings of the timeout since the last measurement.
    pub fn doublings(&self) -> u32 {
        self.doublings
    }

    pub fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// The smallest of the last minutes.
    pub fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt.map(|(min, _)| min)
    }

    pub fn rttvar(&self) -> Duration {
        self.rttvar
    }

    /// The timeout now, backed off.
    pub fn rto(&self) -> Duration {
        self.rto
            .saturating_mul(1 << self.doublings.min(16))
            .min(RTO_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_later_samples_follow_rfc_6298_section_2() {
        let mut rtt = RttEstimator::default();
        assert_eq!(rtt.rto(), Duration::from_secs(1));
        rtt.on_sample(Instant::ZERO, Duration::from_millis(100));
        assert_eq!(rtt.srtt(), Some(Duration::from_millis(100)));
        assert_eq!(rtt.rttvar(), Duration::from_millis(50));
        assert_eq!(rtt.rto(), Duration::from_millis(300)); // 100 + 4 * 50
        rtt.on_sample(Instant::ZERO, Duration::from_millis(180));
        // rttvar = 3/4 * 50 + 1/4 * 80 = 57.5; srtt = 7/8 * 100 + 1/8 * 180 = 110
        assert_eq!(rtt.srtt(), Some(Duration::from_millis(110)));
        assert_eq!(rtt.rttvar(), Duration::from_micros(57_500));
        assert_eq!(rtt.rto(), Duration::from_millis(340));
    }

    #[test]
    fn the_smallest_round_trip_is_forgotten_after_a_while() {
        let mut rtt = RttEstimator::default();
        rtt.on_sample(Instant::ZERO, Duration::from_millis(10));
        let valid = Instant::ZERO + MIN_RTT_VALID;
        rtt.on_sample(valid, Duration::from_millis(50));
        assert_eq!(rtt.min_rtt(), Some(Duration::from_millis(10)));
        rtt.on_sample(valid + Duration::from_millis(1), Duration::from_millis(60));
        assert_eq!(rtt.min_rtt(), Some(Duration::from_millis(60)));
    }

    #[test]
    fn backoff_doubles_to_the_ceiling_and_ends_with_a_measurement() {
        let mut rtt = RttEstimator::default();
        rtt.on_sample(Instant::ZERO, Duration::from_millis(1));
        let rto = Duration::from_millis(1) + RTO_MIN;
        assert_eq!(rtt.rto(), rto);
        rtt.on_timeout();
        assert_eq!(rtt.rto(), rto * 2);
        for _ in 0..40 {
            rtt.on_timeout();
        }
        assert_eq!(rtt.rto(), RTO_MAX);
        rtt.on_progress();
        assert_eq!((rtt.rto(), rtt.backoff()), (RTO_MAX, 0));
        rtt.on_sample(Instant::ZERO, Duration::from_millis(1));
        assert_eq!((rtt.rto(), rtt.doublings()), (rto, 0));
    }

    #[test]
    fn a_spurious_timeout_was_none() {
        let mut rtt = RttEstimator::default();
        rtt.on_timeout();
        rtt.on_timeout();
        assert_eq!((rtt.backoff(), rtt.doublings()), (2, 2));
        assert_eq!(rtt.rto(), RTO_INITIAL * 4);
        rtt.on_spurious_timeout();
        assert_eq!((rtt.backoff(), rtt.doublings()), (0, 0));
        assert_eq!(rtt.rto(), RTO_INITIAL);
    }
}
