use super::*;
use proptest::prelude::*;

#[test]
fn reinjected_octets_never_overwrite_what_arrived_first() {
    let mut rx = DataReceiver::new(1000, 1000);
    rx.start(DataSeq(u64::MAX - 5));
    let first = rx.rcv_nxt;
    assert_eq!(rx.accept(first + 10, &[1; 10], true), Delivered::OutOfOrder);
    assert_eq!(rx.accept(first + 5, &[2; 20], true), Delivered::OutOfOrder);
    assert_eq!(rx.accept(first + 10, &[3; 10], true), Delivered::Duplicate);
    assert_eq!(rx.accept(first, &[4; 6], true), Delivered::Buffered);
    assert_eq!(
        rx.peek(),
        [[4; 5].as_slice(), &[2; 5], &[1; 10], &[2; 5]].concat()
    );
}

#[test]
fn what_is_next_in_order_is_taken_however_many_ranges_lie_beyond() {
    let mut rx = DataReceiver::new(1000, 1000);
    rx.start(DataSeq(u64::MAX - 5));
    let first = rx.rcv_nxt;
    for n in 1..=RANGES_MAX + 1 {
        let stored = rx.accept(first + 3 * n, &[1; 1], false) == Delivered::OutOfOrder;
        assert_eq!(stored, n <= RANGES_MAX);
    }
    // A hole of three octets, filled from its begin on.
    for (n, nxt) in [(0, 1), (1, 2), (2, 4)] {
        assert_eq!(rx.accept(first + n, &[1; 1], false), Delivered::Buffered);
        assert_eq!(rx.rcv_nxt, first + nxt);
    }
    assert_eq!(rx.out_of_order_bytes(), RANGES_MAX - 1);
    assert_eq!(rx.unread_bytes(), 4);
}

#[test]
fn in_order_octets_are_offered_in_place_until_something_is_unread() {
    let mut rx = DataReceiver::new(1000, 1000);
    rx.start(DataSeq(0));
    assert_eq!(
        rx.accept(DataSeq(1), &[1; 4], true),
        Delivered::InPlace { skip: 0, len: 4 }
    );
    assert_eq!(
        rx.accept(DataSeq(3), &[1; 4], true),
        Delivered::InPlace { skip: 2, len: 2 }
    );
    rx.keep_unread(&[1; 2]);
    assert_eq!(rx.accept(DataSeq(7), &[1; 4], true), Delivered::Buffered);
    assert_eq!(rx.window_bytes(), 1000 - 6);
}

// RFC 8684 Appendix B.2: the text of a SYN has no data sequence numbers; the window is promised all the same.
#[test]
fn numbers_that_begin_after_text_keep_the_text_and_the_window() {
    let mut rx = DataReceiver::new(1000, 1000);
    rx.start(DataSeq(7));
    assert_eq!(rx.accept(DataSeq(8), &[1; 100], false), Delivered::Buffered);
    rx.granted = rx.rcv_nxt + 600;
    let promised = rx.right_edge.distance(rx.rcv_nxt);
    assert_eq!(promised, 900);
    let idsn = DataSeq(u64::MAX - 5);
    rx.restart(idsn);
    assert_eq!(rx.peek(), [1; 100]);
    assert_eq!(rx.rcv_nxt, idsn + 1);
    assert_eq!(rx.right_edge, idsn + 1 + promised);
    assert_eq!(rx.granted, idsn + 1 + 600);
}

#[test]
fn the_edge_of_the_window_holds() {
    let mut rx = DataReceiver::new(100, 100);
    rx.start(DataSeq(0));
    assert_eq!(rx.acceptable_bytes(), 100);
    assert_eq!(rx.accept(DataSeq(101), &[1; 1], true), Delivered::NoRoom);
    assert_eq!(
        rx.accept(DataSeq(100), &[1; 2], true),
        Delivered::OutOfOrder
    );
    assert_eq!(rx.out_of_order_bytes(), 1);
}

#[test]
fn the_fin_waits_for_what_is_before_it() {
    let mut rx = DataReceiver::new(100, 100);
    rx.start(DataSeq(0));
    rx.announce_fin(DataSeq(5));
    assert!(!rx.take_fin());
    rx.accept(DataSeq(1), &[1; 4], true);
    assert!(rx.take_fin() && !rx.take_fin() && rx.fin_taken());
    assert_eq!(rx.accept(DataSeq(6), &[1; 4], true), Delivered::NoRoom);
}

// RFC 8684 §3.7: after a fallback the end of the stream is another one, unless it was there.
#[test]
fn only_an_end_that_was_not_reached_is_forgotten() {
    for reached in [false, true] {
        let mut rx = DataReceiver::new(100, 100);
        rx.start(DataSeq(0));
        rx.announce_fin(DataSeq(5));
        if reached {
            rx.accept(DataSeq(1), &[1; 4], true);
            assert!(rx.take_fin());
        }
        rx.forget_fin();
        let beyond = rx.accept(DataSeq(6), &[1; 4], false);
        assert_eq!(beyond == Delivered::NoRoom, reached);
        assert_eq!(rx.fin_taken(), reached);
    }
}

#[test]
fn memory_is_kept_for_the_slowest_subflow() {
    let mut tx = DataSender::new(100, 100);
    tx.start(DataSeq(9), 50);
    assert_eq!(tx.push(&[7; 30]), 30);
    tx.on_sent(30, false);
    assert_eq!(tx.window_room(), 20);
    assert!(tx.on_ack(DataSeq(30)) && !tx.on_ack(DataSeq(41)));
    tx.release(Some(DataSeq(15)));
    assert_eq!(tx.octets(DataSeq(15), 3).0, [7; 3]);
    assert_eq!(tx.buffered(), 25);
    tx.release(None);
    assert_eq!(tx.buffered(), 10);
    tx.mark_reinject(DataSeq(20), 15);
    assert_eq!(tx.take_reinject(3), Some((DataSeq(30), 3)));
    assert_eq!(tx.take_reinject(9), Some((DataSeq(33), 2)));
    assert_eq!(tx.take_reinject(9), None);
    // Octets that were never sent go out as new ones.
    tx.push(&[8; 50]);
    tx.mark_reinject(tx.snd_una, 100);
    assert_eq!(tx.take_reinject(99), Some((DataSeq(30), 10)));
    assert_eq!(tx.take_reinject(99), None);
}

const SHIFT: u8 = 7;
const UNIT: usize = 1 << SHIFT;

/// A peer that fills the window with segments of `len` octets, each acknowledged at once, while
/// nobody reads. Returns what it got rid of and the window that is left.
fn fill(rx: &mut DataReceiver, len: usize, segments: usize) -> (usize, usize) {
    let mut edge = rx.rcv_nxt;
    let mut taken = 0;
    for _ in 0..segments {
        let window = usize::from(rx.window_field(SHIFT, 1448)) << SHIFT;
        rx.on_advertised(window);
        // RFC 8684 §3.3.4: MUST NOT shrink the right edge.
        assert!((rx.rcv_nxt + window).at_or_after(edge));
        edge = rx.rcv_nxt + window;
        let sent = len.min(window);
        if sent == 0 || rx.overruns(sent) {
            return (taken, window);
        }
        assert_eq!(
            rx.accept(rx.rcv_nxt, &vec![0; sent], false),
            Delivered::Buffered
        );
        taken += sent;
    }
    panic!("no end with segments of {len} octets");
}

#[test]
fn the_edge_never_goes_back_and_the_window_closes_all_the_same() {
    const LIMIT: usize = 512 * UNIT;
    for len in [UNIT, 2 * UNIT, 2 * UNIT + 1, 3 * UNIT - 1, 1448, LIMIT] {
        let mut rx = DataReceiver::new(LIMIT, LIMIT);
        rx.start(DataSeq(u64::MAX - 100));
        let (taken, window) = fill(&mut rx, len, LIMIT);
        assert_eq!(window, 0, "segments of {len}");
        // Rounding adds what a segment has beyond whole units, a third of it at most.
        let most = LIMIT + LIMIT * (len % UNIT) / (len - len % UNIT) + 2 * UNIT;
        assert!(
            (LIMIT..=most).contains(&taken),
            "{taken} of {most} by {len}"
        );
        assert!(most <= LIMIT + LIMIT / 2 + 2 * UNIT);
    }
}

#[test]
fn a_peer_that_sends_less_than_a_unit_at_a_time_ends_at_the_slack() {
    const LIMIT: usize = 512 * UNIT;
    let mut rx = DataReceiver::new(LIMIT, LIMIT);
    rx.start(DataSeq(0));
    let (taken, window) = fill(&mut rx, UNIT - 1, LIMIT);
    assert!(window > 0, "it cannot close");
    let most = LIMIT + LIMIT / 2;
    assert!(taken <= most && taken + UNIT > most, "{taken} of {most}");
    assert!(!rx.overruns(most - taken) && rx.overruns(most - taken + 1));
    // Whatever it sends now does not fit, until the application reads.
    rx.consume(taken);
    assert!(!rx.overruns(UNIT));
}

// RFC 9293 §3.8.6.2.2.
#[test]
fn the_edge_moves_by_a_segment_or_half_the_buffer() {
    for (limit, mss, worth) in [(100_000, 1448, 1448), (2000, 1448, 1000)] {
        let mut rx = DataReceiver::new(limit, limit);
        rx.start(DataSeq(0));
        rx.accept(rx.rcv_nxt, &vec![0; limit], false);
        rx.on_advertised(usize::from(rx.window_field(0, mss)));
        for _ in 0..limit / mss {
            let more = usize::from(rx.window_field(0, mss));
            rx.on_advertised(more);
            rx.accept(rx.rcv_nxt, &vec![0; more], false);
        }
        assert_eq!(rx.window_field(0, mss), 0);
        rx.consume(worth - 1);
        assert_eq!(rx.window_field(0, mss), 0);
        rx.consume(1);
        assert_eq!(usize::from(rx.window_field(0, mss)), worth);
    }
}

#[test]
fn the_smallest_unit_is_taken_that_says_all_but_the_last_of_a_window() {
    for (window_bytes, shift) in [
        (0, 0),
        (65_536, 0),
        (65_537, 1),
        (131_073, 1),
        (131_074, 2),
        (usize::MAX, WINDOW_SHIFT_MAX),
    ] {
        assert_eq!(window_shift(window_bytes), shift, "{window_bytes}");
    }
}

// RFC 7323 §2.2: the window of a SYN/ACK is not scaled.
#[test]
fn at_first_no_more_is_taken_in_than_an_unscaled_window_says() {
    let mut rx = DataReceiver::new(100_000, 100_000);
    rx.start(DataSeq(u64::MAX));
    let edge = DataSeq(65_535);
    assert_eq!(rx.accept(edge, &[1], true), Delivered::NoRoom);
    assert_eq!(rx.accept(edge - 1, &[1, 1], true), Delivered::OutOfOrder);
    assert_eq!(rx.out_of_order_bytes(), 1);
}

#[test]
fn a_window_gains_by_what_the_application_took_and_once() {
    let mut rx = DataReceiver::new(1000, 1000);
    rx.start(DataSeq(u64::MAX));
    rx.accept(DataSeq(0), &[1; 600], false);
    rx.consume(0);
    assert_eq!(rx.window_gain_bytes(1000), 0, "nothing was taken");
    rx.consume(200);
    assert_eq!(rx.window_gain_bytes(401), 1);
    assert_eq!(rx.window_gain_bytes(400), 0);
    assert_eq!(rx.window_gain_bytes(300), 0);
    rx.on_advertised(600);
    assert_eq!(rx.window_gain_bytes(900), 0, "told");
    rx.discard();
    assert_eq!((rx.unread_bytes(), rx.window_bytes()), (0, 1000));
    assert_eq!(rx.window_gain_bytes(1000), 400);
}

#[test]
fn a_share_bounds_new_windows_to_no_less_than_a_unit() {
    let mut rx = DataReceiver::new(100_000, 512 * 65_536);
    assert_eq!(rx.limit_bytes(), 100_000);
    rx.set_share(5000);
    assert_eq!(rx.limit_bytes(), 5000);
    rx.set_share(100);
    assert_eq!(rx.limit_bytes(), 512);
}

#[test]
fn memory_grows_with_what_is_kept_and_goes_back() {
    let mut rx = DataReceiver::new(10_000, 10_000);
    rx.start(DataSeq(u64::MAX));
    assert_eq!(rx.growth_for(5000), 8192);
    rx.accept(DataSeq(0), &[1; 5000], false);
    assert_eq!(rx.held_bytes(), 8192);
    for (ahead, growth) in [(3192, 0), (3193, 6808)] {
        assert_eq!(rx.growth_for(ahead), growth);
        assert_eq!(rx.growth_to(rx.rcv_nxt + ahead), growth);
    }
    assert_eq!(rx.growth_to(rx.rcv_nxt + 100_000), rx.growth_for(5000));
    assert_eq!(rx.growth_to(rx.rcv_nxt - 1), 0);
    rx.consume(2951);
    rx.shrink();
    assert_eq!(rx.held_bytes(), 8192, "more than a quarter is used");
    rx.consume(1);
    rx.shrink();
    assert_eq!(rx.held_bytes(), 4096);
}

// RFC 8684 §3.3.3.
#[test]
fn the_first_fin_stands_if_it_can_be_one() {
    let mut rx = DataReceiver::new(100, 100);
    rx.start(DataSeq(0));
    rx.accept(DataSeq(11), &[1; 10], true);
    rx.accept(DataSeq(1), &[1; 4], true);
    rx.announce_fin(DataSeq(4));
    rx.announce_fin(DataSeq(20));
    assert_eq!(rx.accept(DataSeq(21), &[1; 9], true), Delivered::OutOfOrder);
    rx.announce_fin(DataSeq(30));
    rx.announce_fin(DataSeq(40));
    // What is announced behind it is cut.
    assert_eq!(rx.accept(DataSeq(5), &[1; 50], true), Delivered::Buffered);
    assert!(!rx.fin_taken() && rx.take_fin() && rx.fin_taken());
    assert_eq!(rx.rcv_nxt, DataSeq(31));
}

/// The octet of the stream at `offset` from its beginning.
fn octet(offset: usize) -> u8 {
    (offset % 251) as u8
}

proptest! {
    /// The application gets every octet once and in order, whatever came how often in which order, and
    /// nothing is taken in from beyond the window.
    #[test]
    fn the_stream_is_put_together_whatever_comes(
        events in prop::collection::vec((0u8..4, 0usize..400, 1usize..60), 1..80),
    ) {
        const LIMIT: usize = 256;
        let first = DataSeq(u64::MAX - 100) + 1;
        let mut rx = DataReceiver::new(LIMIT, LIMIT);
        rx.start(first - 1);
        let mut known = vec![false; 80 * 60 + LIMIT];
        let (mut nxt, mut edge, mut taken) = (0, LIMIT, 0);
        for (what, at, len) in events {
            match what {
                0 | 1 => {
                    let from = (nxt + at).saturating_sub(100);
                    let octets: Vec<_> = (from..from + len).map(octet).collect();
                    let start = from.max(nxt);
                    let new = start..(from + len).min(edge).max(start);
                    let news = known[new.clone()].iter().any(|known| !known);
                    let in_place = what == 1 && new.start == nxt && taken == nxt
                        && !known[nxt..nxt + LIMIT].contains(&true);
                    known[new.clone()].fill(true);
                    let before = nxt;
                    nxt += known[nxt..nxt + LIMIT].iter().take_while(|known| **known).count();
                    let expected = match () {
                        () if from + len <= before => Delivered::Duplicate,
                        () if new.is_empty() => Delivered::NoRoom,
                        () if in_place => Delivered::InPlace { skip: new.start - from, len: new.len() },
                        () if !news => Delivered::Duplicate,
                        () if nxt > before => Delivered::Buffered,
                        () => Delivered::OutOfOrder,
                    };
                    assert_eq!(rx.accept(first + from, &octets, what == 1), expected);
                    if let Delivered::InPlace { skip, len } = expected {
                        // The application takes half of it.
                        taken += len / 2;
                        rx.keep_unread(&octets[skip + len / 2..skip + len]);
                    }
                }
                2 => {
                    let n = len.min(nxt - taken);
                    taken += n;
                    rx.consume(n);
                }
                _ => {
                    edge = edge.max(taken + LIMIT);
                    rx.on_advertised(rx.window_bytes());
                }
            }
            assert_eq!(rx.rcv_nxt, first + nxt);
            assert_eq!(rx.unread_bytes(), nxt - taken);
            let beyond = known[nxt..nxt + LIMIT].iter().filter(|known| **known).count();
            assert_eq!(rx.out_of_order_bytes(), beyond);
            let unread = rx.peek();
            assert!(unread.iter().zip(taken..).all(|(is, at)| *is == octet(at)));
            assert!(!unread.is_empty() || nxt == taken);
        }
    }
}
