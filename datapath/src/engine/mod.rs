//! (being written)

use crate::time::Instant;
use std::net::SocketAddr;

/// Names one connection of this worker for as long as it lives; never reused within a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// One connection in the hands of its app.
pub struct Conn<'a> {
    _todo: &'a mut (),
}

impl Conn<'_> {
    pub fn id(&self) -> ConnId {
        todo!()
    }
    /// The clock of this turn.
    pub fn now(&self) -> Instant {
        todo!()
    }
    /// The client's address of the initial subflow, even after that subflow closed.
    pub fn peer_addr(&self) -> SocketAddr {
        todo!()
    }
    /// The server's address of the initial subflow.
    pub fn local_addr(&self) -> SocketAddr {
        todo!()
    }
    /// The first contiguous stretch of unread bytes, where they lie. Empty: nothing to read.
    pub fn peek(&self) -> &[u8] {
        todo!()
    }
    /// Takes `n` bytes of what `peek` showed; the window opens accordingly.
    pub fn consume(&mut self, n: usize) {
        let _ = n;
        todo!()
    }
    /// The peer's stream ended and everything was consumed.
    pub fn peer_finished(&self) -> bool {
        todo!()
    }
    /// Bytes that `write` takes now.
    pub fn writable_bytes(&self) -> usize {
        todo!()
    }
    /// Takes as much as there is room for and returns how much; `on_writable` follows a short one.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let _ = bytes;
        todo!()
    }
    /// The next contiguous free stretch of the send buffer, to fill and then `commit`. Empty:
    /// no room (`on_writable` follows).
    pub fn write_slice(&mut self) -> &mut [u8] {
        todo!()
    }
    /// Queues the first `n` bytes of what `write_slice` gave.
    pub fn commit(&mut self, n: usize) {
        let _ = n;
        todo!()
    }
    /// No more writes: the peer sees the end of the stream after everything queued.
    pub fn close_write(&mut self) {
        todo!()
    }
    /// Ends both directions at once: MP_FASTCLOSE or RST.
    pub fn abort(&mut self) {
        todo!()
    }
}

/// All connections of the worker, for apps that act outside a callback.
pub struct Conns<'a> {
    _todo: &'a mut (),
}

impl Conns<'_> {
    /// `None`: it is gone.
    pub fn with<R>(&mut self, id: ConnId, f: impl FnOnce(&mut Conn<'_>) -> R) -> Option<R> {
        let _ = (id, f);
        todo!()
    }
}
