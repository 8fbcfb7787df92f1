//! Timestamps (RFC 7323), with the owner of the connection in the low bits of TSval.
//!
//! `TSval = ((now_ms + offset) & !mask) | owner`: a 1 ms clock (§5.4) that a client echoes in TSecr,
//! so that every segment names the worker that owns it. Round-trip times come from our own send
//! times, never from TSecr. Known deviation: §5.4 (a) wants a tick per window; ours comes every
//! `2^owner_bits` ms.

use crate::time::Instant;
use crate::wire::tcp::Timestamps;

/// RFC 7323 §5.5: TS.Recent is invalid once it is 24 days old.
const RECENT_VALID_MS: u64 = 24 * 24 * 3600 * 1000;

/// Our TSval clock of one subflow.
#[derive(Clone, Copy, Debug)]
pub struct TsClock {
    /// Keyed by the 4-tuple.
    pub offset: u32,
    pub owner: u32,
    pub owner_bits: u32,
}

impl TsClock {
    pub fn tsval(&self, now: Instant) -> u32 {
        let clock_ms = (now.as_millis() as u32).wrapping_add(self.offset);
        mpx_ebpf::timestamp_with_owner(clock_ms, self.owner, self.owner_bits)
    }
}

/// Timestamp state of one subflow that negotiated them.
#[derive(Clone, Copy, Debug)]
pub struct TsState {
    pub clock: TsClock,
    /// TS.Recent.
    recent: u32,
    recent_at: Instant,
}

impl TsState {
    pub fn new(clock: TsClock, tsval: u32, now: Instant) -> TsState {
        TsState {
            clock,
            recent: tsval,
            recent_at: now,
        }
    }

    /// RFC 7323 §5.3 R1: an old duplicate by its timestamp.
    pub fn paws_rejects(&self, tsval: u32, now: Instant) -> bool {
        (tsval.wrapping_sub(self.recent) as i32) < 0
            && now.since(self.recent_at).as_millis() < u128::from(RECENT_VALID_MS)
    }

    /// RFC 7323 §4.3: remember TSval of a segment that does not begin after the last ACK sent.
    pub fn update(&mut self, tsval: u32, now: Instant) {
        if (tsval.wrapping_sub(self.recent) as i32) >= 0 || !self.paws_rejects(tsval, now) {
            self.recent = tsval;
            self.recent_at = now;
        }
    }

    /// TS.Recent.
    pub fn recent(&self) -> u32 {
        self.recent
    }

    pub fn option(&self, now: Instant) -> Timestamps {
        Timestamps {
            tsval: self.clock.tsval(now),
            tsecr: self.recent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tsval_names_its_owner_and_never_goes_back() {
        let clock = TsClock {
            offset: 0x1234_5678,
            owner: 3,
            owner_bits: 8,
        };
        let mut last = clock.tsval(Instant::ZERO);
        for ms in 1..2000 {
            let tsval = clock.tsval(Instant::from_millis(ms));
            assert_eq!(tsval & 0xff, 3);
            assert!((tsval.wrapping_sub(last) as i32) >= 0);
            last = tsval;
        }
        assert_eq!(last.wrapping_sub(clock.tsval(Instant::ZERO)), 2048);
    }

    #[test]
    fn paws_boundary_and_its_age_limit() {
        let clock = TsClock {
            offset: 0,
            owner: 0,
            owner_bits: 8,
        };
        let ts = TsState::new(clock, 1000, Instant::ZERO);
        assert!(!ts.paws_rejects(1000, Instant::ZERO));
        assert!(ts.paws_rejects(999, Instant::ZERO));
        assert!(ts.paws_rejects(999, Instant::from_millis(RECENT_VALID_MS - 1)));
        assert!(!ts.paws_rejects(999, Instant::from_millis(RECENT_VALID_MS)));
    }
}
