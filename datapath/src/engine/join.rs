//! A SYN that joins a subflow to a connection (RFC 8684 §3.2).

use super::Engine;
use super::flow::{FlowEntry, FlowKey};
use super::listen::Ends;
use super::steer::claim;
use crate::mptcp::close::{RST_MPTCP_SPECIFIC, RST_NO_RESOURCES, RST_PROHIBITED};
use crate::mptcp::subflow::SUBFLOW_BYTES;
use crate::mptcp::{Handshake, Mode, Version};
use crate::port::IfaceId;
use crate::seq::TcpSeq;
use crate::tcp::State;
use crate::tcp::offer::Offer;
use crate::time::Instant;
use crate::wire::frame::Segment;
use crate::wire::mptcp::{MpJoin, MpTcprst};
use std::net::SocketAddr;

/// Of a connection that is not there: version 0 ignores a reason that it does not know.
const UNKNOWN: Version = Version::V1;

impl Engine {
    /// RFC 8684 §3.2: the token names the connection; addresses and ports are free.
    pub(super) fn on_join(
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
            self.refuse_join(now, iface, segment, UNKNOWN, RST_MPTCP_SPECIFIC);
            return;
        };
        self.metrics.mp_join_syn_rx += 1;
        let Some(index) = self.tokens.get(&token).map(|&index| index as usize) else {
            self.metrics.mp_join_no_token += 1;
            self.refuse_join(now, iface, segment, UNKNOWN, RST_MPTCP_SPECIFIC);
            return;
        };
        let connection = &self.connections[index];
        let version = connection.version;
        let local = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let other_port = local.port() != connection.local_addr.port();
        self.metrics.mp_join_port_syn_rx += u64::from(other_port);
        let service = &self.services[connection.service].config;
        let rule = service.addresses.join_rule(segment.src, local.ip());
        // A service of plain TCP says nothing about where joins may go.
        let joined = self.services.iter().filter(|s| s.config.versions.any());
        let mut listens = joined.flat_map(|s| &s.config.listen);
        let listens = listens.any(|l| service.joins.takes(local, *l));
        let known = listens || connection.addresses.is_announced(local);
        // RFC 8684 §3.1: C was said to bar the initial address and port.
        let barred = connection.settings.deny_join_initial && local == connection.local_addr;
        if !known || barred || !rule.accept {
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, version, RST_PROHIBITED);
            return;
        }
        if connection.mode == Mode::Pending || connection.awaits_dss() {
            // It overtook the third ACK of its own connection, or the first DSS: its retransmission will
            // be in time.
            self.metrics.mp_join_rejected += 1;
            return;
        }
        if connection.mode == Mode::Tcp || connection.end.is_some() {
            // RFC 8684 §3.7: no more subflows after a fallback, nor while it ends.
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, version, RST_MPTCP_SPECIFIC);
            return;
        }
        let room = connection.has_room_for_subflow();
        if !self.has_memory_for_subflow(index) || !room {
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, version, RST_NO_RESOURCES);
            return;
        }
        if !self.join_limit.take(now, segment.src) {
            // Its retransmission may find that others have got on.
            self.metrics.mp_join_rejected += 1;
            self.metrics.mp_join_source_limited += 1;
            return;
        }
        let connection = &mut self.connections[index];
        let initial = connection.local_addr.ip();
        let local_id = connection.addresses.local_id(local, initial);
        let service = connection.service;
        let iss = self.initial_sequence(now, segment, last_used);
        let claim = claim(iss + 1, segment.tcp.seq + 1);
        let Some(local_id) = local_id.filter(|_| self.steer_flow(key, Some(claim))) else {
            self.join_limit.give_back(segment.src);
            self.metrics.mp_join_rejected += 1;
            self.refuse_join(now, iface, segment, version, RST_NO_RESOURCES);
            return;
        };
        let handshake = Handshake::Join {
            local_nonce: self.entropy.next_u32(),
            remote_nonce: nonce,
        };
        let offer = Offer::of_syn(segment, self.services[service].config.ecn);
        let (ends, state) = (Ends::of_answer(iface, segment), State::SynReceived);
        let mut subflow = self.new_subflow(now, &ends, state, service, &offer, handshake, iss);
        let connection = &mut self.connections[index];
        connection.set_allowance(self.memory.allowance());
        connection.joined = true;
        connection.addresses.on_rejoined(local);
        if !connection.version.echoes_add_addr() {
            connection.addresses.on_joined(local);
        }
        subflow.local_id = local_id;
        subflow.remote_id = address_id;
        subflow.backup = backup;
        let said = self.backups.of(local.ip());
        subflow.local_backup = said.unwrap_or(rule.backup);
        let subflow = connection.add_subflow(subflow) as u32;
        self.flows.insert(
            key,
            FlowEntry {
                connection: index as u32,
                subflow,
            },
        );
        self.settle(index, now, &[]);
    }

    /// Whether there is memory for one more subflow of this connection.
    pub(super) fn has_memory_for_subflow(&mut self, index: usize) -> bool {
        // What has waited for this goes on with it, which frees what it holds.
        let room = match self.connections[index].stranded_since {
            Some(_) => self.memory.fits(SUBFLOW_BYTES),
            None => self.memory.admits(SUBFLOW_BYTES),
        };
        self.metrics.memory_refused += u64::from(!room);
        room
    }

    fn refuse_join(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        version: Version,
        reason: u8,
    ) {
        let reason = MpTcprst {
            // RFC 8684 §3.6: what is missing now may be there later.
            transient: reason == RST_NO_RESOURCES,
            reason,
        };
        let reason = version.gives_reasons().then_some(reason);
        self.reply_reset_with(now, iface, segment, reason);
    }
}
