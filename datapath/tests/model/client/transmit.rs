//! What goes to the server.

use super::super::subflow::Signals;
use super::*;

impl Client {
    /// The next frame to send now, and its subflow.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(usize, Vec<u8>)> {
        for _ in 0..self.subflows.len() {
            let i = self.next_subflow % self.subflows.len();
            self.next_subflow += 1;
            if let Some(frame) = self.poll_subflow(now, i) {
                return Some((i, frame));
            }
        }
        None
    }

    fn poll_subflow(&mut self, now: Instant, i: usize) -> Option<Vec<u8>> {
        if let Some(fastclose) = self.subflows[i].reset_due.take() {
            return self.subflows[i]
                .alive()
                .then(|| self.emit_reset(now, i, fastclose));
        }
        if let Some(seq) = self.subflows[i].answer_due.take() {
            return Some(self.emit_answer(i, seq));
        }
        let s = &mut self.subflows[i];
        if !s.alive() {
            return None;
        }
        if s.fastclosing {
            return std::mem::take(&mut s.needs_ack).then(|| self.emit_fastclose(now, i));
        }
        if let Some(at) = s.sent.iter().position(|sent| sent.due && !sent.sacked) {
            s.sent[at].due = false;
            s.arm(now);
            let sent = s.sent[at].clone();
            return Some(self.emit_sent(now, i, &sent));
        }
        if s.open() && self.established() {
            if let Some(sent) = self.next_data(now, i).or_else(|| self.next_fin(i)) {
                let s = &mut self.subflows[i];
                s.snd_nxt = sent.end();
                s.fin_sent |= sent.fin;
                s.sent.push_back(sent.clone());
                s.arm(now);
                return Some(self.emit_sent(now, i, &sent));
            }
            // The pure third ACK goes before a DATA_FIN: they do not fit in one.
            if self.data_fin_due(now) && !self.subflows[i].needs_ack {
                self.data_fin_sent = true;
                self.data_fin_timer = Some(now + DATA_RTO / 4);
                let mut options = self.options(now, i);
                options.mptcp.capable = None;
                options.sack = Default::default();
                options.mptcp.dss = Some(self.data_fin());
                return Some(self.emit(i, TcpFlags::ACK, self.subflows[i].snd_nxt, options, &[]));
            }
        }
        let s = &mut self.subflows[i];
        if s.needs_ack && !matches!(s.state, State::SynSent | State::SynReceived) {
            if s.state == State::JoinWait && s.timer.is_none() {
                s.timer = Some(now + JOIN_ACK_RTO);
            }
            let mut options = self.options(now, i);
            self.add_signals(i, &mut options);
            let bare = self.mode == Mode::Multipath && options.mptcp.dss.is_none();
            let frame = self.emit(i, TcpFlags::ACK, self.subflows[i].snd_nxt, options, &[]);
            // What was to be acknowledged is so after an address that took all the room.
            self.subflows[i].needs_ack = bare && options.mptcp.add_addr.is_some();
            return Some(frame);
        }
        None
    }

    /// What is to be told once, if there is room beside the DATA_ACK.
    fn add_signals(&mut self, i: usize, options: &mut TcpOptions) {
        let signals = &mut self.subflows[i].signals;
        if !self.confirmed || signals.is_empty() {
            return;
        }
        let Signals {
            prio,
            add_addr,
            remove_addr,
        } = std::mem::take(signals);
        let mut with = *options;
        // RFC 8684 §3.4.1: with a signal it is no duplicate ACK; blocks can wait.
        with.sack = Default::default();
        (with.mptcp.prio, with.mptcp.add_addr) = (prio, add_addr);
        with.mptcp.remove_addr = remove_addr;
        // An IPv6 address does not beside timestamps and DATA_ACK.
        if !with.fits() {
            with.mptcp.dss = None;
        }
        if with.fits() {
            *options = with;
        }
    }

    /// The next stretch of the stream for subflow `i`: first what another one lost.
    fn next_data(&mut self, now: Instant, i: usize) -> Option<Sent> {
        let others = self.subflows.iter().any(|s| s.open() && !s.stale());
        let s = &self.subflows[i];
        if s.in_flight() >= self.config.flight_segments || (s.stale() && others) || s.leaving {
            return None;
        }
        let multipath = self.mode == Mode::Multipath;
        let segment = match self.config.random_segments {
            false => self.config.segment_bytes,
            true => 1 + self.rng.below(self.config.segment_bytes),
        } as u64;
        // RFC 8684 §3.7: until options are known to pass, a second copy might go into the stream of a
        // server that has fallen back.
        let may_repeat = self.confirmed || !self.config.quirks.distrusts_paths;
        let again = may_repeat.then(|| self.again.pop_front()).flatten();
        let (start, end) = match again {
            Some((start, end)) => {
                let start = start.max(self.data_una);
                let cut = end.min(start + segment);
                if cut < end {
                    self.again.push_front((cut, end));
                }
                (start, cut)
            }
            None => {
                let start = self.data_nxt.min(self.tx.len() as u64);
                let edge = self.peer_edge.min(self.tx.len() as u64);
                if edge <= start {
                    // What is lost at data level comes first: a probe is lost there, too.
                    let wants = start < self.tx.len() as u64
                        && s.in_flight() == 0
                        && self.data_una >= start;
                    if wants && self.persist_timer.is_none() {
                        self.persist_timer = Some(now + PERSIST);
                    }
                    return None;
                }
                (start, edge.min(start + segment))
            }
        };
        let s = &mut self.subflows[i];
        let last = end == self.tx.len() as u64 && self.tx_closed;
        // RFC 6824 §3.1: version 0 has no MP_CAPABLE with data.
        let first = s.role == Role::Initial && s.snd_nxt == 1 + s.syn_text;
        let capable = multipath && self.config.version > 0 && !self.confirmed && first;
        let data_fin = multipath && last && !capable && self.config.data_fin_with_data;
        self.data_fin_sent |= data_fin;
        if data_fin {
            self.data_fin_timer.get_or_insert(now + DATA_RTO / 4);
        }
        if multipath {
            s.carried.push((start, end));
            self.data_timer.get_or_insert(now + DATA_RTO);
        }
        self.data_nxt = self.data_nxt.max(end);
        Some(Sent {
            at: s.snd_nxt,
            payload: self.tx[start as usize..end as usize].to_vec(),
            syn: false,
            fin: false,
            offset: start,
            data_fin,
            capable,
            due: false,
            sacked: false,
            repaired: false,
        })
    }

    /// Our FIN on subflow `i`, when its time has come.
    // RFC 8684 §3.3.3: with the DATA_FINs of both sides acknowledged the subflows close.
    fn next_fin(&self, i: usize) -> Option<Sent> {
        let all_sent = self.tx_closed && self.data_nxt == self.tx.len() as u64;
        let due = match self.mode {
            Mode::Handshake => false,
            Mode::Tcp => all_sent,
            Mode::Multipath if self.config.quirks.no_data_fin => all_sent,
            Mode::Multipath => {
                self.subflows[i].leaving || (self.all_acknowledged() && self.peer_finished())
            }
        };
        due.then(|| Sent {
            at: self.subflows[i].snd_nxt,
            payload: Vec::new(),
            syn: false,
            fin: true,
            offset: self.tx.len() as u64,
            data_fin: false,
            capable: false,
            due: false,
            sacked: false,
            repaired: false,
        })
    }

    fn data_fin_due(&self, now: Instant) -> bool {
        self.mode == Mode::Multipath
            && !self.config.quirks.no_data_fin
            && self.tx_closed
            && self.data_nxt == self.tx.len() as u64
            && !self.all_acknowledged()
            && self.data_fin_timer.is_none_or(|t| t <= now)
    }

    fn data_fin(&self) -> Dss {
        let offset = self.tx.len() as u64;
        let dsn = self.before_first().wrapping_add(1 + offset);
        let checksum = self.checksum.then(|| dss_checksum(dsn, 0, 1, &[]));
        Dss {
            data_ack: Some(self.data_ack()),
            mapping: Some(DssMapping {
                dsn: self.width(dsn),
                subflow_seq: 0,
                len: 1,
                checksum,
            }),
            data_fin: true,
        }
    }

    fn width(&self, value: u64) -> DsnWidth {
        if self.config.eight_octets {
            DsnWidth::Eight(value)
        } else {
            DsnWidth::Four(value as u32)
        }
    }

    fn data_ack(&self) -> DsnWidth {
        let next = self.rx.len() as u64 + u64::from(self.peer_finished());
        let value = self
            .token_and_idsn(self.server_key)
            .1
            .wrapping_add(1 + next);
        // RFC 8684 §3.3.2: 8 octets are answered with 8 octets.
        if self.server_uses_eight_octets {
            DsnWidth::Eight(value)
        } else {
            self.width(value)
        }
    }

    /// Window field for subflow `i`, and the edge in the stream that it stands for.
    pub(super) fn window(&self, i: usize) -> (u16, u64) {
        let s = &self.subflows[i];
        let free = self
            .config
            .receive_buffer_bytes
            .saturating_sub(self.rx.len() - self.read);
        let field = (free >> s.our_scale).min(usize::from(u16::MAX)) as u16;
        (
            field,
            self.rx.len() as u64 + (u64::from(field) << s.our_scale),
        )
    }

    pub(super) fn now_ms(&self, now: Instant) -> u32 {
        (now.as_millis() as u32).wrapping_add(self.config.seed as u32)
    }

    /// Options of an ACK on subflow `i`.
    fn options(&self, now: Instant, i: usize) -> TcpOptions {
        let s = &self.subflows[i];
        let mut options = TcpOptions::default();
        if s.timestamps {
            options.timestamps = Some(Timestamps {
                tsval: self.now_ms(now),
                tsecr: s.ts_recent,
            });
        }
        let third_ack = s.role == Role::Initial && s.snd_nxt == 1 + s.syn_text && !self.confirmed;
        if self.config.quirks.no_options_after_third_ack && third_ack {
            options.mptcp.capable = Some(self.capable_ack());
        }
        if self.mode == Mode::Multipath {
            match s.role {
                Role::Join { hmac, .. } if s.state == State::JoinWait => {
                    options.mptcp.join = Some(MpJoin::Ack { hmac });
                }
                _ if third_ack => options.mptcp.capable = Some(self.capable_ack()),
                _ => {
                    options.mptcp.dss = Some(Dss {
                        data_ack: Some(self.data_ack()),
                        ..Dss::default()
                    })
                }
            }
        }
        if s.sack {
            for (left, right) in s.sack_blocks(self.config.dsack) {
                let before = options;
                options.sack.push(TcpSeq(left), TcpSeq(right));
                if !options.fits() || before.sack == options.sack {
                    return before;
                }
            }
        }
        options
    }

    fn capable_ack(&self) -> MpCapable {
        let wrong = u64::from(self.config.quirks.wrong_capable_key);
        let content = CapableContent::Ack {
            sender_key: self.key,
            receiver_key: self.server_key ^ wrong,
        };
        MpCapable {
            version: self.config.version,
            flags: self.capable_flags(),
            content,
        }
    }

    fn capable_flags(&self) -> u8 {
        let a = if self.config.checksum {
            MpCapable::FLAG_CHECKSUM
        } else {
            0
        };
        let algorithm = match self.config.version {
            0 => MpCapable::FLAG_SHA1,
            _ => MpCapable::FLAG_SHA256,
        };
        algorithm | a
    }

    fn emit_sent(&mut self, now: Instant, i: usize, sent: &Sent) -> Vec<u8> {
        let s = &self.subflows[i];
        if sent.syn && s.state == State::SynReceived {
            let flags = TcpFlags::SYN | TcpFlags::ACK | s.ecn.syn_ack_flags();
            let options = self.syn_ack_options(now, i);
            return self.emit(i, flags, 0, options, &[]);
        }
        if sent.syn {
            let mut options = self.syn_options(now, i);
            let mut flags = TcpFlags::SYN;
            if self.config.ecn {
                flags = flags | TcpFlags::ECE | TcpFlags::CWR;
            }
            // RFC 7413 §4.2.2: copies of a SYN bring neither.
            let first = s.tries == 0 && s.role == Role::Initial;
            let mut text = 0;
            if let Some(cookie) = self.config.fast_open
                && first
            {
                options.fast_open = Some(cookie);
                if !cookie.is_request() {
                    text = self.tx.len().min(self.config.syn_text_bytes);
                }
                self.subflows[i].syn_offered = text as u64;
            }
            let text = self.tx[..text].to_vec();
            return self.emit(i, flags, 0, options, &text);
        }
        let mut options = self.options(now, i);
        if self.mode == Mode::Multipath && !sent.payload.is_empty() {
            // Blocks and a mapping do not fit together.
            options.sack = Default::default();
            let dsn = self.before_first().wrapping_add(1 + sent.offset);
            let len = sent.payload.len() as u16 + u16::from(sent.data_fin);
            // RFC 8684 Appendix B.3: what the SYN brought does not count.
            let subflow_seq = (sent.at - s.syn_text) as u32;
            let checksum = self
                .checksum
                .then(|| dss_checksum(dsn, subflow_seq, len, &sent.payload));
            if sent.capable {
                options.mptcp.dss = None;
                options.mptcp.capable = Some(MpCapable {
                    version: self.config.version,
                    flags: self.capable_flags(),
                    content: CapableContent::Data {
                        sender_key: self.key,
                        receiver_key: self.server_key,
                        data_len: sent.payload.len() as u16,
                        checksum,
                    },
                });
            } else {
                options.mptcp.capable = None;
                options.mptcp.dss = Some(Dss {
                    data_ack: Some(self.data_ack()),
                    mapping: Some(DssMapping {
                        dsn: self.width(dsn),
                        subflow_seq,
                        len,
                        checksum,
                    }),
                    data_fin: sent.data_fin,
                });
            }
        }
        let mut flags = TcpFlags::ACK;
        if sent.fin {
            flags = flags | TcpFlags::FIN;
        }
        if !sent.payload.is_empty() && s.snd_nxt == sent.end() {
            flags = flags | TcpFlags::PSH;
        }
        self.emit(i, flags, sent.at, options, &sent.payload)
    }

    /// Of the answer to a join of the server's.
    fn syn_ack_options(&self, now: Instant, i: usize) -> TcpOptions {
        let s = &self.subflows[i];
        let Role::Joined {
            nonce,
            server_nonce,
            address_id,
        } = s.role
        else {
            panic!("{:?} answers no SYN", s.role);
        };
        let mut options = TcpOptions {
            mss: Some(self.config.mss),
            window_scale: self.config.window_scale.filter(|_| s.scales),
            sack_permitted: s.sack,
            timestamps: s.timestamps.then(|| Timestamps {
                tsval: self.now_ms(now),
                tsecr: s.ts_recent,
            }),
            ..TcpOptions::default()
        };
        let hmac = self.join_hmac(self.key, self.server_key, nonce, server_nonce);
        let first = hmac[..8].try_into().expect("8 of 20 octets");
        let wrong = u64::from(self.config.quirks.wrong_join_hmac);
        let join = MpJoin::SynAck {
            backup: false,
            address_id,
            hmac: u64::from_be_bytes(first) ^ wrong,
            nonce,
        };
        options.mptcp.join = (!self.config.quirks.no_join_option).then_some(join);
        options
    }

    fn syn_options(&self, now: Instant, i: usize) -> TcpOptions {
        let config = &self.config;
        let mut options = TcpOptions {
            mss: Some(config.mss),
            window_scale: config.window_scale,
            sack_permitted: config.sack,
            ..TcpOptions::default()
        };
        if config.timestamps {
            options.timestamps = Some(Timestamps {
                tsval: self.now_ms(now),
                tsecr: 0,
            });
        }
        match self.subflows[i].role {
            Role::Initial if config.multipath => {
                let flags = self.capable_flags();
                let sender_key = self.key;
                let content = match config.version {
                    0 => CapableContent::SynAck { sender_key },
                    _ => CapableContent::Syn,
                };
                options.mptcp.capable = Some(MpCapable {
                    version: self.config.version,
                    flags,
                    content,
                });
            }
            Role::Initial | Role::Joined { .. } => {}
            Role::Join {
                address_id,
                backup,
                nonce,
                ..
            } => {
                let token = self.token();
                options.mptcp.join = Some(MpJoin::Syn {
                    backup,
                    address_id,
                    token,
                    nonce,
                });
            }
        }
        options
    }

    fn emit_reset(&mut self, now: Instant, i: usize, fastclose: bool) -> Vec<u8> {
        let s = &mut self.subflows[i];
        s.state = State::Gone;
        s.stop_timers();
        let mut options = TcpOptions::default();
        if s.timestamps {
            let tsecr = s.ts_recent;
            options.timestamps = Some(Timestamps {
                tsval: self.now_ms(now),
                tsecr,
            });
        }
        if fastclose && self.mode == Mode::Multipath {
            options.mptcp.fastclose = Some(MpFastclose {
                receiver_key: self.server_key,
            });
        }
        let s = &self.subflows[i];
        if self.mode == Mode::Multipath && s.gave_up && !fastclose {
            // RFC 8684 §3.6: middlebox interference. RFC 6824 has no reasons.
            options.mptcp.tcprst = (self.config.version > 0).then_some(MpTcprst {
                transient: false,
                reason: 6,
            });
            options.mptcp.fail = s.fail_dsn.map(|dsn| MpFail { dsn });
        }
        self.carry_again(i);
        let at = self.subflows[i].snd_nxt;
        self.emit(i, TcpFlags::RST | TcpFlags::ACK, at, options, &[])
    }

    /// MP_FASTCLOSE on an ACK, until a reset answers it (RFC 8684 §3.5).
    fn emit_fastclose(&mut self, now: Instant, i: usize) -> Vec<u8> {
        let mut options = self.options(now, i);
        options.sack = Default::default();
        options.mptcp = MptcpOptions::default();
        options.mptcp.fastclose = Some(MpFastclose {
            receiver_key: self.server_key,
        });
        let s = &mut self.subflows[i];
        s.arm(now);
        let at = s.snd_nxt;
        self.emit(i, TcpFlags::ACK, at, options, &[])
    }

    /// RFC 9293 §3.10.7.1: the answer to a segment of a connection that is no more.
    fn emit_answer(&mut self, i: usize, seq: u32) -> Vec<u8> {
        let s = &self.subflows[i];
        let tcp = TcpHeader {
            src_port: s.local.port(),
            dst_port: s.remote.port(),
            seq: TcpSeq(seq),
            ack: TcpSeq(0),
            flags: TcpFlags::RST,
            window: 0,
            urgent: 0,
            options: TcpOptions::default(),
        };
        build(&link(s.iface), s.local, s.remote, 0, &tcp, &[])
    }

    fn emit(
        &mut self,
        i: usize,
        flags: TcpFlags,
        at: u64,
        options: TcpOptions,
        payload: &[u8],
    ) -> Vec<u8> {
        let (window, edge) = self.window(i);
        let unscaled = self.config.receive_buffer_bytes.min(usize::from(u16::MAX)) as u16;
        let s = &mut self.subflows[i];
        let syn = flags.contains(TcpFlags::SYN);
        let ack = if !flags.contains(TcpFlags::ACK) {
            0
        } else {
            s.irs.wrapping_add(s.rcv_nxt as u32)
        };
        if syn {
            // RFC 7323 §2.2: never scaled, and all that may come before our third ACK.
            s.edge = s.edge.max(1 + u64::from(unscaled));
            s.edge_max = s.edge_max.max(s.edge);
            if s.role == Role::Initial {
                self.our_edge = self.our_edge.max(unscaled.into());
            }
        } else {
            s.needs_ack = false;
            (s.unacked, s.ack_at) = (0, None);
            let offered = s.rcv_nxt + (u64::from(window) << s.our_scale);
            s.edge = match std::mem::take(&mut s.withdraws) {
                true => offered,
                false => s.edge.max(offered),
            };
            s.edge_max = s.edge_max.max(s.edge);
            // RFC 2883 §4: what came twice is reported once.
            s.dsack = None;
            if !options.sack.is_empty() {
                s.after_sack(self.config.quirks.reneges_after);
            }
            self.our_edge = self.our_edge.max(edge);
        }
        let (ecn, codepoint) = s.ecn.mark(at, payload.len());
        let tcp = TcpHeader {
            src_port: s.local.port(),
            dst_port: s.remote.port(),
            seq: TcpSeq(s.iss.wrapping_add(at as u32)),
            ack: TcpSeq(ack),
            flags: flags | ecn,
            window: if syn { unscaled } else { window },
            urgent: 0,
            options,
        };
        build(&link(s.iface), s.local, s.remote, codepoint, &tcp, payload)
    }
}

/// One frame.
fn build(
    link: &Link,
    from: SocketAddr,
    to: SocketAddr,
    traffic_class: u8,
    tcp: &TcpHeader,
    payload: &[u8],
) -> Vec<u8> {
    let start = frame::header_len(link, &from.ip(), &tcp.options);
    let mut octets = vec![0; start + payload.len()];
    octets[start..].copy_from_slice(payload);
    let sum = ones_complement(payload);
    let len = frame::emit(
        &mut octets,
        link,
        from.ip(),
        to.ip(),
        traffic_class,
        tcp,
        payload.len(),
        sum,
    );
    assert_eq!(len, octets.len());
    octets
}
