//! The proxy: each MPTCP connection is carried over one kernel TCP connection to a backend.
//!
//! The backend sockets belong to the worker that owns the connection. They hang in an epoll set of
//! their own, which nests in the worker's ([`Readiness`]). Bytes go straight between the socket and
//! the connection's own buffers: what one side does not take stays with the other side, in buffers
//! bounded by the config here and by `tcp_rmem` and `tcp_wmem` in the kernel.

use crate::config::ProxyConfig;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};
use mpx_datapath::app::{App, CloseCause, Readiness};
use mpx_datapath::engine::{Conn, ConnId, Conns};
use mpx_datapath::time::Instant;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What one connection moves in one direction before the others get their turn.
const BUDGET_BYTES: usize = 256 * 1024;

/// How long a client may go on sending, unheard, to read the answer of a backend that has closed
/// the whole connection early.
const LINGER: Duration = Duration::from_secs(2);

/// Events taken from the kernel in one turn.
const EVENTS: usize = 1024;

/// Carries every connection of one service on one worker to the backends, in turn.
pub(crate) struct Proxy {
    poll: Poll,
    events: Events,
    sessions: Sessions,
}

macro_rules! proxy_counters {
    ($( #[doc = $doc:literal] $field:ident => $name:literal ),+ $(,)?) => {
        /// Counters of the proxy of one service; written by its worker, read by the admin thread.
        #[derive(Debug, Default)]
        pub(crate) struct ProxyCounters {
            $( #[doc = $doc] pub(crate) $field: AtomicU64, )+
        }

        impl ProxyCounters {
            /// Names and values in the order of declaration.
            pub(crate) fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![ $( ($name, self.$field.load(Ordering::Relaxed)) ),+ ]
            }
        }
    };
}

proxy_counters! {
    /// Connections to a backend that were established.
    connects => "ProxyConnects",
    /// Attempts that a backend refused.
    connect_refused => "ProxyConnectRefused",
    /// Attempts that no backend answered in time.
    connect_timeouts => "ProxyConnectTimeouts",
    /// Attempts that failed otherwise: no route, no descriptor or port left.
    connect_errors => "ProxyConnectErrors",
    /// Clients reset because every backend failed.
    no_backend => "ProxyNoBackend",
    /// Established connections that a backend broke off; the client is reset.
    backend_aborts => "ProxyBackendAborts",
    /// Established connections to a backend that were reset because the client's ended so.
    client_aborts => "ProxyClientAborts",
    /// Bytes from clients to backends.
    bytes_up => "ProxyBytesUp",
    /// Bytes from backends to clients.
    bytes_down => "ProxyBytesDown",
}

impl Proxy {
    /// # Errors
    /// When the kernel has no epoll descriptor left.
    pub(crate) fn new(config: ProxyConfig, counters: Arc<ProxyCounters>) -> io::Result<Proxy> {
        Ok(Proxy {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            sessions: Sessions {
                config,
                counters,
                slab: Slab::new(),
                by_conn: HashMap::new(),
                next_backend: 0,
                generation: 0,
                unfinished: VecDeque::new(),
                deadlines: BinaryHeap::new(),
            },
        })
    }
}

impl App for Proxy {
    fn on_open(&mut self, conn: &mut Conn<'_>) {
        self.sessions.open(conn, self.poll.registry());
    }

    fn on_readable(&mut self, conn: &mut Conn<'_>) {
        if let Some(key) = self.sessions.by_conn.get(&conn.id()).copied() {
            self.sessions.pump(key, conn);
        }
    }

    fn on_writable(&mut self, conn: &mut Conn<'_>) {
        self.on_readable(conn);
    }

    fn on_closed(&mut self, id: ConnId, cause: CloseCause) {
        self.sessions.close(id, cause);
    }

    fn readiness(&mut self) -> Option<&mut dyn Readiness> {
        Some(self)
    }
}

impl Readiness for Proxy {
    fn fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }

    fn poll(&mut self, now: Instant, conns: &mut Conns<'_>) -> bool {
        if self.sessions.slab.is_empty() {
            self.sessions.forget();
            return false;
        }
        let mut busy = self.sessions.resume(conns);
        // A failed wait (EINTR) leaves no events; the set stays readable for the next turn.
        if self
            .poll
            .poll(&mut self.events, Some(Duration::ZERO))
            .is_ok()
        {
            for event in &self.events {
                busy = true;
                self.sessions
                    .on_event(event, now, conns, self.poll.registry());
            }
        }
        busy | self.sessions.expire(now, conns, self.poll.registry())
    }

    fn next_timeout(&self) -> Option<Instant> {
        if !self.sessions.unfinished.is_empty() {
            return Some(Instant::ZERO);
        }
        self.sessions.deadlines.peek().map(|Reverse((at, _))| *at)
    }
}

/// Names a session in an epoll event; the generation tells it from its predecessors in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    fn token(self) -> Token {
        Token((self.generation as usize) << 32 | self.index as usize)
    }

    fn of(token: Token) -> Key {
        Key {
            index: token.0 as u32,
            generation: (token.0 >> 32) as u32,
        }
    }
}

// A token carries an index and a generation of 32 bits each.
const _: () = assert!(usize::BITS == 64);

struct Sessions {
    config: ProxyConfig,
    counters: Arc<ProxyCounters>,
    slab: Slab<Session>,
    by_conn: HashMap<ConnId, Key>,
    next_backend: usize,
    generation: u32,
    /// Whose budget ran out while there was more to move.
    unfinished: VecDeque<Key>,
    /// Entries that differ from [`Session::deadline`] are void.
    deadlines: BinaryHeap<Reverse<(Instant, Key)>>,
}

/// One client with its backend.
struct Session {
    key: Key,
    conn: ConnId,
    stream: TcpStream,
    state: State,
    /// Index of the backend that `stream` goes to.
    backend: usize,
    /// Backends that were not tried yet.
    untried: usize,
    /// Connecting: when to give up. Deaf: when to reset the client.
    deadline: Option<Instant>,
    /// The part of the PROXY header that is still to be written.
    header: Vec<u8>,
    /// No read has found the socket empty since the last event.
    readable: bool,
    /// No write has found the socket full since the last event.
    writable: bool,
    /// The kernel has the end of the backend's stream.
    ending: bool,
    /// Writing has met a reset of the backend's, which reading takes for the end of its stream then.
    was_reset: bool,
    /// The end of the backend's stream was read and passed on.
    read_closed: bool,
    /// The end of the client's stream was passed on.
    write_closed: bool,
    /// Stands in [`Sessions::unfinished`].
    queued: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// The backend takes no more, but may have said something to the end.
    Deaf,
    /// The client was reset; [`App::on_closed`] follows.
    Aborted,
}

/// How a transfer in one direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    /// One of the two sides has to move first.
    Waits,
    /// The budget ran out.
    Unfinished,
    Failed,
}

impl Sessions {
    fn open(&mut self, conn: &mut Conn<'_>, registry: &Registry) {
        let first = self.next_backend;
        self.next_backend = (first + 1) % self.config.backends.len();
        self.generation = self.generation.wrapping_add(1);
        let key = Key {
            index: self.slab.vacant_key() as u32,
            generation: self.generation,
        };
        let Some(attempt) = self.dial(key, first, self.config.backends.len(), registry) else {
            self.counters.no_backend.fetch_add(1, Ordering::Relaxed);
            conn.abort();
            return;
        };
        let deadline = conn.now() + self.config.connect_timeout;
        let header = if self.config.proxy_protocol {
            proxy_header(conn.peer_addr(), conn.local_addr())
        } else {
            Vec::new()
        };
        self.deadlines.push(Reverse((deadline, key)));
        self.by_conn.insert(conn.id(), key);
        self.slab.insert(Session {
            key,
            conn: conn.id(),
            stream: attempt.stream,
            state: State::Connecting,
            backend: attempt.backend,
            untried: attempt.untried,
            deadline: Some(deadline),
            header,
            readable: false,
            writable: false,
            ending: false,
            was_reset: false,
            read_closed: false,
            write_closed: false,
            queued: false,
        });
    }

    /// Starts a connection to `backend`, or to the next of the `untried` that can be started.
    fn dial(
        &self,
        key: Key,
        mut backend: usize,
        mut untried: usize,
        registry: &Registry,
    ) -> Option<Attempt> {
        while untried > 0 {
            untried -= 1;
            match dial(self.config.backends[backend], key, registry) {
                Ok(stream) => {
                    return Some(Attempt {
                        stream,
                        backend,
                        untried,
                    });
                }
                Err(error) => self.count_failure(&error),
            }
            backend = (backend + 1) % self.config.backends.len();
        }
        None
    }

    fn count_failure(&self, error: &io::Error) {
        let counter = match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => {
                &self.counters.connect_refused
            }
            ErrorKind::TimedOut => &self.counters.connect_timeouts,
            _ => &self.counters.connect_errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn on_event(
        &mut self,
        event: &mio::event::Event,
        now: Instant,
        conns: &mut Conns<'_>,
        registry: &Registry,
    ) {
        let key = Key::of(event.token());
        let Some(session) = self.get(key) else { return };
        session.readable |= event.is_readable() || event.is_error();
        session.writable |= event.is_writable() || event.is_error();
        session.ending |= event.is_read_closed() || event.is_error();
        if session.state == State::Connecting {
            match connected(&session.stream) {
                Ok(false) => return,
                Ok(true) => {
                    session.state = State::Open;
                    session.deadline = None;
                    self.counters.connects.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    self.count_failure(&error);
                    self.dial_next(key, now, conns, registry);
                    return;
                }
            }
        }
        self.pump_from_outside(key, conns);
    }

    /// Goes on with those whose budget ran out.
    fn resume(&mut self, conns: &mut Conns<'_>) -> bool {
        let turns = self.unfinished.len();
        for _ in 0..turns {
            let Some(key) = self.unfinished.pop_front() else {
                break;
            };
            if let Some(session) = self.get(key) {
                session.queued = false;
                self.pump_from_outside(key, conns);
            }
        }
        turns > 0
    }

    /// Acts on deadlines up to `now`.
    fn expire(&mut self, now: Instant, conns: &mut Conns<'_>, registry: &Registry) -> bool {
        let mut busy = false;
        while let Some(Reverse((at, key))) = self.deadlines.peek().copied() {
            let session = self.get(key).filter(|session| session.deadline == Some(at));
            if session.is_some() && at > now {
                break;
            }
            let state = session.map(|session| session.state);
            self.deadlines.pop();
            busy |= state.is_some();
            match state {
                Some(State::Connecting) => {
                    self.count_failure(&ErrorKind::TimedOut.into());
                    self.dial_next(key, now, conns, registry);
                }
                Some(State::Deaf) => {
                    self.counters.backend_aborts.fetch_add(1, Ordering::Relaxed);
                    self.abort_from_outside(key, conns);
                }
                Some(State::Open | State::Aborted) | None => {}
            }
        }
        busy
    }

    /// After a failed attempt: the next backend, or a reset for the client.
    fn dial_next(&mut self, key: Key, now: Instant, conns: &mut Conns<'_>, registry: &Registry) {
        let count = self.config.backends.len();
        let deadline = now + self.config.connect_timeout;
        let Some(session) = self.get(key) else { return };
        let (next, untried) = ((session.backend + 1) % count, session.untried);
        let attempt = self.dial(key, next, untried, registry);
        let Some(session) = self.get(key) else { return };
        let Some(attempt) = attempt else {
            self.counters.no_backend.fetch_add(1, Ordering::Relaxed);
            self.abort_from_outside(key, conns);
            return;
        };
        session.stream = attempt.stream;
        session.backend = attempt.backend;
        session.untried = attempt.untried;
        session.deadline = Some(deadline);
        session.readable = false;
        session.writable = false;
        session.ending = false;
        self.deadlines.push(Reverse((deadline, key)));
    }

    fn pump_from_outside(&mut self, key: Key, conns: &mut Conns<'_>) {
        let Some(session) = self.get(key) else { return };
        let conn = session.conn;
        conns.with(conn, |conn| self.pump(key, conn));
    }

    fn abort_from_outside(&mut self, key: Key, conns: &mut Conns<'_>) {
        let Some(session) = self.get(key) else { return };
        let conn = session.conn;
        session.state = State::Aborted;
        session.deadline = None;
        conns.with(conn, |conn| conn.abort());
    }

    /// Moves what can be moved, both ways.
    fn pump(&mut self, key: Key, conn: &mut Conn<'_>) {
        let counters = &self.counters;
        let Some(session) = self
            .slab
            .get_mut(key.index as usize)
            .filter(|s| s.key == key)
        else {
            return;
        };
        let up = match session.state {
            State::Connecting | State::Aborted => return,
            State::Open => session.client_to_backend(conn, counters),
            State::Deaf => discard(conn),
        };
        if up == Transfer::Failed {
            session.state = State::Deaf;
            let deadline = conn.now() + LINGER;
            session.deadline = Some(deadline);
            self.deadlines.push(Reverse((deadline, key)));
            // An event that told of it may be the last one.
            session.readable = true;
            session.ending = true;
        }
        let down = session.backend_to_client(conn, counters);
        if down == Transfer::Failed {
            session.state = State::Aborted;
            session.deadline = None;
            counters.backend_aborts.fetch_add(1, Ordering::Relaxed);
            conn.abort();
            return;
        }
        let unfinished = up == Transfer::Unfinished || down == Transfer::Unfinished;
        if unfinished && !session.queued {
            session.queued = true;
            self.unfinished.push_back(key);
        }
    }

    fn close(&mut self, id: ConnId, cause: CloseCause) {
        let Some(key) = self.by_conn.remove(&id) else {
            return;
        };
        let session = self.slab.remove(key.index as usize);
        if cause == CloseCause::Finished && session.write_closed {
            return;
        }
        if session.state == State::Open {
            self.counters.client_aborts.fetch_add(1, Ordering::Relaxed);
        }
        // With a linger time of zero, closing sends RST: the backend learns that this was not the
        // end of the client's stream.
        // Should it fail, the backend sees an end of stream instead.
        let _ = socket2::SockRef::from(&session.stream).set_linger(Some(Duration::ZERO));
    }

    /// With no session left, what still refers to one would only wake the worker.
    fn forget(&mut self) {
        self.unfinished.clear();
        self.deadlines.clear();
    }

    fn get(&mut self, key: Key) -> Option<&mut Session> {
        self.slab
            .get_mut(key.index as usize)
            .filter(|session| session.key == key)
    }
}

struct Attempt {
    stream: TcpStream,
    backend: usize,
    untried: usize,
}

fn dial(backend: SocketAddr, key: Key, registry: &Registry) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(backend)?;
    stream.set_nodelay(true)?;
    registry.register(
        &mut stream,
        key.token(),
        Interest::READABLE | Interest::WRITABLE,
    )?;
    Ok(stream)
}

/// Whether a connection attempt has come to its good end.
fn connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

impl Session {
    fn client_to_backend(&mut self, conn: &mut Conn<'_>, counters: &ProxyCounters) -> Transfer {
        let mut budget = BUDGET_BYTES;
        while self.writable && !self.write_closed {
            let from_header = !self.header.is_empty();
            let bytes = if from_header {
                &self.header
            } else {
                conn.peek()
            };
            if bytes.is_empty() {
                break;
            }
            if budget == 0 {
                return Transfer::Unfinished;
            }
            let bytes = &bytes[..bytes.len().min(budget)];
            let offered = bytes.len();
            match self.stream.write(bytes) {
                Ok(written) => {
                    // epoll(7): a short write means that the socket is full.
                    self.writable = written == offered;
                    budget -= written;
                    if from_header {
                        self.header.drain(..written);
                    } else {
                        conn.consume(written);
                        counters
                            .bytes_up
                            .fetch_add(written as u64, Ordering::Relaxed);
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.writable = false,
                    ErrorKind::Interrupted => {}
                    kind => {
                        // After a FIN of the backend's it would be a broken pipe.
                        self.was_reset = kind == ErrorKind::ConnectionReset;
                        return Transfer::Failed;
                    }
                },
            }
        }
        if self.header.is_empty() && !self.write_closed && conn.peer_finished() {
            self.write_closed = true;
            // It fails only when the backend is gone altogether, which reading will tell.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Transfer::Waits
    }

    fn backend_to_client(&mut self, conn: &mut Conn<'_>, counters: &ProxyCounters) -> Transfer {
        let mut budget = BUDGET_BYTES;
        while self.readable && !self.read_closed {
            if budget == 0 {
                return Transfer::Unfinished;
            }
            let room = conn.write_slice();
            if room.is_empty() {
                break;
            }
            let length = room.len().min(budget);
            match self.stream.read(&mut room[..length]) {
                Ok(0) if self.was_reset => return Transfer::Failed,
                Ok(0) => {
                    self.read_closed = true;
                    conn.close_write();
                }
                Ok(read) => {
                    // epoll(7): a short read means that the socket is empty, unless its end is
                    // already there.
                    self.readable = read == length || self.ending;
                    budget -= read;
                    conn.commit(read);
                    counters
                        .bytes_down
                        .fetch_add(read as u64, Ordering::Relaxed);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.readable = false,
                    ErrorKind::Interrupted => {}
                    _ => return Transfer::Failed,
                },
            }
        }
        Transfer::Waits
    }
}

/// Takes what the client sends to a backend that listens no more.
fn discard(conn: &mut Conn<'_>) -> Transfer {
    let mut budget = BUDGET_BYTES;
    while budget > 0 {
        let length = conn.peek().len().min(budget);
        if length == 0 {
            return Transfer::Waits;
        }
        conn.consume(length);
        budget -= length;
    }
    Transfer::Unfinished
}

/// The binary header of the PROXY protocol, version 2: command PROXY, a TCP stream from `client`
/// to `server`.
fn proxy_header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
    const VERSION_2_PROXY: u8 = 0x21;
    const TCP_OVER_IPV4: u8 = 0x11;
    const TCP_OVER_IPV6: u8 = 0x21;
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_2_PROXY);
    match (client.ip(), server.ip()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            header.extend([TCP_OVER_IPV4, 0, 12]);
            header.extend(client.octets());
            header.extend(server.octets());
        }
        (client, server) => {
            header.extend([TCP_OVER_IPV6, 0, 36]);
            for ip in [client, server] {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                header.extend(ip.octets());
            }
        }
    }
    header.extend(client.port().to_be_bytes());
    header.extend(server.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests;
