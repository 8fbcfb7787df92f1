//! Keys of connections, whose tokens name this worker as their owner.

use super::Engine;
use crate::crypto;

/// Draws per owner before MP_CAPABLE is given up for this connection.
const KEY_DRAWS_PER_OWNER: u32 = 64;

impl Engine {
    /// A key whose token is free and names us as its owner (RFC 8684 §3.1), with token and IDSN.
    pub(super) fn draw_key(&mut self) -> Option<(u64, u32, u64)> {
        for _ in 0..KEY_DRAWS_PER_OWNER * self.config.owners {
            let key = self.entropy.next_u64();
            let (token, idsn) = crypto::token_and_idsn(key);
            let ours = mpx_ebpf::owner_of(token, self.config.owners) == self.config.owner;
            if ours && token != 0 && !self.tokens.contains_key(&token) {
                return Some((key, token, idsn));
            }
        }
        self.metrics.mp_fallback_token_init += 1;
        None
    }
}
