use super::*;

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

#[test]
fn the_edge_of_the_window_holds() {
    let mut rx = DataReceiver::new(100, 100);
    rx.start(DataSeq(0));
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

#[test]
fn memory_is_kept_for_the_slowest_subflow() {
    let mut tx = DataSender::new(100, 100);
    tx.start(DataSeq(9), 50);
    assert_eq!(tx.push(&[7; 30]), 30);
    tx.on_sent(30, false);
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
        while rx.window_field(0, mss) > 0 {
            let more = usize::from(rx.window_field(0, mss));
            rx.on_advertised(more);
            rx.accept(rx.rcv_nxt, &vec![0; more], false);
        }
        rx.consume(worth - 1);
        assert_eq!(rx.window_field(0, mss), 0);
        rx.consume(1);
        assert_eq!(usize::from(rx.window_field(0, mss)), worth);
    }
}
