//! From where clients come, for the XDP program: told once in a while, as telling is a system call.

use super::Engine;
use super::flow::SipState;
use crate::rand::Entropy;
use crate::steering::Sources;
use crate::time::{Duration, Instant};
use mpx_ebpf::address_octets;
use mpx_ebpf::crowd::source_key;
use std::hash::BuildHasher;
use std::net::IpAddr;

/// Well before the program ceases to believe in a source.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// Sources that share a place are told anew whenever they take turns.
const PLACES: usize = 4096;

pub(super) struct ProvenSources {
    sources: Box<dyn Sources>,
    /// A hash of who was told of last, and when.
    told: Box<[(u64, Instant)]>,
    hasher: SipState,
}

impl ProvenSources {
    pub(super) fn new(entropy: &mut dyn Entropy) -> ProvenSources {
        ProvenSources {
            sources: Box::new(()),
            told: vec![(0, Instant::ZERO); PLACES].into_boxed_slice(),
            hasher: SipState::new(entropy),
        }
    }

    /// A client at `source` has completed a handshake.
    pub(super) fn prove(&mut self, now: Instant, source: IpAddr) {
        let hash = self.hasher.hash_one(source_key(address_octets(source)));
        let place = &mut self.told[hash as usize % PLACES];
        if place.0 != hash || now.since(place.1) >= TOLD_AGAIN {
            *place = (hash, now);
            self.sources.prove(now, source);
        }
    }
}

impl Engine {
    /// Who is told from where clients come: nobody, unless this is said.
    pub fn set_sources(&mut self, sources: Box<dyn Sources>) {
        self.proven_sources.sources = sources;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rand::ChaChaEntropy;
    use std::sync::mpsc::{Sender, channel};

    impl Sources for Sender<IpAddr> {
        fn prove(&mut self, _now: Instant, source: IpAddr) {
            let _ = self.send(source);
        }
    }

    #[test]
    fn a_source_is_told_of_once_a_minute() {
        let mut proven = ProvenSources::new(&mut ChaChaEntropy::deterministic(1));
        let (sender, told) = channel();
        proven.sources = Box::new(sender);
        let [one, other] = [1, 2].map(|host| IpAddr::from([192, 0, 2, host]));
        for (ms, source, news) in [
            (1_000, one, true),
            (2_000, one, false),
            (2_000, other, true),
            (60_999, one, false),
            (61_000, one, true),
            (61_000, other, false),
        ] {
            proven.prove(Instant::from_millis(ms), source);
            assert_eq!(told.try_recv().ok(), news.then_some(source), "{ms}");
        }
        // Hosts of an IPv6 network are one.
        for (host, news) in [(1, true), (2, false)] {
            let source = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]);
            proven.prove(Instant::from_millis(61_000), source);
            assert_eq!(told.try_recv().ok(), news.then_some(source));
        }
    }
}
