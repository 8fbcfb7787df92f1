use super::*;
use proptest::prelude::*;

fn segment(seq: TcpSeq, len: usize, sent_at: Instant) -> Sent<()> {
    Sent {
        seq,
        len,
        fin: false,
        mark: (),
        sent_at,
        previous_at: None,
        fate: Fate::Outstanding,
    }
}

// RFC 2018 §4: a block that holds part of a segment says nothing of the whole.
#[test]
fn a_segment_is_sacked_when_one_block_holds_all_of_it() {
    let first = TcpSeq(u32::MAX - 5);
    let mut board = Scoreboard::new(first);
    for n in 0..3 {
        board.push(segment(first + 4 * n, 4, Instant::ZERO));
    }
    for (block, sacked) in [
        ((1, 7), 0),
        ((1, 8), 1),
        ((4, 11), 1),
        ((1, 12), 2),
        ((0, 12), 3),
    ] {
        let mut delivered = Delivered::new(Instant::ZERO, None);
        board.sack((first + block.0, first + block.1), &mut delivered, &|_| {
            false
        });
        assert_eq!(board.sacked_segments, sacked, "{block:?}");
    }
}

#[test]
fn stale_copies_are_forgotten_where_memory_ends_and_not_before() {
    let first = TcpSeq(u32::MAX - 5);
    let mut board = Scoreboard::new(first);
    for n in 0..4 {
        board.push(segment(first + 4 * n, 4, Instant::ZERO));
    }
    let places = COPIES_PER_SEGMENT * FIRST_SEGMENTS;
    for n in 5..=places {
        board.retransmitted(Instant::from_millis(n as u64), n % 4);
        assert_eq!(board.copies_noted(), n);
    }
    board.retransmitted(Instant::from_millis(1000), 0);
    assert_eq!(board.copies_noted(), 4, "one for each");
    assert_eq!(board.by_time.capacity(), places);
}

/// A scoreboard and what should be on it.
struct Flight {
    board: Scoreboard<()>,
    /// Where the next segment begins.
    end: TcpSeq,
    /// Octets of which it was the news that they arrived.
    arrived: usize,
}

/// Something that happens to it, and two numbers that say where.
type Event = (u8, usize, usize);

fn happen(flight: &mut Flight, ms: u64, (what, a, b): Event) {
    let Flight {
        board,
        end,
        arrived,
    } = flight;
    let now = Instant::from_millis(ms);
    let mut delivered = Delivered::new(now, None);
    let before: Vec<_> = board.iter().copied().collect();
    let (i, j) = match before.len() {
        0 => (0, 0),
        len => (a % len, a % len + b % (len - a % len)),
    };
    match what {
        0 | 1 => {
            // Now and then many, or memory would never grow.
            for n in 0..1 + what as usize * b % 12 {
                let ended = board.iter().any(|sent| sent.fin);
                let mut sent = segment(*end, ((a + n) % 5).max(usize::from(ended)), now);
                sent.fin = sent.len == 0;
                *end = sent.end();
                let (held, growth) = (board.held_bytes(), board.growth_bytes());
                let full = board.len() == board.segments.capacity();
                board.push(sent);
                let now_held = match held {
                    0 => Scoreboard::<()>::FIRST_BYTES,
                    _ if sent.fin => held,
                    _ => held + growth,
                };
                // After several cuts of the first segment a FIN may find no place.
                assert!(board.held_bytes() == now_held || held > 0 && sent.fin && full);
                if sent.len > 0 && growth > 0 {
                    let copies = board.by_time.capacity() * size_of::<(Instant, TcpSeq)>();
                    let segments = board.segments.capacity() * size_of::<Sent<()>>();
                    assert_eq!(board.held_bytes(), segments + copies);
                    assert_eq!(board.by_time.capacity(), 2 * board.segments.capacity());
                }
            }
        }
        _ if before.is_empty() => {}
        2 => {
            let ack = before[i].seq + b % (before[i].space() + 1);
            let (mut whole, held) = (0, board.held_bytes());
            board.acknowledge(ack, &mut delivered, &|_| false, &mut |_| whole += 1);
            assert_eq!(board.len(), before.len() - whole);
            let most = if board.is_empty() {
                Scoreboard::<()>::FIRST_BYTES
            } else {
                held
            };
            assert_eq!(board.held_bytes(), held.min(most));
            assert!(board.front().is_none_or(|sent| sent.seq.at_or_after(ack)));
        }
        3 => {
            let block = (before[i].seq, before[j].end());
            board.sack(block, &mut delivered, &|_| false);
            for (at, (sent, was)) in board.iter().zip(&before).enumerate() {
                let inside = (i..=j).contains(&at);
                assert_eq!(sent.fate, if inside { Fate::Sacked } else { was.fate });
            }
            let news = before[i..=j].iter().any(|was| was.fate != Fate::Sacked);
            assert_eq!(delivered.sacked, news);
        }
        4 => {
            // Whatever left by then is overdue.
            let since = Instant::from_millis(ms * a as u64 / 1000);
            let next = board.mark_lost_in_time_order(|sent_at, _| {
                if sent_at <= since {
                    TimeVerdict::Lost
                } else {
                    TimeVerdict::LostAt(sent_at)
                }
            });
            let left = before.iter().filter(|was| was.fate == Fate::Outstanding);
            let late = left.clone().filter(|was| was.sent_at > since);
            assert_eq!(next, late.clone().map(|was| was.sent_at).min());
            assert_eq!(board.pipe, late.map(Sent::space).sum());
        }
        5 => {
            let first = before.iter().position(|was| was.fate == Fate::Lost);
            let text_max = b % 5;
            // What is too small for any text cuts nothing.
            let most = if text_max == 0 { 4 } else { text_max };
            let (held, growth, may_grow) = (board.held_bytes(), board.growth_bytes(), a % 2 == 0);
            let lost = board.first_lost(text_max, may_grow);
            // The first in flight takes any place there is.
            let full = held == before.len() * Scoreboard::<()>::SEGMENT_BYTES;
            let cut = first.filter(|at| before[*at].len > most);
            let grows = cut.is_some_and(|at| full || at > 0 && growth > 0);
            assert_eq!(
                lost.map(|lost| lost.at),
                first.filter(|_| may_grow || !grows)
            );
            let more = if grows && may_grow { growth } else { 0 };
            assert_eq!(board.held_bytes(), held + more);
            if let (Some(lost), Some(at)) = (lost, first) {
                assert_eq!(lost.sent.len, before[at].len.min(most));
                board.retransmitted(now, lost.at);
            }
        }
        6 => board.mark_lost(i),
        7 => board.retransmitted(now, i),
        8 => board.unmark_lost(),
        9 => {
            let places = board.held_bytes() / Scoreboard::<()>::SEGMENT_BYTES;
            board.shrink();
            let left = match places {
                FIRST_SEGMENTS.. if before.len() <= places / 4 => FIRST_SEGMENTS.max(places / 2),
                _ => places,
            };
            assert_eq!(board.held_bytes(), left * Scoreboard::<()>::SEGMENT_BYTES);
        }
        _ => {
            let sacked = before.iter().filter(|was| was.fate == Fate::Sacked);
            *arrived -= sacked.map(Sent::space).sum::<usize>();
            board.forget_sacked();
        }
    }
    *arrived += delivered.bytes;
}

proptest! {
    /// What is counted is what the segments say, and every octet arrives once.
    #[test]
    fn the_scoreboard_counts_right_whatever_happens(
        events in prop::collection::vec((0u8..11, 0usize..1000, 0usize..1000), 1..80),
    ) {
        let first = TcpSeq(u32::MAX - 20);
        let mut flight = Flight { board: Scoreboard::new(first), end: first, arrived: 0 };
        let all = events.into_iter().chain([(0, 1, 0), (0, 2, 0), (2, 0, 0)]);
        for (ms, event) in (1..).zip(all) {
            happen(&mut flight, ms, event);
            let Flight { board, end, arrived } = &flight;
            let of = |fate| board.iter().filter(move |sent| sent.fate == fate);
            assert_eq!(board.pipe, of(Fate::Outstanding).map(Sent::space).sum());
            assert_eq!(board.lost_segments, of(Fate::Lost).count());
            assert_eq!(board.sacked_segments, of(Fate::Sacked).count());
            let mut ends = board.iter().map(Sent::end);
            assert!(board.iter().skip(1).all(|sent| ends.next() == Some(sent.seq)));
            let sacked: usize = of(Fate::Sacked).map(Sent::space).sum();
            assert_eq!(board.sacked.covered(), sacked);
            // Every copy of which nothing is known is noted, in memory that is counted.
            for sent in of(Fate::Outstanding) {
                assert!(board.by_time.contains(&(sent.sent_at, sent.end())));
            }
            let places = board.held_bytes() / Scoreboard::<()>::SEGMENT_BYTES;
            assert_eq!(board.segments.capacity(), places);
            assert!(board.by_time.capacity() <= COPIES_PER_SEGMENT * places);
            assert!(!board.is_empty() || places <= FIRST_SEGMENTS);
            let una = board.front().map_or(*end, |sent| sent.seq);
            assert_eq!(*arrived, una.distance(first) + sacked);
        }
    }
}
