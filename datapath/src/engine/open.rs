//! A SYN that opens a connection (RFC 9293 §3.10.7.2, RFC 8684 §3.1).

use super::flow::{FlowEntry, FlowKey};
use super::keys::LocalKey;
use super::listen::Ends;
use super::{ConnId, Engine, cookies};
use crate::memory::{RECEIVE_RESERVE_BYTES, SEND_RESERVE_BYTES};
use crate::mptcp::connection::{Connection, Settings};
use crate::mptcp::subflow::SUBFLOW_BYTES;
use crate::mptcp::{Handshake, Mode, Version};
use crate::port::IfaceId;
use crate::seq::{DataSeq, TcpSeq};
use crate::tcp::State;
use crate::tcp::offer::Offer;
use crate::time::Instant;
use crate::wire::frame::Segment;
use crate::wire::mptcp::MpCapable;
use std::net::SocketAddr;

/// What a connection is charged for from the beginning.
pub(super) const CONNECTION_BYTES: usize =
    size_of::<Connection>() + SUBFLOW_BYTES + RECEIVE_RESERVE_BYTES + SEND_RESERVE_BYTES;

/// What a connection begins with.
pub(super) struct Opening {
    pub(super) service: usize,
    pub(super) offer: Offer,
    pub(super) iss: TcpSeq,
    pub(super) capable: Option<Capable>,
}

/// Multipath TCP is agreed to, with this key of ours.
pub(super) struct Capable {
    pub(super) key: LocalKey,
    pub(super) asked: CapableAsked,
}

/// What the client's MP_CAPABLE asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct CapableAsked {
    pub(super) version: Version,
    pub(super) flags: u8,
    /// Its key, where the SYN of this version has it.
    pub(super) key: Option<u64>,
}

impl Engine {
    pub(super) fn on_open(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        key: FlowKey,
        last_used: Option<TcpSeq>,
    ) {
        let local = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let Some(service) = self.service_at(local) else {
            self.metrics.no_flow += 1;
            self.reply_reset(now, iface, segment);
            return;
        };
        if self.draining {
            self.reply_reset(now, iface, segment);
            return;
        }
        let full = self.connections.len() >= self.config.connections_max;
        let room = self.memory.admits(CONNECTION_BYTES);
        // A connection that waits for a join gives way to a client that brings a cookie back, but not to
        // whoever can send a SYN. A cookie cannot heed the sequence numbers of a connection before.
        let could_have_room = self.stranded.count() > 0 && last_used.is_none();
        if !could_have_room && (full || !room) {
            self.metrics.listen_overflows += u64::from(full);
            self.metrics.memory_refused += u64::from(!room);
            return;
        }
        if full || !room || self.wants_cookies() && last_used.is_none() {
            self.answer_with_cookie(now, iface, segment, service);
            return;
        }
        if self.half_open >= self.config.half_open_max {
            self.metrics.listen_overflows += 1;
            return;
        }
        if !self.steer_flow(key, None) {
            return;
        }
        let config = &self.services[service].config;
        let offer = Offer::of_syn(segment, config.ecn);
        let mut iss = self.initial_sequence(now, segment, last_used);
        // A client that has a cookie may send its SYN twice; then both answers are to be the same.
        let facts = cookies::facts(now, segment, &offer);
        let may_have_one = self.cookies_may_return(now) && last_used.is_none();
        if may_have_one {
            iss = self.cookie(&facts, offer.mss);
            self.spend_cookie(now, &key, [offer.irs, iss]);
        }
        let capable = self.offered_capable(service, segment).and_then(|asked| {
            let key = match asked.version {
                Version::V1 if may_have_one => self.cookie_key(&facts),
                // With a cookie it was offered none.
                Version::V0 if may_have_one => None,
                version => self.draw_key(version),
            }?;
            Some(Capable { key, asked })
        });
        let opening = Opening {
            service,
            offer,
            iss,
            capable,
        };
        let index = self.open(now, iface, segment, key, opening);
        let in_place = self.open_early(now, service, index, segment);
        self.settle(index, now, &segment.payload[in_place]);
    }

    /// The service that listens there.
    pub(super) fn service_at(&self, local: SocketAddr) -> Option<usize> {
        let mut services = self.services.iter();
        services.position(|s| s.config.listen.contains(&local))
    }

    /// What a SYN asks for, if it is Multipath TCP that this service speaks.
    pub(super) fn offered_capable(
        &mut self,
        service: usize,
        syn: &Segment<'_>,
    ) -> Option<CapableAsked> {
        let capable = syn.tcp.options.mptcp.capable?;
        let versions = self.services[service].config.versions;
        let Some(version) = versions.agreed(&capable) else {
            self.metrics.mp_capable_refused += 1;
            return None;
        };
        self.metrics.mp_capable_syn_rx += 1;
        self.metrics.mp_capable_syn_rx_v0 += u64::from(version == Version::V0);
        Some(CapableAsked {
            version,
            flags: capable.flags,
            key: capable.sender_key(),
        })
    }

    /// Enters a connection in SYN-RECEIVED, with the client that sent `segment`; returns its index.
    pub(super) fn open(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        key: FlowKey,
        opening: Opening,
    ) -> usize {
        let Opening {
            service,
            offer,
            iss,
            capable,
        } = opening;
        let local = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let remote = SocketAddr::new(segment.src, segment.tcp.src_port);
        self.next_generation = self.next_generation.wrapping_add(1);
        let vacant = self.connections.vacant_key();
        let id = ConnId {
            index: vacant as u32,
            generation: self.next_generation,
        };
        let config = &self.services[service].config;
        let policy = &config.addresses;
        let settings = Settings {
            buffers: self.config.buffers,
            subflows_max: policy
                .subflows_max
                .unwrap_or(self.config.subflows_per_connection_max),
            subflows_opened_max: policy.open_subflows,
            deny_join_initial: policy.deny_join_initial,
            retries_max: self.config.retries_max,
            handshake_retries_max: self.config.handshake_retries_max,
            patience: config.patience,
            closing: config.closing,
        };
        let mut connection = Box::new(Connection::new(id, service, settings, local, remote, now));
        let mut handshake = Handshake::Tcp;
        if let Some(Capable { key, asked }) = capable {
            handshake = Handshake::Capable;
            connection.mode = Mode::Pending;
            connection.version = asked.version;
            connection.remote_key = asked.key.unwrap_or_default();
            connection.local_key = key.key;
            connection.token = key.token;
            connection.local_idsn = DataSeq(key.idsn);
            connection.remote_denies_join =
                asked.version == Version::V1 && asked.flags & MpCapable::FLAG_NO_MORE_SUBFLOWS != 0;
            // RFC 8684 §3.1: checksums are used if either side asks for them.
            connection.checksum = config.checksum || asked.flags & MpCapable::FLAG_CHECKSUM != 0;
            for address in policy.announced_to(remote.ip(), local) {
                connection.announce_address(address);
            }
            self.tokens.insert(key.token, id.index);
        }
        let (ends, state) = (Ends::of_answer(iface, segment), State::SynReceived);
        let subflow = self.new_subflow(now, &ends, state, service, &offer, handshake, iss);
        let subflow = connection.add_subflow(subflow) as u32;
        self.connections.insert(connection);
        self.memory.open();
        self.half_open += 1;
        self.flows.insert(
            key,
            FlowEntry {
                connection: id.index,
                subflow,
            },
        );
        vacant
    }
}
