//! Timestamps (RFC 7323), with the owner of the connection in the low bits of TSval.
//!
//! `TSval = ((now_ms + offset) & !mask) | owner`: a 1 ms clock (§5.4) that a client echoes in TSecr,
//! so that every segment names the worker that owns it. Round-trip times come from our own send
//! times, never from TSecr. Known deviation: §5.4 (a) wants a tick per window; ours comes every
//! `2^owner_bits` ms.

use crate::time::{Duration, Instant};
use crate::wire::tcp::Timestamps;

/// RFC 7323 §5.5: TS.Recent is invalid once it is 24 days old.
const RECENT_VALID_MS: u64 = 24 * 24 * 3600 * 1000;

/// Of a note that TSval can carry above the owner.
pub const NOTE_BITS: u32 = 6;
const NOTE_MASK: u32 = (1 << NOTE_BITS) - 1;

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

    /// TSval with a `note` of [`NOTE_BITS`] above the owner, at or before the one of now: no later one
    /// is smaller.
    pub fn tsval_with(&self, now: Instant, note: u8) -> u32 {
        let plain = self.tsval(now);
        let mask = NOTE_MASK << self.owner_bits;
        let note = u32::from(note) << self.owner_bits & mask;
        let noted = plain & !mask | note;
        match note > plain & mask {
            true => noted.wrapping_sub((NOTE_MASK + 1) << self.owner_bits),
            false => noted,
        }
    }

    /// The note that TSecr echoes, if it can be one that left within `age`.
    pub fn note_in(&self, now: Instant, tsecr: u32, age: Duration) -> Option<u8> {
        let rounding_ms = (NOTE_MASK + 1) << self.owner_bits;
        let age_ms = age.as_millis() as u32 + rounding_ms;
        let plain = self.tsval(now);
        let ours = mpx_ebpf::timestamp_with_owner(tsecr, self.owner, self.owner_bits) == tsecr;
        let recent = plain.wrapping_sub(tsecr) <= age_ms;
        (ours && recent).then_some((tsecr >> self.owner_bits & NOTE_MASK) as u8)
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
    fn a_note_comes_back_and_no_later_tsval_is_smaller() {
        let at = Instant::from_millis;
        let age = Duration::from_secs(100);
        for offset in [0, 0x0123_4567, u32::MAX - 20_000] {
            let clock = TsClock {
                offset,
                owner: 5,
                owner_bits: 8,
            };
            for ms in (0..40_000).step_by(97) {
                for note in 0..1 << NOTE_BITS {
                    let noted = clock.tsval_with(at(ms), note);
                    let behind = clock.tsval(at(ms)).wrapping_sub(noted);
                    assert!(behind < 1 << (8 + NOTE_BITS), "{behind} at {ms}");
                    assert_eq!(clock.note_in(at(ms), noted, age), Some(note));
                }
            }
            let noted = clock.tsval_with(at(0), 63);
            let last_ms = 100_000 + (1 << (8 + NOTE_BITS));
            let plain = clock.tsval(at(0));
            let slack_ms = u64::from(plain.wrapping_sub(noted)) + 256;
            assert_eq!(clock.note_in(at(last_ms - slack_ms), noted, age), Some(63));
            assert_eq!(clock.note_in(at(last_ms + 256), noted, age), None);
            assert_eq!(
                clock.note_in(at(0), noted ^ 1, age),
                None,
                "another owner's"
            );
            assert_eq!(clock.note_in(at(0), plain.wrapping_add(256), age), None);
        }
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
