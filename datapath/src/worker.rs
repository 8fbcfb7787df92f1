//! One core's loop around an engine and a port. A turn is always in this order: inbox, frames in,
//! timers, app work, frames out, flush. The clock is read once per turn.

use crate::engine::{
    AddressChange, AddressStep, ConnectionPage, Engine, EngineReport, Message, Route,
};
use crate::mesh::{Inbox, Waker};
use crate::metrics::Metrics;
use crate::port::{FrameAccounts, IfaceId, Port, QueueStatistics};
use crate::time::{Duration, Instant};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Turns without work for this long, and the worker sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Frames sent per interface and turn.
const TRANSMIT_BATCH: usize = 256;
/// How soon a flush is tried again when the kernel left frames in the ring; each time twice as late
/// up to the second, for an interface may be down for long.
const UNSENT_RETRY: Duration = Duration::from_millis(1);
const UNSENT_RETRY_MAX: Duration = Duration::from_millis(64);
/// Keys drawn ahead in a turn without work.
const IDLE_DRAWS: u32 = 64;
/// Commands waiting at once; a further one is refused.
const INBOX_COMMANDS: usize = 64;
/// Messages of other workers waiting at once; a further one is dropped.
const INBOX_MESSAGES: usize = 256;
/// How long RSTs may take to leave after the drain deadline.
const FAREWELL: Duration = Duration::from_millis(500);
/// Places in the table of connections that are looked at in one turn to list them.
const PAGE_PLACES: usize = 64;

/// What other threads ask of a worker.
#[derive(Debug)]
pub enum Command {
    /// Take no new connections, and end when the open ones have ended; abort those still open at
    /// the deadline.
    Drain {
        deadline_ms: u64,
    },
    Status(Sender<Snapshot>),
    /// List the connections from this place in their table on, as many as a turn has time for.
    Connections {
        from: usize,
        reply: Sender<ConnectionPage>,
    },
    /// Change addresses for the connections from this place in their table on, as many as a turn has
    /// time for; see [`Engine::change_addresses`].
    Addresses {
        change: AddressChange,
        from: usize,
        reply: Sender<Result<AddressStep, String>>,
    },
    /// Frames arrive from now on: tell the neighbours of the addresses that are ours alone.
    Announce,
    /// The way to an address that the worker asked for; see [`Engine::on_route`].
    Route {
        to: IpAddr,
        route: Option<Route>,
    },
    /// Return from [`Worker::run`]: no other worker needs its queues any more.
    Stop,
}

/// The state of a worker between two turns.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub engine: EngineReport,
    pub metrics: Metrics,
    pub frames: FrameAccounts,
    pub queues: Vec<QueueStatistics>,
}

/// Reaches a worker from other threads.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Mailbox>);

#[derive(Debug)]
struct Mailbox {
    commands: Inbox<Command>,
    messages: Inbox<Message>,
    waker: Arc<Waker>,
}

impl Handle {
    /// For a worker that is still to be made.
    ///
    /// # Errors
    /// When the kernel has no event descriptor left.
    pub fn new() -> io::Result<Handle> {
        let waker = Waker::new()?;
        Ok(Handle(Arc::new(Mailbox {
            commands: Inbox::new(INBOX_COMMANDS, Arc::clone(&waker)),
            messages: Inbox::new(INBOX_MESSAGES, Arc::clone(&waker)),
            waker,
        })))
    }

    /// Returns whether there was room for it.
    pub fn send(&self, command: Command) -> bool {
        let taken = self.0.commands.push(command).is_ok();
        self.0.commands.wake();
        taken
    }

    /// What wakes the worker, for the port that it is to have.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.0.waker)
    }

    fn tell(&self, message: Message) -> bool {
        let taken = self.0.messages.push(message).is_ok();
        self.0.messages.wake();
        taken
    }
}

pub struct Worker<P: Port> {
    port: P,
    engine: Engine,
    mailbox: Handle,
    others: Vec<Handle>,
    ask_route: Option<Box<dyn FnMut(IpAddr)>>,
    unsent_retry: Duration,
    drain_at: Option<Instant>,
    aborted_at: Option<Instant>,
    stopped: bool,
}

impl<P: Port> Worker<P> {
    /// `all` reach the workers of this server in their order, of which this is the `index`-th.
    pub fn new(port: P, engine: Engine, all: &[Handle], index: usize) -> Worker<P> {
        let mut others = all.to_vec();
        Worker {
            port,
            engine,
            mailbox: others.remove(index),
            others,
            ask_route: None,
            unsent_retry: UNSENT_RETRY,
            drain_at: None,
            aborted_at: None,
            stopped: false,
        }
    }

    /// Has questions for the way to an address go to `ask`, to be answered by [`Command::Route`].
    pub fn ask_routes(&mut self, ask: Box<dyn FnMut(IpAddr)>) {
        self.ask_route = Some(ask);
    }

    /// Turns until told to stop. Once it has drained it says so; until it is stopped, its queues go on
    /// working for the others.
    ///
    /// # Errors
    /// When the kernel refuses to let it wait.
    pub fn run(&mut self, drained: impl FnOnce()) -> io::Result<()> {
        let mut drained = Some(drained);
        let mut idle_since = None;
        loop {
            let now = clock();
            if self.turn(now) || self.engine.refill_keys(IDLE_DRAWS) {
                idle_since = None;
            } else {
                let since = *idle_since.get_or_insert(now);
                if now.since(since) >= SPIN {
                    self.park(now)?;
                    idle_since = None;
                }
            }
            if drained.is_some() && self.is_drained(now) {
                self.port.flush();
                drained.take().into_iter().for_each(|tell| tell());
            }
            if self.stopped {
                return Ok(());
            }
        }
    }

    /// One turn; returns whether there was anything to do.
    pub fn turn(&mut self, now: Instant) -> bool {
        let mut worked = self.read_inbox(now);
        let engine = &mut self.engine;
        worked |= self
            .port
            .receive(&mut |arrival, frame| engine.on_frame(now, arrival, frame))
            > 0;
        while let Some(message) = engine.poll_message() {
            let told = |other: &&Handle| other.tell(message);
            let missed = self.others.len() - self.others.iter().filter(told).count();
            engine.metrics.mesh_drops += missed as u64;
        }
        engine.on_timeout(now);
        worked |= engine.poll_apps(now);
        if let Some(ask) = &mut self.ask_route {
            while let Some(to) = engine.poll_route_question() {
                ask(to);
            }
        }
        for index in 0..self.port.interfaces() {
            let iface = IfaceId(index as u8);
            for _ in 0..TRANSMIT_BATCH {
                if !engine.wants_transmit(iface) {
                    break;
                }
                if !self
                    .port
                    .transmit(iface, &mut |frame| engine.poll_transmit(now, iface, frame))
                {
                    break;
                }
                worked = true;
            }
        }
        self.port.flush();
        worked
    }

    fn read_inbox(&mut self, now: Instant) -> bool {
        let mut worked = false;
        let mailbox = &self.mailbox.0;
        while let Some(message) = mailbox.messages.pop() {
            worked = true;
            self.engine.on_message(now, &message);
        }
        while let Some(command) = mailbox.commands.pop() {
            worked = true;
            match command {
                Command::Drain { deadline_ms } => {
                    self.engine.drain();
                    self.drain_at = Some(now + Duration::from_millis(deadline_ms));
                }
                Command::Status(reply) => {
                    // Whoever asked may have given up waiting.
                    let _ = reply.send(Snapshot {
                        engine: self.engine.report(now, 0),
                        metrics: self.metrics(),
                        frames: self.port.accounts(),
                        queues: self.port.queues(),
                    });
                }
                Command::Connections { from, reply } => {
                    let _ = reply.send(self.engine.connections_page(now, from, PAGE_PLACES));
                    // The rest of the turn comes before another page.
                    break;
                }
                Command::Addresses {
                    change,
                    from,
                    reply,
                } => {
                    let engine = &mut self.engine;
                    let _ = reply.send(engine.change_addresses(now, &change, from, PAGE_PLACES));
                    break;
                }
                Command::Announce => self.engine.begin_announcing(now),
                Command::Route { to, route } => self.engine.on_route(now, to, route),
                Command::Stop => self.stopped = true,
            }
        }
        worked
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = self.engine.metrics.clone();
        metrics.mesh_drops += self.port.mesh_drops();
        metrics
    }

    /// Whether a drain is over. Once it may be, what is left is reset: everything at the deadline,
    /// and before it what only half opened.
    fn is_drained(&mut self, now: Instant) -> bool {
        let Some(drain_at) = self.drain_at else {
            return false;
        };
        let over = now >= drain_at || self.engine.open_connections() == 0;
        if over && self.aborted_at.is_none() {
            self.aborted_at = Some(now);
            self.engine.abort_all(now);
        }
        self.engine.connections() == 0
            || self.aborted_at.is_some_and(|at| now.since(at) >= FAREWELL)
    }

    /// When to flush again, if the kernel did not take everything.
    fn unsent_retry_at(&mut self, now: Instant) -> Option<Instant> {
        if !self.port.has_unsent() {
            self.unsent_retry = UNSENT_RETRY;
            return None;
        }
        let at = now + self.unsent_retry;
        self.unsent_retry = (self.unsent_retry * 2).min(UNSENT_RETRY_MAX);
        Some(at)
    }

    /// Sleeps until a frame, a command, another worker, an app's descriptor or a timer.
    fn park(&mut self, now: Instant) -> io::Result<()> {
        let unsent_retry_at = self.unsent_retry_at(now);
        let Mailbox {
            commands,
            messages,
            waker,
        } = &*self.mailbox.0;
        let (port, engine) = (&self.port, &mut self.engine);
        let mut deadline = [
            engine.next_timeout(),
            self.drain_at.filter(|_| self.aborted_at.is_none()),
            self.aborted_at
                .map(|at| at + FAREWELL)
                .filter(|at| *at > now),
            unsent_retry_at,
        ]
        .into_iter()
        .flatten()
        .min();
        let has_mail = || !commands.is_empty() || !messages.is_empty() || port.has_mail();
        let wait = |wake: BorrowedFd<'_>| {
            let descriptors = std::iter::once(wake).chain(port.fds());
            let mut waiting: Vec<_> = descriptors
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            let readiness: Vec<_> = engine.apps().filter_map(|app| app.readiness()).collect();
            for app in &readiness {
                deadline = [deadline, app.next_timeout()].into_iter().flatten().min();
                waiting.push(PollFd::from_borrowed_fd(app.fd(), PollFlags::IN));
            }
            let timeout = deadline.map(|at| timespec(at.since(now)));
            match poll(&mut waiting, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        waker.park(has_mail, wait)
    }
}

/// The monotonic clock of the system.
pub fn clock() -> Instant {
    let now = clock_gettime(ClockId::Monotonic);
    Instant(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::App;
    use crate::app::builtin::Echo;
    use crate::engine::{
        AddressPolicy, Closing, EngineConfig, InterfaceConfig, JoinPolicy, Patience, ServiceConfig,
        Versions,
    };
    use crate::port::memory::{MemoryConfig, MemoryPort};
    use crate::rand::ChaChaEntropy;
    use crate::seq::TcpSeq;
    use crate::tcp::congestion::Algorithm;
    use crate::tcp::fast_open::FastOpen;
    use crate::wire::frame::{self, Link, Segment};
    use crate::wire::tcp::{TcpFlags, TcpHeader, TcpOptions};
    use std::net::SocketAddr;

    #[test]
    fn a_drain_waits_for_no_half_open_connection() {
        let start = Instant::from_millis(1);
        let port = MemoryPort::new(MemoryConfig::default());
        let (mut worker, handle) = alone(port, engine(start));
        let frame = segment(0, 1, TcpFlags::SYN);
        assert!(worker.port.inject(IfaceId(0), &frame));
        assert!(worker.turn(start) && !worker.is_drained(start));
        assert_eq!(answer(&mut worker).flags, TcpFlags::SYN | TcpFlags::ACK);

        assert!(handle.send(Command::Drain {
            deadline_ms: 60_000
        }));
        worker.turn(start);
        worker.is_drained(start);
        worker.turn(start);
        assert!(worker.is_drained(start), "long before the deadline");
        assert!(answer(&mut worker).flags.contains(TcpFlags::RST));
    }

    /// While they are listed, others open and listed ones close, and no frame waits for a page.
    #[test]
    fn a_hundred_thousand_connections_are_listed_a_few_per_turn() {
        const MANY: u32 = 100_000;
        let start = Instant::from_millis(1);
        let mut engine = engine(start);
        for client in 0..MANY {
            engine.on_frame(start, IfaceId(0), &segment(client, 1, TcpFlags::SYN));
        }
        assert_eq!(engine.connections(), MANY as usize);
        let port = MemoryPort::new(MemoryConfig::default());
        let (mut worker, handle) = alone(port, engine);
        let (reply, pages) = std::sync::mpsc::channel();
        let ask = |from| {
            let reply = reply.clone();
            assert!(handle.send(Command::Connections { from, reply }));
        };

        // Whoever asks for two gets one per turn.
        ask(0);
        ask(0);
        worker.turn(start);
        assert_eq!(pages.try_iter().count(), 1);
        worker.turn(start);
        assert_eq!(pages.try_iter().count(), 1);

        let (mut from, mut turns, mut listed) = (0, 0, 0);
        let mut peers = std::collections::HashSet::new();
        loop {
            let comes = segment(MANY + turns, 1, TcpFlags::SYN);
            let goes = segment(turns, 2, TcpFlags::RST);
            while worker.port.take(IfaceId(0)).is_some() {}
            assert!(worker.port.inject(IfaceId(0), &comes));
            assert!(worker.port.inject(IfaceId(0), &goes));
            ask(from);
            let frames = worker.engine.metrics.rx_frames;
            worker.turn(start);
            turns += 1;
            assert_eq!(worker.engine.metrics.rx_frames, frames + 2);
            assert_eq!(worker.engine.connections(), MANY as usize);
            let page = pages.try_recv().expect("one page per turn");
            assert!(page.conns.len() <= PAGE_PLACES);
            listed += page.conns.len();
            peers.extend(page.conns.iter().map(|c| c.peer));
            let Some(next) = page.next else { break };
            from = next;
        }
        assert_eq!(peers.len(), listed, "none is there twice");
        let missing = (0..MANY).find(|&client| !peers.contains(&peer(client)));
        assert_eq!(missing, None);
    }

    fn alone(port: MemoryPort, engine: Engine) -> (Worker<MemoryPort>, Handle) {
        let handle = Handle::new().expect("an event descriptor");
        let worker = Worker::new(port, engine, std::slice::from_ref(&handle), 0);
        (worker, handle)
    }

    fn engine(now: Instant) -> Engine {
        let service = ServiceConfig {
            name: "echo".into(),
            listen: vec!["10.0.0.2:7".parse().expect("an address")],
            versions: Versions::default(),
            checksum: true,
            joins: JoinPolicy::AnyPort,
            addresses: AddressPolicy::default(),
            patience: Patience::default(),
            closing: Closing::default(),
            congestion: Algorithm::default(),
            ecn: true,
            fast_open: FastOpen::Off,
        };
        let config = EngineConfig {
            connections_max: 1 << 20,
            half_open_max: 1 << 20,
            syn_cookies_from: 1 << 20,
            memory_max_bytes: 1 << 40,
            ..EngineConfig::new(vec![InterfaceConfig { mtu: 1500 }], vec![service])
        };
        let apps: Vec<Box<dyn App>> = vec![Box::new(Echo)];
        Engine::new(config, apps, now, Box::new(ChaChaEntropy::deterministic(1)))
    }

    fn peer(client: u32) -> SocketAddr {
        let [_, _, high, low] = (client / 1000).to_be_bytes();
        SocketAddr::from(([10, 1, high, low], 5000 + (client % 1000) as u16))
    }

    /// A segment without text from the address of a client.
    fn segment(client: u32, seq: u32, flags: TcpFlags) -> Vec<u8> {
        let peer = peer(client);
        let header = TcpHeader {
            src_port: peer.port(),
            dst_port: 7,
            seq: TcpSeq(seq),
            ack: TcpSeq(0),
            flags,
            window: 1000,
            urgent: 0,
            options: TcpOptions::default(),
        };
        let dst = [10, 0, 0, 2].into();
        let mut bytes = [0; 128];
        let len = frame::emit(
            &mut bytes,
            &Link::default(),
            peer.ip(),
            dst,
            0,
            &header,
            0,
            0,
        );
        bytes[..len].to_vec()
    }

    fn answer(worker: &mut Worker<MemoryPort>) -> TcpHeader {
        let frame = worker.port.take(IfaceId(0)).expect("an answer");
        Segment::parse(&frame).expect("a segment").tcp
    }
}
