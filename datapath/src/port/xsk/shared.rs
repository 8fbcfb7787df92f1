//! What workers share of a queue, and what they hand each other.

use crate::mesh::Waker;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use xsk_rs::FrameDesc;

/// Frames of one queue on their way back to its home worker.
pub(super) struct Shared {
    waker: Arc<Waker>,
    returned: ArrayQueue<FrameDesc>,
    /// By worker: what its socket took out of its RX ring. That of the home counts for itself.
    received: Box<[CachePadded<AtomicU64>]>,
}

impl Shared {
    /// `frames` of the queue receive; `waker` is that of its home.
    pub(super) fn new(frames: u32, workers: usize, waker: Arc<Waker>) -> Arc<Shared> {
        Arc::new(Shared {
            waker,
            returned: ArrayQueue::new(frames as usize),
            received: (0..workers).map(|_| CachePadded::default()).collect(),
        })
    }

    /// Counts frames that left the RX ring of a worker that is not the home. They are counted before
    /// any of them is given back.
    pub(super) fn count_received(&self, worker: usize, frames: u64) {
        let counter = &self.received[worker];
        // Its worker alone writes it.
        counter.store(counter.load(Ordering::Relaxed) + frames, Ordering::Relaxed);
    }

    /// What the sockets of all other workers took out of their RX rings.
    pub(super) fn received_elsewhere(&self) -> u64 {
        self.received
            .iter()
            .map(|c| c.load(Ordering::Relaxed))
            .sum()
    }

    /// Sends a frame home that has been read. [`Shared::wake`] is to follow.
    pub(super) fn give_back(&self, desc: FrameDesc) {
        let kept = self.returned.push(desc);
        debug_assert!(kept.is_ok(), "more frames come home than there are");
    }

    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    pub(super) fn take_back(&self) -> Option<FrameDesc> {
        self.returned.pop()
    }

    pub(super) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }
}

/// Frames to transmit in, on loan to a worker that has no queue of its own on an interface: empty they
/// go there, written they come back.
pub(super) struct Loan {
    pub(super) empty: ArrayQueue<FrameDesc>,
    pub(super) written: ArrayQueue<FrameDesc>,
    pub(super) lender: Arc<Waker>,
    borrower: Arc<Waker>,
    /// The borrower wanted a frame and there was none.
    starved: AtomicBool,
}

impl Loan {
    /// Of at most `frames`.
    pub(super) fn new(frames: usize, lender: Arc<Waker>, borrower: Arc<Waker>) -> Arc<Loan> {
        Arc::new(Loan {
            empty: ArrayQueue::new(frames),
            written: ArrayQueue::new(frames),
            lender,
            borrower,
            starved: AtomicBool::new(false),
        })
    }

    /// A frame to write in.
    pub(super) fn take(&self) -> Option<FrameDesc> {
        let taken = self.empty.pop();
        if taken.is_none() != self.is_starved() {
            self.starved.store(taken.is_none(), Ordering::Relaxed);
        }
        taken
    }

    pub(super) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }

    /// For after empty frames were put back. Who sleeps and wants none is left alone.
    pub(super) fn wake_if_starved(&self) {
        // A borrower says first that it is starved, and looks for frames once more before it sleeps.
        fence(Ordering::SeqCst);
        if self.is_starved() {
            self.borrower.wake();
        }
    }
}

/// A frame that came to the wrong worker, on its way to the right one.
pub(super) struct Forwarded {
    pub(super) iface: u8,
    /// Place of its queue among those of the interface.
    pub(super) queue: u16,
    pub(super) desc: FrameDesc,
}
