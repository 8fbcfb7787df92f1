//! A segment comes in on a subflow: its checks and its acknowledgment. What else it carries goes on to
//! the modules `handshake`, `options` and `text`.

use super::close::{RST_UNSPECIFIED, count_reset};
use super::connection::{Connection, End, Mode};
use super::handshake::Completion;
use super::subflow::Reset;
use crate::metrics::Metrics;
use crate::port::IfaceId;
use crate::tcp::State;
use crate::time::Instant;
use crate::wire::frame::Segment;
use crate::wire::tcp::TcpFlags;
use std::ops::Range;

/// What became of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// These octets of the payload are the next of the stream, and nothing is unread before them:
    /// to be offered to the app, and what it leaves to be kept.
    pub in_place: Range<usize>,
    /// A plain RST goes back for this segment (RFC 9293 §3.10.7).
    pub answer_reset: bool,
    /// A challenge ACK is due (RFC 5961) if the worker sends any now: see
    /// [`Connection::acknowledge_now`].
    pub challenge: bool,
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
        if self.fastclose.is_some() {
            self.on_fastclose_answer(index, segment, metrics);
            return received;
        }
        if self.subflows[index].state == State::SynSent {
            received.answer_reset = self.on_syn_sent_segment(index, now, iface, segment, metrics);
            return received;
        }
        if !self.passes_checks(index, now, iface, segment, metrics, &mut received) {
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
        if !self.subflows[index].tx.ack_acceptable(segment.tcp.ack) {
            // RFC 5961 §5.2: nothing of it is believed.
            self.challenge(index, now, metrics, &mut received);
            return received;
        }
        let subflow = &mut self.subflows[index];
        if subflow.state == State::PreEstablished {
            if segment.tcp.ack != subflow.tx.snd_nxt {
                // From before our SYN: it says nothing of our third ACK.
                return received;
            }
            subflow.on_fourth_ack();
        }
        // Answers go to where the last valid segment came from.
        subflow.iface = iface;
        subflow.link = segment.link.reversed();
        subflow.last_received_at = now;
        subflow.keepalive_probes = 0;
        subflow.on_heard();
        if !segment.payload.is_empty() {
            subflow
                .ecn
                .on_text(segment.tcp.flags, segment.traffic_class);
        }
        // RFC 7323 §4.3, and only now: a TSval that a forged segment brought, whose acknowledgment
        // is for nothing that was sent, would make PAWS reject all that follow (RFC 5961 §5).
        if let (Some(ts), Some(option)) = (&mut subflow.ts, segment.tcp.options.timestamps)
            && segment.tcp.seq.at_or_before(subflow.rx.last_ack_sent)
        {
            ts.update(option.tsval, now);
        }
        if self.is_fastclose(segment) {
            self.on_fastclose(metrics);
            return received;
        }
        if self.mode == Mode::Mptcp
            && let Some(cause) = self.shows_no_mptcp(index, segment)
        {
            self.on_no_mptcp(index, cause, metrics);
        }
        self.on_acknowledgment(index, now, segment, metrics);
        if self.fallback.is_some() && self.subflows.contains(index) {
            self.on_options_after_fallback(index, &segment.tcp.options, metrics);
        }
        if self.mode == Mode::Mptcp {
            self.on_signals(index, now, segment, metrics);
        }
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
        received
    }

    /// RFC 9293 §3.10.7.4, first to fifth check; RFC 7323 §5.3; RFC 5961 §3 and §4.
    fn passes_checks(
        &mut self,
        index: usize,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
        received: &mut Received,
    ) -> bool {
        let header = &segment.tcp;
        if header.flags.contains(TcpFlags::RST) {
            self.on_reset(index, now, segment, metrics, received);
            return false;
        }
        if header.flags.contains(TcpFlags::SYN) {
            self.on_syn(index, now, iface, segment, metrics, received);
            return false;
        }
        let subflow = &mut self.subflows[index];
        if let Some(ts) = &subflow.ts {
            let Some(option) = header.options.timestamps else {
                // RFC 7323 §3.2: once negotiated, every segment carries it.
                metrics.drop_no_timestamp += 1;
                return false;
            };
            if ts.paws_rejects(option.tsval, now) {
                metrics.paws_rejected += 1;
                self.answer_invalid(index, now, segment, metrics, |m| &mut m.ack_skipped_paws);
                return false;
            }
        }
        if !subflow.rx.acceptable(header.seq, segment.segment_len()) {
            metrics.out_of_window += 1;
            // RFC 9293: acknowledged, so that a peer out of step finds its way. A keepalive or a
            // window probe is answered here, too.
            self.answer_invalid(index, now, segment, metrics, |m| &mut m.ack_skipped_seq);
            return false;
        }
        // RFC 9293 §3.10.7.4, fifth check: without ACK it is dropped.
        header.flags.contains(TcpFlags::ACK)
    }

    /// A SYN on a flow that is known.
    fn on_syn(
        &mut self,
        index: usize,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
        received: &mut Received,
    ) {
        let header = &segment.tcp;
        let subflow = &mut self.subflows[index];
        let again = subflow.state == State::SynReceived && header.seq == subflow.rx.irs;
        let acknowledges = header.flags.contains(TcpFlags::ACK);
        if again && subflow.opened_here && acknowledges && header.ack == subflow.tx.snd_nxt {
            // Both SYNs crossed, and so do their answers.
            self.on_syn_ack(index, now, iface, segment, metrics);
        } else if !again || acknowledges {
            // RFC 5961 §4.2: challenged whatever its number, never obeyed. RFC 9293 §3.10.7.4 lets a
            // half-open connection go at that; a client that means it answers our ACK with a RST.
            self.challenge(index, now, metrics, received);
        } else if subflow.may_answer_invalid(now) {
            // A retransmitted SYN gets the same SYN/ACK again: same key, same nonce.
            subflow.handshake_due = true;
            subflow.ecn.on_repeated_syn(header.flags);
            subflow.iface = iface;
            subflow.link = segment.link.reversed();
        } else {
            metrics.ack_skipped_syn_recv += 1;
        }
    }

    /// Answers a segment that is not acceptable with an ACK, which tells of what came twice.
    fn answer_invalid(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
        skipped: fn(&mut Metrics) -> &mut u64,
    ) {
        let subflow = &mut self.subflows[index];
        subflow
            .rx
            .on_unacceptable(segment.tcp.seq, segment.payload.len());
        // Two ends out of step answer each other's ACKs for ever. What takes sequence space is no
        // part of that: its sender has a timer of its own, and waits for the answer.
        let half_open = subflow.state == State::SynReceived;
        if segment.segment_len() > 0 && !half_open || subflow.may_answer_invalid(now) {
            self.acknowledge_now(index);
        } else if half_open {
            metrics.ack_skipped_syn_recv += 1;
        } else {
            *skipped(metrics) += 1;
        }
    }

    /// RFC 5961 §7: a challenge ACK, unless there was an answer of the kind just before.
    fn challenge(
        &mut self,
        index: usize,
        now: Instant,
        metrics: &mut Metrics,
        received: &mut Received,
    ) {
        if self.subflows[index].may_answer_invalid(now) {
            received.challenge = true;
        } else {
            metrics.ack_skipped_challenge += 1;
        }
    }

    /// An ACK of what has come so far leaves on this subflow; before it is open that is what its
    /// handshake sends.
    pub fn acknowledge_now(&mut self, index: usize) {
        if let Some(subflow) = self.subflows.get_mut(index) {
            match subflow.state.is_opening() {
                true => subflow.handshake_due = true,
                false => subflow.rx.ack_now = true,
            }
        }
    }

    /// RFC 5961 §3.2: only the very next sequence number resets; others in the window are
    /// challenged. RFC 8684 §3.5 for MP_FASTCLOSE on it.
    fn on_reset(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
        received: &mut Received,
    ) {
        let subflow = &mut self.subflows[index];
        if segment.tcp.seq != subflow.rx.rcv_nxt {
            if subflow.rx.in_window(segment.tcp.seq) {
                self.challenge(index, now, metrics, received);
            } else {
                metrics.out_of_window += 1;
            }
            return;
        }
        if let Some(tcprst) = segment.tcp.options.mptcp.tcprst {
            subflow.barred = !tcprst.transient;
        }
        count_reset(segment, metrics);
        if self.is_fastclose(segment) {
            // RFC 8684 §3.5: all other subflows are reset, nothing goes out on this one.
            self.drop_subflow(index, End::PeerAborted);
            self.on_fastclose(metrics);
            return;
        }
        self.reinject_flight(index);
        self.drop_subflow(index, End::PeerAborted);
    }

    /// RFC 8684 §3.5: every subflow that there is is answered with a RST.
    fn on_fastclose(&mut self, metrics: &mut Metrics) {
        metrics.mp_fastclose_rx += 1;
        self.end.get_or_insert(End::PeerAborted);
        self.reset_all(Reset::with_reason(RST_UNSPECIFIED));
    }

    /// Shows all subflows to the congestion control of subflow `index`, if it couples them.
    fn gather_siblings(&mut self, index: usize) {
        let sender = &mut self.subflows[index].tx;
        if !sender.cc.is_coupled() {
            return;
        }
        let mut siblings = std::mem::take(&mut sender.siblings);
        siblings.clear();
        siblings.extend(self.subflows.iter().filter_map(|(_, s)| s.tx.as_sibling()));
        self.subflows[index].tx.siblings = siblings;
    }

    fn on_acknowledgment(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) {
        self.gather_siblings(index);
        let header = &segment.tcp;
        let subflow = &mut self.subflows[index];
        let options = &header.options;
        subflow.bare = options.mptcp.is_empty();
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
        let clock = subflow.ts.map(|ts| ts.clock);
        let tsecr = options.timestamps.map(|option| option.tsecr);
        let mut longest_arrived = 0;
        let outcome = subflow.tx.on_ack(
            now,
            header.ack,
            &options.sack,
            may_be_duplicate,
            |at| clock.is_some_and(|clock| Some(clock.tsval(at)) == tsecr),
            |sent| longest_arrived = longest_arrived.max(sent.len),
        );
        let snd_una = subflow.tx.snd_una;
        subflow.reinjections.on_acknowledged(snd_una);
        metrics.tcp_fast_recoveries += u64::from(outcome.loss_found);
        metrics.tcp_loss_undo += u64::from(outcome.undone);
        metrics.tcp_loss_probe_recovery += u64::from(outcome.probe_repaired);
        metrics.tcp_dsack_rx += u64::from(outcome.dsack);
        // What comes late tells of an earlier window.
        let echo = subflow.ecn.is_echo(header.flags)
            && header.ack == subflow.tx.snd_una
            && subflow.tx.on_congestion_echo(now, outcome.advanced);
        metrics.ecn_window_falls += u64::from(echo);
        if echo || outcome.loss_found || outcome.probe_repaired {
            subflow.ecn.on_window_fell();
        }
        subflow.tx.update_window(header.seq, header.ack, window);
        let held = subflow.tx.snd_wnd == 0;
        if held {
            // RFC 9293 §3.8.6.1, MUST-37: it may have taken back a window that was filled; as long as
            // it says so, what is sent again there is no sign that it is gone.
            subflow.tx.rtt.on_progress();
        }
        // RFC 8684 §3.3.5: the stream's window comes with a DATA_ACK. From a path that has begun to
        // swallow options none does, however often it is asked.
        let answers =
            self.mode != Mode::Mptcp || options.mptcp.dss.is_some_and(|dss| dss.data_ack.is_some());
        let answered = answers && subflow.probes_unanswered > 0;
        if outcome.advanced > 0 || held || answered {
            subflow.heard_at = now;
        }
        self.on_text_arrived(index, longest_arrived);
        self.settle_mtu_probe(index, now, metrics);
        let subflow = &mut self.subflows[index];
        if answers {
            subflow.probes_unanswered = 0;
        }
        if answers && subflow.tx.snd_wnd > 0 {
            subflow.persist_at = None;
            subflow.persist_backoff = 0;
            subflow.probe_due = false;
        }
        let snd_una = subflow.tx.snd_una;
        let our_fin_acked = subflow.tx.flight_is_empty();
        if self.mode == Mode::Tcp {
            // The infinite mapping: the subflow's acknowledgment is the data's.
            let low = subflow
                .snd_base
                .wrapping_add(subflow.relative_sent(snd_una));
            let dsn = self.snd.snd_una.expand(low);
            self.snd.on_ack(dsn);
            self.snd.window_edge = self.snd.window_edge.max(dsn + window);
        }
        let subflow = &mut self.subflows[index];
        match subflow.state {
            State::FinWait1 if our_fin_acked => subflow.state = State::FinWait2,
            // The ACK of the peer's FIN leaves first if it has not yet: it is the one to go there.
            State::Closing if our_fin_acked && !subflow.rx.ack_now => self.enter_time_wait(index),
            State::LastAck if our_fin_acked => self.drop_subflow(index, End::PeerAborted),
            _ => {}
        }
    }
}
