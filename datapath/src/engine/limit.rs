//! How much is answered that nobody can be held to account for, and how much is kept for one source.

use super::flow::SipState;
use crate::rand::Entropy;
use crate::time::{Duration, Instant};
use std::hash::BuildHasher;
use std::net::IpAddr;

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

/// How long a request that nobody completes counts: as long as its SYN/ACK is repeated by default.
const PENDING: Duration = Duration::from_secs(64);
/// Sources that share a place share their limit; which do is secret.
const PLACES: usize = 1024;

/// So many requests of one source, or of ours to one destination, may be pending.
// RFC 8684 §5: what is kept before a peer has proved itself is to be bounded.
pub(super) struct SourceLimit {
    pending_max: u32,
    places: Box<[Place]>,
    hasher: SipState,
}

#[derive(Clone, Copy, Default)]
struct Place {
    pending: u32,
    counted_from: Instant,
}

impl SourceLimit {
    pub(super) fn new(pending_max: u32, entropy: &mut dyn Entropy) -> SourceLimit {
        SourceLimit {
            pending_max,
            places: vec![Place::default(); PLACES].into_boxed_slice(),
            hasher: SipState::new(entropy),
        }
    }

    /// Counts a request, if there may be one more.
    pub(super) fn take(&mut self, now: Instant, source: IpAddr) -> bool {
        let pending_max = self.pending_max;
        let place = self.place(source);
        if now.since(place.counted_from) >= PENDING {
            *place = Place {
                pending: 0,
                counted_from: now,
            };
        }
        let taken = place.pending < pending_max;
        place.pending += u32::from(taken);
        taken
    }

    /// A request was completed.
    pub(super) fn give_back(&mut self, source: IpAddr) {
        let place = self.place(source);
        place.pending = place.pending.saturating_sub(1);
    }

    fn place(&mut self, source: IpAddr) -> &mut Place {
        let network = match source {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            // Whoever has one IPv6 address has all of its network.
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        let hash = self.hasher.hash_one(network);
        &mut self.places[hash as usize % PLACES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rand::ChaChaEntropy;

    #[test]
    fn pending_requests_of_a_source_have_a_limit_and_leave_others_alone() {
        let mut limit = SourceLimit::new(3, &mut ChaChaEntropy::deterministic(1));
        let source = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (one, other) = (source("2001:db8::1"), source("2001:db8:1::1"));
        let begun = Instant::from_millis(100_000);
        for _ in 0..3 {
            assert!(limit.take(begun, one));
        }
        assert!(!limit.take(begun, one) && !limit.take(begun, source("2001:db8::2")));
        assert!(limit.take(begun, other));
        // What is completed makes room, and so does time.
        limit.give_back(one);
        assert!(limit.take(begun, one) && !limit.take(begun, one));
        let last = Instant(begun.0 + PENDING.as_nanos() as u64 - 1);
        assert!(!limit.take(last, one));
        assert!(limit.take(begun + PENDING, one));
    }

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
