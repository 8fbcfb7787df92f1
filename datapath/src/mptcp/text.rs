//! Text: from a subflow's order through its mappings to the order of the stream.

use super::close::RST_MIDDLEBOX;
use super::connection::{Connection, Mode};
use super::data::Delivered;
use super::receive::Received;
use super::subflow::Mapping;
use crate::memory::RECEIVE_RESERVE_BYTES;
use crate::metrics::Metrics;
use crate::seq::{DataSeq, TcpSeq};
use crate::tcp::receiver::Accepted;
use crate::time::Instant;
use crate::wire::checksum;
use crate::wire::frame::Segment;
use crate::wire::tcp::TcpFlags;
use std::ops::Range;

/// Octets a subflow may hold that no mapping covers, before it is taken for broken
/// (RFC 8684 §3.3.1).
const UNMAPPED_MAX_BYTES: usize = 64 * 1024;

impl Connection {
    pub(super) fn on_text(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
        received: &mut Received,
    ) {
        let fin = segment.tcp.flags.contains(TcpFlags::FIN);
        if !self.has_room_for(index, segment, metrics) {
            self.subflows[index].rx.ack_now = true;
            return;
        }
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

    /// Whether the text of a segment can be kept, should the application not take it: decided before
    /// the subflow acknowledges it.
    fn has_room_for(&mut self, index: usize, segment: &Segment<'_>, metrics: &mut Metrics) -> bool {
        let subflow = &self.subflows[index];
        let seq = segment.tcp.seq;
        let end = seq + segment.payload.len();
        if !end.after(subflow.rx.rcv_nxt) {
            return true;
        }
        let in_order = seq.at_or_before(subflow.rx.rcv_nxt);
        if self.rcv.overruns(end.distance(subflow.delivered_to)) {
            metrics.rcv_queue_drop += 1;
            return false;
        }
        if subflow.failed_at.is_some()
            && end.distance(subflow.delivered_to) > self.rcv.acceptable_bytes()
        {
            // It is all kept until it is known what becomes of it.
            metrics.rcv_queue_drop += 1;
            return false;
        }
        if self.take_memory(self.growth_for(index, seq, end)) {
            return true;
        }
        if !in_order {
            metrics.ofo_drop += 1;
            return false;
        }
        // RFC 2018 §8: what was only SACKed may go, so that what is next in order can come.
        let rx = &mut self.subflows[index].rx;
        if rx.out_of_order_bytes() > 0 {
            metrics.ofo_pruned += 1;
            self.allowance.spare_bytes += rx.held_bytes();
            rx.discard_out_of_order();
        }
        let growth = self.growth_for(index, seq, end);
        if self.receive_held_bytes() + growth <= RECEIVE_RESERVE_BYTES || self.take_memory(growth) {
            return true;
        }
        metrics.rcv_queue_drop += 1;
        false
    }

    /// The most by which memory grows if text up to `end` is taken in on a subflow.
    fn growth_for(&self, index: usize, seq: TcpSeq, end: TcpSeq) -> usize {
        let subflow = &self.subflows[index];
        let reassembly = subflow.rx.growth_for(seq, end);
        if seq.after(subflow.rx.rcv_nxt) {
            return reassembly;
        }
        let len = subflow.rx.ready_end(end).distance(subflow.delivered_to);
        let staged = match self.mode {
            Mode::Mptcp => subflow.staged.growth_for(len),
            _ => 0,
        };
        reassembly + staged + self.rcv.growth_for(len)
    }

    /// Takes `bytes` out of the allowance; what the application may write becomes less by as much.
    fn take_memory(&mut self, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let enough = self.allowance.take(bytes);
        self.snd.set_memory(&self.allowance);
        enough
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
        let subflow = &mut self.subflows[index];
        if subflow.reset.is_some() {
            // RFC 8684 §3.7: nothing behind a failed checksum is believed.
            return 0..0;
        }
        if self.mode == Mode::Tcp {
            subflow.delivered_to = seq + text.len();
            let dsn = self.rcv.rcv_nxt;
            return self.deliver(dsn, text, in_place, metrics);
        }
        if subflow.failed_at.is_some() {
            subflow.staged_push(text);
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
                let sum = sum.unwrap_or_else(|| checksum::sum(text));
                if !self.verify(index, &mapping, sum, metrics) {
                    self.subflows[index].staged_push(text);
                    return 0..0;
                }
                self.subflows[index].delivered_to = seq + text.len();
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
        // RFC 8684 §3.3.1: within a window of text a mapping has to come.
        let unmapped_max_bytes = UNMAPPED_MAX_BYTES.min(self.rcv.limit_bytes());
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
                    break;
                }
            }
            let dsn = mapping.dsn + from;
            self.deliver(dsn, a, false, metrics);
            self.deliver(dsn + a.len(), b, false, metrics);
            staged.consume(len);
            seq += len;
        }
        let subflow = &mut self.subflows[index];
        let unmapped = subflow.mapping_at(seq).is_none() && staged.len() >= unmapped_max_bytes;
        subflow.delivered_to = seq;
        subflow.staged = staged;
        if unmapped {
            metrics.dss_missing += 1;
            self.reset_subflow(index, RST_MIDDLEBOX);
        }
    }

    /// RFC 8684 §3.3.1, §3.7. A mapping that does not add up is not delivered: its subflow ends, and
    /// another one brings its octets again, or the connection falls back on the one there is.
    fn verify(&mut self, index: usize, mapping: &Mapping, sum: u16, metrics: &mut Metrics) -> bool {
        let Some(expected) = mapping.checksum else {
            return true;
        };
        let subflow = &self.subflows[index];
        let relative = subflow.relative_received(mapping.seq);
        let len = (mapping.len + usize::from(mapping.data_fin)) as u16;
        if checksum::dss_valid(mapping.dsn.0, relative, len, sum, expected) {
            if mapping.data_fin {
                self.on_data_fin(index, mapping.dsn + mapping.len);
            }
            return true;
        }
        self.on_checksum_failure(index, mapping.dsn, metrics);
        false
    }

    pub(super) fn deliver(
        &mut self,
        dsn: DataSeq,
        text: &[u8],
        in_place: bool,
        metrics: &mut Metrics,
    ) -> Range<usize> {
        if text.is_empty() {
            return 0..0;
        }
        // What is in order has its memory since the subflow took it in.
        let ahead = dsn.after(self.rcv.rcv_nxt);
        if ahead && !self.take_memory(self.rcv.growth_to(dsn + text.len())) {
            metrics.rcv_pruned += 1;
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
