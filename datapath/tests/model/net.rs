//! The network between client and engine: paths with delay, rate, loss, duplication and reordering.

use super::Rng;
use mpx_datapath::port::IfaceId;
use mpx_datapath::time::{Duration, Instant};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One path, the same both ways.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// One way.
    pub delay: Duration,
    /// Octets per second; 0 is without limit.
    pub rate: u64,
    /// A frame that would wait longer than this for its turn is lost.
    pub queue: Duration,
    pub loss_permille: u32,
    pub duplicate_permille: u32,
    /// So many frames are held back by up to four times the delay.
    pub reorder_permille: u32,
    pub cut: bool,
}

impl Default for Path {
    fn default() -> Path {
        Path {
            delay: Duration::from_millis(5),
            rate: 12_500_000,
            queue: Duration::from_millis(50),
            loss_permille: 0,
            duplicate_permille: 0,
            reorder_permille: 0,
            cut: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Client,
    Server,
}

/// A frame on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: Instant,
    /// Frames of one moment arrive in the order in which they were sent.
    order: u64,
    to: Side,
    iface: IfaceId,
    frame: Vec<u8>,
}

#[derive(Debug)]
pub struct Net {
    pub paths: Vec<Path>,
    /// When the last frame so far has left, per path and direction.
    busy_until: Vec<[Instant; 2]>,
    flights: BinaryHeap<Reverse<Flight>>,
    rng: Rng,
    sent: u64,
    /// Octets that arrived, per path: at the client, at the server.
    pub arrived_bytes: Vec<[u64; 2]>,
    /// For each entry the next frame to that side on that path is lost.
    pub lose_next: Vec<(Side, IfaceId)>,
    /// The frame to that side on that path is lost that has so many before it.
    pub lose_nth: Option<(Side, IfaceId, u32)>,
    /// Every frame to the server, if wanted, with the time of its arrival.
    pub record: Option<Vec<(Instant, IfaceId, Vec<u8>)>>,
}

impl Net {
    pub fn new(paths: Vec<Path>, seed: u64) -> Net {
        Net {
            busy_until: vec![[Instant::ZERO; 2]; paths.len()],
            arrived_bytes: vec![[0; 2]; paths.len()],
            paths,
            flights: BinaryHeap::new(),
            rng: Rng(seed),
            sent: 0,
            lose_next: Vec::new(),
            lose_nth: None,
            record: None,
        }
    }

    pub fn reseed(&mut self, seed: u64) {
        self.rng = Rng(seed);
    }

    pub fn send(&mut self, now: Instant, to: Side, iface: IfaceId, frame: Vec<u8>) {
        let i = usize::from(iface.0);
        let path = self.paths[i];
        if let Some(n) = self.lose_next.iter().position(|l| *l == (to, iface)) {
            self.lose_next.swap_remove(n);
            return;
        }
        if let Some((side, path, before)) = &mut self.lose_nth
            && (*side, *path) == (to, iface)
        {
            if *before == 0 {
                self.lose_nth = None;
                return;
            }
            *before -= 1;
        }
        let busy = &mut self.busy_until[i][to as usize];
        let start = (*busy).max(now);
        if path.cut || start - now > path.queue || self.rng.permille(path.loss_permille) {
            return;
        }
        let nanos = (frame.len() as u64 * 1_000_000_000)
            .checked_div(path.rate)
            .unwrap_or(0);
        *busy = start + Duration::from_nanos(nanos);
        let mut at = *busy + path.delay;
        if self.rng.permille(path.reorder_permille) {
            at = at + path.delay * self.rng.below(4) as u32;
        }
        if self.rng.permille(path.duplicate_permille) {
            self.push(at + path.delay / 2, to, iface, frame.clone());
        }
        self.push(at, to, iface, frame);
    }

    fn push(&mut self, at: Instant, to: Side, iface: IfaceId, frame: Vec<u8>) {
        self.sent += 1;
        self.flights.push(Reverse(Flight {
            at,
            order: self.sent,
            to,
            iface,
            frame,
        }));
    }

    pub fn next_arrival(&self) -> Option<Instant> {
        self.flights.peek().map(|f| f.0.at)
    }

    /// The next frame that has arrived.
    pub fn arrive(&mut self, now: Instant) -> Option<(Side, IfaceId, Vec<u8>)> {
        while self.next_arrival().is_some_and(|at| at <= now) {
            let Reverse(flight) = self.flights.pop()?;
            let i = usize::from(flight.iface.0);
            // A cut path also loses what is on it.
            if !self.paths[i].cut {
                self.arrived_bytes[i][flight.to as usize] += flight.frame.len() as u64;
                if let (Some(record), Side::Server) = (&mut self.record, flight.to) {
                    record.push((flight.at, flight.iface, flight.frame.clone()));
                }
                return Some((flight.to, flight.iface, flight.frame));
            }
        }
        None
    }
}
