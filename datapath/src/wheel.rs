//! A hierarchical timer wheel: setting a timer and firing it take constant time, whatever the
//! number of timers. There is no cancellation: who set a timer looks, when it fires, whether it
//! still means anything.

use crate::time::Instant;

const TICK_NANOS: u64 = 1_000_000;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Enough for every tick that an `Instant` can name (45 bits), so that nothing overflows the wheel.
const LEVELS: usize = 8;
/// End of a list.
const NIL: u32 = u32::MAX;

/// Timers in ticks of one millisecond. An item's deadline is rounded up to the tick: it never fires
/// early.
///
/// Level `l` has one slot for each value of the `l`-th group of six bits of a tick. An item lies on
/// the level of the highest group in which its tick differs from the wheel's own time, and comes
/// down when that time reaches its slot. So on every level only slots ahead of the wheel's time are
/// in use, and those of a lower level come before those of a higher.
#[derive(Debug)]
pub struct TimerWheel<T> {
    /// Everything up to this tick has fired, `due` apart.
    elapsed: u64,
    levels: [Level; LEVELS],
    /// Items that were late already when they were set.
    due: u32,
    /// All items; each list runs through them, also that of the free ones.
    nodes: Vec<Node<T>>,
    free: u32,
    len: usize,
}

#[derive(Debug)]
struct Level {
    /// Bit `i`: slot `i` is not empty.
    occupied: u64,
    slots: [u32; SLOTS],
}

#[derive(Clone, Copy, Debug)]
struct Node<T> {
    item: T,
    tick: u64,
    next: u32,
}

impl<T: Copy> TimerWheel<T> {
    /// An empty wheel whose time is `now`.
    pub fn new(now: Instant) -> TimerWheel<T> {
        TimerWheel {
            elapsed: now.0 / TICK_NANOS,
            levels: [const {
                Level {
                    occupied: 0,
                    slots: [NIL; SLOTS],
                }
            }; LEVELS],
            due: NIL,
            nodes: Vec::new(),
            free: NIL,
            len: 0,
        }
    }

    /// Timers set and not fired.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Hands `item` out at the first [`TimerWheel::expire`] at or after `at`, rounded up to the
    /// tick. Items of one tick come in no particular order.
    pub fn schedule(&mut self, at: Instant, item: T) {
        let node = Node {
            item,
            tick: at.0.div_ceil(TICK_NANOS),
            next: NIL,
        };
        let index = self.free;
        let index = if let Some(free) = self.nodes.get_mut(index as usize) {
            self.free = free.next;
            *free = node;
            index
        } else {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        };
        self.len += 1;
        self.link(index);
    }

    /// When [`TimerWheel::expire`] has something to do: never later than the earliest deadline
    /// (rounded up to the tick). It may be earlier for a timer that is far off; `expire` then
    /// fires nothing and the next answer is nearer.
    pub fn next_expiry(&self) -> Option<Instant> {
        let tick = if self.due != NIL {
            self.elapsed
        } else {
            self.next_slot()?.tick
        };
        Some(Instant(tick * TICK_NANOS))
    }

    /// Gives `fire` every item whose deadline is not after `now`: first those that were late when
    /// they were set, then tick by tick. A `now` before an earlier one fires only the former.
    pub fn expire(&mut self, now: Instant, fire: &mut impl FnMut(T)) {
        let target = now.0 / TICK_NANOS;
        let due = std::mem::replace(&mut self.due, NIL);
        self.fire_list(due, fire);
        while let Some(slot) = self.next_slot().filter(|s| s.tick <= target) {
            self.elapsed = slot.tick;
            let level = &mut self.levels[slot.level];
            level.occupied &= !(1 << slot.index);
            let list = std::mem::replace(&mut level.slots[slot.index], NIL);
            self.fire_list(list, fire);
        }
        // No slot in use is passed over by this, so every item stays on its right level.
        self.elapsed = self.elapsed.max(target);
    }

    /// Fires the items of a list whose tick has come and puts the others on their new level.
    fn fire_list(&mut self, mut index: u32, fire: &mut impl FnMut(T)) {
        while let Some(node) = self.nodes.get(index as usize).copied() {
            if node.tick <= self.elapsed {
                self.nodes[index as usize].next = self.free;
                self.free = index;
                self.len -= 1;
                fire(node.item);
            } else {
                self.link(index);
            }
            index = node.next;
        }
    }

    /// Puts a node at the front of the list where its tick belongs.
    fn link(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        if node.tick <= self.elapsed {
            node.next = std::mem::replace(&mut self.due, index);
            return;
        }
        let level = (node.tick ^ self.elapsed).ilog2() / SLOT_BITS;
        let slot = (node.tick >> (level * SLOT_BITS)) as usize % SLOTS;
        let level = &mut self.levels[level as usize];
        level.occupied |= 1 << slot;
        node.next = std::mem::replace(&mut level.slots[slot], index);
    }

    /// The slot in use whose first tick is the earliest.
    fn next_slot(&self) -> Option<SlotAt> {
        let (level, l) = self
            .levels
            .iter()
            .enumerate()
            .find(|(_, l)| l.occupied != 0)?;
        let index = l.occupied.trailing_zeros();
        let shift = level as u32 * SLOT_BITS;
        let above = (self.elapsed >> (shift + SLOT_BITS)) << (shift + SLOT_BITS);
        Some(SlotAt {
            level,
            index: index as usize,
            tick: above | u64::from(index) << shift,
        })
    }
}

struct SlotAt {
    level: usize,
    index: usize,
    /// The first tick of the slot.
    tick: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    #[derive(Clone, Debug)]
    enum Op {
        /// So many nanoseconds after the present, or before it.
        Schedule(i64),
        /// Let so much time pass.
        Expire(u64),
        /// Go to the time that the wheel names.
        ExpireNext,
        /// The clock of `expire` goes back by so much.
        ExpirePast(u64),
    }

    /// Spans of every magnitude: under a tick to years.
    fn span() -> impl Strategy<Value = u64> {
        (0..57u32, any::<u64>()).prop_map(|(bits, n)| n & ((1 << bits) - 1))
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => span().prop_map(|n| Op::Schedule(n as i64)),
            1 => span().prop_map(|n| Op::Schedule(-(n as i64))),
            3 => span().prop_map(Op::Expire),
            3 => Just(Op::ExpireNext),
            1 => span().prop_map(Op::ExpirePast),
        ]
    }

    fn tick_up(ns: u64) -> u64 {
        ns.div_ceil(TICK_NANOS) * TICK_NANOS
    }

    fn expired(wheel: &mut TimerWheel<u32>, now: u64) -> Vec<u32> {
        let mut fired = Vec::new();
        wheel.expire(Instant(now), &mut |item| fired.push(item));
        fired
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn wheel_agrees_with_a_heap(
            start in prop_oneof![span(), (1u64 << 63)..(1 << 63) + (1 << 57)],
            ops in prop::collection::vec(op(), 1..120),
        ) {
            let mut now = start;
            let mut wheel = TimerWheel::new(Instant(now));
            let mut heap = BinaryHeap::new();
            for (id, op) in (0u32..).zip(ops) {
                let at = match op {
                    Op::Schedule(offset) => {
                        let at = now.saturating_add_signed(offset);
                        wheel.schedule(Instant(at), id);
                        heap.push(Reverse((tick_up(at), id)));
                        continue;
                    }
                    Op::Expire(ns) => {
                        now += ns;
                        now
                    }
                    Op::ExpireNext => {
                        now = now.max(wheel.next_expiry().map_or(0, |t| t.0));
                        now
                    }
                    Op::ExpirePast(ns) => now.saturating_sub(ns),
                };
                let fired = expired(&mut wheel, at);
                // A clock that went back changes nothing: the wheel's time is the latest seen.
                let seen = now / TICK_NANOS * TICK_NANOS;
                let mut expected = Vec::new();
                while let Some(Reverse((t, item))) = heap.peek().copied().filter(|e| e.0.0 <= seen) {
                    heap.pop();
                    expected.push((t, item));
                }
                let mut sorted = fired;
                sorted.sort_unstable();
                expected.sort_unstable_by_key(|e| e.1);
                prop_assert_eq!(sorted, expected.iter().map(|e| e.1).collect::<Vec<_>>());
                prop_assert_eq!(wheel.len(), heap.len());
                match (wheel.next_expiry(), heap.peek()) {
                    (Some(next), Some(Reverse((deadline, _)))) => prop_assert!(next.0 <= *deadline),
                    (None, None) => {}
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            // By going where the wheel says, the rest comes out in order and in few steps.
            let mut steps = 0;
            while let Some(next) = wheel.next_expiry() {
                for item in expired(&mut wheel, next.0) {
                    let earliest = heap.peek().map_or(0, |e| e.0.0);
                    let deadline = heap.iter().find(|e| e.0.1 == item).map(|e| e.0.0);
                    // Those that were late when they were set come in no order.
                    prop_assert!(deadline == Some(earliest.max(next.0)) || deadline <= Some(now));
                    heap.retain(|e| e.0.1 != item);
                }
                steps += 1;
                prop_assert!(steps <= 120 * LEVELS);
            }
            prop_assert!(heap.is_empty() && wheel.is_empty());
        }
    }

    #[test]
    fn a_deadline_inside_a_tick_waits_for_its_end() {
        let mut wheel = TimerWheel::new(Instant(0));
        wheel.schedule(Instant(1_000_001), 1);
        assert_eq!(expired(&mut wheel, 1_999_999), []);
        assert_eq!(wheel.next_expiry(), Some(Instant(2_000_000)));
        assert_eq!(expired(&mut wheel, 2_000_000), [1]);
    }

    #[test]
    fn the_last_instant_can_be_named() {
        let mut wheel = TimerWheel::new(Instant(5));
        wheel.schedule(Instant(u64::MAX), 1);
        assert_eq!(expired(&mut wheel, u64::MAX - TICK_NANOS), []);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn memory_is_used_again() {
        let mut wheel = TimerWheel::new(Instant(0));
        for round in 0..1000u64 {
            for i in 0..10 {
                wheel.schedule(Instant::from_millis(round + 1 + i * 700), i as u32);
            }
            let mut now = 0;
            while let Some(next) = wheel.next_expiry() {
                now = now.max(next.0);
                expired(&mut wheel, now);
            }
            assert_eq!(wheel.nodes.len(), 10);
        }
    }
}
