//! Whose a segment is that belongs to no flow of this worker, and how the others find the flows that
//! it has: the safety net below the XDP program, and all there is where that does not steer.
//!
//! Whatever comes to the wrong worker is passed on once, to the worker that this names; only the one
//! that is named answers with a RST. A map of flows that is out of date costs speed, or a subflow
//! whose client does no timestamps, but no connection.

use super::Engine;
use super::flow::FlowKey;
use crate::mptcp::Subflow;
use crate::mptcp::connection::TimeWaitState;
use crate::seq::TcpSeq;
use crate::steering::{Arrival, FlowMap, FlowRefused, MemoryFlowMap, Verdict};
use crate::time::Instant;
use crate::wire::frame::Segment;
use crate::wire::icmp::PacketTooBig;
use crate::wire::mptcp::MpJoin;
use crate::wire::tcp::TcpFlags;
use mpx_ebpf::{Claim, FlowOwner, Numbers};
use std::collections::{HashMap, VecDeque};

/// What may wait for the other workers.
const MESSAGES_MAX: usize = 256;
/// Of the map that an engine has until it is given another.
const OWN_FLOWS_MAX: usize = 65_536;

/// What one worker tells all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// It quotes a flow that the sender does not have.
    PacketTooBig(PacketTooBig),
}

/// What an engine knows of the other workers.
pub(super) struct Mesh {
    config: mpx_ebpf::Config,
    worker: u32,
    flow_map: Box<dyn FlowMap>,
    /// Flows of ours that are in that map, by what stands for them in TIME-WAIT.
    mapped: HashMap<u64, FlowKey>,
    /// Those of them that went to TIME-WAIT, the first one first, and some that are gone since.
    over: VecDeque<u64>,
    /// Where the frame at hand came in; `None` if it was passed on.
    queue_home: Option<u32>,
    messages: VecDeque<Message>,
}

/// All that is taken of a flow: what acknowledges one number, and a RST of another.
pub(super) fn claim(acknowledges: TcpSeq, resets: TcpSeq) -> Claim {
    Claim {
        acknowledges: acknowledges.0,
        resets: resets.0,
    }
}

/// What a segment says of its flow, as the XDP program sees it.
fn numbers(segment: &Segment<'_>) -> Numbers {
    let header = &segment.tcp;
    if header.flags.contains(TcpFlags::ACK) {
        Numbers::Ack(header.ack.0)
    } else if header.flags.contains(TcpFlags::RST) {
        Numbers::Reset(header.seq.0)
    } else {
        Numbers::Neither
    }
}

/// Whether a segment is of a subflow that is being joined, or of whoever else has these addresses.
pub(super) fn is_claimed(subflow: &Subflow, segment: &Segment<'_>) -> bool {
    let owner = FlowOwner {
        worker: 0,
        pending: Some(claim(subflow.tx.iss + 1, subflow.rx.rcv_nxt)),
    };
    owner.of_segment(numbers(segment)).is_some()
}

/// Whose a segment is.
enum Owner {
    Worker(u32),
    /// There was no asking, and the answer could do harm.
    Unknown,
}

impl Mesh {
    pub(super) fn new(config: &super::EngineConfig) -> Mesh {
        let steering = config.steering;
        let flags = if steering.flow_hash_nic {
            mpx_ebpf::FLAG_FLOW_HASH_NIC
        } else {
            0
        };
        Mesh {
            config: mpx_ebpf::Config {
                workers: steering.workers,
                owner_bits: config.owner_bits,
                owners: config.owners,
                first_owner: config.owner - steering.worker,
                flags,
                hash_key: steering.hash_key,
                syns_per_window: u32::MAX,
                strays_per_window: u32::MAX,
            },
            worker: steering.worker,
            flow_map: Box::new(MemoryFlowMap::new(OWN_FLOWS_MAX)),
            mapped: HashMap::new(),
            over: VecDeque::new(),
            queue_home: None,
            messages: VecDeque::new(),
        }
    }

    pub(super) fn on_arrival(&mut self, arrival: Arrival) {
        self.queue_home = (!arrival.forwarded).then_some(arrival.queue_home);
    }

    pub(super) fn mapped(&self) -> usize {
        self.mapped.len()
    }

    /// `most`: of those that are in TIME-WAIT.
    pub(super) fn on_time_wait(&mut self, flow: u64, most: usize) {
        if self.mapped.contains_key(&flow) {
            if self.over.len() >= most {
                self.over.pop_front();
            }
            self.over.push_back(flow);
        }
    }

    /// The worker of an initial subflow, as far as it can be told from the frame at hand.
    fn home(&self, key: &FlowKey) -> Option<u32> {
        if self.config.workers == 1 {
            Some(0)
        } else if self.config.has(mpx_ebpf::FLAG_FLOW_HASH_NIC) {
            self.queue_home
        } else {
            let hash_key = &self.config.hash_key;
            Some(mpx_ebpf::home(&key.octets(), hash_key, self.config.workers))
        }
    }
}

impl Engine {
    /// In place of a map of its own: the one that the XDP program reads.
    pub fn set_flow_map(&mut self, flow_map: Box<dyn FlowMap>) {
        self.mesh.flow_map = flow_map;
    }

    /// For all other workers, one at a time.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.mesh.messages.pop_front()
    }

    /// What another worker tells.
    pub fn on_message(&mut self, now: Instant, message: &Message) {
        match message {
            Message::PacketTooBig(error) => {
                self.quench(now, error);
            }
        }
    }

    /// An ICMP error about no flow of ours. Which worker has the flow it may not say: the NIC alone
    /// knows the home of an initial subflow where it hashes.
    pub(super) fn tell_all(&mut self, message: Message) {
        if self.mesh.config.workers == 1 {
            return;
        }
        if self.mesh.messages.len() >= MESSAGES_MAX {
            self.metrics.mesh_drops += 1;
            return;
        }
        self.mesh.messages.push_back(message);
    }

    /// Lets segments of a flow find this worker, before the first of ours leaves: all of them, or, where
    /// its client has proved nothing yet, those of a claim. `false`: the flow must not come to be.
    // RFC 8684 §5: whoever has a token may forge the addresses of a join. If that were enough to have
    // all segments of these addresses, he could take a flow of the kernel's, or of another worker.
    pub(super) fn steer_flow(&mut self, key: FlowKey, pending: Option<Claim>) -> bool {
        let at_home = self.mesh.home(&key) == Some(self.mesh.worker);
        let service = self.services.iter();
        let mut listens = service.flat_map(|s| &s.config.listen);
        if at_home && listens.any(|l| key.is_to(*l)) {
            return true;
        }
        let owner = FlowOwner {
            worker: self.mesh.worker,
            pending,
        };
        let octets = key.octets();
        while let Err(refused) = self.mesh.flow_map.insert(&octets, owner) {
            if refused == FlowRefused::Taken {
                self.metrics.flow_map_taken += 1;
                return false;
            }
            if !self.give_up_steered() {
                self.metrics.flow_map_full += 1;
                return false;
            }
        }
        self.mesh.mapped.insert(self.flows.fingerprint(&key), key);
        true
    }

    /// The client of a flow that was pending has proved itself: all its segments are ours.
    pub(super) fn confirm_flow(&mut self, key: &FlowKey) {
        self.steer_again(key, None);
    }

    /// A flow is in TIME-WAIT: what still comes of it acknowledges our FIN. Its addresses are free for
    /// another one, whoever has that.
    pub(super) fn release_flow(&mut self, key: &FlowKey, state: &TimeWaitState) {
        self.steer_again(key, Some(claim(state.snd_nxt, state.rcv_nxt)));
    }

    fn steer_again(&mut self, key: &FlowKey, pending: Option<Claim>) {
        let mesh = &mut self.mesh;
        if mesh.mapped.contains_key(&self.flows.fingerprint(key)) {
            let owner = FlowOwner {
                worker: mesh.worker,
                pending,
            };
            // Where its entry was lost, and there is no room or another worker has one, its timestamps
            // and the other workers are left.
            let _ = mesh.flow_map.insert(&key.octets(), owner);
        }
    }

    /// Room for a flow in the map: of those in TIME-WAIT the one that has been so for longest is
    /// steered no more. Only late segments of it would be.
    fn give_up_steered(&mut self) -> bool {
        while let Some(flow) = self.mesh.over.pop_front() {
            if self.mesh.mapped.contains_key(&flow) && self.time_wait.find(flow).is_some() {
                self.metrics.flow_map_evicted += 1;
                self.forget_steered(flow);
                return true;
            }
        }
        false
    }

    /// [`Engine::steer_flow`] for a flow that begins with a SYN of ours, whose number is `iss`. Where the
    /// NIC names homes, nothing has come yet that tells this one's.
    pub(super) fn steer_own_flow(&mut self, key: FlowKey, iss: TcpSeq) -> bool {
        self.mesh.queue_home = None;
        // A RST in SYN-SENT acknowledges our SYN.
        self.steer_flow(key, Some(claim(iss + 1, iss)))
    }

    /// Whether nobody has this flow, which is to begin with a segment of ours.
    pub(super) fn is_free_for_us(&mut self, key: &FlowKey) -> bool {
        let flow = self.flows.fingerprint(key);
        if self.flows.lookup(key).is_some() || self.time_wait.find(flow).is_some() {
            return false;
        }
        let mesh = &mut self.mesh;
        mesh.queue_home = None;
        // The home of a flow to a service has it without an entry in the map.
        let mut listens = self.services.iter().flat_map(|s| &s.config.listen);
        let at_other_home = mesh.home(key).is_none_or(|home| home != mesh.worker);
        let may_be_there = at_other_home && listens.any(|l| key.is_to(*l));
        let mapped = mesh.flow_map.lookup(&key.octets());
        !may_be_there && mapped.is_none_or(|entry| entry.worker == mesh.worker)
    }

    /// A flow is over, without TIME-WAIT.
    pub(super) fn forget_flow(&mut self, key: &FlowKey) {
        self.flows.remove(key);
        self.forget_steered(self.flows.fingerprint(key));
    }

    /// A flow is over, TIME-WAIT and all; `flow` is its fingerprint.
    pub(super) fn forget_steered(&mut self, flow: u64) {
        let mesh = &mut self.mesh;
        let Some(key) = mesh.mapped.remove(&flow) else {
            return;
        };
        let gone = |flow: &mut u64| !mesh.mapped.contains_key(flow);
        while mesh.over.pop_front_if(gone).is_some() {}
        // A client may have used the addresses again for a connection of another worker.
        let octets = key.octets();
        let entry = mesh.flow_map.lookup(&octets);
        if entry.is_some_and(|entry| entry.worker == mesh.worker) {
            mesh.flow_map.remove(&octets);
        }
    }

    /// What becomes of a segment of no flow here; `None`: it is for us to answer.
    pub(super) fn pass_on(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        key: &FlowKey,
        arrival: Arrival,
    ) -> Option<Verdict> {
        if self.mesh.config.workers == 1 {
            return None;
        }
        if arrival.forwarded {
            // Once and not twice: whoever passed it on named us.
            let opens = segment.tcp.flags.contains(TcpFlags::SYN);
            self.metrics.wrong_worker += u64::from(!opens);
            return None;
        }
        match self.owner_of_segment(now, segment, key) {
            Owner::Worker(worker) if worker == self.mesh.worker => None,
            Owner::Worker(worker) => Some(Verdict::Forward(worker)),
            Owner::Unknown => {
                // No flow of another worker acknowledges a cookie of this one.
                let at_home = self.mesh.home(key) == Some(self.mesh.worker);
                if !(at_home && self.on_cookie(now, arrival.iface, segment, *key)) {
                    self.metrics.flow_lookups_skipped += 1;
                }
                Some(Verdict::Taken)
            }
        }
    }

    /// In the order of the XDP program: the token of a join, the timestamp echoed, the map of flows,
    /// the home.
    fn owner_of_segment(&mut self, now: Instant, segment: &Segment<'_>, key: &FlowKey) -> Owner {
        let flags = segment.tcp.flags;
        let options = &segment.tcp.options;
        let mesh = &self.mesh;
        let opens = flags.contains(TcpFlags::SYN) && !flags.contains(TcpFlags::ACK);
        let named = if let (true, Some(MpJoin::Syn { token, .. })) = (opens, options.mptcp.join) {
            mesh.config.worker_of_token(token)
        } else if flags.contains(TcpFlags::ACK)
            && !flags.contains(TcpFlags::SYN)
            && !flags.contains(TcpFlags::RST)
            && let Some(timestamps) = options.timestamps
        {
            mesh.config.worker_of_timestamp(timestamps.tsecr)
        } else {
            None
        };
        if let Some(worker) = named {
            return Owner::Worker(worker);
        }
        // A frame that was passed on is not asked for its home.
        let home = mesh.home(key).unwrap_or(mesh.worker);
        if opens && self.wants_cookies() {
            // A crowd of SYNs is not to use up the lookups that other segments need.
            return Owner::Worker(home);
        }
        if self.flow_lookup_limit.take(now, &mut *self.entropy) {
            self.metrics.flow_lookups += 1;
            let entry = self.mesh.flow_map.lookup(&key.octets());
            let mapped = entry.and_then(|entry| entry.of_segment(numbers(segment)));
            if let Some(worker) = mapped.filter(|&worker| worker < self.mesh.config.workers) {
                return Owner::Worker(worker);
            }
        } else if !opens {
            // At home it might be answered with a RST, and end a flow that another worker has.
            return Owner::Unknown;
        }
        Owner::Worker(home)
    }
}
