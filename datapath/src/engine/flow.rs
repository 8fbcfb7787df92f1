//! The flow table: 4-tuple to subflow, keyed so that a peer cannot choose collisions.

use crate::rand::Entropy;
use crate::wire::frame::Segment;
use hashbrown::HashMap;
use siphasher::sip::SipHasher13;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};

/// Both ends of a flow; IPv4 addresses in their IPv6-mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    local: u128,
    remote: u128,
    ports: u32,
}

impl FlowKey {
    pub(super) fn new(local: SocketAddr, remote: SocketAddr) -> FlowKey {
        FlowKey {
            local: address_bits(local.ip()),
            remote: address_bits(remote.ip()),
            ports: u32::from(local.port()) << 16 | u32::from(remote.port()),
        }
    }

    /// As the XDP program has it.
    pub(super) fn octets(&self) -> mpx_ebpf::FlowKey {
        let [l0, l1, r0, r1] = self.ports.to_be_bytes();
        let (local, remote) = (self.local.to_be_bytes(), self.remote.to_be_bytes());
        let [local_port, remote_port] = [[l0, l1], [r0, r1]].map(u16::from_be_bytes);
        mpx_ebpf::flow_key(remote, remote_port, local, local_port)
    }

    /// Whether this is our end.
    pub(super) fn is_to(&self, local: SocketAddr) -> bool {
        self.local == address_bits(local.ip()) && self.ports >> 16 == u32::from(local.port())
    }

    /// The flow that a received segment belongs to.
    pub(super) fn of_segment(segment: &Segment<'_>) -> FlowKey {
        FlowKey {
            local: address_bits(segment.dst),
            remote: address_bits(segment.src),
            ports: u32::from(segment.tcp.dst_port) << 16 | u32::from(segment.tcp.src_port),
        }
    }
}

fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowEntry {
    pub(super) connection: u32,
    pub(super) subflow: u32,
}

pub(super) struct FlowTable(HashMap<FlowKey, FlowEntry, SipState>);

impl FlowTable {
    pub(super) fn new(entropy: &mut dyn Entropy) -> FlowTable {
        FlowTable(HashMap::with_hasher(SipState::new(entropy)))
    }

    pub(super) fn lookup(&self, key: &FlowKey) -> Option<FlowEntry> {
        self.0.get(key).copied()
    }

    /// What stands for a flow where there is no room for its key.
    pub(super) fn fingerprint(&self, key: &FlowKey) -> u64 {
        self.0.hasher().hash_one(key)
    }

    pub(super) fn insert(&mut self, key: FlowKey, entry: FlowEntry) {
        self.0.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &FlowKey) {
        self.0.remove(key);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A hash that nobody outside can foresee.
#[derive(Clone)]
pub(super) struct SipState(u64, u64);

impl SipState {
    pub(super) fn new(entropy: &mut dyn Entropy) -> SipState {
        SipState(entropy.next_u64(), entropy.next_u64())
    }
}

impl BuildHasher for SipState {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}
