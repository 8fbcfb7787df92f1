//! A queue in the hands of its home worker: the UMEM, a socket, and all four rings.

use super::error::os_error;
use super::shared::{Loan, Shared};
use super::{BIND_PATIENCE, BIND_PAUSE, STALL_PAUSE, XskConfig, XskError};
use crate::mesh::Waker;
use crate::port::{FrameAccounts, IfaceId, QueueStatistics, RingOccupancy};
use crate::steering::Verdict;
use std::num::NonZeroU32;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;
use std::{error, io, thread};
use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem,
    config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig},
};

/// One queue of an interface: its UMEM, a socket, and the four rings, which have one user.
pub(super) struct Queue {
    id: u32,
    umem: Umem,
    shared: Arc<Shared>,
    loans: Vec<Lent>,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Frames to transmit in.
    free: Vec<FrameDesc>,
    /// Written in this turn, not yet in the TX ring.
    outgoing: Vec<FrameDesc>,
    /// Received and read, here or by other workers, not yet back in the fill ring. Empty between
    /// turns.
    unfilled: Vec<FrameDesc>,
    /// Room for one sweep of the completion ring.
    completed: Box<[FrameDesc]>,
    /// The kernel left frames in the TX ring.
    unsent: bool,
    /// Until then it is not asked to take them.
    stalled_until: Option<Instant>,
    ring_size: u32,
    frame_size: usize,
    total: u64,
    // What went through the rings since the start, by the ring where it was counted.
    filled: u64,
    received: u64,
    sent: u64,
    reaped: u64,
    wakeups: u64,
    /// Received here and passed on to another worker.
    passed_on: u64,
    /// Back from other workers.
    came_home: u64,
}

/// What one borrower has: frames that are its own for good, whoever sends them, so that neither it nor
/// the home can use up the other's.
struct Lent {
    loan: Arc<Loan>,
    /// Their places in the UMEM.
    frames: Range<usize>,
    /// How many of them are with the borrower, or on the way.
    out: usize,
}

impl Lent {
    fn hand_out(&mut self, desc: FrameDesc) {
        let taken = self.loan.empty.push(desc);
        debug_assert!(taken.is_ok(), "more frames come back than were lent");
        self.out += 1;
    }
}

impl Queue {
    /// Opens the queue, waiting for a while where it is still taken.
    /// `wakers` are those of all workers; the `home`-th has the queue.
    pub(super) fn open_patiently(
        interface: &str,
        queue: u32,
        config: &XskConfig,
        wakers: &[Arc<Waker>],
        home: usize,
    ) -> Result<Self, XskError> {
        let deadline = Instant::now() + BIND_PATIENCE;
        loop {
            // Each try has a UMEM of its own: what a failed bind leaves behind cannot be bound.
            match Self::open(interface, queue, config, wakers, home) {
                Err(XskError::Bind { source, .. })
                    if source.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
                {
                    thread::sleep(BIND_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn open(
        interface: &str,
        id: u32,
        config: &XskConfig,
        wakers: &[Arc<Waker>],
        home: usize,
    ) -> Result<Self, XskError> {
        // Rings as large as the half of the frames that can be in them, so that none overflows.
        let half = config.frames / 2;
        let ring = QueueSize::new(half).map_err(XskError::config)?;
        let umem_config = UmemConfig::builder()
            .frame_size(FrameSize::new(config.frame_size).map_err(XskError::config)?)
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .build()
            .map_err(XskError::config)?;
        let socket_config = socket_config(config, config.rx_ring(wakers.len()), half)?;
        let device: Interface = interface.parse().map_err(XskError::config)?;
        let frames = NonZeroU32::new(config.frames)
            .ok_or_else(|| XskError::Config("frames must not be 0".into()))?;

        let failed = |step, error: &dyn error::Error| bind_error(interface, id, step, error);
        let (umem, mut receiving) =
            Umem::new(umem_config, frames, false).map_err(|e| failed("register a UMEM", &e))?;
        // SAFETY: the UMEM is new, so no socket of it is bound to this queue yet, and the flag that
        // `Socket::new` asks for in that case is set all the same.
        let socket = unsafe { Socket::new(socket_config, &umem, &device, id) };
        let (tx, rx, rings) = socket.map_err(|e| failed("bind an AF_XDP socket", &e))?;
        let (mut fill, completion) = rings.ok_or_else(|| {
            XskError::Config(format!(
                "queue {id} of {interface} came without rings of its own"
            ))
        })?;

        let free = receiving.split_off(half as usize);
        // SAFETY: these descriptors are of this UMEM and nowhere else: they were just made, and
        // the other half was split off.
        let filled = unsafe { fill.produce(&receiving) };
        if filled != receiving.len() {
            return Err(XskError::Config(format!(
                "the fill ring of queue {id} of {interface} did not take its {half} frames"
            )));
        }
        set_transmit_budget(&tx, half);
        Ok(Self {
            id,
            umem,
            shared: Shared::new(half, wakers.len(), Arc::clone(&wakers[home])),
            loans: Vec::new(),
            rx,
            tx,
            fill,
            completion,
            outgoing: Vec::with_capacity(free.len()),
            unfilled: Vec::with_capacity(receiving.len()),
            completed: vec![FrameDesc::default(); free.len()].into_boxed_slice(),
            free,
            unsent: false,
            stalled_until: None,
            ring_size: half,
            frame_size: config.frame_size as usize,
            total: u64::from(config.frames),
            filled: filled as u64,
            received: 0,
            sent: 0,
            reaped: 0,
            wakeups: 0,
            passed_on: 0,
            came_home: 0,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn umem(&self) -> &Umem {
        &self.umem
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The frames that transmit.
    pub(super) fn transmit_frames(&self) -> Range<usize> {
        // The first half receives.
        let half = self.ring_size as usize;
        half..2 * half
    }

    /// Lends these frames to a worker that has no queue on this interface; to be called before any
    /// frame is sent.
    pub(super) fn lend(&mut self, loan: Arc<Loan>, frames: Range<usize>) {
        let frame_size = self.frame_size;
        let is_lent = |desc: &mut FrameDesc| frames.contains(&(desc.addr() / frame_size));
        let given: Vec<_> = self.free.extract_if(.., is_lent).collect();
        debug_assert_eq!(given.len(), frames.len(), "all of them are free");
        let mut lent = Lent {
            loan,
            frames,
            out: 0,
        };
        for desc in given {
            lent.hand_out(desc);
        }
        self.loans.push(lent);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        socket_fd(&self.rx)
    }

    /// Reads up to `batch.len()` frames and returns them to the fill ring, but those that `pass_on`
    /// takes for another worker.
    pub(super) fn receive(
        &mut self,
        batch: &mut [FrameDesc],
        each: &mut dyn FnMut(&[u8]) -> Verdict,
        pass_on: &mut dyn FnMut(u32, FrameDesc) -> bool,
    ) -> usize {
        // SAFETY: the RX ring of this socket names frames of `self.umem` only.
        let count = unsafe { self.rx.consume(batch) };
        self.received += count as u64;
        for desc in &batch[..count] {
            // SAFETY: the frame is of this UMEM and came over the RX ring, so the kernel is done
            // with it until it is back in the fill ring, which is below; nothing writes it here.
            let verdict = each(unsafe { self.umem.data(desc) }.contents());
            match verdict {
                Verdict::Forward(worker) if pass_on(worker, *desc) => self.passed_on += 1,
                Verdict::Forward(_) | Verdict::Taken => self.unfilled.push(*desc),
            }
        }
        self.refill();
        count
    }

    /// A frame of this queue that another worker received and passed on to this one has been read.
    pub(super) fn keep(&mut self, desc: FrameDesc) {
        self.came_home += 1;
        self.unfilled.push(desc);
    }

    /// Whether another worker gave something back.
    pub(super) fn has_mail(&self) -> bool {
        self.shared.has_returned() || self.loans.iter().any(|l| !l.loan.written.is_empty())
    }

    /// Gives back to the fill ring what was read. The ring has room for all frames that receive.
    fn refill(&mut self) {
        // SAFETY: these frames came over the RX ring, their readers have returned, and they are
        // dropped from the list as soon as the kernel has them.
        let filled = unsafe { self.fill.produce(&self.unfilled) };
        if filled == self.unfilled.len() {
            self.filled += filled as u64;
            self.unfilled.clear();
        }
    }

    pub(super) fn transmit(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> bool {
        if self.free.is_empty() {
            self.reap();
        }
        let Some(mut desc) = self.free.pop() else {
            return false;
        };
        // SAFETY: a frame of this UMEM out of the free list: neither the kernel nor anybody else
        // has it until it goes to the TX ring.
        let len = unsafe { write_frame(&self.umem, &mut desc, fill) };
        if len == 0 {
            self.free.push(desc);
        } else {
            self.outgoing.push(desc);
        }
        true
    }

    pub(super) fn flush(&mut self) {
        for lent in &mut self.loans {
            // There is no more of them than the TX ring has room for.
            while let Some(desc) = lent.loan.written.pop() {
                lent.out -= 1;
                self.outgoing.push(desc);
            }
        }
        if !self.outgoing.is_empty() {
            // SAFETY: frames of this UMEM that `transmit` took from the free list; they leave the
            // list as soon as the kernel has them.
            let sent = unsafe { self.tx.produce(&self.outgoing) };
            if sent == self.outgoing.len() {
                self.sent += sent as u64;
                self.outgoing.clear();
                self.unsent = true;
            }
        }
        if self.unsent
            && self
                .stalled_until
                .is_none_or(|until| Instant::now() >= until)
        {
            self.wake();
        }
        self.reap();
        while let Some(desc) = self.shared.take_back() {
            self.keep(desc);
        }
        if !self.unfilled.is_empty() {
            self.refill();
        }
        // Only zero-copy drivers ask for this: in copy mode the kernel looks by itself.
        if self.fill.needs_wakeup() {
            self.wakeups += 1;
            // A poll without a timeout; what fails here fails again, visibly, in the worker's own.
            let _ = self.rx.poll(0);
        }
    }

    /// Wakes the kernel until the TX ring is empty or nothing moves any more. One wakeup is enough
    /// with a transmit budget of the ring's size; without, a call sends 32 frames.
    fn wake(&mut self) {
        self.stalled_until = None;
        let mut left = self.tx_occupancy();
        while left > 0 && self.tx.needs_wakeup() {
            self.wakeups += 1;
            // The errors that come here (interface gone or down) leave the frames in the ring,
            // and the accounts show them.
            if self.tx.wakeup().is_err() {
                self.stalled_until = Some(Instant::now() + STALL_PAUSE);
                break;
            }
            let before = std::mem::replace(&mut left, self.tx_occupancy());
            if left >= before {
                break;
            }
        }
        self.unsent = left > 0;
    }

    /// Takes back the frames that have been sent, and lends again what was lent.
    fn reap(&mut self) {
        // SAFETY: the completion ring names frames that `flush` sent from this UMEM.
        let count = unsafe { self.completion.consume(&mut self.completed) };
        self.reaped += count as u64;
        let sent = &self.completed[..count];
        if sent.is_empty() || self.loans.is_empty() {
            self.free.extend_from_slice(sent);
            return;
        }
        for desc in sent {
            let place = desc.addr() / self.frame_size;
            let borrowed = |lent: &&mut Lent| lent.frames.contains(&place);
            match self.loans.iter_mut().find(borrowed) {
                Some(lent) => lent.hand_out(*desc),
                None => self.free.push(*desc),
            }
        }
        for lent in &self.loans {
            lent.loan.wake_if_starved();
        }
    }

    /// Frames on loan that the borrowers have not taken.
    fn offered(&self) -> usize {
        let offered = |lent: &Lent| lent.loan.empty.len().min(lent.out);
        self.loans.iter().map(offered).sum()
    }

    /// Frames that receive and are with other workers now, of which `elsewhere` came to them straight
    /// from the kernel, and frames on loan.
    fn lent(&self, elsewhere: u64) -> u64 {
        let on_loan: usize = self.loans.iter().map(|lent| lent.out).sum();
        elsewhere + self.passed_on - self.came_home + on_loan as u64
    }

    pub(super) fn is_unsent(&self) -> bool {
        let mut loans = self.loans.iter();
        self.unsent || self.free.is_empty() || loans.any(|lent| lent.loan.empty.is_empty())
    }

    pub(super) fn accounts(&mut self) -> FrameAccounts {
        let elsewhere = self.shared.received_elsewhere();
        let offered = self.offered() as u64;
        FrameAccounts {
            free: self.free.len() as u64 + offered,
            in_kernel: self.occupancy(elsewhere).sum(),
            held: (self.outgoing.len() + self.unfilled.len()) as u64,
            lent: self.lent(elsewhere) - offered,
            total: self.total,
        }
    }

    fn tx_occupancy(&mut self) -> u32 {
        self.ring_size - self.tx.nb_free_exact()
    }

    /// `elsewhere`: what the sockets of other workers have taken out of their RX rings.
    fn occupancy(&mut self, elsewhere: u64) -> RingOccupancy {
        // The ring where frames arrive is read before the one that they leave: one that moves
        // meanwhile is then seen in neither and counts as inside the kernel, never twice.
        let rx_ring = u64::from(self.rx.nb_avail_exact());
        let fill_ring = u64::from(self.ring_size - self.fill.nb_free_exact());
        let completion_ring = u64::from(self.completion.nb_avail_exact());
        let tx_ring = u64::from(self.tx_occupancy());
        RingOccupancy {
            fill_ring,
            rx_ring,
            receiving: (self.filled - self.received - elsewhere)
                .saturating_sub(fill_ring + rx_ring),
            tx_ring,
            completion_ring,
            sending: (self.sent - self.reaped).saturating_sub(tx_ring + completion_ring),
        }
    }

    pub(super) fn statistics(&mut self, iface: IfaceId) -> io::Result<QueueStatistics> {
        let kernel = self.rx.fd().xdp_statistics()?;
        Ok(QueueStatistics {
            iface,
            queue: self.id,
            received: self.received,
            sent: self.sent,
            wakeups: self.wakeups,
            rings: self.occupancy(self.shared.received_elsewhere()),
            rx_dropped: kernel.rx_dropped(),
            rx_ring_full: kernel.rx_ring_full(),
            rx_invalid_descs: kernel.rx_invalid_descs(),
            fill_ring_empty: kernel.rx_fill_ring_empty_descs(),
            tx_invalid_descs: kernel.tx_invalid_descs(),
            tx_ring_empty: kernel.tx_ring_empty_descs(),
        })
    }
}

/// Lets one wakeup send a whole ring in copy mode. Kernels before 6.17 do not know the option and
/// send 32 frames per call, which [`Queue::wake`] makes up for.
fn set_transmit_budget(tx: &TxQueue, frames: u32) {
    const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
    // SAFETY: the descriptor is that of a live socket, and the pointer is to a `u32` that lives
    // through the call and whose size is given. A refusal changes nothing.
    unsafe {
        libc::setsockopt(
            tx.fd().as_raw_fd(),
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            (&raw const frames).cast(),
            size_of::<u32>() as libc::socklen_t,
        );
    }
}

/// How a socket is to be bound, with rings of these sizes.
pub(super) fn socket_config(
    config: &XskConfig,
    rx_ring: u32,
    tx_ring: u32,
) -> Result<SocketConfig, XskError> {
    let copy_mode = if config.zero_copy {
        BindFlags::XDP_ZEROCOPY
    } else {
        BindFlags::XDP_COPY
    };
    Ok(SocketConfig::builder()
        .rx_queue_size(QueueSize::new(rx_ring).map_err(XskError::config)?)
        .tx_queue_size(QueueSize::new(tx_ring).map_err(XskError::config)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(copy_mode | BindFlags::XDP_USE_NEED_WAKEUP)
        .build())
}

pub(super) fn bind_error(
    interface: &str,
    queue: u32,
    step: &'static str,
    error: &dyn error::Error,
) -> XskError {
    XskError::Bind {
        interface: interface.to_owned(),
        queue,
        step,
        source: os_error(error),
    }
}

pub(super) fn socket_fd(rx: &RxQueue) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the socket is, which `rx` keeps alive, and the
    // borrow of it outlives the result.
    unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) }
}

/// Lets `fill` write a frame; returns its length, which the descriptor has then, too.
///
/// # Safety
///
/// The frame is of this UMEM, and nobody else has it.
pub(super) unsafe fn write_frame(
    umem: &Umem,
    desc: &mut FrameDesc,
    fill: &mut dyn FnMut(&mut [u8]) -> usize,
) -> usize {
    // SAFETY: as the caller promises.
    let mut data = unsafe { umem.data_mut(desc) };
    let mut cursor = data.cursor();
    let capacity = cursor.buf_len();
    cursor.set_pos(capacity);
    let len = fill(data.contents_mut()).min(capacity);
    data.cursor().set_pos(len);
    len
}
