//! One subflow: its addresses, its TCP, and what Multipath TCP keeps for each.

use super::data::{WINDOW_SHIFT_MAX, window_shift};
use super::path_mtu::headers_len;
use super::signal::{Removal, SignalRow};
use crate::buffer::ByteRing;
use crate::memory::Allowance;
use crate::port::IfaceId;
use crate::seq::{DataSeq, TcpSeq};
use crate::tcp::State;
use crate::tcp::congestion::Algorithm;
use crate::tcp::ecn::Ecn;
use crate::tcp::offer::Offer;
use crate::tcp::path_mtu::PathMtu;
use crate::tcp::receiver::Receiver;
use crate::tcp::sender::Sender;
use crate::tcp::timestamp::{TsClock, TsState};
use crate::time::{Duration, Instant};
use crate::wire::frame::{self, Link};
use crate::wire::mptcp::MpTcprst;
use crate::wire::tcp::{FastOpenCookie, TcpFlags, TcpHeader, TcpOptions};
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Between answers to segments that are not acceptable, as Linux has it (`tcp_invalid_ratelimit`).
pub const INVALID_ANSWER_INTERVAL: Duration = Duration::from_millis(500);

/// Mappings announced and not yet used up. A segment whose mapping finds no room here is not taken
/// in, so that it comes again with its mapping.
const MAPPINGS_MAX: usize = 1023;

/// The first piece of memory is for so many mappings; it doubles from there.
const FIRST_MAPPINGS: usize = 8;

/// What a subflow is charged for from its SYN on: itself, and the first piece of what it notes.
pub const SUBFLOW_BYTES: usize =
    size_of::<Subflow>() + Sender::<SentMapping>::FIRST_NOTES_BYTES + FIRST_MAPPINGS_BYTES;
const FIRST_MAPPINGS_BYTES: usize = FIRST_MAPPINGS * size_of::<Mapping>();

/// The least that is sent in a segment.
pub const MSS_MIN: u16 = 88;

/// What a subflow may stage beyond a window: one mapping and as much without one.
const STAGING_SLACK_BYTES: usize = 3 * 65_536;

/// What octets of a subflow are at data level, as announced by the peer (RFC 8684 §3.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it begins on the subflow.
    pub seq: TcpSeq,
    pub dsn: DataSeq,
    /// Octets of text; the DATA_FIN's is not counted.
    pub len: usize,
    pub checksum: Option<u16>,
    /// The data-level length included a DATA_FIN.
    pub data_fin: bool,
}

impl Mapping {
    pub fn end(&self) -> TcpSeq {
        self.seq + self.len
    }

    /// Both put the same octet at the same place.
    fn agrees_with(&self, other: &Mapping) -> bool {
        self.dsn.offset_from(other.dsn) == i64::from(self.seq.offset_from(other.seq))
    }
}

/// The mapping under which a segment of ours left. It never changes: a retransmission repeats it.
#[derive(Clone, Copy, Debug)]
pub struct SentMapping {
    pub seq: TcpSeq,
    pub dsn: DataSeq,
    /// Octets, the DATA_FIN's included.
    pub len: u16,
    pub checksum: Option<u16>,
    pub data_fin: bool,
    pub announced: Announcement,
}

/// What the options of a segment of ours say of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// Nothing: plain TCP.
    Nothing,
    Mapping,
    /// It is the first after a fallback: an infinite mapping (RFC 8684 §3.7).
    Infinite,
}

/// What became of a mapping given to [`Subflow::announce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It is known, from now on or from earlier.
    Known,
    /// It contradicts an earlier one, which stands (RFC 8684 §3.3.1: a mapping never changes).
    Conflict,
    /// There are too many ahead of it, or no memory is left for more.
    NoRoom,
}

/// How a subflow is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Plain TCP from the SYN on.
    Tcp,
    /// Our SYN/ACK carries MP_CAPABLE.
    Capable,
    /// A join (RFC 8684 §3.2). The peer's nonce comes with its SYN.
    Join { local_nonce: u32, remote_nonce: u32 },
}

/// The reinjections in flight on a subflow, as far as it takes to know which begins lowest in the
/// stream. Each counts whole until all of it is acknowledged.
#[derive(Debug, Default)]
pub struct Reinjections {
    /// Where they end on the subflow and begin in the stream, both ascending. One that left before
    /// another and begins later is never the lowest again.
    ends: VecDeque<(TcpSeq, DataSeq)>,
}

impl Reinjections {
    pub fn on_sent(&mut self, end: TcpSeq, dsn: DataSeq) {
        let hidden = |before: &mut (TcpSeq, DataSeq)| before.1.at_or_after(dsn);
        while self.ends.pop_back_if(hidden).is_some() {}
        self.ends.push_back((end, dsn));
    }

    pub fn on_acknowledged(&mut self, una: TcpSeq) {
        let whole = |first: &mut (TcpSeq, DataSeq)| first.0.at_or_before(una);
        while self.ends.pop_front_if(whole).is_some() {}
    }

    pub fn lowest(&self) -> Option<DataSeq> {
        self.ends.front().map(|(_, dsn)| *dsn)
    }
}

#[derive(Debug)]
pub struct Subflow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Where the last valid segment came in and where answers go.
    pub iface: IfaceId,
    /// From us to the peer.
    pub link: Link,
    pub state: State,
    pub handshake: Handshake,
    pub initial: bool,
    /// We sent its first SYN.
    pub opened_here: bool,
    pub rx: Receiver,
    pub tx: Sender<SentMapping>,
    pub path_mtu: PathMtu,
    /// Both sides sent the option in their SYN (RFC 7323 §3.2).
    pub ts: Option<TsState>,
    pub sack_permitted: bool,
    pub ecn: Ecn,
    /// Peer's shift, and ours; both 0 unless both sides sent the option (RFC 7323 §2.2).
    pub snd_wscale: u8,
    pub rcv_wscale: u8,
    pub window_scaling: bool,
    /// MSS that we announce.
    pub local_mss: u16,
    pub congestion: Algorithm,
    pub local_id: u8,
    pub remote_id: u8,
    /// The peer asked us to send here only when nothing else works (RFC 8684 §3.3.8).
    pub backup: bool,
    /// And so do we ask the peer, and do it ourselves.
    pub local_backup: bool,
    /// MP_PRIO is to tell the peer of that.
    pub prio_due: bool,
    pub signals: SignalRow,
    /// The peer has shown that it takes the handshake for complete: its fourth ACK, where there is one,
    /// arrived.
    pub settled: bool,
    /// The peer removed its address here.
    pub removal: Option<Removal>,
    pub mappings: VecDeque<Mapping>,
    /// First octet in subflow order that the data level has not had.
    pub delivered_to: TcpSeq,
    /// In order on the subflow from `delivered_to` on, waiting for a mapping or for the rest of one.
    pub staged: ByteRing,
    /// The peer has sent a DSS, or MP_CAPABLE with data.
    pub spoken: bool,
    /// Text of ours was acknowledged here with a DATA_ACK, or the peer sent what takes one to send:
    /// options pass both ways (RFC 8684 §3.7).
    pub confirmed: bool,
    /// From this data sequence number on, all text of ours went out here and in order: relative
    /// sequence number plus `snd_base`.
    pub in_step_from: DataSeq,
    pub snd_base: u32,
    /// A checksum failed at this data sequence number. What came since is kept until the peer has
    /// answered our MP_FAIL (RFC 8684 §3.7).
    pub failed_at: Option<DataSeq>,
    /// MP_FAIL is to leave on an ACK, with this data sequence number.
    pub fail_due: Option<DataSeq>,
    pub reinjections: Reinjections,
    /// The app was told of it with the SYN (RFC 7413 §4.2.2).
    pub fast_open: bool,
    /// Octets of the SYN's text that were taken in. They have no data sequence number, and relative
    /// subflow sequence numbers do not count them (RFC 8684 Appendix B.2).
    pub syn_text_bytes: usize,
    /// For the first SYN/ACK.
    pub cookie_due: Option<FastOpenCookie>,
    /// What the present state of the handshake sends is to leave: SYN, SYN/ACK, or the third ACK of a
    /// join. When it did so last, and how often.
    pub handshake_due: bool,
    pub handshake_sent_at: Option<Instant>,
    pub handshake_transmissions: u32,
    pub fourth_ack_due: bool,
    /// Our FIN is to leave once everything sent here is through.
    pub fin_wanted: bool,
    /// Persist timer (RFC 9293 §3.8.6.1).
    pub persist_at: Option<Instant>,
    pub persist_backoff: u32,
    /// Window probes since the peer was last heard of here.
    pub probes_unanswered: u32,
    pub probe_due: bool,
    /// What came last had no MPTCP option at all.
    pub bare: bool,
    /// A DATA_FIN without data is to leave here.
    pub data_fin_due: bool,
    /// A RST is to leave, and this is the end of the subflow.
    pub reset: Option<Reset>,
    /// The peer reset it and wants no other one there (RFC 8684 §3.6, T = 0).
    pub barred: bool,
    /// A segment of another kind to be answered by a pure ACK already waits in the engine's queue.
    pub queued: bool,
    pub last_received_at: Instant,
    /// Keepalive probes since then, and when the last one left.
    pub keepalive_probes: u32,
    pub keepalive_probe_at: Instant,
    /// Since when something is outstanding and nothing was heard of it; means nothing where nothing
    /// is outstanding.
    pub heard_at: Instant,
    /// When a segment that was not acceptable was answered last.
    pub invalid_answered_at: Option<Instant>,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// What a RST of ours says beside "reset".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reset {
    pub fastclose_key: Option<u64>,
    pub reason: Option<MpTcprst>,
    pub fail_dsn: Option<u64>,
}

impl Reset {
    /// MP_TCPRST with this reason, and nothing else.
    pub fn with_reason(reason: u8) -> Reset {
        Reset {
            reason: Some(MpTcprst {
                transient: false,
                reason,
            }),
            ..Reset::default()
        }
    }
}

/// What a subflow is before its peer has said anything.
pub struct Start {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub iface: IfaceId,
    pub link: Link,
    pub state: State,
    pub handshake: Handshake,
    pub iss: TcpSeq,
    /// MSS that we announce.
    pub local_mss: u16,
    /// How far the receive window may grow.
    pub window_max_bytes: usize,
    pub clock: TsClock,
    pub congestion: Algorithm,
}

impl Subflow {
    pub fn new(now: Instant, start: &Start, offer: &Offer) -> Subflow {
        let window_max_bytes = start.window_max_bytes;
        let mss = usize::from(agreed_mss(offer.mss, start.local_mss));
        let cc = start.congestion.start(mss);
        let mut subflow = Subflow {
            local: start.local,
            remote: start.remote,
            iface: start.iface,
            link: start.link,
            state: start.state,
            handshake: start.handshake,
            initial: !matches!(start.handshake, Handshake::Join { .. }),
            opened_here: start.state == State::SynSent,
            rx: Receiver::new(offer.irs, 0),
            tx: Sender::new(start.iss, mss, offer.sack_permitted, cc),
            path_mtu: PathMtu::new(start.local.is_ipv6(), mss),
            ts: Some(TsState::new(start.clock, 0, now)),
            sack_permitted: true,
            ecn: offer.ecn,
            snd_wscale: 0,
            rcv_wscale: 0,
            window_scaling: true,
            local_mss: start.local_mss,
            congestion: start.congestion,
            local_id: 0,
            remote_id: 0,
            backup: false,
            local_backup: false,
            prio_due: false,
            signals: SignalRow::default(),
            settled: false,
            removal: None,
            mappings: VecDeque::new(),
            delivered_to: offer.irs + 1,
            staged: ByteRing::new(window_max_bytes + STAGING_SLACK_BYTES),
            spoken: false,
            confirmed: false,
            in_step_from: DataSeq(0),
            snd_base: 0,
            failed_at: None,
            fail_due: None,
            reinjections: Reinjections::default(),
            fast_open: false,
            syn_text_bytes: 0,
            cookie_due: None,
            handshake_due: true,
            handshake_sent_at: None,
            handshake_transmissions: 0,
            fourth_ack_due: false,
            fin_wanted: false,
            persist_at: None,
            persist_backoff: 0,
            probes_unanswered: 0,
            probe_due: false,
            bare: false,
            data_fin_due: false,
            reset: None,
            barred: false,
            queued: false,
            last_received_at: now,
            keepalive_probes: 0,
            keepalive_probe_at: now,
            heard_at: now,
            invalid_answered_at: None,
            bytes_sent: 0,
            bytes_received: 0,
        };
        subflow.agree(now, offer, window_max_bytes);
        subflow
    }

    /// The sender is to go by what the peer's SYN says; nothing has left but our own.
    pub(super) fn restart_sender(&mut self, offer: &Offer) {
        let mss = usize::from(agreed_mss(offer.mss, self.local_mss));
        let rtt = std::mem::take(&mut self.tx.rtt);
        let (snd_nxt, rto_at) = (self.tx.snd_nxt, self.tx.rto_at);
        let cc = self.congestion.start(mss);
        self.tx = Sender::new(self.tx.iss, mss, offer.sack_permitted, cc);
        (self.tx.rtt, self.tx.snd_nxt, self.tx.rto_at) = (rtt, snd_nxt, rto_at);
    }

    /// Goes by what the peer's SYN said, with a sender that does so already.
    pub(super) fn agree(&mut self, now: Instant, offer: &Offer, window_max_bytes: usize) {
        let shift = window_shift(window_max_bytes);
        self.window_scaling = offer.window_scale.is_some();
        self.snd_wscale = offer.window_scale.unwrap_or(0).min(WINDOW_SHIFT_MAX);
        self.rcv_wscale = if self.window_scaling { shift } else { 0 };
        // A field that is rounded up offers the rest of a unit more.
        self.rx = Receiver::new(offer.irs, window_max_bytes + (1 << shift));
        self.delivered_to = offer.irs + 1;
        let v6 = self.local.is_ipv6();
        self.path_mtu = PathMtu::new(v6, self.tx.mss + headers_len(v6));
        let clock = self.ts.map(|ts| ts.clock);
        self.ts = clock
            .zip(offer.tsval)
            .map(|(clock, tsval)| TsState::new(clock, tsval, now));
        self.sack_permitted = offer.sack_permitted;
        self.ecn = offer.ecn;
    }

    /// New data may be scheduled here: it is open, we are not closing it and it is not stuck in
    /// timeouts.
    pub fn is_usable(&self) -> bool {
        self.may_send() && !self.fin_wanted && self.reset.is_none() && self.tx.rtt.backoff() == 0
    }

    /// New text may leave: the handshake is over, or it is plain TCP and Fast Open (RFC 7413 §4.2.2
    /// step 6). Multipath TCP waits: the peer's key, without which there is no DATA_ACK, comes with the
    /// third ACK.
    pub fn may_send(&self) -> bool {
        self.state.may_send() || self.sends_early()
    }

    /// In SYN-RECEIVED, and text may leave all the same.
    pub fn sends_early(&self) -> bool {
        self.fast_open && self.state == State::SynReceived && self.handshake == Handshake::Tcp
    }

    /// Its handshake is over, and it is not being reset.
    pub fn is_open(&self) -> bool {
        !self.state.is_opening() && self.reset.is_none()
    }

    /// Either side wants data here only when nothing else works (RFC 8684 §3.3.8).
    pub fn is_backup(&self) -> bool {
        self.backup || self.local_backup
    }

    /// Whether a segment that is not acceptable is answered now; if so it counts as answered.
    // RFC 5961 §7 limits challenge ACKs. A limit for each flow by itself shows nobody else what
    // another flow draws, as one for all does (CVE-2016-5696).
    pub fn may_answer_invalid(&mut self, now: Instant) -> bool {
        let may = self
            .invalid_answered_at
            .is_none_or(|at| now.since(at) >= INVALID_ANSWER_INTERVAL);
        if may {
            self.invalid_answered_at = Some(now);
        }
        may
    }

    /// A SYN/ACK left before this subflow was kept, with a window of so much.
    pub fn on_syn_ack_was_sent(&mut self, now: Instant, window_bytes: usize) {
        self.handshake_due = false;
        self.handshake_transmissions = 1;
        self.tx.snd_nxt = self.tx.iss + 1;
        self.tx.rto_at = Some(now + self.tx.rtt.rto());
        self.rx.on_ack_sent(window_bytes);
    }

    /// Something is about to leave that is to be acknowledged.
    pub fn before_sent(&mut self, now: Instant) {
        if self.tx.flight_is_empty() {
            self.heard_at = now;
        }
        self.signals = SignalRow::default();
    }

    /// Our FIN left for the first time (RFC 9293 §3.10.4).
    pub fn on_fin_sent(&mut self) {
        self.state = match self.state {
            State::CloseWait => State::LastAck,
            _ => State::FinWait1,
        };
    }

    pub fn window_of(&self, header: &TcpHeader) -> usize {
        usize::from(header.window) << self.snd_wscale
    }

    /// Relative subflow sequence number; our SYN is 0 (RFC 8684 §3.3.1).
    pub fn relative_sent(&self, seq: TcpSeq) -> u32 {
        seq.0.wrapping_sub(self.tx.iss.0)
    }

    /// The same of what is received.
    pub fn relative_received(&self, seq: TcpSeq) -> u32 {
        seq.0.wrapping_sub(self.received_at(0).0)
    }

    /// The sequence number of what the peer sent with this relative one.
    pub fn received_at(&self, relative: u32) -> TcpSeq {
        self.rx.irs + self.syn_text_bytes + relative as usize
    }

    /// Text leaves at `seq` that is `dsn` in the stream: notes from where on both go in step.
    pub fn on_mapped(&mut self, seq: TcpSeq, dsn: DataSeq) {
        let base = (dsn.0 as u32).wrapping_sub(self.relative_sent(seq));
        if base != self.snd_base || seq == self.tx.iss + 1 {
            self.snd_base = base;
            self.in_step_from = dsn;
        }
    }

    /// Takes in a mapping the peer announced, with memory out of `allowance` if it takes more.
    pub fn announce(&mut self, mut mapping: Mapping, allowance: &mut Allowance) -> Announced {
        if mapping.end().at_or_before(self.delivered_to) {
            return Announced::Known;
        }
        self.forget_mappings_before(self.delivered_to);
        let at = self
            .mappings
            .partition_point(|m| m.seq.at_or_before(mapping.seq));
        if let Some(before) = at.checked_sub(1).and_then(|i| self.mappings.get(i))
            && before.end().after(mapping.seq)
        {
            if !before.agrees_with(&mapping) {
                return Announced::Conflict;
            }
            let known = before.end().min(mapping.end()).distance(mapping.seq);
            if known == mapping.len || mapping.checksum.is_some() {
                return Announced::Known;
            }
            mapping.seq += known;
            mapping.dsn += known;
            mapping.len -= known;
        }
        if let Some(after) = self.mappings.get(at)
            && mapping.end().after(after.seq)
        {
            if !after.agrees_with(&mapping) {
                return Announced::Conflict;
            }
            if mapping.checksum.is_some() {
                return Announced::Known;
            }
            // Up to where the known one goes on.
            mapping.len = after.seq.distance(mapping.seq);
        }
        // What is to be delivered next always has room: it makes room for the rest.
        if mapping.seq.after(self.delivered_to) && !self.has_room_for_mapping(allowance) {
            return Announced::NoRoom;
        }
        self.mappings.insert(at, mapping);
        Announced::Known
    }

    /// Whether one more mapping can be kept and a place is left for the one delivered next.
    fn has_room_for_mapping(&mut self, allowance: &mut Allowance) -> bool {
        let (count, places) = (self.mappings.len(), self.mappings.capacity());
        if count + 1 < places {
            return count < MAPPINGS_MAX;
        }
        let more = places.max(FIRST_MAPPINGS);
        let granted =
            allowance.take_beyond_first(places * size_of::<Mapping>(), more * size_of::<Mapping>());
        if granted && count < MAPPINGS_MAX {
            self.mappings.reserve_exact(places + more - count);
        }
        granted && count < MAPPINGS_MAX
    }

    fn forget_mappings_before(&mut self, seq: TcpSeq) {
        let used_up = |mapping: &mut Mapping| mapping.end().at_or_before(seq);
        while self.mappings.pop_front_if(used_up).is_some() {}
        if self.mappings.len() <= 1 && self.mappings.capacity() > FIRST_MAPPINGS {
            self.mappings.shrink_to(FIRST_MAPPINGS);
        }
    }

    /// The mapping that covers `seq`; those that end before it are dropped.
    pub fn mapping_at(&mut self, seq: TcpSeq) -> Option<Mapping> {
        self.forget_mappings_before(seq);
        self.mappings
            .front()
            .filter(|m| m.seq.at_or_before(seq))
            .copied()
    }

    /// Octets of memory to be charged for, but for text.
    pub fn memory_bytes(&self) -> usize {
        let mappings = self.mappings.capacity() * size_of::<Mapping>();
        size_of::<Subflow>()
            + self
                .tx
                .notes_bytes()
                .max(Sender::<SentMapping>::FIRST_NOTES_BYTES)
            + mappings.max(FIRST_MAPPINGS_BYTES)
    }

    /// Octets of memory that hold text received.
    pub fn held_bytes(&self) -> usize {
        self.rx.held_bytes() + self.staged.capacity()
    }

    /// Keeps octets that are in order until they are mapped and verified.
    pub fn staged_push(&mut self, octets: &[u8]) {
        let stored = self.staged.push(octets);
        debug_assert_eq!(stored, octets.len(), "staging holds a window and a mapping");
    }

    /// The lowest data sequence number that may have to be sent again here.
    pub fn lowest_outstanding(&self) -> Option<DataSeq> {
        // New data are ahead of all that was sent before them: the lowest is what is first in flight, or
        // a reinjection behind it. A FIN without text is the last.
        let first = self.tx.flight().next().filter(|s| s.len > 0)?;
        let first = first.mark.dsn + first.seq.distance(first.mark.seq);
        let reinjected = self.reinjections.lowest();
        Some(reinjected.map_or(first, |dsn| dsn.min(first)))
    }

    /// Writes the headers of a segment that acknowledges `rcv_nxt`, in front of `len` octets of text
    /// that already lie in `frame` and whose sum is `sum`. Returns the length of the frame.
    #[expect(clippy::too_many_arguments, reason = "all of it names one segment")]
    pub fn emit(
        &self,
        frame: &mut [u8],
        seq: TcpSeq,
        flags: TcpFlags,
        traffic_class: u8,
        window: u16,
        options: TcpOptions,
        len: usize,
        sum: u16,
    ) -> usize {
        let header = TcpHeader {
            src_port: self.local.port(),
            dst_port: self.remote.port(),
            seq,
            ack: match flags.contains(TcpFlags::ACK) {
                true => self.rx.rcv_nxt,
                false => TcpSeq(0),
            },
            flags,
            window,
            urgent: 0,
            options,
        };
        let (local, remote) = (self.local.ip(), self.remote.ip());
        let link = &self.link;
        frame::emit(frame, link, local, remote, traffic_class, &header, len, sum)
    }

    /// The earliest of this subflow's timers.
    pub fn next_deadline(&self) -> Option<Instant> {
        Instant::earliest([
            self.tx.next_deadline(),
            self.rx.delayed_ack_at,
            self.persist_at,
            self.signals.next_deadline(),
            self.removal.map(|removal| removal.next_at),
        ])
    }
}

/// What we send in a segment, where the peer says what it takes.
fn agreed_mss(offered: u16, local: u16) -> u16 {
    // A peer that claims less than this would only make us send headers.
    offered.clamp(MSS_MIN, local.max(MSS_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every step sends a reinjection, with so many octets of new text before it, or acknowledges
        /// so many octets. Begins both close together and far apart, around where numbers wrap.
        #[test]
        fn the_lowest_reinjection_is_known_without_a_walk(
            steps in prop::collection::vec((any::<bool>(), 0..300usize, 0..1000usize), 1..60),
        ) {
            let stream = DataSeq(u64::MAX - 500);
            let (mut una, mut nxt) = (TcpSeq(u32::MAX - 1000), TcpSeq(u32::MAX - 1000));
            let (mut kept, mut all) = (Reinjections::default(), Vec::new());
            for (sends, octets, at) in steps {
                if sends {
                    nxt += octets + 1;
                    kept.on_sent(nxt, stream + at);
                    all.push((nxt, stream + at));
                } else {
                    una = (una + octets).min(nxt);
                    kept.on_acknowledged(una);
                    all.retain(|(end, _)| end.after(una));
                }
                let lowest = all.iter().map(|(_, dsn)| *dsn).reduce(DataSeq::min);
                prop_assert_eq!(kept.lowest(), lowest);
                prop_assert!(kept.ends.len() <= all.len());
            }
        }
    }
}
