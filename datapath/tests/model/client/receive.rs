//! What comes from the server, and whether it may.

use super::super::subflow::unwrap;
use super::*;

impl Client {
    pub fn on_segment_arrived(
        &mut self,
        now: Instant,
        iface: IfaceId,
        number: u64,
        segment: &Segment<'_>,
    ) {
        let header = &segment.tcp;
        let to = SocketAddr::new(segment.dst, header.dst_port);
        let from = SocketAddr::new(segment.src, header.src_port);
        assert_eq!(
            segment.link,
            link(iface).reversed(),
            "link addresses are not turned round"
        );
        let mut subflows = self.subflows.iter();
        let known = subflows.rposition(|s| s.local == to && s.remote == from);
        let is_free = known.is_none_or(|i| !self.subflows[i].alive() && !self.subflows[i].vanished);
        let opens = header.flags.contains(TcpFlags::SYN) && !header.flags.contains(TcpFlags::ACK);
        if opens
            && is_free
            && let Some(&(_, address_id)) = self.listening.iter().find(|(at, _)| *at == to)
        {
            self.on_join_syn(iface, segment, address_id);
            return;
        }
        let Some(i) = known else {
            panic!("the server sent from {from} to {to}, where there is no subflow");
        };
        let s = &mut self.subflows[i];
        if opens && s.alive() && s.state != State::SynReceived {
            // RFC 5961 §4.2: a challenge, whose answer ends a flow that the server has no more. One SYN
            // that crosses another is left to the copy that follows.
            s.needs_ack = true;
            return;
        }
        let options = &header.options;
        let reset = header.flags.contains(TcpFlags::RST);
        if s.reused && s.born.is_some_and(|born| number < born) {
            // Left over from an earlier flow.
        } else if !s.alive() {
            if !s.vanished && !reset {
                s.answer_due = Some(header.ack.0);
            }
        } else if s.fastclosing {
            if reset {
                s.state = State::Gone;
                s.stop_timers();
            } else if options.mptcp.fastclose.is_some() {
                // RFC 8684 §3.5: both at once.
                s.reset_due = Some(false);
            }
        } else if s.state == State::SynSent {
            self.on_syn_ack(i, header);
        } else if s.state == State::SynReceived {
            self.on_join_ack(now, i, segment);
        } else if (s.reused || self.config.impersonated) && s.is_foreign(header) {
            // An answer to a late segment of an earlier flow, or to somebody else's. RFC 5961 §3.2, §5: a challenge, if any.
            s.needs_ack |= !reset;
        } else {
            self.on_segment(now, i, segment);
        }
    }

    /// The server joins where it was told to (RFC 8684 §3.2).
    fn on_join_syn(&mut self, iface: IfaceId, segment: &Segment<'_>, address_id: u8) {
        let header = &segment.tcp;
        let options = &header.options;
        let Some(MpJoin::Syn {
            backup,
            address_id: server_id,
            token,
            nonce: server_nonce,
        }) = options.mptcp.join
        else {
            panic!("MP_JOIN is missing in {header:?}");
        };
        assert_eq!(token, self.token_and_idsn(self.key).0, "of our key");
        assert!(
            self.config.version > 0,
            "RFC 6824 shows no HMAC of an address"
        );
        assert!(segment.payload.is_empty());
        // RFC 9293 §3.7.1, RFC 7323 §3.2. A box on the way may have taken options out.
        assert!(options.mss.is_some());
        assert!(options.timestamps.is_none_or(|t| t.tsecr == 0));
        let nonce = self.rng.next() as u32;
        let iss = self.rng.next() as u32;
        let role = Role::Joined {
            nonce,
            server_nonce,
            address_id,
        };
        let to = SocketAddr::new(segment.dst, header.dst_port);
        let from = SocketAddr::new(segment.src, header.src_port);
        let mut s = Subflow::new(to, from, iface, role, iss);
        (s.state, s.irs, s.rcv_nxt) = (State::SynReceived, header.seq.0, 1);
        (s.server_id, s.server_backup) = (server_id, backup);
        s.timestamps = self.config.timestamps && options.timestamps.is_some();
        s.ts_recent = options.timestamps.map_or(0, |t| t.tsval);
        s.sack = self.config.sack && options.sack_permitted;
        s.scales = options.window_scale.is_some();
        if let (Some(peer), Some(ours)) = (options.window_scale, self.config.window_scale) {
            (s.peer_scale, s.our_scale) = (peer, ours);
        }
        s.ecn.on_syn(self.config.ecn, header.flags);
        self.subflows.push(s);
    }

    /// A segment for a join of the server's that waits for its third ACK.
    fn on_join_ack(&mut self, now: Instant, i: usize, segment: &Segment<'_>) {
        let header = &segment.tcp;
        let s = &mut self.subflows[i];
        let Role::Joined {
            nonce,
            server_nonce,
            ..
        } = s.role
        else {
            panic!("{:?} waits for no third ACK", s.role);
        };
        if header.flags.contains(TcpFlags::RST) {
            // One that answers somebody else's segment has any number.
            if header.seq.0 == s.irs.wrapping_add(1) {
                s.state = State::Reset(header.options.mptcp.tcprst.map(|r| r.reason));
                s.stop_timers();
            }
            return;
        }
        if header.flags.contains(TcpFlags::SYN) {
            // Our answer was lost, or is on its way. A late copy of an earlier one has other numbers.
            if header.seq.0 == s.irs {
                s.sent.iter_mut().for_each(|sent| sent.due = true);
            }
            return;
        }
        if header.ack != TcpSeq(s.iss) + 1 {
            s.answer_due = Some(header.ack.0);
            return;
        }
        // RFC 8684 §3.2: the server proves itself, before anything else that it sends.
        let proof = self.join_hmac(self.server_key, self.key, server_nonce, nonce);
        let Some(MpJoin::Ack { hmac }) = header.options.mptcp.join else {
            panic!("no third ACK of a join: {header:?}");
        };
        assert_eq!(hmac, proof, "HMAC of the third ACK");
        assert!(segment.payload.is_empty(), "text before the fourth ACK");
        let s = &mut self.subflows[i];
        s.state = State::Open;
        s.sent.clear();
        (s.snd_una, s.timer, s.tries) = (1, None, 0);
        self.on_segment(now, i, segment);
    }

    fn on_syn_ack(&mut self, i: usize, header: &TcpHeader) {
        let s = &mut self.subflows[i];
        let options = &header.options;
        // RFC 7413 §4.2: with all of what the SYN brought, a part of it (RFC 8684 Appendix B.3) or nothing.
        let taken = header.ack.0.wrapping_sub(s.iss.wrapping_add(1));
        let acknowledged =
            header.flags.contains(TcpFlags::ACK) && u64::from(taken) <= s.syn_offered;
        let overtakes = !header.flags.intersects(TcpFlags::SYN | TcpFlags::RST);
        if overtakes && acknowledged && self.config.fast_open.is_some() {
            // RFC 7413 §4.2.2: the answer to what the SYN brought has overtaken the SYN/ACK.
            return;
        }
        if header.flags.contains(TcpFlags::RST) {
            if acknowledged {
                s.state = State::Reset(options.mptcp.tcprst.map(|r| r.reason));
                s.timer = None;
            }
            return;
        }
        if (s.reused || self.config.impersonated) && !acknowledged {
            // RFC 9293 §3.10.7.3: the other side is still in a connection of old. A reset there lets
            // our next SYN open a new one.
            if header.flags.contains(TcpFlags::ACK) {
                s.answer_due = Some(header.ack.0);
            }
            return;
        }
        assert!(
            acknowledged,
            "an answer to our SYN acknowledges {:?}",
            header.ack
        );
        s.ecn.on_syn_ack(self.config.ecn, header.flags);
        let flags = header.flags.0 & !TcpFlags::ECE.0;
        assert_eq!(TcpFlags(flags), TcpFlags::SYN | TcpFlags::ACK);
        s.irs = header.seq.0;
        s.syn_text = taken.into();
        (s.rcv_nxt, s.snd_una) = (1, 1 + s.syn_text);
        s.snd_nxt = s.snd_una;
        if s.role == Role::Initial {
            (self.data_una, self.data_nxt) = (s.syn_text, s.syn_text);
            assert!(
                self.config.fast_open.is_some() || options.fast_open.is_none(),
                "a cookie that nobody asked for"
            );
            self.cookie = options.fast_open;
        }
        s.sent.clear();
        (s.timer, s.tries) = (None, 0);
        s.needs_ack = true;
        // RFC 7323 §2.2, §3.2; RFC 2018 §2: only what the SYN offered may come back.
        assert!(self.config.timestamps || options.timestamps.is_none());
        assert!(self.config.sack || !options.sack_permitted);
        assert!(self.config.window_scale.is_some() || options.window_scale.is_none());
        assert!(
            options.mss.is_some_and(|mss| mss >= 536),
            "no sensible MSS: {options:?}"
        );
        s.timestamps = options.timestamps.is_some();
        s.sack = options.sack_permitted;
        if let (Some(peer), Some(ours)) = (options.window_scale, self.config.window_scale) {
            (s.peer_scale, s.our_scale) = (peer, ours);
        }
        s.ts_recent = options.timestamps.map_or(0, |t| t.tsval);
        // RFC 7323 §2.2: the window of a SYN/ACK is never scaled.
        let edge = s.syn_text + u64::from(header.window);

        match s.role {
            Role::Initial => {
                s.state = State::Open;
                s.needs_ack = !self.config.quirks.no_pure_third_ack;
                self.peer_edge = edge;
                self.our_edge = self.our_edge.max(self.window(i).1);
                match options.mptcp.capable {
                    Some(capable) => self.on_capable(capable),
                    None => self.mode = Mode::Tcp,
                }
            }
            Role::Joined { .. } => panic!("a SYN/ACK for what the server opened"),
            Role::Join {
                address_id,
                backup,
                nonce,
                ..
            } => {
                let Some(MpJoin::SynAck {
                    backup: server_backup,
                    address_id: server_id,
                    hmac,
                    nonce: theirs,
                }) = options.mptcp.join
                else {
                    assert!(
                        self.config.quirks.distrusts_paths,
                        "a join was answered without MP_JOIN: {options:?}"
                    );
                    // RFC 8684 §3.2: then it is closed with a RST.
                    self.break_off(i, None);
                    return;
                };
                (s.server_id, s.server_backup) = (server_id, server_backup);
                s.state = State::JoinWait;
                // RFC 8684 §3.2: the server proves itself with the keys in its own order.
                let proof = self.join_hmac(self.server_key, self.key, theirs, nonce);
                assert_eq!(hmac.to_be_bytes(), proof[..8], "HMAC of the join's SYN/ACK");
                let mut hmac = self.join_hmac(self.key, self.server_key, nonce, theirs);
                hmac[3] ^= u8::from(self.config.quirks.wrong_join_hmac);
                self.subflows[i].role = Role::Join {
                    address_id,
                    backup,
                    nonce,
                    hmac,
                };
            }
        }
    }

    fn on_capable(&mut self, capable: MpCapable) {
        assert!(
            self.config.multipath,
            "MP_CAPABLE came back where none was sent"
        );
        let CapableContent::SynAck { sender_key } = capable.content else {
            panic!("MP_CAPABLE of a SYN/ACK: {capable:?}");
        };
        // RFC 8684 §3.1: the version, H set, the bits B and D to G clear; RFC 6824 §3.1: and C.
        assert_eq!(capable.version, self.config.version);
        let mut fixed = MpCapable::FLAG_EXTENSIBILITY | MpCapable::FLAGS_CRYPTO;
        if capable.version == 0 {
            fixed |= MpCapable::FLAG_NO_MORE_SUBFLOWS;
        }
        assert_eq!(capable.flags & fixed, MpCapable::FLAG_SHA256);
        self.server_key = sender_key;
        self.server_denies_joins = capable.flags & MpCapable::FLAG_NO_MORE_SUBFLOWS != 0;
        self.checksum = self.config.checksum || capable.flags & MpCapable::FLAG_CHECKSUM != 0;
        let quirks = &self.config.quirks;
        let fallback = quirks.no_options_after_syn || quirks.no_options_after_third_ack;
        self.mode = if fallback { Mode::Tcp } else { Mode::Multipath };
    }

    fn on_segment(&mut self, now: Instant, i: usize, segment: &Segment<'_>) {
        let (header, payload) = (&segment.tcp, segment.payload);
        let s = &mut self.subflows[i];
        let options = &header.options;
        let at = s.theirs(header.seq.0);
        if header.flags.contains(TcpFlags::RST) {
            // RFC 5961 §3.2: only the very next number resets, others in the window are challenged.
            s.needs_ack |= at > s.rcv_nxt && at < s.edge;
            // RFC 6824 has no MP_TCPRST, and MP_FASTCLOSE on ACKs only (§3.5).
            let (reason, fastclose) = (options.mptcp.tcprst, options.mptcp.fastclose);
            assert!(self.config.version > 0 || reason.is_none() && fastclose.is_none());
            if at == s.rcv_nxt {
                s.state = State::Reset(options.mptcp.tcprst.map(|r| r.reason));
                s.reset_transient = options.mptcp.tcprst.map(|r| r.transient);
                s.stop_timers();
                if let Some(fastclose) = options.mptcp.fastclose {
                    self.on_fastclose(fastclose);
                }
                self.carry_again(i);
            }
            return;
        }
        // RFC 7323 §3.2: once agreed upon, every segment carries them, unless it is a RST.
        assert_eq!(
            options.timestamps.is_some(),
            s.timestamps,
            "timestamps on {header:?}"
        );
        if let Some(Timestamps { tsval, tsecr }) = options.timestamps {
            assert!(
                (self.now_ms(now).wrapping_sub(tsecr) as i32) >= 0,
                "TSecr was never sent"
            );
            let owner = *self.owner.get_or_insert(tsval & 0xff);
            assert_eq!(tsval & 0xff, owner, "TSval names another owner");
            let s = &mut self.subflows[i];
            if at <= s.rcv_nxt && (tsval.wrapping_sub(s.ts_recent) as i32) >= 0 {
                s.ts_recent = tsval;
            }
        }
        let s = &mut self.subflows[i];
        if header.flags.contains(TcpFlags::SYN) {
            if s.finished() {
                // A late copy of our SYN opened a connection that nobody wants.
                return;
            }
            if at != 0 && self.config.server_may_forget {
                // RFC 9293 §3.10.7.4: the one before stands.
                s.needs_ack = true;
                return;
            }
            // Our third ACK was lost.
            assert_eq!(at, 0, "a second SYN/ACK has another number");
            // RFC 8684 §3.1: it is sent again as it was.
            if let Some(CapableContent::SynAck { sender_key }) =
                options.mptcp.capable.map(|c| c.content)
            {
                assert_eq!(
                    sender_key, self.server_key,
                    "a second SYN/ACK has another key"
                );
            }
            s.needs_ack = true;
            return;
        }
        assert!(header.flags.contains(TcpFlags::ACK));
        let fin = header.flags.contains(TcpFlags::FIN);
        let payload_len = payload.len();
        let mptcp = &options.mptcp;
        // RFC 8684 §3.4.1: with a signal it is no duplicate ACK.
        let signals =
            mptcp.add_addr.is_some() || mptcp.remove_addr.is_some() || mptcp.prio.is_some();
        let mapped = mptcp.dss.is_some_and(|d| d.mapping.is_some());
        let pure = payload.is_empty() && !fin && !mapped && !signals;
        if let Some(fastclose) = options.mptcp.fastclose {
            self.on_fastclose(fastclose);
            return;
        }
        let window = u64::from(header.window) << s.peer_scale;
        let ack = unwrap(s.iss, s.snd_una, header.ack.0);
        s.ecn.on_segment(segment, ack, s.snd_nxt);
        let progress = s.on_ack(now, header, pure);
        // RFC 8684 §3.2: the third ACK of a join, for the first time or again, gets a fourth.
        s.needs_ack |= matches!(mptcp.join, Some(MpJoin::Ack { .. }));
        // RFC 5681 §4.2: out of order, or where something is missing, it is acknowledged at once.
        if !payload.is_empty() || fin || at < s.rcv_nxt {
            let smooth = at == s.rcv_nxt && s.in_order() && !fin;
            let taken = at + payload.len() as u64 <= s.edge;
            s.owe_ack(now, self.config.ack, !smooth || !taken);
        }
        // RFC 9293 §3.10.7.4: what lies beyond the window is not taken, as a probe of a closed
        // window does.
        let room = s.edge.saturating_sub(at).min(payload.len() as u64) as usize;
        let beyond = (at + payload_len as u64).saturating_sub(s.edge_max.max(at)) as usize;
        let (payload, fin) = (&payload[..room], fin && room == payload.len());
        if self.mode == Mode::Tcp {
            self.on_plain_ack(ack, window, options);
        } else {
            self.on_signals(i, options);
            self.on_data_options(now, i, options, window, progress && ack > 1);
        }
        self.beyond_window += beyond as u64;
        self.on_payload(i, at, payload, fin);
        if progress {
            self.prune();
        }
    }

    /// RFC 8684 §3.5: every subflow that there is gets a RST. Those that have ended know nothing of it.
    fn on_fastclose(&mut self, fastclose: MpFastclose) {
        let ours = fastclose.receiver_key == self.key;
        assert!(ours, "MP_FASTCLOSE with somebody else's key");
        self.fastclosed = true;
        for s in self.subflows.iter_mut().filter(|s| s.alive()) {
            s.reset_due = Some(false);
        }
    }

    fn on_signals(&mut self, i: usize, options: &TcpOptions) {
        if let Some(prio) = options.mptcp.prio {
            assert_eq!(prio.address_id, None, "it has no reason to name an address");
            self.subflows[i].server_backup = prio.backup;
        }
        if let Some(remove) = options.mptcp.remove_addr {
            self.removed.extend(remove.ids());
        }
        let Some(option) = options.mptcp.add_addr else {
            return;
        };
        let v0 = self.config.version == 0;
        match option.form {
            AddAddrForm::Echo => {
                assert!(!v0, "RFC 6824 has no echo: {option:?}");
                self.echoed.push(option);
                return;
            }
            AddAddrForm::Signed(hmac) => {
                assert!(!v0, "RFC 6824 §3.4.1: no HMAC in {option:?}");
                let expected = add_addr_hmac(self.server_key, self.key, &option);
                assert_eq!(hmac, expected, "HMAC of {option:?}");
            }
            AddAddrForm::Bare => assert!(v0, "RFC 8684 §3.4.1: no HMAC in {option:?}"),
        }
        // RFC 8684 §3.2: 0 is the initial address, and that it stays.
        let server = self.config.server;
        let same = option.address == server.ip() && option.port.is_none_or(|p| p == server.port());
        assert!(
            option.address_id != 0 || same,
            "another address: {option:?}"
        );
        self.announced.push(option);
        self.confirmed = true;
        if self.config.echoes && !v0 {
            let s = &mut self.subflows[i];
            s.signals.add_addr = Some(AddAddr {
                form: AddAddrForm::Echo,
                ..option
            });
            s.needs_ack = true;
        }
    }

    /// In plain TCP the subflow is the stream.
    fn on_plain_ack(&mut self, ack: u64, window: u64, options: &TcpOptions) {
        self.data_una = self.data_una.max(ack - 1);
        // What comes late has its window from back then, so it counts from there.
        self.peer_edge = self.peer_edge.max(ack - 1 + window);
        // RFC 8684 §3.7: one infinite mapping may tell us of the fallback.
        let mapping = options.mptcp.dss.and_then(|dss| dss.mapping);
        self.infinite_mappings += u64::from(mapping.is_some_and(|m| m.len == 0));
    }

    fn on_data_options(
        &mut self,
        now: Instant,
        i: usize,
        options: &TcpOptions,
        window: u64,
        acknowledges: bool,
    ) {
        let Some(dss) = options.mptcp.dss else {
            // ADD_ADDR may leave no room for a DATA_ACK; it is an ACK all the same.
            let signals = !options.mptcp.is_empty();
            let s = &mut self.subflows[i];
            if s.state == State::JoinWait && signals {
                s.state = State::Open;
                (s.timer, s.tries) = (None, 0);
            }
            let distrusts = self.config.quirks.distrusts_paths;
            assert!(
                s.state != State::JoinWait || distrusts,
                "the fourth ACK has no DATA_ACK"
            );
            if acknowledges && !signals && distrusts {
                // RFC 8684 §3.7: an ACK for data without a DATA_ACK: the path swallows options.
                self.break_off(i, None);
            }
            return;
        };
        self.confirmed = true;
        let s = &mut self.subflows[i];
        if s.state == State::JoinWait {
            assert!(dss.data_ack.is_some(), "the fourth ACK has no DATA_ACK");
            s.state = State::Open;
            (s.timer, s.tries) = (None, 0);
        }
        if let Some(data_ack) = dss.data_ack {
            let una = offset(data_ack, self.before_first(), self.data_una);
            let end = self.data_nxt
                + u64::from(self.data_fin_sent && self.data_nxt == self.tx.len() as u64);
            assert!(
                una <= end,
                "acknowledges {una} of the stream, we sent {end}"
            );
            if una > self.data_una {
                (self.data_una, self.stalls) = (una, 0);
                self.data_timer = (una < self.data_nxt).then(|| now + DATA_RTO);
                self.prune();
            }
            self.peer_edge = self.peer_edge.max(una + window);
        }
        let Some(mapping) = dss.mapping else { return };
        if mapping.len == 0 {
            assert!(
                self.config.quirks.distrusts_paths,
                "an infinite mapping where nothing was wrong"
            );
            self.break_off(i, None);
            return;
        }
        self.server_uses_eight_octets = matches!(mapping.dsn, DsnWidth::Eight(_));
        let idsn = self.token_and_idsn(self.server_key).1;
        let offset = offset(mapping.dsn, idsn, self.rx.len() as u64);
        let data_len = u64::from(mapping.len) - u64::from(dss.data_fin);
        assert_eq!(
            mapping.checksum.is_some(),
            self.checksum,
            "checksum of {mapping:?}"
        );
        if dss.data_fin {
            let end = offset + data_len;
            assert!(
                self.rx_fin.is_none_or(|f| f == end),
                "its DATA_FIN moved to {end}"
            );
            self.rx_fin = Some(end);
            self.subflows[i].needs_ack = true;
        }
        let new = Mapping {
            at: u64::from(mapping.subflow_seq),
            offset,
            len: data_len,
            checksum: mapping.checksum.map(|c| (c, Vec::new())),
            data_fin: dss.data_fin,
        };
        if data_len == 0 {
            // RFC 8684 §3.3.3: a DATA_FIN alone maps nothing: subflow sequence number 0, length 1.
            assert_eq!(new.at, 0, "a DATA_FIN alone is mapped");
            assert!(self.adds_up(&new), "DSS checksum of {new:?}");
            return;
        }
        let s = &mut self.subflows[i];
        let clash = s
            .mappings
            .iter()
            .find(|m| m.at < new.at + new.len && new.at < m.at + m.len);
        if let Some(m) = clash {
            // A retransmission repeats its mapping, or a part of it.
            assert_eq!(
                m.offset.wrapping_sub(m.at),
                new.offset.wrapping_sub(new.at),
                "{new:?} contradicts {m:?}"
            );
        }
        let known = clash.is_some_and(|m| m.at + m.len >= new.at + new.len);
        if !known && new.at + new.len > s.rcv_nxt {
            s.mappings.push(new);
        }
    }

    /// Whether a mapping's checksum, if it has one, is right.
    fn adds_up(&self, m: &Mapping) -> bool {
        let Some((checksum, data)) = &m.checksum else {
            return true;
        };
        let dsn = self
            .token_and_idsn(self.server_key)
            .1
            .wrapping_add(1 + m.offset);
        let len = (m.len + u64::from(m.data_fin)) as u16;
        *checksum == dss_checksum(dsn, m.at as u32, len, data)
    }

    fn on_payload(&mut self, i: usize, at: u64, payload: &[u8], fin: bool) {
        let distrusts = self.config.quirks.distrusts_paths;
        let (start, ready) = self.subflows[i].on_payload(at, payload, fin, distrusts);
        if self.mode == Mode::Tcp {
            if let Some(fin) = self.subflows[i].peer_fin {
                self.rx_fin = Some(fin - 1);
            }
            self.on_data(start - 1, &ready);
            return;
        }
        let (mut at, mut ready) = (start, ready.as_slice());
        while !ready.is_empty() {
            let s = &mut self.subflows[i];
            let Some(m) = s
                .mappings
                .iter_mut()
                .find(|m| (m.at..m.at + m.len).contains(&at))
            else {
                assert!(
                    distrusts,
                    "no mapping for octet {at} of subflow {i}: {:?}",
                    s.mappings
                );
                self.break_off(i, None);
                return;
            };
            let n = ((m.at + m.len - at) as usize).min(ready.len());
            let complete = at + n as u64 == m.at + m.len;
            let offset = m.offset + (at - m.at);
            if let Some((_, data)) = &mut m.checksum {
                data.extend_from_slice(&ready[..n]);
            }
            // RFC 8684 §3.3.1: with a checksum nothing counts before all of the mapping is there.
            let checked = m.checksum.is_some();
            let whole = complete.then(|| m.clone());
            if let Some(m) = whole {
                if !self.adds_up(&m) {
                    assert!(distrusts, "DSS checksum of {m:?}");
                    self.break_off(i, Some(m.offset));
                    return;
                }
                self.subflows[i]
                    .mappings
                    .retain(|other| other.at + other.len > m.at + m.len);
                if let Some((_, data)) = &m.checksum {
                    self.on_data(m.offset, data);
                }
            }
            if !checked {
                self.on_data(offset, &ready[..n]);
            }
            at += n as u64;
            ready = &ready[n..];
        }
    }

    /// Takes octets into the stream; what came before must come again alike.
    fn on_data(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let room = self.our_edge.saturating_sub(offset).min(data.len() as u64) as usize;
        self.beyond_window += (data.len() - room) as u64;
        let data = &data[..room];
        if let Some(fin) = self.rx_fin {
            assert!(
                offset + data.len() as u64 <= fin,
                "data after the end of the stream"
            );
        }
        let known = self.rx.get(offset as usize..).unwrap_or_default();
        let alike = known.len().min(data.len());
        assert!(
            known[..alike] == data[..alike],
            "other octets at {offset} of the stream"
        );
        let ahead = self.rx_ahead.entry(offset).or_default();
        if data.len() > ahead.len() {
            *ahead = data.to_vec();
        }
        while let Some(e) = self
            .rx_ahead
            .first_entry()
            .filter(|e| *e.key() <= self.rx.len() as u64)
        {
            let (offset, data) = e.remove_entry();
            let skip = (self.rx.len() - offset as usize).min(data.len());
            self.rx.extend_from_slice(&data[skip..]);
        }
        if self.reading {
            self.read = self.rx.len();
        }
    }

    /// Forgets what the server has at data level.
    fn prune(&mut self) {
        let una = self.data_una;
        for s in &mut self.subflows {
            s.carried.retain(|r| r.1 > una);
        }
        self.again.retain(|r| r.1 > una);
    }

    /// Puts what went out on a subflow and may be lost in line for the others.
    pub(super) fn carry_again(&mut self, i: usize) {
        let carried = std::mem::take(&mut self.subflows[i].carried);
        self.again
            .extend(carried.into_iter().filter(|r| r.1 > self.data_una));
    }
}

/// The offset in a stream, nearest to `near`, of a data sequence number.
pub(super) fn offset(value: DsnWidth, idsn: u64, near: u64) -> u64 {
    let first = idsn.wrapping_add(1);
    match value {
        DsnWidth::Eight(dsn) => dsn.wrapping_sub(first),
        DsnWidth::Four(low) => {
            let here = first.wrapping_add(near) as u32;
            near.checked_add_signed(i64::from(low.wrapping_sub(here) as i32))
                .unwrap_or_else(|| panic!("data sequence number {low:#x} is before the first"))
        }
    }
}
