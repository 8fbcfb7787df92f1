//! Keys of connections, whose tokens name this worker as their owner.

use super::{Engine, EngineConfig};
use crate::crypto;
use crate::mptcp::Version;
use crate::rand::Entropy;
use mpx_ebpf::owner_of;

/// Draws per owner before MP_CAPABLE is given up for a connection.
const DRAWS_PER_OWNER: u32 = 64;

/// A key with what is cut from its hash (RFC 8684 §3.1). It has no `Debug`: keys are secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LocalKey {
    pub key: u64,
    pub token: u32,
    pub idsn: u64,
}

/// Keys drawn ahead, as of `owners` draws only one is ours. Each version of the protocol has a pool of
/// its own: it hashes keys in its own way.
pub struct KeyPool {
    owner: u32,
    owners: u32,
    /// Token and initial data sequence number of a key.
    hash: fn(u64) -> (u32, u64),
    drawn: Vec<LocalKey>,
    limit: usize,
}

impl KeyPool {
    /// A pool of at most `limit` keys, empty so far.
    pub fn new(owner: u32, owners: u32, limit: usize, hash: fn(u64) -> (u32, u64)) -> KeyPool {
        KeyPool {
            owner,
            owners,
            hash,
            drawn: Vec::with_capacity(limit),
            limit,
        }
    }

    /// A key whose token is free (RFC 8684 §3.1), from the pool while that has any. That a token is
    /// still free is only known when it is used.
    pub fn take(
        &mut self,
        entropy: &mut dyn Entropy,
        mut is_free: impl FnMut(u32) -> bool,
    ) -> Option<LocalKey> {
        while let Some(drawn) = self.drawn.pop() {
            if is_free(drawn.token) {
                return Some(drawn);
            }
        }
        (0..DRAWS_PER_OWNER.saturating_mul(self.owners))
            .find_map(|_| self.draw(entropy).filter(|drawn| is_free(drawn.token)))
    }

    /// Draws ahead, `draws_max` times at most. Returns whether there was anything to do.
    pub fn refill(&mut self, entropy: &mut dyn Entropy, draws_max: u32) -> bool {
        let wanted = self.drawn.len() < self.limit;
        for _ in 0..draws_max {
            if self.drawn.len() >= self.limit {
                break;
            }
            if let Some(drawn) = self.draw(entropy) {
                self.drawn.push(drawn);
            }
        }
        wanted
    }

    /// One draw; `None`: the key is another owner's.
    fn draw(&self, entropy: &mut dyn Entropy) -> Option<LocalKey> {
        self.own(entropy.next_u64())
    }

    /// A key with its token and initial data sequence number, if it is one of ours.
    pub(super) fn own(&self, key: u64) -> Option<LocalKey> {
        let (token, idsn) = (self.hash)(key);
        // A connection without a token has 0 in its place.
        let ours = owner_of(token, self.owners) == self.owner && token != 0;
        ours.then_some(LocalKey { key, token, idsn })
    }
}

/// A pool of keys of this version: empty where no service speaks it.
pub(super) fn keys_ahead(config: &EngineConfig, version: Version) -> KeyPool {
    let spoken = config.services.iter().any(|s| s.versions.speaks(version));
    let limit = if spoken { config.keys_ahead_max } else { 0 };
    let hash = match version {
        Version::V0 => crypto::token_and_idsn_v0,
        Version::V1 => crypto::token_and_idsn,
    };
    KeyPool::new(config.owner, config.owners, limit, hash)
}

impl Engine {
    /// Draws keys ahead, for a worker with nothing else to do. Returns whether there was anything to
    /// draw.
    pub fn refill_keys(&mut self, draws_max: u32) -> bool {
        let entropy = &mut *self.entropy;
        self.keys.refill(entropy, draws_max) | self.keys_v0.refill(entropy, draws_max)
    }

    /// A key of this version. Whatever its version, a token names one connection.
    pub(super) fn draw_key(&mut self, version: Version) -> Option<LocalKey> {
        let pool = match version {
            Version::V0 => &mut self.keys_v0,
            Version::V1 => &mut self.keys,
        };
        let tokens = &self.tokens;
        let key = pool.take(&mut *self.entropy, |token| !tokens.contains_key(&token));
        self.metrics.mp_fallback_token_init += u64::from(key.is_none());
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::token_and_idsn;
    use crate::rand::ChaChaEntropy;
    use std::collections::HashSet;

    /// Keys that end alike have one token: sixteen in all.
    fn sixteen_tokens(key: u64) -> (u32, u64) {
        ((key as u32) << 28 | 1, key)
    }

    // RFC 8684 §3.1: the key is drawn again while its token is that of another connection; with none
    // left there is no key.
    #[test]
    fn a_token_that_is_taken_is_never_given_again() {
        for pooled in [0, 100] {
            let mut entropy = ChaChaEntropy::deterministic(1);
            let mut pool = KeyPool::new(1, 4, pooled, sixteen_tokens);
            pool.refill(&mut entropy, 1_000);
            let mut taken = HashSet::new();
            for _ in 0..4 {
                let drawn = pool.take(&mut entropy, |token| !taken.contains(&token));
                let drawn = drawn.expect("one is left");
                assert_eq!((drawn.token, drawn.idsn), sixteen_tokens(drawn.key));
                assert!((0x4000_0000..0x8000_0000).contains(&drawn.token));
                assert!(taken.insert(drawn.token));
            }
            let none = pool.take(&mut entropy, |token| !taken.contains(&token));
            assert!(none.is_none());
        }
    }

    #[test]
    fn a_pool_is_filled_to_its_limit_and_no_key_leaves_it_twice() {
        let mut entropy = ChaChaEntropy::deterministic(2);
        let mut pool = KeyPool::new(2, 3, 50, token_and_idsn);
        let mut refills = 0;
        while pool.refill(&mut entropy, 10) {
            refills += 1;
            assert!(pool.drawn.len() <= 10 * refills && refills < 100);
        }
        assert_eq!(pool.drawn.len(), 50);
        let mut seen = HashSet::new();
        for left in (0..50).rev() {
            let drawn = pool.take(&mut entropy, |_| true).expect("the pool is full");
            assert!(seen.insert(drawn.key) && owner_of(drawn.token, 3) == 2);
            assert_eq!(pool.drawn.len(), left);
        }
        assert!(
            pool.take(&mut entropy, |_| true)
                .is_some_and(|d| seen.insert(d.key))
        );
    }

    #[test]
    fn zero_is_nobody_s_token() {
        let pool = KeyPool::new(0, 1, 0, |key| (key as u32, 0));
        assert!(pool.own(1 << 32).is_none() && pool.own(1).is_some());
    }
}
