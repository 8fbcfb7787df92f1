//! The engines under test with their services on every path.

use super::Rng;
use super::apps::TestApp;
use super::client::link;
use super::sim::{Family, SERVICE_PORT, SimConfig};
use ipnet::IpNet;
use mpx_datapath::crypto::Secrets;
use mpx_datapath::engine::{
    AddressChange, AddressPolicy, Announce, Buffers, Engine, EngineConfig, EngineReport, FirstHop,
    InterfaceConfig, JoinPolicy, Patience, Route, ServiceConfig, Versions,
};
use mpx_datapath::metrics::Metrics;
use mpx_datapath::port::IfaceId;
use mpx_datapath::rand::ChaChaEntropy;
use mpx_datapath::steering::{Arrival, FlowMap, MemoryFlowMap, Verdict};
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::time::{Duration, Instant};
use mpx_datapath::wire::frame::Segment;
use mpx_datapath::wire::mptcp::MpJoin;
use mpx_datapath::wire::tcp::TcpFlags;
use mpx_ebpf::{Numbers, OWNER_BITS_DEFAULT};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

const MTU: usize = 1500;
const FLOWS_MAX: usize = 100_000;

/// A service beside the one that every simulation has. Its addresses are of both families.
#[derive(Clone, Copy, Debug)]
pub struct ServiceSetup {
    pub port: u16,
    pub versions: Versions,
    pub checksum: bool,
    pub patience: Patience,
    pub congestion: Algorithm,
    pub ecn: bool,
}

pub struct Server {
    /// The first, and as a rule the only one.
    pub engine: Engine,
    /// The others, each an owner of its own.
    others: Vec<Engine>,
    program: Program,
    mesh_losses: u64,
    now: Instant,
}

impl Server {
    pub fn new(config: &SimConfig, now: Instant, app: TestApp) -> Server {
        let owners = 1 + config.more_engines;
        let program = Program::new(config);
        let secrets = || Secrets::generate(&mut ChaChaEntropy::deterministic(config.seed));
        let mut engines = (0..owners).map(|owner| {
            let mut engine = engine_config(config);
            (engine.owner, engine.owners) = (owner as u32, owners as u32);
            if owners > 1 {
                engine.secrets = Some(secrets());
                engine.steering.worker = owner as u32;
                engine.steering.workers = owners as u32;
                engine.steering.hash_key = program.config.hash_key;
            }
            let app = app.at_engine(owner);
            let apps = engine.services.iter();
            let apps = apps.map(|_| Box::new(app.clone()) as Box<_>).collect();
            let seed = config.seed ^ (owner as u64) << 56;
            let entropy = Box::new(ChaChaEntropy::deterministic(seed));
            let mut engine = Engine::new(engine, apps, now, entropy);
            engine.set_flow_map(Box::new(program.flows.clone()));
            engine
        });
        Server {
            engine: engines.next().expect("there is one"),
            others: engines.collect(),
            program,
            mesh_losses: 0,
            now,
        }
    }

    pub fn engines(&self) -> impl Iterator<Item = &Engine> {
        std::iter::once(&self.engine).chain(&self.others)
    }

    fn engines_mut(&mut self) -> impl Iterator<Item = &mut Engine> {
        std::iter::once(&mut self.engine).chain(&mut self.others)
    }

    /// What an operator asks of the first engine, a few connections at a time; how many it concerned.
    pub fn change(&mut self, now: Instant, change: &AddressChange) -> Result<usize, String> {
        let (mut changed, mut next) = (0, Some(0));
        while let Some(from) = next {
            let step = self.engine.change_addresses(now, change, from, 2)?;
            changed += step.changed;
            next = step.next;
        }
        Ok(changed)
    }

    /// Announces under the ID that is there.
    pub fn announce(&mut self, now: Instant, announce: Announce) -> Result<usize, String> {
        let change = AddressChange::Announce {
            service: 0,
            id: Some(announce.id),
            announce,
        };
        self.change(now, &change)
    }

    pub fn withdraw(&mut self, now: Instant, address: IpAddr) -> Result<usize, String> {
        self.change(now, &AddressChange::Withdraw { address })
    }

    pub fn set_backup(&mut self, now: Instant, local: IpNet, backup: bool) -> usize {
        let change = AddressChange::SetBackup { local, backup };
        self.change(now, &change).expect("there is room")
    }

    fn engine_mut(&mut self, worker: u32) -> &mut Engine {
        let mut engines = self.engines_mut();
        engines.nth(worker as usize).expect("there is that worker")
    }

    /// One counter of all engines.
    pub fn count(&self, counter: impl Fn(&Metrics) -> u64) -> u64 {
        self.engines().map(|e| counter(&e.metrics)).sum()
    }

    /// Steering and mesh make no mistakes from now on.
    pub fn heal(&mut self) {
        self.program.faults = MeshFaults {
            direct: self.program.faults.direct,
            ..MeshFaults::default()
        };
    }

    /// Segments that were lost between the wire and their flow's worker, and such as have none.
    pub fn misled(&self) -> u64 {
        let engines = self.count(|m| m.wrong_worker + m.flow_lookups_skipped + m.no_flow);
        self.mesh_losses + engines
    }

    /// By way of the XDP program to a worker, and from there at most once to another one.
    pub fn on_frame(&mut self, now: Instant, arrival: impl Into<Arrival>, frame: &[u8]) -> Verdict {
        self.now = now;
        let mut arrival = arrival.into();
        if self.others.is_empty() {
            let verdict = self.engine.on_frame(now, arrival, frame);
            assert_eq!(verdict, Verdict::Taken, "there is nobody else");
            return verdict;
        }
        arrival.queue_home = self.program.any_worker();
        let Some(worker) = self.program.worker(arrival.queue_home, frame) else {
            return Verdict::Taken;
        };
        let verdict = self.engine_mut(worker).on_frame(now, arrival, frame);
        let named = match verdict {
            Verdict::Forward(_) if self.program.is_mesh_full() => {
                self.mesh_losses += 1;
                None
            }
            Verdict::Forward(named) => Some(named),
            Verdict::Taken => None,
        };
        if let Some(named) = named {
            assert_ne!(named, worker, "it is passed on to who passes it on");
            arrival.forwarded = true;
            let verdict = self.engine_mut(named).on_frame(now, arrival, frame);
            assert_eq!(verdict, Verdict::Taken, "passed on twice");
        }
        while let Some(message) = self.engine_mut(worker).poll_message() {
            let others = (0..).zip(self.engines_mut()).filter(|(w, _)| *w != worker);
            others.for_each(|(_, engine)| engine.on_message(now, &message));
        }
        Verdict::Taken
    }

    /// Each engine has time to draw keys.
    pub fn refill_keys(&mut self, draws_max: u32) {
        for engine in self.engines_mut() {
            engine.refill_keys(draws_max);
        }
    }

    pub fn on_timeout(&mut self, now: Instant) {
        self.now = now;
        self.engines_mut().for_each(|e| e.on_timeout(now));
    }

    pub fn poll_apps(&mut self, now: Instant) {
        for engine in self.engines_mut() {
            engine.poll_apps(now);
        }
    }

    /// An address is reached by the path that it is on, from the server's address there.
    pub fn answer_routes(&mut self, now: Instant, paths: usize) {
        for engine in self.engines_mut() {
            while let Some(to) = engine.poll_route_question() {
                let path = Family::path_of(to);
                let family = Family::of(SocketAddr::new(to, 0));
                let iface = IfaceId(path as u8);
                let link = link(iface).reversed();
                let route = Route {
                    hop: FirstHop { iface, link },
                    source: Some(family.server(path).ip()),
                };
                engine.on_route(now, to, (path < paths).then_some(route));
            }
        }
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.engines().filter_map(Engine::next_timeout).min()
    }

    pub fn poll_transmit(&mut self, now: Instant, iface: IfaceId, frame: &mut [u8]) -> usize {
        self.engines_mut()
            .map(|engine| engine.poll_transmit(now, iface, frame))
            .find(|len| *len > 0)
            .unwrap_or(0)
    }

    /// The smoothed round trip of a subflow, zero if it has not been measured.
    pub fn srtt(&self, local: SocketAddr, remote: SocketAddr) -> Option<Duration> {
        let conns = self.reports(usize::MAX).flat_map(|r| r.conns);
        let mut subflows = conns.flat_map(|c| c.subflows);
        let subflow = subflows.find(|s| s.local == local && s.remote == remote)?;
        Some(Duration::from_micros(subflow.srtt_us.unwrap_or(0)))
    }

    /// No connection, flow or token is left, nor anything in TIME-WAIT nor an octet of memory.
    pub fn is_empty(&self) -> bool {
        self.program.flows.is_empty()
            && self.reports(0).all(|r| {
                let entries = r.connections + r.half_open + r.flows + r.tokens + r.time_wait;
                entries + r.memory.used_bytes == 0
            })
    }

    pub fn describe(&self) -> String {
        let of = |engine: &Engine| {
            let counters = engine.metrics.entries();
            let counters: Vec<_> = counters
                .into_iter()
                .filter(|(_, value)| *value > 0)
                .collect();
            format!("{:?}\n{counters:?}", engine.report(self.now, 4))
        };
        let engines: Vec<String> = self.engines().map(of).collect();
        engines.join("\n")
    }

    /// Of the first engine.
    pub fn report(&self, connections_max: usize) -> EngineReport {
        self.engine.report(self.now, connections_max)
    }

    pub fn reports(&self, connections_max: usize) -> impl Iterator<Item = EngineReport> {
        self.engines()
            .map(move |e| e.report(self.now, connections_max))
    }
}

/// What goes wrong between the frames of a server of several workers and the worker of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeshFaults {
    /// The program sends frames to their workers; or else to any, which pass them on.
    pub direct: bool,
    /// Of a thousand frames so many go to any worker whatever,
    pub wrong_worker_permille: u32,
    /// so many that are passed on find the queue full,
    pub mesh_full_permille: u32,
    /// and so many entries of the map of flows are lost with every thousandth frame.
    pub lost_flows_permille: u32,
}

/// The XDP program as the engines know it, for several of them.
struct Program {
    config: mpx_ebpf::Config,
    services: HashSet<SocketAddr>,
    flows: MemoryFlowMap,
    faults: MeshFaults,
    rng: Rng,
}

impl Program {
    fn new(config: &SimConfig) -> Program {
        let workers = 1 + config.more_engines as u32;
        let services = engine_config(config).services;
        Program {
            config: mpx_ebpf::Config {
                workers,
                owner_bits: OWNER_BITS_DEFAULT,
                owners: workers,
                first_owner: 0,
                flags: 0,
                hash_key: [config.seed, 7],
                syns_per_window: u32::MAX,
                strays_per_window: u32::MAX,
            },
            services: services.into_iter().flat_map(|s| s.listen).collect(),
            flows: MemoryFlowMap::new(FLOWS_MAX),
            faults: config.mesh,
            rng: Rng(config.seed ^ 0x6d65_7368_0000_0000),
        }
    }

    /// A queue is no function of the flow.
    fn any_worker(&mut self) -> u32 {
        self.rng.below(self.config.workers as usize) as u32
    }

    fn is_mesh_full(&mut self) -> bool {
        self.rng.permille(self.faults.mesh_full_permille)
    }

    /// Whose socket a frame goes to; `None` is the kernel.
    fn worker(&mut self, queue_home: u32, frame: &[u8]) -> Option<u32> {
        let faults = self.faults;
        if faults.lost_flows_permille > 0 && self.rng.permille(1) {
            let rng = &mut self.rng;
            self.flows
                .retain(|_| !rng.permille(faults.lost_flows_permille));
        }
        // Errors are for whoever has the flow that they quote.
        let Ok(segment) = Segment::parse(frame) else {
            return Some(queue_home);
        };
        let from = SocketAddr::new(segment.src, segment.tcp.src_port);
        let to = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let key = mpx_ebpf::flow_key_of(from, to);
        let flags = segment.tcp.flags;
        let numbers = if flags.contains(TcpFlags::ACK) {
            Numbers::Ack(segment.tcp.ack.0)
        } else if flags.contains(TcpFlags::RST) {
            Numbers::Reset(segment.tcp.seq.0)
        } else {
            Numbers::Neither
        };
        let entry = self.flows.lookup(&key);
        let mapped = entry.and_then(|entry| entry.of_segment(numbers));
        let named = self.named(&segment, to, mapped)?;
        if !faults.direct || self.rng.permille(faults.wrong_worker_permille) {
            return Some(queue_home);
        }
        let home = || mpx_ebpf::home(&key, &self.config.hash_key, self.config.workers);
        Some(named.or(mapped).unwrap_or_else(home))
    }

    /// Whom token or timestamp of a segment name; `None` of all: it is the kernel's.
    fn named(
        &self,
        segment: &Segment<'_>,
        to: SocketAddr,
        mapped: Option<u32>,
    ) -> Option<Option<u32>> {
        let (flags, options) = (segment.tcp.flags, &segment.tcp.options);
        let syn = flags.contains(TcpFlags::SYN);
        if let Some(MpJoin::Syn { token, .. }) = options.mptcp.join
            && syn
            && !flags.contains(TcpFlags::ACK)
        {
            return Some(self.config.worker_of_token(token));
        }
        if !self.services.contains(&to) {
            return mapped.map(Some);
        }
        let names = flags.contains(TcpFlags::ACK) && !syn && !flags.contains(TcpFlags::RST);
        let timestamps = options.timestamps.filter(|_| names);
        Some(timestamps.and_then(|ts| self.config.worker_of_timestamp(ts.tsecr)))
    }
}

fn engine_config(config: &SimConfig) -> EngineConfig {
    let paths = 0..config.paths.len();
    let listen = |families: &[Family], port: u16| {
        let on_path = |path| families.iter().map(move |f| f.server_at(path, port));
        paths.clone().flat_map(on_path).collect()
    };
    let first = ServiceConfig {
        name: "test".into(),
        listen: listen(&[config.family], SERVICE_PORT),
        versions: config.versions,
        checksum: config.checksum,
        joins: JoinPolicy::AnyPort,
        addresses: config.addresses.clone(),
        patience: config.patience,
        closing: config.closing,
        congestion: config.congestion,
        ecn: config.ecn,
        fast_open: config.fast_open,
    };
    let more = config.more_services.iter().map(|more| ServiceConfig {
        name: format!("port {}", more.port),
        listen: listen(&[Family::V4, Family::V6], more.port),
        versions: more.versions,
        checksum: more.checksum,
        joins: JoinPolicy::ServicePorts,
        addresses: AddressPolicy::default(),
        patience: more.patience,
        closing: config.closing,
        congestion: more.congestion,
        ecn: more.ecn,
        fast_open: config.fast_open,
    });
    let services = std::iter::once(first).chain(more).collect();
    let interfaces = paths
        .clone()
        .map(|_| InterfaceConfig { mtu: MTU })
        .collect();
    let mut engine = EngineConfig::new(interfaces, services);
    engine.asks_routes = config.routes;
    engine.buffers = Buffers {
        receive_initial_bytes: config.receive_initial_bytes,
        receive_max_bytes: config.receive_buffer_bytes,
        send_initial_bytes: config.send_initial_bytes,
        send_max_bytes: config.send_buffer_bytes,
    };
    engine.memory_max_bytes = config.memory_max_bytes;
    engine.subflows_per_connection_max = config.subflows_max;
    engine.connections_max = config.connections_max;
    engine.half_open_max = config.half_open_max;
    engine.stranded_max = config.stranded_max;
    engine.syn_cookies_from = config.syn_cookies_from;
    engine.fast_open_pending_max = config.fast_open_pending_max;
    engine.time_wait_max = config.time_wait_max;
    engine
}
