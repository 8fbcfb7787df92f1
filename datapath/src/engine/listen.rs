//! What belongs to no known flow: SYNs that open a connection, SYNs that join one, and the rest.

use super::flow::{FlowEntry, FlowKey};
use super::{ConnId, Engine, JoinPolicy};
use crate::buffer::ByteRing;
use crate::crypto;
use crate::memory::{RECEIVE_RESERVE_BYTES, SEND_RESERVE_BYTES};
use crate::mptcp::close::{RST_MPTCP_SPECIFIC, RST_NO_RESOURCES, RST_PROHIBITED};
use crate::mptcp::connection::{Connection, Settings};
use crate::mptcp::data::{WINDOW_SHIFT_MAX, window_shift};
use crate::mptcp::path_mtu::headers_len;
use crate::mptcp::signal::SignalRow;
use crate::mptcp::{Handshake, Mode, Subflow};
use crate::port::IfaceId;
use crate::seq::{DataSeq, TcpSeq};
use crate::tcp::State;
use crate::tcp::ecn::Ecn;
use crate::tcp::path_mtu::PathMtu;
use crate::tcp::receiver::Receiver;
use crate::tcp::sender::Sender;
use crate::tcp::timestamp::{TsClock, TsState};
use crate::time::Instant;
use crate::wire::frame::Segment;
use crate::wire::mptcp::{CapableContent, MpCapable, MpJoin, MpTcprst};
use crate::wire::tcp::TcpFlags;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Draws per owner before MP_CAPABLE is given up for this connection.
const KEY_DRAWS_PER_OWNER: u32 = 64;
/// RFC 9293 §3.7.1: a peer that sends no MSS option takes this much.
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;
/// What a connection is charged for from the beginning.
const CONNECTION_BYTES: usize =
    size_of::<Connection>() + size_of::<Subflow>() + RECEIVE_RESERVE_BYTES + SEND_RESERVE_BYTES;
/// What a subflow may stage beyond a window: one mapping and as much without one.
const STAGING_SLACK_BYTES: usize = 3 * 65_536;

impl Engine {
    /// RFC 9293 §3.10.7.1 and §3.10.7.2. `last_used`: our next sequence number of a connection in
    /// TIME-WAIT that makes room for this one.
    pub(super) fn on_unknown(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        key: FlowKey,
        last_used: Option<TcpSeq>,
    ) {
        let flags = segment.tcp.flags;
        let opens = flags.contains(TcpFlags::SYN)
            && !flags.contains(TcpFlags::ACK)
            && !flags.contains(TcpFlags::RST)
            && !flags.contains(TcpFlags::FIN);
        if !opens {
            self.metrics.no_flow += 1;
            self.reply_reset(now, iface, segment);
            return;
        }
        if let Some(join) = segment.tcp.options.mptcp.join {
            self.on_join(now, iface, segment, key, last_used, join);
        } else {
            self.on_open(now, iface, segment, key, last_used);
        }
    }

    fn on_open(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        key: FlowKey,
        last_used: Option<TcpSeq>,
    ) {
        let local = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let remote = SocketAddr::new(segment.src, segment.tcp.src_port);
        let Some(service) = self
            .services
            .iter()
            .position(|s| s.config.listen.contains(&local))
        else {
            self.metrics.no_flow += 1;
            self.reply_reset(now, iface, segment);
            return;
        };
        if self.draining {
            self.reply_reset(now, iface, segment);
            return;
        }
        if self.connections.len() >= self.config.connections_max
            || self.half_open >= self.config.half_open_max
        {
            self.metrics.listen_overflows += 1;
            return;
        }
        if !self.memory.admits(CONNECTION_BYTES) {
            self.metrics.memory_refused += 1;
            return;
        }
        let capable = segment.tcp.options.mptcp.capable;
        let asks_checksum = self.services[service].config.checksum;
        let key_and_token = match capable {
            Some(capable) if capable.content == CapableContent::Syn && capable.is_understood() => {
                self.metrics.mp_capable_syn_rx += 1;
                self.draw_key()
            }
            Some(_) => {
                self.metrics.mp_capable_refused += 1;
                None
            }
            None => None,
        };
        self.next_generation = self.next_generation.wrapping_add(1);
        let vacant = self.connections.vacant_key();
        let id = ConnId {
            index: vacant as u32,
            generation: self.next_generation,
        };
        let policy = &self.services[service].config.addresses;
        let settings = Settings {
            buffers: self.config.buffers,
            subflows_max: policy
                .subflows_max
                .unwrap_or(self.config.subflows_per_connection_max),
            deny_join_initial: policy.deny_join_initial,
            fin_hold: self.config.fin_hold,
            fin_timeout: self.config.fin_timeout,
            retries_max: self.config.retries_max,
            syn_ack_retries_max: self.config.syn_ack_retries_max,
            patience: self.services[service].config.patience,
        };
        let mut connection = Box::new(Connection::new(id, service, settings, local, remote, now));
        let mut handshake = Handshake::Tcp;
        if let (Some(capable), Some((local_key, token, idsn))) = (capable, key_and_token) {
            handshake = Handshake::Capable;
            connection.mode = Mode::Pending;
            connection.local_key = local_key;
            connection.token = token;
            connection.local_idsn = DataSeq(idsn);
            // RFC 8684 §3.1: checksums are used if either side asks for them.
            connection.checksum = asks_checksum || capable.flags & MpCapable::FLAG_CHECKSUM != 0;
            for address in policy.announced_to(remote.ip(), local) {
                connection.announce_address(address);
            }
            self.tokens.insert(token, id.index);
        }
        let iss = self.initial_sequence(now, segment, last_used);
        let subflow = self.new_subflow(now, iface, segment, service, handshake, iss);
        let subflow = connection.add_subflow(subflow) as u32;
        self.connections.insert(connection);
        self.memory.open();
        self.half_open += 1;
        self.flows.insert(
            key,
            FlowEntry::Subflow {
                connection: id.index,
                subflow,
            },
        );
        self.settle(vacant, now, &[]);
    }

    /// RFC 8684 §3.2: the token names the connection; addresses and ports are free.
    fn on_join(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        key: FlowKey,
        last_used: Option<TcpSeq>,
        join: MpJoin,
    ) {
        let MpJoin::Syn {
            backup,
            address_id,
            token,
            nonce,
        } = join
        else {
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, RST_MPTCP_SPECIFIC, false);
            return;
        };
        self.metrics.mp_join_syn_rx += 1;
        let Some(index) = self.tokens.get(&token).map(|&index| index as usize) else {
            self.metrics.mp_join_no_token += 1;
            self.refuse_join(now, iface, segment, RST_MPTCP_SPECIFIC, false);
            return;
        };
        let connection = &self.connections[index];
        let local = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let other_port = local.port() != connection.local_addr.port();
        self.metrics.mp_join_port_syn_rx += u64::from(other_port);
        let service = &self.services[connection.service].config;
        let rule = service.addresses.join_rule(segment.src, local.ip());
        let listens = |wanted: &dyn Fn(&SocketAddr) -> bool| {
            self.services
                .iter()
                .any(|s| s.config.listen.iter().any(wanted))
        };
        let listens = match service.joins {
            JoinPolicy::AnyPort => listens(&|l| l.ip() == local.ip()),
            JoinPolicy::ServicePorts => listens(&|l| *l == local),
        };
        let known = listens || connection.addresses.is_announced(local);
        // RFC 8684 §3.1: C was said to bar the initial address and port.
        let barred = connection.settings.deny_join_initial && local == connection.local_addr;
        if !known || barred || !rule.accept {
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, RST_PROHIBITED, false);
            return;
        }
        if connection.mode == Mode::Pending {
            // It overtook the third ACK of its own connection: its retransmission will be in time.
            self.metrics.mp_join_rejected += 1;
            return;
        }
        if connection.mode == Mode::Tcp || connection.end.is_some() {
            // RFC 8684 §3.7: no more subflows after a fallback, nor while it ends.
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, RST_MPTCP_SPECIFIC, false);
            return;
        }
        let room = self.memory.admits(size_of::<Subflow>());
        self.metrics.memory_refused += u64::from(!room);
        if !room || !connection.has_room_for_subflow() {
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, RST_NO_RESOURCES, true);
            return;
        }
        let connection = &mut self.connections[index];
        let initial = connection.local_addr.ip();
        let Some(local_id) = connection.addresses.local_id(local, initial) else {
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, RST_NO_RESOURCES, true);
            return;
        };
        let service = connection.service;
        let handshake = Handshake::Join {
            local_nonce: self.entropy.next_u32(),
            remote_nonce: nonce,
        };
        let iss = self.initial_sequence(now, segment, last_used);
        let mut subflow = self.new_subflow(now, iface, segment, service, handshake, iss);
        let connection = &mut self.connections[index];
        connection.set_allowance(self.memory.allowance());
        connection.joined = true;
        subflow.local_id = local_id;
        subflow.remote_id = address_id;
        subflow.backup = backup;
        subflow.local_backup = rule.backup;
        let subflow = connection.add_subflow(subflow) as u32;
        self.flows.insert(
            key,
            FlowEntry::Subflow {
                connection: index as u32,
                subflow,
            },
        );
        self.settle(index, now, &[]);
    }

    fn refuse_join(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        reason: u8,
        transient: bool,
    ) {
        let reason = MpTcprst { transient, reason };
        self.reply_reset_with(now, iface, segment, Some(reason));
    }

    /// A key whose token is free and names us as its owner (RFC 8684 §3.1), with token and IDSN.
    fn draw_key(&mut self) -> Option<(u64, u32, u64)> {
        for _ in 0..KEY_DRAWS_PER_OWNER * self.config.owners {
            let key = self.entropy.next_u64();
            let (token, idsn) = crypto::token_and_idsn(key);
            let ours = mpx_ebpf::owner_of(token, self.config.owners) == self.config.owner;
            if ours && token != 0 && !self.tokens.contains_key(&token) {
                return Some((key, token, idsn));
            }
        }
        self.metrics.mp_fallback_token_init += 1;
        None
    }

    /// RFC 6528 §3, and never below what a connection between the same ports used before.
    fn initial_sequence(
        &self,
        now: Instant,
        segment: &Segment<'_>,
        last_used: Option<TcpSeq>,
    ) -> TcpSeq {
        let local = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let remote = SocketAddr::new(segment.src, segment.tcp.src_port);
        let keyed = self.secrets.isn(now, local, remote);
        last_used.map_or(keyed, |used| keyed.max(used))
    }

    /// A subflow in SYN-RECEIVED for this SYN, of a connection of `service`.
    fn new_subflow(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        service: usize,
        handshake: Handshake,
        iss: TcpSeq,
    ) -> Subflow {
        let service = &self.services[service].config;
        let theirs = &segment.tcp.options;
        let local = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let remote = SocketAddr::new(segment.src, segment.tcp.src_port);
        // RFC 6691: MSS counts neither IP nor TCP options.
        let mtu = self.config.interfaces[usize::from(iface.0)].mtu;
        let headers = headers_len(local.is_ipv6());
        let mss_default = if local.is_ipv4() {
            MSS_DEFAULT_V4
        } else {
            MSS_DEFAULT_V6
        };
        let local_mss = mtu.saturating_sub(headers).min(usize::from(u16::MAX)) as u16;
        // A peer that claims less than this would only make us send headers.
        let mss = theirs
            .mss
            .unwrap_or(mss_default)
            .clamp(88, local_mss.max(88));
        let clock = TsClock {
            offset: self.secrets.timestamp_offset(local, remote),
            owner: self.config.owner,
            owner_bits: self.config.owner_bits,
        };
        let ecn = Ecn::new(segment.tcp.flags, service.ecn);
        self.metrics.ecn_setup += u64::from(ecn.is_agreed());
        let window_max = self.config.buffers.receive_max_bytes;
        let rcv_wscale = window_shift(window_max);
        let window_scaling = theirs.window_scale.is_some();
        let staging = window_max + STAGING_SLACK_BYTES;
        Subflow {
            local,
            remote,
            iface,
            link: segment.link.reversed(),
            state: State::SynReceived,
            handshake,
            initial: !matches!(handshake, Handshake::Join { .. }),
            // A field that is rounded up offers the rest of a unit more.
            rx: Receiver::new(segment.tcp.seq, window_max + (1 << rcv_wscale)),
            tx: Sender::new(
                iss,
                usize::from(mss),
                theirs.sack_permitted,
                service.congestion.start(usize::from(mss)),
            ),
            path_mtu: PathMtu::new(local.is_ipv6(), usize::from(mss) + headers),
            ts: theirs
                .timestamps
                .map(|ts| TsState::new(clock, ts.tsval, now)),
            sack_permitted: theirs.sack_permitted,
            ecn,
            snd_wscale: theirs.window_scale.unwrap_or(0).min(WINDOW_SHIFT_MAX),
            rcv_wscale: if window_scaling { rcv_wscale } else { 0 },
            window_scaling,
            local_mss,
            local_id: 0,
            remote_id: 0,
            backup: false,
            local_backup: false,
            prio_due: false,
            signals: SignalRow::default(),
            settled: false,
            removal: None,
            mappings: VecDeque::new(),
            delivered_to: segment.tcp.seq + 1,
            staged: ByteRing::new(staging),
            spoken: false,
            confirmed: false,
            in_step_from: DataSeq(0),
            snd_base: 0,
            failed_at: None,
            fail_due: None,
            reinjections_in_flight: 0,
            syn_ack_due: true,
            syn_ack_sent_at: None,
            syn_ack_transmissions: 0,
            fourth_ack_due: false,
            fin_wanted: false,
            persist_at: None,
            persist_backoff: 0,
            probes_unanswered: 0,
            probe_due: false,
            bare: false,
            data_fin_due: false,
            reset: None,
            queued: false,
            last_received_at: now,
            keepalive_probes: 0,
            keepalive_probe_at: now,
            heard_at: now,
            invalid_answered_at: None,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }
}
