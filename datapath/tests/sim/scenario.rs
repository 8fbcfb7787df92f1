//! What a seed stands for: paths and their weather, clients and their manners, apps, limits.

use crate::flood::{Flood, Kind};
use crate::model::Rng;
use crate::model::apps::Behaviour;
use crate::model::client::{AckPolicy, ClientConfig, Quirks};
use crate::model::middlebox::{Meddling, SynOption};
use crate::model::net::{Path, Side};
use crate::model::server::{MeshFaults, ServiceSetup};
use crate::model::sim::{Family, SERVICE_PORT, SimConfig};
use crate::model::subflow::Again;
use ipnet::IpNet;
use mpx_datapath::engine::{Announce, JoinRule, Patience, Versions};
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::tcp::fast_open::FastOpen;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::tcp::FastOpenCookie;

/// Octets in one direction of one connection.
const STREAM_MAX_BYTES: usize = 500_000;
/// A stream takes so many round trips at most, each up to half a second here, if windows are all
/// that holds it up.
const ROUND_TRIPS_MAX: usize = 300;
/// A stream takes so many segments at most.
const SEGMENTS_MAX: usize = 2000;

/// With less than this a server would not take a single connection with all its subflows.
const MEMORY_MIN_BYTES: usize = 100_000;

/// Congestion control of the first layers.
const UNCOUPLED: [Algorithm; 2] = [Algorithm::Cubic, Algorithm::Reno];

/// Draws of a seed, laid over each other. Each layer has a stream of its own: what is added in a new
/// one leaves to every seed what it drew before.
pub const LAYERS: u64 = 15;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub sim: SimConfig,
    /// How long the paths are bad.
    pub faults: Duration,
    /// What a path is like from a time on, in the order of the times.
    pub weather: Vec<(Duration, usize, Path)>,
    pub clients: Vec<Plan>,
    /// While the paths are bad.
    pub flood: Option<Flood>,
    /// Draws of keys in a tick.
    pub idle_draws: u32,
}

/// What one client does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// From the beginning on, or from when the client before it is done.
    pub start: Duration,
    /// It has the address and port of that client, among the plans.
    pub after: Option<(usize, Again)>,
    pub config: ClientConfig,
    pub app: Behaviour,
    /// What the app reads at a time, where it is slow.
    pub sip_bytes: Option<usize>,
    pub upload_bytes: usize,
    /// What the client writes at a time, a tick apart, while the paths are bad; 0 is all at once.
    pub write_bytes: usize,
    pub reading: Reading,
    pub close: Close,
    pub joins: Vec<Join>,
    pub leaves: Vec<(Duration, Leave)>,
    pub abort: Option<(Duration, Abort)>,
    /// Other sizes of its receive buffer, while the paths are bad.
    pub resizes: Vec<(Duration, usize)>,
    pub signals: Vec<(Duration, Signal)>,
    /// It reads all there is at once, and then goes on as before.
    pub gulps: Vec<Duration>,
    /// It brings the cookie that the client before it has got.
    pub inherits_cookie: bool,
    pub blackouts: Vec<Blackout>,
}

/// A time without any subflow.
#[derive(Clone, Copy, Debug)]
pub struct Blackout {
    pub at: Duration,
    /// Until the client joins again.
    pub pause: Duration,
    /// The server is not told.
    pub silent: bool,
    /// The first to be tried.
    pub path: usize,
}

/// Another subflow.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    pub at: Duration,
    pub path: usize,
    pub backup: bool,
    /// From the address and port of one that is over.
    pub again: Option<Again>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Eager,
    /// So many octets a tick.
    Slow(usize),
    /// Nothing while the paths are bad.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Right behind the last octet, whatever is still to come.
    First,
    /// When all of the other stream is here.
    Last,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    Reset,
    Fin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    Reset,
    FastcloseReset,
    FastcloseAck,
    Vanish,
}

/// What a client says of its addresses, on a subflow that `on` chooses among those that are open.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    Priority {
        on: usize,
        backup: bool,
    },
    Advertise {
        on: usize,
    },
    Withdraw {
        on: usize,
    },
    /// Where it listens for joins: on this path, at this port, or at that of the subflow.
    Listen {
        on: usize,
        path: usize,
        port: Option<u16>,
    },
}

impl Plan {
    /// Octets that the app sends in the end.
    pub fn download_bytes(&self) -> usize {
        match self.app.echo {
            true => self.upload_bytes,
            false => self.app.send_bytes,
        }
    }
}

impl Scenario {
    /// What `seed` stands for in the first `layers`.
    pub fn of(seed: u64, layers: u64) -> Scenario {
        let mut scenario = Scenario::base(seed);
        if layers > 1 {
            Draw::new(seed, 1).receivers(&mut scenario);
        }
        if layers > 2 {
            Draw::new(seed, 2).memory(&mut scenario);
        }
        if layers > 3 {
            Draw::new(seed, 3).marks(&mut scenario);
        }
        if layers > 4 {
            Draw::new(seed, 4).places(&mut scenario);
        }
        if layers > 5 {
            Draw::new(seed, 5).narrow(&mut scenario);
        }
        if layers > 6 {
            Draw::new(seed, 6).middleboxes(&mut scenario);
        }
        if layers > 7 {
            Draw::new(seed, 7).addresses(&mut scenario);
        }
        if layers > 8 {
            Draw::new(seed, 8).versions(&mut scenario);
        }
        if layers > 9 {
            Draw::new(seed, 9).blackouts(&mut scenario);
        }
        if layers > 10 {
            Draw::new(seed, 10).workers(&mut scenario);
        }
        if layers > 11 {
            Draw::new(seed, 11).floods(&mut scenario);
        }
        if layers > 12 {
            Draw::new(seed, 12).couples(&mut scenario);
        }
        if layers > 13 {
            Draw::new(seed, 13).fast_opens(&mut scenario);
        }
        if layers > 14 {
            Draw::new(seed, 14).listeners(&mut scenario);
        }
        scenario
    }

    /// The first layer.
    fn base(seed: u64) -> Scenario {
        let mut draw = Draw::new(seed, 0);
        let family = draw.pick(&[Family::V4, Family::V4, Family::V6]);
        let faults = draw.millis(3_000, 30_000);
        let bases: Vec<Path> = (0..1 + draw.below(4)).map(|_| draw.path()).collect();
        let weather = draw.weather(&bases, faults);
        let crowd = draw.one_in(8);
        let count = if crowd {
            8 + draw.below(24)
        } else {
            1 + draw.below(3)
        };
        let mut sim = SimConfig {
            paths: bases,
            family,
            seed,
            checksum: draw.one_in(3),
            congestion: UNCOUPLED[(seed % 2) as usize],
            receive_buffer_bytes: draw.buffer_bytes(),
            send_buffer_bytes: draw.buffer_bytes(),
            subflows_max: draw.pick(&[1, 2, 4, 8]),
            ..SimConfig::with(Behaviour::default())
        };
        if crowd {
            sim.connections_max = draw.pick(&[4, 16, 100_000]);
            sim.half_open_max = draw.pick(&[2, 16, 16_384]);
            sim.time_wait_max = draw.pick(&[2, 16, 65_536]);
        }
        let paths = sim.paths.len();
        let clients = (0..count)
            .map(|n| draw.plan(seed, n, family, paths, faults, crowd))
            .collect();
        Scenario {
            sim,
            faults,
            weather,
            clients,
            flood: None,
            idle_draws: 0,
        }
    }
}

/// A path without faults, as fast and as narrow as it was.
pub fn healed(base: &Path) -> Path {
    // What a box cuts up has the headers of several segments: a queue that always loses a part of one
    // is not in order.
    let queue = match base.meddling.cuts_at {
        0 => Duration::from_millis(50),
        _ => Duration::from_millis(150),
    };
    Path {
        delay: base.delay,
        rate: base.rate,
        queue: base.queue.max(queue),
        mtu: base.mtu,
        mtu_icmp: base.mtu_icmp,
        meddling: base.meddling,
        ..Path::default()
    }
}

struct Draw(Rng);

impl Draw {
    fn new(seed: u64, layer: u64) -> Draw {
        Draw(Rng(seed ^ 0x6d70_7864_0000_0000 ^ (layer << 56)))
    }

    fn below(&mut self, n: usize) -> usize {
        self.0.below(n)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn millis(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }

    /// Every order of magnitude up to `max` is as likely as the others.
    fn magnitude(&mut self, max: usize) -> usize {
        let bits = self.below(max.ilog2() as usize + 1);
        ((1 << bits) + self.below(1 << bits)).min(max)
    }

    fn buffer_bytes(&mut self) -> usize {
        match self.below(4) {
            0 => 2_000 + self.below(20_000),
            1 => 65_535,
            2 => 70_000 + self.below(400_000),
            _ => 1 << 20,
        }
    }

    fn path(&mut self) -> Path {
        let mut path = Path {
            delay: Duration::from_micros(self.magnitude(200_000) as u64),
            rate: self.pick(&[0, 30_000, 125_000, 1_250_000, 12_500_000, 125_000_000]),
            queue: self.millis(2, 400),
            ..Path::default()
        };
        self.faults(&mut path);
        path
    }

    /// Mostly one or two kinds at a time: what is lost in a storm tells little.
    fn faults(&mut self, path: &mut Path) {
        if self.one_in(2) {
            path.loss_permille = self.magnitude(300) as u32;
        }
        if self.one_in(3) {
            path.burst_permille = self.magnitude(30) as u32;
            path.burst_frames = self.magnitude(40) as u32;
        }
        if self.one_in(3) {
            path.duplicate_permille = self.magnitude(300) as u32;
        }
        if self.one_in(3) {
            path.reorder_permille = self.magnitude(500) as u32;
        }
        if self.one_in(3) {
            path.corrupt_permille = self.magnitude(100) as u32;
        }
        if self.one_in(4) {
            path.jitter = Duration::from_micros(self.magnitude(100_000) as u64);
        }
    }

    fn weather(&mut self, bases: &[Path], faults: Duration) -> Vec<(Duration, usize, Path)> {
        let mut weather = Vec::new();
        let end = faults.as_millis() as usize;
        for (i, base) in bases.iter().enumerate() {
            for _ in 0..self.below(4) {
                let mut path = Path {
                    delay: base.delay,
                    rate: base.rate,
                    queue: base.queue,
                    ..Path::default()
                };
                let at = self.millis(0, end);
                match self.below(6) {
                    0 | 1 => self.faults(&mut path),
                    2 => path.delay = Duration::from_micros(self.magnitude(200_000) as u64),
                    kind => {
                        path = *base;
                        match kind {
                            3 => path.cut = true,
                            4 => path.cut_towards = Some(Side::Client),
                            _ => path.cut_towards = Some(Side::Server),
                        }
                        let over = at + Duration::from_millis(self.magnitude(10_000) as u64);
                        weather.push((over, i, *base));
                    }
                }
                weather.push((at, i, path));
            }
        }
        weather.retain(|w| w.0 < faults);
        weather.sort_by_key(|w| w.0);
        weather
    }

    fn plan(
        &mut self,
        seed: u64,
        n: usize,
        family: Family,
        paths: usize,
        faults: Duration,
        crowd: bool,
    ) -> Plan {
        let end = faults.as_millis() as usize;
        let multipath = !self.one_in(3);
        let mut config = ClientConfig {
            multipath,
            checksum: self.one_in(3),
            eight_octets: !self.one_in(3),
            timestamps: !self.one_in(4),
            sack: !self.one_in(4),
            window_scale: self.pick(&[None, Some(0), Some(3), Some(7), Some(14)]),
            mss: self.pick(&[1460, 1460, 1220, 536, 88 + 40]),
            receive_buffer_bytes: self.buffer_bytes(),
            segment_bytes: self.pick(&[1400, 1400, 1000, 536]),
            random_segments: self.one_in(3),
            flight_segments: self.magnitude(64),
            data_fin_with_data: self.one_in(2),
            seed: seed << 20 | (n as u64) << 8,
            ..ClientConfig::new(family.server(0))
        };
        match self.below(12) {
            // A tiny window; a silly segment size.
            0 => config.receive_buffer_bytes = 1 + self.magnitude(2_000),
            1 => config.segment_bytes = self.magnitude(64),
            _ => {}
        }
        if config.receive_buffer_bytes >> config.window_scale.unwrap_or(0) == 0 {
            // Its window could never open.
            config.window_scale = Some(0);
        }
        let stripped = multipath && self.one_in(10);
        if stripped {
            config.quirks = self.quirks();
        }
        let stream_max = if crowd { 4_000 } else { STREAM_MAX_BYTES };
        let up_max = stream_max
            .min(config.segment_bytes * SEGMENTS_MAX / 2)
            .min(config.segment_bytes * config.flight_segments * ROUND_TRIPS_MAX / 2);
        let sip_bytes = self.one_in(6).then(|| self.magnitude(20_000));
        let upload_bytes = self.stream_bytes(up_max);
        let window = config
            .receive_buffer_bytes
            .min(65_535 << config.window_scale.unwrap_or(0));
        let down_max = stream_max
            .min(usize::from(config.mss) * SEGMENTS_MAX / 2)
            .min(window * ROUND_TRIPS_MAX);
        let mut app = self.app(down_max, upload_bytes);
        app.seed = config.seed | 1;
        if app.echo && upload_bytes > down_max {
            app.echo = false;
        }
        let reading = match self.below(6) {
            0 => Reading::Slow(self.magnitude(4_000)),
            1 => Reading::Never,
            _ => Reading::Eager,
        };
        let close = match self.one_in(2) {
            true => Close::Last,
            false => Close::First,
        };
        let write_bytes = if self.one_in(3) {
            self.magnitude(20_000)
        } else {
            0
        };
        let (mut joins, mut leaves) = (Vec::new(), Vec::new());
        if multipath && !stripped && !crowd {
            for _ in 0..self.below(5) {
                joins.push(Join {
                    at: self.millis(0, end),
                    path: self.below(paths),
                    backup: false,
                    again: None,
                });
            }
            for _ in 0..self.below(1 + joins.len()) {
                leaves.push((self.millis(0, end), self.pick(&[Leave::Reset, Leave::Fin])));
            }
        }
        let kinds = [
            Abort::Reset,
            Abort::FastcloseReset,
            Abort::FastcloseAck,
            Abort::Vanish,
        ];
        let abort = self.one_in(8).then(|| {
            (
                Duration::from_millis(self.magnitude(end) as u64),
                self.pick(&kinds),
            )
        });
        Plan {
            start: Duration::from_millis(if n == 0 { 0 } else { self.below(end / 2) } as u64),
            config,
            app,
            sip_bytes,
            upload_bytes,
            write_bytes,
            reading,
            close,
            after: None,
            joins,
            leaves,
            abort,
            resizes: Vec::new(),
            signals: Vec::new(),
            gulps: Vec::new(),
            inherits_cookie: false,
            blackouts: Vec::new(),
        }
    }

    /// How clients acknowledge what they get, what they do with their windows, and what they say of
    /// their addresses; paths that bring frames in bursts.
    fn receivers(&mut self, scenario: &mut Scenario) {
        let end = scenario.faults.as_millis() as usize;
        for i in 0..scenario.sim.paths.len() {
            if self.one_in(5) {
                let slot = Duration::from_micros(self.magnitude(50_000) as u64);
                scenario.sim.paths[i].slot = slot;
                let weather = scenario.weather.iter_mut().filter(|w| w.1 == i);
                weather.for_each(|w| w.2.slot = slot);
            }
        }
        for plan in &mut scenario.clients {
            plan.config.ack = AckPolicy {
                every: self.pick(&[1, 2, 2, 2, 3, 4, 8]),
                delay: self.millis(10, 200),
            };
            plan.config.dsack = !self.one_in(4);
            if self.one_in(10) {
                plan.config.quirks.reneges_after = self.magnitude(40) as u32;
            }
            if !plan.config.multipath && self.one_in(8) {
                for _ in 0..1 + self.below(4) {
                    let bytes = self.magnitude(plan.config.receive_buffer_bytes);
                    plan.resizes.push((self.millis(0, end), bytes));
                }
                plan.resizes.sort();
            }
            let quirks = &plan.config.quirks;
            let stripped = quirks.no_options_after_syn || quirks.no_options_after_third_ack;
            if !plan.config.multipath || stripped {
                continue;
            }
            for join in &mut plan.joins {
                join.backup = self.one_in(3);
            }
            if self.one_in(3) {
                for _ in 0..1 + self.below(6) {
                    let signal = self.signal();
                    plan.signals.push((self.millis(0, end), signal));
                }
                plan.signals.sort_by_key(|s| s.0);
            }
        }
    }

    /// Buffers of the server that grow, and memory that runs short.
    fn memory(&mut self, scenario: &mut Scenario) {
        let sim = &mut scenario.sim;
        if self.one_in(2) {
            sim.receive_initial_bytes = 1 + self.magnitude(sim.receive_buffer_bytes);
        }
        if self.one_in(2) {
            sim.send_initial_bytes = 1 + self.magnitude(sim.send_buffer_bytes);
        }
        if self.one_in(3) {
            sim.memory_max_bytes = MEMORY_MIN_BYTES + self.magnitude(2 << 20);
            for plan in &mut scenario.clients {
                plan.config.server_may_renege = true;
            }
        }
    }

    /// Queues that mark.
    fn marks(&mut self, scenario: &mut Scenario) {
        scenario.sim.ecn = !self.one_in(8);
        for plan in &mut scenario.clients {
            plan.config.ecn = self.one_in(2);
        }
        for (_, _, path) in &mut scenario.weather {
            if self.one_in(3) {
                path.mark_permille = self.magnitude(500) as u32;
            }
        }
    }

    /// Several services and engines; clients and subflows that come again from where others were.
    fn places(&mut self, scenario: &mut Scenario) {
        let sim = &mut scenario.sim;
        if self.one_in(4) {
            sim.more_engines = 1;
        }
        if self.one_in(3) {
            for n in 0..1 + self.below(3) {
                sim.more_services.push(ServiceSetup {
                    port: 8000 + n as u16,
                    versions: sim.versions,
                    checksum: self.one_in(2),
                    patience: self.patience(sim.patience),
                    congestion: self.pick(&UNCOUPLED),
                    ecn: self.one_in(2),
                });
            }
        }
        if self.one_in(3) {
            let crowd = scenario.clients.len() > 3;
            for _ in 0..1 + self.below(if crowd { 8 } else { 2 }) {
                self.successor(scenario, crowd);
            }
        }
        let services = &scenario.sim.more_services;
        for plan in &mut scenario.clients {
            for join in &mut plan.joins {
                join.again = self.one_in(2).then(|| self.again());
            }
            if !services.is_empty() && plan.after.is_none() && !self.one_in(3) {
                let family = self.pick(&[Family::V4, Family::V6]);
                let service = services[self.below(services.len())];
                plan.config.server = family.server_at(0, service.port);
            }
        }
        // Who comes after somebody comes to the same place.
        for i in 0..scenario.clients.len() {
            if let Some((before, _)) = scenario.clients[i].after {
                scenario.clients[i].config.server = scenario.clients[before].config.server;
            }
        }
    }

    /// Paths that take less than our interface, whose routers say so or do not, also from some time
    /// on; windows that open late.
    fn narrow(&mut self, scenario: &mut Scenario) {
        let end = scenario.faults.as_millis() as usize;
        let any_v6 = scenario.sim.family == Family::V6 || !scenario.sim.more_services.is_empty();
        let least = if any_v6 { 1280 } else { 552 };
        for i in 0..scenario.sim.paths.len() {
            if !self.one_in(3) {
                continue;
            }
            let since = match self.one_in(2) {
                true => Duration::ZERO,
                false => self.millis(0, end),
            };
            let mtu = least + self.below(1500 - least);
            let told = self.one_in(2);
            let mut change = scenario.sim.paths[i];
            for (at, path, weather) in &mut scenario.weather {
                if *path == i && *at <= since {
                    change = *weather;
                } else if *path == i {
                    (weather.mtu, weather.mtu_icmp) = (mtu, told);
                }
            }
            (change.mtu, change.mtu_icmp) = (mtu, told);
            scenario.weather.push((since, i, change));
            // It stays so when everything else is in order.
            let base = &mut scenario.sim.paths[i];
            (base.mtu, base.mtu_icmp) = (mtu, told);
        }
        scenario.weather.sort_by_key(|w| w.0);
        for plan in &mut scenario.clients {
            if plan.reading != Reading::Eager {
                for _ in 0..self.below(4) {
                    plan.gulps.push(self.millis(0, end));
                }
                plan.gulps.sort();
            }
        }
        for plan in &mut scenario.clients {
            plan.config.quirks.no_window_updates = self.one_in(4);
        }
    }

    /// Paths with something in between that looks into segments. They stay so.
    fn middleboxes(&mut self, scenario: &mut Scenario) {
        let paths = scenario.sim.paths.len();
        for i in 0..paths {
            if !self.one_in(3) {
                continue;
            }
            let meddling = self.meddling();
            scenario.sim.paths[i].meddling = meddling;
            let weather = scenario.weather.iter_mut().filter(|w| w.1 == i);
            weather.for_each(|w| w.2.meddling = meddling);
        }
        let harmful = |path: usize| !scenario.sim.paths[path].meddling.is_harmless();
        for plan in &mut scenario.clients {
            // All begin on the first path.
            let mut paths = plan.joins.iter().map(|join| join.path);
            plan.config.quirks.distrusts_paths = harmful(0) || paths.any(harmful);
        }
    }

    fn meddling(&mut self) -> Meddling {
        let mut meddling = Meddling::default();
        match self.below(7) {
            0 => {
                let to = self.pick(&[Side::Client, Side::Server]);
                meddling.strips = Some((to, self.magnitude(200) as u32 - 1));
            }
            1 => meddling.alters_every = self.magnitude(200) as u32,
            2 => {
                let lost = [
                    SynOption::Timestamps,
                    SynOption::Sack,
                    SynOption::WindowScale,
                ];
                meddling.syn_loses = Some(self.pick(&lost));
            }
            3 => meddling.shifts = true,
            4 => meddling.cuts_at = 200 + self.below(1300),
            _ => {
                meddling.cuts_at = 200 + self.below(1300);
                meddling.repeats_options = true;
                meddling.shifts = self.one_in(2);
            }
        }
        meddling
    }

    /// Addresses that the server announces, some to clients that do not echo; joins that are refused or
    /// made backups by rule.
    fn addresses(&mut self, scenario: &mut Scenario) {
        let paths = scenario.sim.paths.len();
        let policy = &mut scenario.sim.addresses;
        if self.one_in(2) {
            for id in 1..=self.below(5) as u8 {
                let family = self.pick(&[Family::V4, Family::V6]);
                policy.announce.push(Announce {
                    id,
                    address: family.host(self.below(paths), 2 + self.below(2) as u16),
                    port: self.one_in(2).then_some(SERVICE_PORT + 1),
                    local: None,
                    clients: None,
                });
            }
        }
        for _ in 0..self.below(3) {
            let family = scenario.sim.family;
            let subnet = if family == Family::V4 { 16 } else { 64 };
            let net = IpNet::new_assert(family.host(self.below(paths), 0), subnet);
            policy.join_rules.push(JoinRule {
                from: self.one_in(2).then_some(net),
                to: self.one_in(2).then_some(net),
                accept: !self.one_in(4),
                backup: self.one_in(2),
            });
        }
        policy.deny_join_initial = self.one_in(8);
        for plan in &mut scenario.clients {
            plan.config.echoes = !self.one_in(4);
        }
    }

    /// Clients of either version of Multipath TCP, and servers that do not speak both.
    fn versions(&mut self, scenario: &mut Scenario) {
        let (v0, v1) = self.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        scenario.sim.versions = Versions { v0, v1 };
        for plan in &mut scenario.clients {
            plan.config.version = self.pick(&[0, 0, 1]);
        }
    }

    /// Clients that lose all their subflows, and servers that wait for them, or not for long.
    fn blackouts(&mut self, scenario: &mut Scenario) {
        let end = scenario.faults.as_millis() as usize;
        let mut sound = Vec::new();
        for (i, path) in scenario.sim.paths.iter().enumerate() {
            sound.extend(path.meddling.is_harmless().then_some(i));
        }
        if self.one_in(4) {
            let seconds = self.pick(&[0, 1, 10]);
            scenario.sim.patience.without_subflow = Duration::from_secs(seconds);
        }
        if self.one_in(4) {
            scenario.sim.stranded_max = self.below(4);
        }
        for plan in &mut scenario.clients {
            let quirks = &plan.config.quirks;
            let spoilt = quirks.no_options_after_syn
                || quirks.no_options_after_third_ack
                || quirks.distrusts_paths;
            if !plan.config.multipath || spoilt || sound.is_empty() || !self.one_in(3) {
                continue;
            }
            for _ in 0..1 + self.below(3) {
                plan.blackouts.push(Blackout {
                    at: self.millis(0, end),
                    pause: Duration::from_millis(self.magnitude(80_000) as u64),
                    silent: self.one_in(3),
                    path: self.pick(&sound),
                });
            }
            plan.blackouts.sort_by_key(|b| b.at);
        }
    }

    /// Servers that open subflows, and clients that say where they listen for them.
    fn listeners(&mut self, scenario: &mut Scenario) {
        if !self.one_in(2) {
            return;
        }
        scenario.sim.addresses.open_subflows = self.pick(&[1, 1, 2, 8]);
        scenario.sim.routes = !self.one_in(4);
        // Version 0 knows no such thing.
        scenario.sim.versions.v1 = true;
        let mut sound = Vec::new();
        for (i, path) in scenario.sim.paths.iter().enumerate() {
            sound.extend(path.meddling.is_harmless().then_some(i));
        }
        for plan in &mut scenario.clients {
            let quirks = &plan.config.quirks;
            let spoilt = quirks.no_options_after_syn
                || quirks.no_options_after_third_ack
                || quirks.distrusts_paths;
            if !plan.config.multipath || spoilt || sound.is_empty() {
                continue;
            }
            plan.config.version = 1;
            for _ in 0..1 + self.below(3) {
                let listen = Signal::Listen {
                    on: self.below(8),
                    path: self.pick(&sound),
                    port: (!self.one_in(3)).then_some(7000 + self.below(2) as u16),
                };
                // Most connections are short.
                let after = Duration::from_millis(self.magnitude(5_000) as u64);
                plan.signals.push((plan.start + after, listen));
            }
            plan.signals.sort_by_key(|s| s.0);
        }
    }

    /// Several workers, and what goes wrong between them.
    fn workers(&mut self, scenario: &mut Scenario) {
        if !self.one_in(2) {
            return;
        }
        let sim = &mut scenario.sim;
        sim.more_engines = 1 + self.below(3);
        sim.mesh = MeshFaults {
            direct: self.one_in(2),
            ..MeshFaults::default()
        };
        if self.one_in(2) {
            sim.mesh.wrong_worker_permille = self.magnitude(300) as u32;
        }
        if self.one_in(2) {
            sim.mesh.mesh_full_permille = self.magnitude(300) as u32;
        }
        if self.one_in(3) {
            sim.mesh.lost_flows_permille = self.magnitude(1000) as u32;
        }
    }

    /// SYN cookies, and reasons for them; keys drawn ahead.
    fn floods(&mut self, scenario: &mut Scenario) {
        if self.one_in(2) {
            scenario.idle_draws = self.magnitude(64) as u32;
        }
        if !self.one_in(3) {
            return;
        }
        let sim = &mut scenario.sim;
        sim.syn_cookies_from = self.pick(&[0, 0, 1, 8]).min(sim.half_open_max);
        if sim.memory_max_bytes < 1 << 30 {
            // What is half open would take all of it.
            sim.syn_cookies_from = 0;
        }
        for plan in &mut scenario.clients {
            plan.config.server_may_forget = true;
        }
        let kinds: Vec<_> = Kind::ALL.into_iter().filter(|_| self.one_in(2)).collect();
        if !kinds.is_empty() && self.one_in(2) {
            // What is half open counts.
            sim.connections_max = 100_000;
            let in_their_name = |k: &Kind| matches!(k, Kind::AckOfClient | Kind::ResetOfClient);
            for plan in &mut scenario.clients {
                plan.config.impersonated = kinds.iter().any(in_their_name);
            }
            scenario.flood = Some(Flood {
                kinds,
                frames_per_tick: self.magnitude(100),
                seed: self.0.next(),
            });
        }
    }

    /// Services whose subflows share a congestion control.
    fn couples(&mut self, scenario: &mut Scenario) {
        let sim = &mut scenario.sim;
        let more = sim.more_services.iter_mut().map(|s| &mut s.congestion);
        for congestion in more.chain([&mut sim.congestion]) {
            if self.one_in(3) {
                *congestion = Algorithm::Lia;
            }
        }
    }

    /// TCP Fast Open: clients that ask for cookies, bring them with text, or bring others'.
    fn fast_opens(&mut self, scenario: &mut Scenario) {
        if !self.one_in(2) {
            return;
        }
        let sim = &mut scenario.sim;
        sim.fast_open = self.pick(&[FastOpen::On, FastOpen::On, FastOpen::WithoutCookies]);
        if self.one_in(4) {
            sim.fast_open_pending_max = self.below(3);
        }
        let without_cookies = sim.fast_open == FastOpen::WithoutCookies;
        for plan in &mut scenario.clients {
            // There any cookie is as good as the right one.
            let foreign = FastOpenCookie::new(&[7; 6]);
            let brings = self.one_in(if without_cookies { 2 } else { 4 });
            let cookie = foreign.filter(|_| brings);
            plan.config.fast_open = (!self.one_in(4)).then(|| cookie.unwrap_or_default());
            plan.inherits_cookie = plan.after.is_some() && !self.one_in(4);
            plan.config.syn_text_bytes = self.magnitude(usize::from(plan.config.mss) - 60);
        }
    }

    fn patience(&mut self, usual: Patience) -> Patience {
        Patience {
            keepalive: self.one_in(2).then(|| self.millis(500, 20_000)),
            keepalive_interval: self.millis(300, 5_000),
            keepalive_probes: 2 + self.below(8) as u32,
            user_timeout: self.one_in(3).then(|| self.millis(5_000, 60_000)),
            ..usual
        }
    }

    /// A client with the address and port of another one, after its end or its sudden silence.
    fn successor(&mut self, scenario: &mut Scenario, crowd: bool) {
        let n = scenario.clients.len();
        let before = self.below(n);
        let taken = |p: &Plan| p.after.is_some_and(|after| after.0 == before);
        if scenario.clients.iter().any(taken) {
            return;
        }
        let sim = &scenario.sim;
        let (seed, paths) = (sim.seed, sim.paths.len());
        let mut plan = self.plan(seed, n, sim.family, paths, scenario.faults, crowd);
        plan.start = Duration::from_millis(self.magnitude(4_000) as u64);
        plan.after = Some((before, self.again()));
        scenario.clients.push(plan);
        if self.one_in(2) {
            let end = scenario.faults.as_millis() as usize;
            let how = self.pick(&[Abort::Reset, Abort::Vanish, Abort::Vanish]);
            scenario.clients[before].abort = Some((self.millis(0, end), how));
        }
    }

    fn again(&mut self) -> Again {
        self.pick(&[Again::Newer, Again::Newer, Again::Older])
    }

    fn signal(&mut self) -> Signal {
        let on = self.below(8);
        match self.below(4) {
            0 => Signal::Advertise { on },
            1 => Signal::Withdraw { on },
            n => Signal::Priority { on, backup: n == 2 },
        }
    }

    fn stream_bytes(&mut self, max: usize) -> usize {
        match self.below(8) {
            0 => 0,
            1 => max,
            _ => self.magnitude(max),
        }
    }

    fn quirks(&mut self) -> Quirks {
        let mut quirks = Quirks::default();
        match self.below(3) {
            0 => quirks.no_options_after_syn = true,
            1 => quirks.no_options_after_third_ack = true,
            _ => quirks.no_pure_third_ack = true,
        }
        quirks
    }

    fn app(&mut self, max: usize, upload_bytes: usize) -> Behaviour {
        let mut app = Behaviour::default();
        match self.below(4) {
            0 => app.echo = true,
            1 => {}
            _ => {
                app.send_bytes = self.stream_bytes(max);
                app.close_first = self.one_in(2);
            }
        }
        if self.one_in(12) && upload_bytes > 0 {
            app.abort_after_bytes = Some(1 + self.below(upload_bytes));
        }
        app
    }
}
