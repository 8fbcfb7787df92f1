//! Memory for byte streams: a ring of octets that grows only as far as it is used, and a bounded
//! set of sequence ranges for what has arrived out of order or was acknowledged selectively.

use crate::seq::Sequence;

/// Capacity of a ring that holds anything at all, and the most that an empty one keeps.
const SMALLEST_BYTES: usize = 4096;

/// A ring of octets with a stated limit. Memory doubles as it fills, up to exactly the limit, and
/// goes back to the allocator when the ring becomes empty, but for a small first piece that spares
/// short exchanges the allocator.
///
/// Beyond its length a ring may hold octets that were placed ahead of their turn by
/// [`ByteRing::write_at`]; [`ByteRing::advance_len`] takes them in.
#[derive(Debug, Default)]
pub struct ByteRing {
    /// Its length is the capacity.
    bytes: Vec<u8>,
    /// Where the front is; below the capacity, or 0.
    head: usize,
    len: usize,
    /// End of the furthest octet placed, from the front; never under `len`.
    extent: usize,
    limit: usize,
}

impl ByteRing {
    /// An empty ring, without memory, that takes up to `limit_bytes`.
    pub fn new(limit_bytes: usize) -> ByteRing {
        ByteRing {
            limit: limit_bytes,
            ..ByteRing::default()
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Octets that the ring may hold, in its length and ahead of it.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Octets that still fit behind the last.
    pub fn free(&self) -> usize {
        self.limit - self.len
    }

    /// Octets of memory held now, for accounts.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Octets of memory that holding `end` octets from the front would take beyond those held now.
    pub fn growth_for(&self, end: usize) -> usize {
        if end <= self.bytes.len() {
            return 0;
        }
        self.capacity_for(end).saturating_sub(self.bytes.len())
    }

    /// The largest capacity that growing by at most `spare_bytes` can reach.
    pub fn capacity_within(&self, spare_bytes: usize) -> usize {
        let most = self.bytes.len().saturating_add(spare_bytes);
        if most >= self.limit {
            return self.limit;
        }
        let reached = 1 << most.checked_ilog2().unwrap_or(0);
        if reached < SMALLEST_BYTES {
            return self.bytes.len();
        }
        reached.max(self.bytes.len())
    }

    /// Gives back memory of which no more than a quarter is used.
    pub fn shrink(&mut self) {
        if self.bytes.len() > SMALLEST_BYTES && self.extent <= self.bytes.len() / 4 {
            self.rebuild(self.capacity_for(self.extent));
        }
    }

    /// Appends as much of `src` as the limit allows and returns how much.
    pub fn push(&mut self, src: &[u8]) -> usize {
        let stored = self.write_at(self.len, src);
        self.len += stored;
        stored
    }

    /// The next contiguous free stretch behind the last octet, to fill and then
    /// [`ByteRing::commit`]. Gets more memory when the present memory is full; empty at the limit.
    pub fn write_slice(&mut self) -> &mut [u8] {
        if self.len == self.bytes.len() && self.len < self.limit {
            self.reserve(self.len + 1);
        }
        let stretch = self.free_stretch();
        &mut self.bytes[stretch]
    }

    /// Appends the first `n` octets of what [`ByteRing::write_slice`] gave.
    pub fn commit(&mut self, n: usize) {
        let room = self.free_stretch().len();
        debug_assert!(n <= room, "{n} octets committed, write_slice had {room}");
        self.len += n.min(room);
        self.extent = self.extent.max(self.len);
    }

    /// The first contiguous stretch of octets.
    pub fn peek(&self) -> &[u8] {
        self.slices(0, self.len).0
    }

    /// Up to `len` octets from `offset` after the front, in two stretches of which the second is
    /// empty unless the range goes round the end of the memory. Shorter where the ring is.
    pub fn slices(&self, offset: usize, len: usize) -> (&[u8], &[u8]) {
        let offset = offset.min(self.len);
        let len = len.min(self.len - offset);
        if len == 0 {
            return (&[], &[]);
        }
        let start = self.position(offset);
        let first = len.min(self.bytes.len() - start);
        (
            &self.bytes[start..start + first],
            &self.bytes[..len - first],
        )
    }

    /// Places `src` at `offset` from the front, inside the length or ahead of it, without changing
    /// the length. Returns how much of it was below the limit and is stored.
    pub fn write_at(&mut self, offset: usize, src: &[u8]) -> usize {
        let n = src.len().min(self.limit.saturating_sub(offset));
        if n == 0 {
            return 0;
        }
        let end = offset + n;
        self.reserve(end);
        let start = self.position(offset);
        let first = n.min(self.bytes.len() - start);
        self.bytes[start..start + first].copy_from_slice(&src[..first]);
        self.bytes[..n - first].copy_from_slice(&src[first..n]);
        self.extent = self.extent.max(end);
        n
    }

    /// Takes `n` octets that [`ByteRing::write_at`] placed right behind the last into the length.
    pub fn advance_len(&mut self, n: usize) {
        let placed = self.extent - self.len;
        debug_assert!(n <= placed, "{n} octets taken in, {placed} placed");
        self.len += n.min(placed);
    }

    /// Drops `n` octets from the front.
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len, "{n} octets consumed of {}", self.len);
        let n = n.min(self.len);
        if n == self.extent {
            self.clear();
            return;
        }
        self.head = self.position(n);
        self.len -= n;
        self.extent -= n;
    }

    /// Drops everything, also what was placed ahead.
    pub fn clear(&mut self) {
        (self.head, self.len, self.extent) = (0, 0, 0);
        if self.bytes.len() > SMALLEST_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// Like [`ByteRing::clear`], and keeps no memory at all.
    pub fn release(&mut self) {
        self.clear();
        self.bytes = Vec::new();
    }

    fn free_stretch(&self) -> std::ops::Range<usize> {
        let room = self.bytes.len() - self.len;
        if room == 0 {
            return 0..0;
        }
        let start = self.position(self.len);
        start..start + room.min(self.bytes.len() - start)
    }

    /// Index of the octet `offset` after the front; `offset` is at most the capacity.
    fn position(&self, offset: usize) -> usize {
        let p = self.head + offset;
        if p >= self.bytes.len() {
            p - self.bytes.len()
        } else {
            p
        }
    }

    /// Makes the capacity `needed` or more; `needed` is at most the limit.
    fn reserve(&mut self, needed: usize) {
        if needed > self.bytes.len() {
            self.rebuild(self.capacity_for(needed));
        }
    }

    /// The capacity that holds `needed` octets, as far as the limit goes.
    fn capacity_for(&self, needed: usize) -> usize {
        needed
            .next_power_of_two()
            .max(SMALLEST_BYTES)
            .min(self.limit)
    }

    /// Moves what is held, the length and what is ahead of it, to memory of its own of `capacity`.
    fn rebuild(&mut self, capacity: usize) {
        let mut rebuilt = Vec::with_capacity(capacity);
        if self.extent > 0 {
            let first = self.extent.min(self.bytes.len() - self.head);
            rebuilt.extend_from_slice(&self.bytes[self.head..self.head + first]);
            rebuilt.extend_from_slice(&self.bytes[..self.extent - first]);
        }
        rebuilt.resize(capacity, 0);
        self.bytes = rebuilt;
        self.head = 0;
    }
}

/// What became of a range given to [`Intervals::insert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// So many octets of it were not covered before; now they are. Never 0.
    Added(usize),
    /// All of it was covered before, or it was empty.
    Duplicate,
    /// It would have been one range too many; nothing changed. The caller counts it.
    Refused,
}

impl Inserted {
    /// Octets newly covered.
    pub fn octets(self) -> usize {
        match self {
            Inserted::Added(n) => n,
            Inserted::Duplicate | Inserted::Refused => 0,
        }
    }
}

/// Half-open ranges of sequence numbers, sorted, disjoint and not touching, at most a stated number
/// of them. All must lie within half of the sequence space of each other, as a window does.
#[derive(Clone, Debug)]
pub struct Intervals<S> {
    ranges: Vec<(S, S)>,
    limit: usize,
    covered: usize,
}

impl<S: Sequence> Intervals<S> {
    /// An empty set that takes up to `limit` ranges.
    pub fn new(limit: usize) -> Intervals<S> {
        Intervals {
            ranges: Vec::new(),
            limit,
            covered: 0,
        }
    }

    /// Ranges in the set.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Octets in all ranges together.
    pub fn covered(&self) -> usize {
        self.covered
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (S, S)> + ExactSizeIterator + '_ {
        self.ranges.iter().copied()
    }

    pub fn first(&self) -> Option<(S, S)> {
        self.ranges.first().copied()
    }

    pub fn last(&self) -> Option<(S, S)> {
        self.ranges.last().copied()
    }

    pub fn clear(&mut self) {
        self.ranges.clear();
        self.covered = 0;
    }

    /// Adds `start..end`, merged with the ranges that it overlaps or touches.
    pub fn insert(&mut self, start: S, end: S) -> Inserted {
        if !start.before(end) {
            return Inserted::Duplicate;
        }
        let from = self.ranges.partition_point(|r| r.1.before(start));
        let met = self.ranges[from..].partition_point(|r| !r.0.after(end));
        if met == 0 {
            if self.ranges.len() >= self.limit {
                return Inserted::Refused;
            }
            self.ranges.insert(from, (start, end));
            self.covered += octets(start, end);
            return Inserted::Added(octets(start, end));
        }
        let (first, last) = (self.ranges[from], self.ranges[from + met - 1]);
        let merged = (
            if start.before(first.0) {
                start
            } else {
                first.0
            },
            if end.after(last.1) { end } else { last.1 },
        );
        let known: usize = self.ranges[from..from + met]
            .iter()
            .map(|r| octets(r.0, r.1))
            .sum();
        self.ranges[from] = merged;
        self.ranges.drain(from + 1..from + met);
        match octets(merged.0, merged.1).saturating_sub(known) {
            0 => Inserted::Duplicate,
            added => {
                self.covered += added;
                Inserted::Added(added)
            }
        }
    }

    /// Whether one range covers all of `start..end`.
    pub fn contains(&self, start: S, end: S) -> bool {
        let at = self.ranges.partition_point(|r| !r.1.after(start));
        self.ranges
            .get(at)
            .is_some_and(|r| !r.0.after(start) && !r.1.before(end))
    }

    /// The range that holds `seq`, or else the first one after it.
    pub fn at_or_after(&self, seq: S) -> Option<(S, S)> {
        self.ranges
            .get(self.ranges.partition_point(|r| !r.1.after(seq)))
            .copied()
    }

    /// Removes every range that starts at or before `next`. If there was one, returns how far the
    /// stream goes on without a gap: the end of the last of them, or `next` if that is later.
    pub fn pop_front_if_starts_at_or_before(&mut self, next: S) -> Option<S> {
        let mut end = next;
        let mut popped = 0;
        for r in self.ranges.iter().take_while(|r| !r.0.after(next)) {
            self.covered -= octets(r.0, r.1);
            if r.1.after(end) {
                end = r.1;
            }
            popped += 1;
        }
        self.ranges.drain(..popped);
        (popped > 0).then_some(end)
    }

    /// Takes everything before `seq` out of the set, as when a cumulative acknowledgment passes it.
    pub fn remove_before(&mut self, seq: S) {
        let gone = self.ranges.partition_point(|r| !r.1.after(seq));
        self.covered -= self
            .ranges
            .drain(..gone)
            .map(|r| octets(r.0, r.1))
            .sum::<usize>();
        if let Some(first) = self.ranges.first_mut()
            && first.0.before(seq)
        {
            self.covered -= octets(first.0, seq);
            first.0 = seq;
        }
    }
}

/// Octets in `start..end`.
fn octets<S: Sequence>(start: S, end: S) -> usize {
    usize::try_from(end.offset_from(start)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
