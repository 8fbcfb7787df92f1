//! What belongs to no known flow: SYNs that open a connection, SYNs that join one, and the rest.

use super::Engine;
use super::flow::FlowKey;
use crate::mptcp::address::FirstHop;
use crate::mptcp::path_mtu::headers_len;
use crate::mptcp::subflow::Start;
use crate::mptcp::{Handshake, Subflow};
use crate::port::IfaceId;
use crate::seq::TcpSeq;
use crate::tcp::State;
use crate::tcp::offer::Offer;
use crate::tcp::timestamp::TsClock;
use crate::time::Instant;
use crate::wire::frame::Segment;
use crate::wire::tcp::TcpFlags;
use std::net::{IpAddr, SocketAddr};

/// Where a subflow begins and ends, and how its frames leave.
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) hop: FirstHop,
}

impl Ends {
    /// Of the answers to a segment.
    pub(super) fn of_answer(iface: IfaceId, segment: &Segment<'_>) -> Ends {
        Ends {
            local: SocketAddr::new(segment.dst, segment.tcp.dst_port),
            remote: SocketAddr::new(segment.src, segment.tcp.src_port),
            hop: FirstHop {
                iface,
                link: segment.link.reversed(),
            },
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

    /// A subflow of a connection of `service` whose handshake begins in `state`.
    #[expect(clippy::too_many_arguments, reason = "all of it makes one subflow")]
    pub(super) fn new_subflow(
        &mut self,
        now: Instant,
        ends: &Ends,
        state: State,
        service: usize,
        offer: &Offer,
        handshake: Handshake,
        iss: TcpSeq,
    ) -> Subflow {
        let &Ends { local, remote, hop } = ends;
        self.metrics.ecn_setup += u64::from(offer.ecn.is_agreed());
        let start = Start {
            local,
            remote,
            iface: hop.iface,
            link: hop.link,
            state,
            handshake,
            iss,
            local_mss: self.local_mss(hop.iface, local.ip()),
            window_max_bytes: self.config.buffers.receive_max_bytes,
            clock: self.timestamp_clock(local, remote),
            congestion: self.services[service].config.congestion,
        };
        Subflow::new(now, &start, offer)
    }
}
