//! Requests and responses: on persistent connections (`rr`) or on a new one each (`short`).
//!
//! Both are one state machine over a fixed number of slots. An operation that becomes due takes a
//! free slot; without a rate the next one is due whenever a slot is free. With a rate operation
//! `i` is due at `start + i / rate` whether a slot is free or not, and its latency counts from
//! then: a server that stalls is charged with the operations that piled up behind the stall.

use std::collections::VecDeque;
use std::io::{self, ErrorKind::Interrupted, ErrorKind::WouldBlock, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::http::{Progress, ResponseReader};
use super::tally::{ErrorKind, Failure, Live, Tally, connect_failure, exchange_failure};
use super::{Limit, Mode, Plan, Shared};
use crate::{pattern, socket};

const BUFFER_BYTES: usize = 64 * 1024;
const EVENTS_PER_POLL: usize = 512;
/// How often the deadlines of the operations are looked at.
const DEADLINE_SCAN: Duration = Duration::from_millis(50);
/// A slot whose operation failed takes no other for so long, so that a dead server is not hammered.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);
/// Connections of the set-up that may be under way at once: more would overflow listen queues.
const CONNECTING_MAX: usize = 256;

pub(super) fn run(shared: Shared) -> io::Result<Tally> {
    let ready = Worker::new(&shared).and_then(|mut worker| {
        let usable = shared.plan.mode != Mode::Rr || worker.connect_all()?;
        Ok((worker, usable))
    });
    let start = shared.start.wait(); // also on an error, for the other threads wait too
    let (mut worker, usable) = ready?;
    if usable {
        worker.drive(Schedule::new(&shared, start))?;
    }
    worker.close_all();
    Ok(worker.tally)
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    plan: &'a Plan,
    live: Arc<Live>,
    tally: Tally,
    poll: Poll,
    slots: Vec<Slot>,
    /// Slots without an operation, the one that is free for longest first.
    free: VecDeque<usize>,
    /// Slots that pause after a failure, by the end of the pause.
    pausing: VecDeque<(Instant, usize)>,
    busy: usize,
    buffer: Vec<u8>,
    /// Gives every connection of the run its own pattern.
    next_key: u64,
}

struct Slot {
    connection: usize,
    stream: Option<TcpStream>,
    connecting: bool,
    connect_started: Instant,
    /// The operation under way, if any.
    operation: Option<Operation>,
    key: u64,
    /// Bytes sent and received on this connection.
    sent: u64,
    received: u64,
    http: ResponseReader,
    /// The response is complete, and the server is to close.
    answered: bool,
    http_request: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Operation {
    /// When it was due; latency counts from here.
    due: Instant,
    deadline: Instant,
    request_left: usize,
    /// Bytes that the echo still owes.
    response_left: usize,
}

enum Step {
    Pending,
    Complete { server_closes: bool },
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared<'a>) -> io::Result<Self> {
        let plan = shared.plan;
        let now = Instant::now();
        let slot = |connection| Slot {
            connection,
            stream: None,
            connecting: false,
            connect_started: now,
            operation: None,
            key: 0,
            sent: 0,
            received: 0,
            http: ResponseReader::default(),
            answered: false,
            http_request: match &plan.http_path {
                Some(path) => {
                    let (host, _) = shared.route(connection);
                    let close = match plan.server_closes {
                        true => "Connection: close\r\n",
                        false => "",
                    };
                    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n").into_bytes()
                }
                None => Vec::new(),
            },
        };
        let slots: Vec<Slot> = shared.connections().map(slot).collect();
        Ok(Self {
            shared,
            plan,
            live: shared.live.clone(),
            tally: Tally::new(),
            poll: Poll::new()?,
            free: (0..slots.len()).collect(),
            slots,
            pausing: VecDeque::new(),
            busy: 0,
            buffer: vec![0; BUFFER_BYTES],
            next_key: 1 + shared.index as u64,
        })
    }

    /// Sets up the persistent connections; `false` if none came about. Those that failed are
    /// tried again by the operations that need them.
    fn connect_all(&mut self) -> io::Result<bool> {
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        let mut next = 0;
        loop {
            let now = Instant::now();
            let mut connecting = 0;
            for i in 0..next {
                let slot = &self.slots[i];
                if slot.connecting && now >= slot.connect_started + self.plan.timeout {
                    self.fail(i, now, timed_out(true));
                }
                connecting += usize::from(self.slots[i].connecting);
            }
            while next < self.slots.len() && connecting < CONNECTING_MAX {
                match self.connect(next, now) {
                    Ok(()) => connecting += 1,
                    Err(failure) => self.fail(next, now, failure),
                }
                next += 1;
            }
            if connecting == 0 || self.shared.stopped() {
                return Ok(self.slots.iter().any(|s| s.stream.is_some()));
            }
            poll(&mut self.poll, &mut events, DEADLINE_SCAN)?;
            for event in &events {
                self.on_event(event, &mut None);
            }
        }
    }

    fn drive(&mut self, schedule: Schedule) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        let mut next_scan = Instant::now() + DEADLINE_SCAN;
        let mut schedule = Some(schedule);
        loop {
            let now = Instant::now();
            while let Some((_, slot)) = self.pausing.pop_front_if(|(until, _)| *until <= now) {
                self.free.push_back(slot);
            }
            if now >= next_scan {
                self.enforce_deadlines(now);
                next_scan = now + DEADLINE_SCAN;
                if let Some(schedule) = &mut schedule
                    && (self.shared.stopped() || schedule.overdue(now, self.plan.timeout))
                {
                    self.give_up(schedule);
                }
            }
            let next_due = self.issue(&mut schedule, now);
            if self.busy == 0 && matches!(next_due, Due::Never) {
                return Ok(());
            }
            let mut wake = next_scan;
            if let (Due::At(due), false) = (next_due, self.free.is_empty()) {
                wake = wake.min(due);
            }
            if let Some((until, _)) = self.pausing.front() {
                wake = wake.min(*until);
            }
            poll(
                &mut self.poll,
                &mut events,
                wake.saturating_duration_since(now),
            )?;
            for event in &events {
                self.on_event(event, &mut schedule);
            }
        }
    }

    /// Starts the operations that are due for as long as there are free slots.
    fn issue(&mut self, schedule: &mut Option<Schedule>, now: Instant) -> Due {
        let Some(schedule) = schedule else {
            return Due::Never;
        };
        loop {
            let next = schedule.peek(now);
            let Due::Now(due) = next else {
                return next;
            };
            let Some(slot) = self.free.pop_front() else {
                return next;
            };
            schedule.issued += 1;
            self.begin(slot, due, now);
        }
    }

    fn begin(&mut self, index: usize, due: Instant, now: Instant) {
        let slot = &mut self.slots[index];
        let http = self.plan.http_path.is_some();
        slot.operation = Some(Operation {
            due,
            deadline: now + self.plan.timeout,
            request_left: match http {
                true => slot.http_request.len(),
                false => self.plan.request_bytes,
            },
            response_left: self.plan.request_bytes,
        });
        self.busy += 1;
        let begun = match slot.stream {
            Some(_) => self.send(index),
            None => self.connect(index, now),
        };
        if let Err(failure) = begun {
            self.fail(index, now, failure);
        }
    }

    fn connect(&mut self, index: usize, now: Instant) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        let (target, source) = self.shared.route(slot.connection);
        let reset_on_close = self.plan.reset_on_close;
        let mut stream = socket::connect(self.plan.proto, target, source, reset_on_close)
            .map_err(|e| connect_failure(&e))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(index), interest)
            .map_err(|e| connect_failure(&e))?;
        slot.stream = Some(stream);
        slot.connecting = true;
        slot.connect_started = now;
        slot.key = self.next_key;
        self.next_key += self.plan.threads as u64;
        slot.sent = 0;
        slot.received = 0;
        slot.http = ResponseReader::default();
        slot.answered = false;
        Ok(())
    }

    fn on_event(&mut self, event: &mio::event::Event, schedule: &mut Option<Schedule>) {
        let index = event.token().0;
        if let Err(failure) = self.advance(index, event, schedule) {
            self.fail(index, Instant::now(), failure);
        }
    }

    fn advance(
        &mut self,
        index: usize,
        event: &mio::event::Event,
        schedule: &mut Option<Schedule>,
    ) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        let Some(stream) = &slot.stream else {
            return Ok(());
        };
        if slot.connecting {
            if let Ok(Some(e)) = stream.take_error() {
                return Err(connect_failure(&e));
            }
            if !event.is_writable() {
                return Ok(());
            }
            slot.connecting = false;
            let took = slot.connect_started.elapsed();
            self.tally.connected(&self.live, took);
            self.send(index)?;
        } else if event.is_writable() {
            self.send(index)?;
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.receive(index, event.is_read_closed() || event.is_error(), schedule)?;
        }
        Ok(())
    }

    /// Sends what is left of the request, as far as the socket takes it.
    fn send(&mut self, index: usize) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        let (Some(stream), Some(operation)) = (&mut slot.stream, &mut slot.operation) else {
            return Ok(());
        };
        while operation.request_left > 0 {
            let wanted = operation.request_left.min(self.buffer.len());
            let piece = if slot.http_request.is_empty() {
                pattern::fill(slot.key, slot.sent, &mut self.buffer[..wanted]);
                &self.buffer[..wanted]
            } else {
                &slot.http_request[slot.http_request.len() - operation.request_left..]
            };
            match stream.write(piece) {
                Ok(n) => {
                    operation.request_left -= n;
                    slot.sent += n as u64;
                    self.tally.bytes_sent += n as u64;
                    if n < piece.len() {
                        continue; // until EAGAIN, which the next event needs
                    }
                }
                Err(e) if e.kind() == WouldBlock => break,
                Err(e) if e.kind() == Interrupted => {}
                Err(e) => return Err(exchange_failure("send", &e)),
            }
        }
        Ok(())
    }

    /// Reads until the socket is empty. `closing`: the end or an error is there to be read too.
    fn receive(
        &mut self,
        index: usize,
        closing: bool,
        schedule: &mut Option<Schedule>,
    ) -> Result<(), Failure> {
        loop {
            let Some(stream) = &mut self.slots[index].stream else {
                return Ok(());
            };
            let n = match stream.read(&mut self.buffer) {
                Ok(0) => return self.end_of_stream(index, schedule),
                Ok(n) => n,
                Err(e) if e.kind() == WouldBlock => return Ok(()),
                Err(e) if e.kind() == Interrupted => continue,
                Err(e) => return Err(exchange_failure("receive", &e)),
            };
            self.tally.bytes_received += n as u64;
            if let Step::Complete { server_closes } = self.take(index, n)? {
                if self.plan.server_closes {
                    self.slots[index].answered = true;
                    continue;
                }
                let keep = self.plan.mode == Mode::Rr && !server_closes;
                self.complete(index, keep, schedule);
                if !keep {
                    return Ok(()); // the slot may have its next connection already
                }
            }
            // A short read empties the socket, and what comes later brings a new event.
            if n < self.buffer.len() && !closing {
                return Ok(());
            }
        }
    }

    /// Checks `n` bytes of the buffer against what the operation expects.
    fn take(&mut self, index: usize, n: usize) -> Result<Step, Failure> {
        let slot = &mut self.slots[index];
        let bytes = &self.buffer[..n];
        let Some(operation) = &mut slot.operation else {
            let what = format!("{n} bytes without a request");
            return Err((ErrorKind::ExcessBytes, what));
        };
        if self.plan.http_path.is_some() {
            return match slot.http.feed(bytes, self.plan.response_bytes)? {
                Progress::More => Ok(Step::Pending),
                Progress::Complete { server_closes } => Ok(Step::Complete { server_closes }),
            };
        }
        if n > operation.response_left {
            let excess = n - operation.response_left;
            let what = format!("{excess} bytes more than were sent");
            return Err((ErrorKind::ExcessBytes, what));
        }
        if let Some(at) = pattern::first_mismatch(slot.key, slot.received, bytes) {
            let what = format!("byte {} of the stream", slot.received + at as u64);
            return Err((ErrorKind::MismatchedBytes, what));
        }
        slot.received += n as u64;
        operation.response_left -= n;
        match operation.response_left {
            0 => Ok(Step::Complete {
                server_closes: false,
            }),
            _ => Ok(Step::Pending),
        }
    }

    fn complete(&mut self, index: usize, keep: bool, schedule: &mut Option<Schedule>) {
        let now = Instant::now();
        let Some(operation) = self.slots[index].operation.take() else {
            return;
        };
        self.busy -= 1;
        let took = now.saturating_duration_since(operation.due);
        self.tally.completed(&self.live, now, took);
        if !keep {
            self.close(index);
        }
        self.free.push_back(index);
        self.issue(schedule, now);
    }

    fn end_of_stream(
        &mut self,
        index: usize,
        schedule: &mut Option<Schedule>,
    ) -> Result<(), Failure> {
        if self.slots[index].answered {
            self.complete(index, false, schedule);
            return Ok(());
        }
        if self.slots[index].operation.is_some() {
            let what = "end of stream instead of the answer".into();
            return Err((ErrorKind::ShortRead, what));
        }
        if self.plan.http_path.is_none() {
            let what = "end of stream between two operations".into();
            return Err((ErrorKind::ClosedIdle, what));
        }
        // An HTTP server may close an idle connection whenever it likes (RFC 9112 §9.5).
        self.close(index);
        Ok(())
    }

    /// Ends the operation and the connection of a slot with an error.
    fn fail(&mut self, index: usize, now: Instant, failure: Failure) {
        let (target, _) = self.shared.route(self.slots[index].connection);
        self.tally
            .failed(&self.live, (failure.0, format!("{target}: {}", failure.1)));
        self.close(index);
        if self.slots[index].operation.take().is_some() {
            self.busy -= 1;
            self.pausing.push_back((now + PAUSE_AFTER_FAILURE, index));
        }
    }

    fn enforce_deadlines(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.operation.is_some_and(|o| o.deadline <= now) {
                let failure = timed_out(slot.connecting);
                self.fail(index, now, failure);
            }
        }
    }

    /// Issues nothing more. What was due and was not sent is an error, unless the user stopped it.
    fn give_up(&mut self, schedule: &mut Schedule) {
        if !self.shared.stopped() {
            let unsent = schedule.total.map_or(0, |total| total - schedule.issued);
            let what = format!(
                "no free connection within {:?} after the end",
                self.plan.timeout
            );
            self.tally
                .failed_times(&self.live, ErrorKind::Unsent, unsent, what);
        }
        schedule.ended = true;
    }

    fn close(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(stream) = slot.stream.take() else {
            return;
        };
        let established = !std::mem::take(&mut slot.connecting);
        if established && !self.tally.closing(&stream) && self.plan.require_mptcp {
            let (target, _) = self.shared.route(slot.connection);
            let what = format!("{target}: the connection is plain TCP");
            self.tally.failed(&self.live, (ErrorKind::NotMptcp, what));
        }
    }

    fn close_all(&mut self) {
        for index in 0..self.slots.len() {
            self.close(index);
        }
    }
}

fn timed_out(connecting: bool) -> Failure {
    match connecting {
        true => (ErrorKind::ConnectTimeout, "connect: timed out".into()),
        false => (ErrorKind::Timeout, "the answer timed out".into()),
    }
}

/// Waits for events. epoll counts in milliseconds, so that the last one before `timeout` is spent
/// polling: operations are then issued when they are due.
fn poll(poll: &mut Poll, events: &mut Events, timeout: Duration) -> io::Result<()> {
    let timeout = Duration::from_millis(timeout.as_millis() as u64);
    match poll.poll(events, Some(timeout)) {
        Err(e) if e.kind() == Interrupted => {
            events.clear();
            Ok(())
        }
        result => result,
    }
}

/// When the operations of a thread are due.
struct Schedule {
    start: Instant,
    end: Option<Instant>,
    /// Seconds between two operations of this thread, and before its first.
    interval_s: Option<(f64, f64)>,
    /// Operations in all, where that is known beforehand.
    total: Option<u64>,
    issued: u64,
    ended: bool,
}

enum Due {
    /// Since this instant.
    Now(Instant),
    At(Instant),
    Never,
}

impl Schedule {
    fn new(shared: &Shared, start: Instant) -> Self {
        let plan = shared.plan;
        let threads = plan.threads as f64;
        // Thread `t` of `T` has operations t, t+T, t+2T, ... of the whole schedule.
        let interval_s = plan
            .rate_per_s
            .map(|rate| (threads / rate, shared.index as f64 / rate));
        let (end, total) = match plan.limit {
            Limit::Duration(d) => {
                let total = plan
                    .rate_per_s
                    .map(|rate| (d.as_secs_f64() * rate).ceil() as u64);
                (Some(start + d), total)
            }
            Limit::Count(n) => (None, Some(n)),
            Limit::BytesEach(_) => (None, Some(0)), // not for exchanges; Plan is checked
        };
        Self {
            start,
            end,
            interval_s,
            total: total.map(|n| shared.share(n)),
            issued: 0,
            ended: false,
        }
    }

    fn peek(&self, now: Instant) -> Due {
        if self.ended || self.total.is_some_and(|n| self.issued >= n) {
            return Due::Never;
        }
        match self.due(self.issued) {
            Some(due) if due > now => Due::At(due),
            Some(due) => Due::Now(due),
            None if self.end.is_some_and(|end| now >= end) => Due::Never,
            None => Due::Now(now),
        }
    }

    /// When operation `i` is due, if there is a rate.
    fn due(&self, i: u64) -> Option<Instant> {
        let (interval_s, offset_s) = self.interval_s?;
        Some(self.start + Duration::from_secs_f64(offset_s + interval_s * i as f64))
    }

    /// Whether even the last operation was due longer than `timeout` ago.
    fn overdue(&self, now: Instant, timeout: Duration) -> bool {
        let last = self.total.and_then(|n| self.due(n.saturating_sub(1)));
        !self.ended && last.is_some_and(|last| now >= last + timeout)
    }
}
