//! The kernel's own MPTCP or TCP as a peer to compare with: echo, discard or source.
//!
//! Every thread has its own listener (SO_REUSEPORT), its own epoll and its own connections.

use std::collections::VecDeque;
use std::io::{self, ErrorKind::Interrupted, ErrorKind::WouldBlock, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::pattern;
use crate::socket::{self, Pinning, Proto};

const BUFFER_BYTES: usize = 64 * 1024;
const EVENTS_PER_POLL: usize = 512;
/// Buffers moved for one connection before the others get their turn.
const BUFFERS_PER_TURN: usize = 8;
/// Connections accepted before those open get their turn.
const ACCEPTS_PER_TURN: usize = 64;
const STOP_SCAN: Duration = Duration::from_millis(100);
/// How long accepting pauses when there is no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ServerMode {
    /// Send back what comes
    Echo,
    /// Take what comes, and close when the client has ended its stream
    Discard,
    /// Send a known pattern without end
    Source,
}

pub(crate) struct Server {
    /// One list of listeners for each thread.
    listeners: Vec<Vec<TcpListener>>,
    addrs: Vec<SocketAddr>,
    cores: Vec<Option<core_affinity::CoreId>>,
    mode: ServerMode,
}

impl Server {
    /// Opens the listeners; port 0 takes any free port.
    pub(crate) fn bind(
        proto: Proto,
        listen: &[SocketAddr],
        mode: ServerMode,
        threads: usize,
        pinning: Option<&Pinning>,
    ) -> Result<Self, String> {
        let cores = match pinning {
            Some(pinning) => pinning.cores(threads)?.into_iter().map(Some).collect(),
            None => vec![None; threads],
        };
        let mut listeners: Vec<Vec<TcpListener>> = (0..threads).map(|_| Vec::new()).collect();
        let mut addrs = Vec::new();
        for &asked in listen {
            let mut addr = asked;
            for of_thread in &mut listeners {
                let listener = socket::listen(proto, addr, threads > 1)
                    .map_err(|e| format!("cannot listen on {asked} ({}): {e}", proto.name()))?;
                addr = listener.local_addr().map_err(|e| format!("{asked}: {e}"))?;
                of_thread.push(listener);
            }
            addrs.push(addr);
        }
        Ok(Self {
            listeners,
            addrs,
            cores,
            mode,
        })
    }

    pub(crate) fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Serves until `stop` is set.
    pub(crate) fn run(self, stop: &AtomicBool) -> io::Result<()> {
        let mode = self.mode;
        std::thread::scope(|scope| {
            let workers: Vec<_> = self
                .listeners
                .into_iter()
                .zip(self.cores)
                .map(|(listeners, core)| {
                    scope.spawn(move || {
                        if let Some(core) = core {
                            core_affinity::set_for_current(core);
                        }
                        Worker::new(listeners, mode)?.serve(stop)
                    })
                })
                .collect();
            for worker in workers {
                match worker.join() {
                    Ok(result) => result?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(())
        })
    }
}

struct Worker {
    poll: Poll,
    listeners: Vec<TcpListener>,
    connections: Slab<Connection>,
    /// Connections and listeners that can go on without another event.
    runnable: VecDeque<Token>,
    buffer: Vec<u8>,
    mode: ServerMode,
    short_of_descriptors: bool,
}

struct Connection {
    stream: TcpStream,
    /// What the socket did not take yet of the last buffer.
    unsent: Vec<u8>,
    /// The socket was full: wait until it is writable.
    blocked: bool,
    /// Events of writability are asked for.
    watches_writes: bool,
    queued: bool,
    /// The end of the client's stream, or an error, is there to be read.
    closing: bool,
    /// Bytes sent by `source`.
    sent: u64,
}

enum Turn {
    Wait,
    Again,
    Close,
}

impl Worker {
    fn new(mut listeners: Vec<TcpListener>, mode: ServerMode) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (i, listener) in listeners.iter_mut().enumerate() {
            poll.registry()
                .register(listener, Token(i), Interest::READABLE)?;
        }
        Ok(Self {
            poll,
            listeners,
            connections: Slab::new(),
            runnable: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES],
            mode,
            short_of_descriptors: false,
        })
    }

    fn serve(mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        while !stop.load(Relaxed) {
            let timeout = match (self.runnable.is_empty(), self.short_of_descriptors) {
                (true, _) => STOP_SCAN,
                (false, true) => ACCEPT_PAUSE,
                (false, false) => Duration::ZERO,
            };
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(e) if e.kind() == Interrupted => events.clear(),
                result => result?,
            }
            for event in &events {
                let closing = event.is_read_closed() || event.is_error();
                self.queue(event.token(), closing);
            }
            for _ in 0..self.runnable.len() {
                let Some(token) = self.runnable.pop_front() else {
                    break;
                };
                if token.0 < self.listeners.len() {
                    self.accept(token)?;
                } else {
                    self.advance(token.0 - self.listeners.len());
                }
            }
        }
        Ok(())
    }

    fn queue(&mut self, token: Token, closing: bool) {
        if let Some(index) = token.0.checked_sub(self.listeners.len()) {
            let Some(connection) = self.connections.get_mut(index) else {
                return;
            };
            connection.closing |= closing;
            if std::mem::replace(&mut connection.queued, true) {
                return;
            }
        } else if self.runnable.contains(&token) {
            return;
        }
        self.runnable.push_back(token);
    }

    fn accept(&mut self, token: Token) -> io::Result<()> {
        self.short_of_descriptors = false;
        for _ in 0..ACCEPTS_PER_TURN {
            let mut stream = match self.listeners[token.0].accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == WouldBlock => return Ok(()),
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    eprintln!(
                        "mpx-bench: no file descriptor left for a connection: raise `ulimit -Hn`"
                    );
                    self.short_of_descriptors = true;
                    break;
                }
                Err(_) => continue, // a connection that ended before it was accepted
            };
            let entry = self.connections.vacant_entry();
            let token = Token(entry.key() + self.listeners.len());
            let index = entry.key();
            self.poll
                .registry()
                .register(&mut stream, token, Interest::READABLE)?;
            entry.insert(Connection {
                stream,
                unsent: Vec::new(),
                blocked: false,
                watches_writes: false,
                queued: false,
                closing: false,
                sent: 0,
            });
            if self.mode == ServerMode::Source {
                self.queue(Token(index + self.listeners.len()), false);
            }
        }
        self.queue(token, false);
        Ok(())
    }

    fn advance(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        connection.queued = false;
        let turn = match self.mode {
            ServerMode::Echo => connection.echo(&mut self.buffer),
            ServerMode::Discard => connection.discard(&mut self.buffer),
            ServerMode::Source => connection.source(&mut self.buffer),
        };
        let token = Token(index + self.listeners.len());
        match turn {
            Ok(Turn::Wait) if connection.watch(&self.poll, token).is_ok() => {}
            Ok(Turn::Again) => self.queue(token, false),
            // An error ends the connection; the client sees and counts it.
            Ok(Turn::Close | Turn::Wait) | Err(_) => drop(self.connections.remove(index)),
        }
    }
}

impl Connection {
    fn echo(&mut self, buffer: &mut [u8]) -> io::Result<Turn> {
        for _ in 0..BUFFERS_PER_TURN {
            if !self.flush()? {
                return Ok(Turn::Wait);
            }
            let Some(n) = receive(&mut self.stream, buffer)? else {
                return Ok(Turn::Wait);
            };
            if n == 0 {
                return Ok(Turn::Close);
            }
            let taken = send(&mut self.stream, &buffer[..n])?;
            self.unsent.extend_from_slice(&buffer[taken..n]);
            self.blocked |= taken < n;
            // A short read empties the socket, and what comes later brings a new event.
            if n < buffer.len() && taken == n && !self.closing {
                return Ok(Turn::Wait);
            }
        }
        Ok(Turn::Again)
    }

    fn discard(&mut self, buffer: &mut [u8]) -> io::Result<Turn> {
        for _ in 0..BUFFERS_PER_TURN {
            match receive(&mut self.stream, buffer)? {
                None => return Ok(Turn::Wait),
                Some(0) => return Ok(Turn::Close),
                Some(_) => {}
            }
        }
        Ok(Turn::Again)
    }

    fn source(&mut self, buffer: &mut [u8]) -> io::Result<Turn> {
        if self.closing {
            return Ok(Turn::Close);
        }
        for _ in 0..BUFFERS_PER_TURN {
            pattern::fill(pattern::SOURCE_KEY, self.sent, buffer);
            let taken = send(&mut self.stream, buffer)?;
            self.sent += taken as u64;
            if taken < buffer.len() {
                self.blocked = true;
                return Ok(Turn::Wait);
            }
        }
        Ok(Turn::Again)
    }

    /// Sends what is left; `false` if something is left still.
    fn flush(&mut self) -> io::Result<bool> {
        if !self.unsent.is_empty() {
            let taken = send(&mut self.stream, &self.unsent)?;
            self.unsent.drain(..taken);
        }
        Ok(self.unsent.is_empty())
    }

    /// Asks for events of writability from the first time on that they are needed.
    fn watch(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        if self.blocked && !self.watches_writes {
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().reregister(&mut self.stream, token, both)?;
            self.watches_writes = true;
        }
        Ok(())
    }
}

/// `None` if there is nothing to read now.
fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match stream.read(buffer) {
            Ok(n) => return Ok(Some(n)),
            Err(e) if e.kind() == WouldBlock => return Ok(None),
            Err(e) if e.kind() == Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// How many bytes the socket took before it would have blocked.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut taken = 0;
    while taken < bytes.len() {
        match stream.write(&bytes[taken..]) {
            Ok(n) => taken += n,
            Err(e) if e.kind() == WouldBlock => break,
            Err(e) if e.kind() == Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(taken)
}
