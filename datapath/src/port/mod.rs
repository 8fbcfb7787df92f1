//! Ports bring frames in and take frames out. One port per worker, covering all its interfaces.

pub mod memory;
pub mod pcap;
#[cfg(feature = "xsk")]
pub mod xsk;

use crate::steering::{Arrival, Verdict};
use std::os::fd::BorrowedFd;

/// An interface of this worker, counted from 0 in the order of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfaceId(pub u8);

/// Frames in batches. A received frame lives until the closure returns and no longer: its memory
/// goes back to the port in the same turn.
pub trait Port {
    /// Hands every frame that has arrived, up to one batch per interface and one that other workers
    /// passed on, to `each`, which says whether it takes it. Returns how many there were.
    fn receive(&mut self, each: &mut dyn FnMut(Arrival, &[u8]) -> Verdict) -> usize;

    /// Lets `fill` write one frame to be sent on `iface` into a free transmit frame; `fill` returns
    /// the frame's length, 0 for "nothing after all". `false`: no frame is free (try again next
    /// turn) and `fill` was not called.
    fn transmit(&mut self, iface: IfaceId, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> bool;

    /// End of turn: hands what was written to the kernel, reaps completions, refills.
    fn flush(&mut self);

    /// Interfaces of this port.
    fn interfaces(&self) -> usize;

    /// Descriptors that become readable when frames have arrived.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// Written frames that the kernel has not taken yet, or has taken all of: another `flush` is
    /// wanted soon.
    fn has_unsent(&self) -> bool;

    /// Something has come, not from the kernel but from another worker.
    fn has_mail(&self) -> bool {
        false
    }

    /// Frames that were to go to another worker and were dropped, as its queue was full.
    fn mesh_drops(&self) -> u64 {
        0
    }

    /// Where all frames are.
    fn accounts(&mut self) -> FrameAccounts;

    /// What every hardware queue has moved and lost; nothing for a port without queues.
    fn queues(&mut self) -> Vec<QueueStatistics> {
        Vec::new()
    }
}

/// Where all frames of a port are at this moment, read from the ring counters.
/// `free + in_kernel + held + lent == total` at every end of turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FrameAccounts {
    pub free: u64,
    /// In the fill, RX, TX or completion ring or inside the kernel.
    pub in_kernel: u64,
    /// Being read or written in this turn.
    pub held: u64,
    /// On loan to other workers.
    pub lent: u64,
    pub total: u64,
}

impl FrameAccounts {
    /// Those of another port beside these.
    pub fn add(&mut self, other: &FrameAccounts) {
        self.free += other.free;
        self.in_kernel += other.in_kernel;
        self.held += other.held;
        self.lent += other.lent;
        self.total += other.total;
    }

    pub fn balanced(&self) -> bool {
        self.free + self.in_kernel + self.held + self.lent == self.total
    }
}

/// One queue of an interface in figures, in frames where nothing else is said. The last six are
/// the kernel's (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct QueueStatistics {
    #[serde(skip)]
    pub iface: IfaceId,
    pub queue: u32,
    pub received: u64,
    pub sent: u64,
    /// Syscalls to wake the kernel.
    pub wakeups: u64,
    pub rings: RingOccupancy,
    /// Dropped because they fit no UMEM frame or the fill ring held none.
    pub rx_dropped: u64,
    /// Dropped because the RX ring was full.
    pub rx_ring_full: u64,
    pub rx_invalid_descs: u64,
    /// Times that the kernel found the fill ring empty.
    pub fill_ring_empty: u64,
    pub tx_invalid_descs: u64,
    /// Times that the kernel looked for a frame to send and found none.
    pub tx_ring_empty: u64,
}

impl QueueStatistics {
    /// Of a queue where nothing has happened.
    pub fn none(iface: IfaceId, queue: u32) -> QueueStatistics {
        QueueStatistics {
            iface,
            queue,
            received: 0,
            sent: 0,
            wakeups: 0,
            rings: RingOccupancy::default(),
            rx_dropped: 0,
            rx_ring_full: 0,
            rx_invalid_descs: 0,
            fill_ring_empty: 0,
            tx_invalid_descs: 0,
            tx_ring_empty: 0,
        }
    }

    /// What another worker's socket on the same queue shows beside.
    pub fn add(&mut self, other: &QueueStatistics) {
        self.received += other.received;
        self.sent += other.sent;
        self.wakeups += other.wakeups;
        self.rings.add(&other.rings);
        self.rx_dropped += other.rx_dropped;
        self.rx_ring_full += other.rx_ring_full;
        self.rx_invalid_descs += other.rx_invalid_descs;
        self.fill_ring_empty += other.fill_ring_empty;
        self.tx_invalid_descs += other.tx_invalid_descs;
        self.tx_ring_empty += other.tx_ring_empty;
    }
}

/// Frames of one queue that are with the kernel at the moment, by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RingOccupancy {
    pub fill_ring: u64,
    pub rx_ring: u64,
    /// Between fill and RX ring: the kernel took them to receive in. Those in the RX rings of other
    /// workers' sockets, too: only their workers can look there.
    pub receiving: u64,
    pub tx_ring: u64,
    pub completion_ring: u64,
    /// Between TX and completion ring: on their way out.
    pub sending: u64,
}

impl RingOccupancy {
    fn add(&mut self, other: &RingOccupancy) {
        self.fill_ring += other.fill_ring;
        self.rx_ring += other.rx_ring;
        self.receiving += other.receiving;
        self.tx_ring += other.tx_ring;
        self.completion_ring += other.completion_ring;
        self.sending += other.sending;
    }

    pub fn sum(&self) -> u64 {
        self.fill_ring
            + self.rx_ring
            + self.receiving
            + self.tx_ring
            + self.completion_ring
            + self.sending
    }
}
