//! TIME-WAIT (RFC 9293 §3.10.7.4, §3.6.1): compact, capped, and all of one duration, so that a list in
//! the order of ends is timer enough.

use super::Engine;
use super::flow::FlowKey;
use crate::mptcp::connection::TimeWaitState;
use crate::mptcp::subflow::INVALID_ANSWER_INTERVAL;
use crate::seq::{DataSeq, TcpSeq};
use crate::steering::{Arrival, Verdict};
use crate::tcp::timestamp::TsClock;
use crate::time::{Duration, Instant};
use crate::wire::frame::Segment;
use crate::wire::mptcp::{DsnWidth, Dss};
use crate::wire::tcp::{TcpFlags, TcpOptions, Timestamps};
use hashbrown::HashTable;

/// No entry: the end of a list.
const NONE: u32 = u32::MAX;

/// All that answers a late segment of a flow. With its place in the table of flows it takes less than 64
/// octets, as the tests count them.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// A keyed hash stands for the 4-tuple: with as many entries as there may be, one segment in 2^48
    /// that belongs to no flow is taken for one that does.
    flow: u64,
    snd_nxt: TcpSeq,
    rcv_nxt: TcpSeq,
    /// Low half of the DATA_ACK; the number that it answers has the other, if it is wanted.
    data_ack: u32,
    ts_recent: u32,
    ts_offset: u32,
    /// On a clock of milliseconds that wraps, as the next one.
    expires_ms: u32,
    /// When a segment that takes no sequence space was answered last.
    answered_ms: u32,
    /// Neighbours in the order of ends. A place that is free has the next free one as its `newer`.
    older: u32,
    newer: u32,
    has_timestamps: bool,
    is_multipath: bool,
}

/// Entries by flow, and in the order in which they end.
pub(super) struct TimeWaitTable {
    entries: Vec<Entry>,
    by_flow: HashTable<u32>,
    oldest: u32,
    newest: u32,
    free: u32,
    /// When the newest ends; from it the others are counted back.
    newest_expires_ms: u64,
    duration: Duration,
    limit: usize,
}

impl TimeWaitTable {
    pub(super) fn new(duration: Duration, limit: usize) -> TimeWaitTable {
        TimeWaitTable {
            entries: Vec::new(),
            by_flow: HashTable::new(),
            oldest: NONE,
            newest: NONE,
            free: NONE,
            newest_expires_ms: 0,
            duration,
            limit: limit.clamp(1, NONE as usize),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_flow.len()
    }

    /// The entry of a flow.
    pub(super) fn find(&self, flow: u64) -> Option<u32> {
        let entries = &self.entries;
        let found = self
            .by_flow
            .find(flow, |&at| entries[at as usize].flow == flow);
        found.copied()
    }

    /// Adds an entry; where the table is full the oldest one goes, and its flow comes back.
    pub(super) fn insert(&mut self, now: Instant, flow: u64, state: &TimeWaitState) -> Option<u64> {
        if let Some(same) = self.find(flow) {
            self.remove(same);
        }
        let evicted = (self.len() >= self.limit).then(|| self.remove(self.oldest));
        let entry = Entry {
            flow,
            snd_nxt: state.snd_nxt,
            rcv_nxt: state.rcv_nxt,
            data_ack: state.data_ack.map_or(0, |ack| ack.0 as u32),
            ts_recent: state.ts.map_or(0, |ts| ts.recent()),
            ts_offset: state.ts.map_or(0, |ts| ts.clock.offset),
            expires_ms: 0,
            answered_ms: (now.as_millis() as u32).wrapping_sub(ANSWER_INTERVAL_MS),
            older: NONE,
            newer: NONE,
            has_timestamps: state.ts.is_some(),
            is_multipath: state.data_ack.is_some(),
        };
        let at = match self.free {
            NONE => {
                if self.entries.len() == self.entries.capacity() {
                    // By a little: what is allocated stays in proportion to what is used.
                    self.entries.reserve_exact(self.entries.len() / 16 + 16);
                }
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
            at => {
                self.free = self.entries[at as usize].newer;
                self.entries[at as usize] = entry;
                at
            }
        };
        let entries = &self.entries;
        self.by_flow
            .insert_unique(flow, at, |&at| entries[at as usize].flow);
        self.append(now, at);
        evicted
    }

    /// Removes one entry whose time is over, and returns its flow.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<u64> {
        let is_over = self.next_expiry().is_some_and(|at| at <= now);
        is_over.then(|| self.remove(self.oldest))
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.entries.get(self.oldest as usize)?;
        let before_ms = (self.newest_expires_ms as u32).wrapping_sub(oldest.expires_ms);
        let at_ms = self.newest_expires_ms - u64::from(before_ms);
        Some(Instant::from_millis(at_ms))
    }

    /// A FIN came again: the time starts anew.
    fn restart(&mut self, now: Instant, at: u32) {
        self.unlink(at);
        self.append(now, at);
    }

    /// Whether a segment that no peer in step sends is answered now; if so it counts as answered.
    fn may_answer(&mut self, now: Instant, at: u32) -> bool {
        let now_ms = now.as_millis() as u32;
        let entry = &mut self.entries[at as usize];
        let may = now_ms.wrapping_sub(entry.answered_ms) >= ANSWER_INTERVAL_MS;
        if may {
            entry.answered_ms = now_ms;
        }
        may
    }

    fn remove(&mut self, at: u32) -> u64 {
        let flow = self.entries[at as usize].flow;
        if let Ok(slot) = self.by_flow.find_entry(flow, |&other| other == at) {
            slot.remove();
        }
        self.unlink(at);
        self.entries[at as usize].newer = self.free;
        self.free = at;
        flow
    }

    /// Puts an entry at the end of the order.
    fn append(&mut self, now: Instant, at: u32) {
        let expires = now + self.duration;
        self.newest_expires_ms = expires.0.div_ceil(1_000_000);
        let older = self.newest;
        let entry = &mut self.entries[at as usize];
        entry.expires_ms = self.newest_expires_ms as u32;
        (entry.older, entry.newer) = (older, NONE);
        self.newest = at;
        match self.entries.get_mut(older as usize) {
            Some(older) => older.newer = at,
            None => self.oldest = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Entry { older, newer, .. } = self.entries[at as usize];
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer as usize) {
            Some(entry) => entry.older = older,
            None => {
                self.newest = older;
                if let Some(entry) = self.entries.get(older as usize) {
                    // The end that the others are counted back from.
                    let back = (self.newest_expires_ms as u32).wrapping_sub(entry.expires_ms);
                    self.newest_expires_ms -= u64::from(back);
                }
            }
        }
    }
}

const ANSWER_INTERVAL_MS: u32 = INVALID_ANSWER_INTERVAL.as_millis() as u32;

impl Engine {
    /// A flow is over but for what is still on its way.
    pub(super) fn enter_time_wait(&mut self, now: Instant, key: &FlowKey, state: &TimeWaitState) {
        self.metrics.time_wait_entered += 1;
        self.flows.remove(key);
        let flow = self.flows.fingerprint(key);
        if let Some(evicted) = self.time_wait.insert(now, flow, state) {
            self.metrics.time_wait_overflow += 1;
            self.forget_steered(evicted);
        }
        self.release_flow(key, state);
        self.mesh.on_time_wait(flow, self.config.time_wait_max);
    }

    /// A segment for a flow in TIME-WAIT: a newer SYN opens a new connection (RFC 6191, RFC 9293
    /// §3.10.7.4), a RST is ignored (RFC 1337), anything else that a peer may send is acknowledged.
    pub(super) fn on_time_wait_segment(
        &mut self,
        now: Instant,
        arrival: Arrival,
        segment: &Segment<'_>,
        key: FlowKey,
        at: u32,
    ) -> Verdict {
        let iface = arrival.iface;
        let entry = self.time_wait.entries[at as usize];
        let theirs = &segment.tcp;
        let flags = theirs.flags;
        if flags.contains(TcpFlags::RST) {
            return Verdict::Taken;
        }
        let dss = theirs.options.mptcp.dss.filter(|_| entry.is_multipath);
        let data_fin = dss.is_some_and(|dss| dss.data_fin);
        if flags.contains(TcpFlags::SYN) && !flags.contains(TcpFlags::ACK) {
            if entry.yields_to(segment) {
                self.metrics.time_wait_recycled += 1;
                self.time_wait.remove(at);
                self.forget_steered(entry.flow);
                // The new one may be another worker's.
                let verdict = self.pass_on(now, segment, &key, arrival);
                if verdict.is_none() {
                    // RFC 9293 §3.6.1, MAY-2: above all that the connection before has used.
                    self.on_unknown(now, iface, segment, key, Some(entry.snd_nxt));
                }
                return verdict.unwrap_or(Verdict::Taken);
            }
        } else if !flags.contains(TcpFlags::ACK) {
            // RFC 9293 §3.10.7.4, fifth check.
            return Verdict::Taken;
        } else if theirs.seq == entry.rcv_nxt && segment.segment_len() == 0 && !data_fin {
            // In step and with nothing in it: an answer would only draw another.
            return Verdict::Taken;
        } else if entry.has_timestamps && theirs.options.timestamps.is_none() {
            // RFC 7323 §3.2: once negotiated, every segment carries it.
            self.metrics.drop_no_timestamp += 1;
            return Verdict::Taken;
        }
        let asks_again = (segment.segment_len() > 0 || data_fin) && !flags.contains(TcpFlags::SYN);
        if !asks_again && !self.time_wait.may_answer(now, at) {
            self.metrics.ack_skipped_time_wait += 1;
            return Verdict::Taken;
        }
        if flags.contains(TcpFlags::FIN) {
            // RFC 9293 §3.10.7.4, eighth check: a FIN again: our ACK was lost, and the time starts
            // anew.
            self.time_wait.restart(now, at);
        }
        let clock = TsClock {
            offset: entry.ts_offset,
            owner: self.config.owner,
            owner_bits: self.config.owner_bits,
        };
        let mut options = TcpOptions {
            timestamps: entry.has_timestamps.then(|| Timestamps {
                tsval: clock.tsval(now),
                tsecr: entry.ts_recent,
            }),
            ..TcpOptions::default()
        };
        if entry.is_multipath {
            // RFC 8684 §3.3.3: a DATA_FIN that comes late is still acknowledged, §3.3.2: in as many
            // octets as it has.
            let data_ack = match dss.and_then(|dss| dss.mapping).map(|mapping| mapping.dsn) {
                Some(DsnWidth::Eight(dsn)) => {
                    DsnWidth::Eight(DataSeq(dsn).expand(entry.data_ack).0)
                }
                _ => DsnWidth::Four(entry.data_ack),
            };
            options.mptcp.dss = Some(Dss {
                data_ack: Some(data_ack),
                ..Dss::default()
            });
        }
        let (seq, ack) = (entry.snd_nxt, entry.rcv_nxt);
        self.reply(iface, segment, seq, ack, TcpFlags::ACK, options);
        Verdict::Taken
    }
}

impl Entry {
    /// RFC 6191 §2: whether this SYN is newer than the connection before: by its timestamp where
    /// both have one, and where that says nothing by its sequence number.
    fn yields_to(&self, syn: &Segment<'_>) -> bool {
        // The peer's FIN has the number before.
        let newer_number = syn.tcp.seq.at_or_after(self.rcv_nxt);
        match syn.tcp.options.timestamps {
            Some(option) if self.has_timestamps => {
                match option.tsval.wrapping_sub(self.ts_recent) as i32 {
                    0 => newer_number,
                    ahead => ahead > 0,
                }
            }
            Some(_) => true,
            None => newer_number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Instant = Instant::from_millis;

    fn state(data_ack: Option<DataSeq>) -> TimeWaitState {
        TimeWaitState {
            snd_nxt: TcpSeq(1),
            rcv_nxt: TcpSeq(1),
            ts: None,
            data_ack,
        }
    }

    fn table(limit: usize) -> TimeWaitTable {
        TimeWaitTable::new(Duration::from_millis(100), limit)
    }

    /// Flows whose time is over at `ms`, and not before.
    fn ends(table: &mut TimeWaitTable, ms: u64, flows: &[u64], all: &[u64]) {
        assert_eq!(table.pop_expired(AT(ms - 1)), None, "{ms}");
        assert!(flows.iter().all(|&flow| table.find(flow).is_some()), "{ms}");
        assert_eq!(table.next_expiry(), Some(AT(ms)));
        while table.pop_expired(AT(ms)).is_some() {}
        let left = all.iter().filter(|&&flow| table.find(flow).is_some());
        assert_eq!(left.count(), all.len() - flows.len(), "{ms}");
    }

    // Key, state, order and place in the table, also just after that has grown and is half empty.
    #[test]
    fn an_entry_takes_less_than_64_octets() {
        let mut table = table(1 << 20);
        let mut worst: usize = 0;
        for flow in 0..200_000_u64 {
            // The table wants hashes, which a counter is none of.
            table.insert(
                AT(0),
                flow.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                &state(None),
            );
            if flow >= 10_000 {
                let entries = table.entries.capacity() * size_of::<Entry>();
                let octets = entries + table.by_flow.allocation_size();
                worst = worst.max(octets.div_ceil(table.len()));
            }
        }
        assert!(worst < 64, "{worst}");
    }

    #[test]
    fn a_flood_of_fins_prolongs_an_entry_and_costs_no_memory() {
        let mut table = table(10);
        table.insert(AT(0), 1, &state(None));
        table.insert(AT(10), 2, &state(None));
        let first = table.find(1).expect("it is there");
        for _ in 0..1000 {
            table.restart(AT(99), first);
        }
        assert_eq!(table.entries.len(), 2);
        ends(&mut table, 110, &[2], &[1, 2]);
        ends(&mut table, 199, &[1], &[1]);
        assert!(table.len() == 0 && table.next_expiry().is_none());
    }

    #[test]
    fn a_place_used_again_keeps_its_own_time() {
        let mut table = table(1);
        assert_eq!(table.insert(AT(0), 1, &state(None)), None);
        table.remove(table.find(1).expect("it is there"));
        assert_eq!(table.insert(AT(50), 2, &state(None)), None);
        assert_eq!(table.pop_expired(AT(120)), None);
        assert_eq!(table.insert(AT(130), 3, &state(None)), Some(2));
        assert!(table.find(2).is_none());
        ends(&mut table, 230, &[3], &[3]);
        assert_eq!(table.entries.len(), 1, "one place did for all");
    }

    // Whatever is taken out of the middle, the rest ends in its order and at its time, also where the
    // clock of milliseconds wraps.
    #[test]
    fn any_entry_may_go_before_its_time() {
        const BASE: u64 = u32::MAX as u64 - 120;
        for gone in 1..=4 {
            let mut table = table(10);
            for flow in 1..=4 {
                table.insert(AT(BASE + 10 * flow), flow, &state(None));
            }
            table.remove(table.find(gone).expect("it is there"));
            let mut left: Vec<u64> = (1..=4).filter(|&flow| flow != gone).collect();
            while let Some(&flow) = left.first() {
                ends(&mut table, BASE + 10 * flow + 100, &[flow], &left);
                left.remove(0);
            }
        }
    }
}
