//! Time as an argument: nanoseconds on a monotonic clock whose zero means nothing.

use std::ops::{Add, Sub};
pub use std::time::Duration;

/// A point on the monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    pub const ZERO: Instant = Instant(0);

    pub const fn from_millis(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    pub const fn from_micros(us: u64) -> Instant {
        Instant(us * 1_000)
    }

    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }

    /// The first of these timers, as far as they are set.
    pub fn earliest<const N: usize>(timers: [Option<Instant>; N]) -> Option<Instant> {
        let never = Instant(u64::MAX);
        let first = timers
            .into_iter()
            .fold(never, |first, at| first.min(at.unwrap_or(never)));
        (first != never).then_some(first)
    }

    /// Time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(
            self.0
                .saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;
    fn sub(self, rhs: Instant) -> Duration {
        self.since(rhs)
    }
}
