//! The engines under test with their services on every path.

use super::apps::TestApp;
use super::sim::{Family, SERVICE_PORT, SimConfig};
use ipnet::IpNet;
use mpx_datapath::engine::{
    AddressChange, AddressPolicy, Announce, Buffers, Engine, EngineConfig, EngineReport,
    InterfaceConfig, JoinPolicy, Patience, ServiceConfig,
};
use mpx_datapath::metrics::Metrics;
use mpx_datapath::port::IfaceId;
use mpx_datapath::rand::ChaChaEntropy;
use mpx_datapath::steering::{Arrival, Verdict};
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::time::{Duration, Instant};
use mpx_datapath::wire::frame::Segment;
use mpx_datapath::wire::icmp::PacketTooBig;
use mpx_datapath::wire::mptcp::MpJoin;
use mpx_datapath::wire::tcp::TcpFlags;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

const MTU: usize = 1500;

/// A service beside the one that every simulation has. Its addresses are of both families.
#[derive(Clone, Copy, Debug)]
pub struct ServiceSetup {
    pub port: u16,
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
    /// Which engine has the flow between client and server.
    homes: HashMap<(SocketAddr, SocketAddr), usize>,
    now: Instant,
}

impl Server {
    pub fn new(config: &SimConfig, now: Instant, app: TestApp) -> Server {
        let owners = 1 + config.more_engines;
        let mut engines = (0..owners).map(|owner| {
            let mut engine = engine_config(config);
            (engine.owner, engine.owners) = (owner as u32, owners as u32);
            let app = app.at_engine(owner);
            let apps = engine.services.iter();
            let apps = apps.map(|_| Box::new(app.clone()) as Box<_>).collect();
            let seed = config.seed ^ (owner as u64) << 56;
            let entropy = Box::new(ChaChaEntropy::deterministic(seed));
            Engine::new(engine, apps, now, entropy)
        });
        Server {
            engine: engines.next().expect("there is one"),
            others: engines.collect(),
            homes: HashMap::new(),
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

    /// One counter of all engines.
    pub fn count(&self, counter: impl Fn(&Metrics) -> u64) -> u64 {
        self.engines().map(|e| counter(&e.metrics)).sum()
    }

    pub fn on_frame(&mut self, now: Instant, arrival: impl Into<Arrival>, frame: &[u8]) -> Verdict {
        self.now = now;
        let home = self.home(frame);
        if let Some(engine) = self.engines_mut().nth(home) {
            engine.on_frame(now, arrival, frame);
        }
        Verdict::Taken
    }

    /// The engine whose flow a frame belongs to. A SYN that joins goes to the owner of its token, any
    /// other one by its addresses, and what follows goes to where the SYN went.
    fn home(&mut self, frame: &[u8]) -> usize {
        if self.others.is_empty() {
            return 0;
        }
        let Ok(segment) = Segment::parse(frame) else {
            // An ICMP error goes to whom it quotes.
            let quoted = PacketTooBig::parse(frame).ok().map(|error| error.quoted);
            let home = quoted.and_then(|q| self.homes.get(&(q.dst, q.src)));
            return home.copied().unwrap_or(0);
        };
        let owners = 1 + self.others.len() as u32;
        let from = SocketAddr::new(segment.src, segment.tcp.src_port);
        let to = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let by_address = usize::from(from.port() ^ to.port()) % owners as usize;
        if segment.tcp.flags.contains(TcpFlags::SYN) {
            let home = match segment.tcp.options.mptcp.join {
                Some(MpJoin::Syn { token, .. }) => mpx_ebpf::owner_of(token, owners) as usize,
                _ => by_address,
            };
            self.homes.insert((from, to), home);
        }
        let home = self.homes.get(&(from, to)).copied();
        home.unwrap_or(by_address)
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
        self.reports(0).all(|r| {
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
        congestion: config.congestion,
        ecn: config.ecn,
        fast_open: config.fast_open,
    };
    let more = config.more_services.iter().map(|more| ServiceConfig {
        name: format!("port {}", more.port),
        listen: listen(&[Family::V4, Family::V6], more.port),
        versions: config.versions,
        checksum: more.checksum,
        joins: JoinPolicy::ServicePorts,
        addresses: AddressPolicy::default(),
        patience: more.patience,
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
