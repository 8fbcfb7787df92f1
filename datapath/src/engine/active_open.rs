//! Subflows that we open (RFC 8684 §3.2), to addresses that a client announced (§3.4.1): when, from
//! where, and by which way their first frame leaves.
//!
//! The way is known where the client already has a subflow from that address. Otherwise whoever runs
//! the engine is asked for it, and has a while to answer; without an answer it is the way that the
//! announcement came by, which is right for a client behind a router.

use super::flow::{FlowEntry, FlowKey};
use super::limit::{RateLimit, SourceLimit};
use super::listen::Ends;
use super::{ConnId, Engine};
use crate::mptcp::Handshake;
use crate::mptcp::address::{FirstHop, RemoteAddress};
use crate::rand::Entropy;
use crate::tcp::State;
use crate::tcp::ecn::Ecn;
use crate::tcp::offer::Offer;
use crate::time::{Duration, Instant};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// Subflows that wait for an answer, of all connections of a worker.
const WAITING_MAX: usize = 256;
/// How long: as long as a neighbour that is there may take to say so.
const WAIT: Duration = Duration::from_secs(3);
/// Attempts of a worker in a second, each of several SYNs. Clients choose whom they are made to.
const ATTEMPTS_PER_SECOND_MAX: u32 = 100;

/// Where it is not the port of the first subflow: above those that Linux gives to its own sockets by
/// default. So many are tried.
const PORTS_FROM: u16 = 61_000;
const PORTS: u32 = (u16::MAX - PORTS_FROM) as u32 + 1;
const PORTS_TRIED: u32 = 8;

/// How an address is reached, and from which of ours, if that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub hop: FirstHop,
    pub source: Option<IpAddr>,
}

/// A subflow that is to be opened.
struct Waiting {
    connection: ConnId,
    remote: RemoteAddress,
    until: Instant,
}

/// What waits for its route.
pub(super) struct ActiveOpens {
    /// The first one first.
    waiting: VecDeque<Waiting>,
    questions: VecDeque<IpAddr>,
    limit: RateLimit,
    /// What nobody has answered, of each destination.
    pending: SourceLimit,
}

impl ActiveOpens {
    /// So many may be pending to one destination.
    pub(super) fn new(pending_max: u32, entropy: &mut dyn Entropy) -> ActiveOpens {
        ActiveOpens {
            waiting: VecDeque::new(),
            questions: VecDeque::new(),
            limit: RateLimit::new(ATTEMPTS_PER_SECOND_MAX),
            pending: SourceLimit::new(pending_max, entropy),
        }
    }

    /// One to there is not pending any more.
    pub(super) fn give_back(&mut self, to: IpAddr) {
        self.pending.give_back(to);
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.until)
    }

    fn waiting_for(&self, connection: ConnId) -> usize {
        let of = |waiting: &&Waiting| waiting.connection == connection;
        self.waiting.iter().filter(of).count()
    }

    fn wait(&mut self, now: Instant, connection: ConnId, remote: RemoteAddress) {
        let ip = remote.address.ip();
        if self.questions.len() < WAITING_MAX && !self.questions.contains(&ip) {
            self.questions.push_back(ip);
        }
        self.waiting.push_back(Waiting {
            connection,
            remote,
            until: now + WAIT,
        });
    }
}

impl Engine {
    /// An address that somebody is to say the way to, by [`Engine::on_route`].
    pub fn poll_route_question(&mut self) -> Option<IpAddr> {
        self.active_opens.questions.pop_front()
    }

    /// The way to an address, or that none is known.
    pub fn on_route(&mut self, now: Instant, to: IpAddr, route: Option<Route>) {
        let known = |route: &Route| usize::from(route.hop.iface.0) < self.transmit.len();
        let route = route.filter(known);
        let (answered, waiting) = std::mem::take(&mut self.active_opens.waiting)
            .into_iter()
            .partition(|waiting| waiting.remote.address.ip() == to);
        self.active_opens.waiting = waiting;
        self.open_all(now, answered, route);
    }

    /// Nobody said a way in time.
    pub(super) fn open_without_route(&mut self, now: Instant) {
        let waiting = &mut self.active_opens.waiting;
        let due = waiting.partition_point(|waiting| waiting.until <= now);
        if due > 0 {
            let due = waiting.drain(..due).collect();
            self.open_all(now, due, None);
        }
    }

    fn open_all(&mut self, now: Instant, all: VecDeque<Waiting>, route: Option<Route>) {
        for Waiting {
            connection: id,
            remote,
            ..
        } in all
        {
            let index = id.index as usize;
            let connection = self.connections.get(index);
            if connection.is_some_and(|connection| connection.id == id) {
                let route = route.unwrap_or(told(&remote));
                self.open_subflow(index, now, remote, route);
                self.settle(index, now, &[]);
            }
        }
    }

    /// After anything that may have brought a connection to it: opens what it is to open.
    pub(super) fn open_subflows(&mut self, index: usize, now: Instant) {
        loop {
            let connection = &mut self.connections[index];
            if !connection.addresses.has_untried() || self.draining {
                return;
            }
            let waiting = self.active_opens.waiting_for(connection.id);
            let Some(remote) = connection.next_to_open(waiting) else {
                return;
            };
            let ip = remote.address.ip();
            let mut subflows = connection.subflows.iter();
            let known = subflows.find(|(_, s)| s.remote.ip() == ip && s.is_open());
            let known = known.map(|(_, s)| Route {
                hop: FirstHop {
                    iface: s.iface,
                    link: s.link,
                },
                source: Some(s.local.ip()),
            });
            let id = connection.id;
            let full = self.active_opens.waiting.len() >= WAITING_MAX;
            let allowed = self.active_opens.limit.take(now, &mut *self.entropy);
            match known {
                _ if !allowed => self.metrics.join_attempts_limited += 1,
                Some(route) => self.open_subflow(index, now, remote, route),
                None if !self.config.asks_routes => {
                    self.open_subflow(index, now, remote, told(&remote));
                }
                None if full => self.metrics.join_attempts_limited += 1,
                // The question alone has the kernel look for a neighbour.
                None if self.source_for(index, &remote, None).is_none() => {
                    self.metrics.join_attempts_refused += 1;
                }
                None => self.active_opens.wait(now, id, remote),
            }
        }
    }

    /// Enters a subflow in SYN-SENT, unless something speaks against it.
    fn open_subflow(&mut self, index: usize, now: Instant, remote: RemoteAddress, route: Route) {
        // It may have waited.
        let connection = &mut self.connections[index];
        if !connection.addresses.is_known(&remote) {
            // Whoever takes back what he has asked for may do so again and again.
            connection.addresses.on_unreachable();
        }
        if self.draining || !connection.still_opens(&remote) {
            return;
        }
        let source = self.source_for(index, &remote, route.source);
        let room = self.has_memory_for_subflow(index);
        let Some((local, backup)) = source.filter(|_| room) else {
            self.metrics.join_attempts_refused += 1;
            return;
        };
        if !self.active_opens.pending.take(now, remote.address.ip()) {
            self.metrics.join_attempts_limited += 1;
            return;
        }
        let connection = &mut self.connections[index];
        let initial = connection.local_addr.ip();
        let local_id = connection.addresses.local_id(local, initial);
        let service = connection.service;
        // As the client has it elsewhere: its path may not bear the question.
        let asks_ecn = self.services[service].config.ecn
            && connection.subflows.iter().any(|(_, s)| s.ecn.is_agreed());
        let key = FlowKey::new(local, remote.address);
        let iss = self.secrets.isn(now, local, remote.address);
        let Some(local_id) = local_id.filter(|_| self.steer_own_flow(key, iss)) else {
            self.active_opens.give_back(remote.address.ip());
            self.metrics.join_attempts_refused += 1;
            return;
        };
        let handshake = Handshake::Join {
            local_nonce: self.entropy.next_u32(),
            remote_nonce: 0,
        };
        let ends = Ends {
            local,
            remote: remote.address,
            hop: route.hop,
        };
        let local_mss = self.local_mss(route.hop.iface, local.ip());
        let offer = Offer::unanswered(local_mss, Ecn::asking(asks_ecn));
        let state = State::SynSent;
        let mut subflow = self.new_subflow(now, &ends, state, service, &offer, handshake, iss);
        subflow.local_id = local_id;
        subflow.remote_id = remote.id;
        let said = self.backups.of(local.ip());
        subflow.local_backup = said.unwrap_or(backup);
        self.metrics.active_opens += 1;
        self.metrics.mp_join_syn_tx += 1;
        let connection = &mut self.connections[index];
        connection.set_allowance(self.memory.allowance());
        let subflow = connection.add_subflow(subflow) as u32;
        let entry = FlowEntry {
            connection: index as u32,
            subflow,
        };
        self.flows.insert(key, entry);
    }

    /// Where to open a subflow to `remote` from, and whether it is to be a backup: an address where the
    /// service listens, best the one that the route prefers, then the initial one.
    fn source_for(
        &mut self,
        index: usize,
        to: &RemoteAddress,
        preferred: Option<IpAddr>,
    ) -> Option<(SocketAddr, bool)> {
        let remote = to.address;
        let mut listens = self.services.iter().flat_map(|s| &s.config.listen);
        let of_ours = |announced: &super::Announced| announced.addresses.contains(&remote.ip());
        if listens.any(|l| l.ip() == remote.ip()) || self.config.announced.iter().any(of_ours) {
            return None;
        }
        let connection = &self.connections[index];
        let service = &self.services[connection.service].config;
        let initial = connection.local_addr;
        let preferred = preferred.map(|ip| SocketAddr::new(ip, initial.port()));
        let sources: Vec<(SocketAddr, bool)> = preferred
            .into_iter()
            .chain([initial])
            .chain(service.listen.iter().copied())
            .filter(|local| local.port() == initial.port() && service.listen.contains(local))
            .filter(|local| local.is_ipv4() == remote.is_ipv4())
            .map(|local| (local, service.addresses.join_rule(remote.ip(), local.ip())))
            .filter(|(_, rule)| rule.accept)
            .map(|(local, rule)| (local, rule.backup))
            .collect();
        sources.into_iter().find_map(|(local, backup)| {
            let port = self.free_port(local, to)?;
            Some((SocketAddr::new(local.ip(), port), backup))
        })
    }

    /// A port of ours for a flow from `local`: that of the first subflow (RFC 8684 §3.9.1), unless it is
    /// in use or another worker may have it. Where the client names a port it listens there for all of
    /// its connections, those included that it has in TIME-WAIT: then it is a port of this one's alone.
    fn free_port(&mut self, local: SocketAddr, to: &RemoteAddress) -> Option<u16> {
        let start = self.entropy.next_u32() % PORTS;
        let others = (start..start + PORTS_TRIED).map(|n| PORTS_FROM + (n % PORTS) as u16);
        let first = (!to.names_port).then_some(local.port());
        first.into_iter().chain(others).find(|port| {
            let key = FlowKey::new(SocketAddr::new(local.ip(), *port), to.address);
            self.is_free_for_us(&key)
        })
    }
}

/// The way that its announcement came by.
fn told(remote: &RemoteAddress) -> Route {
    Route {
        hop: remote.told_by,
        source: None,
    }
}
