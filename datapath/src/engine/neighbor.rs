//! Addresses that the kernel does not have: questions for their link-layer address are answered here,
//! and everybody is told once they can be served.

use super::Engine;
use super::config::EngineConfig;
use super::limit::RateLimit;
use crate::port::IfaceId;
use crate::time::{Duration, Instant};
use crate::wire::neighbor::{NeighborAnswer, NeighborRequest};
use std::net::IpAddr;

/// Answers in a second. Neighbours ask once and remember.
const ANSWERS_PER_SECOND_MAX: u32 = 1000;
/// Answers that may wait for a free frame, per interface.
const ANSWERS_MAX: usize = 256;
/// RFC 5227 §2.3: announcements, and the time between two. RFC 4861 §7.2.6 allows three, 1 s apart.
const ANNOUNCEMENTS: u32 = 2;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);

/// What is answered for on one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The interface's own link-layer address.
    pub mac: [u8; 6],
    pub addresses: Vec<IpAddr>,
}

/// What is due for it.
#[derive(Debug)]
pub(super) struct Neighbors {
    limit: RateLimit,
    /// There is something to announce, and it is this worker that does: one's are enough.
    announces: bool,
    /// Announcements that are still to come, and when the next one is.
    announcements: u32,
    announce_at: Instant,
}

impl Neighbors {
    /// Nobody is told before [`Engine::begin_announcing`].
    pub(super) fn new(now: Instant, config: &EngineConfig) -> Neighbors {
        let mut announced = config.announced.iter();
        Neighbors {
            limit: RateLimit::new(ANSWERS_PER_SECOND_MAX),
            announces: config.steering.worker == 0 && announced.any(|a| !a.addresses.is_empty()),
            announcements: 0,
            announce_at: now,
        }
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        (self.announcements > 0).then_some(self.announce_at)
    }
}

impl Engine {
    /// Answers a question for one of the addresses announced on `iface`.
    pub(super) fn on_neighbor_request(
        &mut self,
        now: Instant,
        iface: IfaceId,
        request: &NeighborRequest,
    ) {
        let announced = self.config.announced.get(usize::from(iface.0));
        let Some(announced) = announced.filter(|a| a.addresses.contains(&request.target)) else {
            self.metrics.neighbor_not_ours += 1;
            return;
        };
        let mac = announced.mac;
        if !self.neighbors.limit.take(now, &mut *self.entropy) {
            self.metrics.neighbor_rate_limited += 1;
            return;
        }
        self.answer_neighbor(iface, NeighborAnswer::to(request, mac));
    }

    /// Frames come from now on: what answers the announcements finds somebody.
    pub fn begin_announcing(&mut self, now: Instant) {
        if self.neighbors.announces {
            self.neighbors.announcements = ANNOUNCEMENTS;
            self.neighbors.announce_at = now;
        }
    }

    /// Tells everybody of the addresses announced, if it is time for that.
    pub(super) fn announce_neighbors(&mut self, now: Instant) {
        if self.neighbors.next_at().is_none_or(|at| now < at) {
            return;
        }
        self.neighbors.announcements -= 1;
        self.neighbors.announce_at = now + ANNOUNCE_INTERVAL;
        for index in 0..self.config.announced.len().min(self.transmit.len()) {
            let Announced { mac, addresses } = self.config.announced[index].clone();
            for address in addresses {
                let answer = NeighborAnswer::unsolicited(address, mac);
                self.answer_neighbor(IfaceId(index as u8), answer);
            }
        }
    }

    fn answer_neighbor(&mut self, iface: IfaceId, answer: NeighborAnswer) {
        let queue = &mut self.transmit[usize::from(iface.0)].neighbors;
        if queue.len() >= ANSWERS_MAX {
            self.metrics.neighbor_rate_limited += 1;
            return;
        }
        self.metrics.neighbor_answers += 1;
        queue.push_back(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::InterfaceConfig;
    use crate::rand::ChaChaEntropy;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// Two interfaces; 192.0.2.7 is announced on the first.
    fn engine(now: Instant, worker: u32) -> Engine {
        let interfaces = vec![InterfaceConfig { mtu: 1500 }; 2];
        let mut config = EngineConfig::new(interfaces, Vec::new());
        config.announced = vec![Announced {
            mac: MAC,
            addresses: vec!["192.0.2.7".parse().expect("an address")],
        }];
        (config.owner, config.owners) = (worker, 2);
        (config.steering.worker, config.steering.workers) = (worker, 2);
        let entropy = Box::new(ChaChaEntropy::deterministic(1));
        Engine::new(config, Vec::new(), now, entropy)
    }

    fn request(target: [u8; 4]) -> Vec<u8> {
        let mut frame = [[0xff; 6], [2; 6]].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2]);
        frame.extend([192, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        frame.extend(target);
        frame
    }

    /// The operations of the ARP packets that wait.
    fn sent(engine: &mut Engine, now: Instant, iface: u8) -> Vec<u8> {
        let mut operations = Vec::new();
        while engine.wants_transmit(IfaceId(iface)) {
            let mut frame = [0; 128];
            assert_eq!(engine.poll_transmit(now, IfaceId(iface), &mut frame), 42);
            assert_eq!(frame[6..12], MAC);
            assert_eq!(frame[28..32], [192, 0, 2, 7]);
            operations.push(frame[21]);
        }
        operations
    }

    #[test]
    fn only_what_is_announced_is_answered_and_only_there() {
        let now = Instant::ZERO;
        let mut engine = engine(now, 1);
        engine.on_frame(now, IfaceId(0), &request([192, 0, 2, 7]));
        assert_eq!(sent(&mut engine, now, 0), [2]);
        engine.on_frame(now, IfaceId(0), &request([192, 0, 2, 8]));
        engine.on_frame(now, IfaceId(1), &request([192, 0, 2, 7]));
        assert_eq!(sent(&mut engine, now, 0), []);
        assert_eq!(sent(&mut engine, now, 1), []);
        assert_eq!(engine.metrics.neighbor_not_ours, 2);
        for _ in 0..=ANSWERS_MAX {
            engine.on_frame(now, IfaceId(0), &request([192, 0, 2, 7]));
        }
        assert_eq!(sent(&mut engine, now, 0).len(), ANSWERS_MAX);
        assert_eq!(engine.metrics.neighbor_rate_limited, 1);
    }

    // RFC 5227 §2.3: two, two seconds apart.
    #[test]
    fn an_address_is_announced_twice() {
        let start = Instant::from_millis(5000);
        let mut other = engine(start, 1);
        other.begin_announcing(start);
        assert_eq!(other.next_timeout(), None, "one worker's are enough");
        let mut engine = engine(start, 0);
        engine.on_timeout(start);
        assert_eq!(sent(&mut engine, start, 0), [], "not before it is served");
        engine.begin_announcing(start);
        assert_eq!(engine.next_timeout(), Some(start));
        engine.on_timeout(start);
        assert_eq!(sent(&mut engine, start, 0), [1]);
        let second = start + Duration::from_secs(2);
        assert_eq!(engine.next_timeout(), Some(second));
        engine.on_timeout(start + Duration::from_millis(1999));
        assert_eq!(sent(&mut engine, second, 0), []);
        engine.on_timeout(second);
        assert_eq!(sent(&mut engine, second, 0), [1]);
        assert_eq!(engine.next_timeout(), None);
    }
}
