//! Pacing: a window leaves spread over a round trip instead of at once.

use crate::time::{Duration, Instant};

/// What may leave at once after a pause: the timer wheel ticks every millisecond, and what it is
/// late by is made up for.
const BURST_TIME: Duration = Duration::from_millis(2);
/// And never less than so many segments, the initial window (RFC 6928).
const BURST_SEGMENTS: usize = 10;
/// No segment waits longer than this: a round trip measured across an outage is no pace.
const HOLD_MAX: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Pacer {
    /// When the next segment would leave at an even pace.
    next: Instant,
    /// Nothing leaves before.
    pub(super) held_until: Option<Instant>,
}

impl Pacer {
    /// `octets` left. The pace is a window per round trip, with headroom to grow: twice that in slow
    /// start, 1.2 times in congestion avoidance, as Linux has it.
    pub(super) fn on_sent(
        &mut self,
        now: Instant,
        octets: usize,
        window: usize,
        srtt: Duration,
        mss: usize,
        slow_start: bool,
    ) {
        let (numerator, denominator) = if slow_start { (1, 2) } else { (5, 6) };
        let nanos = |octets: usize| {
            let round_trip = u64::try_from(srtt.as_nanos()).unwrap_or(u64::MAX);
            let per_window = round_trip.saturating_mul(octets as u64) / window.max(1) as u64;
            Duration::from_nanos(per_window / denominator * numerator)
        };
        let burst = BURST_TIME.max(nanos(BURST_SEGMENTS * mss));
        let earliest = Instant(now.0.saturating_sub(burst.as_nanos() as u64));
        self.next = (self.next.max(earliest) + nanos(octets)).min(now + HOLD_MAX);
        self.held_until = (self.next > now).then_some(self.next);
    }
}
