//! CUBIC (RFC 9438, which replaces RFC 8312; section numbers are RFC 9438's). Windows are kept in
//! segments and times in seconds, as the formulas have them.

use super::hystart::HyStart;
use super::{Ack, CongestionControl, INITIAL_WINDOW_SEGMENTS, WINDOW_MAX_BYTES};
use crate::time::{Duration, Instant};

/// §5.1: segments per cubic second.
const C: f64 = 0.4;
/// §4.6: what is left of the window.
const BETA: f64 = 0.7;
/// §4.3: what Reno with this β would grow by per round trip to be as fast as with a half.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

#[derive(Clone, Debug)]
pub struct Cubic {
    mss: usize,
    window: Window,
    hystart: HyStart,
    /// The window before it last fell (§4.9).
    before: Option<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    cwnd: f64,
    ssthresh: f64,
    /// Where the window stood at the last congestion, or lower to make room (§4.7). 0: not known.
    w_max: f64,
    /// cwnd at the last congestion.
    cwnd_prior: f64,
    /// Congestion avoidance under way.
    epoch: Option<Epoch>,
}

/// One stage of congestion avoidance.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    /// Time in use, up to `counted_to`.
    elapsed_s: f64,
    counted_to: Instant,
    /// When the function is back at its plateau.
    k_s: f64,
    plateau: f64,
    /// Where Reno would stand.
    w_est: f64,
}

impl Cubic {
    pub fn new(mss: usize) -> Cubic {
        Cubic {
            mss,
            window: Window {
                cwnd: INITIAL_WINDOW_SEGMENTS as f64,
                ssthresh: f64::INFINITY,
                w_max: 0.0,
                cwnd_prior: 0.0,
                epoch: None,
            },
            hystart: HyStart::default(),
            before: None,
        }
    }

    // §4.10: HyStart++ in the first slow start, the standard one in later ones (RFC 9406 §4.3).
    fn slow_start(&mut self, ack: &Ack<'_>) {
        let window = &mut self.window;
        let growth_bytes = if window.ssthresh.is_infinite() {
            self.hystart.on_ack(ack)
        } else {
            Some(ack.acked_bytes.min(2 * self.mss))
        };
        match growth_bytes {
            Some(bytes) => window.cwnd += bytes as f64 / self.mss as f64,
            None => {
                window.ssthresh = window.cwnd;
                window.cwnd_prior = window.cwnd;
            }
        }
    }
}

impl Window {
    // §4.2 to §4.5.
    fn avoid_congestion(&mut self, now: Instant, acked: f64, srtt: Duration) {
        let (cwnd, w_max) = (self.cwnd, self.w_max);
        let epoch = self
            .epoch
            .get_or_insert_with(|| Epoch::begin(now, cwnd, w_max));
        // §5.8: time in which the window was not in use does not count. In use it is heard of once
        // per round trip at least.
        let gap = now.since(epoch.counted_to).min(srtt);
        epoch.elapsed_s += gap.as_secs_f64();
        epoch.counted_to = now;
        // Once it has come back to where Reno fell, too, Reno's own growth applies.
        let alpha = if epoch.w_est < self.cwnd_prior {
            ALPHA
        } else {
            1.0
        };
        epoch.w_est += alpha * acked / self.cwnd;
        if epoch.w_cubic(0.0) < epoch.w_est {
            self.cwnd = self.cwnd.max(epoch.w_est);
        } else {
            let ahead = epoch.w_cubic(srtt.as_secs_f64());
            let target = ahead.clamp(self.cwnd, 1.5 * self.cwnd);
            self.cwnd += (target - self.cwnd) / self.cwnd * acked;
        }
    }

    fn scale(&mut self, factor: f64) {
        self.cwnd = (self.cwnd * factor).max(1.0);
        self.ssthresh = (self.ssthresh * factor).max(2.0);
        self.w_max *= factor;
        self.cwnd_prior *= factor;
        if factor < 1.0 {
            self.epoch = None;
        }
    }

    // §4.6, §4.7.
    fn fall(&mut self, flight: f64) {
        self.w_max = if self.cwnd < self.w_max {
            // Fast convergence: somebody else wants room.
            self.cwnd * (1.0 + BETA) / 2.0
        } else {
            self.cwnd
        };
        self.cwnd_prior = self.cwnd;
        self.ssthresh = (flight * BETA).max(2.0);
        self.epoch = None;
    }
}

impl Epoch {
    fn begin(now: Instant, cwnd: f64, w_max: f64) -> Epoch {
        // §4.8, §4.10: with no plateau ahead this is where it lies: K = 0.
        let plateau = w_max.max(cwnd);
        Epoch {
            elapsed_s: 0.0,
            counted_to: now,
            k_s: ((plateau - cwnd) / C).cbrt(),
            plateau,
            w_est: cwnd,
        }
    }

    /// §4.2, `ahead_s` from now.
    fn w_cubic(&self, ahead_s: f64) -> f64 {
        let t = self.elapsed_s + ahead_s - self.k_s;
        C * t * t * t + self.plateau
    }
}

impl CongestionControl for Cubic {
    fn name(&self) -> &'static str {
        "cubic"
    }

    fn cwnd(&self) -> usize {
        octets(self.window.cwnd, self.mss)
    }

    fn ssthresh(&self) -> usize {
        octets(self.window.ssthresh, self.mss)
    }

    fn on_ack(&mut self, ack: &Ack<'_>) {
        let window = &mut self.window;
        if window.cwnd < window.ssthresh {
            self.slow_start(ack);
        } else {
            // No more than a window's worth at once: an acknowledgment that ends a recovery may
            // cover several.
            let acked = (ack.acked_bytes as f64 / self.mss as f64).min(window.cwnd);
            window.avoid_congestion(ack.now, acked, ack.srtt.unwrap_or_default());
        }
        let limit = WINDOW_MAX_BYTES as f64 / self.mss as f64;
        self.window.cwnd = self.window.cwnd.min(limit);
    }

    fn on_congestion(&mut self, _now: Instant, flight_size: usize) {
        self.before = Some(self.window);
        self.window.fall(flight_size as f64 / self.mss as f64);
        self.window.cwnd = self.window.ssthresh;
    }

    // §4.8: the window is Reno's (RFC 5681 §3.1), the threshold is not.
    fn on_timeout(&mut self, _now: Instant, flight_size: usize, first: bool) {
        if first {
            self.before = Some(self.window);
            self.window.fall(flight_size as f64 / self.mss as f64);
        }
        self.window.w_max = 0.0;
        self.window.cwnd = 1.0;
        self.window.epoch = None;
    }

    // §4.9: with its epoch, so that growth goes on where it was.
    fn undo(&mut self) {
        if let Some(before) = self.before.take()
            && before.cwnd > self.window.cwnd
        {
            self.window = before;
        }
    }

    // RFC 5681 §4.1: the restart window. What comes after it is a new stage (§5.8).
    fn on_idle(&mut self) {
        self.window.cwnd = self.window.cwnd.min(INITIAL_WINDOW_SEGMENTS as f64);
        self.window.epoch = None;
    }

    // As many segments as before, but RFC 4821 §4: never more octets.
    fn set_mss(&mut self, mss: usize) {
        let factor = (self.mss as f64 / mss as f64).min(1.0);
        for window in [Some(&mut self.window), self.before.as_mut()]
            .into_iter()
            .flatten()
        {
            window.scale(factor);
        }
        self.mss = mss;
    }
}

/// To the nearest. Asked for several times per segment: a call of `round` would be most of it.
fn octets(segments: f64, mss: usize) -> usize {
    (segments * mss as f64 + 0.5) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seq::TcpSeq;

    const MSS: usize = 1000;

    /// Acknowledges a whole window, segment by segment, over one round trip; returns when that ends.
    fn round_trip(cc: &mut Cubic, from: Instant, rtt: Duration) -> Instant {
        let segments = cc.cwnd() / MSS;
        for n in 1..=segments {
            let now = from + rtt * n as u32 / segments as u32;
            ack(cc, now, MSS, rtt);
        }
        from + rtt
    }

    fn ack(cc: &mut Cubic, now: Instant, acked_bytes: usize, rtt: Duration) {
        cc.on_ack(&Ack {
            now,
            acked_bytes,
            snd_una: TcpSeq(0),
            snd_nxt: TcpSeq(0),
            rtt: None,
            srtt: Some(rtt),
            min_rtt: None,
            siblings: &[],
        });
    }

    /// In congestion avoidance, after a loss at `segments`.
    fn after_loss_at(segments: usize) -> Cubic {
        let mut cc = Cubic::new(MSS);
        cc.window.cwnd = segments as f64;
        cc.on_congestion(Instant::ZERO, segments * MSS);
        cc
    }

    #[test]
    fn window_follows_the_cubic_function_through_plateau_and_probing() {
        // From 700 segments to 1000 in K = cbrt(300 / 0.4) = 9.09 s, and on.
        let mut cc = after_loss_at(1000);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (700 * MSS, 700 * MSS));
        let rtt = Duration::from_millis(100);
        let mut now = Instant::ZERO;
        let k = (300.0_f64 / 0.4).cbrt();
        for round in 1..=150 {
            now = round_trip(&mut cc, now, rtt);
            if [20, 50, 91, 120, 150].contains(&round) {
                let t = f64::from(round) / 10.0;
                // The target lies one round trip ahead; the window is between the two.
                let w = |t: f64| 0.4 * (t - k).powi(3) + 1000.0;
                let at = cc.cwnd() as f64 / MSS as f64;
                let within = w(t) - 1.0..=w(t + 0.1) + 1.0;
                assert!(within.contains(&at), "{at} segments at {t} s: {within:?}");
            }
        }
    }

    #[test]
    fn on_a_short_path_it_grows_as_reno_with_its_beta_and_then_as_reno() {
        // 20 segments, 10 ms: the cubic function needs 2.5 s for what takes Reno a tenth of that.
        let mut cc = after_loss_at(20);
        let rtt = Duration::from_millis(10);
        let mut now = Instant::ZERO;
        for _ in 0..9 {
            now = round_trip(&mut cc, now, rtt);
        }
        let grown = cc.cwnd() as f64 / MSS as f64 - 14.0;
        assert!((4.3..=4.8).contains(&grown), "{grown} for 9 * 9/17");
        for _ in 0..4 {
            now = round_trip(&mut cc, now, rtt);
        }
        let passed = cc.cwnd();
        assert!(passed >= 20 * MSS, "{passed}");
        round_trip(&mut cc, now, rtt);
        let one = cc.cwnd() - passed;
        assert!((900..=1000).contains(&one), "one segment: {one}");
    }

    #[test]
    fn a_loss_below_the_last_one_makes_room_and_one_above_does_not() {
        let mut cc = after_loss_at(100);
        assert_eq!(cc.window.w_max, 100.0);
        cc.on_congestion(Instant::ZERO, 70 * MSS); // at 70 of 100
        assert!((cc.window.w_max - 70.0 * 0.85).abs() < 1e-9);
        cc.window.cwnd = 60.0;
        cc.on_congestion(Instant::ZERO, 60 * MSS);
        assert_eq!(cc.window.w_max, 60.0);
    }

    #[test]
    fn undo_goes_on_where_the_window_was_and_works_once() {
        let rtt = Duration::from_millis(100);
        let mut cc = after_loss_at(1000);
        let mut twin = cc.clone();
        let mut now = Instant::ZERO;
        for _ in 0..50 {
            round_trip(&mut twin, now, rtt);
            now = round_trip(&mut cc, now, rtt);
        }
        let flight = cc.cwnd();
        for timeout in [false, true] {
            if timeout {
                cc.on_timeout(now, flight, true);
                cc.on_timeout(now, MSS, false);
            } else {
                cc.on_congestion(now, flight);
            }
            assert!(cc.cwnd() < twin.cwnd());
            cc.undo();
            assert_eq!((cc.cwnd(), cc.ssthresh()), (twin.cwnd(), twin.ssthresh()));
        }
        round_trip(&mut twin, now, rtt);
        now = round_trip(&mut cc, now, rtt);
        assert_eq!(cc.cwnd(), twin.cwnd());
        cc.on_timeout(now, MSS, false);
        cc.undo();
        assert_eq!(cc.cwnd(), MSS);
    }

    #[test]
    fn after_a_timeout_it_probes_from_where_slow_start_ends() {
        let mut cc = Cubic::new(MSS);
        cc.on_timeout(Instant::ZERO, 100 * MSS, true);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (MSS, 70 * MSS));
        cc.on_timeout(Instant::ZERO, MSS, false);
        assert_eq!(cc.ssthresh(), 70 * MSS);
        let rtt = Duration::from_secs(1);
        let mut now = Instant::ZERO;
        while cc.cwnd() < 70 * MSS {
            now = round_trip(&mut cc, now, rtt);
        }
        now = round_trip(&mut cc, now, rtt);
        let epoch = cc.window.epoch.expect("congestion avoidance");
        assert_eq!(epoch.k_s, 0.0);
        for _ in 0..7 {
            now = round_trip(&mut cc, now, rtt);
        }
        // Eight seconds past the plateau: 0.4 * 8^3 above it, or what the next second brings.
        let above = cc.cwnd() as f64 / MSS as f64 - epoch.plateau;
        assert!((190.0..=300.0).contains(&above), "{above}");
    }

    #[test]
    fn time_without_use_of_the_window_does_not_count() {
        let rtt = Duration::from_millis(100);
        let mut cc = after_loss_at(100);
        let mut twin = cc.clone();
        let mut now = Instant::ZERO;
        for _ in 0..10 {
            round_trip(&mut twin, now, rtt);
            now = round_trip(&mut cc, now, rtt);
        }
        let pause = Duration::from_secs(3600);
        for _ in 0..10 {
            round_trip(&mut twin, now, rtt);
            round_trip(&mut cc, now + pause, rtt);
            now = now + rtt;
        }
        let (with, without) = (cc.cwnd(), twin.cwnd());
        assert!(with.abs_diff(without) < MSS, "{with} and {without}");
    }

    #[test]
    fn never_more_than_half_as_much_again_in_a_round_trip() {
        // A plateau far above: the function alone would jump.
        let mut cc = after_loss_at(10_000);
        (cc.window.cwnd, cc.window.ssthresh) = (14.0, 14.0);
        let rtt = Duration::from_secs(2);
        let mut now = Instant::ZERO;
        let mut steepest: f64 = 0.0;
        for _ in 0..20 {
            let before = cc.cwnd() as f64;
            now = round_trip(&mut cc, now, rtt);
            steepest = steepest.max(cc.cwnd() as f64 / before);
        }
        assert!((1.4..=1.5).contains(&steepest), "{steepest}");
        // An acknowledgment for more than a window is no way around it.
        let before = cc.cwnd();
        ack(&mut cc, now, 100 * before, rtt);
        assert!(cc.cwnd() <= before + before / 2);
    }

    #[test]
    fn a_new_mss_keeps_the_number_of_segments_unless_that_is_more_octets() {
        let mut cc = after_loss_at(100);
        cc.set_mss(500);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (70 * 500, 70 * 500));
        cc.set_mss(1000);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (70 * 500, 70 * 500));
        cc.set_mss(500);
        cc.set_mss(250);
        cc.set_mss(500);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (35 * 250, 35 * 250));
        let mut cc = after_loss_at(100);
        cc.set_mss(500);
        cc.on_idle();
        assert_eq!((cc.cwnd(), cc.ssthresh()), (10 * 500, 70 * 500));
    }
}
