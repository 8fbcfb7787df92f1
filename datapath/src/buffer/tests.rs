use super::*;
use crate::seq::{DataSeq, TcpSeq};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum RingOp {
    Push(usize),
    /// Fill this share (of 8) of what `write_slice` gives.
    Fill(usize),
    WriteAt(usize, usize),
    Consume(usize),
    ConsumeAll,
    Release,
    Shrink,
}

fn ring_op(limit: usize) -> impl Strategy<Value = RingOp> {
    prop_oneof![
        4 => (0..limit / 2).prop_map(RingOp::Push),
        2 => (0..=8usize).prop_map(RingOp::Fill),
        4 => (0..limit + 10, 0..limit / 3).prop_map(|(o, n)| RingOp::WriteAt(o, n)),
        5 => (0..limit / 2).prop_map(RingOp::Consume),
        1 => Just(RingOp::ConsumeAll),
        1 => Just(RingOp::Release),
        1 => Just(RingOp::Shrink),
    ]
}

fn ring_case() -> impl Strategy<Value = (usize, Vec<RingOp>)> {
    prop_oneof![Just(10usize), Just(5000), Just(8192), Just(20_000)]
        .prop_flat_map(|limit| (Just(limit), prop::collection::vec(ring_op(limit), 1..60)))
}

/// The stream as absolute positions: octet `i` of it is `pattern(i, generation)`.
#[derive(Default)]
struct RingModel {
    bytes: BTreeMap<usize, u8>,
    front: usize,
    len: usize,
    counter: u8,
}

impl RingModel {
    fn fresh(&mut self, n: usize) -> Vec<u8> {
        (0..n)
            .map(|_| {
                self.counter = self.counter.wrapping_mul(5).wrapping_add(11);
                self.counter
            })
            .collect()
    }

    fn store(&mut self, offset: usize, src: &[u8]) {
        self.bytes.extend(
            src.iter()
                .enumerate()
                .map(|(i, b)| (self.front + offset + i, *b)),
        );
    }

    fn drop_front(&mut self, n: usize) {
        self.front += n;
        self.len -= n;
        self.bytes = self.bytes.split_off(&self.front);
    }

    fn content(&self) -> Vec<u8> {
        (self.front..self.front + self.len)
            .map(|i| self.bytes[&i])
            .collect()
    }

    /// Octets without a gap behind the length.
    fn placed_next(&self) -> usize {
        (self.front + self.len..)
            .take_while(|i| self.bytes.contains_key(i))
            .count()
    }
}

proptest! {
    #[test]
    fn ring_agrees_with_a_map_of_octets((limit, ops) in ring_case()) {
        let mut ring = ByteRing::new(limit);
        let mut model = RingModel::default();
        for op in ops {
            match op {
                RingOp::Push(n) => {
                    let src = model.fresh(n);
                    let stored = n.min(limit - model.len);
                    prop_assert_eq!(ring.push(&src), stored);
                    model.store(model.len, &src[..stored]);
                    model.len += stored;
                }
                RingOp::Fill(eighths) => {
                    let slice = ring.write_slice();
                    prop_assert_eq!(slice.is_empty(), model.len == limit);
                    let n = slice.len() * eighths / 8;
                    let src = model.fresh(n);
                    slice[..n].copy_from_slice(&src);
                    ring.commit(n);
                    model.store(model.len, &src);
                    model.len += n;
                }
                RingOp::WriteAt(offset, n) => {
                    let src = model.fresh(n);
                    let stored = n.min(limit.saturating_sub(offset));
                    let expected = ring.capacity() + match stored {
                        0 => 0,
                        _ => ring.growth_for(offset + n),
                    };
                    prop_assert_eq!(ring.write_at(offset, &src), stored);
                    prop_assert_eq!(ring.capacity(), expected);
                    model.store(offset, &src[..stored]);
                }
                RingOp::Consume(n) => {
                    let n = n.min(model.len);
                    ring.consume(n);
                    model.drop_front(n);
                }
                RingOp::ConsumeAll => {
                    ring.consume(model.len);
                    model.drop_front(model.len);
                }
                RingOp::Shrink => {
                    ring.shrink();
                    let used = model.bytes.keys().last().map_or(0, |last| last + 1 - model.front);
                    let room = (4 * used).max(SMALLEST_BYTES).min(limit);
                    prop_assert!(ring.capacity() <= room.next_power_of_two());
                }
                RingOp::Release => {
                    ring.release();
                    prop_assert_eq!(ring.capacity(), 0);
                    model = RingModel { counter: model.counter, ..RingModel::default() };
                }
            }
            // What may be spent is never passed, and a little more would be used.
            for spare in [0, 4095, 4096, 9000, limit, usize::MAX] {
                let most = ring.capacity_within(spare);
                prop_assert!(ring.growth_for(most) <= spare && most >= ring.capacity());
                prop_assert!(most == limit || ring.growth_for(most + 1) > spare);
            }
            let placed = model.placed_next();
            ring.advance_len(placed);
            model.len += placed;

            let content = model.content();
            prop_assert_eq!((ring.len(), ring.free()), (model.len, limit - model.len));
            prop_assert!(ring.capacity() <= limit);
            // What is empty and holds nothing ahead costs next to nothing.
            prop_assert!(!model.bytes.is_empty() || ring.capacity() <= SMALLEST_BYTES);
            prop_assert!(content.starts_with(ring.peek()));
            prop_assert_eq!(ring.peek().is_empty(), content.is_empty());
            for (offset, len) in [(0, usize::MAX), (model.len / 3, model.len / 2), (limit + 1, 1)] {
                let from = offset.min(content.len());
                let expected = &content[from..from.saturating_add(len).min(content.len())];
                let (a, b) = ring.slices(offset, len);
                prop_assert_eq!([a, b].concat(), expected);
            }
        }
    }
}

#[test]
fn ring_keeps_its_memory_while_octets_are_placed_ahead() {
    let mut ring = ByteRing::new(1 << 16);
    ring.push(&[1; 3000]);
    ring.write_at(40_000, &[2; 5]);
    ring.consume(3000);
    assert_eq!(ring.len(), 0);
    ring.push(&[3; 37_000]);
    ring.advance_len(5);
    let (a, b) = ring.slices(37_000, 5);
    assert_eq!([a, b].concat(), [2; 5]);
    ring.consume(37_005);
    assert_eq!(ring.capacity(), 0);
}

#[test]
fn ring_in_steady_use_stays_within_its_first_memory() {
    let mut ring = ByteRing::new(1 << 20);
    for _ in 0..1000 {
        assert_eq!(ring.push(&[7; 600]), 600);
        ring.consume(600);
        assert_eq!(ring.capacity(), SMALLEST_BYTES);
    }
}

/// Steps of a range set near `base`; small numbers so that ranges meet often.
#[derive(Clone, Debug)]
enum SetOp {
    Insert(u16, u16),
    Pop(u16),
    RemoveBefore(u16),
}

fn set_op() -> impl Strategy<Value = SetOp> {
    prop_oneof![
        6 => (0..400u16, 0..30u16).prop_map(|(s, n)| SetOp::Insert(s, n)),
        1 => (0..400u16).prop_map(SetOp::Pop),
        1 => (0..400u16).prop_map(SetOp::RemoveBefore),
    ]
}

/// Runs of consecutive members, as half-open ranges.
fn runs(set: &BTreeSet<u16>) -> Vec<(u16, u16)> {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for &m in set {
        match runs.last_mut() {
            Some(r) if r.1 == m => r.1 = m + 1,
            _ => runs.push((m, m + 1)),
        }
    }
    runs
}

fn check_set<S: Sequence>(base: S, limit: usize, ops: &[SetOp]) -> Result<(), TestCaseError> {
    let at = |n: u16| base.offset_by(usize::from(n));
    let mut set = Intervals::new(limit);
    let mut model = BTreeSet::<u16>::new();
    for op in ops {
        match *op {
            SetOp::Insert(start, n) => {
                let mut after = model.clone();
                after.extend(start..start + n);
                let added = after.len() - model.len();
                // Only a range that stands alone is refused; one that merges always fits.
                let alone = runs(&after).contains(&(start, start + n)) && added == usize::from(n);
                let expected = match added {
                    0 => Inserted::Duplicate,
                    _ if alone && runs(&model).len() >= limit => Inserted::Refused,
                    n => Inserted::Added(n),
                };
                prop_assert_eq!(set.insert(at(start), at(start + n)), expected);
                if expected != Inserted::Refused {
                    model = after;
                }
            }
            SetOp::Pop(next) => {
                let gone: Vec<_> = runs(&model).into_iter().filter(|r| r.0 <= next).collect();
                let expected = gone.last().map(|r| at(r.1.max(next)));
                prop_assert_eq!(set.pop_front_if_starts_at_or_before(at(next)), expected);
                for r in gone {
                    model.retain(|m| !(r.0..r.1).contains(m));
                }
            }
            SetOp::RemoveBefore(seq) => {
                set.remove_before(at(seq));
                model = model.split_off(&seq);
            }
        }
        let expected: Vec<_> = runs(&model)
            .into_iter()
            .map(|r| (at(r.0), at(r.1)))
            .collect();
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected.clone());
        prop_assert_eq!(set.covered(), model.len());
        prop_assert_eq!(
            (set.first(), set.last()),
            (expected.first().copied(), expected.last().copied())
        );
        for probe in (0..420u16).step_by(7) {
            let covers = (probe..probe + 3).all(|m| model.contains(&m));
            prop_assert_eq!(set.contains(at(probe), at(probe + 3)), covers);
            let next = runs(&model)
                .into_iter()
                .find(|r| r.1 > probe)
                .map(|r| (at(r.0), at(r.1)));
            prop_assert_eq!(set.at_or_after(at(probe)), next);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn intervals_agree_with_a_set_of_numbers(
        before_wrap in 0..500usize,
        limit in 1..12usize,
        ops in prop::collection::vec(set_op(), 1..80),
    ) {
        check_set(TcpSeq(0) - before_wrap, limit, &ops)?;
        check_set(DataSeq(0) - before_wrap, limit, &ops)?;
    }
}
