//! Congestion control: how many octets of a subflow may be in flight. Windows are in octets.
//!
//! The sender finds losses and spreads what may leave during recovery (RFC 6937); an algorithm here
//! decides how far the window falls and how it grows.

mod newreno;

pub use newreno::NewReno;

use crate::time::{Duration, Instant};

/// RFC 6928: ten segments.
pub const INITIAL_WINDOW_SEGMENTS: usize = 10;

/// What an acknowledgment tells an algorithm.
#[derive(Clone, Copy, Debug)]
pub struct Ack<'a> {
    pub now: Instant,
    /// Newly acknowledged, octets.
    pub acked_bytes: usize,
    /// Of the segment that this acknowledgment measured last, if it measured any.
    pub rtt: Option<Duration>,
    pub srtt: Option<Duration>,
    pub min_rtt: Option<Duration>,
    /// All subflows of the connection, this one included. Empty unless the algorithm
    /// [couples](CongestionControl::is_coupled) them.
    pub siblings: &'a [Sibling],
}

/// One subflow, as the algorithm of another one sees it.
#[derive(Clone, Copy, Debug)]
pub struct Sibling {
    pub cwnd: usize,
    pub ssthresh: usize,
    pub mss: usize,
    pub srtt: Duration,
    /// In fast recovery: RFC 6356 §3 counts it with its ssthresh.
    pub recovering: bool,
}

/// Congestion control of one subflow.
pub trait CongestionControl: std::fmt::Debug {
    /// As the configuration and `ss` call it.
    fn name(&self) -> &'static str;

    /// Octets that may be in flight.
    fn cwnd(&self) -> usize;

    /// Octets; `usize::MAX` before the first loss.
    fn ssthresh(&self) -> usize;

    /// Whether [`Ack::siblings`] is wanted.
    fn is_coupled(&self) -> bool {
        false
    }

    /// Something was acknowledged while the window was in use and nothing was being repaired.
    fn on_ack(&mut self, ack: &Ack<'_>);

    /// Once per window: a loss was found, or the peer echoed a congestion mark (RFC 3168 §6.1.2).
    /// `flight_size`: octets sent and not acknowledged, SACKed ones included (RFC 5681 §2).
    fn on_congestion(&mut self, now: Instant, flight_size: usize);

    /// The retransmission timer expired (RFC 5681 §3.1). `first`: not a repeated timeout of the same
    /// segment, which leaves ssthresh alone.
    fn on_timeout(&mut self, now: Instant, flight_size: usize, first: bool);

    /// What the last of the two calls above took was no loss at all: back to where it was.
    fn undo(&mut self);

    /// Nothing was in flight for longer than a retransmission timeout (RFC 5681 §4.1).
    fn on_idle(&mut self);

    /// The largest segment has become another one (RFC 1191 §6.4).
    fn set_mss(&mut self, mss: usize);
}
