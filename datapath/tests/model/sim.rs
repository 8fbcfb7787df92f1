//! Clients, network and engine in virtual time, put together as a worker does it: frames through a
//! port, timers, and frames out, turn by turn.
//!
//! With `MPX_TEST_PCAP=file` in the environment the frames of the last simulation of a test are
//! in that file.

use super::apps::{Behaviour, TestApp};
use super::client::{Client, ClientConfig};
use super::net::{Net, Path, Side};
use super::server::Server;
use mpx_datapath::port::memory::{MemoryConfig, MemoryPort};
use mpx_datapath::port::pcap::PcapPort;
use mpx_datapath::port::{IfaceId, Port};
use mpx_datapath::time::{Duration, Instant};
use std::cell::Cell;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Turns without any time passing, after which something goes round in circles.
const TURNS_MAX: u32 = 20_000;
const SERVICE_PORT: u16 = 80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The service's address on a path.
    pub fn server(self, path: usize) -> SocketAddr {
        SocketAddr::new(self.host(path, 2), SERVICE_PORT)
    }

    fn host(self, path: usize, host: u16) -> IpAddr {
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
    /// Flag A of the server's MP_CAPABLE.
    pub checksum: bool,
    pub receive_buffer_bytes: usize,
    pub send_buffer_bytes: usize,
    pub subflows_max: usize,
}

impl SimConfig {
    pub fn with(app: Behaviour) -> SimConfig {
        SimConfig {
            paths: vec![Path::default(); 4],
            family: Family::V4,
            seed: 1,
            app,
            checksum: false,
            receive_buffer_bytes: 256 * 1024,
            send_buffer_bytes: 512 * 1024,
            subflows_max: 8,
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
    pub clients: Vec<Client>,
    port: PcapPort<MemoryPort, Box<dyn Write>, Clock>,
    /// The time for the capture.
    clock: Rc<Cell<u64>>,
    hosts: u16,
    turns: u32,
}

impl Sim {
    pub fn new(config: SimConfig) -> Sim {
        let now = Instant::from_millis(1_000_000);
        let app = TestApp::new(config.app);
        let interfaces = config.paths.len();
        let memory = MemoryPort::new(MemoryConfig {
            interfaces,
            ..MemoryConfig::default()
        });
        let clock = Rc::new(Cell::new(now.0));
        let time = Rc::clone(&clock);
        let out: Box<dyn Write> = match std::env::var_os("MPX_TEST_PCAP") {
            Some(path) => {
                Box::new(std::fs::File::create(path).expect("MPX_TEST_PCAP can be written"))
            }
            None => Box::new(std::io::sink()),
        };
        let clock_of_port: Clock = Box::new(move || Duration::from_nanos(time.get()));
        Sim {
            now,
            server: Server::new(&config, now, app.clone()),
            app,
            net: Net::new(config.paths.clone(), config.seed),
            clients: Vec::new(),
            port: PcapPort::new(memory, out, &[], clock_of_port),
            clock,
            hosts: 10,
            turns: 0,
            config,
        }
    }

    /// Starts a client on a host of its own; returns its index.
    pub fn connect(&mut self, client: ClientConfig) -> usize {
        self.hosts += 1;
        let local = SocketAddr::new(self.config.family.host(0, self.hosts), 40_000);
        self.connect_from(client, local)
    }

    pub fn connect_from(&mut self, client: ClientConfig, local: SocketAddr) -> usize {
        let mut client = Client::new(client);
        client.connect(local, IfaceId(0));
        self.clients.push(client);
        self.clients.len() - 1
    }

    /// Starts another subflow of a client, from its address on `path` to the server's there.
    pub fn join(&mut self, c: usize, path: usize) -> usize {
        let client = &mut self.clients[c];
        let n = client.subflows.len();
        let host = self.config.family.host(path, 1000 + c as u16);
        let local = SocketAddr::new(host, 50_000 + n as u16);
        client.join(local, self.config.family.server(path), IfaceId(path as u8))
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
        let mut log = self.app.log.borrow_mut();
        log.behaviour.paused = false;
        log.wake = log.order.clone();
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
        while let Some((to, iface, frame)) = self.net.arrive(now) {
            match to {
                Side::Server => {
                    assert!(self.port.inner_mut().inject(iface, &frame), "port is full")
                }
                Side::Client => self.deliver(iface, &frame),
            }
        }
        for client in &mut self.clients {
            client.on_timeout(now);
        }
        let server = &mut self.server;
        while self
            .port
            .receive(&mut |iface, frame| server.on_frame(now, iface, frame))
            > 0
        {}
        server.on_timeout(now);
        server.engine.poll_apps(now);
        for iface in (0..self.config.paths.len()).map(|i| IfaceId(i as u8)) {
            let mut more = true;
            while more {
                let written = self.port.transmit(iface, &mut |frame| {
                    let len = server.poll_transmit(now, iface, frame);
                    more = len > 0;
                    len
                });
                assert!(written, "port has no frame to send in");
                self.port.flush();
                if let Some(frame) = self.port.inner_mut().take(iface) {
                    self.net.send(now, Side::Client, iface, frame);
                }
            }
        }
        for client in &mut self.clients {
            while let Some((iface, frame)) = client.poll_transmit(now) {
                self.net.send(now, Side::Server, iface, frame);
            }
        }
    }

    /// To the client that has the frame's address; to nobody if it is gone.
    fn deliver(&mut self, iface: IfaceId, frame: &[u8]) {
        if let Some(client) = self.clients.iter_mut().find(|c| c.owns(frame)) {
            client.on_frame(self.now, iface, frame);
        }
    }

    fn describe(&self) -> String {
        let clients: Vec<String> = self.clients.iter().map(Client::describe).collect();
        format!(
            "{}\n{}\nwith {:?}",
            self.server.describe(),
            clients.join("\n"),
            self.config
        )
    }
}
