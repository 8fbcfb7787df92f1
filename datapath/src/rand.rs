//! Entropy as an argument: seeded from the operating system in `mpxd`, from a number in tests.

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// A source of unpredictable numbers, for keys, nonces and secrets.
pub trait Entropy {
    fn fill(&mut self, bytes: &mut [u8]);

    fn next_u32(&mut self) -> u32 {
        let mut b = [0; 4];
        self.fill(&mut b);
        u32::from_be_bytes(b)
    }

    fn next_u64(&mut self) -> u64 {
        let mut b = [0; 8];
        self.fill(&mut b);
        u64::from_be_bytes(b)
    }
}

/// ChaCha20, seeded once.
pub struct ChaChaEntropy(ChaCha20Rng);

impl ChaChaEntropy {
    /// `seed` must come from the operating system where secrecy matters.
    pub fn from_seed(seed: [u8; 32]) -> ChaChaEntropy {
        ChaChaEntropy(ChaCha20Rng::from_seed(seed))
    }

    /// The same numbers for the same `seed`: for tests and simulations only.
    pub fn deterministic(seed: u64) -> ChaChaEntropy {
        ChaChaEntropy(ChaCha20Rng::seed_from_u64(seed))
    }
}

impl Entropy for ChaChaEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}
