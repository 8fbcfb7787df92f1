//! A worker on a queue that is another worker's home: it receives there, and gives every frame back.
//! Where it has no home on an interface it builds its own frames in borrowed ones.

use super::queue::{Queue, bind_error, socket_config, socket_fd, write_frame};
use super::shared::{Loan, Shared};
use super::{XskConfig, XskError};
use crate::port::{IfaceId, QueueStatistics};
use crate::steering::Verdict;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use xsk_rs::config::Interface;
use xsk_rs::{FrameDesc, RxQueue, Socket, TxQueue, Umem};

/// A socket needs a TX ring, though nothing ever goes there.
const TX_RING_MIN: u32 = 2;

pub(super) struct Guest {
    queue: u32,
    worker: usize,
    umem: Umem,
    shared: Arc<Shared>,
    rx: RxQueue,
    /// Keeps what libxdp knows of it alive.
    _tx: TxQueue,
    received: u64,
}

impl Guest {
    /// A socket of the `worker`-th of `workers` on a queue of another one.
    pub(super) fn open(
        interface: &str,
        home: &Queue,
        config: &XskConfig,
        worker: usize,
        workers: usize,
    ) -> Result<Guest, XskError> {
        let socket_config = socket_config(config, config.rx_ring(workers), TX_RING_MIN)?;
        let device: Interface = interface.parse().map_err(XskError::config)?;
        // SAFETY: a socket of this UMEM is bound to the queue, and the flag that `Socket::new` asks
        // for in that case is set.
        let socket = unsafe { Socket::new(socket_config, home.umem(), &device, home.id()) };
        let (tx, rx, _) = socket
            .map_err(|e| bind_error(interface, home.id(), "bind another AF_XDP socket", &e))?;
        Ok(Guest {
            queue: home.id(),
            worker,
            umem: home.umem().clone(),
            shared: Arc::clone(home.shared()),
            rx,
            _tx: tx,
            received: 0,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.queue
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        socket_fd(&self.rx)
    }

    /// Reads up to `batch.len()` frames and sends them home, but those that `pass_on` takes for
    /// another worker.
    pub(super) fn receive(
        &mut self,
        batch: &mut [FrameDesc],
        each: &mut dyn FnMut(&[u8]) -> Verdict,
        pass_on: &mut dyn FnMut(u32, FrameDesc) -> bool,
    ) -> usize {
        // SAFETY: the RX ring of this socket names frames of `self.umem` only.
        let count = unsafe { self.rx.consume(batch) };
        if count == 0 {
            return 0;
        }
        self.received += count as u64;
        self.shared.count_received(self.worker, count as u64);
        let mut returns = false;
        for desc in &batch[..count] {
            // SAFETY: the frame is of this UMEM and came over the RX ring, so the kernel is done
            // with it until its home puts it into the fill ring, which is after it was given back
            // below; nothing writes it here.
            let verdict = each(unsafe { self.umem.data(desc) }.contents());
            match verdict {
                Verdict::Forward(worker) if pass_on(worker, *desc) => {}
                Verdict::Forward(_) | Verdict::Taken => {
                    self.shared.give_back(*desc);
                    returns = true;
                }
            }
        }
        if returns {
            self.shared.wake();
        }
        count
    }

    /// The rings are the home's to tell.
    pub(super) fn statistics(&mut self, iface: IfaceId) -> io::Result<QueueStatistics> {
        let kernel = self.rx.fd().xdp_statistics()?;
        let mut statistics = QueueStatistics::none(iface, self.queue);
        statistics.received = self.received;
        statistics.rx_dropped = kernel.rx_dropped();
        statistics.rx_ring_full = kernel.rx_ring_full();
        statistics.rx_invalid_descs = kernel.rx_invalid_descs();
        Ok(statistics)
    }
}

/// Frames to transmit in, of a queue of another worker.
pub(super) struct Borrower {
    umem: Umem,
    loan: Arc<Loan>,
    /// Something was written since the lender was told.
    wrote: bool,
}

impl Borrower {
    pub(super) fn new(lender: &Queue, loan: Arc<Loan>) -> Borrower {
        Borrower {
            umem: lender.umem().clone(),
            loan,
            wrote: false,
        }
    }

    pub(super) fn transmit(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> bool {
        let Some(mut desc) = self.loan.take() else {
            return false;
        };
        // SAFETY: a frame of this UMEM that its home took from its free list and lent: nobody else
        // has it until it goes back.
        let len = unsafe { write_frame(&self.umem, &mut desc, fill) };
        let goes_to = match len {
            0 => &self.loan.empty,
            _ => &self.loan.written,
        };
        let kept = goes_to.push(desc);
        debug_assert!(kept.is_ok(), "more frames go back than were lent");
        self.wrote |= len > 0;
        true
    }

    pub(super) fn flush(&mut self) {
        // What it sent for us may be done, and it lends that again when it looks.
        if std::mem::take(&mut self.wrote) || self.is_starved() {
            self.loan.lender.wake();
        }
    }

    /// Frames were lent since there was none.
    pub(super) fn has_mail(&self) -> bool {
        self.is_starved() && !self.loan.empty.is_empty()
    }

    pub(super) fn is_starved(&self) -> bool {
        self.loan.is_starved()
    }
}
