//! Path MTU at work on a subflow: errors of routers, black holes and probes change what its segments
//! are cut for.

use super::connection::Connection;
use super::subflow::Subflow;
use crate::metrics::Metrics;
use crate::tcp::path_mtu::{ProbeFate, Refused};
use crate::time::{Duration, Instant};
use crate::wire::icmp::PacketTooBig;
use crate::wire::tcp::TcpHeader;
use crate::wire::{ipv4, ipv6};

/// RFC 4821 §7.4: so many segments follow a probe, for its loss to be found without a timeout.
const SEGMENTS_BEHIND_PROBE: usize = 3;

impl Subflow {
    /// Octets of IP and TCP header, without options (RFC 6691).
    pub fn headers_len(&self) -> usize {
        headers_len(self.local.is_ipv6())
    }
}

/// Octets of IP and TCP header, without options (RFC 6691).
pub fn headers_len(v6: bool) -> usize {
    TcpHeader::MIN_LEN
        + if v6 {
            ipv6::HEADER_LEN
        } else {
            ipv4::HEADER_LEN
        }
}

impl Connection {
    /// A router says that a segment of subflow `index` was too big.
    pub fn on_packet_too_big(
        &mut self,
        index: usize,
        now: Instant,
        error: &PacketTooBig,
        metrics: &mut Metrics,
    ) {
        let subflow = &mut self.subflows[index];
        let quoted = &error.quoted;
        // RFC 5927 §4.1: who has not seen the flow does not know what is in flight.
        if !subflow.tx.is_in_flight(quoted.seq) {
            metrics.out_of_window_icmps += 1;
            return;
        }
        let told = subflow
            .path_mtu
            .on_too_big(now, error.next_hop_mtu, quoted.packet_len);
        match told {
            Err(Refused::BelowMinimum) => metrics.path_mtu_below_minimum += 1,
            Err(Refused::NotSmaller) => metrics.path_mtu_not_smaller += 1,
            Ok(()) => {
                metrics.path_mtu_reduced += 1;
                self.apply_path_mtu(index);
            }
        }
    }

    /// A segment of subflow `index` with `len` octets of text has arrived.
    pub fn on_text_arrived(&mut self, index: usize, len: usize) {
        let packet_len = self.packet_len(index, len);
        self.subflows[index].path_mtu.on_arrived(packet_len);
    }

    /// Octets of a packet with `len` octets of text.
    fn packet_len(&self, index: usize, len: usize) -> usize {
        let subflow = &self.subflows[index];
        subflow.headers_len() + self.text_options_len_now(index) + len
    }

    /// The retransmission timer of subflow `index` has expired, and was told so.
    pub fn look_for_black_hole(&mut self, index: usize, now: Instant, metrics: &mut Metrics) {
        let Some(oldest) = self.subflows[index].tx.flight().next() else {
            return;
        };
        let packet_len = self.packet_len(index, oldest.len);
        let subflow = &mut self.subflows[index];
        let in_a_row = subflow.tx.rtt.backoff();
        if subflow.path_mtu.on_timeout(now, in_a_row, packet_len) {
            metrics.path_mtu_black_holes += 1;
            self.apply_path_mtu(index);
        }
    }

    /// Octets of text of a probe that is to be the next segment of subflow `index`.
    // RFC 4821 §7.4.
    pub fn mtu_probe_len(&self, index: usize, now: Instant) -> Option<usize> {
        let subflow = &self.subflows[index];
        let packet_len = subflow.path_mtu.probe_due(now)?;
        let options = self.text_options_len_now(index);
        let probe_len = packet_len.checked_sub(subflow.headers_len() + options)?;
        let needed = probe_len + SEGMENTS_BEHIND_PROBE * subflow.tx.mss;
        let room = self.snd.window_room().min(subflow.tx.window_room());
        let cwnd = subflow.tx.cc.cwnd();
        // What is in flight makes room, when it is acknowledged, for what follows the probe.
        let fits = subflow.tx.may_probe_mtu()
            && self.snd.reinject.is_empty()
            && self.snd.unsent() >= needed
            && room >= probe_len
            && subflow.tx.snd_wnd.min(cwnd) >= needed
            && subflow.tx.in_flight() + probe_len <= cwnd;
        fits.then_some(probe_len)
    }

    /// The segment of subflow `index` that left last is a probe of `len` octets of text.
    pub fn on_mtu_probe_sent(&mut self, index: usize, len: usize, metrics: &mut Metrics) {
        let size = self.packet_len(index, len);
        let subflow = &mut self.subflows[index];
        subflow.tx.on_mtu_probe_sent();
        subflow.path_mtu.on_probe_sent(size);
        metrics.mtu_probes += 1;
    }

    /// After anything that may have told what became of the probe of subflow `index`.
    pub fn settle_mtu_probe(&mut self, index: usize, now: Instant, metrics: &mut Metrics) {
        let Some(fate) = self.subflows[index].tx.take_mtu_probe_fate() else {
            return;
        };
        match fate {
            ProbeFate::Arrived => metrics.mtu_probe_success += 1,
            ProbeFate::Lost | ProbeFate::TimedOut => metrics.mtu_probe_fail += 1,
            ProbeFate::Inconclusive => {}
        }
        let subflow = &mut self.subflows[index];
        let tx = &subflow.tx;
        // RFC 4821 §7.6.2. After a timeout cwnd is no measure, but ssthresh is.
        let window = match tx.cc.ssthresh() {
            usize::MAX => tx.cc.cwnd(),
            ssthresh => tx.cc.cwnd().max(ssthresh),
        };
        let round_trips = u32::try_from(window / tx.mss).unwrap_or(u32::MAX);
        let window_time = tx
            .rtt
            .srtt()
            .unwrap_or(Duration::ZERO)
            .saturating_mul(round_trips);
        subflow.path_mtu.on_probe_result(now, fate, window_time);
        self.apply_path_mtu(index);
    }

    fn apply_path_mtu(&mut self, index: usize) {
        let options = self.text_options_len(index);
        let subflow = &mut self.subflows[index];
        let mss = subflow.path_mtu.current() - subflow.headers_len();
        subflow.tx.set_mss(mss, mss - options);
    }
}
