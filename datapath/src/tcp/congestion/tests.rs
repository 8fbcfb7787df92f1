//! What holds for every algorithm, and that the trait has what a coupled one needs.

use super::*;
use proptest::prelude::*;

const MSS: usize = 1400;

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
                match *event {
                    Event::Ack { after_ms, bytes } => {
                        now = now + Duration::from_millis(after_ms);
                        let rtt = Duration::from_millis(after_ms % 300);
                        let snd_una = TcpSeq(now.0 as u32);
                        cc.on_ack(&Ack {
                            now,
                            acked_bytes: bytes,
                            snd_una,
                            snd_nxt: snd_una + before.min(WINDOW_MAX_BYTES),
                            rtt: Some(rtt),
                            srtt: Some(rtt),
                            min_rtt: Some(rtt),
                            siblings: &[],
                        });
                        prop_assert!(cc.cwnd() >= before.min(WINDOW_MAX_BYTES));
                    }
                    Event::Congestion { flight_size } => {
                        cc.on_congestion(now, flight_size);
                        prop_assert!(cc.cwnd() >= 2 * mss && cc.ssthresh() >= 2 * mss);
                    }
                    Event::Timeout { flight_size, first } => {
                        cc.on_timeout(now, flight_size, first);
                        prop_assert_eq!(cc.cwnd(), mss);
                    }
                    Event::Undo => {
                        cc.undo();
                        prop_assert!(cc.cwnd() >= before);
                    }
                    Event::Idle => {
                        cc.on_idle();
                        prop_assert!(cc.cwnd() <= before.max(INITIAL_WINDOW_SEGMENTS * mss));
                    }
                    Event::SetMss(size) => {
                        mss = size;
                        cc.set_mss(size);
                    }
                }
                prop_assert!((mss..1 << 40).contains(&cc.cwnd()), "{}: {}", cc.name(), cc.cwnd());
            }
        }
    }
}

/// The growth of RFC 6356 §3 around NewReno, which does the rest (§4).
#[derive(Debug)]
struct Lia {
    reno: NewReno,
    mss: usize,
    /// Octets that the window has grown by and NewReno does not know of.
    grown: usize,
}

impl Lia {
    fn new(mss: usize) -> Lia {
        Lia {
            reno: NewReno::new(mss),
            mss,
            grown: 0,
        }
    }
}

impl CongestionControl for Lia {
    fn name(&self) -> &'static str {
        "lia"
    }

    fn cwnd(&self) -> usize {
        self.reno.cwnd() + self.grown
    }

    fn ssthresh(&self) -> usize {
        self.reno.ssthresh()
    }

    fn is_coupled(&self) -> bool {
        true
    }

    fn on_ack(&mut self, ack: &Ack<'_>) {
        if self.cwnd() < self.ssthresh() {
            return self.reno.on_ack(ack);
        }
        let window = |s: &Sibling| if s.recovering { s.ssthresh } else { s.cwnd } as f64;
        let all = ack.siblings.iter();
        let total: f64 = all.clone().map(window).sum();
        let best = all
            .clone()
            .map(|s| window(s) / s.srtt.as_secs_f64().powi(2))
            .fold(0.0, f64::max);
        let rate: f64 = all.map(|s| window(s) / s.srtt.as_secs_f64()).sum();
        let alpha = total * best / (rate * rate);
        let octets = (ack.acked_bytes * self.mss) as f64;
        self.grown += (alpha * octets / total).min(octets / self.cwnd() as f64) as usize;
    }

    fn on_congestion(&mut self, now: Instant, flight_size: usize) {
        self.grown = 0;
        self.reno.on_congestion(now, flight_size);
    }

    fn on_timeout(&mut self, now: Instant, flight_size: usize, first: bool) {
        self.grown = 0;
        self.reno.on_timeout(now, flight_size, first);
    }

    fn undo(&mut self) {
        self.reno.undo();
    }

    fn on_idle(&mut self) {
        self.grown = 0;
        self.reno.on_idle();
    }

    fn set_mss(&mut self, mss: usize) {
        self.mss = mss;
        self.reno.set_mss(mss);
    }
}

/// RFC 6356 §2, goals 1 and 2, of two subflows on paths of 100 ms and of 10 ms: together they grow as
/// one TCP on the better path would, and neither faster than a TCP of its own.
#[test]
fn a_coupled_algorithm_finds_in_the_trait_what_it_needs() {
    let srtts = [Duration::from_millis(100), Duration::from_millis(10)];
    let mut subflows = [Lia::new(MSS), Lia::new(MSS)];
    for subflow in &mut subflows {
        subflow.on_congestion(Instant::ZERO, 20 * MSS);
    }
    let growth = |subflows: &mut [Lia; 2], recovering: bool| {
        let siblings: Vec<Sibling> = std::iter::zip(&*subflows, srtts)
            .map(|(subflow, srtt)| Sibling {
                cwnd: subflow.cwnd() * if recovering { 100 } else { 1 },
                ssthresh: subflow.ssthresh(),
                mss: MSS,
                srtt,
                recovering,
            })
            .collect();
        let mut grown = [0; 2];
        for (at, subflow) in subflows.iter_mut().enumerate() {
            let before = subflow.cwnd();
            subflow.on_ack(&Ack {
                now: Instant::ZERO,
                acked_bytes: before,
                snd_una: TcpSeq(0),
                snd_nxt: TcpSeq(0),
                rtt: None,
                srtt: Some(srtts[at]),
                min_rtt: None,
                siblings: &siblings,
            });
            grown[at] = subflow.cwnd() - before;
        }
        grown
    };
    // Equal windows of 10: alpha = 20 * (10 / 0.01^2) / (10 / 0.1 + 10 / 0.01)^2 = 1.653, and a
    // window's worth of acknowledgments grows either by alpha / 2 segments.
    let uncoupled = MSS;
    let grown = growth(&mut subflows, false);
    for octets in grown {
        let expected = 1.653 / 2.0 * uncoupled as f64;
        assert!((octets as f64 - expected).abs() < 2.0, "{octets}");
    }
    // RFC 6356 §3: what is in fast recovery counts with its ssthresh, whatever its window.
    for subflow in &mut subflows {
        subflow.on_congestion(Instant::ZERO, 20 * MSS);
    }
    assert_eq!(growth(&mut subflows, true), grown);
}
