//! The AF_XDP port: sockets on the queues of one or more interfaces, one UMEM per queue.
//!
//! A frame arrives only at a socket of the very queue that it came in on, so every worker has a socket
//! on every queue. One worker is at home there: it alone fills, transmits and reaps. The others
//! receive, and give their frames back to the home in the same turn; a worker without a home on an
//! interface writes in frames that a home lends it. What comes to the wrong worker goes by descriptor
//! to the right one, which gives it back.
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

mod error;
mod guest;
mod queue;
mod shared;

pub use error::XskError;

use super::{FrameAccounts, IfaceId, Port, QueueStatistics};
use crate::mesh::{Inbox, Waker};
use crate::steering::{Arrival, Verdict};
use guest::{Borrower, Guest};
use mpx_ebpf::queue_home;
use queue::Queue;
use shared::{Forwarded, Loan, Shared};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use xsk_rs::{FrameDesc, Umem};

/// Octets of a frame, one page, unless configured otherwise.
pub const FRAME_SIZE_DEFAULT: u32 = 4096;
/// Frames of a queue, half of them for each direction, unless configured otherwise.
pub const FRAMES_DEFAULT: u32 = 8192;
/// Frames that one call of `receive` takes from an interface, unless configured otherwise.
pub const BATCH_DEFAULT: usize = 64;

/// Below this a socket's RX ring holds no burst.
const RX_RING_MIN: u32 = 64;

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
    /// Frames of a queue's UMEM: a power of two, at least 128 and 128 for each worker.
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

/// Frames of a queue that so many workers share, if they are not told.
pub fn frames_for(workers: usize) -> u32 {
    let least = RX_RING_MIN as usize * 2 * workers;
    let least = u32::try_from(least.next_power_of_two()).unwrap_or(u32::MAX);
    least.max(FRAMES_DEFAULT)
}

/// An interface and those of its queues that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XskInterface {
    pub name: String,
    pub queues: Vec<u32>,
}

/// AF_XDP sockets of one worker, as a [`Port`].
pub struct XskPort {
    worker: usize,
    interfaces: Vec<Sockets>,
    /// Of all workers, in their order.
    mesh: Arc<[Inbox<Forwarded>]>,
    /// Workers that were passed something since they were woken.
    to_wake: Vec<bool>,
    mesh_drops: u64,
    /// Received descriptors of one batch; kept so that no batch allocates.
    batch: Box<[FrameDesc]>,
    /// Rotates the queue that is read first, so that a busy one does not starve the others.
    turn: usize,
    frame_size: u32,
}

/// Those of one worker on one interface.
struct Sockets {
    homes: Vec<Queue>,
    guests: Vec<Guest>,
    /// Where there are no homes.
    borrower: Option<Borrower>,
    /// All queues of the interface, to read and give back what was passed on.
    places: Vec<Place>,
}

struct Place {
    queue: u32,
    umem: Umem,
    shared: Arc<Shared>,
    /// Among the homes here.
    home: Option<usize>,
    /// Frames went home since it was told.
    returns: bool,
}

impl XskPort {
    /// Binds a socket of each worker to every queue named; `wakers` are theirs. A queue is home to the
    /// worker that [`queue_home`] says. Nothing arrives before the sockets are in the XSKMAP of their
    /// interface and the XDP program is attached.
    ///
    /// Needs CAP_NET_RAW, and CAP_IPC_LOCK or a sufficient `RLIMIT_MEMLOCK`.
    pub fn open(
        interfaces: &[XskInterface],
        wakers: &[Arc<Waker>],
        config: &XskConfig,
    ) -> Result<Vec<XskPort>, XskError> {
        config.validate(wakers.len())?;
        // What waits for all workers but one fits into the frames that receive, beside a full RX ring.
        let capacity = config.rx_ring(wakers.len()) as usize;
        let inbox = |waker| Inbox::new(capacity, Arc::clone(waker));
        let mesh: Arc<[_]> = wakers.iter().map(inbox).collect();
        let port = |worker| XskPort {
            worker,
            interfaces: Vec::with_capacity(interfaces.len()),
            mesh: Arc::clone(&mesh),
            to_wake: vec![false; wakers.len()],
            mesh_drops: 0,
            batch: vec![FrameDesc::default(); config.batch].into_boxed_slice(),
            turn: 0,
            frame_size: config.frame_size,
        };
        let mut ports: Vec<_> = (0..wakers.len()).map(port).collect();
        for interface in interfaces {
            let all = Sockets::open(interface, wakers, config)?;
            for (port, sockets) in ports.iter_mut().zip(all) {
                port.interfaces.push(sockets);
            }
        }
        Ok(ports)
    }

    /// Every socket with the interface and the queue that it is bound to, for the XSKMAPs.
    pub fn sockets<'a>(&'a self) -> impl Iterator<Item = (IfaceId, u32, BorrowedFd<'a>)> {
        let interfaces = self.interfaces.iter().zip(0u8..);
        interfaces.flat_map(|(sockets, id)| {
            let homes = sockets.homes.iter().map(|queue| (queue.id(), queue.fd()));
            let guests = sockets.guests.iter().map(|guest| (guest.id(), guest.fd()));
            homes
                .chain(guests)
                .map(move |(queue, fd)| (IfaceId(id), queue, fd))
        })
    }

    /// The largest frame in octets, Ethernet header included, that can be sent or received.
    pub fn max_frame_len(&self) -> usize {
        max_frame_len(self.frame_size) as usize
    }

    /// Reads what other workers passed on.
    fn receive_passed_on(&mut self, each: &mut dyn FnMut(Arrival, &[u8]) -> Verdict) -> usize {
        let mut received = 0;
        while received < self.batch.len()
            && let Some(frame) = self.mesh[self.worker].pop()
        {
            received += 1;
            let sockets = &mut self.interfaces[usize::from(frame.iface)];
            let place = &mut sockets.places[usize::from(frame.queue)];
            let arrival = Arrival {
                iface: IfaceId(frame.iface),
                queue_home: queue_home(place.queue, self.mesh.len() as u32),
                forwarded: true,
            };
            // SAFETY: the frame is of this UMEM. The worker that took it out of an RX ring gave it
            // away, and it goes back to the fill ring by way of this one only, below.
            let verdict = each(arrival, unsafe { place.umem.data(&frame.desc) }.contents());
            debug_assert_eq!(verdict, Verdict::Taken, "passed on once, and not twice");
            match place.home {
                Some(home) => sockets.homes[home].keep(frame.desc),
                None => {
                    place.shared.give_back(frame.desc);
                    place.returns = true;
                }
            }
        }
        if received > 0 {
            for place in self.interfaces.iter_mut().flat_map(|s| &mut s.places) {
                if std::mem::take(&mut place.returns) {
                    place.shared.wake();
                }
            }
        }
        received
    }
}

impl Sockets {
    /// Those of all workers on one interface, in their order.
    fn open(
        interface: &XskInterface,
        wakers: &[Arc<Waker>],
        config: &XskConfig,
    ) -> Result<Vec<Sockets>, XskError> {
        let (name, workers) = (&interface.name, wakers.len());
        if interface.queues.is_empty() {
            return Err(XskError::Config(format!(
                "interface {name} has no queue to bind: name at least one"
            )));
        }
        let home = |queue| queue_home(queue, workers as u32) as usize;
        let open = |&queue| Queue::open_patiently(name, queue, config, wakers, home(queue));
        let mut queues: Vec<Queue> = interface
            .queues
            .iter()
            .map(open)
            .collect::<Result<_, _>>()?;

        // Who has no home here borrows.
        let is_home = |worker| queues.iter().any(|queue| home(queue.id()) == worker);
        let homeless: Vec<usize> = (0..workers).filter(|&worker| !is_home(worker)).collect();
        let lender = |borrower: usize| borrower % interface.queues.len();
        let mut borrowers: Vec<Option<Borrower>> = (0..workers).map(|_| None).collect();
        for (at, queue) in queues.iter_mut().enumerate() {
            let borrowing: Vec<usize> = homeless
                .iter()
                .copied()
                .filter(|&w| lender(w) == at)
                .collect();
            let parts = parts(queue.transmit_frames(), borrowing.len());
            for (worker, part) in borrowing.into_iter().zip(parts) {
                let lending = Arc::clone(&wakers[home(queue.id())]);
                let loan = Loan::new(part.len(), lending, Arc::clone(&wakers[worker]));
                queue.lend(Arc::clone(&loan), part);
                borrowers[worker] = Some(Borrower::new(queue, loan));
            }
        }

        let mut all = Vec::with_capacity(workers);
        for (worker, borrower) in borrowers.into_iter().enumerate() {
            let elsewhere = queues.iter().filter(|queue| home(queue.id()) != worker);
            let guests = elsewhere.map(|queue| Guest::open(name, queue, config, worker, workers));
            let mut homes = 0..;
            let place = |queue: &Queue| Place {
                queue: queue.id(),
                umem: queue.umem().clone(),
                shared: Arc::clone(queue.shared()),
                home: (home(queue.id()) == worker).then(|| homes.next()).flatten(),
                returns: false,
            };
            all.push(Sockets {
                homes: Vec::new(),
                guests: guests.collect::<Result<_, _>>()?,
                borrower,
                places: queues.iter().map(place).collect(),
            });
        }
        for queue in queues {
            all[home(queue.id())].homes.push(queue);
        }
        Ok(all)
    }
}

/// Of the frames that transmit on a queue, those that each borrower has for its own: no more than are left
/// for the home.
fn parts(frames: Range<usize>, borrowers: usize) -> impl Iterator<Item = Range<usize>> {
    let part = frames.len() / (borrowers + 1);
    (1..=borrowers).map(move |index| {
        let first = frames.end - index * part;
        first..first + part
    })
}

impl Port for XskPort {
    fn receive(&mut self, each: &mut dyn FnMut(Arrival, &[u8]) -> Verdict) -> usize {
        let mut received = self.receive_passed_on(each);
        let turn = self.turn;
        self.turn = turn.wrapping_add(1);
        let workers = self.mesh.len() as u32;
        let mut passed_on = false;
        for (sockets, id) in self.interfaces.iter_mut().zip(0u8..) {
            let mut budget = self.batch.len();
            let count = sockets.homes.len() + sockets.guests.len();
            for step in 0..count {
                if budget == 0 {
                    break;
                }
                let index = turn.wrapping_add(step) % count;
                let guest = index.checked_sub(sockets.homes.len());
                let queue = match guest {
                    None => sockets.homes[index].id(),
                    Some(guest) => sockets.guests[guest].id(),
                };
                let arrival = Arrival {
                    iface: IfaceId(id),
                    queue_home: queue_home(queue, workers),
                    forwarded: false,
                };
                let mut each = |frame: &[u8]| each(arrival, frame);
                let mut pass_on = |worker: u32, desc| {
                    let place = sockets.places.iter().position(|p| p.queue == queue);
                    let frame = place.map(|place| Forwarded {
                        iface: id,
                        queue: place as u16,
                        desc,
                    });
                    let inbox = self.mesh.get(worker as usize);
                    let (Some(frame), Some(inbox)) = (frame, inbox) else {
                        return false;
                    };
                    let taken = inbox.push(frame).is_ok();
                    self.to_wake[worker as usize] |= taken;
                    passed_on |= taken;
                    self.mesh_drops += u64::from(!taken);
                    taken
                };
                let batch = &mut self.batch[..budget];
                let count = match guest {
                    None => sockets.homes[index].receive(batch, &mut each, &mut pass_on),
                    Some(guest) => sockets.guests[guest].receive(batch, &mut each, &mut pass_on),
                };
                budget -= count;
                received += count;
            }
        }
        if passed_on {
            for (inbox, wake) in self.mesh.iter().zip(&mut self.to_wake) {
                if std::mem::take(wake) {
                    inbox.wake();
                }
            }
        }
        received
    }

    fn transmit(&mut self, iface: IfaceId, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> bool {
        let sockets = self.interfaces.get_mut(usize::from(iface.0));
        debug_assert!(sockets.is_some(), "no interface {iface:?} in this port");
        let Some(sockets) = sockets else {
            return false;
        };
        match (sockets.homes.first_mut(), &mut sockets.borrower) {
            (Some(queue), _) => queue.transmit(fill),
            (None, Some(borrower)) => borrower.transmit(fill),
            (None, None) => false,
        }
    }

    fn flush(&mut self) {
        for sockets in &mut self.interfaces {
            sockets.homes.iter_mut().for_each(Queue::flush);
            sockets.borrower.iter_mut().for_each(Borrower::flush);
        }
    }

    fn interfaces(&self) -> usize {
        self.interfaces.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets().map(|(.., fd)| fd).collect()
    }

    fn has_unsent(&self) -> bool {
        // Frames that a driver has still to complete come back without a word.
        self.interfaces.iter().any(|sockets| {
            let borrower = sockets.borrower.iter();
            sockets.homes.iter().any(Queue::is_unsent)
                || borrower.into_iter().any(Borrower::is_starved)
        })
    }

    fn has_mail(&self) -> bool {
        let mut interfaces = self.interfaces.iter();
        !self.mesh[self.worker].is_empty()
            || interfaces.any(|sockets| {
                let mut borrower = sockets.borrower.iter();
                sockets.homes.iter().any(Queue::has_mail) || borrower.any(Borrower::has_mail)
            })
    }

    fn mesh_drops(&self) -> u64 {
        self.mesh_drops
    }

    /// Of the queues that are this worker's home.
    fn accounts(&mut self) -> FrameAccounts {
        let mut sum = FrameAccounts::default();
        for queue in self.interfaces.iter_mut().flat_map(|s| &mut s.homes) {
            sum.add(&queue.accounts());
        }
        sum
    }

    /// In the order of [`sockets`](XskPort::sockets).
    fn queues(&mut self) -> Vec<QueueStatistics> {
        let interfaces = self.interfaces.iter_mut().zip(0u8..);
        interfaces
            .flat_map(|(sockets, id)| {
                // The kernel always answers for a socket that is open.
                let home = move |queue: &mut Queue| queue.statistics(IfaceId(id)).ok();
                let guest = move |guest: &mut Guest| guest.statistics(IfaceId(id)).ok();
                let homes = sockets.homes.iter_mut().filter_map(home);
                homes.chain(sockets.guests.iter_mut().filter_map(guest))
            })
            .collect()
    }
}

impl XskConfig {
    /// Entries of the RX ring of each worker's socket. Together they hold half of the UMEM's frames,
    /// all that receive, so that a worker that is late holds no more than its share.
    fn rx_ring(&self, workers: usize) -> u32 {
        let share = self.frames / 2 / workers.max(1) as u32;
        1 << share.max(1).ilog2()
    }

    fn validate(&self, workers: usize) -> Result<(), XskError> {
        let problem = if !self.frames.is_power_of_two() || self.frames < 128 {
            format!("frames is {}: give a power of two from 128 on", self.frames)
        } else if ![2048, 4096].contains(&self.frame_size) {
            format!("frame_size is {}: give 2048 or 4096", self.frame_size)
        } else if self.batch == 0 {
            "batch is 0: give at least 1".to_owned()
        } else if self.rx_ring(workers) < RX_RING_MIN {
            format!(
                "frames is {} for {workers} workers: give at least {}",
                self.frames,
                frames_for(workers)
            )
        } else {
            return Ok(());
        };
        Err(XskError::Config(problem))
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

    fn waker() -> Arc<Waker> {
        Waker::new().expect("an event descriptor")
    }

    #[test]
    fn all_receive_rings_of_a_queue_hold_no_more_than_half_of_its_frames() {
        for workers in [1, 2, 3, 5, 16, 64, 100] {
            let config = XskConfig {
                frames: frames_for(workers),
                ..XskConfig::default()
            };
            assert!(config.validate(workers).is_ok(), "{workers}");
            let entries = config.rx_ring(workers) * workers as u32;
            assert!(entries <= config.frames / 2, "{workers}");
            assert!(
                entries * 2 > config.frames / 2,
                "{workers}: {entries} waste half"
            );
        }
        let error = XskConfig::default().validate(65).unwrap_err().to_string();
        assert!(error.contains("65 workers: give at least 16384"), "{error}");
    }

    /// Whatever a borrower sends, the home and the other borrowers have frames of their own.
    #[test]
    fn borrowers_and_home_have_equal_parts_of_the_frames_that_transmit() {
        for borrowers in 0..70 {
            let frames = 4096..8192;
            let mut owners = vec![0; frames.len()];
            for (part, borrower) in parts(frames.clone(), borrowers).zip(1..) {
                for place in part {
                    let owner = &mut owners[place - frames.start];
                    assert_eq!(*owner, 0, "{place} of {borrowers}");
                    *owner = borrower;
                }
            }
            let counts: Vec<_> = (0..=borrowers)
                .map(|sharer| owners.iter().filter(|&&owner| owner == sharer).count())
                .collect();
            let part = 4096 / (borrowers + 1);
            assert!(counts[0] >= part, "{borrowers}: {counts:?}");
            assert!(counts[1..].iter().all(|&count| count == part));
        }
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
            let error = XskPort::open(&[], &[waker()], &config)
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
