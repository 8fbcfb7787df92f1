//! The options of a running connection: DSS, signals, and what they say of the stream.

use super::close::RST_MPTCP_SPECIFIC;
use super::connection::{Connection, Mode};
use super::subflow::{Announced, Mapping};
use crate::metrics::Metrics;
use crate::seq::DataSeq;
use crate::wire::checksum;
use crate::wire::frame::Segment;
use crate::wire::mptcp::{CapableContent, DsnWidth, Dss, MpJoin};

impl Connection {
    /// Everything of RFC 8684 that a segment of a running connection may carry, after the checks
    /// that TCP makes (§3.4.1: only what is in sequence and acknowledges properly is believed).
    /// `false`: the text of this segment cannot be taken in.
    pub(super) fn on_options(
        &mut self,
        index: usize,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) -> bool {
        let options = &segment.tcp.options.mptcp;
        let Some(subflow) = self.subflows.get_mut(index) else {
            return true;
        };
        let mut room = true;
        metrics.mp_fail_rx += u64::from(options.fail.is_some());
        if let Some(MpJoin::Ack { .. }) = options.join {
            // RFC 8684 §3.2: the third ACK again: the fourth was lost.
            subflow.fourth_ack_due = true;
        }
        if let Some(capable) = options.capable.filter(|c| self.version.understands(c))
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
            subflow.spoken = true;
            // RFC 8684 §3.3.2: its number has 64 bits, though none of them is on the wire.
            self.eight_octets |= segment.tcp.seq.at_or_before(subflow.rx.rcv_nxt);
            let mapping = Mapping {
                seq: subflow.received_at(1),
                dsn: self.remote_idsn + 1,
                len: usize::from(data_len),
                checksum,
                data_fin: false,
            };
            if !self.has_checksum_agreed(index, checksum, metrics) {
                return true;
            }
            room &= self.on_mapping(index, mapping, metrics);
        }
        if let Some(dss) = options.dss {
            room &= self.on_dss(index, segment, &dss, metrics);
        }
        if options.fail.is_some() && self.mode == Mode::Mptcp {
            // Last: the DATA_ACK beside it still counts.
            self.on_fail(index, metrics);
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
        let subflow = &mut self.subflows[index];
        subflow.spoken = true;
        if dss.data_ack.is_some() && segment.tcp.ack.after(subflow.tx.iss + 1) {
            // RFC 8684 §3.7: text of ours was acknowledged with a DATA_ACK.
            subflow.confirmed = true;
        }
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
            DsnWidth::Four(low) => self.rcv.rcv_nxt.expand(low),
            DsnWidth::Eight(full) => DataSeq(full),
        };
        if mapping.len == 0 {
            // RFC 8684 §3.7: the infinite mapping comes with the first text that it maps, or with
            // the end of the stream.
            if segment.segment_len() > 0 {
                self.on_infinite_mapping(index, dsn.0 as u32, mapping.subflow_seq, metrics);
            }
            return true;
        }
        let fin_len = usize::from(dss.data_fin);
        let len = usize::from(mapping.len) - fin_len;
        if !self.has_checksum_agreed(index, mapping.checksum, metrics) {
            return true;
        }
        let checksum = mapping.checksum.filter(|_| self.checksum);
        if (dsn + len).after(self.remote_idsn + 1 + usize::from(u16::MAX)) {
            // Beyond the window of our SYN/ACK: only a DATA_ACK can have let the peer go on.
            self.subflows[index].confirmed = true;
        }
        if dss.data_fin && len == 0 {
            // RFC 8684 §3.3.3: a DATA_FIN alone maps nothing of the subflow.
            if let Some(sum) = checksum
                && !checksum::dss_valid(dsn.0, mapping.subflow_seq, mapping.len, 0, sum)
            {
                metrics.data_csum_err += 1;
                return true;
            }
            self.on_data_fin(index, dsn);
            return true;
        }
        // RFC 8684 §3.3.2: data with a number of 8 octets is acknowledged with one of 8. It stays so:
        // a DATA_ACK that covers both kinds has to.
        self.eight_octets |= matches!(mapping.dsn, DsnWidth::Eight(_));
        let seq = self.subflows[index].received_at(mapping.subflow_seq);
        self.on_mapping(
            index,
            Mapping {
                seq,
                dsn,
                len,
                checksum,
                data_fin: dss.data_fin,
            },
            metrics,
        )
    }

    /// RFC 8684 §3.3: a checksum where none was agreed, or none where one was, ends the subflow.
    fn has_checksum_agreed(
        &mut self,
        index: usize,
        checksum: Option<u16>,
        metrics: &mut Metrics,
    ) -> bool {
        let stray = checksum.is_some() && !self.checksum;
        let agreed = match stray {
            true => !self.version.refuses_stray_checksum(),
            false => self.checksum == checksum.is_some(),
        };
        if !agreed {
            metrics.dss_checksum_mismatch += 1;
            self.reset_subflow(index, RST_MPTCP_SPECIFIC);
        }
        agreed
    }

    /// `false`: there is no room for it, so neither for the text that it came with.
    fn on_mapping(&mut self, index: usize, mapping: Mapping, metrics: &mut Metrics) -> bool {
        if let Some(dsn) = self.subflows[index].failed_at
            && !self.continues(index, &mapping)
        {
            // RFC 8684 §3.7: what follows a failed checksum is not contiguous.
            self.fail_subflow(index, dsn, metrics);
            return true;
        }
        if mapping.data_fin && mapping.checksum.is_none() {
            self.on_data_fin(index, mapping.dsn + mapping.len);
        }
        match self.announce_mapping(index, mapping) {
            Announced::Known => true,
            Announced::Conflict => {
                // RFC 8684 §3.3.1: what either of them says of the octets cannot be believed.
                metrics.dss_not_matching += 1;
                self.reset_subflow(index, RST_MPTCP_SPECIFIC);
                true
            }
            Announced::NoRoom => false,
        }
    }

    fn announce_mapping(&mut self, index: usize, mapping: Mapping) -> Announced {
        let announced = self.subflows[index].announce(mapping, &mut self.allowance);
        self.snd.set_memory(&self.allowance);
        announced
    }

    pub(super) fn on_data_fin(&mut self, index: usize, dsn: DataSeq) {
        self.rcv.announce_fin(dsn);
        // RFC 8684 §3.3.3: also a late copy of it is acknowledged.
        self.subflows[index].rx.ack_now = true;
    }
}
