//! An application whose behaviour a test chooses, and which keeps a record.

use super::stream_octet;
use mpx_datapath::app::{App, CloseCause, Readiness};
use mpx_datapath::engine::{Conn, ConnId, Conns};
use mpx_datapath::time::Instant;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    pub echo: bool,
    /// Octets of the stream named by `seed`, sent from the start.
    pub send_bytes: usize,
    pub seed: u64,
    /// Ends its stream right behind `send_bytes`; otherwise when the client has ended its own.
    pub close_first: bool,
    /// Leaves what arrives where it lies until the test says otherwise.
    pub paused: bool,
    /// Aborts the connection when so many octets have arrived.
    pub abort_after_bytes: Option<usize>,
}

/// What happened to one connection.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub received: Vec<u8>,
    pub sent: usize,
    pub peer_finished: bool,
    pub closed: Option<CloseCause>,
    finished: bool,
}

#[derive(Debug, Default)]
pub struct Log {
    pub behaviour: Behaviour,
    pub records: HashMap<ConnId, Record>,
    /// In the order of their `on_open`.
    pub order: Vec<ConnId>,
    /// To be looked at again, outside a callback.
    pub wake: Vec<ConnId>,
}

/// Shared between the test and the engine's side.
#[derive(Clone, Debug)]
pub struct TestApp {
    pub log: Rc<RefCell<Log>>,
    /// Stands for a descriptor; nothing ever happens on it.
    fd: Rc<File>,
}

impl TestApp {
    pub fn new(behaviour: Behaviour) -> TestApp {
        TestApp {
            log: Rc::new(RefCell::new(Log {
                behaviour,
                ..Log::default()
            })),
            fd: Rc::new(File::open("/dev/null").expect("every system has it")),
        }
    }

    /// The only connection's record.
    pub fn record(&self) -> Record {
        let log = self.log.borrow();
        assert_eq!(log.order.len(), 1, "one connection is expected");
        log.records[&log.order[0]].clone()
    }

    /// Octets received on all connections.
    pub fn total_received(&self) -> usize {
        self.log
            .borrow()
            .records
            .values()
            .map(|r| r.received.len())
            .sum()
    }

    /// Does what can be done on `conn` now.
    pub fn work(&self, conn: &mut Conn<'_>) {
        let mut log = self.log.borrow_mut();
        let behaviour = log.behaviour;
        let Some(record) = log.records.get_mut(&conn.id()) else {
            panic!("a callback for {:?}, which was never opened", conn.id());
        };
        assert_eq!(record.closed, None, "a callback after on_closed");
        loop {
            let octets = conn.peek();
            if octets.is_empty() || behaviour.paused {
                break;
            }
            let octets = octets.to_vec();
            let taken = if behaviour.echo {
                conn.write(&octets)
            } else {
                octets.len()
            };
            if taken == 0 {
                break;
            }
            conn.consume(taken);
            record.received.extend_from_slice(&octets[..taken]);
            if behaviour
                .abort_after_bytes
                .is_some_and(|n| record.received.len() >= n)
            {
                conn.abort();
                return;
            }
        }
        // Through the other of the two ways to write.
        while record.sent < behaviour.send_bytes {
            let room = conn.write_slice();
            if room.is_empty() {
                break;
            }
            let n = room.len().min(behaviour.send_bytes - record.sent);
            for (i, octet) in room[..n].iter_mut().enumerate() {
                *octet = stream_octet(behaviour.seed, record.sent + i);
            }
            conn.commit(n);
            record.sent += n;
        }
        record.peer_finished |= conn.peer_finished();
        let sent = record.sent == behaviour.send_bytes;
        if sent && (record.peer_finished || behaviour.close_first) && !record.finished {
            record.finished = true;
            conn.close_write();
        }
    }
}

impl App for TestApp {
    fn on_open(&mut self, conn: &mut Conn<'_>) {
        {
            let mut log = self.log.borrow_mut();
            log.order.push(conn.id());
            let before = log.records.insert(conn.id(), Record::default());
            assert!(before.is_none(), "{:?} was used before", conn.id());
        }
        self.work(conn);
    }

    fn on_readable(&mut self, conn: &mut Conn<'_>) {
        self.work(conn);
    }

    fn on_writable(&mut self, conn: &mut Conn<'_>) {
        self.work(conn);
    }

    fn on_closed(&mut self, id: ConnId, cause: CloseCause) {
        let mut log = self.log.borrow_mut();
        let record = log
            .records
            .get_mut(&id)
            .expect("on_closed of a connection that was opened");
        assert_eq!(record.closed, None, "on_closed twice");
        record.closed = Some(cause);
    }

    fn readiness(&mut self) -> Option<&mut dyn Readiness> {
        Some(self)
    }
}

impl Readiness for TestApp {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn poll(&mut self, _now: Instant, conns: &mut Conns<'_>) -> bool {
        let wake = std::mem::take(&mut self.log.borrow_mut().wake);
        for id in &wake {
            conns.with(*id, |conn| self.work(conn));
        }
        !wake.is_empty()
    }
}
