//! TIME-WAIT (RFC 9293 §3.10.7.4, §3.6.1): compact, capped, and all of one duration, so that a queue
//! is timer enough.

use super::Engine;
use super::flow::{FlowEntry, FlowKey};
use crate::mptcp::connection::TimeWaitState;
use crate::port::IfaceId;
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

    fn remove(&mut self, entry: u32) {
        self.entries.try_remove(entry as usize);
    }
}

impl Engine {
    /// A segment for a flow in TIME-WAIT: a newer SYN opens a new connection (RFC 6191, RFC 9293
    /// §3.10.7.4), a RST is ignored (RFC 1337), anything else is acknowledged.
    pub(super) fn on_time_wait_segment(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        key: FlowKey,
        entry: u32,
    ) {
        debug_assert_eq!(self.flows.lookup(&key), Some(FlowEntry::TimeWait(entry)));
        let Some(state) = self.time_wait.entries.get(entry as usize).map(|e| e.state) else {
            return;
        };
        let theirs = &segment.tcp;
        if theirs.flags.contains(TcpFlags::RST) {
            return;
        }
        if theirs.flags.contains(TcpFlags::SYN) && !theirs.flags.contains(TcpFlags::ACK) {
            let newer_timestamp = match (state.ts, theirs.options.timestamps) {
                (Some(ts), Some(option)) => (option.tsval.wrapping_sub(ts.recent()) as i32) > 0,
                _ => false,
            };
            if newer_timestamp || theirs.seq.after(state.rcv_nxt) {
                self.metrics.time_wait_recycled += 1;
                self.time_wait.remove(entry);
                self.flows.remove(&key);
                self.on_unknown(now, iface, segment, key);
                return;
            }
        }
        if theirs.seq == state.rcv_nxt && segment.segment_len() == 0 {
            // In step and with nothing in it: an answer would only draw another.
            return;
        }
        if theirs.flags.contains(TcpFlags::FIN) {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
