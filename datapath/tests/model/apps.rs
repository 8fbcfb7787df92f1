//! An application whose behaviour a test chooses, and which keeps a record.

use super::stream_octet;
use mpx_datapath::app::{App, CloseCause, Readiness};
use mpx_datapath::engine::{Conn, ConnId, Conns, Fallback};
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

/// Sends back what it receives.
pub const ECHO: Behaviour = Behaviour {
    echo: true,
    send_bytes: 0,
    seed: 0,
    close_first: false,
    paused: false,
    abort_after_bytes: None,
};

/// What happened to one connection.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// What the app does with this connection, where it is not what it does with all.
    behaviour: Option<Behaviour>,
    /// It takes so many octets, and then no more before [`TestApp::grant`].
    sip_bytes: Option<usize>,
    pub received: Vec<u8>,
    pub sent: usize,
    pub peer_finished: bool,
    pub closed: Option<CloseCause>,
    /// Why it went on as plain TCP.
    pub fallback: Option<Fallback>,
    finished: bool,
    /// Octets that it may take now, where it sips.
    granted: usize,
}

#[derive(Debug, Default)]
pub struct Log {
    /// Of connections that have no entry in `for_client`.
    pub behaviour: Behaviour,
    /// By the client's place among the simulation's, as are the next two.
    pub for_client: HashMap<usize, Behaviour>,
    /// Those that are read in sips of so many octets.
    pub sips: HashMap<usize, usize>,
    pub by_client: HashMap<usize, Key>,
    pub records: HashMap<Key, Record>,
    /// In the order of their `on_open`.
    pub order: Vec<Key>,
    /// Whose frame the engines see now.
    pub visitor: Option<usize>,
    /// SYNs open connections.
    pub may_open_twice: bool,
    /// To be looked at again, outside a callback.
    pub wake: Vec<Key>,
    /// To be aborted, outside a callback.
    pub abort: Vec<Key>,
}

/// A connection: its engine's number, and what it is called there.
pub type Key = (usize, ConnId);

/// Shared between the test and the engine's side.
#[derive(Clone, Debug)]
pub struct TestApp {
    pub log: Rc<RefCell<Log>>,
    /// Number of the engine that this one serves.
    engine: usize,
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
            engine: 0,
            fd: Rc::new(File::open("/dev/null").expect("every system has it")),
        }
    }

    /// The same app at another engine, with the same record.
    pub fn at_engine(&self, engine: usize) -> TestApp {
        TestApp {
            engine,
            ..self.clone()
        }
    }

    /// What this engine has in one of the lists.
    fn take_mine(&self, list: impl FnOnce(&mut Log) -> &mut Vec<Key>) -> Vec<ConnId> {
        let mut log = self.log.borrow_mut();
        let mine = list(&mut log).extract_if(.., |key| key.0 == self.engine);
        mine.map(|key| key.1).collect()
    }

    fn key(&self, id: ConnId) -> Key {
        (self.engine, id)
    }

    /// The only connection's record.
    pub fn record(&self) -> Record {
        let log = self.log.borrow();
        assert_eq!(log.order.len(), 1, "one connection is expected");
        log.records[&log.order[0]].clone()
    }

    /// The record of the connection that this client opened, if it did.
    pub fn with_client<R>(&self, client: usize, f: impl FnOnce(&Record) -> R) -> Option<R> {
        let log = self.log.borrow();
        log.by_client.get(&client).map(|key| f(&log.records[key]))
    }

    /// Lets the app take another sip of every connection.
    pub fn grant(&self) {
        let mut log = self.log.borrow_mut();
        let log = &mut *log;
        for (id, record) in &mut log.records {
            if let (Some(sip), None) = (record.sip_bytes, record.closed) {
                record.granted = sip;
                log.wake.push(*id);
            }
        }
        // The table has no order of its own that a seed could repeat.
        log.wake.sort();
    }

    /// From now on the app reads all that comes.
    pub fn read_all(&self) {
        let mut log = self.log.borrow_mut();
        let log = &mut *log;
        log.behaviour.paused = false;
        for record in log.records.values_mut() {
            record.sip_bytes = None;
        }
        log.sips.clear();
        log.wake = log.order.clone();
    }

    /// The app loses patience with the connection of this client, if it is still open.
    pub fn abort(&self, client: usize) {
        let mut log = self.log.borrow_mut();
        if let Some(&key) = log.by_client.get(&client)
            && log.records[&key].closed.is_none()
        {
            log.abort.push(key);
        }
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
        let all = log.behaviour;
        let Some(record) = log.records.get_mut(&self.key(conn.id())) else {
            panic!("a callback for {:?}, which was never opened", conn.id());
        };
        assert_eq!(record.closed, None, "a callback after on_closed");
        let behaviour = record.behaviour.unwrap_or(all);
        loop {
            let octets = conn.peek();
            let allowed = match record.sip_bytes {
                Some(_) => record.granted.min(octets.len()),
                None => octets.len(),
            };
            if allowed == 0 || all.paused {
                break;
            }
            let octets = octets[..allowed].to_vec();
            let taken = if behaviour.echo {
                conn.write(&octets)
            } else {
                octets.len()
            };
            if taken == 0 {
                break;
            }
            conn.consume(taken);
            record.granted = record.granted.saturating_sub(taken);
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
            let (key, visitor) = (self.key(conn.id()), log.visitor);
            log.order.push(key);
            let sip_bytes = visitor.and_then(|c| log.sips.get(&c).copied());
            let record = Record {
                behaviour: visitor.and_then(|c| log.for_client.get(&c).copied()),
                sip_bytes,
                granted: sip_bytes.unwrap_or(0),
                ..Record::default()
            };
            if let Some(client) = visitor {
                let before = log.by_client.insert(client, key);
                // RFC 7413 §6.1: a SYN whose text the app wanted no more of may come once more.
                let aborted = |key| log.records[&key].closed == Some(CloseCause::Aborted);
                assert!(
                    before.is_none_or(|key| log.may_open_twice && aborted(key)),
                    "client {client} opened a second connection"
                );
            }
            let before = log.records.insert(key, record);
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

    fn on_fallback(&mut self, conn: &mut Conn<'_>, cause: Fallback) {
        assert_eq!(conn.fallback(), Some(cause));
        let mut log = self.log.borrow_mut();
        let record = log.records.get_mut(&self.key(conn.id()));
        let record = record.expect("on_fallback of a connection that was opened");
        assert_eq!(record.closed, None, "a callback after on_closed");
        assert_eq!(record.fallback.replace(cause), None, "on_fallback twice");
    }

    fn on_closed(&mut self, id: ConnId, cause: CloseCause) {
        let mut log = self.log.borrow_mut();
        let record = log
            .records
            .get_mut(&self.key(id))
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
        let wake = self.take_mine(|log| &mut log.wake);
        for id in &wake {
            conns.with(*id, |conn| self.work(conn));
        }
        let abort = self.take_mine(|log| &mut log.abort);
        for id in &abort {
            conns.with(*id, |conn| conn.abort());
        }
        !wake.is_empty() || !abort.is_empty()
    }
}
