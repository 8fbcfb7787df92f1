//! The AF_XDP port: sockets on the queues of one or more interfaces, one UMEM per queue.
//!
//! The frames of a queue are in two fixed halves. One half receives: it travels fill ring, kernel,
//! RX ring, and back to the fill ring in the turn in which it was received. The other half
//! transmits: free list, TX ring, kernel, completion ring, free list. So neither a slow reader nor
//! a full link can take the frames that the other direction needs.
#![allow(
    unsafe_code,
    reason = "AF_XDP shares frames with the kernel, which no type can express; each block says what \
              it relies on"
)]

use std::{
    error, fmt, io,
    num::NonZeroU32,
    os::fd::{AsRawFd, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem,
    config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig},
};

use super::{FrameAccounts, IfaceId, Port, QueueStatistics, RingOccupancy};

/// Octets of a frame, one page, unless configured otherwise.
pub const FRAME_SIZE_DEFAULT: u32 = 4096;
/// Frames of a queue, half of them for each direction, unless configured otherwise.
pub const FRAMES_DEFAULT: u32 = 8192;
/// Frames that one call of `receive` takes from an interface, unless configured otherwise.
pub const BATCH_DEFAULT: usize = 64;

/// What the kernel reserves before the data of a frame (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;
/// Ethernet header and two VLAN tags.
const LINK_HEADER_MAX: u32 = 22;
/// How long a bind is retried while the queue is busy: the sockets of a process that was killed
/// hold their queues for some milliseconds more.
const BIND_PATIENCE: Duration = Duration::from_secs(1);
const BIND_PAUSE: Duration = Duration::from_millis(5);
/// For how long an interface that refuses to send (down, or gone) is left alone.
const STALL_PAUSE: Duration = Duration::from_millis(10);

/// The largest Ethernet frame that a UMEM frame of `frame_size` octets holds.
pub const fn max_frame_len(frame_size: u32) -> u32 {
    frame_size.saturating_sub(HEADROOM)
}

/// The largest MTU of an interface whose frames, VLAN tags included, fit into a UMEM frame of
/// `frame_size` octets.
pub const fn max_mtu(frame_size: u32) -> u32 {
    max_frame_len(frame_size).saturating_sub(LINK_HEADER_MAX)
}

/// The smaller frame size where it holds frames of this MTU: as much memory then makes twice as many
/// frames for bursts.
pub const fn frame_size_for(mtu: u32) -> u32 {
    if mtu <= max_mtu(2048) {
        2048
    } else {
        FRAME_SIZE_DEFAULT
    }
}

/// Sizes and modes, the same for every queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XskConfig {
    /// Frames of a queue's UMEM: a power of two, at least 128.
    pub frames: u32,
    /// Octets of a frame: 2,048 or 4,096.
    pub frame_size: u32,
    /// Frames that one call of `receive` takes from an interface, at least 1.
    pub batch: usize,
    /// Share the frames with the driver instead of copying. Few drivers can.
    pub zero_copy: bool,
}

impl Default for XskConfig {
    fn default() -> Self {
        Self {
            frames: FRAMES_DEFAULT,
            frame_size: FRAME_SIZE_DEFAULT,
            batch: BATCH_DEFAULT,
            zero_copy: false,
        }
    }
}

/// An interface and those of its queues that this port serves. It transmits on the first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XskInterface {
    pub name: String,
    pub queues: Vec<u32>,
}

/// AF_XDP sockets of one worker, as a [`Port`].
pub struct XskPort {
    interfaces: Vec<Vec<Queue>>,
    /// Received descriptors of one batch; kept so that no batch allocates.
    batch: Box<[FrameDesc]>,
    /// Rotates the queue that is read first, so that a busy one does not starve the others.
    turn: usize,
    frame_size: u32,
}

impl XskPort {
    /// Binds a socket to every queue named. Nothing arrives before the sockets are in the XSKMAP
    /// of their interface and the XDP program is attached.
    ///
    /// Needs CAP_NET_RAW, and CAP_IPC_LOCK or a sufficient `RLIMIT_MEMLOCK`.
    pub fn open(interfaces: &[XskInterface], config: &XskConfig) -> Result<Self, XskError> {
        config.validate()?;
        let open_all = |interface: &XskInterface| {
            if interface.queues.is_empty() {
                return Err(XskError::Config(format!(
                    "interface {} has no queue to bind: name at least one",
                    interface.name
                )));
            }
            let open = |&queue| Queue::open_patiently(&interface.name, queue, config);
            interface.queues.iter().map(open).collect()
        };
        Ok(Self {
            interfaces: interfaces.iter().map(open_all).collect::<Result<_, _>>()?,
            batch: vec![FrameDesc::default(); config.batch].into_boxed_slice(),
            turn: 0,
            frame_size: config.frame_size,
        })
    }

    /// Every socket with the interface and the queue that it is bound to, for the XSKMAPs.
    pub fn sockets<'a>(&'a self) -> impl Iterator<Item = (IfaceId, u32, BorrowedFd<'a>)> {
        self.interfaces.iter().zip(0u8..).flat_map(|(queues, id)| {
            let socket = move |queue: &'a Queue| (IfaceId(id), queue.id, queue.fd());
            queues.iter().map(socket)
        })
    }

    /// The largest frame in octets, Ethernet header included, that can be sent or received.
    pub fn max_frame_len(&self) -> usize {
        max_frame_len(self.frame_size) as usize
    }
}

impl Port for XskPort {
    fn receive(&mut self, each: &mut dyn FnMut(IfaceId, &[u8])) -> usize {
        let turn = self.turn;
        self.turn = turn.wrapping_add(1);
        let mut received = 0;
        for (queues, id) in self.interfaces.iter_mut().zip(0u8..) {
            let mut budget = self.batch.len();
            for step in 0..queues.len() {
                if budget == 0 {
                    break;
                }
                let index = turn.wrapping_add(step) % queues.len();
                let mut each_of_queue = |frame: &[u8]| each(IfaceId(id), frame);
                let count = queues[index].receive(&mut self.batch[..budget], &mut each_of_queue);
                budget -= count;
                received += count;
            }
        }
        received
    }

    fn transmit(&mut self, iface: IfaceId, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> bool {
        let queue = self.interfaces.get_mut(usize::from(iface.0));
        debug_assert!(queue.is_some(), "no interface {iface:?} in this port");
        queue
            .and_then(|queues| queues.first_mut())
            .is_some_and(|queue| queue.transmit(fill))
    }

    fn flush(&mut self) {
        for queue in self.interfaces.iter_mut().flatten() {
            queue.flush();
        }
    }

    fn interfaces(&self) -> usize {
        self.interfaces.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.interfaces.iter().flatten().map(Queue::fd).collect()
    }

    fn has_unsent(&self) -> bool {
        // Frames that a driver has still to complete come back without a word.
        let mut queues = self.interfaces.iter().flatten();
        queues.any(|queue| queue.unsent || queue.free.is_empty())
    }

    fn accounts(&mut self) -> FrameAccounts {
        let mut sum = FrameAccounts::default();
        for queue in self.interfaces.iter_mut().flatten() {
            let occupancy = queue.occupancy();
            sum.free += queue.free.len() as u64;
            sum.held += (queue.outgoing.len() + queue.unfilled.len()) as u64;
            sum.in_kernel += occupancy.sum();
            sum.total += queue.total;
        }
        sum
    }

    /// In the order of [`sockets`](XskPort::sockets).
    fn queues(&mut self) -> Vec<QueueStatistics> {
        let interfaces = self.interfaces.iter_mut().zip(0u8..);
        interfaces
            .flat_map(|(queues, id)| {
                // The kernel always answers for a socket that is open.
                let statistics = move |queue: &mut Queue| queue.statistics(IfaceId(id)).ok();
                queues.iter_mut().filter_map(statistics)
            })
            .collect()
    }
}

/// One queue of an interface: its UMEM, its socket, and the four rings, which have one user.
struct Queue {
    id: u32,
    umem: Umem,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Frames to transmit in.
    free: Vec<FrameDesc>,
    /// Written in this turn, not yet in the TX ring.
    outgoing: Vec<FrameDesc>,
    /// Received and read, not yet back in the fill ring. Empty between turns.
    unfilled: Vec<FrameDesc>,
    /// Room for one sweep of the completion ring.
    completed: Box<[FrameDesc]>,
    /// The kernel left frames in the TX ring.
    unsent: bool,
    /// Until then it is not asked to take them.
    stalled_until: Option<Instant>,
    ring_size: u32,
    total: u64,
    // What went through the rings since the start, by the ring where it was counted.
    filled: u64,
    received: u64,
    sent: u64,
    reaped: u64,
    wakeups: u64,
}

impl Queue {
    /// Opens the queue, waiting for a while where it is still taken.
    fn open_patiently(interface: &str, queue: u32, config: &XskConfig) -> Result<Self, XskError> {
        let deadline = Instant::now() + BIND_PATIENCE;
        loop {
            // Each try has a UMEM of its own: what a failed bind leaves behind cannot be bound.
            match Self::open(interface, queue, config) {
                Err(XskError::Bind { source, .. })
                    if source.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
                {
                    thread::sleep(BIND_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn open(interface: &str, id: u32, config: &XskConfig) -> Result<Self, XskError> {
        // Rings as large as the half of the frames that can be in them, so that none overflows.
        let half = config.frames / 2;
        let ring = QueueSize::new(half).map_err(XskError::config)?;
        let umem_config = UmemConfig::builder()
            .frame_size(FrameSize::new(config.frame_size).map_err(XskError::config)?)
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .build()
            .map_err(XskError::config)?;
        let copy_mode = if config.zero_copy {
            BindFlags::XDP_ZEROCOPY
        } else {
            BindFlags::XDP_COPY
        };
        let socket_config = SocketConfig::builder()
            .rx_queue_size(ring)
            .tx_queue_size(ring)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(copy_mode | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let device: Interface = interface.parse().map_err(XskError::config)?;
        let frames = NonZeroU32::new(config.frames)
            .ok_or_else(|| XskError::Config("frames must not be 0".into()))?;

        let failed = |step, error: &dyn error::Error| XskError::Bind {
            interface: interface.to_owned(),
            queue: id,
            step,
            source: os_error(error),
        };
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
            total: u64::from(config.frames),
            filled: filled as u64,
            received: 0,
            sent: 0,
            reaped: 0,
            wakeups: 0,
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the socket is, which `self.rx` keeps alive, and
        // the borrow of `self` outlives the result.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// Reads up to `batch.len()` frames and returns them to the fill ring.
    fn receive(&mut self, batch: &mut [FrameDesc], each: &mut dyn FnMut(&[u8])) -> usize {
        // SAFETY: the RX ring of this socket names frames of `self.umem` only.
        let count = unsafe { self.rx.consume(batch) };
        self.received += count as u64;
        for desc in &batch[..count] {
            // SAFETY: the frame is of this UMEM and came over the RX ring, so the kernel is done
            // with it until it is back in the fill ring, which is below; nothing writes it here.
            each(unsafe { self.umem.data(desc) }.contents());
        }
        self.unfilled.extend_from_slice(&batch[..count]);
        self.refill();
        count
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

    fn transmit(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> bool {
        if self.free.is_empty() {
            self.reap();
        }
        let Some(mut desc) = self.free.pop() else {
            return false;
        };
        // SAFETY: a frame of this UMEM out of the free list: neither the kernel nor anybody else
        // has it until it goes to the TX ring.
        let mut data = unsafe { self.umem.data_mut(&mut desc) };
        let mut cursor = data.cursor();
        let capacity = cursor.buf_len();
        cursor.set_pos(capacity);
        let len = fill(data.contents_mut()).min(capacity);
        data.cursor().set_pos(len);
        if len == 0 {
            self.free.push(desc);
        } else {
            self.outgoing.push(desc);
        }
        true
    }

    fn flush(&mut self) {
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

    /// Takes back the frames that have been sent.
    fn reap(&mut self) {
        // SAFETY: the completion ring names frames that `flush` sent from this UMEM.
        let count = unsafe { self.completion.consume(&mut self.completed) };
        self.reaped += count as u64;
        self.free.extend_from_slice(&self.completed[..count]);
    }

    fn tx_occupancy(&mut self) -> u32 {
        self.ring_size - self.tx.nb_free_exact()
    }

    fn occupancy(&mut self) -> RingOccupancy {
        // The ring where frames arrive is read before the one that they leave: one that moves
        // meanwhile is then seen in neither and counts as inside the kernel, never twice.
        let rx_ring = u64::from(self.rx.nb_avail_exact());
        let fill_ring = u64::from(self.ring_size - self.fill.nb_free_exact());
        let completion_ring = u64::from(self.completion.nb_avail_exact());
        let tx_ring = u64::from(self.tx_occupancy());
        RingOccupancy {
            fill_ring,
            rx_ring,
            receiving: (self.filled - self.received).saturating_sub(fill_ring + rx_ring),
            tx_ring,
            completion_ring,
            sending: (self.sent - self.reaped).saturating_sub(tx_ring + completion_ring),
        }
    }

    fn statistics(&mut self, iface: IfaceId) -> io::Result<QueueStatistics> {
        let kernel = self.rx.fd().xdp_statistics()?;
        Ok(QueueStatistics {
            iface,
            queue: self.id,
            received: self.received,
            sent: self.sent,
            wakeups: self.wakeups,
            rings: self.occupancy(),
            rx_dropped: kernel.rx_dropped(),
            rx_ring_full: kernel.rx_ring_full(),
            rx_invalid_descs: kernel.rx_invalid_descs(),
            fill_ring_empty: kernel.rx_fill_ring_empty_descs(),
            tx_invalid_descs: kernel.tx_invalid_descs(),
            tx_ring_empty: kernel.tx_ring_empty_descs(),
        })
    }
}

impl XskConfig {
    fn validate(&self) -> Result<(), XskError> {
        let problem = if !self.frames.is_power_of_two() || self.frames < 128 {
            format!("frames is {}: give a power of two from 128 on", self.frames)
        } else if ![2048, 4096].contains(&self.frame_size) {
            format!("frame_size is {}: give 2048 or 4096", self.frame_size)
        } else if self.batch == 0 {
            "batch is 0: give at least 1".to_owned()
        } else {
            return Ok(());
        };
        Err(XskError::Config(problem))
    }
}

/// Why the sockets could not be opened. One line, with the remedy.
#[derive(Debug)]
pub enum XskError {
    /// A size or a name that cannot work.
    Config(String),
    /// The kernel refused.
    Bind {
        interface: String,
        queue: u32,
        step: &'static str,
        source: io::Error,
    },
}

impl XskError {
    fn config(error: impl fmt::Display) -> Self {
        Self::Config(error.to_string())
    }
}

impl fmt::Display for XskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (interface, queue, step, source) = match self {
            Self::Config(problem) => return write!(f, "AF_XDP: {problem}"),
            Self::Bind {
                interface,
                queue,
                step,
                source,
            } => (interface, queue, step, source),
        };
        write!(f, "cannot {step} on queue {queue} of {interface}: ")?;
        match source.raw_os_error() {
            Some(libc::EPERM) => write!(f, "not permitted; it needs CAP_NET_RAW"),
            Some(libc::ENOBUFS) => write!(
                f,
                "its frames exceed the limit on locked memory; give CAP_IPC_LOCK or raise \
                 RLIMIT_MEMLOCK (ulimit -l)"
            ),
            Some(libc::EBUSY) => write!(
                f,
                "another AF_XDP socket holds the queue; stop the program that has it (ss --xdp -p)"
            ),
            Some(libc::EINVAL) => write!(
                f,
                "the interface has no such queue (see ethtool -l {interface}), or is down"
            ),
            Some(libc::ENODEV | libc::ENXIO) => write!(f, "there is no such interface"),
            Some(libc::ENETDOWN) => {
                write!(
                    f,
                    "the interface is down; bring it up with ip link set {interface} up"
                )
            }
            Some(libc::EOPNOTSUPP) => write!(
                f,
                "the driver does not support the mode; turn zero_copy off"
            ),
            Some(libc::EAFNOSUPPORT) => write!(f, "the kernel is built without AF_XDP"),
            _ => write!(f, "{source}"),
        }
    }
}

impl error::Error for XskError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Config(_) => None,
            Self::Bind { source, .. } => Some(source),
        }
    }
}

/// The error of the system call behind an error of the library.
fn os_error(error: &dyn error::Error) -> io::Error {
    let source = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_with_two_tags_fits_a_frame() {
        assert_eq!(max_frame_len(4096), 3840);
        assert_eq!(max_mtu(4096) + LINK_HEADER_MAX, max_frame_len(4096));
        assert_eq!(max_mtu(100), 0);
        assert_eq!(frame_size_for(1500), 2048);
        assert_eq!(frame_size_for(max_mtu(2048)), 2048);
        assert_eq!(frame_size_for(max_mtu(2048) + 1), 4096);
    }

    #[test]
    fn sizes_that_cannot_work_are_refused_before_the_kernel_is_asked() {
        for (config, word) in [
            (
                XskConfig {
                    frames: 1000,
                    ..XskConfig::default()
                },
                "frames",
            ),
            (
                XskConfig {
                    frames: 64,
                    ..XskConfig::default()
                },
                "frames",
            ),
            (
                XskConfig {
                    frame_size: 8192,
                    ..XskConfig::default()
                },
                "frame_size",
            ),
            (
                XskConfig {
                    batch: 0,
                    ..XskConfig::default()
                },
                "batch",
            ),
        ] {
            let error = XskPort::open(&[], &config).err().unwrap().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
