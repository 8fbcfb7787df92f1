//! Frames go out: what a subflow has to send, most urgent first, written once into a free frame.

use super::address::{LocalAddress, Signal};
use super::connection::{Connection, End, Mode};
use super::subflow::{Announcement, Handshake, SentMapping};
use crate::crypto;
use crate::metrics::Metrics;
use crate::seq::{DataSeq, TcpSeq};
use crate::tcp::State;
use crate::tcp::sender::Sent;
use crate::time::Instant;
use crate::wire::checksum;
use crate::wire::frame;
use crate::wire::mptcp::{
    AddAddr, CapableContent, DsnWidth, Dss, DssMapping, MpCapable, MpFail, MpFastclose, MpJoin,
    MpPrio,
};
use crate::wire::tcp::{SackBlocks, TcpFlags, TcpOptions, Timestamps};

/// Octets that headers take at most, from Ethernet with two tags to TCP options.
const HEADERS_MAX: usize = 128;

impl Connection {
    /// Writes the next frame of subflow `index`; returns its length, 0 if there is nothing to send.
    pub fn transmit(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        metrics: &mut Metrics,
    ) -> usize {
        let Some(subflow) = self.subflows.get(index) else {
            return 0;
        };
        if subflow.reset.is_some() {
            return self.transmit_reset(index, frame, metrics);
        }
        if let Some(wait) = self.fastclose {
            let due = wait.due && wait.subflow == index;
            return if due {
                self.transmit_fastclose(index, now, frame, metrics)
            } else {
                0
            };
        }
        if subflow.state.is_opening() {
            return if subflow.handshake_due {
                self.transmit_handshake(index, now, frame, metrics)
            } else if subflow.sends_early() {
                let payload_max = self.payload_max(index, frame);
                self.transmit_new(index, now, frame, payload_max, metrics)
            } else {
                0
            };
        }
        let reports = subflow.rx.out_of_order_bytes() > 0
            || subflow.sack_permitted && subflow.rx.has_duplicate();
        if subflow.rx.ack_now && reports || subflow.fail_due.is_some() {
            // RFC 5681 §4.2, RFC 2018 §4, RFC 2883 §4: a hole or a duplicate is told at once and by
            // itself: text would count as no duplicate ACK and leaves SACK no room. Nor MP_FAIL.
            return self.transmit_ack(index, now, frame, metrics);
        }
        if self.signal_due(index) {
            // Before text: there is little of it, and text may go on for ever. After an acknowledgment
            // that is due: an address may leave no room for the DATA_ACK, and without one the peer could
            // take it for TCP's (RFC 8684 §3.7).
            let rx = &self.subflows[index].rx;
            if rx.ack_now || rx.delayed_ack_at.is_some() {
                return self.transmit_ack(index, now, frame, metrics);
            }
            let written = self.transmit_signal(index, now, frame, metrics);
            if written > 0 {
                return written;
            }
        }
        let written = self.transmit_text(index, now, frame, metrics);
        if written > 0 {
            return written;
        }
        if self.fin_ready(index) {
            return self.transmit_fin(index, now, frame, metrics);
        }
        let subflow = &self.subflows[index];
        if subflow.data_fin_due || subflow.rx.ack_now || subflow.fourth_ack_due || subflow.probe_due
        {
            return self.transmit_ack(index, now, frame, metrics);
        }
        0
    }

    /// Retransmission, then reinjection, then new data.
    fn transmit_text(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        metrics: &mut Metrics,
    ) -> usize {
        let payload_max = self.payload_max(index, frame);
        let may_note = self.may_note_segment(&self.subflows[index]);
        let subflow = &mut self.subflows[index];
        if subflow.tx.retransmission_ready()
            && let Some(lost) = subflow.tx.next_lost(payload_max, may_note)
        {
            return self.retransmit(index, now, frame, lost.at, lost.sent, metrics);
        }
        let written = self.transmit_new(index, now, frame, payload_max, metrics);
        if written == 0
            && let Some((at, sent)) = self.subflows[index].tx.tail_to_probe()
        {
            return self.retransmit(index, now, frame, at, sent, metrics);
        }
        written
    }

    /// Octets of text that a segment has room for.
    fn payload_max(&self, index: usize, frame: &[u8]) -> usize {
        let options_len = self.text_options_len(index);
        let room = frame.len().saturating_sub(HEADERS_MAX);
        let mss = self.subflows[index].tx.mss;
        mss.saturating_sub(options_len).min(room)
    }

    /// A segment in flight leaves again, under its mapping.
    fn retransmit(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        at: usize,
        sent: Sent<SentMapping>,
        metrics: &mut Metrics,
    ) -> usize {
        metrics.tcp_retrans_segs += 1;
        let dsn = sent.mark.dsn + sent.seq.distance(sent.mark.seq);
        let mut mapping = sent.mark;
        let written = self.write_segment(
            index,
            now,
            frame,
            sent.seq,
            sent.fin,
            dsn,
            sent.len,
            &mut mapping,
        );
        let subflow = &mut self.subflows[index];
        subflow.tx.on_retransmitted(now, at);
        subflow.bytes_sent += sent.len as u64;
        written
    }

    /// A reinjection, or else new data, of at most `payload_max` octets.
    fn transmit_new(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        payload_max: usize,
        metrics: &mut Metrics,
    ) -> usize {
        let subflow = &self.subflows[index];
        if !subflow.may_send()
            || subflow.fin_wanted && self.mode == Mode::Mptcp
            || self.text_goes_to() != Some(index)
        {
            return 0;
        }
        let room = frame.len().saturating_sub(HEADERS_MAX);
        let probe_len = self.mtu_probe_len(index, now).filter(|len| *len <= room);
        let payload_max = probe_len.unwrap_or(payload_max);
        let window_room = self.subflows[index].tx.window_room();
        let reinjection = self.snd.take_reinject(payload_max.min(window_room));
        let Some((dsn, len)) = reinjection.or_else(|| self.next_new_data(index, payload_max))
        else {
            return 0;
        };
        let last = reinjection.is_none() && self.snd.fin_queued && dsn + len == self.snd.end();
        let data_fin = last && self.mode == Mode::Mptcp;
        // The FIN of plain TCP rides on the last octets, unless the handshake is not over (RFC 9293
        // §3.10.4: then it is queued).
        let may_fin = self.mode == Mode::Tcp && self.subflows[index].state.may_send();
        let fin = last && may_fin && len < window_room && probe_len.is_none();
        let seq = self.subflows[index].tx.snd_nxt;
        let mapping = SentMapping {
            seq,
            dsn,
            len: (len + usize::from(data_fin)) as u16,
            checksum: None,
            data_fin,
            announced: Announcement::Mapping,
        };
        let mut mapping = self.announce(mapping);
        let written = self.write_segment(index, now, frame, seq, fin, dsn, len, &mut mapping);
        self.on_announced(mapping.announced, seq + len + usize::from(fin), metrics);
        let subflow = &mut self.subflows[index];
        subflow.on_mapped(seq, dsn);
        subflow.before_sent(now);
        subflow.tx.on_sent(now, len, fin, mapping);
        subflow.bytes_sent += len as u64;
        if subflow.state == State::SynReceived {
            // The timer is the SYN/ACK's: before that has come the peer takes in nothing.
            subflow.tx.hold_tail_probe();
        }
        if reinjection.is_some() {
            subflow.reinjections.on_sent(seq + len, dsn);
            metrics.reinjected_segments += 1;
        } else {
            self.snd.on_sent(len, data_fin || fin);
        }
        if fin {
            subflow.on_fin_sent();
            metrics.fins_sent += 1;
        }
        if probe_len == Some(len) {
            self.on_mtu_probe_sent(index, len, metrics);
        }
        self.arm_data_timer(now);
        written
    }

    fn transmit_fin(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        metrics: &mut Metrics,
    ) -> usize {
        let subflow = &self.subflows[index];
        let seq = subflow.tx.snd_nxt;
        let dsn = self.snd.end();
        let mut mark = self.announce(SentMapping {
            seq,
            dsn,
            len: 0,
            checksum: None,
            data_fin: false,
            // A FIN takes no number of the stream.
            announced: Announcement::Nothing,
        });
        let written = self.write_segment(index, now, frame, seq, true, dsn, 0, &mut mark);
        self.on_announced(mark.announced, seq + 1, metrics);
        if self.mode == Mode::Tcp {
            self.snd.on_fin_sent();
        }
        let subflow = &mut self.subflows[index];
        subflow.before_sent(now);
        subflow.tx.on_sent(now, 0, true, mark);
        subflow.on_fin_sent();
        metrics.fins_sent += 1;
        written
    }

    /// What leaves next under `mapping` as this mode has it.
    fn announce(&self, mut mapping: SentMapping) -> SentMapping {
        if self.mode == Mode::Mptcp {
            return mapping;
        }
        mapping.announced = Announcement::Nothing;
        if let Some(from) = self.infinite_map_due {
            // RFC 8684 §3.7: it acts retroactively.
            let before = mapping.dsn.distance(from.min(mapping.dsn));
            mapping.seq = mapping.seq - before;
            mapping.dsn = mapping.dsn - before;
            mapping.announced = Announcement::Infinite;
        }
        mapping
    }

    /// A segment up to `end` has left.
    fn on_announced(&mut self, announced: Announcement, end: TcpSeq, metrics: &mut Metrics) {
        if announced == Announcement::Infinite {
            // RFC 8684 §3.7: one, and it is the last mapping.
            metrics.infinite_map_tx += 1;
            self.infinite_map_due = None;
            self.mapped_to = Some(end);
        }
    }

    /// A segment without text: acknowledgment, window update, probe, fourth ACK or bare DATA_FIN.
    fn transmit_ack(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        metrics: &mut Metrics,
    ) -> usize {
        let subflow = &self.subflows[index];
        // RFC 9293 §3.8.6.1: a probe is a segment the peer must answer: one octet before what it
        // expects next.
        // The peer takes nothing else in from it, so what else is due goes first.
        let others_due = subflow.data_fin_due || subflow.rx.ack_now || subflow.fourth_ack_due;
        let probes = subflow.probe_due && !others_due;
        let seq = if probes {
            subflow.tx.snd_una - 1
        } else {
            subflow.tx.snd_nxt
        };
        let data_fin = subflow.data_fin_due && self.mode == Mode::Mptcp && self.snd.fin_queued;
        let mut options = self.base_options(index, now);
        if data_fin && let Some(dss) = &mut options.mptcp.dss {
            // RFC 8684 §3.3.3: without data it maps nothing: subflow sequence 0, length 1.
            let dsn = self.snd.end();
            dss.data_fin = true;
            dss.mapping = Some(DssMapping {
                dsn: DsnWidth::Eight(dsn.0),
                subflow_seq: 0,
                len: 1,
                checksum: self.checksum.then(|| checksum::dss(dsn.0, 0, 1, 0)),
            });
        } else {
            if let Some(dsn) = self.subflows[index].fail_due.take() {
                metrics.mp_fail_tx += 1;
                options.mptcp.fail = Some(MpFail { dsn: dsn.0 });
            }
            let room = (TcpOptions::MAX_LEN - options.len()).saturating_sub(4) / 8;
            if self.subflows[index].sack_permitted {
                self.add_sack(index, &mut options.sack, room, metrics);
            }
        }
        let written = self.write_headers(index, frame, seq, TcpFlags::ACK, options, 0, 0);
        if data_fin {
            if !self.snd.fin_sent() {
                self.snd.on_fin_sent();
            }
            self.arm_data_timer(now);
        }
        let subflow = &mut self.subflows[index];
        subflow.data_fin_due = false;
        subflow.fourth_ack_due = false;
        subflow.probe_due &= !probes;
        if subflow.state == State::Closing && subflow.tx.flight_is_empty() {
            self.enter_time_wait(index);
        }
        written
    }

    /// MP_PRIO, or an address told, echoed or taken back, on an ACK of its own (RFC 8684 §3.4.1).
    fn transmit_signal(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        metrics: &mut Metrics,
    ) -> usize {
        let mut options = self.base_options(index, now);
        let subflow = &mut self.subflows[index];
        let local_port = subflow.local.port();
        if std::mem::take(&mut subflow.prio_due) {
            metrics.mp_prio_tx += 1;
            options.mptcp.prio = Some(MpPrio {
                backup: subflow.local_backup,
                address_id: None,
            });
        } else {
            let rto = subflow.tx.rtt.rto();
            match self.addresses.take_signal(now, rto) {
                Some(Signal::Echo(echo)) => {
                    metrics.echo_add_tx += 1;
                    options.mptcp.add_addr = Some(echo);
                }
                Some(Signal::Remove(remove_addr)) => {
                    metrics.rm_addr_tx += 1;
                    options.mptcp.remove_addr = Some(remove_addr);
                }
                Some(Signal::Add(address)) => {
                    metrics.add_addr_tx += 1;
                    // It may leave no room for a DATA_ACK, so it goes without in every case, as Linux
                    // has it.
                    options.mptcp.dss = None;
                    options.mptcp.add_addr = Some(self.add_addr(address, local_port));
                }
                None => return 0,
            }
        }
        if !options.fits() {
            options.mptcp.dss = None;
        }
        let seq = self.subflows[index].tx.snd_nxt;
        let written = self.write_headers(index, frame, seq, TcpFlags::ACK, options, 0, 0);
        self.subflows[index].signals.on_sent(now);
        written
    }

    /// The option for an address of ours on a subflow that has `local_port` here.
    fn add_addr(&self, address: LocalAddress, local_port: u16) -> AddAddr {
        // RFC 8684 §3.4.1: without a port it is that of the subflow; Linux takes that of the initial
        // one.
        let announced = address.announced;
        let implied = announced.port() == local_port && local_port == self.local_addr.port();
        let port = (!implied).then_some(announced.port());
        self.version
            .add_addr(self.local_key, self.remote_key, &address, port)
    }

    /// What came twice first (RFC 2883 §4), then what lies beyond holes, `room` blocks at most.
    fn add_sack(
        &mut self,
        index: usize,
        sack: &mut SackBlocks,
        room: usize,
        metrics: &mut Metrics,
    ) {
        let rx = &mut self.subflows[index].rx;
        if room > 0
            && let Some((left, right)) = rx.take_duplicate()
        {
            sack.push(left, right);
            let counter = if left.before(rx.rcv_nxt) {
                &mut metrics.dsack_old_sent
            } else {
                &mut metrics.dsack_ofo_sent
            };
            *counter += 1;
        }
        rx.add_sack_blocks(sack, room.min(SackBlocks::MAX));
    }

    /// What the present state of the handshake sends, for the first time or again.
    fn transmit_handshake(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        metrics: &mut Metrics,
    ) -> usize {
        let subflow = &mut self.subflows[index];
        subflow.handshake_due = false;
        subflow.handshake_transmissions += 1;
        subflow.handshake_sent_at = Some(now);
        // What comes again meanwhile is answered again, but buys no more time.
        let retry_at = now + subflow.tx.rtt.rto();
        subflow.tx.rto_at.get_or_insert(retry_at);
        match subflow.state {
            State::SynSent => self.transmit_syn(index, now, frame),
            State::SynReceived => self.transmit_syn_ack(index, now, frame, metrics),
            _ => self.transmit_join_ack(index, now, frame),
        }
    }

    fn transmit_syn_ack(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        metrics: &mut Metrics,
    ) -> usize {
        let subflow = &mut self.subflows[index];
        let mut options = TcpOptions {
            mss: Some(subflow.local_mss),
            window_scale: subflow.window_scaling.then_some(subflow.rcv_wscale),
            sack_permitted: subflow.sack_permitted,
            timestamps: subflow.ts.map(|ts| ts.option(now)),
            // RFC 7413 §4.2.1: copies go without, should something on the way not bear it.
            fast_open: subflow.cookie_due.take(),
            ..TcpOptions::default()
        };
        match subflow.handshake {
            Handshake::Tcp => {}
            Handshake::Capable => {
                metrics.mp_capable_syn_ack_tx += 1;
                options.mptcp.capable = Some(MpCapable {
                    version: self.version.number(),
                    flags: self
                        .version
                        .capable_flags(self.checksum, self.settings.deny_join_initial),
                    content: CapableContent::SynAck {
                        sender_key: self.local_key,
                    },
                });
            }
            Handshake::Join {
                local_nonce,
                remote_nonce,
            } => {
                metrics.mp_join_syn_ack_tx += 1;
                // RFC 8684 §3.2: HMAC-B, the listener's key and nonce first.
                let (local_key, remote_key) = (self.local_key, self.remote_key);
                let hmac = self
                    .version
                    .join_hmac(local_key, remote_key, local_nonce, remote_nonce);
                options.mptcp.join = Some(MpJoin::SynAck {
                    backup: subflow.local_backup,
                    address_id: subflow.local_id,
                    hmac: crypto::leftmost_64(&hmac),
                    nonce: local_nonce,
                });
            }
        }
        let flags = TcpFlags::SYN | TcpFlags::ACK | subflow.ecn.syn_ack_flags();
        self.write_syn(index, frame, flags, options)
    }

    /// Our SYN, with ACK or without.
    pub(super) fn write_syn(
        &mut self,
        index: usize,
        frame: &mut [u8],
        flags: TcpFlags,
        options: TcpOptions,
    ) -> usize {
        let subflow = &mut self.subflows[index];
        // RFC 7323 §2.2: the window of a SYN is never scaled.
        let counted = !subflow.initial || subflow.fast_open;
        let window = if !counted {
            self.rcv.limit_bytes()
        } else {
            self.rcv.window_bytes()
        };
        let window = window.min(usize::from(u16::MAX));
        subflow.rx.on_ack_sent(window);
        if subflow.tx.snd_nxt == subflow.tx.iss {
            subflow.tx.snd_nxt = subflow.tx.iss + 1;
        }
        if counted {
            self.rcv.on_advertised(window);
        }
        let subflow = &self.subflows[index];
        let window = window as u16;
        subflow.emit(frame, subflow.tx.iss, flags, 0, window, options, 0, 0)
    }

    /// MP_FASTCLOSE on an ACK (RFC 8684 §3.5, option A).
    fn transmit_fastclose(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        metrics: &mut Metrics,
    ) -> usize {
        let seq = self.subflows[index].tx.snd_nxt;
        // With a DATA_ACK: a client that has had none yet takes an ACK without for a fallback, and Linux
        // takes MP_FASTCLOSE then for nothing at all.
        let mut options = self.base_options(index, now);
        options.mptcp.fastclose = Some(MpFastclose {
            receiver_key: self.remote_key,
        });
        metrics.mp_fastclose_tx += 1;
        self.on_fastclose_sent(now);
        self.write_headers(index, frame, seq, TcpFlags::ACK, options, 0, 0)
    }

    /// The last segment of a subflow.
    fn transmit_reset(&mut self, index: usize, frame: &mut [u8], metrics: &mut Metrics) -> usize {
        let subflow = &self.subflows[index];
        if subflow.state == State::SynSent {
            // RFC 9293 §3.10.5: there is nobody yet to tell.
            self.drop_subflow(index, End::PeerAborted);
            return 0;
        }
        let reset = subflow.reset.unwrap_or_default();
        let mut options = TcpOptions {
            // RFC 7323 §5.2.
            timestamps: subflow.ts.map(|ts| Timestamps {
                tsval: 0,
                tsecr: ts.recent(),
            }),
            ..TcpOptions::default()
        };
        options.mptcp.fastclose = reset
            .fastclose_key
            .filter(|_| self.version.has_fastclose_on_reset())
            .map(|receiver_key| MpFastclose { receiver_key });
        options.mptcp.tcprst = reset.reason.filter(|_| self.version.gives_reasons());
        options.mptcp.fail = reset.fail_dsn.map(|dsn| MpFail { dsn });
        metrics.resets_sent += 1;
        metrics.mp_rst_tx += u64::from(options.mptcp.tcprst.is_some());
        metrics.mp_fastclose_tx += u64::from(options.mptcp.fastclose.is_some());
        metrics.mp_fail_tx += u64::from(reset.fail_dsn.is_some());
        let flags = TcpFlags::RST | TcpFlags::ACK;
        let written = subflow.emit(frame, subflow.tx.snd_nxt, flags, 0, 0, options, 0, 0);
        if self.end.is_none() {
            self.reinject_flight(index);
        }
        self.drop_subflow(index, End::PeerAborted);
        written
    }

    /// Octets of options on a segment with text that leaves now.
    pub fn text_options_len_now(&self, index: usize) -> usize {
        let wide = self.eight_octets || self.mode == Mode::Tcp;
        let narrow = if wide { 0 } else { 4 };
        self.text_options_len(index) - narrow
    }

    /// Octets of options to leave room for on a segment with text.
    pub fn text_options_len(&self, index: usize) -> usize {
        // Aligned to four octets each: timestamps 12; DSS 4 + DATA_ACK + DSN + 6, checksum 2. The
        // DATA_ACK is taken at 8 octets: a peer that changes to those must not make a segment grow
        // when it is sent again.
        let timestamps = if self.subflows[index].ts.is_some() {
            12
        } else {
            0
        };
        // After a fallback, what left under a mapping leaves under it again.
        let una = self.subflows[index].tx.snd_una;
        let mapped = self.mode == Mode::Mptcp
            || self.infinite_map_due.is_some()
            || self.mapped_to.is_some_and(|end| una.before(end));
        timestamps + if mapped { 28 } else { 0 }
    }

    /// Timestamps, and DSS with the DATA_ACK (RFC 8684 §3.3.2: on every segment that may carry it).
    fn base_options(&self, index: usize, now: Instant) -> TcpOptions {
        let mut options = TcpOptions {
            timestamps: self.subflows[index].ts.map(|ts| ts.option(now)),
            ..TcpOptions::default()
        };
        if self.mode == Mode::Mptcp {
            options.mptcp.dss = Some(Dss {
                data_ack: Some(self.width(self.rcv.rcv_nxt)),
                mapping: None,
                data_fin: false,
            });
        }
        options
    }

    /// A DATA_ACK in as many octets as the peer's own numbers need (RFC 8684 §3.3.2). Ours have 8
    /// always, so that none is ambiguous (§3.3.1).
    fn width(&self, dsn: DataSeq) -> DsnWidth {
        if self.eight_octets {
            DsnWidth::Eight(dsn.0)
        } else {
            DsnWidth::Four(dsn.0 as u32)
        }
    }

    /// Text or FIN under its mapping, which gets its checksum here, once, if one was agreed.
    #[expect(clippy::too_many_arguments, reason = "all of it names one segment")]
    fn write_segment(
        &mut self,
        index: usize,
        now: Instant,
        frame: &mut [u8],
        seq: TcpSeq,
        fin: bool,
        dsn: DataSeq,
        len: usize,
        mapping: &mut SentMapping,
    ) -> usize {
        let mut options = self.base_options(index, now);
        if mapping.announced != Announcement::Nothing {
            let infinite = mapping.announced == Announcement::Infinite;
            let dss = options.mptcp.dss.get_or_insert_default();
            dss.data_fin = mapping.data_fin;
            dss.mapping = Some(DssMapping {
                dsn: DsnWidth::Eight(mapping.dsn.0),
                subflow_seq: self.subflows[index].relative_sent(mapping.seq),
                len: if infinite { 0 } else { mapping.len },
                // RFC 8684 §3.3.1: that of an infinite mapping is 0.
                checksum: self.checksum.then_some(0),
            });
        }
        let subflow = &self.subflows[index];
        let at = frame::header_len(&subflow.link, &subflow.local.ip(), &options);
        // A FIN that leaves again has no octets, and those before it may be released by now.
        let (a, b): (&[u8], &[u8]) = match len {
            0 => (&[], &[]),
            len => self.snd.octets(dsn, len),
        };
        debug_assert_eq!(a.len() + b.len(), len, "octets in flight are kept");
        let mut sum = checksum::copy_and_sum(&mut frame[at..at + a.len()], a);
        if !b.is_empty() {
            let second = checksum::copy_and_sum(&mut frame[at + a.len()..at + len], b);
            sum = checksum::combine_at(sum, second, a.len());
        }
        if let Some(dss) = &mut options.mptcp.dss
            && let Some(on_wire) = &mut dss.mapping
            && mapping.announced == Announcement::Mapping
            && self.checksum
        {
            // RFC 8684 §3.3.1: over the pseudo-header and the octets, the sum of which is known.
            let value = *mapping.checksum.get_or_insert_with(|| {
                checksum::dss(mapping.dsn.0, on_wire.subflow_seq, mapping.len, sum)
            });
            on_wire.checksum = Some(value);
        }
        let mut flags = TcpFlags::ACK;
        if fin {
            flags = flags | TcpFlags::FIN;
        }
        if len > 0 && dsn + len == self.snd.end() {
            flags = flags | TcpFlags::PSH;
        }
        self.write_headers(index, frame, seq, flags, options, len, sum)
    }

    #[expect(clippy::too_many_arguments, reason = "all of it names one segment")]
    pub(super) fn write_headers(
        &mut self,
        index: usize,
        frame: &mut [u8],
        seq: TcpSeq,
        flags: TcpFlags,
        options: TcpOptions,
        len: usize,
        sum: u16,
    ) -> usize {
        let (window, window_bytes) = self.advertised_window(index);
        self.rcv.on_advertised(window_bytes);
        let subflow = &mut self.subflows[index];
        subflow.rx.on_ack_sent(window_bytes);
        let new_text = len > 0 && seq == subflow.tx.snd_nxt;
        let (ecn_flags, codepoint) = subflow.ecn.mark(new_text);
        let flags = flags | ecn_flags;
        subflow.emit(frame, seq, flags, codepoint, window, options, len, sum)
    }
}
