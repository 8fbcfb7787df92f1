//! Between workers: bounded queues, and how a worker that sleeps is woken by what is put into one.
//!
//! A worker parks only after it has said so and has then found all its queues empty; whoever puts
//! something into a queue looks afterwards whether its worker has said so. With a fence between the
//! two steps on either side, one of them sees the other: nothing waits for a worker that sleeps.

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Wakes one worker.
#[derive(Debug)]
pub struct Waker {
    /// The worker is about to sleep, or does.
    parked: CachePadded<AtomicBool>,
    wake: OwnedFd,
}

impl Waker {
    /// # Errors
    /// When the kernel has no event descriptor left.
    pub fn new() -> io::Result<Arc<Waker>> {
        Ok(Arc::new(Waker {
            parked: CachePadded::new(AtomicBool::new(false)),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    /// For after something was put where the worker looks before it sleeps. Only a worker that sleeps
    /// costs a system call, and only whoever wakes it first.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed) {
            // It can only fail when the counter is full, and then the descriptor is readable.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Runs `wait`, which is to return when the descriptor that it gets is readable, unless
    /// `has_work` finds something to do first.
    ///
    /// # Errors
    /// Those of `wait`.
    pub fn park(
        &self,
        has_work: impl FnOnce() -> bool,
        wait: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let waited = if has_work() {
            Ok(())
        } else {
            wait(self.wake.as_fd())
        };
        self.parked.store(false, Ordering::Relaxed);
        let mut counter = [0; 8];
        // Empty when it was not the one that woke us.
        let _ = rustix::io::read(&self.wake, &mut counter);
        waited
    }
}

/// A bounded queue into a worker. Any thread puts in, the worker takes out.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: ArrayQueue<T>,
    waker: Arc<Waker>,
}

impl<T> Inbox<T> {
    pub fn new(capacity: usize, waker: Arc<Waker>) -> Inbox<T> {
        Inbox {
            queue: ArrayQueue::new(capacity),
            waker,
        }
    }

    /// Gives it back where there is no room. The worker need not see it before [`Inbox::wake`].
    pub fn push(&self, item: T) -> Result<(), T> {
        self.queue.push(item)
    }

    /// Once after any number of [`Inbox::push`].
    pub fn wake(&self) {
        self.waker.wake();
    }

    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::thread;

    /// How long a wakeup may take on a machine that is busy. One that is lost takes for ever.
    const PATIENCE: Timespec = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };

    /// Sleeps until woken; returns whether it was.
    fn sleep(fd: BorrowedFd<'_>) -> io::Result<bool> {
        let mut waiting = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        Ok(poll(&mut waiting, Some(&PATIENCE))? > 0)
    }

    /// The worker sleeps whenever its queue is empty, and the others let it go empty all the time:
    /// every item meets it at another step of going to sleep.
    #[test]
    fn parking_and_waking_lose_nothing() {
        const ITEMS: u64 = 20_000;
        let waker = Waker::new().expect("an event descriptor");
        let inboxes = [1, 4].map(|capacity| Inbox::new(capacity, Arc::clone(&waker)));
        let (mut sums, mut sleeps) = ([0; 2], 0);
        thread::scope(|scope| {
            for inbox in &inboxes {
                scope.spawn(move || {
                    for item in 1..=ITEMS {
                        while inbox.push(item).is_err() {
                            thread::yield_now();
                        }
                        inbox.wake();
                        // Up to as long as the worker takes to fall asleep.
                        (0..item % 512).for_each(|_| std::hint::spin_loop());
                    }
                });
            }
            while sums != [ITEMS * (ITEMS + 1) / 2; 2] {
                for (sum, inbox) in sums.iter_mut().zip(&inboxes) {
                    while let Some(item) = inbox.pop() {
                        *sum += item;
                    }
                }
                if sums == [ITEMS * (ITEMS + 1) / 2; 2] {
                    break;
                }
                let has_work = || inboxes.iter().any(|inbox| !inbox.is_empty());
                let wait = |fd: BorrowedFd<'_>| {
                    sleeps += 1;
                    assert!(sleep(fd)?, "nobody woke it, and {sums:?} so far");
                    Ok(())
                };
                waker.park(has_work, wait).expect("poll");
            }
        });
        assert!(sleeps > 0, "it never slept, so nothing was tried");
    }

    #[test]
    fn a_worker_that_has_something_to_do_does_not_sleep() {
        let waker = Waker::new().expect("an event descriptor");
        let inbox = Inbox::new(1, Arc::clone(&waker));
        assert_eq!((inbox.push(7), inbox.push(8)), (Ok(()), Err(8)));
        let slept = waker.park(|| !inbox.is_empty(), |_| Err(io::Error::other("it sleeps")));
        assert!(slept.is_ok());
        assert_eq!((inbox.pop(), inbox.pop()), (Some(7), None));
        // A wakeup that comes before it sleeps is none that it owes to the next one.
        inbox.wake();
        let mut woken = None;
        let wait = |fd: BorrowedFd<'_>| {
            let mut waiting = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            woken = Some(poll(&mut waiting, Some(&Timespec::default()))?);
            Ok(())
        };
        waker.park(|| false, wait).expect("poll");
        assert_eq!(woken, Some(0));
    }

    /// What the counter of the descriptor says: one system call each.
    #[test]
    fn a_worker_that_sleeps_is_woken_once() {
        let waker = Waker::new().expect("an event descriptor");
        waker.wake();
        let wait = |fd: BorrowedFd<'_>| {
            (0..3).for_each(|_| waker.wake());
            let mut counter = [0; 8];
            rustix::io::read(fd, &mut counter)?;
            assert_eq!(u64::from_ne_bytes(counter), 1);
            Ok(())
        };
        waker.park(|| false, wait).expect("it wakes");
    }
}
