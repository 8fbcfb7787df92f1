use super::*;
use crate::tcp::congestion::NewReno;

const MSS: usize = 1000;
/// How long every segment of [`sender`] has been under way when it is acknowledged first.
const RTT_MS: u64 = 10;

/// With so many segments in flight that left at time 0, as the window allowed.
fn sender(sack: bool, segments: usize) -> Sender<()> {
    let iss = TcpSeq(u32::MAX - 2500);
    let mut tx = Sender::new(iss, MSS, sack, Box::new(NewReno::new(MSS)));
    tx.on_handshake_done(TcpSeq(1), 100_000);
    while tx.cc.cwnd() < segments * MSS {
        tx.cc.on_ack(&Ack {
            now: Instant::ZERO,
            acked_bytes: MSS,
            snd_una: tx.snd_una,
            snd_nxt: tx.snd_nxt,
            rtt: None,
            srtt: None,
            min_rtt: None,
            siblings: &[],
        });
    }
    for _ in 0..segments {
        tx.on_sent(Instant::ZERO, MSS, false, ());
    }
    tx
}

fn at(tx: &Sender<()>, segments: usize) -> TcpSeq {
    tx.iss + 1 + segments * MSS
}

fn blocks(tx: &Sender<()>, sacked: &[(usize, usize)]) -> SackBlocks {
    let mut sack = SackBlocks::default();
    for &(a, b) in sacked {
        sack.push(at(tx, a), at(tx, b));
    }
    sack
}

fn ack_at(tx: &mut Sender<()>, ms: u64, n: usize, sacked: &[(usize, usize)]) -> AckOutcome {
    let (ack, sack) = (at(tx, n), blocks(tx, sacked));
    let now = Instant::from_millis(ms);
    tx.on_ack(now, ack, &sack, true, |_| false, |_| {})
}

fn ack(tx: &mut Sender<()>, n: usize, sacked: &[(usize, usize)]) -> AckOutcome {
    ack_at(tx, RTT_MS, n, sacked)
}

/// Sends again whatever may go, and says which segments.
fn resend(tx: &mut Sender<()>, ms: u64) -> Vec<usize> {
    let mut again = Vec::new();
    while tx.retransmission_ready() {
        let lost = tx.next_lost(MSS, true).expect("one is ready");
        again.push(lost.sent.seq.distance(tx.iss + 1) / MSS);
        assert!(again.len() <= tx.board.len(), "for ever: {again:?}");
        tx.on_retransmitted(Instant::from_millis(ms), lost.at);
    }
    again
}

/// The pace is none of these tests' business.
fn send_new(tx: &mut Sender<()>, ms: u64) -> usize {
    let mut sent = 0;
    while tx.in_flight() + MSS <= tx.window() {
        tx.on_sent(Instant::from_millis(ms), MSS, false, ());
        sent += 1;
        assert!(sent < 100, "for ever");
    }
    sent
}

// RFC 5681 §3.2, RFC 6582 §3.2.
#[test]
fn third_duplicate_ack_fires_and_the_second_does_not() {
    let mut tx = sender(false, 10);
    ack(&mut tx, 1, &[]);
    assert!(!ack(&mut tx, 1, &[]).loss_found && !ack(&mut tx, 1, &[]).loss_found);
    assert!(ack(&mut tx, 1, &[]).loss_found);
    // Half of the nine segments in flight, and the first goes although the other eight more than
    // fill that.
    assert_eq!(tx.cc.cwnd(), 9 * MSS / 2);
    assert_eq!(resend(&mut tx, RTT_MS), [1]);
    // A partial ACK names the next hole; a full one ends recovery.
    ack(&mut tx, 3, &[]);
    assert_eq!(resend(&mut tx, RTT_MS), [3]);
    ack(&mut tx, 10, &[]);
    assert!(tx.flight_is_empty() && tx.rto_at.is_none() && tx.in_flight() == 0);
}

// RFC 3042: each of the first two duplicates lets a new segment go, although none is acknowledged.
#[test]
fn the_first_two_duplicate_acks_let_new_segments_go() {
    for sack in [false, true] {
        let mut tx = sender(sack, 10);
        assert!(!tx.cwnd_room());
        let mut sent = Vec::new();
        for n in 0..2 {
            let sacked: &[(usize, usize)] = if sack { &[(1, 2 + n)] } else { &[] };
            ack(&mut tx, 0, sacked);
            sent.push(send_new(&mut tx, RTT_MS));
        }
        assert_eq!(sent, [1, 1], "sack: {sack}");
    }
}

// RFC 8985 §6.2 step 4: without a sign of reordering three are enough, and nothing is waited for.
#[test]
fn three_segments_sacked_above_a_hole_mark_every_hole_below_them() {
    let mut tx = sender(true, 10);
    assert!(!ack(&mut tx, 0, &[(1, 2), (3, 4)]).loss_found);
    assert!(ack(&mut tx, 0, &[(1, 2), (3, 5)]).loss_found);
    // RFC 6675 §5 (4.2), (4.3): half of what is not acknowledged, SACKed or not.
    assert_eq!(tx.cc.ssthresh(), 5 * MSS);
    assert_eq!(tx.in_flight(), 5 * MSS);
    // The first goes in any case, the second when as little is in flight (RFC 6937 §3).
    assert_eq!(resend(&mut tx, RTT_MS), [0]);
    ack(&mut tx, 0, &[(1, 2), (3, 6)]);
    assert_eq!(resend(&mut tx, RTT_MS), []);
    ack(&mut tx, 0, &[(1, 2), (3, 7)]);
    assert_eq!(resend(&mut tx, RTT_MS), [2]);
}

// RFC 8985 §6.2 step 5: a segment overtaken by one is lost a quarter of a round trip later.
#[test]
fn one_segment_sacked_above_a_hole_marks_it_when_the_reordering_window_is_over() {
    let mut tx = sender(true, 3);
    assert!(!ack(&mut tx, 0, &[(2, 3)]).loss_found);
    let due = Instant::from_micros(RTT_MS * 1000 * 5 / 4);
    assert_eq!(tx.next_deadline(), Some(due));
    assert!(!tx.on_timers(Instant(due.0 - 1)).loss_found);
    assert!(tx.on_timers(due).loss_found);
    assert_eq!(resend(&mut tx, 13), [0]);
}

// RFC 8985 §6.2 step 3: what was reordered once is waited for in spite of three SACKed segments.
#[test]
fn reordering_seen_once_makes_room_for_more() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 0, &[(1, 2)]);
    ack(&mut tx, 2, &[]);
    assert!(!ack(&mut tx, 2, &[(3, 8)]).loss_found);
    let due = tx.reorder_at.expect("to be looked at again");
    assert_eq!(due, Instant::from_micros(RTT_MS * 1000 * 5 / 4));
    assert!(tx.on_timers(due).loss_found);
}

// RFC 8985 §6.2: a retransmission that is lost is found by what left after it.
#[test]
fn a_lost_retransmission_is_lost_again() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 0, &[(1, 5)]);
    assert_eq!(resend(&mut tx, 10), [0]);
    tx.on_sent(Instant::from_millis(11), MSS, false, ());
    // Everything but the first has arrived, also what left after its second copy.
    ack_at(&mut tx, 21, 0, &[(1, 11)]);
    assert_eq!(resend(&mut tx, 21), [0]);
}

// RFC 8985 §6.2 step 2: an answer sooner than any round trip is to the first copy, and says nothing of
// what left before the second one.
#[test]
fn an_answer_within_a_round_trip_is_to_the_first_copy() {
    for (wait_ms, finds_more) in [(RTT_MS - 1, false), (RTT_MS, true)] {
        let mut tx = sender(true, 10);
        ack(&mut tx, 0, &[(1, 4)]);
        assert_eq!(resend(&mut tx, RTT_MS), [0]);
        ack_at(&mut tx, RTT_MS + wait_ms, 4, &[]);
        assert_eq!(tx.has_lost(), finds_more);
    }
}

#[test]
fn a_lower_block_of_the_same_ack_is_no_reordering() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 0, &[(5, 6), (1, 2)]);
    assert!(ack(&mut tx, 0, &[(5, 7), (1, 2)]).loss_found);
}

// RFC 8985 §6.2 step 4: every round with a DSACK widens the window by a quarter of the round trip.
#[test]
fn a_reported_duplicate_widens_the_reordering_window() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 0, &[(1, 2)]);
    // Its first octets came late, and again.
    let outcome = ack(&mut tx, 2, &[(0, 1)]);
    assert!(outcome.dsack);
    ack(&mut tx, 2, &[(9, 10)]);
    assert_eq!(tx.reorder_at, Some(Instant::from_millis(RTT_MS * 3 / 2)));
}

#[test]
fn news_of_sacked_octets_finds_a_loss_although_it_moves_the_acknowledgment() {
    let mut tx = sender(true, 10);
    assert!(ack(&mut tx, 2, &[(3, 6)]).loss_found);
    assert_eq!(resend(&mut tx, RTT_MS), [2]);
}

#[test]
fn a_sacked_segment_measures_the_path_if_it_was_sent_once() {
    let mut tx = sender(true, 4);
    tx.on_timeout(Instant::from_millis(1000));
    resend(&mut tx, 1000);
    ack_at(&mut tx, 1000, 0, &[(0, 1)]);
    assert_eq!(tx.rtt.srtt(), None);
    tx.on_sent(Instant::from_millis(1000), MSS, false, ());
    ack_at(&mut tx, 1010, 0, &[(4, 5)]);
    assert_eq!(tx.rtt.srtt(), Some(Duration::from_millis(10)));
    assert!(tx.rtt.rto() < Duration::from_secs(1), "not backed off");
}

// RFC 8985 §6.3, RFC 6298 §5.5: the head and whatever is overdue.
#[test]
fn timeout_takes_all_but_sacked_for_lost_and_backs_off() {
    let mut tx = sender(true, 4);
    ack(&mut tx, 0, &[(1, 2)]);
    tx.on_sent(Instant::from_millis(999), MSS, false, ());
    tx.on_timeout(Instant::from_millis(1000));
    assert_eq!(tx.cc.cwnd(), MSS);
    // Twice 200 ms above the round trip: what was SACKed measured 10 ms.
    assert_eq!(tx.rto_at, Some(Instant::from_millis(1420)));
    assert_eq!(tx.board.lost_segments, 3, "not what left a moment ago");
    assert_eq!(resend(&mut tx, 1000), [0]);
    let measured = tx.rtt.rttvar();
    ack_at(&mut tx, 1020, 4, &[]);
    assert_eq!((tx.rtt.backoff(), tx.in_flight()), (0, MSS));
    assert_eq!(
        tx.rtt.rttvar(),
        measured,
        "none was sent once and unheard of"
    );
}

// RFC 2018 §8: what was SACKed may be dropped until it is acknowledged.
#[test]
fn a_sacked_head_means_that_the_peer_has_dropped_what_it_had() {
    let mut tx = sender(true, 4);
    ack(&mut tx, 0, &[(0, 2)]);
    tx.on_timeout(Instant::from_millis(1000));
    assert_eq!(tx.board.lost_segments, 4);
    ack_at(&mut tx, 1010, 0, &[(1, 2)]);
    assert_eq!(tx.board.lost_segments, 3, "it is believed again");
}

/// RFC 6298 §3: a timestamp that tells the copies apart lifts Karn's restriction, and with it the
/// backed-off timeout; one that both copies bore does not.
#[test]
fn a_timestamp_measures_what_was_sent_twice() {
    for (granularity_ms, measures) in [(256, true), (100_000, false)] {
        let mut tx = sender(true, 1);
        tx.on_timeout(Instant::from_millis(1000));
        resend(&mut tx, 1000);
        let tick = |at: Instant| at.as_millis() / granularity_ms;
        let echoed = tick(Instant::from_millis(1000));
        let (all, none) = (tx.snd_nxt, SackBlocks::default());
        let now = Instant::from_millis(1030);
        tx.on_ack(now, all, &none, false, |at| tick(at) == echoed, |_| {});
        let srtt = measures.then_some(Duration::from_millis(30));
        assert_eq!(tx.rtt.srtt(), srtt);
        assert_eq!(tx.rtt.rto() < Duration::from_secs(1), measures);
    }
}

// RFC 3522, RFC 4015: the timestamp of the first copy comes back after the second one left.
#[test]
fn a_timeout_is_undone_when_the_first_copy_was_acknowledged() {
    for (echoed_ms, undone) in [(0, true), (1000, false)] {
        let mut tx = sender(true, 8);
        let before = tx.cc.cwnd();
        tx.on_timeout(Instant::from_millis(1000));
        assert_eq!(resend(&mut tx, 1000), [0]);
        let (ack, none) = (at(&tx, 1), SackBlocks::default());
        let echoes = |at: Instant| at == Instant::from_millis(echoed_ms);
        let now = Instant::from_millis(1030);
        let outcome = tx.on_ack(now, ack, &none, false, echoes, |_| {});
        assert_eq!(outcome.undone, undone);
        assert_eq!(tx.cc.cwnd() >= before, undone);
        assert_eq!(tx.has_lost(), !undone);
        assert_eq!(tx.in_flight() == 7 * MSS, undone);
    }
}

// RFC 5682 §3.1 step 3 b: octets that were sent once and before the timeout arrive after it.
#[test]
fn a_timeout_is_undone_when_originals_arrive_after_it() {
    for (acked, undone) in [(2, true), (1, false), (8, false)] {
        let mut tx = sender(true, 8);
        tx.on_timeout(Instant::from_millis(1000));
        assert_eq!(resend(&mut tx, 1000), [0]);
        assert_eq!(ack_at(&mut tx, 1030, acked, &[]).undone, undone, "{acked}");
    }
}

// RFC 3708: every segment that was sent again is reported as a duplicate, the last one decides.
#[test]
fn a_recovery_is_undone_when_all_it_sent_came_twice() {
    let mut tx = sender(true, 10);
    let before = tx.cc.cwnd();
    ack(&mut tx, 0, &[(2, 6)]);
    assert_eq!(resend(&mut tx, 10), [0]);
    ack_at(&mut tx, 11, 0, &[(2, 8)]);
    assert_eq!(resend(&mut tx, 11), [1]);
    assert!(!ack_at(&mut tx, 12, 10, &[]).undone);
    assert!(tx.cc.cwnd() < before);
    assert!(!ack_at(&mut tx, 20, 10, &[(0, 1)]).undone);
    assert!(ack_at(&mut tx, 21, 10, &[(1, 2)]).undone);
    assert_eq!(tx.cc.cwnd(), before);
    // Not a second time.
    assert!(!ack_at(&mut tx, 22, 10, &[(1, 2)]).undone);
}

// A box has cut the segment, and of its parts only the second ever arrives.
#[test]
fn a_duplicate_of_a_part_undoes_nothing() {
    let mut tx = sender(true, 4);
    ack(&mut tx, 3, &[]);
    for round in 1..5 {
        let now_ms = 1000 * round;
        tx.on_timeout(Instant::from_millis(now_ms));
        resend(&mut tx, now_ms);
        let mut part = SackBlocks::default();
        part.push(at(&tx, 3) + 700, at(&tx, 4));
        part.push(at(&tx, 3) + 700, at(&tx, 4));
        let now = Instant::from_millis(now_ms + 10);
        assert!(
            !tx.on_ack(now, at(&tx, 3), &part, true, |_| false, |_| {})
                .undone
        );
        assert_eq!(tx.rtt.backoff(), round as u32);
    }
}

#[test]
fn a_recovery_that_is_over_for_a_round_trip_stands() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 0, &[(1, 6)]);
    resend(&mut tx, 10);
    ack_at(&mut tx, 20, 10, &[]);
    tx.on_sent(Instant::from_millis(20), MSS, false, ());
    ack_at(&mut tx, 30, 11, &[]);
    tx.on_sent(Instant::from_millis(30), MSS, false, ());
    assert!(!ack_at(&mut tx, 40, 12, &[(0, 1)]).undone);
}

// RFC 6937 §3: with a window's worth in flight every second delivered segment lets one go, and at
// the end as much is in flight as the halved window allows.
#[test]
fn recovery_sends_in_proportion_to_what_arrives() {
    let mut tx = sender(true, 20);
    assert!(ack(&mut tx, 0, &[(1, 4)]).loss_found);
    let mut left = resend(&mut tx, 10).len();
    let mut timeline = Vec::new();
    for n in 4..20 {
        ack(&mut tx, 0, &[(1, n + 1)]);
        let sent = send_new(&mut tx, 10);
        left += sent;
        timeline.push(sent);
    }
    assert!(timeline.iter().all(|n| *n <= 1), "{timeline:?}");
    assert_eq!(left, 10, "{timeline:?}");
    assert_eq!(tx.in_flight(), 10 * MSS);
    // The last acknowledgment covers a window, which is a segment's worth of growth (RFC 3465 §2.1).
    ack_at(&mut tx, 20, 20, &[]);
    assert_eq!(tx.window(), 11 * MSS);
}

// RFC 6937 §3, PRR-SSRB: below ssthresh one more than arrived, if nothing more was lost.
#[test]
fn recovery_catches_up_when_more_was_lost_than_the_window_shrinks() {
    let mut tx = sender(true, 20);
    ack(&mut tx, 0, &[(15, 20)]);
    // 15 are lost: as many as arrived.
    assert_eq!(resend(&mut tx, 10).len(), 5);
    ack_at(&mut tx, 20, 1, &[(15, 20)]);
    assert_eq!(resend(&mut tx, 20).len(), 2);
}

// RFC 8985 §7.2: two round trips after the last segment, with room for a delayed acknowledgment
// where there is only one.
#[test]
fn a_tail_is_probed_in_time_and_not_before() {
    for (segments, wait_ms) in [(2, 22), (1, 220)] {
        let mut tx = sender(true, 1);
        ack(&mut tx, 1, &[]);
        for _ in 0..segments {
            tx.on_sent(Instant::from_millis(100), MSS, false, ());
        }
        // With a single one the timeout comes first; the probe takes its place.
        let rto_ms = tx.rtt.rto().as_millis() as u64;
        let due = Instant::from_millis(100 + rto_ms.min(wait_ms));
        assert_eq!(tx.next_deadline(), Some(due));
        assert!(!tx.on_timers(Instant(due.0 - 1)).tail_probe);
        assert!(!tx.timeout_due(due));
        assert!(tx.on_timers(due).tail_probe);
        assert!(!tx.timeout_due(due), "it has not left yet");
        // Beyond the congestion window, and the last segment where nothing is new.
        assert!(tx.cwnd_room());
        let (at, sent) = tx.tail_to_probe().expect("the last one");
        assert_eq!((at, sent.seq), (segments - 1, tx.snd_nxt - MSS));
        tx.on_retransmitted(due, at);
        assert!(tx.tail_to_probe().is_none());
        assert_eq!(tx.rto_at, Some(due + tx.rtt.rto()), "put off (§7.3)");
        assert_eq!(tx.in_flight(), segments * MSS);
    }
}

// RFC 8985 §7.3, condition 2: probes alone would leave a path that has become slower unmeasured.
#[test]
fn no_second_probe_before_the_path_is_measured() {
    for measured in [false, true] {
        let mut tx = sender(true, 4);
        ack(&mut tx, 3, &[]);
        let due = tx.tail_probe.at.expect("armed");
        tx.on_timers(due);
        let (last, _) = tx.tail_to_probe().expect("the last one");
        tx.on_retransmitted(due, last);
        // Which copy this is for nobody knows, and then the new segment is for one that left once.
        ack_at(&mut tx, 300, 4, &[]);
        tx.on_sent(Instant::from_millis(310), MSS, false, ());
        if measured {
            ack_at(&mut tx, 320, 5, &[]);
            tx.on_sent(Instant::from_millis(320), MSS, false, ());
        }
        assert_eq!(tx.tail_probe.at.is_some(), measured);
        assert!(tx.rto_at.is_some());
    }
}

// RFC 8985 §7.4.2.
#[test]
fn a_probe_that_repaired_a_loss_costs_window_and_one_that_came_twice_does_not() {
    for (dsack, repaired) in [(false, true), (true, false)] {
        let mut tx = sender(true, 4);
        ack(&mut tx, 3, &[]);
        let due = tx.tail_probe.at.expect("armed");
        tx.on_timers(due);
        let (last, _) = tx.tail_to_probe().expect("the last one");
        tx.on_retransmitted(due, last);
        assert!(!ack_at(&mut tx, 300, 4, &[]).probe_repaired);
        if dsack {
            ack_at(&mut tx, 301, 4, &[(3, 4)]);
        }
        tx.on_sent(Instant::from_millis(310), MSS, false, ());
        let cwnd = tx.cc.cwnd();
        let outcome = ack_at(&mut tx, 320, 5, &[]);
        assert_eq!(outcome.probe_repaired, repaired);
        assert_eq!(tx.cc.cwnd() < cwnd, repaired);
    }
}

// RFC 4821 §7.5: a probe that is lost says nothing but that it is too big, as does a second copy.
#[test]
fn no_mtu_probe_is_repeated_as_a_tail_loss_probe() {
    for behind in [0, 1] {
        let mut tx = sender(true, 3);
        tx.on_mtu_probe_sent();
        for _ in 0..behind {
            tx.on_sent(Instant::ZERO, MSS, false, ());
        }
        ack(&mut tx, 1, &[]);
        let due = tx.tail_probe.at.expect("armed");
        assert!(tx.on_timers(due).tail_probe);
        assert_eq!(tx.tail_to_probe().is_some(), behind > 0);
        assert!(tx.rto_at.is_some_and(|at| at > due), "and nothing goes on");
    }
}

#[test]
fn a_probe_shows_what_else_of_the_tail_is_lost() {
    let mut tx = sender(true, 4);
    ack(&mut tx, 1, &[]);
    let due = tx.tail_probe.at.expect("armed");
    tx.on_timers(due);
    let (last, _) = tx.tail_to_probe().expect("the last one");
    tx.on_retransmitted(due, last);
    // The probe is SACKed: what left long before it is lost.
    assert!(ack_at(&mut tx, due.as_millis() + 10, 1, &[(3, 4)]).loss_found);
    assert_eq!(tx.board.lost_segments, 2);
}

// RFC 3168 §6.1.2: once per window. The segment after it says that the window fell, and an echo counts
// again once that is acknowledged.
#[test]
fn an_echo_counts_once_per_window_and_again_beyond_it() {
    let now = Instant::from_millis(RTT_MS);
    let mut tx = sender(true, 10);
    ack(&mut tx, 1, &[]);
    assert!(tx.on_congestion_echo(now, MSS));
    let cwnd = tx.cc.cwnd();
    assert_eq!(cwnd, 10 * MSS / 2);
    tx.on_sent(now, MSS, false, ());
    for n in 2..=10 {
        ack(&mut tx, n, &[]);
        assert!(!tx.on_congestion_echo(now, MSS), "{n} acknowledged");
    }
    assert_eq!(tx.cc.cwnd(), cwnd, "neither fallen nor grown");
    ack(&mut tx, 11, &[]);
    tx.on_sent(now, MSS, false, ());
    assert!(tx.on_congestion_echo(now, MSS));
}

// RFC 5681 §2: what was in flight when the news came, however much of it that news is.
#[test]
fn an_echo_counts_what_its_own_ack_covers() {
    let mut tx = sender(true, 10);
    let outcome = ack(&mut tx, 9, &[]);
    assert!(tx.on_congestion_echo(Instant::from_millis(RTT_MS), outcome.advanced));
    assert_eq!(tx.cc.cwnd(), 10 * MSS / 2);
}

// RFC 3168 §6.1.2: a mark and a loss of one window count once, in either order.
#[test]
fn a_loss_in_a_window_that_fell_for_a_mark_costs_nothing_more_and_one_beyond_it_does() {
    let now = Instant::from_millis(RTT_MS);
    for (acked, falls) in [(9, false), (10, true)] {
        let mut tx = sender(true, 10);
        assert!(tx.on_congestion_echo(now, MSS));
        for _ in 0..5 {
            tx.on_sent(now, MSS, false, ());
        }
        ack(&mut tx, acked, &[]);
        let ssthresh = tx.cc.ssthresh();
        assert!(ack(&mut tx, acked, &[(acked + 1, acked + 4)]).loss_found);
        assert_eq!(tx.cc.ssthresh() < ssthresh, falls, "{acked} acknowledged");
        resend(&mut tx, RTT_MS);
        for n in [acked, 15] {
            ack(&mut tx, n, &[]);
            assert!(!tx.on_congestion_echo(now, MSS), "{n} acknowledged");
        }
        tx.on_sent(now, MSS, false, ());
        ack(&mut tx, 16, &[]);
        assert!(tx.on_congestion_echo(now, MSS));
    }
}

#[test]
fn a_fall_for_a_mark_is_not_taken_back_with_a_loss_that_was_none() {
    // What was sent again turns out to have arrived twice (RFC 2883): in `marked` the window had
    // fallen for a mark before, and no further for the loss.
    for marked in [false, true] {
        let mut tx = sender(true, 10);
        if marked {
            tx.on_congestion_echo(Instant::ZERO, 0);
        }
        assert!(ack(&mut tx, 0, &[(1, 4)]).loss_found);
        assert_eq!(resend(&mut tx, RTT_MS), [0]);
        let undone = ack_at(&mut tx, 2 * RTT_MS, 10, &[(0, 1)]).undone;
        assert_eq!((undone, tx.cc.cwnd() >= 10 * MSS), (!marked, !marked));
    }
}

// RFC 1191 §6.4: what the path does not take is cut, and costs no window.
#[test]
fn a_smaller_path_cuts_what_is_in_flight_and_keeps_the_window() {
    let mut tx = sender(true, 3);
    tx.set_mss(600, 600);
    let mut cut = Vec::new();
    while let Some(lost) = tx.next_lost(600, true) {
        cut.push((lost.sent.seq.distance(tx.iss + 1), lost.sent.len));
        assert!(cut.len() <= 6, "for ever: {cut:?}");
        tx.on_retransmitted(Instant::from_millis(1), lost.at);
    }
    let pieces = |n: usize| [(n * MSS, 600), (n * MSS + 600, 400)];
    assert_eq!(cut, [pieces(0), pieces(1), pieces(2)].concat());
    assert_eq!(tx.in_flight(), 3 * MSS);
    assert_eq!(tx.cc.ssthresh(), usize::MAX);
    assert_eq!(tx.cc.cwnd(), 10 * 600);
    ack_at(&mut tx, 20, 3, &[]);
    assert!(tx.flight_is_empty() && tx.in_flight() == 0);
}

// The first piece of memory has sixteen places, of which new text leaves four.
#[test]
fn without_memory_the_first_segment_alone_is_cut() {
    let mut tx = sender(true, 11);
    assert_eq!(tx.notes_growth_bytes(), 0);
    tx.on_sent(Instant::ZERO, MSS, false, ());
    let held = tx.notes_bytes();
    assert_eq!(
        (held, tx.notes_growth_bytes()),
        (Sender::<()>::FIRST_NOTES_BYTES, held)
    );
    tx.set_mss(600, 600);
    let resend_one = |tx: &mut Sender<()>, may_grow| {
        let lost = tx.next_lost(600, may_grow)?;
        tx.on_retransmitted(Instant::from_millis(1), lost.at);
        Some(lost.sent.seq.distance(tx.iss + 1))
    };
    assert_eq!(resend_one(&mut tx, false), Some(0));
    assert_eq!(resend_one(&mut tx, false), Some(600));
    assert!(tx.retransmission_ready());
    assert_eq!(resend_one(&mut tx, false), None);
    assert!(!tx.retransmission_ready() && tx.has_lost(), "it waits");
    ack_at(&mut tx, 20, 1, &[]);
    assert!(tx.retransmission_ready());
    assert_eq!(resend_one(&mut tx, false), Some(MSS), "now it is the first");
    assert_eq!(resend_one(&mut tx, false), Some(MSS + 600));
    assert_eq!(resend_one(&mut tx, false), None);
    // A timeout comes in the place of an acknowledgment, and memory in the place of both.
    tx.on_timeout(Instant::from_millis(2000));
    assert!(tx.retransmission_ready());
    assert_eq!(tx.notes_bytes(), held);
    while resend_one(&mut tx, true).is_some() {}
    assert!(!tx.has_lost() && tx.notes_bytes() == 2 * held);
    ack_at(&mut tx, 3000, 12, &[]);
    assert!(tx.flight_is_empty() && tx.notes_bytes() == held);
}

/// With the fifth of ten segments an MTU probe.
fn probing(sack: bool) -> Sender<()> {
    let mut tx = sender(sack, 4);
    assert!(tx.may_probe_mtu());
    tx.on_sent(Instant::ZERO, MSS, false, ());
    tx.on_mtu_probe_sent();
    for _ in 0..5 {
        tx.on_sent(Instant::ZERO, MSS, false, ());
    }
    tx
}

// RFC 4821 §7.5, §7.6.2: the loss of a probe alone is no sign of congestion; together with another
// one, before or behind it, it is.
#[test]
fn a_probe_that_is_lost_alone_leaves_the_window_as_it_is() {
    for (also_lost, fate) in [
        (None, ProbeFate::Lost),
        (Some(3), ProbeFate::Inconclusive),
        (Some(5), ProbeFate::Inconclusive),
    ] {
        let mut tx = probing(true);
        let received: Vec<_> = (0..10)
            .filter(|n| *n != 4 && Some(*n) != also_lost)
            .collect();
        let acked = also_lost.unwrap_or(4).min(4);
        let behind: Vec<_> = received
            .iter()
            .filter(|n| **n > acked)
            .map(|n| (*n, n + 1))
            .collect();
        let outcome = ack(&mut tx, acked, &behind);
        assert_eq!(tx.take_mtu_probe_fate(), Some(fate));
        assert_eq!(tx.take_mtu_probe_fate(), None, "told once");
        let reduced = fate != ProbeFate::Lost;
        assert_eq!(outcome.loss_found, reduced);
        assert_eq!(tx.cc.ssthresh() < usize::MAX, reduced);
        assert!(!tx.may_probe_mtu());
        assert_eq!(resend(&mut tx, RTT_MS)[0], acked);
        ack_at(&mut tx, 2 * RTT_MS, 10, &[]);
        assert!(tx.may_probe_mtu() && tx.flight_is_empty());
    }
}

#[test]
fn without_sack_the_third_duplicate_tells_that_a_probe_is_lost() {
    let mut tx = probing(false);
    ack(&mut tx, 4, &[]);
    for duplicate in 1..=3 {
        assert_eq!(tx.take_mtu_probe_fate(), None);
        assert!(!ack(&mut tx, 4, &[]).loss_found, "{duplicate}");
    }
    assert_eq!(tx.take_mtu_probe_fate(), Some(ProbeFate::Lost));
    assert_eq!(resend(&mut tx, RTT_MS), [4]);
    // Two more are for the rest of the flight, and the window has never fallen.
    ack(&mut tx, 4, &[]);
    ack(&mut tx, 4, &[]);
    ack_at(&mut tx, 2 * RTT_MS, 10, &[]);
    assert_eq!(tx.cc.ssthresh(), usize::MAX);
    assert!(tx.may_probe_mtu());
}

#[test]
fn a_probe_arrives_by_either_acknowledgment_and_a_timeout_asks_what_was_before_it() {
    for (acked, sacked) in [(5, &[][..]), (4, &[(4, 5)][..]), (3, &[(4, 6)][..])] {
        let mut tx = probing(true);
        ack(&mut tx, acked, sacked);
        assert_eq!(tx.take_mtu_probe_fate(), Some(ProbeFate::Arrived));
    }
    for (acked, fate) in [(4, ProbeFate::TimedOut), (3, ProbeFate::Inconclusive)] {
        let mut tx = probing(true);
        ack(&mut tx, acked, &[]);
        assert_eq!(tx.take_mtu_probe_fate(), None);
        tx.on_timeout(Instant::from_millis(1000));
        assert_eq!(tx.take_mtu_probe_fate(), Some(fate));
    }
}

// RFC 5927 §4.1.
#[test]
fn in_flight_is_from_the_first_octet_not_acknowledged_to_the_last_one_sent() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 2, &[]);
    for (seq, is) in [
        (at(&tx, 2) - 1, false),
        (at(&tx, 2), true),
        (at(&tx, 10) - 1, true),
        (at(&tx, 10), false),
    ] {
        assert_eq!(tx.is_in_flight(seq), is, "{seq:?}");
    }
}

// RFC 5681 §4.1.
#[test]
fn a_window_that_was_idle_for_a_timeout_starts_again() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 10, &[]);
    let grown = tx.cc.cwnd();
    assert!(grown > 10 * MSS);
    for (idle_ms, kept) in [(210, true), (211, false)] {
        let sent_at = tx.last_sent_at.as_millis() + idle_ms;
        tx.on_sent(Instant::from_millis(sent_at), MSS, false, ());
        assert_eq!(tx.cc.cwnd() == grown, kept);
        let sent = tx.snd_nxt.distance(tx.iss + 1) / MSS;
        ack_at(&mut tx, sent_at + 10, sent, &[]);
    }
}

#[test]
fn what_does_not_fill_the_window_does_not_grow_it() {
    let mut tx = sender(true, 5);
    ack(&mut tx, 5, &[]);
    assert_eq!(tx.cc.cwnd(), 10 * MSS);
    for _ in 0..6 {
        tx.on_sent(Instant::from_millis(11), MSS, false, ());
    }
    ack_at(&mut tx, 21, 11, &[]);
    assert_eq!(tx.cc.cwnd(), 12 * MSS);
}

#[test]
fn a_window_leaves_at_the_pace_of_the_path() {
    let mut tx = sender(true, 1);
    ack_at(&mut tx, 100, 1, &[]);
    // 11 segments per 100 ms, in slow start twice that: one each 4.5 ms, the first ten at once.
    let mut sent = 0;
    while tx.cwnd_room() {
        tx.on_sent(Instant::from_millis(1000), MSS, false, ());
        sent += 1;
        assert!(sent <= 10, "{tx:?}");
    }
    assert_eq!(sent, 10, "{tx:?}");
    let held = tx.pacer.held_until.is_some();
    assert!(held || tx.in_flight() + MSS > tx.window());
}

// Recovery that a timer begins, with nothing left in flight, opens no window: what goes nonetheless
// sets no pace.
#[test]
fn what_leaves_in_recovery_is_paced_by_the_window_that_recovery_leads_to() {
    let mut tx = sender(true, 2);
    ack(&mut tx, 0, &[(1, 2)]);
    let due = tx.reorder_at.expect("to be looked at again");
    assert!(tx.on_timers(due).loss_found);
    assert_eq!((tx.in_flight(), resend(&mut tx, 13)), (0, vec![0]));
    assert_eq!(tx.pacer.held_until, None);
}

// Without SACK an acknowledgment that jumps ahead after a timeout covers what the peer had kept all the
// time: RFC 5682 §3.1 step 3 b needs SACK.
#[test]
fn without_sack_originals_after_a_timeout_undo_nothing() {
    let mut tx = sender(false, 10);
    tx.on_timeout(Instant::from_millis(1000));
    assert_eq!(resend(&mut tx, 1000), [0]);
    assert!(!ack_at(&mut tx, 1010, 5, &[]).undone);
    assert!(tx.has_lost());
}

// RFC 3708 §3: a duplicate of what was never sent again is the network's.
#[test]
fn a_duplicate_that_the_network_made_undoes_nothing() {
    for dsack in [(2, 3), (7, 8)] {
        let mut tx = sender(true, 20);
        ack(&mut tx, 5, &[]);
        assert!(ack(&mut tx, 5, &[(6, 12)]).loss_found);
        assert_eq!(resend(&mut tx, 10), [5]);
        assert!(
            !ack_at(&mut tx, 11, 5, &[dsack, (6, 12)]).undone,
            "{dsack:?}"
        );
    }
}

#[test]
fn duplicates_of_a_recovery_do_not_pay_for_the_timeout_after_it() {
    let mut tx = sender(true, 20);
    assert!(ack(&mut tx, 0, &[(4, 12)]).loss_found);
    assert!(resend(&mut tx, 10).len() > 1);
    tx.on_timeout(Instant::from_millis(1000));
    let lost = tx.next_lost(MSS, true).expect("the head");
    tx.on_retransmitted(Instant::from_millis(1000), lost.at);
    assert!(!ack_at(&mut tx, 1010, 1, &[(0, 1), (4, 12)]).undone);
}

#[test]
fn a_mark_during_recovery_stays_when_the_losses_turn_out_to_be_none() {
    let mut tx = sender(true, 20);
    assert!(ack(&mut tx, 0, &[(1, 8)]).loss_found);
    assert_eq!(resend(&mut tx, 10), [0]);
    assert!(!tx.on_congestion_echo(Instant::from_millis(10), 0));
    ack_at(&mut tx, 11, 8, &[]);
    assert!(!ack_at(&mut tx, 12, 9, &[(0, 1)]).undone);
}

#[test]
fn a_loss_that_a_probe_repaired_and_a_mark_of_its_window_count_once() {
    let mut tx = sender(true, 20);
    ack(&mut tx, 10, &[]);
    let due = tx.tail_probe.at.expect("armed");
    assert!(tx.on_timers(due).tail_probe);
    let (last, _) = tx.tail_to_probe().expect("the last one");
    tx.on_retransmitted(due, last);
    tx.on_sent(due, MSS, false, ());
    let outcome = ack_at(&mut tx, due.as_millis() + 10, 21, &[]);
    assert!(outcome.probe_repaired);
    assert!(!tx.on_congestion_echo(due, outcome.advanced));
}

// The window before the timeout comes back first, and then falls by half.
#[test]
fn a_loss_in_the_acknowledgment_that_undoes_a_timeout_halves_the_window_before_it() {
    let mut tx = sender(true, 60);
    ack(&mut tx, 1, &[]);
    tx.on_timeout(Instant::from_millis(1000));
    let lost = tx.next_lost(MSS, true).expect("the head");
    tx.on_retransmitted(Instant::from_millis(1000), lost.at);
    let outcome = ack_at(&mut tx, 1001, 1, &[(2, 3), (5, 9)]);
    assert!(outcome.undone && outcome.loss_found);
    assert_eq!(tx.cc.ssthresh(), 59 * MSS / 2);
}

// RFC 6675 §5: the next recovery is for what was sent during this one.
#[test]
fn a_loss_of_what_was_sent_during_recovery_reduces_the_window_again() {
    for lost_too in [false, true] {
        let mut tx = sender(true, 20);
        assert!(ack(&mut tx, 0, &[(1, 8)]).loss_found);
        assert_eq!(resend(&mut tx, 10), [0]);
        for n in 9..=20 {
            ack_at(&mut tx, 11, 0, &[(1, n)]);
            send_new(&mut tx, 11);
        }
        let end = tx.snd_nxt.distance(tx.iss + 1) / MSS;
        let ssthresh = tx.cc.ssthresh();
        let first = if lost_too { 21 } else { 20 };
        ack_at(&mut tx, 21, 0, &[(1, 20), (first, end)]);
        resend(&mut tx, 21);
        let repaired = if lost_too { 20 } else { end };
        let outcome = ack_at(&mut tx, 31, repaired, &[(first, end)]);
        assert_eq!(outcome.loss_found, lost_too);
        assert_eq!(tx.cc.ssthresh() < ssthresh, lost_too);
    }
}

// RFC 6937: what a timer finds to be lost lets no more go than has arrived.
#[test]
fn losses_that_a_timer_finds_during_recovery_make_no_burst() {
    let mut tx = sender(true, 100);
    ack(&mut tx, 0, &[(1, 2)]);
    ack(&mut tx, 2, &[(3, 6)]);
    let due = tx.reorder_at.expect("reordering was seen");
    assert!(tx.on_timers(due).loss_found);
    resend(&mut tx, 13);
    ack_at(&mut tx, 13, 2, &[(3, 6), (60, 61)]);
    tx.on_timers(tx.reorder_at.expect("to be looked at again"));
    assert!(tx.board.lost_segments > 50);
    assert!(tx.window() <= tx.in_flight() && !tx.retransmission_ready());
}

// What is noted of copies stays in proportion to the flight, however often losses are undone.
#[test]
fn undoing_again_and_again_piles_nothing_up() {
    let mut tx = sender(true, 60);
    ack(&mut tx, 1, &[]);
    for n in 2..50 {
        let ms = 2000 * n as u64;
        tx.on_timeout(Instant::from_millis(ms));
        resend(&mut tx, ms);
        assert!(ack_at(&mut tx, ms + 10, 1, &[(2, n + 1)]).undone);
        assert!(tx.board.copies_noted() <= 2 * tx.board.len());
    }
}

// RFC 1191 §6.4: what is too big for the path is lost, whatever turns out of a loss before.
#[test]
fn a_late_duplicate_takes_nothing_back_that_was_too_big() {
    let mut tx = sender(true, 20);
    ack(&mut tx, 5, &[]);
    assert!(ack(&mut tx, 5, &[(6, 9)]).loss_found);
    assert_eq!(resend(&mut tx, 10), [5]);
    ack_at(&mut tx, 20, 20, &[]);
    for _ in 0..6 {
        tx.on_sent(Instant::from_millis(20), MSS, false, ());
    }
    tx.set_mss(500, 500);
    assert_eq!(tx.board.lost_segments, 6);
    assert!(!ack_at(&mut tx, 21, 20, &[(5, 6)]).undone);
    assert!(tx.retransmission_ready());
}

#[test]
fn part_of_a_segment_acknowledged_leaves_the_rest() {
    let mut tx = sender(true, 1);
    let (first, none) = (tx.iss + 1, SackBlocks::default());
    tx.on_ack(Instant::ZERO, first + 300, &none, false, |_| false, |_| {});
    assert_eq!(tx.in_flight(), 700);
    tx.on_timeout(Instant::ZERO + Duration::from_secs(1));
    let lost = tx.next_lost(MSS, true).expect("the rest");
    assert_eq!((lost.sent.seq, lost.sent.len), (first + 300, 700));
}

// RFC 5961 §5.2: an acknowledgment is too old by more than the largest window there has been.
#[test]
fn an_acknowledgment_may_be_as_old_as_the_largest_window() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 10, &[]);
    tx.update_window(TcpSeq(5), tx.snd_una, 500);
    assert!(tx.ack_acceptable(tx.snd_una - 100_000));
    assert!(!tx.ack_acceptable(tx.snd_una - 100_001));
    assert!(tx.ack_acceptable(tx.snd_nxt) && !tx.ack_acceptable(tx.snd_nxt + 1));
}

#[test]
fn window_is_taken_from_the_newest_segment_only() {
    let mut tx = sender(true, 1);
    assert!(tx.update_window(TcpSeq(5), tx.snd_una, 500));
    assert!(!tx.update_window(TcpSeq(4), tx.snd_una, 900));
    assert_eq!(tx.snd_wnd, 500);
    assert!(tx.update_window(TcpSeq(5), tx.snd_una, 0));
    assert_eq!(tx.window_room(), 0);
}

#[test]
fn the_segments_in_flight_are_counted_by_what_is_known_of_them() {
    let mut tx = sender(true, 10);
    ack(&mut tx, 2, &[(3, 6)]);
    let counts = |tx: &Sender<()>| {
        let flight = tx.flight_segments();
        [
            flight.unacked,
            flight.sacked,
            flight.lost,
            flight.retransmitted,
        ]
    };
    assert_eq!(counts(&tx), [8, 3, 1, 0]);
    assert_eq!(resend(&mut tx, RTT_MS), [2]);
    assert_eq!(counts(&tx), [8, 3, 0, 1]);
    ack(&mut tx, 6, &[]);
    assert_eq!(counts(&tx), [4, 0, 0, 0]);
}

// RFC 9293 §3.4: the FIN has a number behind the text, and no octets.
#[test]
fn a_fin_stays_in_flight_when_its_text_is_acknowledged() {
    let mut tx = sender(true, 1);
    tx.on_sent(Instant::ZERO, 500, true, ());
    let (fin, none) = (at(&tx, 1) + 500, SackBlocks::default());
    assert_eq!((tx.snd_nxt, tx.in_flight()), (fin + 1, MSS + 501));
    tx.on_ack(Instant::ZERO, fin, &none, false, |_| false, |_| {});
    let left: Vec<_> = tx.flight().map(|s| (s.seq, s.len, s.fin)).collect();
    assert_eq!((left, tx.in_flight()), (vec![(fin, 0, true)], 1));
    tx.on_timeout(Instant::from_millis(1000));
    let lost = tx.next_lost(MSS, true).expect("the FIN");
    assert_eq!((lost.sent.seq, lost.sent.len), (fin, 0));
    tx.on_retransmitted(Instant::from_millis(1000), lost.at);
    tx.on_ack(Instant::ZERO, fin + 1, &none, false, |_| false, |_| {});
    assert!(tx.flight_is_empty() && tx.in_flight() == 0);
}

// RFC 6356 §3 counts flight size, and ssthresh in fast recovery.
#[test]
fn siblings_see_the_flight_and_whether_it_is_being_repaired() {
    let mut tx = sender(true, 10);
    assert!(tx.as_sibling().is_none(), "no round trip was measured");
    let see = |tx: &Sender<()>| {
        let seen = tx.as_sibling().expect("one was");
        (seen.cwnd, seen.ssthresh, seen.flight_size, seen.recovering)
    };
    ack(&mut tx, 1, &[]);
    let cwnd = tx.cc.cwnd();
    assert_eq!(see(&tx), (cwnd, usize::MAX, 9 * MSS, false));
    // What is SACKed is not acknowledged.
    ack(&mut tx, 1, &[(2, 5)]);
    assert_eq!(see(&tx), (9 * MSS / 2, 9 * MSS / 2, 9 * MSS, true));
    tx.on_timeout(Instant::from_millis(500));
    assert_eq!(see(&tx), (MSS, tx.cc.ssthresh(), 9 * MSS, false));
}
