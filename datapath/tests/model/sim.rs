//! Clients, network and engine in virtual time, put together as a worker does it: frames through a
//! port, timers, and frames out, turn by turn.
//!
//! With `MPX_TEST_PCAP=file` in the environment the frames of the last simulation of a test are
//! in that file, and with `MPX_TEST_TRACE=1` they are listed on the standard error.

use super::apps::{Behaviour, TestApp};
use super::client::{Client, ClientConfig};
use super::middlebox::Middleboxes;
use super::net::{Arrival, Net, Path, Sender, Side};
use super::server::{MeshFaults, Server, ServiceSetup};
use super::subflow::Again;
use super::trace::{self, Tracer};
use mpx_datapath::engine::{AddressPolicy, Closing, Patience, Versions};
use mpx_datapath::port::memory::{MemoryConfig, MemoryPort};
use mpx_datapath::port::pcap::PcapPort;
use mpx_datapath::port::{IfaceId, Port};
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::tcp::fast_open::FastOpen;
use mpx_datapath::time::{Duration, Instant};
use mpx_datapath::wire::frame::Segment;
use std::cell::Cell;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Turns without any time passing, after which something goes round in circles.
const TURNS_MAX: u32 = 20_000;
/// Of the service that every simulation has.
pub const SERVICE_PORT: u16 = 80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The service's address on a path.
    pub fn server(self, path: usize) -> SocketAddr {
        self.server_at(path, SERVICE_PORT)
    }

    pub fn server_at(self, path: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.host(path, 2), port)
    }

    pub fn of(address: SocketAddr) -> Family {
        match address {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        }
    }

    /// Where the client of that number has other subflows than the initial one on a path.
    pub fn client_at(self, path: usize, client: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.host(path, 1000 + client as u16), port)
    }

    /// The path that an address is on.
    pub fn path_of(address: IpAddr) -> usize {
        let number = match address {
            IpAddr::V4(v4) => usize::from(v4.octets()[1] / 16),
            IpAddr::V6(v6) => usize::from(v6.segments()[2]),
        };
        number - 1
    }

    pub fn host(self, path: usize, host: u16) -> IpAddr {
        match self {
            Family::V4 => {
                let [high, low] = host.to_be_bytes();
                Ipv4Addr::new(10, 16 * (path as u8 + 1), high, low).into()
            }
            Family::V6 => Ipv6Addr::new(0xfd00, 9, path as u16 + 1, 0, 0, 0, 0, host).into(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct SimConfig {
    pub paths: Vec<Path>,
    pub family: Family,
    pub seed: u64,
    pub app: Behaviour,
    pub more_services: Vec<ServiceSetup>,
    /// Of the service that every simulation has.
    pub addresses: AddressPolicy,
    /// The server knows by which path an address is reached.
    pub routes: bool,
    /// Engines beside the first.
    pub more_engines: usize,
    /// Of Multipath TCP that all services speak.
    pub versions: Versions,
    /// Between them.
    pub mesh: MeshFaults,
    /// Flag A of the server's MP_CAPABLE.
    pub checksum: bool,
    /// Of the server.
    pub congestion: Algorithm,
    /// The server agrees to ECN where it is asked to.
    pub ecn: bool,
    /// The most that the server's buffers become, and what they begin with where that is less.
    pub receive_buffer_bytes: usize,
    pub send_buffer_bytes: usize,
    pub receive_initial_bytes: usize,
    pub send_initial_bytes: usize,
    /// Of the server's one worker.
    pub memory_max_bytes: usize,
    pub subflows_max: usize,
    pub connections_max: usize,
    pub half_open_max: usize,
    pub stranded_max: usize,
    /// Half-open connections from which on SYNs get cookies.
    pub syn_cookies_from: usize,
    /// Of all services.
    pub fast_open: FastOpen,
    pub fast_open_pending_max: usize,
    pub time_wait_max: usize,
    pub patience: Patience,
    pub closing: Closing,
    /// For the frames as the server sees them, in place of the file that the environment names.
    pub capture: Option<PathBuf>,
    /// Lists all frames.
    pub trace: bool,
}

impl SimConfig {
    pub fn with(app: Behaviour) -> SimConfig {
        SimConfig {
            paths: vec![Path::default(); 4],
            family: Family::V4,
            seed: 1,
            app,
            more_services: Vec::new(),
            addresses: AddressPolicy::default(),
            routes: true,
            more_engines: 0,
            versions: Versions::default(),
            mesh: MeshFaults {
                direct: true,
                ..MeshFaults::default()
            },
            checksum: false,
            congestion: Algorithm::default(),
            ecn: true,
            receive_buffer_bytes: 256 * 1024,
            send_buffer_bytes: 512 * 1024,
            receive_initial_bytes: usize::MAX,
            send_initial_bytes: usize::MAX,
            memory_max_bytes: 1 << 30,
            subflows_max: 8,
            connections_max: 100_000,
            half_open_max: 16_384,
            stranded_max: 16_384,
            syn_cookies_from: usize::MAX,
            fast_open: FastOpen::Off,
            fast_open_pending_max: 1024,
            time_wait_max: 65_536,
            patience: Patience {
                keepalive: None,
                ..Patience::default()
            },
            closing: Closing::default(),
            capture: std::env::var_os("MPX_TEST_PCAP").map(PathBuf::from),
            trace: std::env::var_os("MPX_TEST_TRACE").is_some(),
        }
    }
}

type Clock = Box<dyn FnMut() -> Duration>;

pub struct Sim {
    pub config: SimConfig,
    pub now: Instant,
    pub server: Server,
    pub app: TestApp,
    pub net: Net,
    boxes: Middleboxes,
    pub clients: Vec<Client>,
    port: PcapPort<MemoryPort, Box<dyn Write>, Clock>,
    /// The time for the capture.
    clock: Rc<Cell<u64>>,
    tracer: Option<Tracer>,
    /// Frames that were delivered to the server with an octet changed.
    pub corrupted_to_server: u64,
    hosts: u16,
    turns: u32,
}

impl Sim {
    pub fn new(config: SimConfig) -> Sim {
        let now = Instant::from_millis(1_000_000);
        let app = TestApp::new(config.app);
        app.log.borrow_mut().may_open_twice = config.fast_open != FastOpen::Off;
        let interfaces = config.paths.len();
        let memory = MemoryPort::new(MemoryConfig {
            interfaces,
            ..MemoryConfig::default()
        });
        let clock = Rc::new(Cell::new(now.0));
        let time = Rc::clone(&clock);
        let out: Box<dyn Write> = match &config.capture {
            Some(path) => {
                Box::new(std::fs::File::create(path).expect("the capture can be written"))
            }
            None => Box::new(std::io::sink()),
        };
        let clock_of_port: Clock = Box::new(move || Duration::from_nanos(time.get()));
        Sim {
            now,
            server: Server::new(&config, now, app.clone()),
            app,
            net: Net::new(config.paths.clone(), config.seed),
            boxes: Middleboxes::default(),
            clients: Vec::new(),
            port: PcapPort::new(memory, out, &[], clock_of_port),
            clock,
            tracer: config.trace.then(|| Tracer::new(now)),
            corrupted_to_server: 0,
            hosts: 10,
            turns: 0,
            config,
        }
    }

    /// Starts a client on a host of its own; returns its index.
    pub fn connect(&mut self, client: ClientConfig) -> usize {
        let local = self.next_local(Family::of(client.server));
        self.connect_from(client, local)
    }

    /// The same over another path than the first.
    pub fn connect_over(&mut self, client: ClientConfig, path: usize) -> usize {
        self.hosts += 1;
        let host = Family::of(client.server).host(path, self.hosts);
        self.connect_on(client, SocketAddr::new(host, 40_000), IfaceId(path as u8))
    }

    /// An address on path 0 that no client has.
    pub fn next_local(&mut self, family: Family) -> SocketAddr {
        self.hosts += 1;
        SocketAddr::new(family.host(0, self.hosts), 40_000)
    }

    pub fn connect_from(&mut self, client: ClientConfig, local: SocketAddr) -> usize {
        self.connect_on(client, local, IfaceId(0))
    }

    fn connect_on(&mut self, client: ClientConfig, local: SocketAddr, iface: IfaceId) -> usize {
        let mut client = Client::new(client);
        client.connect(local, iface);
        self.clients.push(client);
        self.clients.len() - 1
    }

    /// Starts a client at the address and port of another one, which is not heard of any more.
    pub fn connect_again(&mut self, client: ClientConfig, before: usize, again: Again) -> usize {
        let gone = &mut self.clients[before];
        gone.vanish();
        let local = gone.subflows[0].local;
        // Of the last one from there: a join may have used the address again as well.
        let last = gone.subflows.iter().rfind(|s| s.local == local);
        let iss = again.initial_sequence(last.unwrap_or(&gone.subflows[0]));
        let mut client = Client::new(client);
        client.connect(local, IfaceId(0));
        client.subflows[0].comes_again(iss);
        self.clients.push(client);
        self.clients.len() - 1
    }

    /// Starts another subflow of a client, from its address on `path` to the server's there.
    pub fn join(&mut self, c: usize, path: usize) -> usize {
        self.join_as(c, path, false, None)
    }

    /// With `again` from the address and port of a subflow on the same path that is over, if there
    /// is one.
    pub fn join_as(&mut self, c: usize, path: usize, backup: bool, again: Option<Again>) -> usize {
        let client = &mut self.clients[c];
        let n = client.subflows.len();
        let family = Family::of(client.config.server);
        let local = family.client_at(path, c, 50_000 + n as u16);
        let server = family.server_at(path, client.config.server.port());
        let iface = IfaceId(path as u8);
        let before = again.and_then(|again| {
            let s = client.last_over(iface)?;
            s.vanish();
            Some((s.local, again.initial_sequence(s)))
        });
        let i = client.join(before.map_or(local, |b| b.0), server, iface, backup);
        if let Some((_, iss)) = before {
            client.subflows[i].comes_again(iss);
        }
        i
    }

    /// Goes on until `done`.
    pub fn run(&mut self, mut done: impl FnMut(&Sim) -> bool) {
        let deadline = self.now + PATIENCE;
        while !done(self) {
            if !self.step(deadline) && !done(self) {
                panic!("it comes to a halt at {:?}: {}", self.now, self.describe());
            }
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let deadline = self.now + time;
        while self.step(deadline) {}
        self.now = self.now.max(deadline);
    }

    /// Long enough for anything under way to arrive and to be answered.
    pub fn settle(&mut self) {
        self.run_for(Duration::from_secs(1));
    }

    /// Lets the application read again what it left lying.
    pub fn resume_app(&mut self) {
        self.app.read_all();
    }

    /// Everything ends: no table has an entry left, every frame is back, and every connection that
    /// was opened was closed.
    pub fn finish(&mut self) {
        let deadline = self.now + PATIENCE;
        while !self.server.is_empty() {
            if !self.step(deadline) && !self.server.is_empty() {
                panic!("something is left at {:?}: {}", self.now, self.describe());
            }
        }
        self.settle();
        assert!(
            self.server.is_empty(),
            "something came back: {}",
            self.describe()
        );
        let accounts = self.port.accounts();
        assert!(
            accounts.balanced() && accounts.free == accounts.total,
            "{accounts:?}"
        );
        let log = self.app.log.borrow();
        assert!(
            log.records.values().all(|r| r.closed.is_some()),
            "on_closed is missing"
        );
    }

    /// One turn, now, and then on to whatever comes next. `false`: nothing comes before `deadline`.
    fn step(&mut self, deadline: Instant) -> bool {
        self.turn();
        let clients = self.clients.iter().filter_map(Client::next_timeout).min();
        let next = [clients, self.server.next_timeout(), self.net.next_arrival()];
        let Some(next) = next
            .into_iter()
            .flatten()
            .min()
            .filter(|at| *at <= deadline)
        else {
            return false;
        };
        if next > self.now {
            (self.now, self.turns) = (next, 0);
        }
        self.turns += 1;
        assert!(
            self.turns < TURNS_MAX,
            "it goes round in circles: {}",
            self.describe()
        );
        true
    }

    fn turn(&mut self) {
        let now = self.now;
        self.clock.set(now.0);
        while let Some(arrival) = self.net.arrive(now) {
            match arrival.to {
                Side::Server => {
                    self.corrupted_to_server += u64::from(arrival.corrupted);
                    let client = arrival.from.as_ref().map(|from| from.client);
                    self.app.log.borrow_mut().visitor = client;
                    let misled = self.server.misled();
                    let taken = self.port.inner_mut().inject(arrival.iface, &arrival.frame);
                    assert!(taken, "port is full");
                    self.receive();
                    if let Some(from) = &arrival.from
                        && self.server.misled() == misled
                        && Segment::parse(&arrival.frame).is_ok()
                        && let sent = from.original.as_ref().unwrap_or(&arrival.frame)
                        && let Ok(segment) = Segment::parse(sent)
                    {
                        self.clients[from.client].on_arrival_at_server(now, from.subflow, &segment);
                    }
                }
                Side::Client => self.deliver(&arrival),
            }
        }
        for client in &mut self.clients {
            client.on_timeout(now);
        }
        self.server.on_timeout(now);
        self.server.poll_apps(now);
        self.server.answer_routes(now, self.config.paths.len());
        for iface in (0..self.config.paths.len()).map(|i| IfaceId(i as u8)) {
            let mut more = true;
            while more {
                let server = &mut self.server;
                let written = self.port.transmit(iface, &mut |frame| {
                    let len = server.poll_transmit(now, iface, frame);
                    more = len > 0;
                    len
                });
                assert!(written, "port has no frame to send in");
                self.port.flush();
                if let Some(frame) = self.port.inner_mut().take(iface) {
                    self.send(Side::Client, None, iface, frame);
                }
            }
        }
        for c in 0..self.clients.len() {
            while let Some((i, frame)) = self.clients[c].poll_transmit(now) {
                let iface = self.clients[c].subflows[i].iface;
                let from = Sender {
                    client: c,
                    subflow: i,
                    original: None,
                };
                self.send(Side::Server, Some(from), iface, frame);
            }
        }
    }

    /// A frame that no client sent arrives at once.
    pub fn strike(&mut self, iface: IfaceId, frame: &[u8]) {
        self.app.log.borrow_mut().visitor = None;
        let taken = self.port.inner_mut().inject(iface, frame);
        assert!(taken, "port is full");
        self.receive();
    }

    /// The engines take in what is in the port.
    fn receive(&mut self) {
        let (server, now) = (&mut self.server, self.now);
        while self
            .port
            .receive(&mut |arrival, frame| server.on_frame(now, arrival, frame))
            > 0
        {}
    }

    /// Through the path's middleboxes into its queue.
    fn send(&mut self, to: Side, from: Option<Sender>, iface: IfaceId, frame: Vec<u8>) {
        let meddling = self.net.paths[usize::from(iface.0)].meddling;
        let parts = self.boxes.pass(&meddling, to, &frame);
        let cut = parts.len() > 1;
        let changed = parts.len() != 1 || parts[0] != frame;
        for part in parts {
            let mut from = from.clone();
            if let Some(from) = &mut from {
                from.original = changed.then(|| frame.clone());
            }
            if to == Side::Client {
                self.watch(&part, cut);
            }
            self.send_part(to, from, iface, part);
        }
    }

    fn send_part(&mut self, to: Side, from: Option<Sender>, iface: IfaceId, frame: Vec<u8>) {
        match &mut self.tracer {
            None => drop(self.net.send(self.now, to, from, iface, frame)),
            Some(tracer) => {
                let line = tracer.line(self.now, to, iface, &frame);
                let fate = self.net.send(self.now, to, from, iface, frame);
                eprintln!("{line}{}", trace::describe(fate));
            }
        }
    }

    /// Shows a frame to its client in the order in which the server sends them.
    fn watch(&mut self, frame: &[u8], cut: bool) {
        let Ok(segment) = Segment::parse(frame) else {
            panic!("the server sent a frame that cannot be read: {frame:02x?}");
        };
        let to = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let number = self.net.next_number();
        if let Some(client) = self.clients.iter_mut().rfind(|c| c.owns(to)) {
            client.on_departure(number, &segment, cut);
        }
    }

    /// To the latest client that has the frame's address; to nobody if there is none.
    fn deliver(&mut self, arrival: &Arrival) {
        let segment = match Segment::parse(&arrival.frame) {
            Ok(_) if arrival.corrupted => panic!("nobody notices: {:02x?}", arrival.frame),
            Err(_) if arrival.corrupted => return,
            Ok(segment) => segment,
            Err(e) => panic!(
                "the server sent a frame that is {e:?}: {:02x?}",
                arrival.frame
            ),
        };
        let to = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        if let Some(client) = self.clients.iter_mut().rfind(|c| c.owns(to)) {
            client.on_segment_arrived(self.now, arrival.iface, arrival.number, &segment);
        }
    }

    pub fn describe(&self) -> String {
        let clients: Vec<String> = self.clients.iter().map(Client::describe).collect();
        format!(
            "{}\n{}\nwith {:?}",
            self.server.describe(),
            clients.join("\n"),
            self.config
        )
    }
}
