//! What anybody can send in crowds, SYNs and segments of no flow, and how much of it is let through.
//!
//! A worker that has to look at every one of them loses frames of its clients with theirs, while here one
//! costs next to nothing. So many of each kind are let through in a window of time; and of SYNs as well
//! those from where a client has lately shown that it is there.

/// A window is 2^26 ns, 67 ms.
const WINDOW_SHIFT: u32 = 26;
/// For how many windows an address is believed in, 10 minutes.
const PROOF_WINDOWS: u32 = ((600 * 1_000_000_000u64) >> WINDOW_SHIFT) as u32;
/// All proven sources together have so many times what strangers have together, and each of them once as
/// much: whoever has many addresses is as bounded as whoever forges them.
pub const SOURCES_TIMES: u32 = 2;

/// The window of a time of the monotonic clock.
#[inline(always)]
pub const fn window_of(now_ns: u64) -> u32 {
    (now_ns >> WINDOW_SHIFT) as u32
}

/// What may come in a window, of so many in a second: at least one.
pub const fn per_window(per_second: u32) -> u32 {
    let share = ((per_second as u64) << WINDOW_SHIFT) / 1_000_000_000;
    if share == 0 { 1 } else { share as u32 }
}

/// A window, and how many came in it.
pub type Tally = [u32; 2];

/// Counts one more, if there may be one.
#[inline(always)]
pub const fn take(tally: &mut Tally, window: u32, max: u32) -> bool {
    if tally[0] != window {
        *tally = [window, 0];
    }
    if tally[1] >= max {
        return false;
    }
    tally[1] += 1;
    true
}

/// An address as in [`crate::ServiceKey`], of IPv6 its network of 64 bits: whoever has one has all.
pub type SourceKey = [u8; 16];

/// When a client there has shown that it is there, as a window, and the [`Tally`] of its SYNs.
pub type SourceWords = [u32; 3];

/// The key of a source.
#[inline(always)]
pub const fn source_key(mut address: [u8; 16]) -> SourceKey {
    // IPv4-mapped addresses begin with zeros, and no network that is in use does.
    if address[0] | address[1] != 0 {
        let mut at = 8;
        while at < 16 {
            address[at] = 0;
            at += 1;
        }
    }
    address
}

/// Of a source whose client has shown now that it is there.
pub const fn proven(now_ns: u64) -> SourceWords {
    [window_of(now_ns), 0, 0]
}

/// Counts one more SYN of a source, of which there may be `max`.
#[inline(always)]
pub const fn take_of_source(source: &mut SourceWords, window: u32, max: u32) -> bool {
    let [proven, at, count] = *source;
    let mut tally = [at, count];
    let taken = window.wrapping_sub(proven) < PROOF_WINDOWS && take(&mut tally, window, max);
    *source = [proven, tally[0], tally[1]];
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW_NS: u64 = 1 << WINDOW_SHIFT;

    #[test]
    fn a_window_has_its_share_and_the_next_one_as_many() {
        assert_eq!([0, 14, 15, 1_000].map(per_window), [1, 1, 1, 67]);
        assert_eq!(per_window(u32::MAX), 288_230_376);
        let mut tally = Tally::default();
        for window in [0, 1, 7, u32::MAX] {
            assert!((0..3).all(|_| take(&mut tally, window, 3)));
            assert!(!take(&mut tally, window, 3));
        }
        assert_eq!(window_of(WINDOW_NS - 1), 0);
        assert_eq!(window_of(WINDOW_NS), 1);
    }

    #[test]
    fn a_source_has_a_share_of_its_own_until_its_proof_is_old() {
        let proven_at = 5 * WINDOW_NS;
        let mut source = proven(proven_at);
        let last = window_of(proven_at) + PROOF_WINDOWS - 1;
        for window in [5, 6, last] {
            assert!((0..2).all(|_| take_of_source(&mut source, window, 2)));
            assert!(!take_of_source(&mut source, window, 2));
        }
        assert!(!take_of_source(&mut source, last + 1, 2));
    }

    #[test]
    fn hosts_of_an_ipv6_network_are_one_source() {
        let key = |text: &str| source_key(crate::address_octets(text.parse().unwrap()));
        assert_eq!(key("2001:db8::1"), key("2001:db8::2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }
}
