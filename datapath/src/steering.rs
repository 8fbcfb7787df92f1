//! Which worker a frame belongs to, as the engine says it: the arithmetic is that of the XDP program
//! (`mpx_ebpf`), and the map of flows is reached through a trait.

use crate::port::IfaceId;
use mpx_ebpf::FlowKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Flows whose worker neither their addresses nor, where they have any, their timestamps name: the
/// FLOWS map of the XDP program, shared by all workers of a server.
pub trait FlowMap {
    /// Says that `worker` has this flow, whoever had it before. `false`: there is no room.
    fn insert(&mut self, key: &FlowKey, worker: u32) -> bool;
    fn remove(&mut self, key: &FlowKey);
    fn lookup(&mut self, key: &FlowKey) -> Option<u32>;
}

/// A map of this process alone. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryFlowMap {
    flows: Arc<Mutex<HashMap<FlowKey, u32>>>,
    entries_max: usize,
}

impl MemoryFlowMap {
    pub fn new(entries_max: usize) -> MemoryFlowMap {
        MemoryFlowMap {
            flows: Arc::default(),
            entries_max,
        }
    }

    pub fn len(&self) -> usize {
        self.with(|flows| flows.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what `keep` does not want kept, as a map that loses entries does.
    pub fn retain(&self, mut keep: impl FnMut(&FlowKey) -> bool) {
        self.with(|flows| flows.retain(|key, _| keep(key)));
    }

    fn with<T>(&self, what: impl FnOnce(&mut HashMap<FlowKey, u32>) -> T) -> T {
        what(&mut self.flows.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl FlowMap for MemoryFlowMap {
    fn insert(&mut self, key: &FlowKey, worker: u32) -> bool {
        let entries_max = self.entries_max;
        self.with(|flows| {
            let room = flows.len() < entries_max || flows.contains_key(key);
            if room {
                flows.insert(*key, worker);
            }
            room
        })
    }

    fn remove(&mut self, key: &FlowKey) {
        self.with(|flows| flows.remove(key));
    }

    fn lookup(&mut self, key: &FlowKey) -> Option<u32> {
        self.with(|flows| flows.get(key).copied())
    }
}

/// A worker among those of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    pub worker: u32,
    pub workers: u32,
    /// Of [`mpx_ebpf::home`]; the same for all of them.
    pub hash_key: [u64; 2],
    /// The home of an initial subflow is that of the queue it arrives on: the NIC hashes.
    pub flow_hash_nic: bool,
    /// How often the map of flows is asked whose a segment is.
    pub flow_lookups_per_second_max: u32,
}

impl Default for Steering {
    /// One that is alone.
    fn default() -> Steering {
        Steering {
            worker: 0,
            workers: 1,
            hash_key: [0; 2],
            flow_hash_nic: false,
            flow_lookups_per_second_max: 100_000,
        }
    }
}

/// How a frame came to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub iface: IfaceId,
    /// The worker whose home is the queue that the frame arrived on.
    pub queue_home: u32,
    /// Another worker took it in, and has passed it on because it is this one's.
    pub forwarded: bool,
}

impl From<IfaceId> for Arrival {
    /// On a queue of the first worker, straight from the program.
    fn from(iface: IfaceId) -> Arrival {
        Arrival {
            iface,
            queue_home: 0,
            forwarded: false,
        }
    }
}

/// What is to become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has been dealt with.
    Taken,
    /// It is this worker's, which has not seen it.
    Forward(u32),
}
