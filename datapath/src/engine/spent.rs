//! Cookies that came back: each opens one connection, whatever late copies of a segment bring it again.

use super::flow::{FlowKey, SipState};
use crate::rand::Entropy;
use crate::seq::TcpSeq;
use crate::time::{Duration, Instant};
use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher;

/// So many of the latest are known.
const SPENT_MAX: usize = 65_536;

/// The latest of them, as hashes: if two agree, a client has to connect once more.
pub(super) struct SpentCookies {
    known: HashSet<u64, rustc_hash::FxBuildHasher>,
    /// The first one first.
    order: VecDeque<(Instant, u64)>,
    hasher: SipState,
}

impl SpentCookies {
    pub(super) fn new(entropy: &mut dyn Entropy) -> SpentCookies {
        SpentCookies {
            known: HashSet::default(),
            order: VecDeque::new(),
            hasher: SipState::new(entropy),
        }
    }

    /// Remembers a cookie, `iss` in answer to `irs`, for `lifetime`, if not so many others come. Returns
    /// whether it is the first time. One in 2^18 SYNs of a flow in a tick has the cookie of another.
    pub(super) fn spend(
        &mut self,
        now: Instant,
        key: &FlowKey,
        [irs, iss]: [TcpSeq; 2],
        lifetime: Duration,
    ) -> bool {
        let over = |&(since, _): &(Instant, u64)| now.since(since) >= lifetime;
        while self.order.front().is_some_and(over) {
            self.forget_oldest();
        }
        let hash = self.hasher.hash_one((key, irs.0, iss.0));
        if !self.known.insert(hash) {
            return false;
        }
        if self.order.len() >= SPENT_MAX {
            self.forget_oldest();
        }
        self.order.push_back((now, hash));
        true
    }

    fn forget_oldest(&mut self) {
        if let Some((_, hash)) = self.order.pop_front() {
            self.known.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rand::ChaChaEntropy;
    use std::net::SocketAddr;

    #[test]
    fn a_cookie_is_spent_for_its_lifetime_and_while_there_is_room() {
        let lifetime = Duration::from_secs(100);
        let mut spent = SpentCookies::new(&mut ChaChaEntropy::deterministic(1));
        let end = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let mut answer = |irs, ms, port, iss| {
            let key = FlowKey::new(end(80), end(port));
            let numbers = [TcpSeq(irs), TcpSeq(iss)];
            spent.spend(Instant::from_millis(ms), &key, numbers, lifetime)
        };
        assert!(
            answer(1, 1_000, 9, 7) && answer(2, 1_000, 9, 7),
            "another SYN"
        );
        let mut spend = |ms, port, iss| answer(0, ms, port, iss);
        assert!(spend(1_000, 1, 7) && !spend(1_000, 1, 7));
        assert!(spend(1_000, 2, 7) && spend(1_000, 1, 8));
        assert!(!spend(100_999, 1, 7));
        assert!(spend(101_000, 1, 7), "its time is over");
        for iss in 0..SPENT_MAX as u32 - 1 {
            assert!(spend(101_000, 3, iss));
        }
        assert!(!spend(101_000, 1, 7) && !spend(101_000, 3, 0));
        assert!(spend(101_000, 4, 7) && spend(101_000, 1, 7), "it made room");
    }
}
