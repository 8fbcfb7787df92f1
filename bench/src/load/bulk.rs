//! One transfer per connection, as fast as it goes: up, down, or both ways through an echo server.

use std::collections::VecDeque;
use std::io::{self, ErrorKind::Interrupted, ErrorKind::WouldBlock, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::tally::{ErrorKind, Failure, Tally, connect_failure, exchange_failure};
use super::{Limit, Mode, Plan, Shared};
use crate::{pattern, socket};

const BUFFER_BYTES: usize = 128 * 1024;
const EVENTS_PER_POLL: usize = 256;
/// Buffers moved for one connection before the others get their turn.
const BUFFERS_PER_TURN: usize = 8;
const SCAN: Duration = Duration::from_millis(50);

pub(super) fn run(shared: Shared) -> io::Result<Tally> {
    let start = shared.start.wait();
    let mut worker = Worker {
        poll: Poll::new()?,
        tally: Tally::new(),
        transfers: Vec::new(),
        runnable: VecDeque::new(),
        buffer: vec![0; BUFFER_BYTES],
        end: match shared.plan.limit {
            Limit::Duration(d) => Some(start + d),
            _ => None,
        },
        plan: shared.plan,
        shared: &shared,
        open: 0,
    };
    worker.connect_all(start);
    worker.drive()?;
    Ok(worker.tally)
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    plan: &'a Plan,
    poll: Poll,
    tally: Tally,
    transfers: Vec<Transfer>,
    /// Transfers that can go on without another event.
    runnable: VecDeque<usize>,
    buffer: Vec<u8>,
    end: Option<Instant>,
    open: usize,
}

struct Transfer {
    connection: usize,
    stream: Option<TcpStream>,
    connecting: bool,
    started: Instant,
    progressed: Instant,
    /// Still to be shut down for sending.
    sending: bool,
    queued: bool,
    sent: u64,
    received: u64,
}

impl Worker<'_> {
    fn connect_all(&mut self, now: Instant) {
        for connection in self.shared.connections() {
            let index = self.transfers.len();
            let (target, source) = self.shared.route(connection);
            let opened = socket::connect(self.plan.proto, target, source, self.plan.reset_on_close)
                .and_then(|mut stream| {
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    self.poll
                        .registry()
                        .register(&mut stream, Token(index), interest)?;
                    Ok(stream)
                });
            let (stream, failure) = match opened {
                Ok(stream) => (Some(stream), None),
                Err(e) => (None, Some(connect_failure(&e))),
            };
            self.transfers.push(Transfer {
                connection,
                stream,
                connecting: true,
                started: now,
                progressed: now,
                sending: self.plan.mode != Mode::Down,
                queued: false,
                sent: 0,
                received: 0,
            });
            self.open += 1;
            if let Some(failure) = failure {
                self.finish(index, Err(failure));
            }
        }
    }

    fn drive(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        let mut next_scan = Instant::now() + SCAN;
        let mut ended = false;
        while self.open > 0 {
            let now = Instant::now();
            let end = self.end.is_some_and(|end| now >= end);
            if !ended && (end || self.shared.stopped()) {
                ended = true;
                self.end = Some(now);
                // Transfers that wait for an event have to learn that it is over.
                for index in 0..self.transfers.len() {
                    self.queue(index);
                }
            }
            if now >= next_scan {
                next_scan = now + SCAN;
                self.enforce_timeout(now);
            }
            let mut wake = next_scan;
            if let (Some(end), false) = (self.end, ended) {
                wake = wake.min(end);
            }
            let timeout = match self.runnable.is_empty() {
                true => wake.saturating_duration_since(now),
                false => Duration::ZERO,
            };
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(e) if e.kind() == Interrupted => events.clear(),
                result => result?,
            }
            for event in &events {
                self.on_event(event);
            }
            for _ in 0..self.runnable.len() {
                let Some(index) = self.runnable.pop_front() else {
                    break;
                };
                self.transfers[index].queued = false;
                self.advance(index, ended);
            }
            self.shared
                .live
                .bytes_sent
                .store(self.tally.bytes_sent, Relaxed);
            self.shared
                .live
                .bytes_received
                .store(self.tally.bytes_received, Relaxed);
        }
        Ok(())
    }

    fn on_event(&mut self, event: &mio::event::Event) {
        let index = event.token().0;
        let transfer = &mut self.transfers[index];
        let Some(stream) = &transfer.stream else {
            return;
        };
        if transfer.connecting {
            if let Ok(Some(e)) = stream.take_error() {
                return self.finish(index, Err(connect_failure(&e)));
            }
            if !event.is_writable() {
                return;
            }
            transfer.connecting = false;
            let took = transfer.started.elapsed();
            self.tally.connected(&self.shared.live, took);
        }
        self.queue(index);
    }

    fn queue(&mut self, index: usize) {
        let transfer = &mut self.transfers[index];
        if transfer.stream.is_some() && !transfer.connecting && !transfer.queued {
            transfer.queued = true;
            self.runnable.push_back(index);
        }
    }

    /// Moves bytes both ways, and on to the next state where they are all moved.
    fn advance(&mut self, index: usize, ended: bool) {
        let before = (self.tally.bytes_sent, self.tally.bytes_received);
        let result = self.send(index, ended).and_then(|more_to_send| {
            let (more_to_receive, done) = self.receive(index, ended)?;
            Ok((more_to_send || more_to_receive, done))
        });
        if before != (self.tally.bytes_sent, self.tally.bytes_received) {
            self.transfers[index].progressed = Instant::now();
        }
        match result {
            Ok((_, true)) => self.finish(index, Ok(())),
            Ok((true, false)) => self.queue(index),
            Ok((false, false)) => {}
            Err(failure) => self.finish(index, Err(failure)),
        }
    }

    /// `true` if the socket would take more.
    fn send(&mut self, index: usize, ended: bool) -> Result<bool, Failure> {
        let transfer = &mut self.transfers[index];
        let Some(stream) = &mut transfer.stream else {
            return Ok(false);
        };
        if !transfer.sending {
            return Ok(false);
        }
        for _ in 0..BUFFERS_PER_TURN {
            let left = match self.plan.limit {
                _ if ended => 0,
                Limit::BytesEach(n) => n - transfer.sent,
                _ => u64::MAX,
            };
            if left == 0 {
                transfer.sending = false;
                stream
                    .shutdown(Shutdown::Write)
                    .map_err(|e| exchange_failure("shutdown", &e))?;
                return Ok(false);
            }
            let piece = &mut self.buffer[..left.min(BUFFER_BYTES as u64) as usize];
            if self.plan.mode == Mode::Both {
                pattern::fill(key(transfer.connection), transfer.sent, piece);
            }
            match stream.write(piece) {
                Ok(n) => {
                    transfer.sent += n as u64;
                    self.tally.bytes_sent += n as u64;
                }
                Err(e) if e.kind() == WouldBlock => return Ok(false),
                Err(e) if e.kind() == Interrupted => {}
                Err(e) => return Err(exchange_failure("send", &e)),
            }
        }
        Ok(true)
    }

    /// Whether the socket may hold more, and whether the transfer is done.
    fn receive(&mut self, index: usize, ended: bool) -> Result<(bool, bool), Failure> {
        let transfer = &mut self.transfers[index];
        let down_limit = match (self.plan.mode, self.plan.limit) {
            (Mode::Down, Limit::BytesEach(n)) => Some(n),
            _ => None,
        };
        if self.plan.mode == Mode::Down && ended {
            return Ok((false, true));
        }
        for _ in 0..BUFFERS_PER_TURN {
            let wanted = down_limit.map_or(u64::MAX, |n| n - transfer.received);
            let piece = &mut self.buffer[..wanted.min(BUFFER_BYTES as u64) as usize];
            let Some(stream) = &mut transfer.stream else {
                return Ok((false, false));
            };
            let n = match stream.read(piece) {
                Ok(0) => return transfer.end_of_stream(self.plan, down_limit),
                Ok(n) => n,
                Err(e) if e.kind() == WouldBlock => return Ok((false, false)),
                Err(e) if e.kind() == Interrupted => continue,
                Err(e) => return Err(exchange_failure("receive", &e)),
            };
            self.tally.bytes_received += n as u64;
            transfer.check(self.plan, &piece[..n])?;
            transfer.received += n as u64;
            if down_limit == Some(transfer.received) {
                return Ok((false, true));
            }
        }
        Ok((true, false))
    }

    fn finish(&mut self, index: usize, result: Result<(), Failure>) {
        let transfer = &mut self.transfers[index];
        let (target, _) = self.shared.route(transfer.connection);
        let now = Instant::now();
        let live = &self.shared.live;
        match result {
            Ok(()) => self.tally.completed(live, now, now - transfer.started),
            Err((kind, what)) => {
                let what = format!("{target}: {what} (after {} bytes)", transfer.moved());
                self.tally.failed(live, (kind, what));
            }
        }
        if let Some(stream) = transfer.stream.take()
            && !transfer.connecting
            && !self.tally.closing(&stream)
            && self.plan.require_mptcp
        {
            let what = format!("{target}: the connection is plain TCP");
            self.tally.failed(live, (ErrorKind::NotMptcp, what));
        }
        self.open -= 1;
    }

    fn enforce_timeout(&mut self, now: Instant) {
        for index in 0..self.transfers.len() {
            let transfer = &self.transfers[index];
            if transfer.stream.is_some() && now >= transfer.progressed + self.plan.timeout {
                let failure = match transfer.connecting {
                    true => (ErrorKind::ConnectTimeout, "connect: timed out".into()),
                    false => (ErrorKind::Timeout, "no byte moved within --timeout".into()),
                };
                self.finish(index, Err(failure));
            }
        }
    }
}

impl Transfer {
    fn moved(&self) -> u64 {
        self.sent + self.received
    }

    /// Checks bytes that follow those received so far.
    fn check(&self, plan: &Plan, bytes: &[u8]) -> Result<(), Failure> {
        let key = match plan.mode {
            Mode::Both => key(self.connection),
            Mode::Down if plan.verify_source => pattern::SOURCE_KEY,
            Mode::Down => return Ok(()),
            _ => {
                let what = "the server sends although it should discard".into();
                return Err((ErrorKind::ExcessBytes, what));
            }
        };
        if plan.mode == Mode::Both && self.received + bytes.len() as u64 > self.sent {
            let what = "more bytes came back than were sent".into();
            return Err((ErrorKind::ExcessBytes, what));
        }
        match pattern::first_mismatch(key, self.received, bytes) {
            Some(at) => {
                let what = format!("byte {} of the stream", self.received + at as u64);
                Err((ErrorKind::MismatchedBytes, what))
            }
            None => Ok(()),
        }
    }

    fn end_of_stream(&self, plan: &Plan, down_limit: Option<u64>) -> Result<(bool, bool), Failure> {
        let missing = match plan.mode {
            Mode::Both => self.sent - self.received,
            Mode::Down => down_limit.map_or(0, |n| n - self.received),
            _ => 0,
        };
        if self.sending || missing > 0 || (plan.mode == Mode::Down && down_limit.is_none()) {
            let what = "end of stream before the end of the transfer".into();
            return Err((ErrorKind::ShortRead, what));
        }
        Ok((false, true))
    }
}

/// The pattern of a connection; not that of `echo-server --mode source`.
fn key(connection: usize) -> u64 {
    connection as u64 + 1
}
