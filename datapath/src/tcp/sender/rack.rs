//! Which of two copies left later tells what is lost (RACK, RFC 8985 §6).

use super::DUP_THRESH;
use super::scoreboard::{Delivered, Scoreboard, TimeVerdict, sent_after};
use crate::seq::TcpSeq;
use crate::tcp::rtt::RttEstimator;
use crate::time::{Duration, Instant};

/// RFC 8985 §6.2 step 4: recoveries for which a widened window is kept.
const REO_WND_PERSIST: u32 = 16;

#[derive(Debug)]
pub(super) struct Rack {
    /// The copy sent last among those that are known to have arrived, and how long it took.
    newest: Option<(Instant, TcpSeq)>,
    rtt: Duration,
    reordering_seen: bool,
    reo_wnd_mult: u32,
    reo_wnd_persist: u32,
    /// A DSACK has widened the window in this round, which ends there.
    dsack_round: Option<TcpSeq>,
}

impl Default for Rack {
    fn default() -> Self {
        Rack {
            newest: None,
            rtt: Duration::ZERO,
            reordering_seen: false,
            reo_wnd_mult: 1,
            reo_wnd_persist: 0,
            dsack_round: None,
        }
    }
}

impl Rack {
    /// RFC 8985 §6.2 steps 2 and 3.
    pub(super) fn on_delivered(&mut self, now: Instant, delivered: &Delivered) {
        self.reordering_seen |= delivered.reordered;
        if let Some(copy) = delivered.newest
            && self.newest.is_none_or(|newest| sent_after(copy, newest))
        {
            self.newest = Some(copy);
            self.rtt = now.since(copy.0);
        }
    }

    /// The peer reported a duplicate: the window was too small (RFC 8985 §6.2 step 4).
    pub(super) fn on_dsack(&mut self, snd_nxt: TcpSeq) {
        if self.dsack_round.is_none() {
            self.dsack_round = Some(snd_nxt);
            self.reo_wnd_mult = self.reo_wnd_mult.saturating_add(1);
            self.reo_wnd_persist = REO_WND_PERSIST;
        }
    }

    pub(super) fn on_advance(&mut self, snd_una: TcpSeq) {
        if self.dsack_round.is_some_and(|end| snd_una.at_or_after(end)) {
            self.dsack_round = None;
        }
    }

    pub(super) fn on_recovery_end(&mut self) {
        self.reo_wnd_persist = self.reo_wnd_persist.saturating_sub(1);
        if self.reo_wnd_persist == 0 {
            self.reo_wnd_mult = 1;
        }
    }

    /// How much later than it should a segment may arrive (RACK.reo_wnd).
    pub(super) fn reo_wnd(
        &self,
        rtt: &RttEstimator,
        recovering: bool,
        sacked_segments: usize,
    ) -> Duration {
        if !self.reordering_seen && (recovering || sacked_segments >= DUP_THRESH) {
            return Duration::ZERO;
        }
        let window = rtt.min_rtt().unwrap_or_default() / 4 * self.reo_wnd_mult;
        window.min(rtt.srtt().unwrap_or_default())
    }

    /// Takes for lost what left before the newest and is overdue; returns when to look again
    /// (RFC 8985 §6.2 step 5).
    pub(super) fn detect_losses<M: Copy>(
        &self,
        now: Instant,
        reo_wnd: Duration,
        board: &mut Scoreboard<M>,
    ) -> Option<Instant> {
        let newest = self.newest?;
        let allowed = self.rtt + reo_wnd;
        board.mark_lost_in_time_order(|sent_at, end| {
            if !sent_after(newest, (sent_at, end)) {
                TimeVerdict::Fresh
            } else if sent_at + allowed <= now {
                TimeVerdict::Lost
            } else {
                TimeVerdict::LostAt(sent_at + allowed)
            }
        })
    }

    /// RFC 8985 §6.3: what else is lost when the retransmission timer expires.
    pub(super) fn is_overdue(&self, now: Instant, sent_at: Instant, reo_wnd: Duration) -> bool {
        sent_at + self.rtt + reo_wnd <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8985 §6.2 step 4.
    #[test]
    fn the_window_grows_once_a_round_and_is_small_again_after_sixteen_recoveries() {
        let mut rtt = RttEstimator::default();
        rtt.on_sample(Instant::ZERO, Duration::from_millis(100));
        let quarters = |rack: &Rack| rack.reo_wnd(&rtt, false, 0).as_millis() / 25;
        let mut rack = Rack::default();
        assert_eq!(quarters(&rack), 1);
        rack.on_dsack(TcpSeq(1000));
        rack.on_advance(TcpSeq(999));
        rack.on_dsack(TcpSeq(2000));
        assert_eq!(quarters(&rack), 2, "the round ends at 1000");
        rack.on_advance(TcpSeq(1000));
        rack.on_dsack(TcpSeq(2000));
        assert_eq!(quarters(&rack), 3);
        for _ in 1..REO_WND_PERSIST {
            rack.on_recovery_end();
        }
        assert_eq!(quarters(&rack), 3);
        rack.on_recovery_end();
        assert_eq!(quarters(&rack), 1);
        // A round trip at most.
        for n in 0..10 {
            rack.on_advance(TcpSeq(2000 + n));
            rack.on_dsack(TcpSeq(2001 + n));
        }
        assert_eq!(quarters(&rack), 4);
    }
}
