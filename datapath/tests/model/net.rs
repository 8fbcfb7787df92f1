//! The network between client and engine: paths with delay, jitter, rate, queue, loss one by one and
//! in bursts, duplication, reordering, corruption, and cuts in one direction or both.

use super::middlebox::Meddling;
use super::{Rng, icmp, ones_complement};
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
    /// Every frame takes up to this much longer; they stay in order.
    pub jitter: Duration,
    /// Frames arrive together at the end of every slot of this length; 0 is one by one.
    pub slot: Duration,
    /// So many frames begin a burst: they are lost, and `burst_frames` of their direction after them.
    pub burst_permille: u32,
    pub burst_frames: u32,
    /// So many frames arrive with an octet changed that a checksum covers.
    pub corrupt_permille: u32,
    /// So many frames with ECT arrive with CE (RFC 3168 §5).
    pub mark_permille: u32,
    /// Octets of the largest IP packet that gets through to the client.
    pub mtu: usize,
    /// A router half-way says so when one was too big; otherwise nobody does.
    pub mtu_icmp: bool,
    pub meddling: Meddling,
    pub cut: bool,
    /// Nothing arrives at this side.
    pub cut_towards: Option<Side>,
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
            jitter: Duration::ZERO,
            slot: Duration::ZERO,
            burst_permille: 0,
            burst_frames: 0,
            corrupt_permille: 0,
            mark_permille: 0,
            mtu: usize::MAX,
            mtu_icmp: true,
            meddling: Meddling::default(),
            cut: false,
            cut_towards: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Client,
    Server,
}

impl Path {
    fn lets_through(&self, to: Side) -> bool {
        !self.cut && self.cut_towards != Some(to)
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    Twice,
    Corrupted,
    Lost,
    /// There was no room in the queue.
    Dropped,
    /// A link on the way takes less.
    TooBig,
    /// The path is cut.
    Cut,
}

/// Where a client's frame comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sender {
    /// Its place among the clients.
    pub client: usize,
    pub subflow: usize,
    /// What it sent, where middleboxes made something else of it.
    pub original: Option<Vec<u8>>,
}

/// A frame that has arrived.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// Frames are numbered as they are sent.
    pub number: u64,
    pub to: Side,
    /// Whose it is, of a client's frame.
    pub from: Option<Sender>,
    pub iface: IfaceId,
    pub frame: Vec<u8>,
    pub corrupted: bool,
}

/// A frame on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: Instant,
    /// Frames of one moment arrive in the order in which they were sent.
    arrival: Arrival,
}

#[derive(Debug)]
pub struct Net {
    pub paths: Vec<Path>,
    /// When the last frame so far has left, per path and direction.
    busy_until: Vec<[Instant; 2]>,
    /// When the last frame so far arrives that is not held back, where there is jitter.
    in_order_until: Vec<[Instant; 2]>,
    /// Frames of a burst that are still to be lost, per path and direction.
    burst_left: Vec<[u32; 2]>,
    flights: BinaryHeap<Reverse<Flight>>,
    rng: Rng,
    sent: u64,
    /// Frames that arrive with CE.
    pub marked: u64,
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
            in_order_until: vec![[Instant::ZERO; 2]; paths.len()],
            burst_left: vec![[0; 2]; paths.len()],
            arrived_bytes: vec![[0; 2]; paths.len()],
            paths,
            flights: BinaryHeap::new(),
            rng: Rng(seed),
            sent: 0,
            marked: 0,
            lose_next: Vec::new(),
            lose_nth: None,
            record: None,
        }
    }

    pub fn reseed(&mut self, seed: u64) {
        self.rng = Rng(seed);
    }

    /// The number of the next frame.
    pub fn next_number(&self) -> u64 {
        self.sent + 1
    }

    pub fn send(
        &mut self,
        now: Instant,
        to: Side,
        from: Option<Sender>,
        iface: IfaceId,
        mut frame: Vec<u8>,
    ) -> Fate {
        let i = usize::from(iface.0);
        let path = self.paths[i];
        if self.is_chosen(to, iface) {
            return Fate::Lost;
        }
        let busy = &mut self.busy_until[i][to as usize];
        let start = (*busy).max(now);
        if !path.lets_through(to) {
            return Fate::Cut;
        }
        if start - now > path.queue {
            return Fate::Dropped;
        }
        if to == Side::Client && frame.len() - ETHERNET_LEN > path.mtu {
            if path.mtu_icmp {
                let error = icmp::too_big(&frame, path.mtu);
                self.push(now + path.delay, Side::Server, None, iface, error, false);
            }
            return Fate::TooBig;
        }
        if self.rng.permille(path.loss_permille) {
            return Fate::Lost;
        }
        let burst = &mut self.burst_left[i][to as usize];
        if path.burst_permille == 0 {
            *burst = 0;
        } else if *burst > 0 {
            *burst -= 1;
            return Fate::Lost;
        }
        if path.burst_permille > 0 && self.rng.permille(path.burst_permille) {
            *burst = path.burst_frames;
            return Fate::Lost;
        }
        let nanos = (frame.len() as u64 * 1_000_000_000)
            .checked_div(path.rate)
            .unwrap_or(0);
        *busy = start + Duration::from_nanos(nanos);
        let mut at = *busy + path.delay;
        if path.jitter > Duration::ZERO {
            let late = Duration::from_nanos(self.rng.next() % path.jitter.as_nanos() as u64);
            let last = &mut self.in_order_until[i][to as usize];
            *last = (at + late).max(*last);
            at = *last;
        }
        if self.rng.permille(path.reorder_permille) {
            at = at + path.delay * self.rng.below(4) as u32;
        }
        if path.slot > Duration::ZERO {
            at = Instant(at.0.next_multiple_of(path.slot.as_nanos() as u64));
        }
        if path.mark_permille > 0 && self.rng.permille(path.mark_permille) {
            self.marked += u64::from(mark(&mut frame));
        }
        let mut fate = Fate::Arrives;
        if self.rng.permille(path.duplicate_permille) {
            fate = Fate::Twice;
            let (from, frame) = (from.clone(), frame.clone());
            self.push(at + path.delay / 2, to, from, iface, frame, false);
        }
        let corrupted = path.corrupt_permille > 0 && self.rng.permille(path.corrupt_permille);
        if corrupted {
            fate = Fate::Corrupted;
            corrupt(&mut self.rng, &mut frame);
        }
        self.push(at, to, from, iface, frame, corrupted);
        fate
    }

    /// Whether a test wants this frame to be lost.
    fn is_chosen(&mut self, to: Side, iface: IfaceId) -> bool {
        if let Some(n) = self.lose_next.iter().position(|l| *l == (to, iface)) {
            self.lose_next.swap_remove(n);
            return true;
        }
        if let Some((side, path, before)) = &mut self.lose_nth
            && (*side, *path) == (to, iface)
        {
            if *before == 0 {
                self.lose_nth = None;
                return true;
            }
            *before -= 1;
        }
        false
    }

    fn push(
        &mut self,
        at: Instant,
        to: Side,
        from: Option<Sender>,
        iface: IfaceId,
        frame: Vec<u8>,
        corrupted: bool,
    ) {
        self.sent += 1;
        self.flights.push(Reverse(Flight {
            at,
            arrival: Arrival {
                number: self.sent,
                to,
                from,
                iface,
                frame,
                corrupted,
            },
        }));
    }

    pub fn next_arrival(&self) -> Option<Instant> {
        self.flights.peek().map(|f| f.0.at)
    }

    /// The next frame that has arrived.
    pub fn arrive(&mut self, now: Instant) -> Option<Arrival> {
        while self.next_arrival().is_some_and(|at| at <= now) {
            let Reverse(Flight { at, arrival, .. }) = self.flights.pop()?;
            let i = usize::from(arrival.iface.0);
            // A cut path also loses what is on it.
            if self.paths[i].lets_through(arrival.to) {
                self.arrived_bytes[i][arrival.to as usize] += arrival.frame.len() as u64;
                if let (Some(record), Side::Server) = (&mut self.record, arrival.to) {
                    record.push((at, arrival.iface, arrival.frame.clone()));
                }
                return Some(arrival);
            }
        }
        None
    }
}

const ETHERNET_LEN: usize = 14;

/// Sets CE if the packet is ECT.
fn mark(frame: &mut [u8]) -> bool {
    let packet = &mut frame[ETHERNET_LEN..];
    // Of IPv6 the traffic class lies across two octets.
    let (at, shift) = if packet[0] >> 4 == 6 { (1, 4) } else { (1, 0) };
    if packet[at] >> shift & 3 == 0 {
        return false;
    }
    packet[at] |= 3 << shift;
    if shift == 0 {
        let header = usize::from(packet[0] & 15) * 4;
        packet[10..12].fill(0);
        let sum = !ones_complement(&packet[..header]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

/// Changes one bit, or one octet at will. Both always change a ones' complement sum (RFC 1071), so
/// no luck is needed for a checksum to find them.
fn corrupt(rng: &mut Rng, frame: &mut [u8]) {
    let packet = &mut frame[ETHERNET_LEN..];
    // Ethernet has a checksum of its own. What no checksum covers of an IPv6 header is left out:
    // version, traffic class, flow label and hop limit.
    let v6 = packet[0] >> 4 == 6;
    let at = loop {
        let at = rng.below(packet.len());
        if !v6 || (at > 3 && at != 7) {
            break at;
        }
    };
    packet[at] ^= match rng.below(2) {
        0 => 1 << rng.below(8),
        _ => 1 + rng.below(255) as u8,
    };
}
