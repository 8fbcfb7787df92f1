//! TIME-WAIT (RFC 9293 §3.10.7.4, §3.6.1): compact, capped, and all of one duration, so that a queue
//! is timer enough.

use super::Engine;
use super::flow::{FlowEntry, FlowKey};
use crate::mptcp::connection::TimeWaitState;
use crate::mptcp::subflow::INVALID_ANSWER_INTERVAL;
use crate::steering::{Arrival, Verdict};
use crate::time::{Duration, Instant};
use crate::wire::frame::Segment;
use crate::wire::tcp::{TcpFlags, TcpOptions};
use slab::Slab;
use std::collections::VecDeque;

struct Entry {
    key: FlowKey,
    state: TimeWaitState,
    /// Tells an entry from a later one in the same place.
    number: u64,
    /// A FIN came again: at its end the time starts anew.
    restarted: bool,
    /// When a segment that takes no sequence space was answered last.
    answered_at: Option<Instant>,
}

pub(super) struct TimeWaitTable {
    entries: Slab<Entry>,
    /// When to look at which entry, of which number; oldest first. An entry is in it once.
    order: VecDeque<(Instant, u32, u64)>,
    inserted: u64,
    duration: Duration,
    limit: usize,
}

impl TimeWaitTable {
    pub(super) fn new(duration: Duration, limit: usize) -> TimeWaitTable {
        TimeWaitTable {
            entries: Slab::new(),
            order: VecDeque::new(),
            inserted: 0,
            duration,
            limit,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds an entry; where the table is full the oldest one goes and its key comes back.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        key: FlowKey,
        state: TimeWaitState,
    ) -> (u32, Option<FlowKey>) {
        let evicted = if self.entries.len() >= self.limit {
            self.pop_until(None)
        } else {
            None
        };
        self.inserted += 1;
        let number = self.inserted;
        let entry = self.entries.insert(Entry {
            key,
            state,
            number,
            restarted: false,
            answered_at: None,
        }) as u32;
        self.order.push_back((now + self.duration, entry, number));
        (entry, evicted)
    }

    /// Removes one entry whose time is over.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<FlowKey> {
        self.pop_until(Some(now))
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.order.front().map(|&(at, ..)| at)
    }

    /// Removes the oldest entry whose time is over at `now`; `None` takes the oldest of all.
    fn pop_until(&mut self, now: Option<Instant>) -> Option<FlowKey> {
        while let Some(&(at, index, number)) = self.order.front() {
            if now.is_some_and(|now| at > now) {
                return None;
            }
            self.order.pop_front();
            let Some(entry) = self.entries.get_mut(index as usize) else {
                continue;
            };
            if entry.number != number {
                continue;
            }
            if now.is_some() && entry.restarted {
                entry.restarted = false;
                self.order.push_back((at + self.duration, index, number));
                continue;
            }
            return Some(self.entries.remove(index as usize).key);
        }
        None
    }

    /// However often it is asked for, it costs one more round of the queue.
    fn restart(&mut self, entry: u32) {
        if let Some(entry) = self.entries.get_mut(entry as usize) {
            entry.restarted = true;
        }
    }

    /// Whether a segment that no peer in step sends is answered now; if so it counts as answered.
    fn may_answer(&mut self, now: Instant, entry: u32) -> bool {
        let Some(entry) = self.entries.get_mut(entry as usize) else {
            return false;
        };
        let may = entry
            .answered_at
            .is_none_or(|at| now.since(at) >= INVALID_ANSWER_INTERVAL);
        if may {
            entry.answered_at = Some(now);
        }
        may
    }

    fn remove(&mut self, entry: u32) {
        self.entries.try_remove(entry as usize);
    }
}

impl Engine {
    /// A segment for a flow in TIME-WAIT: a newer SYN opens a new connection (RFC 6191, RFC 9293
    /// §3.10.7.4), a RST is ignored (RFC 1337), anything else that a peer may send is acknowledged.
    pub(super) fn on_time_wait_segment(
        &mut self,
        now: Instant,
        arrival: Arrival,
        segment: &Segment<'_>,
        key: FlowKey,
        entry: u32,
    ) -> Verdict {
        let iface = arrival.iface;
        debug_assert_eq!(self.flows.lookup(&key), Some(FlowEntry::TimeWait(entry)));
        let Some(state) = self.time_wait.entries.get(entry as usize).map(|e| e.state) else {
            return Verdict::Taken;
        };
        let theirs = &segment.tcp;
        let flags = theirs.flags;
        if flags.contains(TcpFlags::RST) {
            return Verdict::Taken;
        }
        if flags.contains(TcpFlags::SYN) && !flags.contains(TcpFlags::ACK) {
            if state.yields_to(segment) {
                self.metrics.time_wait_recycled += 1;
                self.time_wait.remove(entry);
                self.forget_flow(&key);
                // The new one may be another worker's.
                let verdict = self.pass_on(now, segment, &key, arrival.forwarded);
                if verdict.is_none() {
                    // RFC 9293 §3.6.1, MAY-2: above all that the connection before has used.
                    self.on_unknown(now, iface, segment, key, Some(state.snd_nxt));
                }
                return verdict.unwrap_or(Verdict::Taken);
            }
        } else if !flags.contains(TcpFlags::ACK) {
            // RFC 9293 §3.10.7.4, fifth check.
            return Verdict::Taken;
        } else if theirs.seq == state.rcv_nxt && segment.segment_len() == 0 {
            // In step and with nothing in it: an answer would only draw another.
            return Verdict::Taken;
        } else if state.ts.is_some() && theirs.options.timestamps.is_none() {
            // RFC 7323 §3.2: once negotiated, every segment carries it.
            self.metrics.drop_no_timestamp += 1;
            return Verdict::Taken;
        }
        let asks_again = segment.segment_len() > 0 && !flags.contains(TcpFlags::SYN);
        if !asks_again && !self.time_wait.may_answer(now, entry) {
            self.metrics.ack_skipped_time_wait += 1;
            return Verdict::Taken;
        }
        if flags.contains(TcpFlags::FIN) {
            // RFC 9293 §3.10.7.4, eighth check: a FIN again: our ACK was lost, and the time starts
            // anew.
            self.time_wait.restart(entry);
        }
        let options = TcpOptions {
            timestamps: state.ts.map(|ts| ts.option(now)),
            ..TcpOptions::default()
        };
        let (seq, ack) = (state.snd_nxt, state.rcv_nxt);
        self.reply(iface, segment, seq, ack, TcpFlags::ACK, options);
        Verdict::Taken
    }
}

impl TimeWaitState {
    /// RFC 6191 §2: whether this SYN is newer than the connection before: by its timestamp where
    /// both have one, and where that says nothing by its sequence number.
    fn yields_to(&self, syn: &Segment<'_>) -> bool {
        // The peer's FIN has the number before.
        let newer_number = syn.tcp.seq.at_or_after(self.rcv_nxt);
        match (self.ts, syn.tcp.options.timestamps) {
            (Some(ts), Some(option)) => match option.tsval.wrapping_sub(ts.recent()) as i32 {
                0 => newer_number,
                ahead => ahead > 0,
            },
            (None, Some(_)) => true,
            (_, None) => newer_number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::IfaceId;
    use crate::seq::TcpSeq;
    use crate::wire::frame::Link;
    use std::net::{Ipv4Addr, SocketAddr};

    fn key(port: u16) -> FlowKey {
        let at = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        FlowKey::new(at(80), at(port))
    }

    fn state() -> TimeWaitState {
        TimeWaitState {
            iface: IfaceId(0),
            link: Link::default(),
            snd_nxt: TcpSeq(1),
            rcv_nxt: TcpSeq(1),
            ts: None,
        }
    }

    #[test]
    fn a_flood_of_fins_prolongs_an_entry_and_costs_no_memory() {
        let at = Instant::from_millis;
        let mut table = TimeWaitTable::new(Duration::from_millis(100), 10);
        let (first, _) = table.insert(at(0), key(1), state());
        table.insert(at(10), key(2), state());
        for _ in 0..1000 {
            table.restart(first);
        }
        assert_eq!(table.order.len(), 2);
        assert_eq!(table.pop_expired(at(105)), None);
        assert_eq!(table.pop_expired(at(120)), Some(key(2)));
        assert_eq!(table.pop_expired(at(199)), None);
        assert_eq!(table.pop_expired(at(200)), Some(key(1)));
        assert!(table.len() == 0 && table.next_expiry().is_none());
    }

    #[test]
    fn a_place_used_again_keeps_its_own_time() {
        let at = Instant::from_millis;
        let mut table = TimeWaitTable::new(Duration::from_millis(100), 1);
        let (first, _) = table.insert(at(0), key(1), state());
        table.remove(first);
        let (second, evicted) = table.insert(at(50), key(2), state());
        assert_eq!((first, evicted), (second, None));
        assert_eq!(table.pop_expired(at(120)), None);
        assert_eq!(table.insert(at(130), key(3), state()).1, Some(key(2)));
        assert_eq!(table.pop_expired(at(230)), Some(key(3)));
    }
}
