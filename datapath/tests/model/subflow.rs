//! One subflow of the model client: TCP and nothing else. Sequence numbers are offsets from the
//! initial one, so the SYN is 0 and the first octet of data 1.

use super::client::AckPolicy;
use super::client::ecn::Ecn;
use super::client::watch::Repair;
use mpx_datapath::port::IfaceId;
use mpx_datapath::time::{Duration, Instant};
use mpx_datapath::wire::mptcp::{AddAddr, MpPrio, RemoveAddr};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

const SYN_RTO: Duration = Duration::from_secs(1);
const RTO: Duration = Duration::from_millis(300);
const RTO_MAX: Duration = Duration::from_secs(4);
const TRIES_MAX: u32 = 15;
/// After so many timeouts in a row another subflow is tried.
const TRIES_STALE: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    SynSent,
    /// A join of the server's whose third ACK has not come.
    SynReceived,
    /// A join whose third ACK is sent and whose fourth has not come.
    JoinWait,
    Open,
    /// Reset by the server, with the reason of MP_TCPRST if there was one.
    Reset(Option<u8>),
    /// Reset by us, or nobody answered.
    Gone,
}

/// What this subflow is to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Initial,
    Join {
        address_id: u8,
        backup: bool,
        nonce: u32,
        hmac: [u8; 20],
    },
    /// The server joined, from an address that it calls so.
    Joined {
        nonce: u32,
        server_nonce: u32,
        /// Under which its destination was announced.
        address_id: u8,
    },
}

/// A stretch of the subflow and where it lies in the connection's stream.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Offset on the subflow.
    pub at: u64,
    /// Offset in the stream.
    pub offset: u64,
    pub len: u64,
    /// With the data collected so far, until all of it is there.
    pub checksum: Option<(u16, Vec<u8>)>,
    pub data_fin: bool,
}

/// A segment of ours that takes sequence space.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at: u64,
    pub payload: Vec<u8>,
    pub syn: bool,
    pub fin: bool,
    /// Offset in the stream of the first octet.
    pub offset: u64,
    pub data_fin: bool,
    /// Goes out with MP_CAPABLE in place of DSS.
    pub capable: bool,
    /// To be sent now, again or for the first time.
    pub due: bool,
    /// Acknowledged selectively. It is never sent again: a server that says it has something keeps
    /// it.
    pub sacked: bool,
    /// Sent again because of what was acknowledged above it.
    pub repaired: bool,
}

impl Sent {
    pub fn end(&self) -> u64 {
        self.at + self.payload.len() as u64 + u64::from(self.syn) + u64::from(self.fin)
    }

    fn cut(&self, length: &mut impl FnMut() -> usize) -> Vec<Sent> {
        let mut parts = Vec::new();
        let mut at = 0;
        while at < self.payload.len() {
            let end = (at + length()).min(self.payload.len());
            parts.push(Sent {
                at: self.at + at as u64,
                offset: self.offset + at as u64,
                payload: self.payload[at..end].to_vec(),
                ..self.clone()
            });
            at = end;
        }
        parts
    }
}

/// Where the sequence numbers of a flow begin that was there before with the same addresses and
/// ports. What is left of the old one in the network is far from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Beyond those of the old one, as RFC 9293 §3.4.1 and RFC 6528 want it.
    Newer,
    /// Before them: only a timestamp can tell that it is no old SYN.
    Older,
}

/// Neither is a multiple of the other, so that flows which go to and fro do not meet.
const FORWARD: u32 = 0x1357_9bdf;
const BACK: u32 = 0x0d15_ea5e;

impl Again {
    pub fn initial_sequence(self, old: &Subflow) -> u32 {
        match self {
            Again::Newer => old
                .iss
                .wrapping_add(old.snd_nxt as u32)
                .wrapping_add(FORWARD),
            Again::Older => old.iss.wrapping_sub(BACK),
        }
    }
}

/// Signals for the next segment without text. They are not repeated.
#[derive(Debug, Default)]
pub struct Signals {
    pub prio: Option<MpPrio>,
    pub add_addr: Option<AddAddr>,
    pub remove_addr: Option<RemoveAddr>,
}

impl Signals {
    pub fn is_empty(&self) -> bool {
        self.prio.is_none() && self.add_addr.is_none() && self.remove_addr.is_none()
    }
}

/// Octets beyond a gap.
#[derive(Debug, Default)]
struct Ahead {
    octets: Vec<u8>,
    /// The later they came the higher it is.
    number: u64,
}

#[derive(Debug)]
pub struct Subflow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub iface: IfaceId,
    pub role: Role,
    pub state: State,
    pub iss: u32,
    pub irs: u32,
    /// Its addresses and ports were in use before: frames with numbers before `born` are not for it.
    pub reused: bool,
    /// The number of the first SYN/ACK that answered it.
    pub born: Option<u64>,
    /// Octets that the SYN brought, and those of them that its answer acknowledged.
    pub syn_offered: u64,
    pub syn_text: u64,
    /// The number of the SYN/ACK that the server sent last.
    pub answered_from: u32,
    pub snd_una: u64,
    pub snd_nxt: u64,
    pub rcv_nxt: u64,
    /// Right edge of the window offered: nothing beyond it is taken in.
    pub edge: u64,
    /// The highest edge ever offered. It differs where the window was taken back.
    pub edge_max: u64,
    /// The next window may take back what was offered.
    pub withdraws: bool,
    pub peer_scale: u8,
    pub our_scale: u8,
    /// The server's own SYN offers to scale windows.
    pub scales: bool,
    pub timestamps: bool,
    pub sack: bool,
    pub ecn: Ecn,
    pub ts_recent: u32,
    pub sent: VecDeque<Sent>,
    pub tries: u32,
    pub timer: Option<Instant>,
    pub needs_ack: bool,
    /// Segments in order that no ACK of ours has covered, and when one has to at the latest.
    pub unacked: u32,
    pub ack_at: Option<Instant>,
    pub signals: Signals,
    /// Address ID of the server's end, and whether it wants this used as a last resort only.
    pub server_id: u8,
    pub server_backup: bool,
    /// What came twice last and is to be reported (RFC 2883).
    pub dsack: Option<(u64, u64)>,
    /// Out-of-order segments until the next time that it forgets them; 0 is never.
    pub reneges_in: u32,
    /// A reset to be sent, with MP_FASTCLOSE or without.
    pub reset_due: Option<bool>,
    /// MP_FASTCLOSE on an ACK is sent until a reset comes back.
    pub fastclosing: bool,
    /// The state is lost: every segment that comes is answered with a RST of this sequence number.
    pub answer_due: Option<u32>,
    /// Nobody answered, or what came made no sense.
    pub gave_up: bool,
    /// MP_FAIL for the reset.
    pub fail_dsn: Option<u64>,
    /// Its host is gone and answers nothing.
    pub vanished: bool,
    /// T of the MP_TCPRST that the server reset it with, if there was one.
    pub reset_transient: Option<bool>,
    /// Our FIN follows what is sent here, whatever becomes of the connection.
    pub leaving: bool,
    pub repair: Repair,
    pub mappings: Vec<Mapping>,
    /// Stretches of the stream that went out here and are not acknowledged at data level.
    pub carried: Vec<(u64, u64)>,
    pub fin_sent: bool,
    pub peer_fin: Option<u64>,
    /// Octets of payload received in order.
    pub received: u64,
    /// Segments that the server sent more than once.
    pub seen_again: u64,
    ahead: BTreeMap<u64, Ahead>,
    arrivals: u64,
    duplicate_acks: u32,
}

impl Subflow {
    pub fn new(
        local: SocketAddr,
        remote: SocketAddr,
        iface: IfaceId,
        role: Role,
        iss: u32,
    ) -> Subflow {
        let syn = Sent {
            at: 0,
            payload: Vec::new(),
            syn: true,
            fin: false,
            offset: 0,
            data_fin: false,
            capable: false,
            due: true,
            sacked: false,
            repaired: false,
        };
        Subflow {
            local,
            remote,
            iface,
            role,
            state: State::SynSent,
            iss,
            irs: 0,
            reused: false,
            born: None,
            syn_offered: 0,
            syn_text: 0,
            answered_from: 0,
            snd_una: 0,
            snd_nxt: 1,
            rcv_nxt: 0,
            edge: 0,
            edge_max: 0,
            withdraws: false,
            peer_scale: 0,
            our_scale: 0,
            scales: false,
            timestamps: false,
            sack: false,
            ecn: Ecn::default(),
            ts_recent: 0,
            sent: [syn].into(),
            tries: 0,
            timer: None,
            needs_ack: false,
            unacked: 0,
            ack_at: None,
            signals: Signals::default(),
            server_id: 0,
            server_backup: false,
            dsack: None,
            reneges_in: 0,
            reset_due: None,
            fastclosing: false,
            answer_due: None,
            gave_up: false,
            fail_dsn: None,
            vanished: false,
            reset_transient: None,
            leaving: false,
            repair: Repair::default(),
            mappings: Vec::new(),
            carried: Vec::new(),
            fin_sent: false,
            peer_fin: None,
            received: 0,
            seen_again: 0,
            ahead: BTreeMap::new(),
            arrivals: 0,
            duplicate_acks: 0,
        }
    }

    pub fn comes_again(&mut self, iss: u32) {
        (self.iss, self.reused) = (iss, true);
    }

    /// It is gone without a word.
    pub fn vanish(&mut self) {
        self.vanished = true;
        self.answer_due = None;
        if self.alive() {
            self.state = State::Gone;
        }
        self.stop_timers();
    }

    pub fn alive(&self) -> bool {
        !matches!(self.state, State::Reset(_) | State::Gone)
    }

    /// May carry data, as long as no FIN of ours went out.
    pub fn open(&self) -> bool {
        self.state == State::Open && !self.fin_sent && !self.fastclosing
    }

    pub fn stale(&self) -> bool {
        self.tries >= TRIES_STALE
    }

    pub fn peer_fin_taken(&self) -> bool {
        self.peer_fin.is_some_and(|at| self.rcv_nxt > at)
    }

    /// Both FINs sent and acknowledged.
    pub fn finished(&self) -> bool {
        self.fin_sent && self.snd_una == self.snd_nxt && self.peer_fin_taken()
    }

    pub fn in_flight(&self) -> usize {
        self.sent.len()
    }

    /// The offset that a sequence number of the server stands for, near what is expected next.
    pub fn theirs(&self, seq: u32) -> u64 {
        unwrap(self.irs, self.rcv_nxt, seq)
    }

    /// Its numbers are from before the beginning of this flow.
    pub fn is_foreign(&self, header: &TcpHeader) -> bool {
        let ack = header.flags.contains(TcpFlags::ACK);
        (header.seq.0.wrapping_sub(self.irs) as i32) < 0
            || ack && (header.ack.0.wrapping_sub(self.iss) as i32) < 0
    }

    /// Takes in an acknowledgment; says whether it was news.
    pub fn on_ack(&mut self, now: Instant, header: &TcpHeader, pure: bool) -> bool {
        let ack = unwrap(self.iss, self.snd_una, header.ack.0);
        assert!(
            ack <= self.snd_nxt,
            "acknowledges {ack}, we sent up to {}",
            self.snd_nxt
        );
        self.on_sack(header, ack);
        if ack <= self.snd_una {
            let duplicate = pure && ack == self.snd_una && !self.sent.is_empty();
            self.duplicate_acks = if duplicate {
                self.duplicate_acks + 1
            } else {
                0
            };
            if self.duplicate_acks == 3
                && let Some(first) = self.sent.front_mut().filter(|s| !s.sacked)
            {
                first.due = true;
            }
            return false;
        }
        self.snd_una = ack;
        while self.sent.front().is_some_and(|s| s.end() <= ack) {
            self.sent.pop_front();
        }
        (self.tries, self.duplicate_acks) = (0, 0);
        self.timer = (!self.sent.is_empty()).then(|| now + RTO);
        true
    }

    /// RFC 2018 §3, §4: blocks name what is there beyond a gap, never what was not sent.
    fn on_sack(&mut self, header: &TcpHeader, ack: u64) {
        let blocks = header.options.sack.as_slice();
        assert!(
            self.sack || blocks.is_empty(),
            "SACK blocks that nobody permitted: {header:?}"
        );
        for (left, right) in blocks {
            if self.reused && (left.0.wrapping_sub(self.iss) as i32) < 0 {
                // What came late of the flow that was here before is reported as a duplicate.
                continue;
            }
            let left = unwrap(self.iss, self.snd_una, left.0);
            let right = unwrap(self.iss, self.snd_una, right.0);
            assert!(
                left < right && right <= self.snd_nxt,
                "SACK block {left}-{right}, we sent up to {}",
                self.snd_nxt
            );
            assert!(
                left != ack,
                "SACK block {left}-{right} begins at the acknowledgment"
            );
            for sent in &mut self.sent {
                sent.sacked |= left <= sent.at && sent.end() <= right;
            }
        }
        if let Some(newest) = self.sent.iter().rposition(|s| s.sacked) {
            // Three segments above a hole: it is lost, once.
            let lost = newest.saturating_sub(2);
            for sent in self.sent.iter_mut().take(lost).filter(|s| !s.sacked) {
                sent.due |= !std::mem::replace(&mut sent.repaired, true);
            }
        }
    }

    /// Takes in payload and FIN; returns what is now in order, and where it begins.
    pub fn on_payload(
        &mut self,
        at: u64,
        payload: &[u8],
        fin: bool,
        distrusts: bool,
    ) -> (u64, Vec<u8>) {
        let end = at + payload.len() as u64;
        if fin {
            assert!(
                self.peer_fin.is_none_or(|f| f == end),
                "its FIN moved to {end}"
            );
            self.peer_fin = Some(end);
        }
        if let Some(fin) = self.peer_fin.filter(|_| !payload.is_empty()) {
            assert!(end <= fin, "it sent up to {end}, beyond its FIN at {fin}");
        }
        if !payload.is_empty() {
            let seen = end <= self.rcv_nxt
                || self
                    .ahead
                    .get(&at)
                    .is_some_and(|p| p.octets.len() >= payload.len());
            self.seen_again += u64::from(seen);
            // RFC 2883 §4: the octets of the latest segment that were there before.
            if let Some(twice) = self.known_part(at, end) {
                self.dsack = Some(twice);
            }
            self.arrivals += 1;
            let known = self.ahead.entry(at).or_default();
            let alike = known.octets.len().min(payload.len());
            assert!(
                distrusts || known.octets[..alike] == payload[..alike],
                "other octets at {at} than before"
            );
            known.number = self.arrivals;
            if payload.len() > known.octets.len() {
                known.octets = payload.to_vec();
            }
        }
        let start = self.rcv_nxt;
        let mut ready = Vec::new();
        while let Some(entry) = self
            .ahead
            .first_entry()
            .filter(|e| *e.key() <= self.rcv_nxt)
        {
            let (at, Ahead { octets, .. }) = entry.remove_entry();
            let skip = ((self.rcv_nxt - at) as usize).min(octets.len());
            ready.extend_from_slice(&octets[skip..]);
            self.rcv_nxt += (octets.len() - skip) as u64;
        }
        self.received += ready.len() as u64;
        if self.peer_fin == Some(self.rcv_nxt) {
            self.rcv_nxt += 1;
        }
        (start, ready)
    }

    /// The first stretch between `at` and `end` that is there already.
    fn known_part(&self, at: u64, end: u64) -> Option<(u64, u64)> {
        if at < self.rcv_nxt {
            return Some((at, end.min(self.rcv_nxt)));
        }
        self.ranges_ahead()
            .iter()
            .map(|r| (r.0.max(at), r.1.min(end)))
            .find(|part| part.0 < part.1)
    }

    /// What is there beyond a gap, and how late the latest of each stretch came.
    fn ranges_ahead(&self) -> Vec<(u64, u64, u64)> {
        let mut ranges: Vec<(u64, u64, u64)> = Vec::new();
        for (at, Ahead { octets, number }) in &self.ahead {
            let end = at + octets.len() as u64;
            match ranges.last_mut() {
                Some(r) if r.1 >= *at => *r = (r.0, r.1.max(end), r.2.max(*number)),
                _ => ranges.push((*at, end, *number)),
            }
        }
        ranges
    }

    /// Blocks to report, as sequence numbers: what came twice, and around it what is there beyond a
    /// gap (RFC 2883 §4), the latest first (RFC 2018 §4).
    pub fn sack_blocks(&self, dsack: bool) -> Vec<(u32, u32)> {
        let mut ranges = self.ranges_ahead();
        let twice = self.dsack.filter(|_| dsack);
        let encloses = |r: &(u64, u64, u64)| twice.is_some_and(|t| r.0 <= t.0 && t.1 <= r.1);
        ranges.sort_by_key(|r| (!encloses(r), std::cmp::Reverse(r.2)));
        let seq = |at: u64| self.irs.wrapping_add(at as u32);
        let ahead = ranges.iter().map(|r| (r.0, r.1));
        let blocks = twice.into_iter().chain(ahead);
        blocks.map(|(l, r)| (seq(l), seq(r))).collect()
    }

    /// Text or a FIN came, in order and expected or not: an ACK is owed, at once or later.
    pub fn owe_ack(&mut self, now: Instant, policy: AckPolicy, at_once: bool) {
        self.unacked += 1;
        if at_once || self.unacked >= policy.every {
            self.needs_ack = true;
        } else {
            self.ack_at.get_or_insert(now + policy.delay);
        }
    }

    /// Nothing is missing before what came last.
    pub fn in_order(&self) -> bool {
        self.ahead.is_empty()
    }

    /// An ACK with SACK blocks has left. A receiver that reneges forgets what it named.
    pub fn after_sack(&mut self, reneges_after: u32) {
        if reneges_after == 0 {
            return;
        }
        self.reneges_in = self.reneges_in.checked_sub(1).unwrap_or(reneges_after);
        if self.reneges_in == 0 {
            self.ahead.clear();
        }
    }

    pub fn stop_timers(&mut self) {
        (self.timer, self.ack_at) = (None, None);
    }

    /// Takes nothing that was SACKed for granted any more.
    pub fn forget_sacks(&mut self) {
        for sent in &mut self.sent {
            sent.sacked = false;
        }
    }

    /// The retransmission timer went off. `false`: nobody answers any more.
    pub fn on_timeout(&mut self, now: Instant) -> bool {
        self.tries += 1;
        if self.tries > TRIES_MAX {
            self.state = State::Gone;
            self.gave_up = true;
            self.stop_timers();
            return false;
        }
        for sent in self.sent.iter_mut().filter(|s| !s.sacked) {
            sent.due = true;
        }
        self.needs_ack |= self.state == State::JoinWait || self.fastclosing;
        self.timer = Some(now + self.rto());
        true
    }

    /// Cuts what is to be sent again anew, into segments of other lengths. What they carry has no
    /// mapping that would have to stay.
    pub fn cut_anew(&mut self, mut length: impl FnMut() -> usize) {
        let mut anew: VecDeque<Sent> = VecDeque::new();
        let mut run: Option<Sent> = None;
        for sent in std::mem::take(&mut self.sent) {
            let text = !sent.sacked && !sent.payload.is_empty();
            match &mut run {
                Some(run) if text => run.payload.extend_from_slice(&sent.payload),
                _ if text => run = Some(sent),
                _ => {
                    anew.extend(run.take().into_iter().flat_map(|r| r.cut(&mut length)));
                    anew.push_back(sent);
                }
            }
        }
        anew.extend(run.into_iter().flat_map(|r| r.cut(&mut length)));
        self.sent = anew;
    }

    pub fn arm(&mut self, now: Instant) {
        if self.timer.is_none() {
            self.timer = Some(now + self.rto());
        }
    }

    fn rto(&self) -> Duration {
        let first = if matches!(self.state, State::SynSent | State::SynReceived) {
            SYN_RTO
        } else {
            RTO
        };
        (first * 2u32.pow(self.tries.min(10))).min(RTO_MAX)
    }
}

/// The offset from `initial` nearest to `near` that has the sequence number `seq`.
pub fn unwrap(initial: u32, near: u64, seq: u32) -> u64 {
    let here = initial.wrapping_add(near as u32);
    let distance = i64::from(seq.wrapping_sub(here) as i32);
    near.checked_add_signed(distance)
        .unwrap_or_else(|| panic!("{seq} is before the initial number"))
}
