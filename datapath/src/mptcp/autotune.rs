//! How large the buffers of a connection are to be: as its paths and its application need it, between
//! an initial size and a limit.
//!
//! RFC 8684 §3.3.4 bounds what is useful by the bandwidth of all paths together times the largest
//! round-trip time; twice as much keeps the paths full while a loss is repaired.

use crate::seq::DataSeq;
use crate::tcp::rtt::RTO_INITIAL;
use crate::time::{Duration, Instant};

/// Segments beside what a measurement calls for: a window of few segments loses its ACK clock.
const SLACK_SEGMENTS: usize = 16;

/// Sizes the receive window by what the application takes in a round trip (dynamic right-sizing).
///
/// A reader that is slower than its path takes little in a round trip, whatever the window: it does
/// not get a larger one.
#[derive(Debug)]
pub struct ReceiveTuner {
    window_bytes: usize,
    max_bytes: usize,
    /// What was taken in the last round trip that was measured.
    taken_bytes: usize,
    /// Where the measurement under way began.
    from: DataSeq,
    since: Option<Instant>,
    round_trip: Duration,
}

impl ReceiveTuner {
    pub fn new(initial_bytes: usize, max_bytes: usize) -> ReceiveTuner {
        ReceiveTuner {
            window_bytes: initial_bytes.min(max_bytes),
            max_bytes,
            taken_bytes: 0,
            from: DataSeq(0),
            since: None,
            round_trip: Duration::ZERO,
        }
    }

    /// The window of an empty buffer, octets.
    pub fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    /// Numbers go on elsewhere: the measurement under way means nothing.
    pub fn restart(&mut self) {
        self.since = None;
    }

    /// The application has taken everything before `front`. `round_trip` is asked for once per round
    /// trip: the longest of all paths, `None` where none was measured. `mss` is in octets.
    pub fn on_taken(
        &mut self,
        now: Instant,
        front: DataSeq,
        mss: usize,
        round_trip: impl FnOnce() -> Option<Duration>,
    ) {
        let Some(since) = self.since else {
            (self.from, self.since) = (front, Some(now));
            return;
        };
        let elapsed = now.since(since);
        if elapsed < self.round_trip || self.window_bytes == self.max_bytes {
            return;
        }
        // Taken for too long, it makes the window larger than it has to be, and no more than that.
        self.round_trip = round_trip().unwrap_or(RTO_INITIAL);
        if elapsed < self.round_trip {
            return;
        }
        let taken = front.distance(self.from);
        if taken > self.taken_bytes {
            self.window_bytes = self.wanted_bytes(taken, mss);
            self.taken_bytes = taken;
        }
        (self.from, self.since) = (front, Some(now));
    }

    /// Twice what was taken, so that a loss does not stop the sender; and that twice where the sender
    /// is doubling: what is advertised now is used a round trip later.
    fn wanted_bytes(&self, taken: usize, mss: usize) -> usize {
        let growth = (taken - self.taken_bytes).min(taken / 2);
        let wanted = 2 * (taken + 2 * growth) + SLACK_SEGMENTS * mss;
        wanted.clamp(self.window_bytes, self.max_bytes)
    }
}

/// Sizes the send buffer by the congestion windows of the paths: one window is in flight and another
/// one waits for its turn, or fills the holes of the first.
#[derive(Debug)]
pub struct SendTuner {
    limit_bytes: usize,
    initial_bytes: usize,
    max_bytes: usize,
}

impl SendTuner {
    pub fn new(initial_bytes: usize, max_bytes: usize) -> SendTuner {
        let initial_bytes = initial_bytes.min(max_bytes);
        SendTuner {
            limit_bytes: initial_bytes,
            initial_bytes,
            max_bytes,
        }
    }

    /// Octets that the application may have written without their acknowledgment.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// `held_bytes` are in the buffer; `cwnd_bytes` is asked for where that matters: all congestion
    /// windows together. While anything is held the limit only grows: a window halved by a loss does
    /// not starve the path of new data during its repair.
    pub fn on_progress(&mut self, held_bytes: usize, cwnd_bytes: impl FnOnce() -> usize) {
        let scarce = self.limit_bytes < self.max_bytes && 2 * held_bytes > self.limit_bytes;
        let idle = held_bytes == 0 && self.limit_bytes > self.initial_bytes;
        if !scarce && !idle {
            return;
        }
        let wanted = (2 * cwnd_bytes()).clamp(self.initial_bytes, self.max_bytes);
        if idle || wanted > self.limit_bytes {
            self.limit_bytes = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: usize = 1000;
    const INITIAL: usize = 100_000;
    const MAX: usize = 4_000_000;
    const ROUND_TRIP: Duration = Duration::from_millis(100);

    /// The application takes so much in each of these round trips.
    fn after(taken: &[usize]) -> ReceiveTuner {
        let mut tuner = ReceiveTuner::new(INITIAL, MAX);
        let (mut now, mut front) = (Instant::from_millis(5), DataSeq(u64::MAX - 1000));
        tuner.on_taken(now, front, MSS, || Some(ROUND_TRIP));
        for n in taken {
            // In ten parts: what is taken counts at the end of the round trip only.
            for _ in 0..10 {
                (now, front) = (now + ROUND_TRIP / 10, front + n / 10);
                tuner.on_taken(now, front, MSS, || Some(ROUND_TRIP));
            }
        }
        tuner
    }

    #[test]
    fn a_slow_reader_keeps_the_initial_window() {
        assert_eq!(after(&[20_000; 50]).window_bytes(), INITIAL);
    }

    #[test]
    fn the_window_is_ahead_of_a_sender_in_slow_start_and_stays_with_the_path() {
        let rounds: Vec<usize> = (0..8).map(|round| 15_000 << round).collect();
        for n in 1..rounds.len() {
            let window = after(&rounds[..n]).window_bytes();
            // Of what comes next, and of what comes after that.
            assert!(window >= 2 * rounds[n], "{window} after {n} rounds");
        }
        let steady = after(&[&rounds[..4], &[200_000; 50]].concat()).window_bytes();
        assert!((400_000..800_000).contains(&steady), "{steady}");
        assert_eq!(after(&[MAX; 3]).window_bytes(), MAX);
    }

    #[test]
    fn a_round_trip_is_waited_for_to_the_end() {
        let begin = Instant::from_millis(1);
        for (early, grows) in [(Duration::from_nanos(1), false), (Duration::ZERO, true)] {
            for measured in [Some(ROUND_TRIP), None] {
                let mut tuner = ReceiveTuner::new(INITIAL, MAX);
                tuner.on_taken(begin, DataSeq(0), MSS, || measured);
                let now = begin + (measured.unwrap_or(RTO_INITIAL) - early);
                tuner.on_taken(now, DataSeq(150_000), MSS, || measured);
                // Twice 150,000, and that twice by a half more each; and the slack.
                let window = if grows { 616_000 } else { INITIAL };
                assert_eq!(tuner.window_bytes(), window);
            }
        }
    }

    #[test]
    fn the_round_trip_is_asked_for_once_in_each_and_no_more_at_the_limit() {
        let mut tuner = ReceiveTuner::new(INITIAL, MAX);
        let mut asked = 0;
        for tenth in 0..=30 {
            let now = Instant::from_millis(1) + ROUND_TRIP / 10 * tenth;
            let front = DataSeq(0) + MAX * tenth as usize / 30;
            tuner.on_taken(now, front, MSS, || {
                asked += 1;
                Some(ROUND_TRIP)
            });
            if tenth == 9 {
                assert_eq!(asked, 1, "nothing was known before");
            }
        }
        assert_eq!((tuner.window_bytes(), asked), (MAX, 2));
    }

    #[test]
    fn the_send_limit_follows_the_windows_up_and_goes_back_when_all_is_acknowledged() {
        let mut tuner = SendTuner::new(INITIAL, MAX);
        // Not asked for while half of it is free.
        tuner.on_progress(INITIAL / 2, || MAX);
        assert_eq!(tuner.limit_bytes(), INITIAL);
        tuner.on_progress(INITIAL / 2 + 1, || 300_000);
        assert_eq!(tuner.limit_bytes(), 600_000);
        tuner.on_progress(600_000, || 150_000);
        assert_eq!(tuner.limit_bytes(), 600_000, "a loss takes nothing away");
        tuner.on_progress(600_000, || MAX);
        assert_eq!(tuner.limit_bytes(), MAX);
        tuner.on_progress(MAX, || panic!("it cannot grow"));
        tuner.on_progress(0, || 150_000);
        assert_eq!(tuner.limit_bytes(), 300_000);
        tuner.on_progress(0, || 10_000);
        assert_eq!(tuner.limit_bytes(), INITIAL);
        tuner.on_progress(0, || panic!("it cannot shrink"));
    }
}
