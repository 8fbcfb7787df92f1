//! The end of SYN-RECEIVED: the third ACK and what it may have lost on its way (RFC 8684 §3.1, §3.2).

use super::close::{RST_MIDDLEBOX, RST_MPTCP_SPECIFIC};
use super::connection::{Connection, Mode};
use super::fallback::Fallback;
use super::subflow::Handshake;
use crate::crypto;
use crate::metrics::Metrics;
use crate::seq::DataSeq;
use crate::tcp::State;
use crate::tcp::receiver::Accepted;
use crate::time::Instant;
use crate::wire::frame::Segment;
use crate::wire::mptcp::{CapableContent, MpJoin};
use std::ops::Range;

/// What the segment did that came in SYN-RECEIVED.
pub(super) enum Completion {
    Done,
    Ignore,
    AnswerReset,
}

enum Keys {
    /// Both are known at both ends; this is the peer's.
    Confirmed(u64),
    /// A later segment will tell.
    Awaited,
    /// There are none, or they are not the ones exchanged.
    Missing,
}

impl Connection {
    /// A SYN with a good cookie (RFC 7413 §4.2.2, steps 4 and 6): its text goes to the app, whose answer
    /// need not wait for the third ACK. Returns what of the payload is to be offered in place.
    pub fn open_early(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) -> Range<usize> {
        self.rcv.start(self.remote_idsn);
        let window_bytes = self.rcv.window_bytes().min(usize::from(u16::MAX));
        let subflow = &mut self.subflows[index];
        // RFC 7323 §2.2: the window of a SYN is never scaled.
        let peer_window_bytes = usize::from(segment.tcp.window);
        subflow
            .tx
            .on_handshake_done(segment.tcp.seq, peer_window_bytes);
        self.snd.start(self.local_idsn, peer_window_bytes);
        subflow.on_mapped(subflow.tx.iss + 1, self.local_idsn + 1);
        subflow.fast_open = true;
        self.fast_open_pending = true;
        self.events.opened = true;
        metrics.passive_opens += 1;
        // What the SYN/ACK is about to offer holds for what came with the SYN.
        subflow.rx.on_ack_sent(window_bytes);
        let first = segment.tcp.seq + 1;
        let Accepted::InPlace(taken) = subflow.rx.accept(now, first, segment.payload, false) else {
            return 0..0;
        };
        subflow.syn_text_bytes = taken.len();
        subflow.bytes_received += taken.len() as u64;
        subflow.delivered_to += taken.len();
        let text = &segment.payload[taken];
        self.deliver(self.rcv.rcv_nxt, text, true, metrics)
    }

    /// The segment that ends SYN-RECEIVED.
    pub(super) fn complete_handshake(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) -> Completion {
        let options = &segment.tcp.options.mptcp;
        let subflow = &self.subflows[index];
        let ack = segment.tcp.ack;
        let acks_text = subflow.sends_early() && subflow.tx.ack_acceptable(ack);
        if ack != subflow.tx.iss + 1 && !(acks_text && ack.after(subflow.tx.iss)) {
            // RFC 9293 §3.10.7.4: SYN-RECEIVED and an ACK of something else.
            return Completion::AnswerReset;
        }
        match subflow.handshake {
            Handshake::Tcp => {}
            Handshake::Capable => match self.keys_in(index, segment) {
                Keys::Confirmed(remote_key) => {
                    metrics.mp_capable_ack_rx += 1;
                    self.start_mptcp(remote_key);
                }
                Keys::Awaited => {
                    metrics.mp_capable_ack_awaited += 1;
                    return Completion::Ignore;
                }
                Keys::Missing => {
                    // RFC 8684 §3.1, §3.7: plain TCP.
                    metrics.mp_capable_fallback_ack += 1;
                    self.fall_back(Fallback::NoKeys, metrics);
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
                let (local_key, remote_key) = (self.local_key, self.remote_key);
                let expected =
                    self.version
                        .join_hmac(remote_key, local_key, remote_nonce, local_nonce);
                if !crypto::join_ack_valid(&expected, &hmac) {
                    metrics.mp_join_ack_hmac_failure += 1;
                    self.reset_subflow(index, RST_MPTCP_SPECIFIC);
                    return Completion::Ignore;
                }
                metrics.mp_join_ack_rx += 1;
                let other_port = subflow.local.port() != self.local_addr.port();
                metrics.mp_join_port_ack_rx += u64::from(other_port);
            }
        }
        let subflow = &mut self.subflows[index];
        let window = subflow.window_of(&segment.tcp);
        let fast_open = subflow.fast_open;
        subflow.state = State::Established;
        if !fast_open {
            subflow.tx.on_handshake_done(segment.tcp.seq, window);
        }
        // RFC 6298 §3: a SYN/ACK sent more than once gives no sample.
        if subflow.handshake_transmissions == 1
            && let Some(sent_at) = subflow.handshake_sent_at
        {
            subflow.tx.rtt.on_sample(now, now.since(sent_at));
        }
        if fast_open {
            subflow.tx.on_syn_ack_acked(now);
            // RFC 7323 §2.2: this one is scaled.
            self.snd.window_edge = self.snd.window_edge.max(self.snd.snd_una + window);
        } else if subflow.initial {
            if self.mode == Mode::Tcp {
                self.rcv.start(self.remote_idsn);
            }
            self.snd.start(self.local_idsn, window);
            self.subflows[index].on_mapped(segment.tcp.ack, self.local_idsn + 1);
            self.events.opened = true;
            metrics.passive_opens += 1;
        } else {
            // RFC 8684 §3.2: the fourth ACK makes the third reliable.
            self.subflows[index].fourth_ack_due = true;
        }
        Completion::Done
    }

    /// What the segment that is to end SYN-RECEIVED of the initial subflow says of the keys.
    fn keys_in(&self, index: usize, segment: &Segment<'_>) -> Keys {
        let options = &segment.tcp.options.mptcp;
        let known = self.version.has_key_in_syn().then_some(self.remote_key);
        let understood = options.capable.filter(|c| self.version.understands(c));
        match (understood.map(|c| c.content), known) {
            (
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
                ),
                _,
            ) if receiver_key == self.local_key && known.is_none_or(|key| key == sender_key) => {
                Keys::Confirmed(sender_key)
            }
            // The third ACK was lost, which nobody repeats in version 0. Options that belong to what
            // both keys began show that the client has ours.
            (None, Some(key)) if options.dss.is_some() => Keys::Confirmed(key),
            // RFC 8684 §3.1: it was lost and this came before the segment that repeats the keys. Its
            // retransmission will be in order. So will that of a part of a segment, cut off on the way,
            // that has no options of its own.
            (None, _)
                if options.dss.is_some()
                    || segment.tcp.seq.after(self.subflows[index].received_at(1)) =>
            {
                Keys::Awaited
            }
            _ => Keys::Missing,
        }
    }

    fn start_mptcp(&mut self, remote_key: u64) {
        self.mode = Mode::Mptcp;
        self.remote_key = remote_key;
        self.remote_idsn = DataSeq(self.version.token_and_idsn(remote_key).1);
        if self.fast_open_pending {
            self.rcv.restart(self.remote_idsn);
        } else {
            self.rcv.start(self.remote_idsn);
        }
    }
}
