//! The engine of one worker: listeners, flow table, token table, timers and limits around the
//! connections. Frames and time come in; frames and calls to apps come out.
//!
//! `on_frame`, `on_timeout`, `poll_apps`, `poll_transmit`, `next_timeout` are all there is. Network
//! input never fails: what is not handled is counted in [`Metrics`].

mod active_open;
mod config;
mod conn;
mod cookies;
mod fallbacks;
mod fast_open;
mod flow;
mod icmp;
mod join;
mod keys;
mod limit;
mod listen;
mod neighbor;
mod open;
mod policy;
mod report;
mod sources;
mod spent;
mod steer;
mod stranded;
mod time_wait;

pub use crate::mptcp::Versions;
pub use crate::mptcp::address::FirstHop;
pub use crate::mptcp::connection::Buffers;
pub use crate::mptcp::fallback::Fallback;
pub use active_open::Route;
pub use config::{Closing, EngineConfig, InterfaceConfig, JoinPolicy, Patience, ServiceConfig};
pub use conn::{Conn, ConnId, Conns};
pub use keys::{KeyPool, LocalKey};
pub use neighbor::Announced;
pub use policy::{AddressChange, AddressPolicy, AddressStep, Announce, JoinRule};
pub use report::{
    ConnectionPage, ConnectionReport, EngineReport, FallbackReport, MemoryReport, SubflowReport,
};
pub use steer::Message;

use crate::app::{App, CloseCause};
use crate::crypto::Secrets;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::mptcp::connection::End;
use crate::mptcp::{Connection, Mode, Version};
use crate::port::IfaceId;
use crate::rand::Entropy;
use crate::seq::TcpSeq;
use crate::steering::{Arrival, Verdict};
use crate::tcp::fast_open::{Cookies, Pending};
use crate::time::Instant;
use crate::wheel::TimerWheel;
use crate::wire::ParseError;
use crate::wire::frame::{self, Link, Segment};
use crate::wire::neighbor::NeighborAnswer;
use crate::wire::tcp::{TcpFlags, TcpHeader, TcpOptions, Timestamps};
use active_open::ActiveOpens;
use fallbacks::Fallbacks;
use flow::{FlowEntry, FlowKey, FlowTable};
use keys::keys_ahead;
use limit::{RateLimit, SourceLimit};
use neighbor::Neighbors;
use policy::Backups;
use slab::Slab;
use sources::ProvenSources;
use spent::SpentCookies;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use steer::Mesh;
use stranded::Stranded;
use time_wait::TimeWaitTable;

/// A direction of one connection has at most this part of the worker's memory.
const MEMORY_PARTS: usize = 4;
/// Stateless answers that may wait for a free frame, per interface.
const REPLIES_MAX: usize = 1024;

/// One service with the app that serves it.
struct Service {
    config: ServiceConfig,
    app: Box<dyn App>,
    fast_opens: Pending,
}

/// A segment of no connection: a RST, an ACK out of TIME-WAIT, or a SYN/ACK with a cookie.
struct Reply {
    link: Link,
    src: IpAddr,
    dst: IpAddr,
    header: TcpHeader,
}

impl Reply {
    fn emit(&self, frame: &mut [u8]) -> usize {
        let (link, src, dst) = (&self.link, self.src, self.dst);
        frame::emit(frame, link, src, dst, 0, &self.header, 0, 0)
    }
}

/// What an interface is waiting to send.
#[derive(Default)]
struct TransmitQueue {
    neighbors: VecDeque<NeighborAnswer>,
    replies: VecDeque<Reply>,
    /// The frame before was a subflow's, if it had one.
    reply_next: bool,
    /// Subflows that have something to send, each once.
    subflows: VecDeque<(ConnId, usize)>,
}

pub struct Engine {
    config: EngineConfig,
    services: Vec<Service>,
    connections: Slab<Box<Connection>>,
    next_generation: u32,
    half_open: usize,
    stranded: Stranded,
    /// Until then a SYN cookie may come back.
    cookies_until: Option<Instant>,
    spent_cookies: SpentCookies,
    backups: Backups,
    flows: FlowTable,
    tokens: HashMap<u32, u32, rustc_hash::FxBuildHasher>,
    keys: KeyPool,
    /// Of version 0, where a service speaks that.
    keys_v0: KeyPool,
    time_wait: TimeWaitTable,
    wheel: TimerWheel<ConnId>,
    expired: Vec<ConnId>,
    touched: Vec<ConnId>,
    transmit: Vec<TransmitQueue>,
    memory: Memory,
    challenge_limit: RateLimit,
    reset_limit: RateLimit,
    join_limit: SourceLimit,
    secrets: Secrets,
    fast_open_cookies: Cookies,
    entropy: Box<dyn Entropy>,
    draining: bool,
    icmp_limit: RateLimit,
    neighbors: Neighbors,
    flow_lookup_limit: RateLimit,
    proven_sources: ProvenSources,
    mesh: Mesh,
    active_opens: ActiveOpens,
    fallbacks: Fallbacks,
    pub metrics: Metrics,
}

impl Engine {
    /// `apps` in the order of `config.services`.
    pub fn new(
        mut config: EngineConfig,
        apps: Vec<Box<dyn App>>,
        now: Instant,
        mut entropy: Box<dyn Entropy>,
    ) -> Engine {
        assert_eq!(config.services.len(), apps.len(), "one app per service");
        config.buffers = config
            .buffers
            .within(config.memory_max_bytes / MEMORY_PARTS);
        let secrets = match config.secrets.take() {
            Some(secrets) => secrets,
            None => Secrets::generate(&mut *entropy),
        };
        let fast_open_cookies = Cookies::new(config.fast_open_secret.unwrap_or_else(|| {
            let mut secret = [0; 16];
            entropy.fill(&mut secret);
            secret
        }));
        let services = config.services.iter().cloned().zip(apps);
        Engine {
            services: services
                .map(|(config, app)| Service {
                    config,
                    app,
                    fast_opens: Pending::default(),
                })
                .collect(),
            connections: Slab::new(),
            next_generation: 0,
            half_open: 0,
            stranded: Stranded::default(),
            cookies_until: None,
            spent_cookies: SpentCookies::new(&mut *entropy),
            backups: Backups::default(),
            flows: FlowTable::new(&mut *entropy),
            tokens: HashMap::default(),
            keys: keys_ahead(&config, Version::V1),
            keys_v0: keys_ahead(&config, Version::V0),
            time_wait: TimeWaitTable::new(config.time_wait, config.time_wait_max),
            wheel: TimerWheel::new(now),
            expired: Vec::new(),
            touched: Vec::new(),
            transmit: config
                .interfaces
                .iter()
                .map(|_| TransmitQueue::default())
                .collect(),
            memory: Memory::new(config.memory_max_bytes),
            challenge_limit: RateLimit::new(config.challenge_acks_per_second_max),
            reset_limit: RateLimit::new(config.resets_per_second_max),
            join_limit: SourceLimit::new(config.pending_joins_per_source_max, &mut *entropy),
            active_opens: ActiveOpens::new(config.pending_joins_per_source_max, &mut *entropy),
            proven_sources: ProvenSources::new(&mut *entropy),
            secrets,
            fast_open_cookies,
            entropy,
            draining: false,
            icmp_limit: RateLimit::new(icmp::ERRORS_PER_SECOND_MAX),
            neighbors: Neighbors::new(now, &config),
            flow_lookup_limit: RateLimit::new(config.steering.flow_lookups_per_second_max),
            mesh: Mesh::new(&config),
            fallbacks: Fallbacks::default(),
            metrics: Metrics::default(),
            config,
        }
    }

    /// Takes in one frame, unless it is another worker's.
    pub fn on_frame(&mut self, now: Instant, arrival: impl Into<Arrival>, frame: &[u8]) -> Verdict {
        let arrival = arrival.into();
        self.mesh.on_arrival(arrival);
        match Segment::parse(frame) {
            Ok(segment) => {
                let verdict = self.on_segment(now, arrival, &segment);
                if let Verdict::Forward(_) = verdict {
                    // It is counted where it is taken in.
                    self.metrics.mesh_forwards += 1;
                    return verdict;
                }
                self.metrics.count_codepoint(segment.traffic_class);
            }
            Err(ParseError::NotTcp) => self.on_other(now, arrival.iface, frame),
            Err(error) => self.count_drop(error),
        }
        self.metrics.rx_frames += 1;
        self.metrics.rx_bytes += frame.len() as u64;
        self.metrics.mesh_received += u64::from(arrival.forwarded);
        Verdict::Taken
    }

    fn count_drop(&mut self, error: ParseError) {
        let counter = match error {
            ParseError::Truncated => &mut self.metrics.drop_truncated,
            ParseError::NotTcp => &mut self.metrics.drop_not_tcp,
            ParseError::Fragment => &mut self.metrics.drop_fragment,
            ParseError::BadHeader => &mut self.metrics.drop_bad_header,
            ParseError::BadIpChecksum => &mut self.metrics.drop_bad_ip_checksum,
            ParseError::BadTcpChecksum => &mut self.metrics.drop_bad_tcp_checksum,
            ParseError::BadIcmpChecksum => &mut self.metrics.icmp_in_csum_errors,
            ParseError::NotTooBig => &mut self.metrics.icmp_in_errors,
            ParseError::TooDeep => &mut self.metrics.drop_too_deep,
        };
        *counter += 1;
    }

    fn on_segment(&mut self, now: Instant, arrival: Arrival, segment: &Segment<'_>) -> Verdict {
        let iface = arrival.iface;
        let key = FlowKey::of_segment(segment);
        match self.flows.lookup(&key) {
            Some(FlowEntry {
                connection,
                subflow,
            }) => {
                let index = connection as usize;
                let connection = &mut self.connections[index];
                connection.set_allowance(self.memory.allowance());
                let opening = connection.is_opening(subflow as usize);
                if opening
                    && !arrival.forwarded
                    && !connection.is_initial(subflow as usize)
                    && !steer::is_claimed(&connection.subflows[subflow as usize], segment)
                    && let Some(verdict) = self.pass_on(now, segment, &key, arrival)
                {
                    return verdict;
                }
                let connection = &mut self.connections[index];
                let received =
                    connection.on_segment(subflow as usize, now, iface, segment, &mut self.metrics);
                let opened = opening && connection.is_open(subflow as usize);
                if received.challenge {
                    if self.challenge_limit.take(now, &mut *self.entropy) {
                        self.metrics.challenge_acks += 1;
                        connection.acknowledge_now(subflow as usize);
                    } else {
                        self.metrics.ack_skipped_challenge += 1;
                    }
                }
                if received.answer_reset {
                    self.reply_reset(now, iface, segment);
                }
                if opened {
                    self.proven_sources.prove(now, segment.src);
                    let connection = &mut self.connections[index];
                    let initial = connection.is_initial(subflow as usize);
                    if connection.is_opened_here(subflow as usize) {
                        // Whatever port of ours it has, this is the way to the service's.
                        let port = connection.local_addr.port();
                        let local = SocketAddr::new(segment.dst, port);
                        connection.addresses.on_rejoined(local);
                        self.active_opens.give_back(segment.src);
                    } else if !initial {
                        self.join_limit.give_back(segment.src);
                    }
                    if !initial {
                        self.confirm_flow(&key);
                    }
                }
                self.settle(index, now, &segment.payload[received.in_place]);
            }
            None => match self.time_wait.find(self.flows.fingerprint(&key)) {
                Some(entry) => {
                    return self.on_time_wait_segment(now, arrival, segment, key, entry);
                }
                None => match self.pass_on(now, segment, &key, arrival) {
                    Some(verdict) => return verdict,
                    None => self.on_unknown(now, iface, segment, key, None),
                },
            },
        }
        Verdict::Taken
    }

    /// Fires every timer that is due.
    pub fn on_timeout(&mut self, now: Instant) {
        let mut expired = std::mem::take(&mut self.expired);
        self.wheel.expire(now, &mut |id| expired.push(id));
        for id in expired.drain(..) {
            let index = id.index as usize;
            let Some(connection) = self.connections.get_mut(index).filter(|c| c.id == id) else {
                continue;
            };
            if !connection.on_wheel(now) {
                continue;
            }
            connection.set_allowance(self.memory.allowance());
            connection.on_timeout(now, &mut self.metrics);
            self.settle(index, now, &[]);
        }
        self.expired = expired;
        self.announce_neighbors(now);
        self.open_without_route(now);
        while let Some(flow) = self.time_wait.pop_expired(now) {
            self.forget_steered(flow);
        }
    }

    /// When `on_timeout` is wanted next.
    pub fn next_timeout(&self) -> Option<Instant> {
        [
            self.wheel.next_expiry(),
            self.time_wait.next_expiry(),
            self.neighbors.next_at(),
            self.active_opens.next_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Lets apps with descriptors of their own act. Returns whether any of them did.
    pub fn poll_apps(&mut self, now: Instant) -> bool {
        let mut touched = std::mem::take(&mut self.touched);
        let mut worked = false;
        for service in &mut self.services {
            if let Some(readiness) = service.app.readiness() {
                let mut conns = Conns {
                    connections: &mut self.connections,
                    memory: &mut self.memory,
                    metrics: &mut self.metrics,
                    touched: &mut touched,
                    now,
                };
                worked |= readiness.poll(now, &mut conns);
            }
        }
        for id in touched.drain(..) {
            let index = id.index as usize;
            if let Some(connection) = self.connections.get_mut(index).filter(|c| c.id == id) {
                connection.set_allowance(self.memory.allowance());
                self.settle(index, now, &[]);
            }
        }
        self.touched = touched;
        worked
    }

    /// The apps, for the worker to watch their descriptors.
    pub fn apps(&mut self) -> impl Iterator<Item = &mut Box<dyn App>> {
        self.services.iter_mut().map(|s| &mut s.app)
    }

    /// Whether `iface` has something to send.
    pub fn wants_transmit(&self, iface: IfaceId) -> bool {
        let queue = &self.transmit[usize::from(iface.0)];
        !queue.replies.is_empty() || !queue.subflows.is_empty() || !queue.neighbors.is_empty()
    }

    /// Writes the next frame to leave on `iface`; returns its length, 0 if there is none.
    pub fn poll_transmit(&mut self, now: Instant, iface: IfaceId, frame: &mut [u8]) -> usize {
        let written = self.next_frame(now, iface, frame);
        if written > 0 {
            self.metrics.tx_frames += 1;
            self.metrics.tx_bytes += written as u64;
        }
        written
    }

    /// In turn, so that neither stateless answers to a flood nor connections keep the others waiting.
    fn next_frame(&mut self, now: Instant, iface: IfaceId, frame: &mut [u8]) -> usize {
        let queue = &mut self.transmit[usize::from(iface.0)];
        if let Some(answer) = queue.neighbors.pop_front() {
            return answer.emit(frame);
        }
        queue.reply_next = !queue.reply_next;
        if queue.reply_next
            && let Some(reply) = queue.replies.pop_front()
        {
            return reply.emit(frame);
        }
        let written = self.next_of_subflows(now, iface, frame);
        if written > 0 {
            return written;
        }
        let replies = &mut self.transmit[usize::from(iface.0)].replies;
        replies.pop_front().map_or(0, |reply| reply.emit(frame))
    }

    fn next_of_subflows(&mut self, now: Instant, iface: IfaceId, frame: &mut [u8]) -> usize {
        let queue = usize::from(iface.0);
        while let Some((id, subflow)) = self.transmit[queue].subflows.pop_front() {
            let index = id.index as usize;
            let Some(connection) = self.connections.get_mut(index).filter(|c| c.id == id) else {
                continue;
            };
            let Some(state) = connection.subflows.get_mut(subflow) else {
                continue;
            };
            state.queued = false;
            if state.iface != iface {
                self.enqueue(index);
                continue;
            }
            // The window that it offers is that of now, and so is what it may note.
            connection.set_allowance(self.memory.allowance());
            let written = connection.transmit(subflow, now, frame, &mut self.metrics);
            if connection.retired.is_empty() {
                self.metrics.memory_pressures += u64::from(self.memory.settle(connection));
                self.after_transmit(index, now);
            } else {
                connection.set_allowance(self.memory.allowance());
                self.settle(index, now, &[]);
            }
            if written > 0 {
                return written;
            }
        }
        0
    }

    /// No new connections: a SYN gets a RST, so that a balancer tries elsewhere.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Connections whose handshake is over.
    pub fn open_connections(&self) -> usize {
        self.connections.len() - self.half_open
    }

    /// Connections that are open or opening.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Ends every connection with a RST, which says MP_FASTCLOSE where that is spoken: nobody will be here
    /// to repeat it.
    pub fn abort_all(&mut self, now: Instant) {
        let indexes: Vec<usize> = self.connections.iter().map(|(index, _)| index).collect();
        for index in indexes {
            self.connections[index].abort_at_once(End::Aborted);
            self.settle(index, now, &[]);
        }
    }

    /// After anything that touched a connection, within its allowance: tells its app, ends what has
    /// ended, charges it for what it holds, and enters what is left to do in the queues and the wheel.
    fn settle(&mut self, index: usize, now: Instant, in_place: &[u8]) {
        // First: it makes room for what the app writes.
        self.connections[index].after_progress(now);
        self.open_subflows(index, now);
        let connection = &mut self.connections[index];
        let service = &mut self.services[connection.service];
        if connection.fast_open_pending && connection.is_acknowledged() {
            connection.fast_open_pending = false;
            service.fast_opens.end();
        }
        let app = &mut service.app;
        if connection.events.opened {
            connection.events.opened = false;
            connection.app_opened = true;
            self.half_open -= 1;
            app.on_open(&mut Conn::new(connection, &mut self.metrics, now, &[]));
        }
        if connection.events.fell_back && connection.app_opened && !connection.app_closed {
            connection.events.fell_back = false;
            if let Some(cause) = connection.fallback {
                self.fallbacks.count(connection.local_addr.port(), cause);
                app.on_fallback(
                    &mut Conn::new(connection, &mut self.metrics, now, &[]),
                    cause,
                );
            }
        }
        let mut left = in_place;
        if connection.events.readable && connection.app_opened && !connection.app_closed {
            connection.events.readable = false;
            let mut conn = Conn::new(connection, &mut self.metrics, now, in_place);
            app.on_readable(&mut conn);
            left = &in_place[in_place.len() - conn.unread_in_place()..];
        }
        if !left.is_empty() {
            connection.rcv.keep_unread(left);
        }
        connection.tune_buffers(now);
        if connection.write_blocked && connection.end.is_none() && connection.snd.is_writable() {
            connection.write_blocked = false;
            app.on_writable(&mut Conn::new(connection, &mut self.metrics, now, &[]));
        }
        if let Some(end) = connection.end
            && connection.app_opened
            && !connection.app_closed
            && (end != End::Finished || connection.rcv.unread_bytes() == 0)
        {
            connection.app_closed = true;
            connection.rcv.discard();
            app.on_closed(connection.id, CloseCause::from(end));
        }
        connection.refresh(now);
        self.metrics.memory_pressures += u64::from(self.memory.settle(connection));
        let subflows_changed = connection.events.stranded || connection.events.rejoined;
        if subflows_changed {
            self.note_subflows(index);
        }
        self.after_transmit(index, now);
        if subflows_changed {
            self.bound_stranded(now);
        }
    }

    /// Takes what retired out of the tables, frees a connection that is gone, queues the rest.
    fn after_transmit(&mut self, index: usize, now: Instant) {
        let connection = &mut self.connections[index];
        if connection.mode == Mode::Tcp && connection.token != 0 {
            // RFC 8684 §3.7: no subflow joins after a fallback.
            self.tokens.remove(&connection.token);
            connection.token = 0;
        }
        while let Some(retired) = self.connections[index].retired.pop() {
            let connection = &mut self.connections[index];
            let key = FlowKey::new(retired.local, retired.remote);
            if retired.failed && connection.end.is_none() && connection.mode == Mode::Mptcp {
                let mut subflows = connection.subflows.iter();
                // RFC 8684 §3.1: to an initial address that was barred nobody may come back; §3.4.1: its ID
                // is to keep the address, and behind a translator the client knows another one.
                let addresses = &self.services[connection.service].config.addresses;
                let tells_initial =
                    !connection.settings.deny_join_initial && !addresses.are_translated();
                let initial = tells_initial.then_some(connection.local_addr);
                let missed = !subflows.any(|(_, s)| s.local == retired.local && s.is_open())
                    && connection
                        .addresses
                        .on_subflow_failed(retired.local, initial, now);
                self.metrics.add_addr_again += u64::from(missed);
            }
            match retired.time_wait {
                None => self.forget_flow(&key),
                Some(state) => self.enter_time_wait(now, &key, &state),
            }
        }
        // What was acknowledged is the app's, even after the last subflow is gone.
        let connection = &mut self.connections[index];
        let unread = connection.end == Some(End::Finished)
            && connection.app_opened
            && !connection.app_closed
            && connection.rcv.unread_bytes() > 0;
        if connection.is_gone() && !unread {
            self.remove_connection(index, now);
            return;
        }
        if let Some(at) = connection.wheel_entry() {
            self.wheel.schedule(at, connection.id);
        }
        self.enqueue(index);
    }

    fn enqueue(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let text_goes_to = connection.text_goes_to();
        for subflow in 0..connection.subflows.capacity() {
            let Some(state) = connection.subflows.get(subflow) else {
                continue;
            };
            if state.queued || !connection.wants_transmit(subflow, text_goes_to) {
                continue;
            }
            let state = &mut connection.subflows[subflow];
            state.queued = true;
            self.transmit[usize::from(state.iface.0)]
                .subflows
                .push_back((connection.id, subflow));
        }
    }

    fn remove_connection(&mut self, index: usize, now: Instant) {
        let connection = self.connections.remove(index);
        if connection.fast_open_pending {
            let fast_opens = &mut self.services[connection.service].fast_opens;
            match connection.end {
                Some(End::PeerAborted) => fast_opens.end_reset(now),
                _ => fast_opens.end(),
            }
        }
        self.memory.close(connection.charged_bytes);
        self.forget_stranded(connection.stranded_since.is_some());
        if connection.token != 0 {
            self.tokens.remove(&connection.token);
        }
        if connection.app_opened {
            self.metrics.connections_closed += 1;
            if !connection.app_closed {
                let cause = CloseCause::from(connection.end.unwrap_or(End::PeerAborted));
                self.services[connection.service]
                    .app
                    .on_closed(connection.id, cause);
            }
        } else {
            self.half_open -= 1;
        }
    }

    /// RFC 9293 §3.5.2, §3.10.7.1: the RST for a segment of no connection. RFC 7323 §5.2: it carries
    /// TSval 0 and echoes theirs.
    fn reply_reset(&mut self, now: Instant, iface: IfaceId, segment: &Segment<'_>) {
        self.reply_reset_with(now, iface, segment, None);
    }

    fn reply_reset_with(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        reason: Option<crate::wire::mptcp::MpTcprst>,
    ) {
        let theirs = &segment.tcp;
        if theirs.flags.contains(TcpFlags::RST) {
            return;
        }
        if !self.reset_limit.take(now, &mut *self.entropy) {
            self.metrics.resets_skipped += 1;
            return;
        }
        let mut options = TcpOptions {
            timestamps: theirs.options.timestamps.map(|ts| Timestamps {
                tsval: 0,
                tsecr: ts.tsval,
            }),
            ..TcpOptions::default()
        };
        options.mptcp.tcprst = reason;
        let (seq, ack, flags) = if theirs.flags.contains(TcpFlags::ACK) {
            (theirs.ack, TcpSeq(0), TcpFlags::RST)
        } else {
            let ack = theirs.seq + segment.segment_len();
            (TcpSeq(0), ack, TcpFlags::RST | TcpFlags::ACK)
        };
        self.metrics.resets_sent += 1;
        self.metrics.mp_rst_tx += u64::from(reason.is_some());
        self.reply(iface, segment, seq, ack, flags, options);
    }

    /// Queues a segment without text back to where `segment` came from.
    fn reply(
        &mut self,
        iface: IfaceId,
        segment: &Segment<'_>,
        seq: TcpSeq,
        ack: TcpSeq,
        flags: TcpFlags,
        options: TcpOptions,
    ) {
        let header = TcpHeader {
            src_port: segment.tcp.dst_port,
            dst_port: segment.tcp.src_port,
            seq,
            ack,
            flags,
            window: 0,
            urgent: 0,
            options,
        };
        self.queue_reply(iface, segment, header);
    }

    fn queue_reply(&mut self, iface: IfaceId, segment: &Segment<'_>, header: TcpHeader) {
        let queue = &mut self.transmit[usize::from(iface.0)].replies;
        if queue.len() >= REPLIES_MAX {
            self.metrics.replies_dropped += 1;
            return;
        }
        queue.push_back(Reply {
            link: segment.link.reversed(),
            src: segment.dst,
            dst: segment.src,
            header,
        });
    }
}

impl From<End> for CloseCause {
    fn from(end: End) -> CloseCause {
        match end {
            End::Finished => CloseCause::Finished,
            End::PeerAborted => CloseCause::PeerAborted,
            End::Aborted => CloseCause::Aborted,
            End::TimedOut => CloseCause::TimedOut,
        }
    }
}

#[cfg(test)]
mod tests;
