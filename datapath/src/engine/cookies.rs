//! SYN cookies (RFC 4987 §3.6, RFC 8684 §3.1): while too many connections are half open, the answer to
//! a SYN keeps all that is to be known of it, and the client brings that back.
//!
//! ```text
//! ISN    the 4-tuple's number of RFC 6528, its clock's low 24 bits replaced:
//!        18 of a MAC of all, 6 of a MAC of 4-tuple and tick plus the place of the MSS in a table
//! TSval  above the owner: 4 window scale (15: none), 1 SACK, 1 ECN
//! key    56 of a PRF of 4-tuple, tick and the SYN's number, 8 of how often that was tried
//! ```
//! A tick is 2^24 times 4 µs; a cookie lives for the rest of its own and for one more. Without
//! timestamps window scale, SACK and ECN are off.

use super::Engine;
use super::flow::FlowKey;
use super::keys::LocalKey;
use super::open::{CONNECTION_BYTES, Capable, CapableAsked, Opening};
use crate::crypto::{Key, Secrets, SynFacts};
use crate::mptcp::Version;
use crate::mptcp::data::window_shift;
use crate::mptcp::subflow::MSS_MIN;
use crate::port::IfaceId;
use crate::seq::TcpSeq;
use crate::tcp::ecn::Ecn;
use crate::tcp::offer::Offer;
use crate::time::{Duration, Instant};
use crate::wire::frame::Segment;
use crate::wire::mptcp::{CapableContent, MpCapable};
use crate::wire::tcp::{TcpFlags, TcpHeader, TcpOptions, Timestamps};
use std::net::SocketAddr;

/// Bits of the clock below its ticks.
const TICK_BITS: u32 = 24;
/// Ticks after its own in which a cookie is valid.
const TICKS_VALID: u8 = 1;
/// From its first moment to its last a cookie may take so long.
const LIFETIME: Duration = Duration::from_micros(4 * ((TICKS_VALID as u64 + 1) << TICK_BITS));
/// Of the MAC of 4-tuple and tick: enough to tell most segments that come later from what is no cookie.
const TUPLE_BITS: u32 = 6;
const TUPLE_MASK: u32 = (1 << TUPLE_BITS) - 1;
/// Of the MAC of all, in the 18 bits above: once in 2^18 a segment whose predecessors were lost is taken
/// for the first one, and nobody misses their text.
const ALL_MASK: u32 = (1 << (TICK_BITS - TUPLE_BITS)) - 1;

/// What segments may be cut to, by family: Ethernet, tunnels of several kinds, jumbo frames.
const MSS_V4: [u16; 8] = [MSS_MIN, 536, 1_220, 1_340, 1_400, 1_440, 1_460, 8_960];
const MSS_V6: [u16; 8] = [MSS_MIN, 536, 1_220, 1_320, 1_380, 1_420, 1_440, 8_940];

/// In the note of TSval: no window scale.
const UNSCALED: u8 = 15;
const NOTE_SACK: u8 = 0x10;
const NOTE_ECN: u8 = 0x20;

/// What an acknowledged number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cookie {
    /// One of ours, for this very SYN.
    Valid {
        facts: SynFacts,
        mss: u16,
    },
    /// One of ours, but the segment is not the first after the SYN.
    OfLaterSegment,
    Wrong,
}

impl Engine {
    /// Whether SYNs are answered with cookies now.
    pub(super) fn wants_cookies(&self) -> bool {
        self.half_open >= self.config.syn_cookies_from
    }

    /// Whether a client may still have a cookie.
    pub(super) fn cookies_may_return(&self, now: Instant) -> bool {
        self.cookies_until.is_some_and(|until| now < until)
    }

    /// The cookie for a SYN that names this MSS.
    pub(super) fn cookie(&self, facts: &SynFacts, mss: u16) -> TcpSeq {
        encode(&self.secrets, facts, mss)
    }

    /// No connection but the one under way begins with these numbers, theirs and ours. Returns whether
    /// that is news.
    pub(super) fn spend_cookie(
        &mut self,
        now: Instant,
        key: &FlowKey,
        numbers: [TcpSeq; 2],
    ) -> bool {
        self.spent_cookies.spend(now, key, numbers, LIFETIME)
    }

    /// Answers a SYN to `service` and keeps nothing of it.
    pub(super) fn answer_with_cookie(
        &mut self,
        now: Instant,
        iface: IfaceId,
        syn: &Segment<'_>,
        service: usize,
    ) {
        let local = SocketAddr::new(syn.dst, syn.tcp.dst_port);
        let remote = SocketAddr::new(syn.src, syn.tcp.src_port);
        let config = &self.services[service].config;
        let (asks_checksum, bars_initial) = (config.checksum, config.addresses.deny_join_initial);
        let mut offer = Offer::of_syn(syn, config.ecn);
        if offer.tsval.is_none() {
            offer.window_scale = None;
            offer.sack_permitted = false;
            offer.ecn = Ecn::default();
        }
        let facts = facts(now, syn, &offer);
        let clock = self.timestamp_clock(local, remote);
        let mut options = TcpOptions {
            mss: Some(self.local_mss(iface, local.ip())),
            window_scale: offer
                .window_scale
                .map(|_| window_shift(self.config.buffers.receive_max_bytes)),
            sack_permitted: offer.sack_permitted,
            timestamps: offer.tsval.map(|theirs| Timestamps {
                tsval: clock.tsval_with(now, note(&offer)),
                tsecr: theirs,
            }),
            ..TcpOptions::default()
        };
        // RFC 6824 §3.1: version 0 needs the client's key of the SYN, for which there is no place.
        let asked = self.offered_capable(service, syn);
        if let Some(asked) = asked.filter(|asked| asked.version == Version::V1) {
            let key = self.cookie_key(&facts);
            self.metrics.mp_capable_syn_ack_tx += u64::from(key.is_some());
            let checksum = asks_checksum || asked.flags & MpCapable::FLAG_CHECKSUM != 0;
            options.mptcp.capable = key.map(|key| MpCapable {
                version: asked.version.number(),
                flags: asked.version.capable_flags(checksum, bars_initial),
                content: CapableContent::SynAck {
                    sender_key: key.key,
                },
            });
        }
        let header = TcpHeader {
            src_port: local.port(),
            dst_port: remote.port(),
            seq: self.cookie(&facts, offer.mss),
            ack: offer.irs + 1,
            flags: TcpFlags::SYN | TcpFlags::ACK | offer.ecn.syn_ack_flags(),
            window: self.first_window_bytes() as u16,
            urgent: 0,
            options,
        };
        self.metrics.syncookies_sent += 1;
        self.cookies_until = Some(now + LIFETIME);
        self.queue_reply(iface, syn, header);
    }

    /// A segment of no known flow that may bring a cookie back. Returns whether that was so: then a
    /// connection is open, or the segment is left to its retransmission.
    pub(super) fn on_cookie(
        &mut self,
        now: Instant,
        iface: IfaceId,
        segment: &Segment<'_>,
        key: FlowKey,
    ) -> bool {
        let header = &segment.tcp;
        let acknowledges = header.flags.contains(TcpFlags::ACK)
            && !header.flags.intersects(TcpFlags::SYN | TcpFlags::RST);
        if !acknowledges || !self.cookies_may_return(now) || self.draining {
            return false;
        }
        let local = SocketAddr::new(segment.dst, header.dst_port);
        let Some(service) = self.service_at(local) else {
            return false;
        };
        let (facts, mss) = match self.cookie_in(now, segment) {
            Cookie::Valid { facts, mss } => (facts, mss),
            Cookie::OfLaterSegment => {
                // The first ones were lost. It would be a pity to reset a client whose retransmission
                // brings it all.
                self.metrics.syncookies_awaited += 1;
                return true;
            }
            Cookie::Wrong => {
                self.metrics.syncookies_failed += 1;
                return false;
            }
        };
        let Some(offer) = self.kept_offer(now, segment, &facts, mss) else {
            self.metrics.syncookies_failed += 1;
            return false;
        };
        if segment.tcp.options.mptcp.capable.is_none() && segment.tcp.options.mptcp.dss.is_some() {
            // RFC 8684 §3.1: it belongs behind the segment with the keys, which was lost.
            self.metrics.mp_capable_ack_awaited += 1;
            return true;
        }
        let full = self.connections.len() >= self.config.connections_max;
        let room = self.memory.admits(CONNECTION_BYTES);
        if (full || !room) && self.stranded.count() == 0 {
            // There may be room when it comes again.
            self.metrics.listen_overflows += u64::from(full);
            self.metrics.memory_refused += u64::from(!room);
            return true;
        }
        // A late copy of a segment is to open no second connection, nor bring its text twice.
        let iss = header.ack - 1;
        if !self.spend_cookie(now, &key, [facts.irs, iss]) {
            self.metrics.syncookies_failed += 1;
            return false;
        }
        // One cookie ends one connection that waits, and no more.
        if full || !room {
            self.end_oldest_stranded(now);
        }
        if !self.memory.admits(CONNECTION_BYTES) {
            self.metrics.memory_refused += 1;
            return false;
        }
        self.metrics.syncookies_recv += 1;
        let capable = self.returned_key(&facts, segment);
        let opening = Opening {
            service,
            offer,
            iss,
            capable,
        };
        let index = self.open(now, iface, segment, key, opening);
        let window_bytes = self.first_window_bytes();
        for (_, subflow) in &mut self.connections[index].subflows {
            subflow.on_syn_ack_was_sent(now, window_bytes);
        }
        // The rest is as after any SYN/ACK.
        self.on_segment(now, iface.into(), segment);
        true
    }

    /// What a SYN with these facts and this MSS said beside them, as TSecr brings it back; `None`: that
    /// is no TSval of ours.
    fn kept_offer(
        &self,
        now: Instant,
        segment: &Segment<'_>,
        facts: &SynFacts,
        mss: u16,
    ) -> Option<Offer> {
        let mut offer = Offer {
            irs: facts.irs,
            mss,
            window_scale: None,
            sack_permitted: false,
            tsval: None,
            ecn: Ecn::default(),
        };
        if let Some(ts) = segment.tcp.options.timestamps {
            let clock = self.timestamp_clock(facts.local, facts.remote);
            let note = clock.note_in(now, ts.tsecr, LIFETIME)?;
            let scale = note & UNSCALED;
            offer.window_scale = (scale != UNSCALED).then_some(scale);
            offer.sack_permitted = note & NOTE_SACK != 0;
            offer.ecn = Ecn::agreed(note & NOTE_ECN != 0);
            offer.tsval = Some(ts.tsval);
        }
        Some(offer)
    }

    fn cookie_in(&self, now: Instant, segment: &Segment<'_>) -> Cookie {
        let facts = SynFacts {
            local: SocketAddr::new(segment.dst, segment.tcp.dst_port),
            remote: SocketAddr::new(segment.src, segment.tcp.src_port),
            // RFC 8684 §3.1: the third ACK or, if that was lost, the first segment with data.
            irs: segment.tcp.seq - 1,
            timestamps: segment.tcp.options.timestamps.is_some(),
            tick: tick(now),
        };
        decode(&self.secrets, facts, segment.tcp.ack - 1)
    }

    /// Our key for this SYN, with a token that is free and names us; the same every time, as long as
    /// no other connection takes that token.
    // RFC 8684 §3.1: without such a key there is no MP_CAPABLE in the SYN/ACK.
    pub(super) fn cookie_key(&mut self, facts: &SynFacts) -> Option<LocalKey> {
        let key = (0..=u8::MAX).find_map(|number| {
            let own = self.keys.own(self.secrets.cookie_key(facts, number))?;
            self.is_free(own.token).then_some(own)
        });
        self.metrics.mp_fallback_token_init += u64::from(key.is_none());
        key
    }

    /// The key that MP_CAPABLE brings back, if it is ours and nobody has taken its token since.
    fn returned_key(&mut self, facts: &SynFacts, segment: &Segment<'_>) -> Option<Capable> {
        let capable = segment.tcp.options.mptcp.capable?;
        let (CapableContent::Ack { receiver_key, .. } | CapableContent::Data { receiver_key, .. }) =
            capable.content
        else {
            return None;
        };
        let expected = Key(self.secrets.cookie_key(facts, receiver_key as u8));
        let own = self.keys.own(receiver_key);
        let understood = Version::V1.understands(&capable);
        let Some(key) = own.filter(|_| understood && expected.matches(receiver_key)) else {
            self.metrics.mp_capable_fallback_ack += 1;
            return None;
        };
        if !self.is_free(key.token) {
            self.metrics.mp_fallback_token_init += 1;
            return None;
        }
        let asked = CapableAsked {
            version: Version::V1,
            // The third packet confirms what either SYN asked for.
            flags: capable.flags,
            key: None,
        };
        Some(Capable { key, asked })
    }

    fn is_free(&self, token: u32) -> bool {
        !self.tokens.contains_key(&token)
    }

    /// RFC 7323 §2.2: the window of a SYN is never scaled.
    fn first_window_bytes(&self) -> usize {
        let initial = self.config.buffers.receive_initial_bytes;
        initial.min(usize::from(u16::MAX))
    }
}

/// What a cookie for a SYN with this offer is made of.
pub(super) fn facts(now: Instant, syn: &Segment<'_>, offer: &Offer) -> SynFacts {
    SynFacts {
        local: SocketAddr::new(syn.dst, syn.tcp.dst_port),
        remote: SocketAddr::new(syn.src, syn.tcp.src_port),
        irs: offer.irs,
        timestamps: offer.tsval.is_some(),
        tick: tick(now),
    }
}

/// How far the clock of RFC 6528 has come, coarsely.
fn tick(now: Instant) -> u32 {
    ((now.as_micros() / 4) >> TICK_BITS) as u32
}

/// What TSval keeps of an offer.
fn note(offer: &Offer) -> u8 {
    let scale = offer.window_scale.map_or(UNSCALED, |scale| scale.min(14));
    let sack = if offer.sack_permitted { NOTE_SACK } else { 0 };
    let ecn = if offer.ecn.is_agreed() { NOTE_ECN } else { 0 };
    scale | sack | ecn
}

/// The initial sequence number that says `facts` and an MSS of no more than `mss`.
fn encode(secrets: &Secrets, facts: &SynFacts, mss: u16) -> TcpSeq {
    let table = mss_table(facts);
    let place = table
        .partition_point(|&entry| entry <= mss)
        .saturating_sub(1) as u32;
    let of_all = secrets.cookie_mac(facts, place) & ALL_MASK;
    let of_tuple = secrets.cookie_tuple_mac(facts).wrapping_add(place) & TUPLE_MASK;
    let number = facts.tick << TICK_BITS | of_all << TUPLE_BITS | of_tuple;
    let base = secrets.isn(Instant::ZERO, facts.local, facts.remote);
    TcpSeq(base.0.wrapping_add(number))
}

/// What `iss` is, for a segment that would have `facts` at the present tick.
fn decode(secrets: &Secrets, mut facts: SynFacts, iss: TcpSeq) -> Cookie {
    let base = secrets.isn(Instant::ZERO, facts.local, facts.remote);
    let number = iss.0.wrapping_sub(base.0);
    let age = (facts.tick as u8).wrapping_sub((number >> TICK_BITS) as u8);
    if age > TICKS_VALID {
        return Cookie::Wrong;
    }
    facts.tick = facts.tick.wrapping_sub(u32::from(age));
    // In the lowest bits, which differ as soon as anything more is acknowledged than our SYN.
    let place = number.wrapping_sub(secrets.cookie_tuple_mac(&facts)) & TUPLE_MASK;
    let Some(&mss) = mss_table(&facts).get(place as usize) else {
        return Cookie::Wrong;
    };
    let of_all = secrets.cookie_mac(&facts, place) & ALL_MASK;
    match number >> TUPLE_BITS & ALL_MASK == of_all {
        true => Cookie::Valid { facts, mss },
        false => Cookie::OfLaterSegment,
    }
}

fn mss_table(facts: &SynFacts) -> &'static [u16; 8] {
    if facts.local.is_ipv4() {
        &MSS_V4
    } else {
        &MSS_V6
    }
}

#[cfg(test)]
mod tests;
