//! What holds for every algorithm.

use super::*;
use proptest::prelude::*;

const MSS: usize = 1400;

#[test]
fn what_runs_has_the_name_that_chose_it() {
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.name().parse(), Ok(algorithm));
        assert_eq!(algorithm.start(MSS).name(), algorithm.name());
    }
}

#[derive(Clone, Debug)]
enum Event {
    Ack { after_ms: u64, bytes: usize },
    Congestion { flight_size: usize },
    Timeout { flight_size: usize, first: bool },
    Undo,
    Idle,
    SetMss(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let bytes = || prop_oneof![0..2 * MSS, 0..WINDOW_MAX_BYTES];
    prop_oneof![
        8 => (prop_oneof![0..200_u64, any::<u32>().prop_map(u64::from)], bytes())
            .prop_map(|(after_ms, bytes)| Event::Ack { after_ms, bytes }),
        2 => bytes().prop_map(|flight_size| Event::Congestion { flight_size }),
        1 => (bytes(), any::<bool>())
            .prop_map(|(flight_size, first)| Event::Timeout { flight_size, first }),
        1 => Just(Event::Undo),
        1 => Just(Event::Idle),
        1 => (88..9000_usize).prop_map(Event::SetMss),
    ]
}

fn apply(cc: &mut dyn CongestionControl, event: &Event, now: Instant, siblings: &[Sibling]) {
    match *event {
        Event::Ack { after_ms, bytes } => {
            let rtt = Duration::from_millis(after_ms % 300);
            let snd_una = TcpSeq(now.0 as u32);
            cc.on_ack(&Ack {
                now,
                acked_bytes: bytes,
                snd_una,
                snd_nxt: snd_una + cc.cwnd().min(WINDOW_MAX_BYTES),
                rtt: Some(rtt),
                srtt: Some(rtt),
                min_rtt: Some(rtt),
                siblings,
            });
        }
        Event::Congestion { flight_size } => cc.on_congestion(now, flight_size),
        Event::Timeout { flight_size, first } => cc.on_timeout(now, flight_size, first),
        Event::Undo => cc.undo(),
        Event::Idle => cc.on_idle(),
        Event::SetMss(size) => cc.set_mss(size),
    }
}

proptest! {
    /// RFC 5681 §3.1: a window never falls below one segment, nor below two for a loss that was
    /// repaired without a timeout; and no sum of windows overflows.
    #[test]
    fn windows_stay_in_bounds(events in prop::collection::vec(event(), 1..300)) {
        for algorithm in Algorithm::ALL {
            let mut cc = algorithm.start(MSS);
            let mut mss = MSS;
            let mut now = Instant::ZERO;
            for event in &events {
                let before = cc.cwnd();
                if let Event::Ack { after_ms, .. } = *event {
                    now = now + Duration::from_millis(after_ms);
                }
                apply(&mut *cc, event, now, &[]);
                match *event {
                    Event::Ack { .. } => {
                        prop_assert!(cc.cwnd() >= before.min(WINDOW_MAX_BYTES));
                    }
                    Event::Congestion { .. } => {
                        prop_assert!(cc.cwnd() >= 2 * mss && cc.ssthresh() >= 2 * mss);
                    }
                    Event::Timeout { .. } => prop_assert_eq!(cc.cwnd(), mss),
                    Event::Undo => prop_assert!(cc.cwnd() >= before),
                    Event::Idle => {
                        prop_assert!(cc.cwnd() <= before.max(INITIAL_WINDOW_SEGMENTS * mss));
                    }
                    Event::SetMss(size) => mss = size,
                }
                prop_assert!((mss..1 << 40).contains(&cc.cwnd()), "{}: {}", cc.name(), cc.cwnd());
            }
        }
    }

    /// RFC 6356: one subflow is one TCP, whatever its round trip, beside others that carry nothing, too.
    #[test]
    fn lia_of_one_subflow_is_reno(
        events in prop::collection::vec(event(), 1..300),
        srtt_us in 0..1_000_000_u64,
        idle in 0..3_usize,
    ) {
        let (mut lia, mut reno) = (Lia::new(MSS), NewReno::new(MSS));
        for event in &events {
            let sibling = Sibling {
                cwnd: lia.cwnd(),
                ssthresh: lia.ssthresh(),
                flight_size: 0,
                srtt: Duration::from_micros(srtt_us),
                recovering: false,
            };
            let mut siblings = vec![sibling; idle + 1];
            if let Event::Ack { bytes, .. } = *event {
                siblings[idle].flight_size = bytes;
            }
            apply(&mut lia, event, Instant::ZERO, &siblings);
            apply(&mut reno, event, Instant::ZERO, &[]);
            prop_assert_eq!((lia.cwnd(), lia.ssthresh()), (reno.cwnd(), reno.ssthresh()));
        }
    }
}
