//! Congestion control: how many octets of a subflow may be in flight. Windows are in octets.
//!
//! The sender finds losses and spreads what may leave during recovery (RFC 6937); an algorithm here
//! decides how far the window falls and how it grows.

mod cubic;
mod hystart;
mod lia;
mod newreno;

pub use cubic::Cubic;
pub use lia::Lia;
pub use newreno::NewReno;

use crate::seq::TcpSeq;
use crate::time::{Duration, Instant};
use std::str::FromStr;

/// RFC 6928: ten segments.
pub const INITIAL_WINDOW_SEGMENTS: usize = 10;

/// More than a peer can ever advertise (RFC 7323 §2.3).
const WINDOW_MAX_BYTES: usize = 1 << 30;

/// The algorithms there are to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Algorithm {
    #[default]
    Cubic,
    Reno,
    Lia,
}

impl Algorithm {
    /// The default first.
    pub const ALL: [Algorithm; 3] = [Algorithm::Cubic, Algorithm::Reno, Algorithm::Lia];

    /// As the configuration and `ss` call it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Cubic => "cubic",
            Algorithm::Reno => "reno",
            Algorithm::Lia => "lia",
        }
    }

    /// For a new subflow whose largest segment has `mss` octets of text.
    pub fn start(self, mss: usize) -> Box<dyn CongestionControl> {
        match self {
            Algorithm::Cubic => Box::new(Cubic::new(mss)),
            Algorithm::Reno => Box::new(NewReno::new(mss)),
            Algorithm::Lia => Box::new(Lia::new(mss)),
        }
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Algorithm, UnknownAlgorithm> {
        let named = Algorithm::ALL.into_iter().find(|a| a.name() == name);
        named.ok_or(UnknownAlgorithm)
    }
}

/// There is no algorithm of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownAlgorithm;

/// What an acknowledgment tells an algorithm.
#[derive(Clone, Copy, Debug)]
pub struct Ack<'a> {
    pub now: Instant,
    /// Newly acknowledged, octets.
    pub acked_bytes: usize,
    /// After it: what tells one round trip from the next.
    pub snd_una: TcpSeq,
    pub snd_nxt: TcpSeq,
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
    /// Octets sent and not acknowledged.
    pub flight_size: usize,
    pub srtt: Duration,
    /// In fast recovery.
    pub recovering: bool,
}

/// Congestion control of one subflow.
pub trait CongestionControl: std::fmt::Debug {
    /// As [`Algorithm::name`].
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

#[cfg(test)]
mod tests;
