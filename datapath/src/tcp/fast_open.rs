//! TCP Fast Open (RFC 7413): cookies, and how many connections may be open early at a time.

use crate::crypto;
use crate::time::{Duration, Instant};
use crate::wire::tcp::FastOpenCookie;
use std::collections::VecDeque;
use std::net::IpAddr;

/// A cookie is good until its key and the next one are used up: between one and two of these.
pub const KEY_PERIOD: Duration = Duration::from_millis(KEY_PERIOD_MS);
const KEY_PERIOD_MS: u64 = 4 * 3600 * 1000;

/// For so long a request that was reset counts as pending (RFC 7413 §5.1): a spoofed client's RST
/// would make room for the next spoofed SYN.
pub const RESET_COUNTS_FOR: Duration = Duration::from_secs(60);

/// What a service makes of text in a SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FastOpen {
    /// RFC 7413 §4.2: it must be turned on explicitly. Cookie options are ignored.
    #[default]
    Off,
    On,
    /// RFC 7413 §7.3: whoever can send a SYN is believed. For networks where nobody forges addresses.
    WithoutCookies,
}

/// What a cookie is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Good,
    /// Good for less than another period: time for a new one.
    Ageing,
    Bad,
}

/// Issues cookies and knows its own again (RFC 7413 §4.1.2), without a record of any: they are MACs
/// of the client's address under a key that changes with time.
#[derive(Debug)]
pub struct Cookies {
    secret: [u8; 16],
    period: u64,
    current: [u8; 16],
    previous: [u8; 16],
}

impl Cookies {
    /// Whoever has the same `secret` and the same clock issues and takes the same cookies.
    pub fn new(secret: [u8; 16]) -> Cookies {
        let mut cookies = Cookies {
            secret,
            period: 0,
            current: [0; 16],
            previous: [0; 16],
        };
        cookies.enter(0);
        cookies
    }

    /// RFC 7413 §4.1.2, GetCookie.
    pub fn issue(&mut self, now: Instant, client: IpAddr) -> FastOpenCookie {
        self.rotate(now);
        crypto::fast_open_cookie(&self.current, client)
    }

    /// RFC 7413 §4.1.2, IsCookieValid.
    pub fn judge(&mut self, now: Instant, client: IpAddr, cookie: &FastOpenCookie) -> Validity {
        self.rotate(now);
        let under = |key| crypto::fast_open_cookie(key, client).matches(cookie);
        if under(&self.current) {
            Validity::Good
        } else if under(&self.previous) {
            Validity::Ageing
        } else {
            Validity::Bad
        }
    }

    fn rotate(&mut self, now: Instant) {
        let period = now.as_millis() / KEY_PERIOD_MS;
        if period != self.period {
            self.enter(period);
        }
    }

    fn enter(&mut self, period: u64) {
        self.period = period;
        self.current = crypto::fast_open_key(&self.secret, period);
        // Before the first period nothing was issued.
        self.previous = crypto::fast_open_key(&self.secret, period.wrapping_sub(1));
    }
}

/// RFC 7413 §4.2, PendingFastOpenRequests of one service: open to the application, not yet known to
/// have come from where they say.
#[derive(Debug, Default)]
pub struct Pending {
    open: usize,
    /// When those that were reset stop counting, the first one first.
    reset: VecDeque<Instant>,
}

impl Pending {
    /// Whether there is room below `max` for another one.
    pub fn admits(&mut self, now: Instant, max: usize) -> bool {
        while self.reset.front().is_some_and(|until| *until <= now) {
            self.reset.pop_front();
        }
        self.open + self.reset.len() < max
    }

    pub fn begin(&mut self) {
        self.open += 1;
    }

    /// Its handshake is over, or it was given up.
    pub fn end(&mut self) {
        self.open -= 1;
    }

    /// It was reset.
    pub fn end_reset(&mut self, now: Instant) {
        self.end();
        self.reset.push_back(now + RESET_COUNTS_FOR);
    }

    /// Requests that count now.
    pub fn len(&self) -> usize {
        self.open + self.reset.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    // RFC 7413 §4.1.2: a cookie expires, and not before the client has had the time to get the next
    // one: it is good until the end of the period after its own.
    #[test]
    fn a_cookie_outlives_its_key_by_one_period() {
        let issued_at = Instant::ZERO + (KEY_PERIOD * 3 - Duration::from_millis(1));
        let mut cookies = Cookies::new([7; 16]);
        let cookie = cookies.issue(issued_at, CLIENT);
        let rotated_at = Instant::ZERO + KEY_PERIOD * 3;
        for (at, expected) in [
            (issued_at, Validity::Good),
            (rotated_at, Validity::Ageing),
            (
                rotated_at + (KEY_PERIOD - Duration::from_millis(1)),
                Validity::Ageing,
            ),
            (rotated_at + KEY_PERIOD, Validity::Bad),
        ] {
            assert_eq!(cookies.judge(at, CLIENT, &cookie), expected, "{at:?}");
        }
        assert_ne!(cookies.issue(rotated_at, CLIENT), cookie);
        // Another worker with the same secret, which has seen no time pass.
        let mut other = Cookies::new([7; 16]);
        assert_eq!(other.judge(rotated_at, CLIENT, &cookie), Validity::Ageing);
    }

    // RFC 7413 §4.1.2: it is the client's address that it authenticates, whole, and only the server
    // can make it.
    #[test]
    fn a_cookie_is_of_one_address_and_one_secret() {
        let now = Instant::from_millis(1);
        let mut cookies = Cookies::new([7; 16]);
        let cookie = cookies.issue(now, CLIENT);
        for other in ["192.0.2.2", "::ffff:192.0.2.1", "2001:db8::1"] {
            let other = other.parse().expect("an address");
            assert_eq!(cookies.judge(now, other, &cookie), Validity::Bad);
        }
        assert_eq!(
            Cookies::new([8; 16]).judge(now, CLIENT, &cookie),
            Validity::Bad
        );
        let octets = cookie.as_slice();
        for at in 0..octets.len() {
            let mut forged = octets.to_vec();
            forged[at] ^= 1;
            let forged = FastOpenCookie::new(&forged).expect("it has the length of one");
            assert_eq!(cookies.judge(now, CLIENT, &forged), Validity::Bad);
        }
        // A part of it is not it.
        let part = FastOpenCookie::new(&octets[..4]).expect("the least length");
        assert_eq!(cookies.judge(now, CLIENT, &part), Validity::Bad);
    }

    // RFC 7413 §4.2, §5.1: at the limit there is room for no more, and what is reset makes none for a
    // minute.
    #[test]
    fn the_limit_counts_what_was_reset_a_minute_ago() {
        let now = Instant::from_millis(1000);
        let mut pending = Pending::default();
        for _ in 0..2 {
            assert!(pending.admits(now, 2));
            pending.begin();
        }
        assert!(!pending.admits(now, 2));
        pending.end_reset(now);
        let last = now + (RESET_COUNTS_FOR - Duration::from_millis(1));
        assert!(!pending.admits(last, 2));
        assert!(pending.admits(now + RESET_COUNTS_FOR, 2));
        pending.begin();
        pending.end();
        assert!(pending.admits(now + RESET_COUNTS_FOR, 2));
        assert_eq!(pending.len(), 1);
    }
}
