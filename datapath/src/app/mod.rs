//! Applications: what a service does with the byte streams of its connections.
//!
//! An [`App`] is sans-IO: callbacks with a [`Conn`] to peek, consume, write and close. An app that
//! also owns kernel descriptors (the proxy) shows them to the worker through [`Readiness`].

pub mod builtin;

use crate::engine::{Conn, ConnId, Conns, Fallback};
use crate::time::Instant;
use std::os::fd::BorrowedFd;

/// One value serves all connections of one service on one worker.
pub trait App {
    /// The connection is established; nothing has been read.
    fn on_open(&mut self, conn: &mut Conn<'_>) {
        let _ = conn;
    }

    /// Bytes are there to [`Conn::peek`], or the peer's stream ended ([`Conn::peer_finished`]).
    /// What is not consumed stays, counts against the receive window, and is not announced again
    /// until more arrives.
    fn on_readable(&mut self, conn: &mut Conn<'_>);

    /// There is room to write again, after a write that was short.
    fn on_writable(&mut self, conn: &mut Conn<'_>) {
        let _ = conn;
    }

    /// It goes on as plain TCP (RFC 8684 §3.7): nothing changes for its streams, but for what a
    /// middlebox may do to them. Called once, after `on_open`.
    fn on_fallback(&mut self, conn: &mut Conn<'_>, cause: Fallback) {
        let _ = (conn, cause);
    }

    /// The connection is gone and `id` with it. Called exactly once for each `on_open`.
    fn on_closed(&mut self, id: ConnId, cause: CloseCause) {
        let _ = (id, cause);
    }

    /// Apps with descriptors of their own.
    fn readiness(&mut self) -> Option<&mut dyn Readiness> {
        None
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// Both directions were closed and acknowledged.
    Finished,
    /// The peer reset or fast-closed it.
    PeerAborted,
    /// This side's app aborted it.
    Aborted,
    /// Nobody answered in time.
    TimedOut,
}

/// Descriptors of an app, polled from the worker's own loop, once per turn.
pub trait Readiness {
    /// Becomes readable when [`Readiness::poll`] has work: usually an epoll descriptor.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Does what is ready; never blocks. Returns whether there was anything to do.
    fn poll(&mut self, now: Instant, conns: &mut Conns<'_>) -> bool;

    /// When `poll` is wanted even if nothing becomes ready.
    fn next_timeout(&self) -> Option<Instant> {
        None
    }
}
