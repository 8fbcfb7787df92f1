//! Subflows that we open (RFC 8684 §3.2, as the host that it calls A): to which addresses of the peer,
//! SYN, SYN/ACK, third ACK, and the fourth, before which no data leaves.

use super::address::RemoteAddress;
use super::close::{RST_MPTCP_SPECIFIC, count_reset};
use super::connection::{Connection, End, Mode};
use super::subflow::{Handshake, Subflow};
use super::version::Version;
use crate::crypto;
use crate::metrics::Metrics;
use crate::port::IfaceId;
use crate::tcp::State;
use crate::tcp::offer::Offer;
use crate::time::{Duration, Instant};
use crate::wire::frame::Segment;
use crate::wire::mptcp::MpJoin;
use crate::wire::tcp::{TcpFlags, TcpOptions};

/// From the RST for a flow that the peer should not have any more to the second SYN, as Linux has it
/// about.
const SYN_AGAIN: Duration = Duration::from_millis(10);

impl Connection {
    /// The next address of the peer to open a subflow to, if there is to be one more. `waiting` do not
    /// know their first hop yet.
    pub fn next_to_open(&mut self, waiting: usize) -> Option<RemoteAddress> {
        if !self.addresses.has_untried() || self.settings.subflows_opened_max == 0 {
            return None;
        }
        // An announcement of what is joined already is done with, also where there is no room for one
        // more: it is not to bring a subflow back that fails later.
        let mut addresses = std::mem::take(&mut self.addresses);
        addresses.count_as_tried(|remote| !self.is_to_be_joined(remote));
        self.addresses = addresses;
        if !self.may_open_subflow(waiting) {
            return None;
        }
        self.addresses.take_untried()
    }

    /// Whether a subflow to an address that [`Connection::next_to_open`] gave is still to be opened.
    pub fn still_opens(&self, remote: &RemoteAddress) -> bool {
        self.may_open_subflow(0) && self.addresses.is_known(remote) && self.is_to_be_joined(remote)
    }

    /// Whether we may open one more.
    // RFC 8684 §3.1: not before the connection is fully established, which an address with a valid HMAC
    // shows. Addresses of version 0 have none: anybody could have named them (RFC 6824 §3.4.1).
    fn may_open_subflow(&self, waiting: usize) -> bool {
        let ours = self.subflows.iter().filter(|(_, s)| s.opened_here).count();
        self.mode == Mode::Mptcp
            && self.version == Version::V1
            && self.end.is_none()
            && self.fastclose.is_none()
            && !self.streams_closed()
            && ours + waiting < self.settings.subflows_opened_max
            && self.has_room_for_subflow()
            && !self.addresses.are_unreachable()
    }

    fn is_to_be_joined(&self, remote: &RemoteAddress) -> bool {
        // RFC 8684 §3.1: C of the peer's MP_CAPABLE bars its initial address and port.
        let barred = self.remote_denies_join && remote.address == self.peer_addr;
        // RFC 8684 §3.2: address IDs tell that the peer has joined from there already. Another port is
        // another way (§3.4.1).
        let joined = |s: &Subflow| {
            s.remote == remote.address || !remote.names_port && s.remote_id == remote.id
        };
        !barred && !self.subflows.iter().any(|(_, s)| joined(s))
    }

    /// RFC 8684 §3.7: after a fallback nothing joins.
    pub(super) fn abandon_openings(&mut self) {
        for (_, subflow) in &mut self.subflows {
            if subflow.is_being_opened() {
                subflow.reset.get_or_insert_default();
            }
        }
    }

    pub(super) fn transmit_syn(&mut self, index: usize, now: Instant, frame: &mut [u8]) -> usize {
        let token = self.version.token_and_idsn(self.remote_key).0;
        let subflow = &mut self.subflows[index];
        let Handshake::Join { local_nonce, .. } = subflow.handshake else {
            return 0;
        };
        if subflow.handshake_transmissions > 1 {
            subflow.ecn.ask_no_more();
        }
        let mut options = TcpOptions {
            mss: Some(subflow.local_mss),
            window_scale: Some(subflow.rcv_wscale),
            sack_permitted: true,
            timestamps: subflow.ts.map(|ts| ts.option(now)),
            ..TcpOptions::default()
        };
        options.mptcp.join = Some(MpJoin::Syn {
            backup: subflow.local_backup,
            address_id: subflow.local_id,
            token,
            nonce: local_nonce,
        });
        let flags = TcpFlags::SYN | subflow.ecn.syn_flags();
        self.write_syn(index, frame, flags, options)
    }

    /// A segment that comes in SYN-SENT (RFC 9293 §3.10.7.3). Returns whether a RST is to answer it.
    pub(super) fn on_syn_sent_segment(
        &mut self,
        index: usize,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) -> bool {
        let header = &segment.tcp;
        let subflow = &mut self.subflows[index];
        let tx = &mut subflow.tx;
        let acknowledges = header.flags.contains(TcpFlags::ACK);
        let is_sent = tx.snd_nxt != tx.iss;
        if acknowledges && !(is_sent && header.ack == tx.snd_nxt) {
            if subflow.handshake_transmissions == 1 {
                // The peer still has a flow of before, in TIME-WAIT as a rule: its ACK is the answer to
                // our SYN. The RST ends that, and the next SYN need not wait for its timer.
                tx.rto_at = Some(now + SYN_AGAIN);
            }
            return true;
        }
        if header.flags.contains(TcpFlags::RST) {
            // RFC 5961 §3.2: without an ACK anybody could have sent it.
            if acknowledges {
                count_reset(segment, metrics);
                self.drop_subflow(index, End::PeerAborted);
            }
            return false;
        }
        if !header.flags.contains(TcpFlags::SYN) {
            return false;
        }
        if acknowledges {
            self.on_syn_ack(index, now, iface, segment, metrics);
            return false;
        }
        !self.on_crossing_syn(index, now, iface, segment, metrics)
    }

    /// The peer's answer to our SYN.
    pub(super) fn on_syn_ack(
        &mut self,
        index: usize,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) {
        let (local_key, remote_key) = (self.local_key, self.remote_key);
        let window_max_bytes = self.settings.buffers.receive_max_bytes;
        let subflow = &mut self.subflows[index];
        let Handshake::Join { local_nonce, .. } = subflow.handshake else {
            return;
        };
        let offer = Offer::of_syn_ack(segment, &subflow.ecn);
        // Of two SYNs that crossed it is the second answer.
        let news = offer.ecn.is_agreed() && !subflow.ecn.is_agreed();
        metrics.ecn_setup += u64::from(news);
        subflow.on_offer(now, &offer, window_max_bytes);
        subflow.came_by(iface, segment, now);
        // RFC 6298 §3: a SYN sent more than once gives no sample.
        if subflow.handshake_transmissions == 1
            && let Some(sent_at) = subflow.handshake_sent_at
        {
            subflow.tx.rtt.on_sample(now, now.since(sent_at));
        }
        let window_bytes = usize::from(segment.tcp.window);
        subflow.tx.on_handshake_done(segment.tcp.seq, window_bytes);
        subflow.state = State::PreEstablished;
        let Some(MpJoin::SynAck {
            backup,
            address_id,
            hmac,
            nonce,
        }) = segment.tcp.options.mptcp.join
        else {
            // RFC 8684 §3.2: never plain TCP.
            metrics.mp_join_syn_ack_missing += 1;
            self.reset_subflow(index, RST_MPTCP_SPECIFIC);
            return;
        };
        // RFC 8684 §3.2: HMAC-B, the listener's key and nonce first.
        let expected = self
            .version
            .join_hmac(remote_key, local_key, nonce, local_nonce);
        if !crypto::hmac_64_valid(crypto::leftmost_64(&expected), hmac) {
            metrics.mp_join_syn_ack_hmac_failure += 1;
            self.reset_subflow(index, RST_MPTCP_SPECIFIC);
            return;
        }
        metrics.mp_join_syn_ack_rx += 1;
        metrics.mp_join_syn_ack_backup_rx += u64::from(backup);
        let other_port = subflow.remote.port() != self.peer_addr.port();
        metrics.mp_join_port_syn_ack_rx += u64::from(other_port);
        subflow.handshake = Handshake::Join {
            local_nonce,
            remote_nonce: nonce,
        };
        subflow.backup = backup;
        subflow.remote_id = address_id;
        subflow.begin_handshake_step();
        self.joined = true;
    }

    /// The peer's own SYN on the same addresses and ports (RFC 8684 §3.9.2: as in any simultaneous open
    /// of TCP, one subflow comes of both). Returns whether it is a join of this connection.
    fn on_crossing_syn(
        &mut self,
        index: usize,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) -> bool {
        let window_max_bytes = self.settings.buffers.receive_max_bytes;
        let subflow = &mut self.subflows[index];
        let (
            Some(MpJoin::Syn {
                backup,
                address_id,
                token,
                nonce,
            }),
            Handshake::Join { local_nonce, .. },
        ) = (segment.tcp.options.mptcp.join, subflow.handshake)
        else {
            return false;
        };
        if token != self.token {
            return false;
        }
        metrics.mp_join_syn_rx += 1;
        let offer = Offer::of_syn(segment, subflow.ecn.asks());
        subflow.on_offer(now, &offer, window_max_bytes);
        subflow.came_by(iface, segment, now);
        metrics.ecn_setup += u64::from(offer.ecn.is_agreed());
        subflow.handshake = Handshake::Join {
            local_nonce,
            remote_nonce: nonce,
        };
        subflow.backup = backup;
        subflow.remote_id = address_id;
        subflow.state = State::SynReceived;
        subflow.begin_handshake_step();
        self.joined = true;
        true
    }

    /// The third ACK of a join, without a DATA_ACK, for which it has no room.
    pub(super) fn transmit_join_ack(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
    ) -> usize {
        let subflow = &self.subflows[index];
        let Handshake::Join {
            local_nonce,
            remote_nonce,
        } = subflow.handshake
        else {
            return 0;
        };
        let mut options = TcpOptions {
            timestamps: subflow.ts.map(|ts| ts.option(now)),
            ..TcpOptions::default()
        };
        // RFC 8684 §3.2: HMAC-A, the initiator's key and nonce first.
        let (local_key, remote_key) = (self.local_key, self.remote_key);
        let hmac = self
            .version
            .join_hmac(local_key, remote_key, local_nonce, remote_nonce);
        options.mptcp.join = Some(MpJoin::Ack { hmac });
        let seq = subflow.tx.snd_nxt;
        self.write_headers(index, frame, seq, TcpFlags::ACK, options, 0, 0)
    }
}

impl Subflow {
    /// We opened it, and its handshake is not over.
    pub(super) fn is_being_opened(&self) -> bool {
        self.opened_here && self.state.is_opening()
    }

    /// The peer's first SYN or SYN/ACK came, in SYN-SENT.
    fn on_offer(&mut self, now: Instant, offer: &Offer, window_max_bytes: usize) {
        self.restart_sender(offer);
        self.agree(now, offer, window_max_bytes);
    }

    fn came_by(&mut self, iface: IfaceId, segment: &Segment<'_>, now: Instant) {
        self.iface = iface;
        self.link = segment.link.reversed();
        self.last_received_at = now;
    }

    /// What the new state of the handshake sends leaves at once.
    fn begin_handshake_step(&mut self) {
        self.handshake_due = true;
        (self.handshake_sent_at, self.handshake_transmissions) = (None, 0);
    }

    /// Something came that acknowledges our SYN and is no SYN/ACK: the peer has our third ACK (RFC 8684
    /// §3.2).
    pub(super) fn on_fourth_ack(&mut self) {
        self.state = State::Established;
        self.settled = true;
        self.handshake_due = false;
        self.tx.rto_at = None;
        self.tx.rtt.on_progress();
    }
}
