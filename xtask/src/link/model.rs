//! One direction of an emulated link in virtual time: frames go in with the time at which they came,
//! and come out with the time at which they are due. Nothing here knows a clock or a socket.
//!
//! A frame waits in a drop-tail queue, takes its time at the rate, and then meets the wire, where it
//! may be lost, delayed, held back or doubled: what is lost has used its share of the rate. Each kind
//! of accident draws from a stream of its own, so that the n-th frame on the wire is lost or not
//! whatever else is switched on.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::ecn;
use super::spec::{Direction, Probability, Queue};

const NS_PER_S: u64 = 1_000_000_000;
/// Octets that one direction holds at most, whatever rate and delay ask for.
const MAX_HELD_OCTETS: usize = 256 << 20;

/// One direction at work.
pub(crate) struct Model {
    spec: Direction,
    dice: Dice,
    in_burst: bool,
    /// When the frame that was queued last has been sent, and the rest of that division.
    free_at_ns: u64,
    remainder: u64,
    /// Of every frame in the queue, when it has been sent, and its size.
    queue: VecDeque<(u64, u64)>,
    queued_octets: u64,
    /// The latest time that a frame in its order is due.
    last_due_ns: u64,
    wire: BinaryHeap<InFlight>,
    held_octets: usize,
    entered: u64,
    pub(crate) counts: Counts,
}

/// What became of the frames so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) frames_in: u64,
    pub(crate) octets_in: u64,
    pub(crate) queue_full: u64,
    pub(crate) marked: u64,
    pub(crate) lost: u64,
    pub(crate) lost_in_bursts: u64,
    pub(crate) reordered: u64,
    pub(crate) duplicated: u64,
    /// Dropped because too much was held: the emulation failed.
    pub(crate) over_limit: u64,
    pub(crate) frames_out: u64,
    pub(crate) octets_out: u64,
}

/// A stream of random numbers for each kind of accident.
struct Dice {
    loss: ChaCha8Rng,
    burst: ChaCha8Rng,
    burst_loss: ChaCha8Rng,
    jitter: ChaCha8Rng,
    reorder: ChaCha8Rng,
    duplicate: ChaCha8Rng,
}

struct InFlight {
    due_ns: u64,
    /// Those due at the same time leave in the order in which they came.
    number: u64,
    frame: Vec<u8>,
}

impl Model {
    /// `side` keeps the two directions of a link apart, which have the same seed.
    pub(crate) fn new(spec: Direction, seed: u64, side: u64) -> Self {
        Self {
            spec,
            dice: Dice::new(seed, side),
            in_burst: false,
            free_at_ns: 0,
            remainder: 0,
            queue: VecDeque::new(),
            queued_octets: 0,
            last_due_ns: 0,
            wire: BinaryHeap::new(),
            held_octets: 0,
            entered: 0,
            counts: Counts::default(),
        }
    }

    /// Takes in a frame that came at `now_ns`; calls must not go back in time.
    pub(crate) fn offer(&mut self, now_ns: u64, mut frame: Vec<u8>) {
        let octets = frame.len() as u64;
        self.counts.frames_in += 1;
        self.counts.octets_in += octets;
        let Some(sent_ns) = self.enqueue(now_ns, octets) else {
            self.counts.queue_full += 1;
            return;
        };
        let congested = |limit| self.queued_octets > limit;
        if self.spec.ecn_octets.is_some_and(congested) && ecn::mark(&mut frame) {
            self.counts.marked += 1;
        }

        let (in_burst, alone) = (self.lost_in_burst(), self.dice.lost(&self.spec));
        if in_burst || alone {
            self.counts.lost_in_bursts += u64::from(in_burst);
            self.counts.lost += u64::from(!in_burst);
            return;
        }

        let jitter_ns = self.dice.jitter_ns(self.spec.jitter_ns);
        let mut due_ns = sent_ns + self.spec.delay_ns - self.spec.jitter_ns + jitter_ns;
        due_ns = due_ns.max(self.last_due_ns);
        if hit(&mut self.dice.reorder, self.spec.reorder) {
            self.counts.reordered += 1;
            due_ns += self.spec.reorder_ns;
        } else {
            self.last_due_ns = due_ns;
        }
        if hit(&mut self.dice.duplicate, self.spec.duplicate) {
            self.counts.duplicated += 1;
            self.hold(due_ns, frame.clone());
        }
        self.hold(due_ns, frame);
    }

    /// When the next frame is due.
    pub(crate) fn next_due_ns(&self) -> Option<u64> {
        self.wire.peek().map(|next| next.due_ns)
    }

    /// The next frame that is due by `now_ns`, and since when.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<(u64, Vec<u8>)> {
        if self.next_due_ns()? > now_ns {
            return None;
        }
        let InFlight { due_ns, frame, .. } = self.wire.pop()?;
        self.held_octets -= frame.len();
        self.counts.frames_out += 1;
        self.counts.octets_out += frame.len() as u64;
        Some((due_ns, frame))
    }

    /// When the frame will have been sent at the rate, or `None` where the queue is full.
    fn enqueue(&mut self, now_ns: u64, octets: u64) -> Option<u64> {
        let Some(rate_bps) = self.spec.rate_bps else {
            return Some(now_ns);
        };
        while let Some(&(sent_ns, octets)) = self.queue.front()
            && sent_ns <= now_ns
        {
            self.queue.pop_front();
            self.queued_octets -= octets;
        }
        let full = match self.spec.queue {
            Queue::Frames(limit) => self.queue.len() >= limit,
            Queue::Octets(limit) => self.queued_octets + octets > limit,
        };
        if full {
            return None;
        }
        if self.free_at_ns <= now_ns {
            self.free_at_ns = now_ns;
            self.remainder = 0;
        }
        // What a division leaves over counts for the next frame: no rate is off in the long run.
        let bits_ns = octets * 8 * NS_PER_S + self.remainder;
        self.free_at_ns += bits_ns / rate_bps;
        self.remainder = bits_ns % rate_bps;
        self.queue.push_back((self.free_at_ns, octets));
        self.queued_octets += octets;
        Some(self.free_at_ns)
    }

    fn lost_in_burst(&mut self) -> bool {
        let burst = self.spec.burst;
        let change = if self.in_burst {
            burst.end
        } else {
            burst.begin
        };
        self.in_burst ^= hit(&mut self.dice.burst, change);
        hit(&mut self.dice.burst_loss, burst.loss) && self.in_burst
    }

    fn hold(&mut self, due_ns: u64, frame: Vec<u8>) {
        if self.held_octets + frame.len() > MAX_HELD_OCTETS {
            self.counts.over_limit += 1;
            return;
        }
        self.held_octets += frame.len();
        self.entered += 1;
        self.wire.push(InFlight {
            due_ns,
            number: self.entered,
            frame,
        });
    }
}

impl Dice {
    fn new(seed: u64, side: u64) -> Self {
        const STREAMS: u64 = 16;
        let stream = |number| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(side * STREAMS + number);
            rng
        };
        Self {
            loss: stream(0),
            burst: stream(1),
            burst_loss: stream(2),
            jitter: stream(3),
            reorder: stream(4),
            duplicate: stream(5),
        }
    }

    fn lost(&mut self, spec: &Direction) -> bool {
        hit(&mut self.loss, spec.loss)
    }

    /// 0 to twice `jitter_ns`.
    fn jitter_ns(&mut self, jitter_ns: u64) -> u64 {
        if jitter_ns == 0 {
            return 0;
        }
        // At most 2^37, so the share of the last numbers is as good as that of the first.
        self.jitter.next_u64() % (2 * jitter_ns + 1)
    }
}

/// Draws only where something may happen: a stream of its own needs no step for nothing.
fn hit(rng: &mut ChaCha8Rng, probability: Probability) -> bool {
    const STEPS: f64 = (1_u64 << 53) as f64;
    probability.0 > 0.0 && ((rng.next_u64() >> 11) as f64) < probability.0 * STEPS
}

impl Ord for InFlight {
    /// Reversed: the heap's greatest is the next to leave.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due_ns, other.number).cmp(&(self.due_ns, self.number))
    }
}

impl PartialOrd for InFlight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for InFlight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for InFlight {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::spec::Spec;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1_000 * MS;

    fn model(text: &str) -> Model {
        let spec: Spec = text.parse().unwrap();
        Model::new(spec.down, spec.seed, 1)
    }

    /// A frame that bears its number.
    fn frame(number: u32, octets: usize) -> Vec<u8> {
        let mut frame = vec![0; octets];
        frame[..4].copy_from_slice(&number.to_be_bytes());
        frame
    }

    fn number(frame: &[u8]) -> u32 {
        u32::from_be_bytes(frame[..4].try_into().unwrap())
    }

    /// All that leaves, in order, with its time.
    fn leave(model: &mut Model) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| model.pop_due(u64::MAX))
            .map(|(due_ns, frame)| (due_ns, number(&frame)))
            .collect()
    }

    /// What leaves of so many small frames that come 1 ms apart.
    fn fates(text: &str, frames: u32) -> Vec<(u64, u32)> {
        let mut model = model(text);
        for i in 0..frames {
            model.offer(u64::from(i) * MS, frame(i, 100));
        }
        leave(&mut model)
    }

    #[test]
    fn a_frame_is_due_after_its_time_at_the_rate_and_the_delay_and_not_before() {
        let mut model = model("rate=100mbit delay=10ms");
        model.offer(5 * MS, frame(0, 1250));
        let due_ns = 5 * MS + 100_000 + 10 * MS;
        assert_eq!(model.next_due_ns(), Some(due_ns));
        assert_eq!(model.pop_due(due_ns - 1), None);
        assert_eq!(model.pop_due(due_ns), Some((due_ns, frame(0, 1250))));
        assert_eq!(model.pop_due(due_ns), None);
    }

    #[test]
    fn the_rate_is_exact_over_ten_seconds() {
        // None divides a frame's bits into whole nanoseconds.
        for rate_bps in [64_000, 7_000_003, 999_999_937] {
            let mut model = model(&format!("rate={rate_bps}bit queue=2p"));
            let (mut now_ns, mut octets) = (0, 0);
            while now_ns < 10 * SECOND {
                model.offer(now_ns, frame(0, 1514));
                model.offer(now_ns, frame(0, 1514));
                (now_ns, _) = model.pop_due(u64::MAX).unwrap();
                octets += 1514;
            }
            let exact_ns = (u128::from(octets * 8_u64) * u128::from(NS_PER_S)) / rate_bps;
            assert_eq!(u128::from(now_ns), exact_ns, "at {rate_bps} bit/s");
        }
    }

    #[test]
    fn the_queue_takes_what_fits_and_drops_the_rest() {
        // 1500 octets take 1 ms.
        for (queue, fits) in [("3p", 3), ("4500b", 3), ("4499b", 2), ("3ms", 3)] {
            let mut model = model(&format!("rate=12mbit queue={queue}"));
            let burst = |model: &mut Model, now_ns| {
                let before = model.counts.queue_full;
                (0..5).for_each(|i| model.offer(now_ns, frame(i, 1500)));
                5 - (model.counts.queue_full - before)
            };
            assert_eq!(burst(&mut model, 0), fits, "{queue}");
            assert_eq!(burst(&mut model, MS - 1), 0, "{queue}: none has been sent");
            assert_eq!(burst(&mut model, MS), 1, "{queue}: one has been sent");
            assert_eq!(leave(&mut model).len() as u64, fits + 1, "{queue}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_fates_and_another_gives_others() {
        let text = "rate=10mbit delay=20ms jitter=5ms loss=2% burst=1%:30% reorder=3%:4ms \
                    duplicate=2%";
        let with_seed = |seed| fates(&format!("{text} seed={seed}"), 1000);
        assert_eq!(with_seed(1), with_seed(1));
        assert_ne!(with_seed(1), with_seed(2));
    }

    #[test]
    fn the_directions_of_a_link_have_different_fates() {
        let spec: Spec = "loss=10%".parse().unwrap();
        let [up, down] = [0, 1].map(|side| {
            let mut model = Model::new(spec.down.clone(), spec.seed, side);
            (0..1000).for_each(|i| model.offer(0, frame(i, 100)));
            leave(&mut model)
        });
        assert_ne!(up, down);
    }

    #[test]
    fn which_frames_are_lost_does_not_depend_on_the_other_accidents() {
        let kept = |text| {
            let mut numbers: Vec<_> = fates(text, 1000).iter().map(|(_, n)| *n).collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers
        };
        assert_eq!(
            kept("loss=5% seed=3"),
            kept("loss=5% duplicate=10% reorder=10%:9ms delay=3ms jitter=2ms seed=3")
        );
    }

    #[test]
    fn as_many_are_lost_as_asked_for() {
        const FRAMES: u32 = 200_000;
        // Five standard deviations of a binomial distribution on either side.
        for percent in [0.1, 1.0, 30.0] {
            let mut model = model(&format!("loss={percent}%"));
            (0..FRAMES).for_each(|i| model.offer(0, frame(i, 100)));
            let p: f64 = percent / 100.0;
            let expected = p * f64::from(FRAMES);
            let deviation = (expected * (1.0 - p)).sqrt();
            let lost = model.counts.lost as f64;
            assert!(
                (lost - expected).abs() < 5.0 * deviation,
                "{percent}: {lost}"
            );
            assert_eq!(model.counts.lost_in_bursts, 0);
            assert_eq!(leave(&mut model).len() as f64, f64::from(FRAMES) - lost);
        }
        assert!(fates("loss=100%", 100).is_empty());
        assert_eq!(fates("loss=0%", 100).len(), 100);
    }

    #[test]
    fn bursts_are_as_many_and_as_long_as_asked_for() {
        const FRAMES: u32 = 400_000;
        let kept: Vec<_> = fates("burst=0.5%:20%", FRAMES);
        let gaps: Vec<_> = kept
            .windows(2)
            .map(|pair| f64::from(pair[1].1 - pair[0].1 - 1))
            .filter(|gap| *gap > 0.0)
            .collect();
        // The mean of both is a geometric distribution's: 1/p frames.
        let bursts = gaps.len() as f64;
        let length = gaps.iter().sum::<f64>() / bursts;
        let expected = f64::from(FRAMES) / (1.0 / 0.005 + 1.0 / 0.2);
        assert!((bursts / expected - 1.0).abs() < 0.1, "{bursts} bursts");
        assert!((length / 5.0 - 1.0).abs() < 0.1, "{length} frames each");

        let mut half = model("burst=0.5%:20%:50%");
        (0..FRAMES).for_each(|i| half.offer(0, frame(i, 100)));
        let share = half.counts.lost_in_bursts as f64 / (expected * 5.0);
        assert!(
            (share - 0.5).abs() < 0.05,
            "{share} of the frames in bursts"
        );
    }

    #[test]
    fn jitter_spreads_the_delay_evenly_and_keeps_the_order() {
        let left = fates("delay=10ms jitter=400us", 10_000);
        let delays: Vec<_> = left.iter().map(|(at, n)| at - u64::from(*n) * MS).collect();
        assert!(left.windows(2).all(|pair| pair[0].1 < pair[1].1));
        assert!(delays.iter().all(|d| (9_600_000..=10_400_000).contains(d)));
        let below = delays.iter().filter(|delay| **delay < 9_800_000).count();
        assert!((2_250..2_750).contains(&below), "a quarter, not {below}");

        // Apart by less than the jitter: in order, and none earlier than the one before.
        let close = fates("delay=10ms jitter=8ms", 1000);
        assert!(
            close
                .windows(2)
                .all(|pair| pair[0] < pair[1] && pair[0].1 < pair[1].1)
        );
    }

    #[test]
    fn those_held_back_are_overtaken_by_what_comes_meanwhile() {
        let left = fates("delay=2ms reorder=5%:3500us", 1000);
        let overtaken: Vec<_> = (0..left.len())
            .filter(|&i| left[..i].iter().any(|(_, earlier)| *earlier > left[i].1))
            .collect();
        assert!((20..=90).contains(&overtaken.len()), "{}", overtaken.len());
        for i in overtaken {
            let (due_ns, number) = left[i];
            assert_eq!(due_ns, u64::from(number) * MS + 5_500_000);
        }
    }

    #[test]
    fn a_copy_follows_its_frame_at_once() {
        let left = fates("delay=1ms duplicate=10%", 1000);
        let copies = left.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((50..=150).contains(&copies), "{copies}");
        assert_eq!(left.len(), 1000 + copies);
    }

    #[test]
    fn a_full_queue_marks_before_it_drops() {
        let mut model = model("rate=12mbit queue=6kb ecn=3kb");
        let mut capable = vec![0; 1500];
        capable[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0x02]);
        (0..5).for_each(|_| model.offer(0, capable.clone()));
        assert_eq!((model.counts.marked, model.counts.queue_full), (2, 1));
        let marked: Vec<_> = std::iter::from_fn(|| model.pop_due(u64::MAX))
            .map(|(_, frame)| frame[15] == 0x03)
            .collect();
        assert_eq!(marked, [false, false, true, true]);
    }

    #[test]
    fn what_is_held_has_a_limit() {
        let mut model = model("delay=60s");
        const FRAME: usize = 1 << 20;
        let fits = MAX_HELD_OCTETS / FRAME;
        (0..=fits).for_each(|_| model.offer(0, vec![0; FRAME]));
        assert_eq!(model.counts.over_limit, 1);
        assert!(model.pop_due(u64::MAX).is_some());
        model.offer(0, vec![0; FRAME]);
        assert_eq!(model.counts.over_limit, 1);
    }
}
