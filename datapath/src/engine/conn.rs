//! One connection in the hands of its app.

use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::mptcp::Connection;
use crate::mptcp::connection::End;
use crate::mptcp::fallback::Fallback;
use crate::time::Instant;
use slab::Slab;
use std::net::SocketAddr;

/// Names one connection of this worker for as long as it lives; never reused within a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

pub struct Conn<'a> {
    connection: &'a mut Connection,
    metrics: &'a mut Metrics,
    now: Instant,
    /// Unread octets that still lie in their frame; empty where the buffer holds any.
    in_place: &'a [u8],
}

impl<'a> Conn<'a> {
    pub(super) fn new(
        connection: &'a mut Connection,
        metrics: &'a mut Metrics,
        now: Instant,
        in_place: &'a [u8],
    ) -> Conn<'a> {
        debug_assert!(in_place.is_empty() || connection.rcv.unread_bytes() == 0);
        Conn {
            connection,
            metrics,
            now,
            in_place,
        }
    }

    /// How many of the in-place octets were not consumed.
    pub(super) fn unread_in_place(&self) -> usize {
        self.in_place.len()
    }

    pub fn id(&self) -> ConnId {
        self.connection.id
    }

    /// The clock of this turn.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The client's address of the initial subflow, even after that subflow closed.
    pub fn peer_addr(&self) -> SocketAddr {
        self.connection.peer_addr
    }

    /// The server's address of the initial subflow.
    pub fn local_addr(&self) -> SocketAddr {
        self.connection.local_addr
    }

    /// Why it is plain TCP, if it began as Multipath TCP (RFC 8684 §3.7).
    pub fn fallback(&self) -> Option<Fallback> {
        self.connection.fallback
    }

    /// The first contiguous stretch of unread bytes, where they lie. Empty: nothing to read.
    pub fn peek(&self) -> &[u8] {
        if self.in_place.is_empty() {
            self.connection.rcv.peek()
        } else {
            self.in_place
        }
    }

    /// Takes `n` bytes of what `peek` showed; the window opens accordingly.
    pub fn consume(&mut self, n: usize) {
        if self.in_place.is_empty() {
            self.connection.rcv.consume(n);
        } else {
            self.in_place = &self.in_place[n.min(self.in_place.len())..];
        }
    }

    /// The peer's stream ended and everything was consumed.
    pub fn peer_finished(&self) -> bool {
        self.in_place.is_empty()
            && self.connection.rcv.unread_bytes() == 0
            && self.connection.rcv.fin_taken()
    }

    /// Bytes that `write` takes now.
    pub fn writable_bytes(&self) -> usize {
        if self.is_over() {
            0
        } else {
            self.connection.snd.free()
        }
    }

    /// Takes as much as there is room for and returns how much; `on_writable` follows a short one.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        if self.is_over() {
            return 0;
        }
        let taken = self.connection.snd.push(bytes);
        self.connection.write_blocked |= taken < bytes.len();
        taken
    }

    /// The next contiguous free stretch of the send buffer, to fill and then `commit`. Empty:
    /// no room (`on_writable` follows).
    pub fn write_slice(&mut self) -> &mut [u8] {
        if self.is_over() {
            return &mut [];
        }
        self.connection.write_blocked |= self.connection.snd.free() == 0;
        self.connection.snd.write_slice()
    }

    /// Queues the first `n` bytes of what `write_slice` gave.
    pub fn commit(&mut self, n: usize) {
        if !self.is_over() {
            self.connection.snd.commit(n);
        }
    }

    /// Moves unread bytes to the send side, as many of the first stretch as there is room for;
    /// returns how many. `on_writable` follows when room was short.
    pub fn write_unread(&mut self) -> usize {
        if self.is_over() {
            return 0;
        }
        let unread = if self.in_place.is_empty() {
            self.connection.rcv.peek()
        } else {
            self.in_place
        };
        let taken = self.connection.snd.push(unread);
        self.connection.write_blocked |= taken < unread.len();
        self.consume(taken);
        taken
    }

    /// Asks for `on_writable` when there is room, without having to write first.
    pub fn wait_writable(&mut self) {
        self.connection.write_blocked = true;
    }

    /// No more writes: the peer sees the end of the stream after everything queued.
    pub fn close_write(&mut self) {
        self.connection.close_write();
    }

    /// Ends both directions at once: MP_FASTCLOSE or RST.
    pub fn abort(&mut self) {
        self.connection.abort(End::Aborted, self.metrics);
    }

    fn is_over(&self) -> bool {
        self.connection.end.is_some() || self.connection.snd.fin_queued
    }
}

/// All connections of the worker, for apps that act outside a callback.
pub struct Conns<'a> {
    pub(super) connections: &'a mut Slab<Box<Connection>>,
    pub(super) memory: &'a mut Memory,
    pub(super) metrics: &'a mut Metrics,
    /// Those an app laid hands on, to be settled afterwards.
    pub(super) touched: &'a mut Vec<ConnId>,
    pub(super) now: Instant,
}

impl Conns<'_> {
    /// `None`: it is gone.
    pub fn with<R>(&mut self, id: ConnId, f: impl FnOnce(&mut Conn<'_>) -> R) -> Option<R> {
        let connection = self
            .connections
            .get_mut(id.index as usize)
            .filter(|c| c.id == id && !c.app_closed)?;
        self.touched.push(id);
        connection.set_allowance(self.memory.allowance());
        let result = f(&mut Conn::new(connection, self.metrics, self.now, &[]));
        // At once: the next one has what this one left.
        self.metrics.memory_pressures += u64::from(self.memory.settle(connection));
        Some(result)
    }
}
