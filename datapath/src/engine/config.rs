//! What an engine is told at start.

use super::neighbor::Announced;
use super::policy::AddressPolicy;
use crate::crypto::Secrets;
use crate::mptcp::Versions;
use crate::mptcp::connection::Buffers;
use crate::steering::Steering;
use crate::tcp::congestion::Algorithm;
use crate::tcp::fast_open::FastOpen;
use crate::time::Duration;
use std::net::SocketAddr;

#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// In the order of [`crate::port::IfaceId`].
    pub interfaces: Vec<InterfaceConfig>,
    pub services: Vec<ServiceConfig>,
    /// What is announced on each interface, in their order; none by default.
    pub announced: Vec<Announced>,
    /// Somebody answers [`super::Engine::poll_route_question`]. Without that, subflows that we open
    /// leave where the address that they go to was announced from.
    pub asks_routes: bool,
    /// Our number among `owners`: `server_id * workers + worker`. Tokens and TSvals carry it.
    pub owner: u32,
    /// Servers times workers.
    pub owners: u32,
    /// Low bits of TSval that hold the owner.
    pub owner_bits: u32,
    pub steering: Steering,
    /// The same for all workers of a server; `None`: drawn at the start.
    pub secrets: Option<Secrets>,
    /// Connections, half-open ones included.
    pub connections_max: usize,
    /// Initial subflows in SYN-RECEIVED.
    pub half_open_max: usize,
    /// With so many of those a SYN is answered with a cookie and nothing is kept of it.
    pub syn_cookies_from: usize,
    /// Connections of one service that are open to its app before their handshake is over
    /// (RFC 7413 §4.2, PendingFastOpenRequests).
    pub fast_open_pending_max: usize,
    /// What Fast Open cookies are made with; all workers of a server share it. `None`: the engine
    /// draws one.
    pub fast_open_secret: Option<[u8; 16]>,
    /// Keys drawn ahead in idle time.
    pub keys_ahead_max: usize,
    /// Connections without a subflow: the one that has been so for longest makes room for another.
    pub stranded_max: usize,
    pub subflows_per_connection_max: usize,
    /// Joins of one source whose third ACK has not come, and joins of ours to one destination whose fourth
    /// has not.
    pub pending_joins_per_source_max: u32,
    /// Of one connection.
    pub buffers: Buffers,
    /// What the buffers of all connections of this worker may hold, see [`crate::memory`].
    pub memory_max_bytes: usize,
    pub time_wait: Duration,
    pub time_wait_max: usize,
    /// Retransmissions of one segment before its subflow is given up.
    pub retries_max: u32,
    /// The same of a SYN, a SYN/ACK or the third ACK of a join.
    pub handshake_retries_max: u32,
    /// Challenge ACKs of this worker (RFC 5961 §7), all flows together.
    pub challenge_acks_per_second_max: u32,
    /// RSTs of this worker for segments of no known flow.
    pub resets_per_second_max: u32,
}

impl EngineConfig {
    /// The defaults for these interfaces and services: one server, one worker.
    pub fn new(interfaces: Vec<InterfaceConfig>, services: Vec<ServiceConfig>) -> EngineConfig {
        EngineConfig {
            interfaces,
            services,
            announced: Vec::new(),
            asks_routes: false,
            owner: 0,
            owners: 1,
            owner_bits: 8,
            steering: Steering::default(),
            secrets: None,
            connections_max: 100_000,
            half_open_max: 16_384,
            syn_cookies_from: 4_096,
            fast_open_pending_max: 1_024,
            fast_open_secret: None,
            keys_ahead_max: 1_024,
            stranded_max: 16_384,
            subflows_per_connection_max: 8,
            pending_joins_per_source_max: 1_024,
            buffers: Buffers::default(),
            memory_max_bytes: 1 << 30,
            time_wait: Duration::from_secs(60),
            time_wait_max: 65_536,
            retries_max: 10,
            handshake_retries_max: 5,
            challenge_acks_per_second_max: 1_000,
            resets_per_second_max: 10_000,
        }
    }
}

impl Default for Buffers {
    /// A window that a peer does not fill in its first three round trips (RFC 6928: it begins with
    /// ten segments), and one that fills 1 Gbit/s over 60 ms.
    fn default() -> Buffers {
        Buffers {
            receive_initial_bytes: 128 << 10,
            receive_max_bytes: 8 << 20,
            send_initial_bytes: 128 << 10,
            send_max_bytes: 8 << 20,
        }
    }
}

#[derive(Clone, Debug)]
pub struct InterfaceConfig {
    /// Octets of an IP packet.
    pub mtu: usize,
}

#[derive(Clone, Debug)]
pub struct ServiceConfig {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    /// Of Multipath TCP; the SYN of a client asks for one of them.
    pub versions: Versions,
    /// Ask for DSS checksums (RFC 8684 §3.1: A SHOULD be 1). They are used if either side asks.
    pub checksum: bool,
    pub joins: JoinPolicy,
    pub addresses: AddressPolicy,
    pub patience: Patience,
    pub closing: Closing,
    pub congestion: Algorithm,
    /// Agree to explicit congestion notification where the client asks for it (RFC 3168).
    pub ecn: bool,
    pub fast_open: FastOpen,
}

/// How long a peer that does not answer is borne with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Silence after which a subflow is asked whether it is still there (RFC 9293 §3.8.4); `None`:
    /// never.
    pub keepalive: Option<Duration>,
    /// Between such probes that are not answered, and how many there are before it is given up.
    pub keepalive_interval: Duration,
    pub keepalive_probes: u32,
    /// Probes of a closed window (RFC 9293 §3.8.6.1): the longest time between two, and how many in
    /// a row may stay unanswered.
    pub persist_interval_max: Duration,
    pub persist_probes: u32,
    /// How long a subflow may have something to be acknowledged, or a closed window to be probed, and
    /// hear nothing of it (RFC 9293 §3.8.3 R2, RFC 5482). `None`: the number of retransmissions and
    /// of probes decides.
    pub user_timeout: Option<Duration>,
    /// How long a connection over Multipath TCP that has no subflow left may be joined (RFC 8684
    /// §3.3.3); zero: not at all.
    pub without_subflow: Duration,
}

impl Patience {
    /// The longest time between two probes of a closed window: a user timeout is not to be a matter
    /// of one lost probe.
    pub fn persist_ceiling(&self) -> Duration {
        let bound = self.user_timeout.map_or(Duration::MAX, |t| t / 4);
        self.persist_interval_max.min(bound)
    }
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            // RFC 9293 §3.8.4: no less than two hours unless told otherwise.
            keepalive: Some(Duration::from_secs(7200)),
            keepalive_interval: Duration::from_secs(75),
            keepalive_probes: 9,
            persist_interval_max: Duration::from_secs(60),
            persist_probes: 10,
            user_timeout: None,
            // As long as Linux waits (net.mptcp.close_timeout).
            without_subflow: Duration::from_secs(60),
        }
    }
}

/// How the subflows of a connection end once both of its streams have (RFC 8684 §3.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Our FINs wait for the peer's, so that TIME-WAIT is the peer's.
    pub passive: bool,
    /// So long at most where the peer ended its stream first,
    pub hold_peer_first: Duration,
    /// and so long where we did. Where both did at once nobody waits.
    pub hold_we_first: Duration,
    /// What the peer has for its own after our FIN is due; then comes a RST.
    pub fin_timeout: Duration,
}

impl Default for Closing {
    fn default() -> Closing {
        Closing {
            passive: true,
            // Its FIN is due: two losses of it at a timeout of a second.
            hold_peer_first: Duration::from_secs(5),
            // It may wait for ours with as good a reason.
            hold_we_first: Duration::from_secs(2),
            fin_timeout: Duration::from_secs(60),
        }
    }
}

/// To which ports of our addresses a subflow may be joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinPolicy {
    /// RFC 8684 §3.2: the token alone says which connection is meant.
    AnyPort,
    /// Only where a service listens.
    ServicePorts,
    /// There, and at these ports of every address where one does.
    Ports(Vec<u16>),
}

impl JoinPolicy {
    /// Whether a join to `local` is taken because a service listens on `listen`.
    pub fn takes(&self, local: SocketAddr, listen: SocketAddr) -> bool {
        let takes_port = match self {
            JoinPolicy::AnyPort => true,
            JoinPolicy::ServicePorts => false,
            JoinPolicy::Ports(ports) => ports.contains(&local.port()),
        };
        local == listen || takes_port && local.ip() == listen.ip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8684 §3.2: a join names its connection by the token, whatever its port.
    #[test]
    fn joins_are_taken_by_policy() {
        let takes = |policy: &JoinPolicy, local: &str| {
            let address = |text: &str| text.parse().expect("an address");
            policy.takes(address(local), address("10.0.0.1:80"))
        };
        let ports = JoinPolicy::Ports(vec![8080]);
        for (local, expected) in [
            ("10.0.0.1:80", [true, true, true]),
            ("10.0.0.1:8080", [true, false, true]),
            ("10.0.0.1:8081", [true, false, false]),
            ("10.0.0.2:80", [false, false, false]),
            ("10.0.0.2:8080", [false, false, false]),
        ] {
            let policies = [&JoinPolicy::AnyPort, &JoinPolicy::ServicePorts, &ports];
            let found = policies.map(|policy| takes(policy, local));
            assert_eq!(found, expected, "{local}");
        }
    }
}
