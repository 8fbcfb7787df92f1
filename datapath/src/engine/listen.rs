//! What belongs to no known flow: SYNs that open a connection, SYNs that join one, and the rest.

use super::Engine;
use super::flow::FlowKey;
use crate::buffer::ByteRing;
use crate::mptcp::data::{WINDOW_SHIFT_MAX, window_shift};
use crate::mptcp::path_mtu::headers_len;
use crate::mptcp::signal::SignalRow;
use crate::mptcp::{Handshake, Subflow};
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
use crate::wire::tcp::TcpFlags;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// RFC 9293 §3.7.1: a peer that sends no MSS option takes this much.
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;
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

    /// RFC 6528 §3, and never below what a connection between the same ports used before.
    pub(super) fn initial_sequence(
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
    pub(super) fn new_subflow(
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
