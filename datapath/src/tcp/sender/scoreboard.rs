//! Every segment in flight and what is known of it (RFC 2018, RFC 6675 §3).

use crate::buffer::Intervals;
use crate::seq::TcpSeq;
use crate::time::{Duration, Instant};
use std::collections::VecDeque;

/// Ranges remembered as SACKed, so that an acknowledgment costs as much as it brings news. With more
/// than that the segments themselves still know.
const SACKED_RANGES_MAX: usize = 1024;

/// The first piece of memory is for so many segments; it doubles from there.
const FIRST_SEGMENTS: usize = 16;

/// Places that new text leaves free, without which nothing would go on: for the FIN, and for what is
/// left of the first segment when it is cut, and cut again.
const SPARE_SEGMENTS: usize = 4;

/// Copies noted in the order of leaving, for each segment that there is memory for.
const COPIES_PER_SEGMENT: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Sent and not heard of: counted in `pipe`.
    Outstanding,
    /// Acknowledged selectively.
    Sacked,
    /// Taken for lost: to be sent again.
    Lost,
}

/// One segment in flight. `mark` says what its octets are; TCP does not look at it.
#[derive(Clone, Copy, Debug)]
pub struct Sent<M> {
    pub seq: TcpSeq,
    /// Octets of text.
    pub len: usize,
    pub fin: bool,
    pub mark: M,
    pub(super) sent_at: Instant,
    /// When the copy before the last one left, if there was one.
    pub(super) previous_at: Option<Instant>,
    pub(super) fate: Fate,
}

impl<M> Sent<M> {
    /// Octets of sequence space.
    pub(super) fn space(&self) -> usize {
        self.len + usize::from(self.fin)
    }

    pub(super) fn end(&self) -> TcpSeq {
        self.seq + self.space()
    }

    pub(super) fn is_retransmitted(&self) -> bool {
        self.previous_at.is_some()
    }
}

/// What one acknowledgment delivered, cumulatively and selectively.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivered {
    /// What left later than this and not for the first time cannot have been answered yet.
    answered_before: Instant,
    /// Octets of which it was news.
    pub(super) bytes: usize,
    /// Something was SACKed for the first time.
    pub(super) sacked: bool,
    /// Where the first segment ends that arrived and had left only once.
    pub(super) original: Option<TcpSeq>,
    /// The timestamp says that the first copy of a segment sent twice was meant: nothing was lost.
    pub(super) first_copy: bool,
    /// A segment sent once arrived after one that was sent later (RFC 8985 §6.2 step 3).
    pub(super) reordered: bool,
    /// When the segment left that measures the round trip best (RFC 6298 §3).
    pub(super) measures: Option<Instant>,
    /// The one that was sent last, with when it left (RFC 8985 §6.2 step 2).
    pub(super) newest: Option<(Instant, TcpSeq)>,
}

#[derive(Debug)]
pub(super) struct Scoreboard<M> {
    segments: VecDeque<Sent<M>>,
    /// When each copy left and where it ends, in the order of leaving. Copies that have met their
    /// fate or left again are passed over when they come to the front.
    by_time: VecDeque<(Instant, TcpSeq)>,
    /// Octets thought to be in the network (RFC 6675 §2).
    pub(super) pipe: usize,
    pub(super) sacked_segments: usize,
    pub(super) lost_segments: usize,
    sacked: Intervals<TcpSeq>,
    /// No segment before it is lost.
    lost_from: TcpSeq,
    /// Where the furthest segment ends that was ever taken for lost.
    pub(super) lost_to: TcpSeq,
    /// The furthest octet that has arrived (RACK.fack).
    furthest: TcpSeq,
}

impl<M: Copy> Scoreboard<M> {
    /// What one segment takes of memory.
    const SEGMENT_BYTES: usize =
        size_of::<Sent<M>>() + COPIES_PER_SEGMENT * size_of::<(Instant, TcpSeq)>();

    /// What the first segment takes.
    pub(super) const FIRST_BYTES: usize = FIRST_SEGMENTS * Self::SEGMENT_BYTES;

    pub(super) fn new(first: TcpSeq) -> Scoreboard<M> {
        Scoreboard {
            segments: VecDeque::new(),
            by_time: VecDeque::new(),
            pipe: 0,
            sacked_segments: 0,
            lost_segments: 0,
            sacked: Intervals::new(SACKED_RANGES_MAX),
            lost_from: first,
            lost_to: first,
            furthest: first,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Sent<M>> {
        self.segments.iter()
    }

    pub(super) fn at(&self, at: usize) -> Option<&Sent<M>> {
        self.segments.get(at)
    }

    pub(super) fn front(&self) -> Option<&Sent<M>> {
        self.segments.front()
    }

    pub(super) fn back(&self) -> Option<&Sent<M>> {
        self.segments.back()
    }

    /// What is known of the segment that holds `seq`; `None` once all of it is acknowledged.
    pub(super) fn fate(&self, seq: TcpSeq) -> Option<Fate> {
        self.holding(seq).map(|sent| sent.fate)
    }

    /// Whether what begins at `seq` left more than once, as far as that is still known.
    pub(super) fn was_sent_again(&self, seq: TcpSeq) -> bool {
        self.holding(seq)
            .is_none_or(|sent| sent.previous_at.is_some())
    }

    fn holding(&self, seq: TcpSeq) -> Option<&Sent<M>> {
        let at = self.segments.partition_point(|s| s.end().at_or_before(seq));
        self.segments.get(at).filter(|s| s.seq.at_or_before(seq))
    }

    #[cfg(test)]
    pub(super) fn copies_noted(&self) -> usize {
        self.by_time.len()
    }

    /// Octets of memory held.
    pub(super) fn held_bytes(&self) -> usize {
        self.segments.capacity() * Self::SEGMENT_BYTES
    }

    /// By how many octets that grows with the next segment of text.
    pub(super) fn growth_bytes(&self) -> usize {
        self.growth() * Self::SEGMENT_BYTES
    }

    fn growth(&self) -> usize {
        let places = self.segments.capacity();
        if self.segments.len() + SPARE_SEGMENTS < places {
            0
        } else {
            places.max(FIRST_SEGMENTS)
        }
    }

    fn grow(&mut self) {
        let places = self.segments.capacity() + self.growth();
        self.hold(places);
    }

    /// Memory for so many segments and no more, if as many are not in flight.
    fn hold(&mut self, places: usize) {
        let more = places.saturating_sub(self.segments.len());
        self.segments.reserve_exact(more);
        self.segments.shrink_to(places);
        let copies = COPIES_PER_SEGMENT * places;
        let more = copies.saturating_sub(self.by_time.len());
        self.by_time.reserve_exact(more);
        self.by_time.shrink_to(copies);
    }

    /// Gives back memory of which no more than a quarter is used.
    pub(super) fn shrink(&mut self) {
        let places = self.segments.capacity();
        if places > FIRST_SEGMENTS && self.segments.len() <= places / 4 {
            self.forget_stale_copies();
            self.hold(FIRST_SEGMENTS.max(places / 2));
        }
    }

    /// A new segment left.
    pub(super) fn push(&mut self, sent: Sent<M>) {
        if sent.len > 0 || self.segments.capacity() == 0 {
            self.grow();
        }
        self.pipe += sent.space();
        self.note_copy(sent.sent_at, sent.end());
        self.segments.push_back(sent);
    }

    fn note_copy(&mut self, sent_at: Instant, end: TcpSeq) {
        if self.by_time.len() == self.by_time.capacity() {
            self.forget_stale_copies();
        }
        self.by_time.push_back((sent_at, end));
    }

    /// No more copies are left than there are segments.
    fn forget_stale_copies(&mut self) {
        let segments = &self.segments;
        self.by_time
            .retain(|copy| last_copy(segments, *copy).is_some());
    }

    /// Segment `at` left again.
    pub(super) fn retransmitted(&mut self, now: Instant, at: usize) {
        let Some(sent) = self.segments.get_mut(at) else {
            return;
        };
        match sent.fate {
            Fate::Lost => {
                self.lost_segments -= 1;
                self.pipe += sent.space();
            }
            // A tail loss probe repeats what may well be under way.
            Fate::Outstanding => {}
            Fate::Sacked => return,
        }
        sent.fate = Fate::Outstanding;
        sent.previous_at = Some(sent.sent_at);
        sent.sent_at = now;
        let end = sent.end();
        self.note_copy(now, end);
    }

    /// Everything before `ack` has arrived. `echoes` says whether the acknowledgment's TSecr is what
    /// a segment bore that left at that time; `on_acked` sees every segment acknowledged whole.
    pub(super) fn acknowledge(
        &mut self,
        ack: TcpSeq,
        delivered: &mut Delivered,
        echoes: &impl Fn(Instant) -> bool,
        on_acked: &mut impl FnMut(&Sent<M>),
    ) {
        while let Some(sent) = self.segments.front_mut() {
            if sent.seq.at_or_after(ack) {
                break;
            }
            let whole = sent.end().at_or_before(ack);
            let covered = if whole {
                sent.space()
            } else {
                ack.distance(sent.seq)
            };
            match sent.fate {
                Fate::Outstanding => self.pipe -= covered,
                Fate::Lost if whole => self.lost_segments -= 1,
                Fate::Sacked if whole => self.sacked_segments -= 1,
                Fate::Lost | Fate::Sacked => {}
            }
            if sent.fate != Fate::Sacked {
                delivered.bytes += covered;
                if whole {
                    delivered.note(sent, self.furthest, echoes);
                    self.furthest = self.furthest.max(sent.end());
                }
            }
            if !whole {
                // Part of it: the rest keeps its mark, which names the whole mapping.
                sent.seq = ack;
                sent.len -= covered;
                break;
            }
            if let Some(sent) = self.segments.pop_front() {
                on_acked(&sent);
            }
        }
        while let Some((_, end)) = self.by_time.front()
            && end.at_or_before(ack)
        {
            self.by_time.pop_front();
        }
        self.furthest = self.furthest.max(ack);
        self.lost_from = self.lost_from.max(ack);
        self.lost_to = self.lost_to.max(ack);
        if !self.sacked.is_empty() {
            self.sacked.remove_before(ack);
        }
        if self.is_empty() && self.segments.capacity() > FIRST_SEGMENTS {
            self.hold(FIRST_SEGMENTS);
        }
    }

    /// Marks what a block covers that none has covered before. Blocks come in ascending order, or a
    /// lower one would look as if it had been overtaken.
    pub(super) fn sack(
        &mut self,
        (left, right): (TcpSeq, TcpSeq),
        delivered: &mut Delivered,
        echoes: &impl Fn(Instant) -> bool,
    ) {
        let mut at = left;
        while at.before(right) {
            let known = self.sacked.at_or_after(at).filter(|r| r.0.before(right));
            let news_to = match known {
                Some((start, end)) if start.at_or_before(at) => {
                    at = end;
                    continue;
                }
                Some((start, _)) => start,
                None => right,
            };
            self.sack_between(at, news_to, (left, right), delivered, echoes);
            at = news_to;
        }
        self.sacked.insert(left, right);
    }

    /// Segments with octets in `from..to` that the block holds whole.
    fn sack_between(
        &mut self,
        from: TcpSeq,
        to: TcpSeq,
        (left, right): (TcpSeq, TcpSeq),
        delivered: &mut Delivered,
        echoes: &impl Fn(Instant) -> bool,
    ) {
        let first = self
            .segments
            .partition_point(|s| s.end().at_or_before(from));
        for sent in self.segments.range_mut(first..) {
            if sent.seq.at_or_after(to) {
                break;
            }
            if sent.seq.before(left) || sent.end().after(right) {
                continue;
            }
            match sent.fate {
                Fate::Sacked => continue,
                Fate::Outstanding => self.pipe -= sent.space(),
                Fate::Lost => self.lost_segments -= 1,
            }
            delivered.note(sent, self.furthest, echoes);
            self.furthest = self.furthest.max(sent.end());
            sent.fate = Fate::Sacked;
            self.sacked_segments += 1;
            delivered.bytes += sent.space();
            delivered.sacked = true;
        }
    }

    /// Takes segment `at` for lost if nothing is known of it.
    pub(super) fn mark_lost(&mut self, at: usize) {
        let Some(sent) = self.segments.get_mut(at) else {
            return;
        };
        if sent.fate == Fate::Outstanding {
            sent.fate = Fate::Lost;
            self.pipe -= sent.space();
            self.lost_segments += 1;
            self.lost_from = self.lost_from.min(sent.seq);
            self.lost_to = self.lost_to.max(sent.end());
        }
    }

    /// Takes for lost every outstanding segment that `is_lost` says so of.
    pub(super) fn mark_lost_if(&mut self, is_lost: impl Fn(usize, &Sent<M>) -> bool) {
        for at in 0..self.segments.len() {
            if is_lost(at, &self.segments[at]) {
                self.mark_lost(at);
            }
        }
    }

    /// In the order in which copies left: takes those for lost that `verdict` says `Lost` of, up to
    /// the first that it does not.
    pub(super) fn mark_lost_in_time_order(
        &mut self,
        mut verdict: impl FnMut(Instant, TcpSeq) -> TimeVerdict,
    ) -> Option<Instant> {
        while let Some(&(sent_at, end)) = self.by_time.front() {
            if let Some(at) = last_copy(&self.segments, (sent_at, end)) {
                match verdict(sent_at, end) {
                    TimeVerdict::Lost => self.mark_lost(at),
                    TimeVerdict::LostAt(at) => return Some(at),
                    TimeVerdict::Fresh => return None,
                }
            }
            self.by_time.pop_front();
        }
        None
    }

    /// Nothing was lost after all.
    pub(super) fn unmark_lost(&mut self) {
        for sent in &mut self.segments {
            if sent.fate == Fate::Lost {
                sent.fate = Fate::Outstanding;
                self.pipe += sent.space();
            }
        }
        self.lost_segments = 0;
        // They may be taken for lost again, in their turn.
        let outstanding = self.segments.iter().filter(|s| s.fate == Fate::Outstanding);
        self.by_time.clear();
        self.by_time
            .extend(outstanding.map(|s| (s.sent_at, s.end())));
        let first = self.segments.front().map_or(self.furthest, |s| s.seq);
        self.by_time
            .make_contiguous()
            .sort_unstable_by_key(|(sent_at, end)| (*sent_at, end.offset_from(first)));
    }

    /// RFC 2018 §8: what was SACKed and not acknowledged may have been dropped by the peer.
    pub(super) fn forget_sacked(&mut self) {
        for sent in &mut self.segments {
            if sent.fate == Fate::Sacked {
                sent.fate = Fate::Lost;
                self.lost_segments += 1;
                self.lost_from = self.lost_from.min(sent.seq);
            }
        }
        self.sacked_segments = 0;
        self.sacked.clear();
    }

    /// The first segment that is lost, cut to `text_max` octets of text. The rest becomes one of its
    /// own, with the same mark. `None` if that takes memory and it may not grow; the first segment in
    /// flight has places of its own.
    pub(super) fn first_lost(&mut self, text_max: usize, may_grow: bool) -> Option<LostSegment<M>> {
        if self.lost_segments == 0 {
            return None;
        }
        let from = self
            .segments
            .partition_point(|s| s.seq.before(self.lost_from));
        let at = from
            + self
                .segments
                .range(from..)
                .position(|s| s.fate == Fate::Lost)?;
        self.lost_from = self.segments[at].seq;
        let sent = self.segments[at];
        if sent.len > text_max && text_max > 0 {
            let full = self.segments.len() == self.segments.capacity();
            if full || at > 0 && self.growth() > 0 {
                if !may_grow {
                    return None;
                }
                self.grow();
            }
            let rest = Sent {
                seq: sent.seq + text_max,
                len: sent.len - text_max,
                ..sent
            };
            let first = &mut self.segments[at];
            (first.len, first.fin) = (text_max, false);
            self.segments.insert(at + 1, rest);
            self.lost_segments += 1;
        }
        Some(LostSegment {
            at,
            sent: self.segments[at],
        })
    }
}

impl Delivered {
    pub(super) fn new(now: Instant, min_rtt: Option<Duration>) -> Delivered {
        let round_trip = min_rtt.map_or(0, |min| min.as_nanos() as u64);
        Delivered {
            answered_before: Instant(now.0.saturating_sub(round_trip)),
            bytes: 0,
            sacked: false,
            original: None,
            first_copy: false,
            reordered: false,
            measures: None,
            newest: None,
        }
    }

    fn note<M>(&mut self, sent: &Sent<M>, furthest: TcpSeq, echoes: &impl Fn(Instant) -> bool) {
        // What was taken for lost has waited for others.
        let measures = sent.fate == Fate::Outstanding;
        let copy = (sent.sent_at, sent.end());
        if let Some(previous_at) = sent.previous_at {
            // RFC 6298 §3, RFC 3522: a timestamp that only one of the copies bore tells them apart.
            let (echoes_last, echoes_previous) = (echoes(sent.sent_at), echoes(previous_at));
            if measures && echoes_last && !echoes_previous {
                self.measures = self.measures.max(Some(sent.sent_at));
            }
            let first_copy = echoes_previous && !echoes_last;
            self.first_copy |= first_copy;
            // RFC 8985 §6.2 step 2: sooner than any round trip, it was an earlier copy.
            if first_copy || sent.sent_at > self.answered_before {
                return;
            }
        } else {
            if measures {
                self.measures = self.measures.max(Some(sent.sent_at));
            }
            let end = sent.end();
            self.original = Some(self.original.map_or(end, |first| first.min(end)));
            self.reordered |= end.before(furthest);
        }
        if self.newest.is_none_or(|newest| sent_after(copy, newest)) {
            self.newest = Some(copy);
        }
    }
}

/// RFC 8985 §6.2, `RACK_sent_after`: whether copy `a` left after copy `b`.
pub(super) fn sent_after(a: (Instant, TcpSeq), b: (Instant, TcpSeq)) -> bool {
    a.0 > b.0 || (a.0 == b.0 && a.1.after(b.1))
}

/// The segment that `copy` is the last copy of, if nothing is known of it.
fn last_copy<M>(segments: &VecDeque<Sent<M>>, (sent_at, end): (Instant, TcpSeq)) -> Option<usize> {
    let at = segments.partition_point(|s| s.end().before(end));
    let outstanding = segments.get(at)?.fate == Fate::Outstanding;
    let last = segments[at].sent_at == sent_at && segments[at].end() == end;
    (outstanding && last).then_some(at)
}

pub(super) enum TimeVerdict {
    Lost,
    /// Not yet, but by then.
    LostAt(Instant),
    /// It and all after it may still arrive.
    Fresh,
}

/// A segment to be sent again.
#[derive(Clone, Copy, Debug)]
pub struct LostSegment<M> {
    /// Where it is in flight.
    pub at: usize,
    pub sent: Sent<M>,
}

#[cfg(test)]
mod tests;
