//! What belongs to no known flow: SYNs that open a connection, SYNs that join one, and the rest.

use super::Engine;
use super::flow::FlowKey;
use crate::buffer::ByteRing;
use crate::mptcp::data::{WINDOW_SHIFT_MAX, window_shift};
use crate::mptcp::path_mtu::headers_len;
use crate::mptcp::signal::SignalRow;
use crate::mptcp::subflow::Reinjections;
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
use std::net::{IpAddr, SocketAddr};

/// RFC 9293 §3.7.1: a peer that sends no MSS option takes this much.
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;
/// The least that is sent in a segment.
pub(super) const MSS_MIN: u16 = 88;
/// What a subflow may stage beyond a window: one mapping and as much without one.
const STAGING_SLACK_BYTES: usize = 3 * 65_536;

/// What a client's SYN said of its side: as it came, or as a cookie has kept it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) irs: TcpSeq,
    pub(super) mss: u16,
    pub(super) window_scale: Option<u8>,
    pub(super) sack_permitted: bool,
    pub(super) tsval: Option<u32>,
    /// With our side's answer to it.
    pub(super) ecn: Ecn,
}

impl Offer {
    /// Of a SYN to a service that agrees to ECN or does not.
    pub(super) fn of_syn(syn: &Segment<'_>, ecn_allowed: bool) -> Offer {
        let options = &syn.tcp.options;
        let mss_default = match syn.dst {
            IpAddr::V4(_) => MSS_DEFAULT_V4,
            IpAddr::V6(_) => MSS_DEFAULT_V6,
        };
        Offer {
            irs: syn.tcp.seq,
            mss: options.mss.unwrap_or(mss_default),
            window_scale: options.window_scale,
            sack_permitted: options.sack_permitted,
            tsval: options.timestamps.map(|ts| ts.tsval),
            ecn: Ecn::new(syn.tcp.flags, ecn_allowed),
        }
    }
}

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
            if self.on_cookie(now, iface, segment, key) {
                return;
            }
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

    /// The clock of our TSval on segments from `local` to `remote`.
    pub(super) fn timestamp_clock(&self, local: SocketAddr, remote: SocketAddr) -> TsClock {
        TsClock {
            offset: self.secrets.timestamp_offset(local, remote),
            owner: self.config.owner,
            owner_bits: self.config.owner_bits,
        }
    }

    /// The MSS that we announce on `iface`.
    // RFC 6691: MSS counts neither IP nor TCP options.
    pub(super) fn local_mss(&self, iface: IfaceId, local: IpAddr) -> u16 {
        let mtu = self.config.interfaces[usize::from(iface.0)].mtu;
        let headers = headers_len(local.is_ipv6());
        mtu.saturating_sub(headers).min(usize::from(u16::MAX)) as u16
    }

    /// A subflow in SYN-RECEIVED to where `segment` came from, of a connection of `service`.
    #[expect(clippy::too_many_arguments, reason = "all of it makes one subflow")]
    pub(super) fn new_subflow(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        service: usize,
        offer: &Offer,
        handshake: Handshake,
        iss: TcpSeq,
    ) -> Subflow {
        let service = &self.services[service].config;
        let local = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let remote = SocketAddr::new(segment.src, segment.tcp.src_port);
        let local_mss = self.local_mss(iface, local.ip());
        let headers = headers_len(local.is_ipv6());
        // A peer that claims less than this would only make us send headers.
        let mss = offer.mss.clamp(MSS_MIN, local_mss.max(MSS_MIN));
        let clock = self.timestamp_clock(local, remote);
        self.metrics.ecn_setup += u64::from(offer.ecn.is_agreed());
        let window_max = self.config.buffers.receive_max_bytes;
        let rcv_wscale = window_shift(window_max);
        let window_scaling = offer.window_scale.is_some();
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
            rx: Receiver::new(offer.irs, window_max + (1 << rcv_wscale)),
            tx: Sender::new(
                iss,
                usize::from(mss),
                offer.sack_permitted,
                service.congestion.start(usize::from(mss)),
            ),
            path_mtu: PathMtu::new(local.is_ipv6(), usize::from(mss) + headers),
            ts: offer.tsval.map(|tsval| TsState::new(clock, tsval, now)),
            sack_permitted: offer.sack_permitted,
            ecn: offer.ecn,
            snd_wscale: offer.window_scale.unwrap_or(0).min(WINDOW_SHIFT_MAX),
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
            delivered_to: offer.irs + 1,
            staged: ByteRing::new(staging),
            spoken: false,
            confirmed: false,
            in_step_from: DataSeq(0),
            snd_base: 0,
            failed_at: None,
            fail_due: None,
            reinjections: Reinjections::default(),
            fast_open: false,
            syn_text_bytes: 0,
            cookie_due: None,
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
            barred: false,
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
