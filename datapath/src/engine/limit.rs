//! How much is answered that nobody can be held to account for.

use crate::rand::Entropy;
use crate::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// So many answers in a second at most.
// RFC 5961 §7: a time and a counter. How many of them it is in one second is drawn anew each time,
// between half of them and all: from a known number left a stranger could tell how many another flow
// took, and with that whether his guess at its numbers was right (CVE-2016-5696).
#[derive(Debug)]
pub(super) struct RateLimit {
    per_second: u32,
    left: u32,
    renewed_at: Option<Instant>,
}

impl RateLimit {
    pub(super) fn new(per_second: u32) -> RateLimit {
        RateLimit {
            per_second,
            left: 0,
            renewed_at: None,
        }
    }

    /// Takes one, if there is one left.
    pub(super) fn take(&mut self, now: Instant, entropy: &mut dyn Entropy) -> bool {
        if self.renewed_at.is_none_or(|at| now.since(at) >= INTERVAL) {
            self.renewed_at = Some(now);
            let withheld = entropy.next_u32() % (self.per_second / 2 + 1);
            self.left = self.per_second - withheld;
        }
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rand::ChaChaEntropy;

    #[test]
    fn a_second_has_between_half_of_the_answers_and_all_and_nobody_knows_how_many() {
        const LIMIT: u32 = 100;
        let mut entropy = ChaChaEntropy::deterministic(1);
        let mut limit = RateLimit::new(LIMIT);
        let mut taken = |ms| {
            let now = Instant::from_millis(ms);
            (0..).take_while(|_| limit.take(now, &mut entropy)).count() as u32
        };
        let mut counts: Vec<_> = (0..20)
            .map(|second| {
                let count = taken(5_000 + 1_000 * second);
                assert!((LIMIT / 2..=LIMIT).contains(&count), "{count}");
                assert_eq!(taken(5_999 + 1_000 * second), 0);
                count
            })
            .collect();
        counts.sort_unstable();
        counts.dedup();
        assert!(counts.len() > 10, "{counts:?}");
    }

    #[test]
    fn a_limit_of_one_lets_one_through() {
        let mut entropy = ChaChaEntropy::deterministic(1);
        let mut limit = RateLimit::new(1);
        for second in 0..10 {
            let now = Instant::from_millis(1_000 * second);
            assert!(limit.take(now, &mut entropy) && !limit.take(now, &mut entropy));
        }
    }
}
