//! Socket calls on the stack. The tool makes those that block in a thread of their own; its main
//! thread makes all others and is the only one that lets time pass.

use crate::stack::{Opened, Stack};
use mpx_datapath::app::CloseCause;
use mpx_datapath::engine::{ConnId, SubflowReport};
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::time::{Duration, Instant};
use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::IntoRawFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// An `errno`.
pub(crate) type Errno = libc::c_int;

/// How long the threads wait for one another, in real time, before something is wrong.
const HANDOVER: std::time::Duration = std::time::Duration::from_secs(2);
/// How long the tool's second thread gets, in real time, to note what its call returned.
const TAKEOVER: std::time::Duration = std::time::Duration::from_millis(5);
/// How long the stack may have nothing to send, in virtual time, until it is taken to be silent.
const SILENCE: Duration = Duration::from_secs(600);

pub(crate) struct Shim {
    host: Mutex<Host>,
    changed: Condvar,
    main: ThreadId,
}

struct Host {
    stack: Stack,
    sockets: HashMap<i32, Socket>,
    /// Counts what might end a blocking call.
    generation: u64,
    /// The blocking call that waits, with the generation that it has looked at.
    blocked: Option<u64>,
    /// When that call gives up.
    blocked_until: Option<Instant>,
    /// A blocking call has ended and the tool has not asked yet at what time.
    unstamped: bool,
    /// It has asked, and needs its own lock to make use of the answer.
    stamped: bool,
}

// SAFETY: the engine and its app share an `Rc` and hold boxes that name no thread; all of it lives
// in one `Host`, and that is only ever reached through the mutex of `Shim`.
#[expect(unsafe_code)]
unsafe impl Send for Host {}

#[derive(Default)]
struct Socket {
    bound: Option<SocketAddr>,
    nonblocking: bool,
    multipath: bool,
    reset_on_close: bool,
    read_shut: bool,
    write_shut: bool,
    error_told: bool,
    role: Role,
}

#[derive(Default)]
enum Role {
    #[default]
    New,
    Listener,
    Connection(Opened),
}

type Locked<'a> = MutexGuard<'a, Host>;

impl Shim {
    /// To be called by the tool's main thread.
    pub(crate) fn new() -> Shim {
        Shim {
            host: Mutex::new(Host {
                stack: Stack::new(),
                sockets: HashMap::new(),
                generation: 0,
                blocked: None,
                blocked_until: None,
                unstamped: false,
                stamped: false,
            }),
            changed: Condvar::new(),
            main: std::thread::current().id(),
        }
    }

    pub(crate) fn socket(&self, kind: libc::c_int, protocol: libc::c_int) -> Result<i32, Errno> {
        // A real descriptor: the tool closes by itself what a script left open.
        let fd = File::open("/dev/null")
            .map_err(|_| libc::EMFILE)?
            .into_raw_fd();
        let socket = Socket {
            nonblocking: kind & libc::SOCK_NONBLOCK != 0,
            multipath: protocol == libc::IPPROTO_MPTCP,
            ..Socket::default()
        };
        self.lock().sockets.insert(fd, socket);
        Ok(fd)
    }

    pub(crate) fn bind(&self, fd: i32, addr: SocketAddr) -> Result<(), Errno> {
        self.lock().socket(fd)?.bound = Some(addr);
        Ok(())
    }

    pub(crate) fn listen(&self, fd: i32) -> Result<(), Errno> {
        let mut host = self.lock();
        let addr = host.socket(fd)?.bound.ok_or(libc::EDESTADDRREQ)?;
        if host.stack.is_listening() {
            return Err(libc::EADDRINUSE);
        }
        host.socket(fd)?.role = Role::Listener;
        let multipath = host.socket(fd)?.multipath;
        host.stack.listen(addr, multipath);
        Ok(())
    }

    pub(crate) fn accept(&self, fd: i32) -> Result<(i32, SocketAddr), Errno> {
        let host = self.lock();
        let mut host = self.block(host, fd, None, |host| {
            if !matches!(host.socket(fd)?.role, Role::Listener) {
                return Err(libc::EINVAL);
            }
            Ok(host.stack.has_opened())
        })?;
        let opened = host.stack.next_opened().ok_or(libc::EAGAIN)?;
        drop(host);
        let accepted = self.socket(0, libc::IPPROTO_TCP)?;
        self.lock().socket(accepted)?.role = Role::Connection(opened);
        Ok((accepted, opened.peer))
    }

    pub(crate) fn read(&self, fd: i32, into: &mut [u8]) -> Result<usize, Errno> {
        let host = self.lock();
        let want = into.len();
        let mut host = self.block(host, fd, None, |host| host.is_readable(fd))?;
        let id = host.connection(fd)?;
        let read = host.stack.with(id, move |conn| {
            let mut taken = Vec::new();
            while taken.len() < want && !conn.peek().is_empty() {
                let chunk = conn.peek();
                let n = chunk.len().min(want - taken.len());
                taken.extend_from_slice(&chunk[..n]);
                conn.consume(n);
            }
            taken
        });
        match read {
            Some(taken) => {
                into[..taken.len()].copy_from_slice(&taken);
                Ok(taken.len())
            }
            None => host.tell_end(fd).map_or(Ok(0), Err),
        }
    }

    /// Writes all of it, or what there is room for if the socket doesn't block.
    pub(crate) fn write(&self, fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
        let mut written = 0;
        loop {
            let host = self.lock();
            let host = self.block(host, fd, None, |host| host.is_writable(fd));
            let mut host = match host {
                Err(libc::EAGAIN) if written > 0 => return Ok(written),
                host => host?,
            };
            let id = host.connection(fd)?;
            if host.socket(fd)?.write_shut {
                return Err(libc::EPIPE);
            }
            let rest = bytes[written..].to_vec();
            match host.stack.with(id, move |conn| conn.write(&rest)) {
                Some(n) => written += n,
                None => return Err(host.tell_end(fd).unwrap_or(libc::EPIPE)),
            }
            if written == bytes.len() {
                return Ok(written);
            }
        }
    }

    pub(crate) fn shutdown(&self, fd: i32, how: libc::c_int) -> Result<(), Errno> {
        let mut host = self.lock();
        let id = host.connection(fd).map_err(|_| libc::ENOTCONN)?;
        if host.stack.end_of(id).is_some() {
            return Err(libc::ENOTCONN);
        }
        let socket = host.socket(fd)?;
        socket.read_shut |= how != libc::SHUT_WR;
        if how != libc::SHUT_RD && !socket.write_shut {
            socket.write_shut = true;
            host.stack.with(id, |conn| conn.close_write());
        }
        drop(self.announce(host));
        Ok(())
    }

    pub(crate) fn close(&self, fd: i32) -> Result<(), Errno> {
        let mut host = self.lock();
        let socket = host.sockets.remove(&fd).ok_or(libc::EBADF)?;
        match socket.role {
            Role::New => {}
            Role::Listener => {
                host.stack.stop_listening();
                while let Some(opened) = host.stack.next_opened() {
                    host.stack.with(opened.id, |conn| conn.abort());
                }
            }
            Role::Connection(Opened { id, .. }) => {
                host.stack.orphan(id);
                let reset = socket.reset_on_close;
                host.stack.with(id, move |conn| {
                    // RFC 9293 §3.6.1: unread octets are lost, and the peer is told.
                    if reset || !conn.peek().is_empty() {
                        conn.abort();
                    } else {
                        conn.close_write();
                    }
                });
            }
        }
        drop(self.announce(host));
        Ok(())
    }

    /// `connect` to AF_UNSPEC: the connection is aborted, and the socket is as new.
    pub(crate) fn disconnect(&self, fd: i32) -> Result<(), Errno> {
        let mut host = self.lock();
        let id = host.connection(fd)?;
        host.stack.with(id, |conn| conn.abort());
        let socket = host.socket(fd)?;
        *socket = Socket {
            nonblocking: socket.nonblocking,
            ..Socket::default()
        };
        drop(self.announce(host));
        Ok(())
    }

    pub(crate) fn is_nonblocking(&self, fd: i32) -> Result<bool, Errno> {
        Ok(self.lock().socket(fd)?.nonblocking)
    }

    pub(crate) fn set_nonblocking(&self, fd: i32, on: bool) -> Result<(), Errno> {
        self.lock().socket(fd)?.nonblocking = on;
        Ok(())
    }

    pub(crate) fn set_reset_on_close(&self, fd: i32, on: bool) -> Result<(), Errno> {
        self.lock().socket(fd)?.reset_on_close = on;
        Ok(())
    }

    /// Fails once there is an engine: it has its algorithm from the service.
    /// For connections that open once the first packet has come.
    pub(crate) fn set_fast_open(&self, pending_max: libc::c_int) -> Result<(), Errno> {
        self.lock().stack.set_fast_open(pending_max > 0);
        Ok(())
    }

    pub(crate) fn set_congestion(&self, algorithm: Algorithm) -> Result<(), Errno> {
        let mut host = self.lock();
        if host.stack.is_started() {
            return Err(libc::EBUSY);
        }
        host.stack.set_congestion(algorithm);
        Ok(())
    }

    pub(crate) fn exists(&self, fd: i32) -> bool {
        self.lock().sockets.contains_key(&fd)
    }

    /// Fills in `revents` and counts those that have any.
    pub(crate) fn poll(&self, fds: &mut [libc::pollfd], timeout_ms: i32) -> Result<usize, Errno> {
        let host = self.lock();
        let deadline = u64::try_from(timeout_ms)
            .ok()
            .map(|ms| host.stack.now() + Duration::from_millis(ms));
        let wait = self.block_until(host, deadline, |host| {
            let mut ready = 0;
            for fd in fds.iter_mut() {
                fd.revents = host.events(fd.fd) & (fd.events | libc::POLLERR | libc::POLLHUP);
                ready += usize::from(fd.revents != 0);
            }
            Ok(ready > 0)
        });
        match wait {
            Ok(_) | Err(libc::EAGAIN) => Ok(fds.iter().filter(|fd| fd.revents != 0).count()),
            Err(error) => Err(error),
        }
    }

    /// Octets that can be read at once.
    pub(crate) fn unread_bytes(&self, fd: i32) -> Result<usize, Errno> {
        let mut host = self.lock();
        let id = host.connection(fd)?;
        Ok(host.stack.with(id, |conn| conn.peek().len()).unwrap_or(0))
    }

    /// What is known of the first subflow of a connection.
    pub(crate) fn subflow(&self, fd: i32) -> Result<SubflowReport, Errno> {
        let mut host = self.lock();
        let Role::Connection(Opened { peer, local, .. }) = host.socket(fd)?.role else {
            return Err(libc::ENOTCONN);
        };
        let report = host.stack.report().ok_or(libc::ENOTCONN)?;
        report
            .conns
            .into_iter()
            .flat_map(|conn| conn.subflows)
            .find(|subflow| subflow.remote == peer && subflow.local == local)
            .ok_or(libc::ENOTCONN)
    }

    pub(crate) fn netdev_send(&self, packet: &[u8]) {
        let mut host = self.lock();
        host.stack.receive(packet);
        drop(self.announce(host));
    }

    /// The next packet of the stack, waiting for it; `None` when there will be none.
    pub(crate) fn netdev_receive(&self) -> Option<(Instant, Vec<u8>)> {
        let mut host = self.lock();
        let limit = host.stack.now() + SILENCE;
        loop {
            if let Some(sent) = host.stack.next_sent() {
                return Some(sent);
            }
            if host.stack.now() >= limit || !host.stack.has_timer() {
                return None;
            }
            host = self.pass(host, limit);
        }
    }

    pub(crate) fn usleep(&self, duration: Duration) {
        let mut host = self.lock();
        if std::mem::take(&mut host.stamped) {
            drop(host);
            // The main thread has let go of the tool's lock while it sleeps, and only then.
            std::thread::sleep(TAKEOVER);
            host = self.lock();
        }
        let until = host.stack.now() + duration;
        while host.stack.now() < until {
            host = self.pass(host, until);
        }
    }

    /// What time it is. The tool spins on this before an event, so that a little time passes with
    /// every look; but none passes before it has noted when a blocking call ended.
    pub(crate) fn now(&self) -> Instant {
        let mut host = self.lock();
        let is_main = std::thread::current().id() == self.main;
        if !is_main && std::mem::take(&mut host.unstamped) {
            host.stamped = true;
            self.changed.notify_all();
        } else {
            let until = host.stack.now() + Duration::from_micros(2);
            host = self.pass(host, until);
        }
        host.stack.now()
    }

    fn lock(&self) -> Locked<'_> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of virtual time, until a timer, the end of a blocking call's patience or `limit`.
    fn pass<'a>(&'a self, mut host: Locked<'a>, limit: Instant) -> Locked<'a> {
        let limit = host.blocked_until.map_or(limit, |until| until.min(limit));
        host.stack.step(limit);
        self.announce(host)
    }

    /// Something has happened: lets a blocking call look, and waits until it has.
    fn announce<'a>(&'a self, mut host: Locked<'a>) -> Locked<'a> {
        host.stack.publish_counters();
        host.generation += 1;
        self.changed.notify_all();
        if std::thread::current().id() != self.main {
            return host;
        }
        let busy = |host: &mut Host| {
            host.unstamped || host.blocked.is_some_and(|seen| seen != host.generation)
        };
        let (host, _) = self
            .changed
            .wait_timeout_while(host, HANDOVER, busy)
            .unwrap_or_else(PoisonError::into_inner);
        host
    }

    fn block<'a>(
        &'a self,
        mut host: Locked<'a>,
        fd: i32,
        deadline: Option<Instant>,
        ready: impl FnMut(&mut Host) -> Result<bool, Errno>,
    ) -> Result<Locked<'a>, Errno> {
        let deadline = if host.socket(fd)?.nonblocking {
            Some(host.stack.now())
        } else {
            deadline
        };
        self.block_until(host, deadline, ready)
    }

    /// Waits until `ready`; `EAGAIN` at the `deadline`.
    fn block_until<'a>(
        &'a self,
        mut host: Locked<'a>,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut Host) -> Result<bool, Errno>,
    ) -> Result<Locked<'a>, Errno> {
        let is_main = std::thread::current().id() == self.main;
        let mut waited = false;
        let result = loop {
            match ready(&mut host) {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            }
            if deadline.is_some_and(|deadline| host.stack.now() >= deadline) {
                break Err(libc::EAGAIN);
            }
            if is_main {
                // Nothing can come from outside meanwhile: only a timer may help.
                if deadline.is_none() && !host.stack.has_timer() {
                    break Err(libc::EDEADLK);
                }
                let limit = deadline.unwrap_or(host.stack.now() + SILENCE);
                host = self.pass(host, limit);
                continue;
            }
            waited = true;
            host.blocked = Some(host.generation);
            host.blocked_until = deadline;
            self.changed.notify_all();
            host = self
                .changed
                .wait(host)
                .unwrap_or_else(PoisonError::into_inner);
        };
        if waited {
            host.blocked = None;
            host.blocked_until = None;
            host.unstamped = true;
        }
        result.map(|()| host)
    }
}

impl Host {
    fn socket(&mut self, fd: i32) -> Result<&mut Socket, Errno> {
        self.sockets.get_mut(&fd).ok_or(libc::EBADF)
    }

    fn connection(&mut self, fd: i32) -> Result<ConnId, Errno> {
        match self.socket(fd)?.role {
            Role::Connection(Opened { id, .. }) => Ok(id),
            _ => Err(libc::ENOTCONN),
        }
    }

    fn is_readable(&mut self, fd: i32) -> Result<bool, Errno> {
        let id = self.connection(fd)?;
        let readable = self
            .stack
            .with(id, |conn| !conn.peek().is_empty() || conn.peer_finished());
        Ok(readable.unwrap_or(true) || self.socket(fd)?.read_shut)
    }

    fn is_writable(&mut self, fd: i32) -> Result<bool, Errno> {
        let id = self.connection(fd)?;
        if self.socket(fd)?.write_shut {
            return Ok(true);
        }
        let writable = self.stack.with(id, |conn| conn.writable_bytes() > 0);
        Ok(writable.unwrap_or(true))
    }

    /// Why a connection is gone, once.
    fn tell_end(&mut self, fd: i32) -> Option<Errno> {
        let id = self.connection(fd).ok()?;
        let socket = self.sockets.get_mut(&fd)?;
        if std::mem::replace(&mut socket.error_told, true) {
            return None;
        }
        match self.stack.end_of(id)? {
            CloseCause::Finished | CloseCause::Aborted => None,
            CloseCause::PeerAborted => Some(libc::ECONNRESET),
            CloseCause::TimedOut => Some(libc::ETIMEDOUT),
        }
    }

    /// Poll bits.
    fn events(&mut self, fd: i32) -> i16 {
        let Ok(socket) = self.socket(fd) else {
            return libc::POLLNVAL;
        };
        let (read_shut, write_shut) = (socket.read_shut, socket.write_shut);
        let id = match socket.role {
            Role::New => return libc::POLLOUT | libc::POLLHUP,
            Role::Listener => {
                return if self.stack.has_opened() {
                    libc::POLLIN
                } else {
                    0
                };
            }
            Role::Connection(Opened { id, .. }) => id,
        };
        let state = self.stack.with(id, |conn| {
            let ended = conn.peer_finished();
            (!conn.peek().is_empty(), ended, conn.writable_bytes() > 0)
        });
        let mut events = 0;
        let mut set = |on: bool, bits: i16| events |= if on { bits } else { 0 };
        match state {
            Some((readable, ended, writable)) => {
                set(
                    readable || ended || read_shut,
                    libc::POLLIN | libc::POLLRDNORM,
                );
                set(ended || read_shut, libc::POLLRDHUP);
                set(writable || write_shut, libc::POLLOUT | libc::POLLWRNORM);
                set((ended || read_shut) && write_shut, libc::POLLHUP);
            }
            None => {
                let failed = self.stack.end_of(id) != Some(CloseCause::Finished);
                set(true, libc::POLLIN | libc::POLLRDNORM | libc::POLLRDHUP);
                set(true, libc::POLLOUT | libc::POLLWRNORM | libc::POLLHUP);
                set(failed, libc::POLLERR);
            }
        }
        events
    }
}
