//! What the server may not do, seen in the order in which it sends: take back the edge of a window
//! that it offered (RFC 9293 §3.8.6, RFC 8684 §3.3.5), go on with MPTCP options after a fallback, or
//! leave a loss to the timer that SACK has told it of (RFC 6675 §4).

use super::super::subflow::unwrap;
use super::receive::offset;
use super::*;

/// The highest edges offered so far, as offsets in our streams.
#[derive(Debug, Default)]
pub struct Edges {
    /// Of the subflow that is the stream, in plain TCP.
    plain: u64,
    /// Of the connection.
    data: u64,
}

/// What the server knows of a loss on one subflow, as offsets in its stream there.
#[derive(Debug, Default)]
pub struct Repair {
    /// Somebody cuts its segments: a part of one tells it nothing.
    cut: bool,
    sent_to: u64,
    longest: u64,
    /// The end of what it sent more than once.
    again_to: u64,
    acknowledged: u64,
    newest: u32,
    /// What it expects next in our stream and the edge it offered, both as it said.
    expects: u64,
    edge: u64,
    /// It knows since then that what begins here is lost.
    told: Option<(u64, Instant)>,
}

/// A retransmission that needs no timeout is sent at once, or after as long as segments were seen to
/// overtake each other, a smoothed round trip at most (RFC 8985 §6.2). The timeout takes longer than
/// both together.
const REPAIR_MAX: Duration = Duration::from_millis(100);

impl Client {
    /// Of what reached the server: with all SACKed behind the only hole, three segments at least,
    /// nothing is in flight that could hold back a retransmission. What was sent twice is left to the
    /// timer.
    pub fn on_arrival_at_server(&mut self, now: Instant, i: usize, segment: &Segment<'_>) {
        let header = &segment.tcp;
        if self.config.quirks.reneges_after > 0 {
            // What it says it has may be gone: nobody knows what is in flight.
            return;
        }
        let s = &mut self.subflows[i];
        if s.state != State::Open || !header.flags.contains(TcpFlags::ACK) {
            return;
        }
        let (irs, near) = (s.irs, s.rcv_nxt);
        let ack = unwrap(irs, near, header.ack.0);
        let seq = unwrap(s.iss, s.snd_una, header.seq.0);
        let tsval = header.options.timestamps.map_or(0, |t| t.tsval);
        let repair = &mut s.repair;
        if repair.cut {
            return;
        }
        // RFC 9293 §3.10.7.4: from outside its window nothing is taken in, not even the ACK.
        let end = seq + segment.segment_len() as u64;
        if seq > repair.edge || end < repair.expects {
            return;
        }
        if ack < repair.acknowledged || (tsval.wrapping_sub(repair.newest) as i32) < 0 {
            return;
        }
        (repair.acknowledged, repair.newest) = (ack, tsval);
        if repair.told.is_some_and(|told| told.0 < ack) {
            repair.told = None;
        }
        if let [(left, right)] = header.options.sack.as_slice() {
            let (left, right) = (unwrap(irs, near, left.0), unwrap(irs, near, right.0));
            let enough = right - left >= 3 * repair.longest;
            if enough && left > ack && right == repair.sent_to && ack >= repair.again_to {
                repair.told.get_or_insert((ack, now));
            }
        }
    }

    /// Looks at all losses that the server knows of. `srtt` says what it takes for the round trip of
    /// the subflow between two addresses, if it still has one.
    pub fn check_repairs(
        &self,
        now: Instant,
        srtt: impl Fn(SocketAddr, SocketAddr) -> Option<Duration>,
    ) {
        for s in self.subflows.iter().filter(|s| s.state == State::Open) {
            if let Some((at, since)) = s.repair.told
                && now.since(since) >= REPAIR_MAX
                && let Some(srtt) = srtt(s.remote, s.local)
            {
                assert!(
                    now.since(since) < REPAIR_MAX + srtt,
                    "octet {at} to {} is known to be lost since {since:?}",
                    s.local
                );
            }
        }
    }

    /// The server sends this now. Whether it arrives is another matter.
    pub fn on_departure(&mut self, number: u64, segment: &Segment<'_>, cut: bool) {
        let header = &segment.tcp;
        let to = SocketAddr::new(segment.dst, header.dst_port);
        let from = SocketAddr::new(segment.src, header.src_port);
        let find = |s: &&mut Subflow| s.local == to && s.remote == from;
        let Some(s) = self.subflows.iter_mut().rfind(find).filter(|s| s.alive()) else {
            return;
        };
        let taken = header.ack.0.wrapping_sub(s.iss.wrapping_add(1));
        let answers = header.flags.contains(TcpFlags::SYN) && u64::from(taken) <= s.syn_offered;
        if answers {
            s.born.get_or_insert(number);
            s.answered_from = header.seq.0;
        } else if s.reused && s.born.is_none() {
            // Of the flow that was here before.
            return;
        }
        if header.flags.contains(TcpFlags::RST) {
            s.repair.told = None;
            return;
        }
        if header.flags.contains(TcpFlags::SYN) {
            return;
        }
        let ack = unwrap(s.iss, s.snd_una, header.ack.0);
        let window = u64::from(header.window) << s.peer_scale;
        s.repair.expects = s.repair.expects.max(ack);
        s.repair.edge = s.repair.edge.max(ack + window);
        s.repair.cut |= cut;
        if segment.segment_len() > 0 {
            // RFC 7413 §4.2.2: what follows a SYN/ACK leaves before the client has that.
            let at = match s.state {
                State::SynSent => unwrap(s.answered_from, 1, header.seq.0),
                _ => unwrap(s.irs, s.rcv_nxt, header.seq.0),
            };
            s.repair.on_departure(at, segment.segment_len() as u64);
        }
        if self.mode == Mode::Handshake {
            return;
        }
        if self.mode == Mode::Tcp {
            let options = &header.options.mptcp;
            let infinite = options
                .dss
                .is_some_and(|dss| dss.mapping.is_some_and(|m| m.len == 0));
            // RFC 8684 §3.7: what it sent before it could know is not held against it.
            let speaks = options.dss.is_some() || options.add_addr.is_some();
            let knows = ack > 1 + s.syn_text || self.config.quirks.no_options_after_syn;
            assert!(
                options.is_empty() || infinite || (speaks && !knows),
                "MPTCP options in plain TCP: {header:?}"
            );
            if options.is_empty() && (!s.fin_sent || ack < s.snd_nxt) {
                advance(&mut self.edges.plain, ack + window, header);
            }
        } else if let Some(data_ack) = header.options.mptcp.dss.and_then(|dss| dss.data_ack) {
            let ack = offset(data_ack, self.before_first(), self.data_una);
            if ack <= self.tx.len() as u64 || !self.tx_closed {
                advance(&mut self.edges.data, ack + window, header);
            }
        }
    }
}

impl Repair {
    fn on_departure(&mut self, at: u64, len: u64) {
        let end = at + len;
        if at < self.sent_to {
            self.again_to = self.again_to.max(end);
            if self.told.is_some_and(|told| told.0 < end) {
                self.told = None;
            }
        }
        self.sent_to = self.sent_to.max(end);
        self.longest = self.longest.max(len);
    }
}

/// RFC 8684 §3.3.4: not by one octet, whatever the scale. Only a field that is full says less than is
/// meant: on a subflow without scaling, of a connection with others that have it.
fn advance(edge: &mut u64, to: u64, header: &TcpHeader) {
    assert!(
        to >= *edge || header.window == u16::MAX,
        "the window's edge goes back from {edge} to {to}: {header:?}"
    );
    *edge = to.max(*edge);
}
