//! TIME-WAIT (RFC 9293 §3.10.7.4, §3.6.1): compact, capped, and all of one duration, so that a queue
//! is timer enough.

use super::Engine;
use super::flow::{FlowEntry, FlowKey};
use crate::mptcp::connection::TimeWaitState;
use crate::port::IfaceId;
use crate::time::{Duration, Instant};
use crate::wire::frame::Segment;
use crate::wire::tcp::{TcpFlags, TcpHeader, TcpOptions};
use slab::Slab;
use std::collections::VecDeque;

struct Entry {
    key: FlowKey,
    state: TimeWaitState,
    /// Tells an entry from a later one in the same place.
    expires_at: Instant,
}

pub(super) struct TimeWaitTable {
    entries: Slab<Entry>,
    /// Oldest first.
    order: VecDeque<(Instant, u32)>,
    duration: Duration,
    limit: usize,
}

impl TimeWaitTable {
    pub(super) fn new(duration: Duration, limit: usize) -> TimeWaitTable {
        TimeWaitTable {
            entries: Slab::new(),
            order: VecDeque::new(),
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
        let expires_at = now + self.duration;
        let entry = self.entries.insert(Entry {
            key,
            state,
            expires_at,
        }) as u32;
        self.order.push_back((expires_at, entry));
        (entry, evicted)
    }

    /// Removes one entry whose time is over.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<FlowKey> {
        self.pop_until(Some(now))
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.order.front().map(|&(at, _)| at)
    }

    /// Removes the oldest entry, if it expired by `limit`; `None` is any time.
    fn pop_until(&mut self, limit: Option<Instant>) -> Option<FlowKey> {
        while let Some(&(at, entry)) = self.order.front() {
            if limit.is_some_and(|limit| at > limit) {
                return None;
            }
            self.order.pop_front();
            if self
                .entries
                .get(entry as usize)
                .is_some_and(|e| e.expires_at == at)
            {
                return Some(self.entries.remove(entry as usize).key);
            }
        }
        None
    }

    fn restart(&mut self, now: Instant, entry: u32) {
        if let Some(state) = self.entries.get_mut(entry as usize) {
            state.expires_at = now + self.duration;
            self.order.push_back((state.expires_at, entry));
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
        if theirs.flags.contains(TcpFlags::FIN) {
            // RFC 9293 §3.10.7.4, eighth check: a FIN again: our ACK was lost, and the time starts
            // anew.
            self.time_wait.restart(now, entry);
        }
        let options = TcpOptions {
            timestamps: state.ts.map(|ts| ts.option(now)),
            ..TcpOptions::default()
        };
        self.reply(
            iface,
            segment,
            TcpHeader {
                src_port: theirs.dst_port,
                dst_port: theirs.src_port,
                seq: state.snd_nxt,
                ack: state.rcv_nxt,
                flags: TcpFlags::ACK,
                window: 0,
                urgent: 0,
                options,
            },
        );
    }
}
