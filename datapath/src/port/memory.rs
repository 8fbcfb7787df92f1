//! A port without a device: tests and simulators put frames in on one side and take them out on
//! the other. It works in a fixed stock of frames as a real port does, so that running out of them
//! and losing one show here too.

use super::{FrameAccounts, IfaceId, Port};
use crate::steering::{Arrival, Verdict};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

/// Frames handed out per interface and turn.
const BATCH_FRAMES: usize = 64;

/// Sizes of a [`MemoryPort`].
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    pub interfaces: usize,
    /// The stock that all interfaces share.
    pub frames: usize,
    /// Longest frame.
    pub frame_bytes: usize,
    /// Bound of each queue, of which every interface has one in each direction.
    pub queue_frames: usize,
}

impl Default for MemoryConfig {
    fn default() -> MemoryConfig {
        MemoryConfig {
            interfaces: 1,
            frames: 4096,
            frame_bytes: 2048,
            queue_frames: 1024,
        }
    }
}

/// A port between two sides of one thread.
#[derive(Debug)]
pub struct MemoryPort {
    config: MemoryConfig,
    free: Vec<Box<[u8]>>,
    queues: Vec<Queues>,
    counters: MemoryCounters,
}

/// What a [`MemoryPort`] refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounters {
    /// Injected frames longer than a frame of the stock.
    pub rx_oversized: u64,
    /// Injected frames that found the queue full or the stock empty, as on a NIC's ring.
    pub rx_dropped: u64,
    /// Calls of [`Port::transmit`] that found the queue full or the stock empty.
    pub tx_refused: u64,
    /// Frames for other workers, of which there are none here.
    pub mesh_drops: u64,
}

#[derive(Debug, Default)]
struct Queues {
    arrived: VecDeque<Frame>,
    /// Written in this turn, out of reach until [`Port::flush`].
    written: VecDeque<Frame>,
    sent: VecDeque<Frame>,
}

#[derive(Debug)]
struct Frame {
    memory: Box<[u8]>,
    len: usize,
}

impl MemoryPort {
    pub fn new(config: MemoryConfig) -> MemoryPort {
        MemoryPort {
            config,
            free: (0..config.frames)
                .map(|_| vec![0; config.frame_bytes].into())
                .collect(),
            queues: (0..config.interfaces).map(|_| Queues::default()).collect(),
            counters: MemoryCounters::default(),
        }
    }

    /// Lets `frame` arrive on `iface`. `false`: it was dropped, and counted. The interface must
    /// exist.
    pub fn inject(&mut self, iface: IfaceId, frame: &[u8]) -> bool {
        if frame.len() > self.config.frame_bytes {
            self.counters.rx_oversized += 1;
            return false;
        }
        let queue = &mut self.queues[usize::from(iface.0)].arrived;
        if queue.len() >= self.config.queue_frames {
            self.counters.rx_dropped += 1;
            return false;
        }
        let Some(mut memory) = self.free.pop() else {
            self.counters.rx_dropped += 1;
            return false;
        };
        memory[..frame.len()].copy_from_slice(frame);
        queue.push_back(Frame {
            memory,
            len: frame.len(),
        });
        true
    }

    /// Takes the oldest frame that was sent on `iface` and flushed.
    pub fn take(&mut self, iface: IfaceId) -> Option<Vec<u8>> {
        let frame = self.queues[usize::from(iface.0)].sent.pop_front()?;
        let bytes = frame.memory[..frame.len].to_vec();
        self.free.push(frame.memory);
        Some(bytes)
    }

    pub fn counters(&self) -> MemoryCounters {
        self.counters
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, each: &mut dyn FnMut(Arrival, &[u8]) -> Verdict) -> usize {
        let mut received = 0;
        for (iface, queues) in (0..).map(IfaceId).zip(&mut self.queues) {
            for _ in 0..BATCH_FRAMES {
                let Some(frame) = queues.arrived.pop_front() else {
                    break;
                };
                if each(iface.into(), &frame.memory[..frame.len]) != Verdict::Taken {
                    self.counters.mesh_drops += 1;
                }
                self.free.push(frame.memory);
                received += 1;
            }
        }
        received
    }

    fn transmit(&mut self, iface: IfaceId, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> bool {
        let queues = &mut self.queues[usize::from(iface.0)];
        let full = queues.written.len() + queues.sent.len() >= self.config.queue_frames;
        let Some(mut memory) = (if full { None } else { self.free.pop() }) else {
            self.counters.tx_refused += 1;
            return false;
        };
        match fill(&mut memory) {
            0 => self.free.push(memory),
            len => {
                assert!(
                    len <= memory.len(),
                    "{len} octets written to a frame of {}",
                    memory.len()
                );
                queues.written.push_back(Frame { memory, len });
            }
        }
        true
    }

    fn flush(&mut self) {
        for queues in &mut self.queues {
            queues.sent.append(&mut queues.written);
        }
    }

    fn interfaces(&self) -> usize {
        self.queues.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn has_unsent(&self) -> bool {
        false
    }

    fn mesh_drops(&self) -> u64 {
        self.counters.mesh_drops
    }

    fn accounts(&mut self) -> FrameAccounts {
        let count = |f: fn(&Queues) -> usize| self.queues.iter().map(|q| f(q) as u64).sum();
        FrameAccounts {
            free: self.free.len() as u64,
            in_kernel: count(|q| q.arrived.len() + q.sent.len()),
            held: count(|q| q.written.len()),
            lent: 0,
            total: self.config.frames as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: MemoryConfig = MemoryConfig {
        interfaces: 2,
        frames: 6,
        frame_bytes: 64,
        queue_frames: 4,
    };

    fn send(port: &mut MemoryPort, iface: u8, bytes: &[u8]) -> bool {
        port.transmit(IfaceId(iface), &mut |frame| {
            frame[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        })
    }

    #[test]
    fn frames_cross_in_order_and_come_back_to_the_stock() {
        let mut port = MemoryPort::new(SMALL);
        assert!(port.inject(IfaceId(1), b"one") && port.inject(IfaceId(1), b"two"));
        assert!(port.inject(IfaceId(0), b"three"));
        let mut seen = Vec::new();
        assert_eq!(
            port.receive(&mut |arrival, f| {
                seen.push((arrival.iface.0, f.to_vec()));
                Verdict::Taken
            }),
            3
        );
        assert_eq!(
            seen,
            [
                (0, b"three".to_vec()),
                (1, b"one".to_vec()),
                (1, b"two".to_vec())
            ]
        );

        assert!(send(&mut port, 1, b"a longer answer") && send(&mut port, 1, b"b"));
        assert_eq!(
            port.take(IfaceId(1)),
            None,
            "nothing leaves before the flush"
        );
        assert_eq!(port.accounts().held, 2);
        port.flush();
        assert_eq!(
            port.accounts(),
            FrameAccounts {
                free: 4,
                in_kernel: 2,
                total: 6,
                ..Default::default()
            }
        );
        assert_eq!(
            port.take(IfaceId(1)).as_deref(),
            Some(b"a longer answer".as_slice())
        );
        assert_eq!(port.take(IfaceId(1)).as_deref(), Some(b"b".as_slice()));
        assert_eq!(port.take(IfaceId(0)), None);
        assert_eq!(port.accounts().free, 6);
        assert_eq!(port.counters(), MemoryCounters::default());
    }

    #[test]
    fn every_bound_holds_and_is_counted() {
        let mut port = MemoryPort::new(SMALL);
        assert!(!port.inject(IfaceId(0), &[0; 65]));
        let arrived = (0..5).filter(|_| port.inject(IfaceId(0), &[0; 64])).count();
        assert_eq!(arrived, 4);
        // Two frames of the stock are left for the other direction.
        let written = (0..3).filter(|_| send(&mut port, 1, b"x")).count();
        assert_eq!(written, 2);
        assert!(!port.inject(IfaceId(1), b"y"));
        let refused = MemoryCounters {
            rx_oversized: 1,
            rx_dropped: 2,
            tx_refused: 1,
            mesh_drops: 0,
        };
        assert_eq!(port.counters(), refused);
        assert!(port.accounts().balanced());

        // A writer that has nothing after all costs no frame.
        port.receive(&mut |_, _| Verdict::Taken);
        assert!(port.transmit(IfaceId(0), &mut |_| 0));
        port.flush();
        assert_eq!(port.take(IfaceId(0)), None);
        assert_eq!(port.accounts().free, 4);
        assert!(port.accounts().balanced());
    }
}
