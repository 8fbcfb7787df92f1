//! Fallback to plain TCP (RFC 8684 §3.7): why, when it can be done on the subflow there is, and
//! MP_FAIL where a checksum failed.

use super::close::RST_MIDDLEBOX;
use super::connection::{Connection, Mode};
use super::subflow::{Handshake, Mapping, Reset, Subflow};
use crate::metrics::Metrics;
use crate::seq::DataSeq;
use crate::wire::frame::Segment;
use crate::wire::mptcp::MpTcprst;
use crate::wire::tcp::TcpOptions;

/// Why a connection that began as Multipath TCP is plain TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The third ACK came without our keys.
    NoKeys,
    /// Text or a FIN came without a mapping.
    NoMapping,
    /// Text of ours was acknowledged without a DATA_ACK.
    NoDataAck,
    /// A checksum of the peer's failed here, and the peer answered MP_FAIL in kind.
    Checksum,
    /// A checksum of ours failed at the peer: MP_FAIL came.
    PeerChecksum,
    /// The peer fell back for a reason of its own, and told by an infinite mapping.
    PeerInfinite,
}

impl Fallback {
    pub const ALL: [Fallback; 6] = [
        Fallback::NoKeys,
        Fallback::NoMapping,
        Fallback::NoDataAck,
        Fallback::Checksum,
        Fallback::PeerChecksum,
        Fallback::PeerInfinite,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Fallback::NoKeys => "no keys",
            Fallback::NoMapping => "no mapping",
            Fallback::NoDataAck => "no DATA_ACK",
            Fallback::Checksum => "checksum",
            Fallback::PeerChecksum => "MP_FAIL",
            Fallback::PeerInfinite => "infinite mapping",
        }
    }

    /// Which way the path was seen to change segments: `in` is towards us.
    pub const fn direction(self) -> &'static str {
        match self {
            Fallback::PeerChecksum | Fallback::PeerInfinite => "out",
            _ => "in",
        }
    }
}

impl Connection {
    /// Becomes plain TCP on the one subflow there is (RFC 8684 §3.7): from here on its sequence
    /// space is the stream's. `false`: it cannot, as there are several subflows or what is
    /// outstanding on this one is not contiguous; nothing has changed then.
    pub(super) fn fall_back(&mut self, cause: Fallback, metrics: &mut Metrics) -> bool {
        match self.mode {
            Mode::Tcp => return true,
            Mode::Pending => self.checksum = false,
            Mode::Mptcp => {
                if !self.put_in_step() {
                    metrics.fallback_failed += 1;
                    return false;
                }
            }
        }
        self.mode = Mode::Tcp;
        self.fallback = Some(cause);
        self.events.fell_back = true;
        // Nothing is sent out of step any more: the subflow alone repeats what is lost.
        self.snd.reinject.clear();
        self.data_rto_at = None;
        // A DATA_FIN that was announced and has not been reached yet gives way to the FIN.
        self.rcv.forget_fin();
        for index in 0..self.subflows.capacity() {
            let Some(subflow) = self.subflows.get_mut(index) else {
                continue;
            };
            subflow.handshake = Handshake::Tcp;
            subflow.failed_at = None;
            subflow.mappings.clear();
            // RFC 8684 §3.7: the mapping is retroactive. What waited for one, or failed its
            // checksum, is in the stream as it came.
            let staged = std::mem::take(&mut subflow.staged);
            subflow.delivered_to += staged.len();
            let fin_came = subflow.state.has_received_fin() && !self.rcv.fin_taken();
            let (a, b) = staged.slices(0, staged.len());
            for octets in [a, b] {
                self.deliver(self.rcv.rcv_nxt, octets, false, metrics);
            }
            if fin_came {
                self.rcv.announce_fin(self.rcv.rcv_nxt);
                self.events.readable |= self.rcv.take_fin();
            }
        }
        true
    }

    /// Lets the only subflow stand for the stream in both directions, if it can.
    fn put_in_step(&mut self) -> bool {
        let mut subflows = self.subflows.iter();
        let (Some((index, subflow)), None) = (subflows.next(), subflows.next()) else {
            return false;
        };
        if subflow.reset.is_some() || !subflow.state.may_send() {
            return false;
        }
        let (Some(snd_base), Some(rcv_base)) =
            (self.sending_base(subflow), self.receiving_base(subflow))
        else {
            return false;
        };
        // RFC 8684 §3.7: the infinite mapping begins with the first octet that no DATA_ACK covers.
        self.infinite_map_due = Some(self.snd.snd_una);
        // From now on the subflow's acknowledgments are the data's.
        let acked = snd_base.wrapping_add(subflow.relative_sent(subflow.tx.snd_una));
        self.snd.on_ack(self.snd.snd_una.expand(acked));
        self.subflows[index].snd_base = snd_base;
        self.rcv_base = Some(rcv_base);
        true
    }

    /// Data sequence number, low half, less relative sequence number of what is next to be sent, if
    /// everything that the peer's data level has not acknowledged went out here and in order.
    fn sending_base(&self, subflow: &Subflow) -> Option<u32> {
        let sent_to = self.snd.snd_nxt.min(self.snd.end());
        let base = (sent_to.0 as u32).wrapping_sub(subflow.relative_sent(subflow.tx.snd_nxt));
        let una = self.snd.snd_una;
        let all_here = base == subflow.snd_base && subflow.in_step_from.at_or_before(una);
        let none = una.at_or_after(sent_to) && subflow.tx.flight_is_empty();
        (all_here || none).then_some(base)
    }

    /// The same of what is next to be received.
    fn receiving_base(&self, subflow: &Subflow) -> Option<u32> {
        let next = self.rcv.rcv_nxt - usize::from(self.rcv.fin_taken());
        let base = (next.0 as u32).wrapping_sub(subflow.relative_received(subflow.delivered_to));
        let contiguous = subflow
            .mappings
            .iter()
            .filter(|m| m.end().after(subflow.delivered_to))
            .all(|m| (m.dsn.0 as u32).wrapping_sub(subflow.relative_received(m.seq)) == base);
        let whole = self.rcv.out_of_order_bytes() == 0
            && subflow.staged.len() <= self.rcv.acceptable_bytes();
        (contiguous && whole).then_some(base)
    }

    /// RFC 8684 §3.7, on a subflow on which text of ours was never acknowledged with a DATA_ACK:
    /// text without a mapping, a FIN without a DATA_FIN before it, or an acknowledgment without a
    /// DATA_ACK.
    pub(super) fn shows_no_mptcp(&self, index: usize, segment: &Segment<'_>) -> Option<Fallback> {
        let subflow = &self.subflows[index];
        let speaks = !segment.tcp.options.mptcp.is_empty();
        if subflow.confirmed || speaks {
            return None;
        }
        let (seq, end) = (segment.tcp.seq, segment.tcp.seq + segment.payload.len());
        let mapped = end.at_or_before(subflow.delivered_to)
            || subflow
                .mappings
                .iter()
                .any(|m| m.seq.at_or_before(seq) && end.at_or_before(m.end()));
        if mapped && !segment.payload.is_empty() {
            // A part of what was announced, cut off by somebody on the way.
            None
        } else if segment.tcp.ack != subflow.tx.iss + 1 {
            Some(Fallback::NoDataAck)
        } else {
            // A peer that has spoken may have had our DATA_ACK. Then it does not fall back, but repeats
            // at data level what would be new to a stream of TCP.
            (segment.segment_len() > 0 && !subflow.spoken).then_some(Fallback::NoMapping)
        }
    }

    /// Options have vanished on a subflow before they were seen to pass both ways.
    pub(super) fn on_no_mptcp(&mut self, index: usize, cause: Fallback, metrics: &mut Metrics) {
        if self.subflows[index].initial && self.never_joined() && self.fall_back(cause, metrics) {
            if cause == Fallback::NoMapping {
                metrics.mp_capable_data_fallback += 1;
            } else {
                metrics.dss_fallback += 1;
            }
        } else if cause == Fallback::NoDataAck {
            // RFC 8684 §3.7: on a subflow that joined, or beside one, it is the path that is reset.
            metrics.data_ack_missing += 1;
            self.reset_subflow(index, RST_MIDDLEBOX);
        }
    }

    /// RFC 8684 §3.7: `dsn` begins a mapping of which the checksum does not add up.
    pub(super) fn on_checksum_failure(
        &mut self,
        index: usize,
        dsn: DataSeq,
        metrics: &mut Metrics,
    ) {
        metrics.data_csum_err += 1;
        let alone = self.subflows.len() == 1;
        let subflow = &self.subflows[index];
        let contiguous = dsn == self.rcv.rcv_nxt && self.receiving_base(subflow).is_some();
        if !alone || !contiguous {
            self.fail_subflow(index, dsn, metrics);
            return;
        }
        let subflow = &mut self.subflows[index];
        subflow.failed_at = Some(dsn);
        subflow.fail_due = Some(dsn);
    }

    /// Whether a mapping goes on where the last octet that was believed ended, however far ahead.
    pub(super) fn continues(&self, index: usize, mapping: &Mapping) -> bool {
        let subflow = &self.subflows[index];
        let base = (mapping.dsn.0 as u32).wrapping_sub(subflow.relative_received(mapping.seq));
        self.receiving_base(subflow) == Some(base)
    }

    /// Ends a subflow with MP_FAIL on a RST; another one brings its octets again (RFC 8684 §3.7).
    pub(super) fn fail_subflow(&mut self, index: usize, dsn: DataSeq, metrics: &mut Metrics) {
        metrics.dss_corruption_reset += 1;
        let reason = MpTcprst {
            transient: false,
            reason: RST_MIDDLEBOX,
        };
        self.subflows[index].reset.get_or_insert(Reset {
            reason: Some(reason),
            fail_dsn: Some(dsn.0),
            fastclose_key: None,
        });
    }

    /// MP_FAIL on an ACK (RFC 8684 §3.7): it is answered in kind, and both ends revert to plain TCP.
    pub(super) fn on_fail(&mut self, index: usize, metrics: &mut Metrics) {
        let answers_ours = self.subflows[index].failed_at.is_some();
        let cause = match answers_ours {
            true => Fallback::Checksum,
            false => Fallback::PeerChecksum,
        };
        let dsn = self.rcv.rcv_nxt;
        if !self.fall_back(cause, metrics) {
            // Several subflows, or a stream that is not contiguous: nothing can be saved here.
            self.fail_subflow(index, dsn, metrics);
            return;
        }
        metrics.dss_corruption_fallback += 1;
        if !answers_ours && self.version.answers_fail() {
            self.subflows[index].fail_due = Some(dsn);
        }
    }

    /// The peer falls back (RFC 8684 §3.7). Only the one subflow there is can carry on, and only where
    /// the peer's numbers say the same of the next octet as ours do.
    pub(super) fn on_infinite_mapping(
        &mut self,
        index: usize,
        dsn_low: u32,
        subflow_seq: u32,
        metrics: &mut Metrics,
    ) {
        metrics.infinite_map_rx += 1;
        let failed_at = self.subflows[index].failed_at;
        let base = self.receiving_base(&self.subflows[index]);
        let in_step = base == Some(dsn_low.wrapping_sub(subflow_seq));
        let cause = match failed_at {
            Some(_) => Fallback::Checksum,
            None => Fallback::PeerInfinite,
        };
        if in_step && self.fall_back(cause, metrics) {
            metrics.dss_corruption_fallback += u64::from(failed_at.is_some());
        } else if let Some(dsn) = failed_at {
            self.fail_subflow(index, dsn, metrics);
        } else {
            self.reset_subflow(index, super::close::RST_MPTCP_SPECIFIC);
        }
    }

    /// What is left of Multipath TCP in a segment after a fallback.
    pub(super) fn on_options_after_fallback(
        &mut self,
        index: usize,
        options: &TcpOptions,
        metrics: &mut Metrics,
    ) {
        let Some(base) = self.rcv_base else { return };
        if options.mptcp.fail.is_some() {
            metrics.mp_fail_rx += 1;
            if self.fallback == Some(Fallback::PeerChecksum) && self.version.answers_fail() {
                // Our answer was lost.
                self.subflows[index].fail_due = Some(self.rcv.rcv_nxt);
            }
        }
        if let Some(mapping) = options.mptcp.dss.and_then(|dss| dss.mapping)
            && mapping.subflow_seq != 0
            && mapping.dsn.low().wrapping_sub(mapping.subflow_seq) != base
        {
            // Under way before the peer knew: it belongs elsewhere in the stream, and the infinite
            // mapping has no place for it.
            metrics.dss_not_matching += 1;
            self.reset_subflow(index, RST_MIDDLEBOX);
        }
    }
}
