//! Connections that have no subflow left and wait for one to join: counted, and bounded. They hold
//! memory like any other, and give way to what is alive.

use super::{ConnId, Engine};
use crate::mptcp::Connection;
use crate::mptcp::connection::End;
use crate::time::Instant;
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Stranded {
    /// With since when, the first one first. Those that were joined or ended stay until it is their turn.
    order: VecDeque<(ConnId, Instant)>,
    count: usize,
}

impl Stranded {
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

impl Engine {
    /// What has happened to the subflows of a connection.
    pub(super) fn note_subflows(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let (id, since) = (connection.id, connection.stranded_since);
        let rejoined = std::mem::take(&mut connection.events.rejoined);
        if std::mem::take(&mut connection.events.stranded) {
            self.metrics.stranded += 1;
            self.stranded.count += 1;
            self.stranded.order.extend(since.map(|since| (id, since)));
        }
        if rejoined {
            self.metrics.rejoined += 1;
            self.stranded.count -= 1;
        }
    }

    /// A connection is gone.
    pub(super) fn forget_stranded(&mut self, was_stranded: bool) {
        self.stranded.count -= usize::from(was_stranded);
        if self.stranded.count == 0 {
            self.stranded.order.clear();
        }
    }

    /// Keeps to the limit.
    pub(super) fn bound_stranded(&mut self, now: Instant) {
        let max = self.config.stranded_max;
        while self.stranded.count > max && self.end_oldest_stranded(now) {}
        if self.stranded.order.len() > 2 * max + 1 {
            let connections = &self.connections;
            let waits = |entry: &(ConnId, Instant)| {
                let connection = connections.get(entry.0.index as usize);
                connection.is_some_and(|c| still_waits(c, *entry))
            };
            self.stranded.order.retain(waits);
        }
    }

    /// Ends the connection that has waited for longest: it is gone at once, for its place is wanted.
    /// Returns whether there was one.
    pub(super) fn end_oldest_stranded(&mut self, now: Instant) -> bool {
        while let Some(entry) = self.stranded.order.pop_front() {
            let index = entry.0.index as usize;
            let connection = self.connections.get_mut(index);
            let Some(connection) = connection.filter(|c| still_waits(c, entry)) else {
                continue;
            };
            self.metrics.stranded_overflow += 1;
            connection.end = Some(End::TimedOut);
            connection.drop_handshakes();
            self.settle(index, now, &[]);
            return true;
        }
        false
    }
}

fn still_waits(connection: &Connection, (id, since): (ConnId, Instant)) -> bool {
    connection.id == id && connection.end.is_none() && connection.stranded_since == Some(since)
}
