//! Ports bring frames in and take frames out. One port per worker, covering all its interfaces.

pub mod memory;
pub mod pcap;
#[cfg(feature = "xsk")]
pub mod xsk;

use std::os::fd::BorrowedFd;

/// An interface of this worker, counted from 0 in the order of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfaceId(pub u8);

/// Frames in batches. A received frame lives until the closure returns and no longer: its memory
/// goes back to the port in the same turn.
pub trait Port {
    /// Hands every frame that has arrived, up to one batch per interface, to `each`.
    /// Returns how many there were.
    fn receive(&mut self, each: &mut dyn FnMut(IfaceId, &[u8])) -> usize;

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

    /// Written frames that the kernel has not taken yet: another `flush` is wanted soon.
    fn has_unsent(&self) -> bool;

    /// Where all frames are.
    fn accounts(&mut self) -> FrameAccounts;
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
    pub fn balanced(&self) -> bool {
        self.free + self.in_kernel + self.held + self.lent == self.total
    }
}
