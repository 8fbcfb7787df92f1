//! HyStart++ (RFC 9406): slow start that ends when round trips become longer, before the queue
//! overflows.

use super::Ack;
use crate::seq::TcpSeq;
use crate::time::Duration;

/// RFC 9406 §4.3.
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u32 = 8;
const CSS_GROWTH_DIVISOR: usize = 4;
const CSS_ROUNDS: u32 = 5;

#[derive(Clone, Debug, Default)]
pub(super) struct HyStart {
    /// The round ends when this is acknowledged.
    round_end: Option<TcpSeq>,
    /// Shortest round trip of this round, and of the one before.
    round_rtt: Option<Duration>,
    last_round_rtt: Option<Duration>,
    samples: u32,
    conservative: Option<Conservative>,
}

/// Conservative Slow Start: was it the queue, or only jitter?
#[derive(Clone, Copy, Debug)]
struct Conservative {
    baseline_rtt: Duration,
    rounds_left: u32,
}

impl HyStart {
    /// By how many octets the window grows for this acknowledgment; `None`: slow start is over.
    // RFC 9406 §4.2.
    pub(super) fn on_ack(&mut self, ack: &Ack<'_>) -> Option<usize> {
        if let Some(rtt) = ack.rtt {
            self.round_rtt = Some(self.round_rtt.map_or(rtt, |shortest| shortest.min(rtt)));
            self.samples += 1;
        }
        if self.samples >= N_RTT_SAMPLE {
            self.compare_rounds();
        }
        match self.round_end {
            Some(end) if ack.snd_una.before(end) => {}
            Some(_) => {
                if let Some(conservative) = &mut self.conservative {
                    // The round in which it began counts.
                    if conservative.rounds_left <= 1 {
                        return None;
                    }
                    conservative.rounds_left -= 1;
                }
                self.last_round_rtt = self.round_rtt.take();
                self.samples = 0;
                self.round_end = Some(ack.snd_nxt);
            }
            None => self.round_end = Some(ack.snd_nxt),
        }
        // RFC 9406 §4.3: without the limit L, as the sender paces what an acknowledgment releases.
        let growth = ack.acked_bytes;
        Some(match self.conservative {
            Some(_) => growth / CSS_GROWTH_DIVISOR,
            None => growth,
        })
    }

    fn compare_rounds(&mut self) {
        let Some(rtt) = self.round_rtt else { return };
        match (self.conservative, self.last_round_rtt) {
            // It was jitter.
            (Some(conservative), _) if rtt < conservative.baseline_rtt => self.conservative = None,
            (None, Some(last)) => {
                let threshold = (last / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if rtt >= last + threshold {
                    self.conservative = Some(Conservative {
                        baseline_rtt: rtt,
                        rounds_left: CSS_ROUNDS,
                    });
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Instant;

    const MSS: usize = 1000;

    /// A round of ten segments, each acknowledged after `rtt_ms`; what each made the window grow by.
    fn round(hystart: &mut HyStart, number: u32, rtt_ms: u64) -> Vec<Option<usize>> {
        let begin = TcpSeq(u32::MAX - 50_000) + number as usize * 10 * MSS;
        (1..=10)
            .map(|n| {
                let ack = Ack {
                    now: Instant::ZERO,
                    acked_bytes: MSS,
                    snd_una: begin + n * MSS,
                    snd_nxt: begin + (n + 10) * MSS,
                    rtt: Some(Duration::from_millis(rtt_ms)),
                    srtt: None,
                    min_rtt: None,
                    siblings: &[],
                };
                hystart.on_ack(&ack)
            })
            .collect()
    }

    #[test]
    fn a_rise_by_an_eighth_slows_growth_and_after_five_rounds_ends_it() {
        let mut hystart = HyStart::default();
        for number in 0..3 {
            assert_eq!(round(&mut hystart, number, 80), [Some(MSS); 10]);
        }
        // An eighth of 80 ms is 10 ms: 9 ms more is let pass, and is what the next is compared to.
        assert_eq!(round(&mut hystart, 3, 89), [Some(MSS); 10]);
        let rising = round(&mut hystart, 4, 101);
        assert!(rising.contains(&Some(MSS)) && rising.contains(&Some(MSS / 4)));
        let mut rounds = 1;
        while round(&mut hystart, 4 + rounds, 101)
            .iter()
            .all(Option::is_some)
        {
            rounds += 1;
        }
        assert_eq!(rounds, CSS_ROUNDS);
    }

    #[test]
    fn a_rise_that_passes_was_jitter() {
        let mut hystart = HyStart::default();
        for (number, rtt_ms) in [(0, 20), (1, 20), (2, 24), (3, 24)] {
            round(&mut hystart, number, rtt_ms);
        }
        assert!(hystart.conservative.is_some(), "4 ms, the least threshold");
        round(&mut hystart, 4, 23);
        assert!(hystart.conservative.is_none());
        assert_eq!(round(&mut hystart, 5, 24), [Some(MSS); 10]);
    }

    #[test]
    fn seven_measurements_of_a_round_decide_nothing_and_the_eighth_does() {
        let (begin, next) = (TcpSeq(0), TcpSeq(100));
        let mut hystart = HyStart {
            round_end: Some(next),
            last_round_rtt: Some(Duration::from_millis(20)),
            ..HyStart::default()
        };
        for n in 1..=N_RTT_SAMPLE {
            let ack = Ack {
                now: Instant::ZERO,
                acked_bytes: 16 * MSS,
                snd_una: begin,
                snd_nxt: next,
                rtt: Some(Duration::from_secs(1)),
                srtt: None,
                min_rtt: None,
                siblings: &[],
            };
            let growth = if n < N_RTT_SAMPLE { 16 * MSS } else { 4 * MSS };
            assert_eq!(hystart.on_ack(&ack), Some(growth));
        }
    }
}
