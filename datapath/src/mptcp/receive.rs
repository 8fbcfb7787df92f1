//! A segment comes in on a subflow: checks, handshake, acknowledgments, options, text, FIN.

use super::connection::{Connection, End, Mode};
use super::data::Delivered;
use super::subflow::{Announced, Handshake, Mapping, Reset};
use crate::crypto;
use crate::metrics::Metrics;
use crate::port::IfaceId;
use crate::seq::{DataSeq, TcpSeq};
use crate::tcp::State;
use crate::tcp::receiver::Accepted;
use crate::time::Instant;
use crate::wire::checksum;
use crate::wire::frame::Segment;
use crate::wire::mptcp::{CapableContent, DsnWidth, Dss, MpJoin, MpTcprst};
use crate::wire::tcp::TcpFlags;
use std::ops::Range;

/// Octets a subflow may hold that no mapping covers, before it is taken for broken
/// (RFC 8684 §3.3.1).
const UNMAPPED_MAX_BYTES: usize = 64 * 1024;

/// MP_TCPRST reasons (RFC 8684 §3.6).
pub const RST_MPTCP_SPECIFIC: u8 = 0x01;
pub const RST_NO_RESOURCES: u8 = 0x02;
pub const RST_PROHIBITED: u8 = 0x03;
pub const RST_PERFORMANCE: u8 = 0x05;
pub const RST_MIDDLEBOX: u8 = 0x06;

/// What became of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// These octets of the payload are the next of the stream, and nothing is unread before them:
    /// to be offered to the app, and what it leaves to be kept.
    pub in_place: Range<usize>,
    /// A plain RST goes back for this segment (RFC 9293 §3.10.7).
    pub answer_reset: bool,
}

impl Connection {
    /// Takes in a segment for subflow `index` (RFC 9293 §3.10.7.4, RFC 8684 §3).
    pub fn on_segment(
        &mut self,
        index: usize,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) -> Received {
        let mut received = Received::default();
        if self.subflows[index].reset.is_some() {
            return received;
        }
        if !self.passes_checks(index, now, segment, metrics) {
            return received;
        }
        if self.subflows[index].state == State::SynReceived {
            match self.complete_handshake(index, now, segment, metrics) {
                Completion::Done => {}
                Completion::Ignore => return received,
                Completion::AnswerReset => {
                    received.answer_reset = true;
                    return received;
                }
            }
        }
        let subflow = &mut self.subflows[index];
        // Answers go to where the last valid segment came from.
        subflow.iface = iface;
        subflow.link = segment.link.reversed();
        subflow.last_received_at = now;
        if !subflow.tx.ack_acceptable(segment.tcp.ack) {
            metrics.challenge_acks += 1;
            subflow.rx.ack_now = true;
            return received;
        }
        if let Some(fastclose) = segment.tcp.options.mptcp.fastclose
            && self.mode == Mode::Mptcp
            && fastclose.receiver_key == self.local_key
        {
            self.on_fastclose(metrics);
            return received;
        }
        if self.mode == Mode::Mptcp && !self.confirmed && self.shows_no_mptcp(index, segment) {
            // RFC 8684 §3.7: options vanish before Multipath TCP was seen to work both ways.
            metrics.mp_fallback_data += 1;
            self.fall_back();
        }
        self.on_acknowledgment(index, now, segment, metrics);
        if self.mode == Mode::Mptcp && !self.on_options(index, segment, metrics) {
            metrics.rcv_pruned += 1;
            self.subflows[index].rx.ack_now = true;
        } else if self.subflows.contains(index) && self.subflows[index].state.may_receive() {
            self.on_text(index, now, segment, metrics, &mut received);
        } else if !segment.payload.is_empty() && self.subflows.contains(index) {
            // RFC 9293 §3.10.7.4: text after the peer's FIN is ignored, and acknowledged again.
            self.subflows[index].rx.ack_now = true;
        }
        if segment.segment_len() > 0 {
            self.last_received_on = index;
        }
        self.after_progress(now);
        received
    }

    /// RFC 9293 §3.10.7.4, first to fifth check; RFC 7323 §5.3; RFC 5961 §3 and §4.
    fn passes_checks(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) -> bool {
        let header = &segment.tcp;
        let subflow = &mut self.subflows[index];
        let is_reset = header.flags.contains(TcpFlags::RST);
        if subflow.state == State::SynReceived
            && header.flags.contains(TcpFlags::SYN)
            && !header.flags.contains(TcpFlags::ACK)
            && !is_reset
            && header.seq == subflow.rx.irs
        {
            // A retransmitted SYN gets the same SYN/ACK again: same key, same nonce.
            subflow.syn_ack_due = true;
            subflow.link = segment.link.reversed();
            return false;
        }
        if let Some(ts) = &subflow.ts
            && !is_reset
        {
            match header.options.timestamps {
                None => {
                    // RFC 7323 §3.2: once negotiated, every segment carries it.
                    metrics.drop_no_timestamp += 1;
                    return false;
                }
                Some(option) if ts.paws_rejects(option.tsval, now) => {
                    metrics.paws_rejected += 1;
                    subflow.rx.ack_now = true;
                    return false;
                }
                Some(_) => {}
            }
        }
        if is_reset {
            return self.on_reset(index, segment, metrics);
        }
        if !subflow.rx.acceptable(header.seq, segment.segment_len()) {
            metrics.out_of_window += 1;
            // RFC 9293: acknowledged, so that a peer out of step finds its way. A keepalive or a
            // window probe is answered here, too.
            if subflow.state == State::SynReceived {
                subflow.syn_ack_due = true;
            } else {
                subflow.rx.ack_now = true;
            }
            return false;
        }
        if let (Some(ts), Some(option)) = (&mut subflow.ts, header.options.timestamps)
            && header.seq.at_or_before(subflow.rx.last_ack_sent)
        {
            ts.update(option.tsval, now);
        }
        if header.flags.contains(TcpFlags::SYN) {
            // RFC 5961 §4.2: a SYN in the window is challenged, never obeyed.
            metrics.challenge_acks += 1;
            subflow.rx.ack_now = true;
            return false;
        }
        // RFC 9293 §3.10.7.4, fifth check: without ACK it is dropped.
        header.flags.contains(TcpFlags::ACK)
    }

    /// RFC 5961 §3.2: only the very next sequence number resets; others in the window are
    /// challenged. RFC 8684 §3.5 for MP_FASTCLOSE on it. Never lets the segment pass further.
    fn on_reset(&mut self, index: usize, segment: &Segment<'_>, metrics: &mut Metrics) -> bool {
        let subflow = &mut self.subflows[index];
        if segment.tcp.seq != subflow.rx.rcv_nxt {
            if subflow.rx.in_window(segment.tcp.seq) && subflow.state != State::SynReceived {
                metrics.challenge_acks += 1;
                subflow.rx.ack_now = true;
            } else {
                metrics.out_of_window += 1;
            }
            return false;
        }
        metrics.resets_received += 1;
        if segment.tcp.options.mptcp.tcprst.is_some() {
            metrics.mp_rst_rx += 1;
        }
        if segment.tcp.options.mptcp.fail.is_some() {
            metrics.mp_fail_rx += 1;
        }
        let fastclose = segment.tcp.options.mptcp.fastclose;
        if self.mode == Mode::Mptcp && fastclose.is_some_and(|f| f.receiver_key == self.local_key) {
            // RFC 8684 §3.5: all other subflows are reset, nothing goes out on this one.
            metrics.mp_fastclose_rx += 1;
            self.end.get_or_insert(End::PeerAborted);
            self.drop_subflow(index, End::PeerAborted);
            self.reset_all(Reset::default());
            return false;
        }
        self.reinject_flight(index, metrics);
        self.drop_subflow(index, End::PeerAborted);
        false
    }

    /// MP_FASTCLOSE on an ACK (RFC 8684 §3.5): every subflow is answered with a RST.
    fn on_fastclose(&mut self, metrics: &mut Metrics) {
        metrics.mp_fastclose_rx += 1;
        self.end.get_or_insert(End::PeerAborted);
        self.reset_all(Reset::default());
    }

    /// The segment that ends SYN-RECEIVED.
    fn complete_handshake(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) -> Completion {
        let options = &segment.tcp.options.mptcp;
        let subflow = &self.subflows[index];
        if segment.tcp.ack != subflow.tx.iss + 1 {
            // RFC 9293 §3.10.7.4: SYN-RECEIVED and an ACK of something else.
            return Completion::AnswerReset;
        }
        match subflow.handshake {
            Handshake::Tcp => {}
            Handshake::Capable => match options.capable.map(|c| c.content) {
                Some(
                    CapableContent::Ack {
                        sender_key,
                        receiver_key,
                    }
                    | CapableContent::Data {
                        sender_key,
                        receiver_key,
                        ..
                    },
                ) if receiver_key == self.local_key => {
                    metrics.mp_capable_ack_rx += 1;
                    self.start_mptcp(sender_key);
                }
                // RFC 8684 §3.1: the third ACK was lost and this came before the segment that
                // repeats the keys. Its retransmission will be in order.
                None if options.dss.is_some() => {
                    metrics.mp_capable_ack_awaited += 1;
                    return Completion::Ignore;
                }
                _ => {
                    // RFC 8684 §3.1, §3.7: no keys, or not ours: plain TCP.
                    metrics.mp_capable_fallback_ack += 1;
                    self.fall_back();
                }
            },
            Handshake::Join {
                local_nonce,
                remote_nonce,
            } => {
                let Some(MpJoin::Ack { hmac }) = options.join else {
                    // RFC 8684 §3.2, §3.7: a join without its option is reset, never plain TCP.
                    metrics.mp_join_ack_missing += 1;
                    self.reset_subflow(index, RST_MIDDLEBOX);
                    return Completion::Ignore;
                };
                // RFC 8684 §3.2: HMAC-A, the initiator's key and nonce first.
                let expected =
                    crypto::join_hmac(self.remote_key, self.local_key, remote_nonce, local_nonce);
                if !crypto::join_ack_valid(&expected, &hmac) {
                    metrics.mp_join_ack_hmac_failure += 1;
                    self.reset_subflow(index, RST_MPTCP_SPECIFIC);
                    return Completion::Ignore;
                }
                metrics.mp_join_ack_rx += 1;
            }
        }
        let subflow = &mut self.subflows[index];
        let window = subflow.window_of(&segment.tcp);
        subflow.state = State::Established;
        subflow.tx.on_handshake_done(segment.tcp.seq, window);
        // RFC 6298 §3: a SYN/ACK sent more than once gives no sample.
        if subflow.syn_ack_transmissions == 1
            && let Some(sent_at) = subflow.syn_ack_sent_at
        {
            subflow.tx.rtt.on_sample(now.since(sent_at));
        }
        if subflow.initial {
            if self.mode == Mode::Tcp {
                self.rcv.start(self.remote_idsn);
            }
            self.snd.start(self.local_idsn, window);
            self.events.opened = true;
            metrics.passive_opens += 1;
        } else {
            // RFC 8684 §3.2: the fourth ACK makes the third reliable.
            self.subflows[index].fourth_ack_due = true;
        }
        Completion::Done
    }

    fn start_mptcp(&mut self, remote_key: u64) {
        self.mode = Mode::Mptcp;
        self.remote_key = remote_key;
        self.remote_idsn = DataSeq(crypto::token_and_idsn(remote_key).1);
        self.rcv.start(self.remote_idsn);
    }

    /// RFC 8684 §3.7: on the only subflow, before any DSS was seen: text without a mapping, a FIN
    /// without a DATA_FIN before it, or an acknowledgment of our text without a DATA_ACK.
    fn shows_no_mptcp(&self, index: usize, segment: &Segment<'_>) -> bool {
        let options = &segment.tcp.options.mptcp;
        let subflow = &self.subflows[index];
        let speaks = options.dss.is_some() || options.capable.is_some();
        let bare = segment.segment_len() == 0 && segment.tcp.ack == subflow.tx.iss + 1;
        subflow.initial && self.never_joined() && !speaks && !bare
    }

    fn on_acknowledgment(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) {
        let header = &segment.tcp;
        let subflow = &mut self.subflows[index];
        let options = &header.options;
        let window = subflow.window_of(header);
        // RFC 8684 §3.4.1: duplicates that carry a signal other than DSS say nothing of congestion.
        let signals = options.mptcp.add_addr.is_some()
            || options.mptcp.remove_addr.is_some()
            || options.mptcp.prio.is_some()
            || options.mptcp.fail.is_some()
            || options.mptcp.join.is_some();
        let may_be_duplicate = segment.segment_len() == 0
            && header.ack == subflow.tx.snd_una
            && window == subflow.tx.snd_wnd
            && !signals;
        let reinjections = &mut subflow.reinjections_in_flight;
        let outcome = subflow
            .tx
            .on_ack(now, header.ack, &options.sack, may_be_duplicate, |sent| {
                *reinjections -= usize::from(sent.mark.reinjection);
            });
        if outcome.loss_found {
            metrics.tcp_fast_recoveries += 1;
        }
        subflow.tx.update_window(header.seq, header.ack, window);
        subflow.probes_unanswered = 0;
        if subflow.tx.snd_wnd > 0 {
            subflow.persist_at = None;
            subflow.persist_backoff = 0;
            subflow.probe_due = false;
        }
        let snd_una = subflow.tx.snd_una;
        let our_fin_acked = subflow.tx.flight_is_empty();
        if self.mode == Mode::Tcp {
            // The infinite mapping: the subflow's acknowledgment is the data's.
            let low = (self.local_idsn.0 as u32).wrapping_add(subflow.relative_sent(snd_una));
            let dsn = self.snd.snd_una.expand(low);
            self.snd.on_ack(dsn);
            self.snd.window_edge = self.snd.window_edge.max(dsn + window);
        }
        let subflow = &mut self.subflows[index];
        match subflow.state {
            State::FinWait1 if our_fin_acked => subflow.state = State::FinWait2,
            State::Closing if our_fin_acked => self.enter_time_wait(index),
            State::LastAck if our_fin_acked => self.drop_subflow(index, End::PeerAborted),
            _ => {}
        }
    }

    /// Everything of RFC 8684 that a segment of a running connection may carry, after the checks
    /// that TCP makes (§3.4.1: only what is in sequence and acknowledges properly is believed).
    /// `false`: the text of this segment cannot be taken in.
    fn on_options(&mut self, index: usize, segment: &Segment<'_>, metrics: &mut Metrics) -> bool {
        let options = &segment.tcp.options.mptcp;
        let Some(subflow) = self.subflows.get_mut(index) else {
            return true;
        };
        let mut room = true;
        if let Some(prio) = options.prio {
            metrics.mp_prio_rx += 1;
            subflow.backup = prio.backup;
        }
        metrics.mp_fail_rx += u64::from(options.fail.is_some());
        metrics.add_addr += u64::from(options.add_addr.is_some_and(|a| a.hmac.is_some()));
        metrics.rm_addr += u64::from(options.remove_addr.is_some());
        if let Some(MpJoin::Ack { .. }) = options.join {
            // RFC 8684 §3.2: the third ACK again: the fourth was lost.
            subflow.fourth_ack_due = true;
        }
        if let Some(capable) = options.capable
            && let CapableContent::Data {
                data_len,
                checksum,
                receiver_key,
                ..
            } = capable.content
            && receiver_key == self.local_key
            && subflow.initial
        {
            // RFC 8684 §3.1: its data parameters are a mapping of the first octets.
            self.confirmed = true;
            let mapping = Mapping {
                seq: subflow.rx.irs + 1,
                dsn: self.remote_idsn + 1,
                len: usize::from(data_len),
                checksum,
                data_fin: false,
            };
            room &= self.on_mapping(index, mapping, metrics);
        }
        if let Some(dss) = options.dss {
            room &= self.on_dss(index, segment, &dss, metrics);
        }
        room
    }

    fn on_dss(
        &mut self,
        index: usize,
        segment: &Segment<'_>,
        dss: &Dss,
        metrics: &mut Metrics,
    ) -> bool {
        self.confirmed = true;
        let window = self.subflows[index].window_of(&segment.tcp);
        if let Some(width) = dss.data_ack {
            let ack = match width {
                DsnWidth::Four(low) => self.snd.snd_una.expand(low),
                DsnWidth::Eight(full) => DataSeq(full),
            };
            if self.snd.on_ack(ack) {
                self.data_rto_at = None;
                self.data_rto_backoff = 0;
            }
            // RFC 8684 §3.3.5: the edge only moves forward, and only with a DATA_ACK.
            if ack.at_or_before(self.snd.snd_nxt) && ack.at_or_after(self.snd.snd_una) {
                self.snd.window_edge = self.snd.window_edge.max(ack + window);
            }
        }
        let Some(mapping) = dss.mapping else {
            return true;
        };
        let dsn = match mapping.dsn {
            DsnWidth::Four(low) => {
                self.eight_octets = false;
                self.rcv.rcv_nxt.expand(low)
            }
            DsnWidth::Eight(full) => {
                // RFC 8684 §3.3.2: then the DATA_ACK has 8 octets, too.
                self.eight_octets = true;
                DataSeq(full)
            }
        };
        if mapping.len == 0 {
            self.on_infinite_mapping(index, metrics);
            return true;
        }
        let fin_len = usize::from(dss.data_fin);
        let len = usize::from(mapping.len) - fin_len;
        if self.checksum != mapping.checksum.is_some() {
            // RFC 8684 §3.3.1: a checksum where none was agreed, or none where one was.
            metrics.dss_checksum_mismatch += 1;
            self.reset_subflow(index, RST_MPTCP_SPECIFIC);
            return true;
        }
        if dss.data_fin && len == 0 {
            // RFC 8684 §3.3.3: a DATA_FIN alone maps nothing of the subflow.
            if let Some(sum) = mapping.checksum
                && !checksum::dss_valid(dsn.0, mapping.subflow_seq, mapping.len, 0, sum)
            {
                metrics.data_csum_err += 1;
                return true;
            }
            self.on_data_fin(index, dsn);
            return true;
        }
        let seq = self.subflows[index].rx.irs + mapping.subflow_seq as usize;
        self.on_mapping(
            index,
            Mapping {
                seq,
                dsn,
                len,
                checksum: mapping.checksum,
                data_fin: dss.data_fin,
            },
            metrics,
        )
    }

    /// `false`: there is no room for it, so neither for the text that it came with.
    fn on_mapping(&mut self, index: usize, mapping: Mapping, metrics: &mut Metrics) -> bool {
        if mapping.data_fin && mapping.checksum.is_none() {
            self.on_data_fin(index, mapping.dsn + mapping.len);
        }
        match self.subflows[index].announce(mapping) {
            Announced::Known => true,
            Announced::Conflict => {
                metrics.dss_not_matching += 1;
                true
            }
            Announced::NoRoom => false,
        }
    }

    fn on_data_fin(&mut self, index: usize, dsn: DataSeq) {
        self.rcv.announce_fin(dsn);
        // RFC 8684 §3.3.3: also a late copy of it is acknowledged.
        self.subflows[index].rx.ack_now = true;
    }

    /// The peer falls back (RFC 8684 §3.7). Only the one subflow there is can carry on.
    fn on_infinite_mapping(&mut self, index: usize, metrics: &mut Metrics) {
        metrics.infinite_map_rx += 1;
        let subflow = &self.subflows[index];
        let relative = subflow.delivered_to.offset_from(subflow.rx.irs) as u32;
        let in_step =
            self.rcv.rcv_nxt.0 as u32 == (self.remote_idsn.0 as u32).wrapping_add(relative);
        if subflow.initial && in_step && self.never_joined() {
            self.fall_back();
            // What waited for a mapping has one now.
            let staged = std::mem::take(&mut self.subflows[index].staged);
            let (a, b) = staged.slices(0, staged.len());
            for octets in [a, b] {
                let dsn = self.rcv.rcv_nxt;
                self.deliver(dsn, octets, false, metrics);
            }
        } else {
            self.reset_subflow(index, RST_MPTCP_SPECIFIC);
        }
    }

    fn on_text(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
        received: &mut Received,
    ) {
        let fin = segment.tcp.flags.contains(TcpFlags::FIN);
        let subflow = &mut self.subflows[index];
        let before = subflow.rx.rcv_nxt;
        match subflow
            .rx
            .accept(now, segment.tcp.seq, segment.payload, fin)
        {
            Accepted::Nothing => {}
            Accepted::Stored => metrics.ofo_queue += 1,
            Accepted::InPlace(range) => {
                let text = &segment.payload[range.clone()];
                subflow.bytes_received += text.len() as u64;
                let whole = range.len() == segment.payload.len();
                let sum = whole.then_some(segment.payload_sum);
                let offered = self.on_ordered(index, before, text, sum, true, metrics);
                received.in_place = range.start + offered.start..range.start + offered.end;
            }
            Accepted::Ready => {
                let mut ready = subflow.rx.take_ready();
                subflow.bytes_received += ready.len() as u64;
                let mut seq = before;
                while !ready.is_empty() {
                    let text = ready.peek();
                    let len = text.len();
                    self.on_ordered(index, seq, text, None, false, metrics);
                    ready.consume(len);
                    seq += len;
                }
                if let Some(subflow) = self.subflows.get_mut(index) {
                    subflow.rx.return_ready(ready);
                }
            }
        }
        if self.rcv.take_fin() {
            self.events.readable = true;
        }
        let Some(subflow) = self.subflows.get_mut(index) else {
            return;
        };
        if subflow.reset.is_none() && subflow.rx.take_fin() {
            self.on_subflow_fin(index);
        }
    }

    /// Octets that are in order on the subflow. Whole mappings go on to the data level; the rest is
    /// staged. Returns what of `text` is to be offered in place.
    fn on_ordered(
        &mut self,
        index: usize,
        seq: TcpSeq,
        text: &[u8],
        sum: Option<u16>,
        in_place: bool,
        metrics: &mut Metrics,
    ) -> Range<usize> {
        if self.mode == Mode::Tcp {
            self.subflows[index].delivered_to = seq + text.len();
            let dsn = self.rcv.rcv_nxt;
            return self.deliver(dsn, text, in_place, metrics);
        }
        let subflow = &mut self.subflows[index];
        if subflow.reset.is_some() {
            // RFC 8684 §3.7: nothing behind a failed checksum is believed.
            return 0..0;
        }
        if subflow.staged.is_empty()
            && let Some(mapping) = subflow.mapping_at(seq)
        {
            let dsn = mapping.dsn + seq.distance(mapping.seq);
            let fits = text.len() <= mapping.end().distance(seq);
            let exact = mapping.seq == seq && mapping.len == text.len();
            if mapping.checksum.is_none() && fits {
                subflow.delivered_to = seq + text.len();
                return self.deliver(dsn, text, in_place, metrics);
            }
            if mapping.checksum.is_some() && exact {
                subflow.delivered_to = seq + text.len();
                let sum = sum.unwrap_or_else(|| checksum::sum(text));
                if !self.verify(index, &mapping, sum, metrics) {
                    return 0..0;
                }
                return self.deliver(dsn, text, in_place, metrics);
            }
        }
        subflow.staged_push(text);
        self.drain_staged(index, metrics);
        0..0
    }

    /// Moves whatever is mapped, and verified where checksums are on, from staging to the data
    /// level.
    fn drain_staged(&mut self, index: usize, metrics: &mut Metrics) {
        let mut staged = std::mem::take(&mut self.subflows[index].staged);
        let mut seq = self.subflows[index].delivered_to;
        while !staged.is_empty() {
            let Some(mapping) = self.subflows[index].mapping_at(seq) else {
                break;
            };
            let from = seq.distance(mapping.seq);
            let len = (mapping.len - from).min(staged.len());
            let (a, b) = staged.slices(0, len);
            if mapping.checksum.is_some() {
                if len < mapping.len {
                    // RFC 8684 §3.3: nothing is delivered before the whole mapping is verified.
                    break;
                }
                let sum = checksum::combine_at(checksum::sum(a), checksum::sum(b), a.len());
                if !self.verify(index, &mapping, sum, metrics) {
                    return;
                }
            }
            let dsn = mapping.dsn + from;
            self.deliver(dsn, a, false, metrics);
            self.deliver(dsn + a.len(), b, false, metrics);
            staged.consume(len);
            seq += len;
        }
        let subflow = &mut self.subflows[index];
        let unmapped = subflow.mapping_at(seq).is_none() && staged.len() >= UNMAPPED_MAX_BYTES;
        subflow.delivered_to = seq;
        subflow.staged = staged;
        if unmapped {
            metrics.dss_missing += 1;
            self.reset_subflow(index, RST_MIDDLEBOX);
        }
    }

    /// RFC 8684 §3.3.1, §3.7. A mapping that does not add up ends its subflow, and its octets are
    /// not delivered: another subflow brings them again.
    fn verify(&mut self, index: usize, mapping: &Mapping, sum: u16, metrics: &mut Metrics) -> bool {
        let Some(expected) = mapping.checksum else {
            return true;
        };
        let subflow = &self.subflows[index];
        let relative = mapping.seq.0.wrapping_sub(subflow.rx.irs.0);
        let len = (mapping.len + usize::from(mapping.data_fin)) as u16;
        if checksum::dss_valid(mapping.dsn.0, relative, len, sum, expected) {
            if mapping.data_fin {
                self.on_data_fin(index, mapping.dsn + mapping.len);
            }
            return true;
        }
        metrics.data_csum_err += 1;
        let reason = MpTcprst {
            transient: false,
            reason: RST_MIDDLEBOX,
        };
        let reset = Reset {
            reason: Some(reason),
            fail_dsn: Some(mapping.dsn.0),
            fastclose_key: None,
        };
        self.subflows[index].reset = Some(reset);
        false
    }

    fn deliver(
        &mut self,
        dsn: DataSeq,
        text: &[u8],
        in_place: bool,
        metrics: &mut Metrics,
    ) -> Range<usize> {
        if text.is_empty() {
            return 0..0;
        }
        match self.rcv.accept(dsn, text, in_place) {
            Delivered::InPlace { skip, len } => {
                self.events.readable = true;
                return skip..skip + len;
            }
            Delivered::Buffered => self.events.readable = true,
            Delivered::OutOfOrder => metrics.data_ofo_queue += 1,
            Delivered::Duplicate => metrics.duplicate_data += 1,
            Delivered::NoRoom => metrics.rcv_pruned += 1,
        }
        0..0
    }
}

enum Completion {
    Done,
    Ignore,
    AnswerReset,
}
