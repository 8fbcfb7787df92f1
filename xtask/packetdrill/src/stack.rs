//! One engine with one interface, its clock, and what its connections told their app.

use mpx_datapath::app::{App, CloseCause, Readiness};
use mpx_datapath::engine::{
    AddressPolicy, Announce, Closing, Conn, ConnId, Conns, Engine, EngineConfig, EngineReport,
    InterfaceConfig, JoinPolicy, Patience, ServiceConfig, Versions,
};
use mpx_datapath::metrics::Metrics;
use mpx_datapath::port::IfaceId;
use mpx_datapath::rand::ChaChaEntropy;
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::tcp::fast_open::FastOpen;
use mpx_datapath::time::{Duration, Instant};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::rc::Rc;

const IFACE: IfaceId = IfaceId(0);
/// What the collections' runners give their device: the MSS is 1460 in both families.
const MTU_IPV4: usize = 1500;
const MTU_IPV6: usize = 1520;
/// What `tcp_rmem` allows in the scripts' own defaults: a window scale of 8.
const RECEIVE_BUFFER_BYTES: usize = 15 << 20;
/// What `tcp_wmem` allows there.
const SEND_BUFFER_BYTES: usize = 4 << 20;
const ETHERNET_HEADER_LEN: usize = 14;
/// As a UMEM frame.
const FRAME_BYTES: usize = 2048;
/// A timer that is due again at once lets this much time pass.
const TICK: Duration = Duration::from_micros(10);

pub(crate) struct Stack {
    /// Where it listens, until the first packet starts the engine.
    listening: Option<SocketAddr>,
    congestion: Algorithm,
    /// The listener's socket is one of Multipath TCP.
    multipath: bool,
    /// Its TCP_FASTOPEN was set.
    fast_open: bool,
    engine: Option<Engine>,
    app: Rc<RefCell<AppState>>,
    now: Instant,
    sent: VecDeque<(Instant, Vec<u8>)>,
    /// A file for the counters, as `nstat -js` prints the kernel's, and what it says.
    counters: Option<(PathBuf, Metrics)>,
}

impl Stack {
    pub(crate) fn new() -> Stack {
        let counters = std::env::var_os("MPX_PACKETDRILL_COUNTERS");
        Stack {
            counters: counters.map(|path| (path.into(), Metrics::default())),
            listening: None,
            // What the scripts' own defaults set.
            congestion: Algorithm::Cubic,
            multipath: true,
            fast_open: false,
            engine: None,
            app: Rc::default(),
            // Not at zero: times before the first event must exist.
            now: Instant::from_millis(1_000_000),
            sent: VecDeque::new(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn is_started(&self) -> bool {
        self.engine.is_some()
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.listening.is_some() || self.engine.as_ref().is_some_and(|e| !e.is_draining())
    }

    /// For connections that open once the first packet has come.
    pub(crate) fn set_congestion(&mut self, algorithm: Algorithm) {
        self.congestion = algorithm;
    }

    pub(crate) fn set_fast_open(&mut self, fast_open: bool) {
        self.fast_open = fast_open;
    }

    pub(crate) fn listen(&mut self, addr: SocketAddr, multipath: bool) {
        self.multipath = multipath;
        self.listening = Some(addr);
    }

    /// Starts an engine with `addr` as its only service.
    fn start(&mut self, addr: SocketAddr) {
        let service = ServiceConfig {
            name: "packetdrill".into(),
            listen: vec![addr],
            // As Linux has it by default.
            versions: Versions {
                v1: self.multipath,
                ..Versions::default()
            },
            checksum: false,
            joins: JoinPolicy::AnyPort,
            addresses: AddressPolicy {
                announce: endpoints(),
                ..AddressPolicy::default()
            },
            congestion: self.congestion,
            ecn: true,
            fast_open: fast_open(self.fast_open),
            patience: Patience {
                keepalive: None,
                ..Patience::default()
            },
            closing: Closing::default(),
        };
        let mtu = if addr.is_ipv6() { MTU_IPV6 } else { MTU_IPV4 };
        let mut config = EngineConfig::new(vec![InterfaceConfig { mtu }], vec![service]);
        // The runner knows the cookies that it makes.
        config.fast_open_secret = Some([0; 16]);
        config.buffers.receive_initial_bytes = RECEIVE_BUFFER_BYTES;
        config.buffers.receive_max_bytes = RECEIVE_BUFFER_BYTES;
        config.buffers.send_initial_bytes = SEND_BUFFER_BYTES;
        config.buffers.send_max_bytes = SEND_BUFFER_BYTES;
        self.engine = Some(Engine::new(
            config,
            vec![Box::new(Sockets(Rc::clone(&self.app)))],
            self.now,
            Box::new(ChaChaEntropy::deterministic(1)),
        ));
    }

    /// From now on a SYN gets a RST.
    pub(crate) fn stop_listening(&mut self) {
        self.listening = None;
        if let Some(engine) = &mut self.engine {
            engine.drain();
        }
    }

    /// The next connection that nobody has accepted.
    pub(crate) fn next_opened(&mut self) -> Option<Opened> {
        self.app.borrow_mut().opened.pop_front()
    }

    pub(crate) fn has_opened(&self) -> bool {
        !self.app.borrow().opened.is_empty()
    }

    /// How a connection ended; `None` while it lives.
    pub(crate) fn end_of(&self, id: ConnId) -> Option<CloseCause> {
        self.app.borrow().ended.get(&id).copied()
    }

    /// Nobody reads any more: what still comes ends the connection.
    pub(crate) fn orphan(&mut self, id: ConnId) {
        self.app.borrow_mut().orphans.push(id);
    }

    /// Does something with a connection, unless it is gone.
    pub(crate) fn with<R: 'static>(
        &mut self,
        id: ConnId,
        f: impl FnOnce(&mut Conn<'_>) -> R + 'static,
    ) -> Option<R> {
        let engine = self.engine.as_mut()?;
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.app.borrow_mut().call = Some(Box::new(move |conns| {
            *slot.borrow_mut() = conns.with(id, f)
        }));
        engine.poll_apps(self.now);
        self.collect();
        result.take()
    }

    /// Gives the engine one IP packet.
    pub(crate) fn receive(&mut self, packet: &[u8]) {
        let ethertype: [u8; 2] = match packet.first().map(|b| b >> 4) {
            Some(6) => [0x86, 0xdd],
            _ => [0x08, 0x00],
        };
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend(ethertype);
        frame.extend(packet);
        // The wildcard address means the one that the tool uses, which the first packet shows.
        if let Some(addr) = self.listening.take() {
            let used = destination(packet).filter(|_| addr.ip().is_unspecified());
            self.start(SocketAddr::new(used.unwrap_or(addr.ip()), addr.port()));
        }
        if let Some(engine) = &mut self.engine {
            engine.on_frame(self.now, IFACE, &frame);
            self.collect();
        }
    }

    /// The next IP packet that the engine has sent, and when.
    pub(crate) fn next_sent(&mut self) -> Option<(Instant, Vec<u8>)> {
        self.sent.pop_front()
    }

    /// Lets time pass until the next timer, or `limit` if that comes first. Returns whether
    /// there was a timer.
    pub(crate) fn step(&mut self, limit: Instant) -> bool {
        let due = self.engine.as_ref().and_then(Engine::next_timeout);
        let due = due.map(|at| at.max(self.now + TICK));
        match (due, &mut self.engine) {
            (Some(at), Some(engine)) if at <= limit => {
                self.now = at;
                engine.on_timeout(at);
                self.collect();
                true
            }
            _ => {
                self.now = self.now.max(limit);
                false
            }
        }
    }

    pub(crate) fn has_timer(&self) -> bool {
        self.engine
            .as_ref()
            .is_some_and(|e| e.next_timeout().is_some())
    }

    pub(crate) fn report(&self) -> Option<EngineReport> {
        Some(self.engine.as_ref()?.report(self.now, usize::MAX))
    }

    /// Writes the counters where a script's `nstat` looks, when they have changed.
    pub(crate) fn publish_counters(&mut self) {
        let (Some((path, published)), Some(engine)) = (&mut self.counters, &self.engine) else {
            return;
        };
        if *published == engine.metrics {
            return;
        }
        *published = engine.metrics.clone();
        let entries: Vec<_> = published
            .entries()
            .into_iter()
            .map(|(name, value)| format!("\"MPTcpExt{name}\":{value}"))
            .collect();
        let text = format!("{{\"kernel\":{{{}}}}}\n", entries.join(","));
        // A script that asks and finds nothing says so itself.
        let _ = std::fs::write(path, text);
    }

    fn collect(&mut self) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let mut frame = [0; FRAME_BYTES];
        while engine.wants_transmit(IFACE) {
            let len = engine.poll_transmit(self.now, IFACE, &mut frame);
            if len > ETHERNET_HEADER_LEN {
                let packet = frame[ETHERNET_HEADER_LEN..len].to_vec();
                self.sent.push_back((self.now, packet));
            }
        }
    }
}

/// What the `ip` of a script has said to announce: its arguments, a line for each call.
fn endpoints() -> Vec<Announce> {
    let file = std::env::var_os("MPX_PACKETDRILL_ENDPOINTS");
    let text = file.and_then(|file| std::fs::read_to_string(file).ok());
    let mut announced = Vec::new();
    for line in text.unwrap_or_default().lines() {
        let words = line.split_whitespace();
        let words: Vec<_> = words.skip_while(|word| word.starts_with('-')).collect();
        let ["mptcp", "endpoint", rest @ ..] = words.as_slice() else {
            continue;
        };
        match rest {
            ["flush", ..] => announced.clear(),
            ["add", address, flags @ ..] if flags.contains(&"signal") => {
                let named = |name: &str| {
                    let at = flags.iter().position(|word| *word == name)?;
                    flags.get(at + 1)
                };
                let id = named("id").and_then(|id| id.parse().ok());
                if let Ok(address) = address.parse() {
                    announced.push(Announce {
                        id: id.unwrap_or(announced.len() as u8 + 1),
                        address,
                        port: named("port").and_then(|port| port.parse().ok()),
                        local: None,
                        clients: None,
                    });
                }
            }
            _ => {}
        }
    }
    announced
}

/// What Linux makes of `net.ipv4.tcp_fastopen`, which is that of the script's namespace, and of the
/// listener's socket option.
fn fast_open(option: bool) -> FastOpen {
    const SERVER: u32 = 0x2;
    const WITHOUT_COOKIES: u32 = 0x200;
    const WITHOUT_OPTION: u32 = 0x400;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen");
    let bits: u32 = text.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    if bits & SERVER == 0 || !option && bits & WITHOUT_OPTION == 0 {
        FastOpen::Off
    } else if bits & WITHOUT_COOKIES != 0 {
        FastOpen::WithoutCookies
    } else {
        FastOpen::On
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(
            <[u8; 16]>::try_from(packet.get(24..40)?).ok()?,
        )),
        _ => None,
    }
}

/// A connection for `accept`.
#[derive(Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) id: ConnId,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

type Call = Box<dyn FnOnce(&mut Conns<'_>)>;

#[derive(Default)]
struct AppState {
    opened: VecDeque<Opened>,
    ended: HashMap<ConnId, CloseCause>,
    orphans: Vec<ConnId>,
    /// To be made the next time that the engine polls its apps.
    call: Option<Call>,
}

/// Notes what happens, and leaves the octets in the connection until a system call takes them.
struct Sockets(Rc<RefCell<AppState>>);

impl App for Sockets {
    fn on_open(&mut self, conn: &mut Conn<'_>) {
        self.0.borrow_mut().opened.push_back(Opened {
            id: conn.id(),
            peer: conn.peer_addr(),
            local: conn.local_addr(),
        });
    }

    fn on_readable(&mut self, conn: &mut Conn<'_>) {
        // RFC 9293 §3.6.1: what comes after the close is lost, and a RST says so.
        if self.0.borrow().orphans.contains(&conn.id()) && !conn.peek().is_empty() {
            conn.abort();
        }
    }

    fn on_closed(&mut self, id: ConnId, cause: CloseCause) {
        self.0.borrow_mut().ended.insert(id, cause);
    }

    fn readiness(&mut self) -> Option<&mut dyn Readiness> {
        Some(self)
    }
}

impl Readiness for Sockets {
    fn fd(&self) -> BorrowedFd<'_> {
        unreachable!("no worker runs this app")
    }

    fn poll(&mut self, _: Instant, conns: &mut Conns<'_>) -> bool {
        let call = self.0.borrow_mut().call.take();
        call.map(|call| call(conns)).is_some()
    }
}
