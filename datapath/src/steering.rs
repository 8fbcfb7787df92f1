//! Which worker a frame belongs to, as the engine says it: the arithmetic is that of the XDP program
//! (`mpx_ebpf`), and the map of flows is reached through a trait.

use crate::port::IfaceId;
use crate::time::Instant;
use mpx_ebpf::{FlowKey, FlowOwner};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Flows whose worker neither their addresses nor, where they have any, their timestamps name: the
/// FLOWS map of the XDP program, shared by all workers of a server.
pub trait FlowMap {
    /// Says whose this flow is. A flow whose client has proved itself is left to the worker that has
    /// it; one that is pending gives way.
    ///
    /// # Errors
    /// Why it is not said.
    fn insert(&mut self, key: &FlowKey, owner: FlowOwner) -> Result<(), FlowRefused>;
    fn remove(&mut self, key: &FlowKey);
    fn lookup(&mut self, key: &FlowKey) -> Option<FlowOwner>;
}

/// Why a map of flows does not take one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowRefused {
    Full,
    /// Another worker has it.
    Taken,
}

/// Whether a map of flows lets `new` take the place of what it has for that flow.
pub fn gives_way(old: FlowOwner, new: FlowOwner) -> bool {
    old.pending.is_some() || old.worker == new.worker
}

/// From where clients come: in a crowd of SYNs the XDP program lets theirs through.
pub trait Sources {
    /// A client at this address has completed a handshake: it is there.
    fn prove(&mut self, now: Instant, source: IpAddr);
}

/// Nobody lets anything through.
impl Sources for () {
    fn prove(&mut self, _now: Instant, _source: IpAddr) {}
}

/// A map of this process alone. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryFlowMap {
    flows: Arc<Mutex<HashMap<FlowKey, FlowOwner>>>,
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

    fn with<T>(&self, what: impl FnOnce(&mut HashMap<FlowKey, FlowOwner>) -> T) -> T {
        what(&mut self.flows.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl FlowMap for MemoryFlowMap {
    fn insert(&mut self, key: &FlowKey, owner: FlowOwner) -> Result<(), FlowRefused> {
        let entries_max = self.entries_max;
        self.with(|flows| match flows.get(key) {
            Some(&old) if !gives_way(old, owner) => Err(FlowRefused::Taken),
            None if flows.len() >= entries_max => Err(FlowRefused::Full),
            _ => {
                flows.insert(*key, owner);
                Ok(())
            }
        })
    }

    fn remove(&mut self, key: &FlowKey) {
        self.with(|flows| flows.remove(key));
    }

    fn lookup(&mut self, key: &FlowKey) -> Option<FlowOwner> {
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
