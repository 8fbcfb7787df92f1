//! The engine under test with one service on every path.

use super::apps::TestApp;
use super::sim::SimConfig;
use mpx_datapath::engine::{
    Buffers, Engine, EngineConfig, EngineReport, InterfaceConfig, JoinPolicy, ServiceConfig,
};
use mpx_datapath::port::IfaceId;
use mpx_datapath::rand::ChaChaEntropy;
use mpx_datapath::time::Instant;

const MTU: usize = 1500;

pub struct Server {
    pub engine: Engine,
    now: Instant,
}

impl Server {
    pub fn new(config: &SimConfig, now: Instant, app: TestApp) -> Server {
        let paths = 0..config.paths.len();
        let service = ServiceConfig {
            name: "test".into(),
            listen: paths
                .clone()
                .map(|path| config.family.server(path))
                .collect(),
            checksum: config.checksum,
            joins: JoinPolicy::AnyPort,
            congestion: config.congestion,
            ecn: config.ecn,
            patience: config.patience,
        };
        let interfaces = paths.map(|_| InterfaceConfig { mtu: MTU }).collect();
        let mut engine = EngineConfig::new(interfaces, vec![service]);
        engine.buffers = Buffers {
            receive_initial_bytes: config.receive_initial_bytes,
            receive_max_bytes: config.receive_buffer_bytes,
            send_initial_bytes: config.send_initial_bytes,
            send_max_bytes: config.send_buffer_bytes,
        };
        engine.subflows_per_connection_max = config.subflows_max;
        engine.connections_max = config.connections_max;
        engine.half_open_max = config.half_open_max;
        engine.time_wait_max = config.time_wait_max;
        let entropy = Box::new(ChaChaEntropy::deterministic(config.seed));
        Server {
            engine: Engine::new(engine, vec![Box::new(app)], now, entropy),
            now,
        }
    }

    pub fn on_frame(&mut self, now: Instant, iface: IfaceId, frame: &[u8]) {
        self.now = now;
        self.engine.on_frame(now, iface, frame);
    }

    pub fn on_timeout(&mut self, now: Instant) {
        self.now = now;
        self.engine.on_timeout(now);
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.engine.next_timeout()
    }

    pub fn poll_transmit(&mut self, now: Instant, iface: IfaceId, frame: &mut [u8]) -> usize {
        self.engine.poll_transmit(now, iface, frame)
    }

    /// No connection, flow or token is left, nor anything in TIME-WAIT.
    pub fn is_empty(&self) -> bool {
        let report = self.report(0);
        report.connections + report.half_open + report.flows + report.tokens + report.time_wait == 0
    }

    pub fn describe(&self) -> String {
        let counters = self.engine.metrics.entries();
        let counters: Vec<_> = counters
            .into_iter()
            .filter(|(_, value)| *value > 0)
            .collect();
        format!("{:?}\n{counters:?}", self.report(4))
    }

    pub fn report(&self, connections_max: usize) -> EngineReport {
        self.engine.report(self.now, connections_max)
    }
}
