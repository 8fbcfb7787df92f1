//! The proxy between the engine with a model client, and backends on kernel sockets.

#[path = "../../../datapath/tests/model/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod model;

use super::*;
use model::client::{Client, ClientConfig};
use mpx_datapath::engine::{
    AddressPolicy, Buffers, Closing, Engine, EngineConfig, InterfaceConfig, JoinPolicy, Patience,
    ServiceConfig, Versions,
};
use mpx_datapath::port::IfaceId;
use mpx_datapath::rand::ChaChaEntropy;
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::tcp::fast_open::FastOpen;
use mpx_datapath::wire::frame::Segment;
use std::net::{TcpListener, TcpStream as Backend};
use std::thread;

const PATH: IfaceId = IfaceId(0);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
const BUFFER_BYTES: usize = 64 * 1024;

/// A client and an engine on one wire that loses nothing, on the clock of the system.
struct Rig {
    engine: Engine,
    client: Client,
    counters: Arc<ProxyCounters>,
    begin: std::time::Instant,
    frame: Vec<u8>,
    /// Frames of the engine so far.
    departed: u64,
}

impl Rig {
    fn new(backends: &[SocketAddr], proxy_protocol: bool) -> Rig {
        let server: SocketAddr = "10.9.1.2:80".parse().unwrap();
        let counters = Arc::<ProxyCounters>::default();
        let config = ProxyConfig {
            backends: backends.to_vec(),
            connect_timeout: CONNECT_TIMEOUT,
            proxy_protocol,
        };
        let proxy = Proxy::new(config, Arc::clone(&counters)).unwrap();
        let service = ServiceConfig {
            name: "web".into(),
            listen: vec![server],
            versions: Versions::default(),
            checksum: true,
            joins: JoinPolicy::AnyPort,
            addresses: AddressPolicy::default(),
            congestion: Algorithm::default(),
            ecn: true,
            fast_open: FastOpen::Off,
            patience: Patience {
                keepalive: None,
                ..Patience::default()
            },
            closing: Closing::default(),
        };
        let config = EngineConfig {
            buffers: Buffers {
                receive_initial_bytes: BUFFER_BYTES,
                receive_max_bytes: BUFFER_BYTES,
                send_initial_bytes: BUFFER_BYTES,
                send_max_bytes: BUFFER_BYTES,
            },
            time_wait: Duration::from_millis(1),
            ..EngineConfig::new(vec![InterfaceConfig { mtu: 1500 }], vec![service])
        };
        let entropy = Box::new(ChaChaEntropy::deterministic(1));
        let mut client = Client::new(ClientConfig::new(server));
        client.connect("10.9.1.1:50000".parse().unwrap(), PATH);
        Rig {
            engine: Engine::new(
                config,
                vec![Box::new(proxy)],
                Instant::from_millis(1),
                entropy,
            ),
            client,
            counters,
            begin: std::time::Instant::now(),
            frame: vec![0; 2048],
            departed: 0,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_millis(1) + self.begin.elapsed()
    }

    fn turn(&mut self) {
        let now = self.now();
        let mut worked = false;
        while let Some((_, frame)) = self.client.poll_transmit(now) {
            worked = true;
            self.engine.on_frame(now, PATH, &frame);
        }
        self.engine.on_timeout(now);
        worked |= self.engine.poll_apps(now);
        while self.engine.wants_transmit(PATH) {
            let length = self.engine.poll_transmit(now, PATH, &mut self.frame);
            if length > 0 {
                worked = true;
                let segment = Segment::parse(&self.frame[..length]).unwrap();
                self.departed += 1;
                self.client.on_departure(self.departed, &segment, false);
                self.client
                    .on_segment_arrived(now, PATH, self.departed, &segment);
            }
        }
        self.client.on_timeout(now);
        if !worked {
            thread::sleep(Duration::from_micros(100));
        }
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Rig) -> bool) {
        while !done(self) {
            let report = self.engine.report(self.now(), 1);
            assert!(
                self.begin.elapsed() < Duration::from_secs(20),
                "never: {what}\n{:?}\n{}\n{report:#?}",
                self.counters.entries(),
                self.client.describe()
            );
            self.turn();
        }
    }

    fn run_for(&mut self, duration: Duration) {
        let end = std::time::Instant::now() + duration;
        while std::time::Instant::now() < end {
            self.turn();
        }
    }

    fn count(&self, counter: impl Fn(&ProxyCounters) -> &AtomicU64) -> u64 {
        counter(&self.counters).load(Ordering::Relaxed)
    }

    fn connections(&self) -> usize {
        self.engine.connections()
    }
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address that refuses.
fn closed() -> SocketAddr {
    listen().1
}

/// A backend for one connection, on a thread of its own.
fn backend<T: Send + 'static>(
    serve: impl FnOnce(Backend) -> T + Send + 'static,
) -> (SocketAddr, thread::JoinHandle<T>) {
    let (listener, address) = listen();
    (
        address,
        thread::spawn(move || serve(listener.accept().unwrap().0)),
    )
}

fn read_all(stream: &mut Backend) -> Vec<u8> {
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).unwrap();
    octets
}

#[test]
fn both_streams_arrive_whole_and_end_by_themselves() {
    let up = model::stream(1, 1_000_000);
    let down = model::stream(2, 3_000_000);
    let answer = down.clone();
    let (address, served) = backend(move |mut stream| {
        // The client's end comes through while this side is still open.
        let request = read_all(&mut stream);
        stream.write_all(&answer).unwrap();
        request
    });
    let mut rig = Rig::new(&[address], true);
    rig.client.send(&up);
    rig.client.close_write();
    rig.run_until("the answer and its end", |rig| rig.client.peer_finished());
    rig.run_until("no connection", |rig| rig.connections() == 0);
    model::assert_same(rig.client.received(), &down);
    let request = served.join().unwrap();
    let header = proxy_header(
        "10.9.1.1:50000".parse().unwrap(),
        "10.9.1.2:80".parse().unwrap(),
    );
    assert_eq!(request[..header.len()], header);
    model::assert_same(&request[header.len()..], &up);
    assert_eq!(rig.count(|c| &c.bytes_up), up.len() as u64);
    assert_eq!(rig.count(|c| &c.bytes_down), down.len() as u64);
    assert_eq!(
        rig.count(|c| &c.client_aborts) + rig.count(|c| &c.backend_aborts),
        0
    );
}

#[test]
fn backends_are_tried_in_turn_each_once() {
    let (_listener, open) = listen();
    let mut rig = Rig::new(&[closed(), closed(), open], false);
    rig.run_until("a backend", |rig| rig.count(|c| &c.connects) == 1);
    assert_eq!(rig.count(|c| &c.connect_refused), 2);

    let mut rig = Rig::new(&[closed(), closed()], false);
    rig.run_until("a reset", |rig| {
        rig.count(|c| &c.no_backend) == 1 && rig.client.closed()
    });
    assert_eq!(rig.count(|c| &c.connect_refused), 2);
    rig.run_until("no connection", |rig| rig.connections() == 0);
    assert!(!rig.client.peer_finished());
}

#[test]
fn a_silent_backend_is_given_up_in_time() {
    // A listener whose queue is full answers no SYN.
    let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let full = new();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    full.listen(0).unwrap();
    let silent = full.local_addr().unwrap();
    let _queue = [(); 3].map(|()| {
        let socket = new();
        socket.set_nonblocking(true).unwrap();
        // In progress, which counts as an error.
        let _ = socket.connect(&silent);
        socket
    });
    let silent = silent.as_socket().unwrap();
    let (_listener, open) = listen();

    let mut rig = Rig::new(&[silent, open], false);
    rig.run_until("a backend", |rig| rig.count(|c| &c.connects) == 1);
    assert_eq!(rig.count(|c| &c.connect_timeouts), 1);
    assert!(rig.begin.elapsed() >= CONNECT_TIMEOUT);

    let mut rig = Rig::new(&[silent, silent], false);
    rig.run_until("a reset", |rig| {
        rig.connections() == 0 && rig.client.closed()
    });
    assert_eq!(rig.count(|c| &c.connect_timeouts), 2);
    assert_eq!(rig.count(|c| &c.no_backend), 1);
}

#[test]
fn a_reset_comes_through_from_either_side() {
    let (address, served) = backend(|mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        stream.read(&mut [0]).unwrap_err().kind()
    });
    let mut rig = Rig::new(&[address], false);
    rig.client.send(b"x");
    rig.run_until("a byte up", |rig| rig.count(|c| &c.bytes_up) == 1);
    rig.client.fastclose();
    rig.run_until("no connection", |rig| rig.connections() == 0);
    assert_eq!(served.join().unwrap(), ErrorKind::ConnectionReset);
    assert_eq!(rig.count(|c| &c.client_aborts), 1);

    let (address, served) = backend(|mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    });
    let mut rig = Rig::new(&[address], false);
    rig.client.send(b"x");
    rig.run_until("a reset", |rig| {
        rig.connections() == 0 && rig.client.closed()
    });
    served.join().unwrap();
    assert_eq!(rig.count(|c| &c.backend_aborts), 1);
    assert!(!rig.client.peer_finished());
}

/// Writing to the backend meets its reset first, and reading then finds nothing but an end.
#[test]
fn a_reset_that_writing_meets_comes_through() {
    let (full, is_full) = std::sync::mpsc::channel();
    let (address, served) = backend(move |stream| {
        is_full.recv().unwrap();
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    });
    let mut rig = Rig::new(&[address], false);
    rig.client.send(&model::stream(4, 32 << 20));
    let mut up = (0, std::time::Instant::now());
    while up.1.elapsed() < Duration::from_millis(300) {
        rig.turn();
        let now = rig.count(|c| &c.bytes_up);
        if now != up.0 {
            up = (now, std::time::Instant::now());
        }
    }
    full.send(()).unwrap();
    served.join().unwrap();
    rig.run_until("a reset", |rig| {
        rig.connections() == 0 && rig.client.closed()
    });
    assert_eq!(rig.count(|c| &c.backend_aborts), 1);
    assert!(!rig.client.peer_finished());
}

/// A backend that answers and closes while the client still sends: the answer arrives, what comes
/// after goes nowhere, and a client that does not stop is reset.
#[test]
fn an_early_answer_outlives_its_backend() {
    let (address, served) = backend(|mut stream| {
        stream.write_all(b"too large").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    });
    let mut rig = Rig::new(&[address], false);
    rig.client.send(b"x");
    rig.run_until("the answer", |rig| rig.client.received() == b"too large");
    served.join().unwrap();
    let begin = std::time::Instant::now();
    rig.client.send(&model::stream(4, 500_000));
    rig.run_until("all taken", |rig| rig.client.acknowledged() >= 500_001);
    assert_eq!(rig.connections(), 1);
    rig.run_until("a reset", |rig| rig.connections() == 0);
    assert!(begin.elapsed() >= LINGER);
    assert_eq!(rig.count(|c| &c.backend_aborts), 1);
}

#[test]
fn a_slow_side_holds_the_other_back() {
    let (listener, address) = listen();
    let mut rig = Rig::new(&[address], false);
    let up = model::stream(5, 20_000_000);
    rig.client.send(&up);
    rig.client.set_reading(false);
    rig.run_until("a backend", |rig| rig.count(|c| &c.connects) == 1);
    let mut stream = listener.accept().unwrap().0;

    // Nobody reads: each direction stops when the buffers on its way are full.
    stream.set_nonblocking(true).unwrap();
    let down = model::stream(6, 20_000_000);
    let mut sent = 0;
    let mut before = (1, 1);
    while before != (rig.client.acknowledged(), sent) {
        before = (rig.client.acknowledged(), sent);
        while let Ok(written) = stream.write(&down[sent..]) {
            sent += written;
        }
        rig.run_for(Duration::from_millis(100));
    }
    assert!(sent < down.len() && rig.client.acknowledged() < up.len() as u64);
    let report = rig.engine.report(rig.now(), 1);
    assert!(report.conns[0].unread_bytes <= BUFFER_BYTES, "{report:?}");
    assert!(
        report.conns[0].send_buffered_bytes <= BUFFER_BYTES,
        "{report:?}"
    );
    let timeout = rig
        .engine
        .apps()
        .next()
        .and_then(|app| app.readiness()?.next_timeout());
    assert_eq!(timeout, None, "the proxy would not let the worker sleep");

    // Both read again.
    rig.client.set_reading(true);
    rig.client.close_write();
    stream.set_nonblocking(false).unwrap();
    let reader = thread::spawn(move || {
        let request = read_all(&mut stream);
        drop(stream);
        request
    });
    rig.run_until("the end", |rig| {
        rig.client.peer_finished() && rig.connections() == 0
    });
    model::assert_same(&reader.join().unwrap(), &up);
    model::assert_same(rig.client.received(), &down[..sent]);
}

#[test]
fn proxy_header_of_ipv4() {
    let header = proxy_header(
        "10.9.1.1:50000".parse().unwrap(),
        "10.9.1.2:80".parse().unwrap(),
    );
    assert_eq!(
        header,
        [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11,
            0x00, 0x0c, 10, 9, 1, 1, 10, 9, 1, 2, 0xc3, 0x50, 0x00, 0x50
        ]
    );
}

#[test]
fn proxy_header_of_ipv6() {
    let header = proxy_header(
        "[fd00::1]:50000".parse().unwrap(),
        "[fd00::2]:443".parse().unwrap(),
    );
    assert_eq!(header.len(), 16 + 36);
    assert_eq!(header[12..16], [0x21, 0x21, 0x00, 0x24]);
    assert_eq!(header[16..20], [0xfd, 0, 0, 0]);
    assert_eq!((header[31], header[47]), (1, 2));
    assert_eq!(header[48..], [0xc3, 0x50, 0x01, 0xbb]);
}

#[test]
fn a_token_keeps_index_and_generation() {
    let key = Key {
        index: u32::MAX - 3,
        generation: u32::MAX - 1,
    };
    assert_eq!(Key::of(key.token()), key);
}
/// Both streams have ended and the client is gone, but the backend has not taken everything yet.
#[test]
fn a_backend_that_ends_first_still_gets_everything() {
    let (listener, address) = listen();
    let mut rig = Rig::new(&[address], false);
    rig.run_until("a backend", |rig| rig.count(|c| &c.connects) == 1);
    let mut stream = listener.accept().unwrap().0;
    stream.shutdown(Shutdown::Write).unwrap();
    let mut up = Vec::new();
    while rig.engine.report(rig.now(), 1).conns[0].unread_bytes == 0 {
        let more = model::stream(up.len() as u64, 16_384);
        rig.client.send(&more);
        up.extend(more);
        let sent = up.len() as u64;
        rig.run_until("acknowledgment", |rig| rig.client.acknowledged() >= sent);
    }
    rig.client.close_write();
    rig.run_until("both ends", |rig| {
        rig.client.peer_finished() && rig.client.all_acknowledged()
    });
    rig.run_until("subflows closed", |rig| rig.client.closed());
    rig.run_for(Duration::from_millis(200));

    let reader = thread::spawn(move || read_all(&mut stream));
    rig.run_until("no connection", |rig| rig.connections() == 0);
    model::assert_same(&reader.join().unwrap(), &up);
    assert_eq!(rig.count(|c| &c.client_aborts), 0);
}
