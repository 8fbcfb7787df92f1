//! The path MTU of one subflow, in octets of IP packets.
//!
//! It falls when a router says that a packet was too big (RFC 1191, RFC 8201), and when timeouts in a
//! row look like a black hole: a path that drops big packets and says nothing (RFC 4821 §7.7). It
//! rises by probes, segments of new data that are larger than the others (RFC 4821 §7). It begins at
//! what interface and peer allow, so that on a sound path nothing of this costs anything (§7.2, "a
//! conservative configuration").

use crate::time::{Duration, Instant};
use crate::wire::ipv4;

/// RFC 8200 §5: every link takes this much.
const MINIMUM_V6: usize = 1280;
/// RFC 791 would go down to 68: a forged error would have us send headers. Linux's `min_pmtu`.
const MINIMUM_V4: usize = 552;
/// RFC 4821 §7.2: 1024 is "probably safe enough"; as in Linux it is octets of text.
const BASE_V4: usize = 1024 + 40;

/// Timeouts in a row of one segment that are taken for a black hole, where nothing as large has ever
/// arrived: the third copy is a small one.
const BLACKHOLE_TIMEOUTS: u32 = 2;
/// The same where packets as large have arrived or most paths take them, which speaks for plain loss
/// or an outage.
/// RFC 4821 §7.7: R1 of RFC 1122 §4.2.3.5, three retransmissions in vain.
const BLACKHOLE_TIMEOUTS_PROVEN: u32 = 4;
/// RFC 4821 §7.3, RFC 8201 §4: before larger packets are tried again.
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// The search is over when no more than this is to be won (Linux's `tcp_probe_threshold`).
const WORTHWHILE: usize = 8;
/// RFC 4821 §7.6.3: a probe that cost a timeout is so much dearer.
const TIMEOUT_FACTOR: u32 = 5;

/// RFC 1191 §7, table 7-1, as far as a minimum of ours lies below.
const PLATEAUS: [usize; 8] = [
    32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, MINIMUM_V4,
];

#[derive(Clone, Debug)]
pub struct PathMtu {
    /// What segments are cut for (RFC 4821 §7.1: eff_pmtu, and search_low while probes go out).
    current: usize,
    /// No larger packet is expected to arrive (search_high).
    high: usize,
    /// What interface and peer allow, where `high` begins.
    limit: usize,
    minimum: usize,
    base: usize,
    /// The largest packet that has arrived, or `current` if that is less (RFC 4821 §7.1: an implicit
    /// probe).
    proven: usize,
    /// Octets of the probe in flight.
    probe: Option<usize>,
    /// None is sent before; without one it is as large as it gets.
    probe_at: Instant,
}

/// Why an error changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It claims less than every link, or every sensible one, takes.
    BelowMinimum,
    /// It claims no less than what is sent anyway, or than the packet that it quotes.
    NotSmaller,
}

/// What became of a probe (RFC 4821 §7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeFate {
    Arrived,
    /// It alone was lost.
    Lost,
    /// It was lost and cost a timeout, all before it having arrived.
    TimedOut,
    /// Others were lost with it.
    Inconclusive,
}

impl PathMtu {
    /// `limit`: octets that the interface takes and the peer's MSS allows.
    pub fn new(v6: bool, limit: usize) -> PathMtu {
        let (minimum, base) = if v6 {
            (MINIMUM_V6, MINIMUM_V6)
        } else {
            (MINIMUM_V4, BASE_V4)
        };
        PathMtu {
            current: limit,
            high: limit,
            limit,
            minimum: minimum.min(limit),
            base: base.min(limit),
            proven: 0,
            probe: None,
            probe_at: Instant::ZERO,
        }
    }

    /// Octets of the largest packet that is no probe.
    pub fn current(&self) -> usize {
        self.current
    }

    /// A router says that a packet of `packet_len` octets was too big; the next link takes
    /// `next_hop_mtu`, if it says that, too.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn on_too_big(
        &mut self,
        now: Instant,
        next_hop_mtu: Option<usize>,
        packet_len: usize,
    ) -> Result<(), Refused> {
        let largest = self.probe.unwrap_or(self.current);
        let mtu = next_hop_mtu.unwrap_or_else(|| self.plateau_below(packet_len));
        // RFC 8201 §4: it must be discarded.
        if mtu < self.minimum {
            return Err(Refused::BelowMinimum);
        }
        // RFC 1191 §6.4, RFC 8201 §4: an error never raises the estimate, and one that does not lower
        // it tells of a packet that is long repaired.
        if mtu >= largest || mtu >= packet_len {
            return Err(Refused::NotSmaller);
        }
        self.probe = None;
        self.high = mtu;
        self.fall_to(mtu);
        // RFC 8201 §4: no attempt at more within 5 minutes; 10 are recommended.
        self.probe_at = now + RAISE_AFTER;
        Ok(())
    }

    /// RFC 1191 §5: what the next link takes, where an old IPv4 router does not say. Some of them add
    /// the header's length to the packet's.
    fn plateau_below(&self, packet_len: usize) -> usize {
        let packet_len = if packet_len >= self.current {
            packet_len.saturating_sub(ipv4::HEADER_LEN)
        } else {
            packet_len
        };
        let below = PLATEAUS.iter().copied().find(|p| *p < packet_len);
        below.unwrap_or(self.minimum)
    }

    /// The oldest segment in flight, a packet of `packet_len` octets, timed out for the
    /// `in_a_row`-th time. Returns whether that is taken for a black hole: the path MTU has fallen.
    // RFC 4821 §7.7: to the base first, and if that does not help to the minimum. Of packets no
    // larger than the base it takes more to believe it.
    pub fn on_timeout(&mut self, now: Instant, in_a_row: u32, packet_len: usize) -> bool {
        let small = packet_len <= self.base;
        let next = if self.current > self.base && !small {
            self.base
        } else {
            self.minimum
        };
        let least = if packet_len <= self.proven || small {
            BLACKHOLE_TIMEOUTS_PROVEN
        } else {
            BLACKHOLE_TIMEOUTS
        };
        let fires = in_a_row >= least && in_a_row.is_multiple_of(BLACKHOLE_TIMEOUTS);
        if !fires || packet_len <= next || self.current <= next {
            return false;
        }
        self.fall_to(next);
        // It may have been an outage: what worked before is looked for as soon as text gets through.
        self.probe_at = now;
        true
    }

    fn fall_to(&mut self, size: usize) {
        self.current = self.current.min(size);
        self.proven = self.proven.min(self.current);
    }

    /// A packet of `packet_len` octets has arrived.
    pub fn on_arrived(&mut self, packet_len: usize) {
        self.proven = self.proven.max(packet_len.min(self.current));
    }

    /// Octets of the packet that a probe would be now, if one is due.
    pub fn probe_due(&self, now: Instant) -> Option<usize> {
        if self.limit == self.current || self.probe.is_some() || now < self.probe_at {
            return None;
        }
        // RFC 4821 §7.3: once the timer has expired, the search goes on from where it began.
        let high = if self.converged() {
            self.limit
        } else {
            self.high
        };
        let gap = high - self.current;
        Some(if gap <= WORTHWHILE {
            high
        } else {
            high - gap / 2
        })
    }

    /// The probe that was due has left.
    pub fn on_probe_sent(&mut self, size: usize) {
        if self.converged() {
            self.high = self.limit;
        }
        self.probe = Some(size);
    }

    /// `window_time`: as many round trips as the congestion window has segments, after which another
    /// loss could be expected anyway.
    pub fn on_probe_result(&mut self, now: Instant, fate: ProbeFate, window_time: Duration) {
        let Some(size) = self.probe.take() else {
            return;
        };
        // RFC 4821 §7.6.2: a failure hides a sign of congestion, so it must be rarer than those.
        let wait = match fate {
            // §7.6.4: the same again as soon as all is repaired.
            ProbeFate::Inconclusive => return,
            ProbeFate::Arrived => {
                self.current = self.current.max(size);
                self.proven = self.current;
                Duration::ZERO
            }
            ProbeFate::Lost => window_time,
            ProbeFate::TimedOut => window_time.saturating_mul(TIMEOUT_FACTOR),
        };
        if fate != ProbeFate::Arrived {
            self.high = (size - 1).max(self.current);
        }
        self.probe_at = if self.converged() {
            now + RAISE_AFTER
        } else {
            now + wait
        };
    }

    /// The search has come to its end. What lies below `limit` has failed; the limit itself is worth
    /// a last probe.
    fn converged(&self) -> bool {
        let worthwhile = if self.high < self.limit {
            WORTHWHILE
        } else {
            0
        };
        self.high - self.current <= worthwhile
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Instant = Instant(1_000_000_000);
    const MS: Duration = Duration::from_millis(1);
    const WINDOW: Duration = Duration::from_secs(1);

    fn told(path: &mut PathMtu, mtu: usize) -> Result<(), Refused> {
        path.on_too_big(T, Some(mtu), path.current())
    }

    // RFC 8201 §4, and Linux's min_pmtu for IPv4.
    #[test]
    fn the_minimum_is_believed_and_one_octet_less_is_not() {
        for (v6, minimum) in [(false, 552), (true, 1280)] {
            let mut path = PathMtu::new(v6, 1500);
            assert_eq!(told(&mut path, minimum - 1), Err(Refused::BelowMinimum));
            assert_eq!(path.current(), 1500);
            assert_eq!(told(&mut path, minimum), Ok(()));
            assert_eq!(path.current(), minimum);
        }
    }

    #[test]
    fn an_error_must_claim_less_than_what_is_sent_and_than_what_it_quotes() {
        let mut path = PathMtu::new(false, 1500);
        assert_eq!(told(&mut path, 1500), Err(Refused::NotSmaller));
        assert_eq!(told(&mut path, 1499), Ok(()));
        let quoting = |path: &mut PathMtu, len| path.on_too_big(T, Some(1400), len);
        assert_eq!(quoting(&mut path, 1400), Err(Refused::NotSmaller));
        assert_eq!(quoting(&mut path, 1401), Ok(()));
        assert_eq!(path.current(), 1400);
    }

    // RFC 1191 §5, §7.
    #[test]
    fn a_router_that_names_no_mtu_is_answered_with_the_next_plateau() {
        let mut path = PathMtu::new(false, 1500);
        // As long as the largest: maybe counted with its header twice.
        assert_eq!(path.on_too_big(T, None, 1500), Ok(()));
        assert_eq!(path.current(), 1006);
        let mut path = PathMtu::new(false, 1500);
        assert_eq!(path.on_too_big(T, None, 1499), Ok(()));
        assert_eq!(path.current(), 1492);
        for expected in [1006, 552] {
            let len = path.current();
            assert_eq!(path.on_too_big(T, None, len), Ok(()));
            assert_eq!(path.current(), expected);
        }
        assert_eq!(path.on_too_big(T, None, 552), Err(Refused::NotSmaller));
    }

    // RFC 4821 §7.7.
    #[test]
    fn the_second_timeout_of_a_big_segment_is_a_black_hole_and_the_first_is_not() {
        let mut path = PathMtu::new(false, 1500);
        assert!(!path.on_timeout(T, 1, 1500));
        assert!(!path.on_timeout(T, 2, 1064), "small enough for the base");
        assert_eq!(path.current(), 1500);
        let mut short = path.clone();
        assert!(!short.on_timeout(T, 3, 553) && short.on_timeout(T, 4, 553));
        assert_eq!(short.current(), 552);
        assert!(path.on_timeout(T, 2, 1065));
        assert_eq!(path.current(), 1064);
        assert!(!path.on_timeout(T, 3, 1064) && path.on_timeout(T, 4, 1064));
        assert_eq!(path.current(), 552);
        assert!(!path.on_timeout(T, 6, 552));
        let mut path = PathMtu::new(true, 1500);
        assert!(path.on_timeout(T, 2, 1500));
        assert!(!path.on_timeout(T, 4, 1280));
        assert_eq!(path.current(), 1280);
    }

    #[test]
    fn what_has_arrived_before_is_given_up_at_the_fourth_timeout_and_not_at_the_third() {
        let mut path = PathMtu::new(false, 1500);
        path.on_arrived(1499);
        assert!(path.clone().on_timeout(T, 2, 1500), "that has not");
        path.on_arrived(1500);
        assert!(!path.on_timeout(T, 2, 1500) && !path.on_timeout(T, 3, 1500));
        assert!(path.on_timeout(T, 4, 1500));
        assert_eq!(path.current(), 1064);
        assert!(path.on_timeout(T, 6, 1064));
        assert_eq!(path.current(), 552);
    }

    /// Searches until nothing is due at `now`, on a path that takes `real`. Returns how many probes
    /// failed.
    fn search(path: &mut PathMtu, now: &mut Instant, real: usize) -> usize {
        let mut failed = 0;
        for _ in 0..40 {
            let Some(size) = path.probe_due(*now) else {
                return failed;
            };
            assert!(size > path.current());
            path.on_probe_sent(size);
            assert_eq!(path.probe_due(*now), None, "one at a time");
            if size <= real {
                path.on_probe_result(*now, ProbeFate::Arrived, WINDOW);
                assert_eq!(path.current(), size);
            } else {
                failed += 1;
                path.on_probe_result(*now, ProbeFate::Lost, WINDOW);
                assert_eq!(path.probe_due(*now + (WINDOW - MS)), None);
                *now = *now + WINDOW;
            }
        }
        panic!("it finds no end at {path:?}");
    }

    // RFC 4821 §7.3, §7.6.
    #[test]
    fn the_search_ends_close_below_what_the_path_takes() {
        for real in 1280..=1500 {
            let mut path = PathMtu::new(true, 1500);
            path.on_timeout(T, 2, 1500);
            let mut now = T;
            let failed = search(&mut path, &mut now, real);
            assert!(path.current() <= real && real <= path.current() + WORTHWHILE);
            assert!(failed <= 8, "{failed} for {real}");
            // An outage, no black hole: all the way back without a loss.
            assert!(real < 1500 || (path.current(), failed) == (1500, 0));
        }
    }

    // RFC 4821 §7.3, RFC 8201 §4.
    #[test]
    fn a_larger_packet_is_tried_after_ten_minutes_and_not_before() {
        let mut path = PathMtu::new(false, 1500);
        told(&mut path, 1300).expect("it is less");
        assert_eq!(path.probe_due(T + (RAISE_AFTER - MS)), None);
        let mut now = T + RAISE_AFTER;
        assert_eq!(path.probe_due(now), Some(1400));
        // It has not changed.
        search(&mut path, &mut now, 1300);
        assert!((1292..=1300).contains(&path.current()));
        assert_eq!(path.probe_due(now), None);
        now = now + RAISE_AFTER;
        search(&mut path, &mut now, 1500);
        assert_eq!(path.current(), 1500);
        assert_eq!(path.probe_due(now + RAISE_AFTER), None, "nothing to win");
    }

    // RFC 4821 §7.6.3, §7.6.4.
    #[test]
    fn a_probe_that_costs_a_timeout_waits_longer_and_an_unclear_one_is_repeated() {
        let mut path = PathMtu::new(false, 1500);
        path.on_timeout(T, 2, 1500);
        let size = path.probe_due(T).expect("at once");
        path.on_probe_sent(size);
        path.on_probe_result(T, ProbeFate::Inconclusive, WINDOW);
        assert_eq!(path.probe_due(T), Some(size));
        path.on_probe_sent(size);
        path.on_probe_result(T, ProbeFate::TimedOut, WINDOW);
        assert_eq!(path.probe_due(T + (WINDOW * TIMEOUT_FACTOR - MS)), None);
        let next = path.probe_due(T + WINDOW * TIMEOUT_FACTOR);
        assert!(next.is_some_and(|next| next < size));
    }

    // RFC 4821 §7.6.2: an error about the probe. It bounds the search and never raises what is sent.
    #[test]
    fn an_error_about_a_probe_ends_the_search() {
        let mut path = PathMtu::new(false, 1500);
        told(&mut path, 1300).expect("it is less");
        let later = T + RAISE_AFTER;
        let size = path.probe_due(later).expect("a probe");
        path.on_probe_sent(size);
        assert_eq!(path.on_too_big(later, Some(1350), size), Ok(()));
        assert_eq!(path.current(), 1300);
        assert_eq!(path.probe_due(later + (RAISE_AFTER - MS)), None);
        // Its loss is no news any more.
        path.on_probe_result(later, ProbeFate::Lost, WINDOW);
        assert!(path.probe_due(later + RAISE_AFTER).is_some());
    }

    #[test]
    fn a_peer_or_an_interface_that_takes_less_than_the_minimum_is_left_alone() {
        let mut path = PathMtu::new(true, 600);
        assert!(!path.on_timeout(T, 2, 600));
        assert_eq!(told(&mut path, 599), Err(Refused::BelowMinimum));
        assert_eq!((path.current(), path.probe_due(T)), (600, None));
    }
}
