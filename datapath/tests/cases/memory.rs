//! Buffers that grow with the path and what becomes of them when memory runs short.

use super::script::{ACK, SYN, Script};
use crate::model::apps::Behaviour;
use crate::model::client::ClientConfig;
use crate::model::net::Path;
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{assert_same, stream, token_and_idsn};
use mpx_datapath::app::builtin::Discard;
use mpx_datapath::engine::{ConnectionReport, EngineConfig, EngineReport, Patience};
use mpx_datapath::mptcp::subflow::Mapping;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::{CapableContent, DsnWidth, Dss, DssMapping, MpCapable};
use mpx_datapath::wire::tcp::TcpOptions;

const INITIAL: usize = 128 << 10;
const MAX: usize = 8 << 20;
/// 40 Mbit/s over 100 ms: half a megabyte is under way, four times the initial window.
const RATE: u64 = 5_000_000;
const ONE_WAY: Duration = Duration::from_millis(50);
const LEN: usize = 5_000_000;

fn config(max_bytes: usize, app: Behaviour) -> SimConfig {
    let path = Path {
        delay: ONE_WAY,
        rate: RATE,
        // The model client has no congestion control: what it bursts is kept.
        queue: Duration::from_secs(10),
        ..Path::default()
    };
    SimConfig {
        paths: vec![path; 2],
        receive_initial_bytes: INITIAL,
        receive_buffer_bytes: max_bytes,
        send_initial_bytes: INITIAL,
        send_buffer_bytes: max_bytes,
        ..SimConfig::with(app)
    }
}

fn client(multipath: bool) -> ClientConfig {
    ClientConfig {
        multipath,
        flight_segments: 10_000,
        receive_buffer_bytes: 4 << 20,
        ..ClientConfig::new(Family::V4.server(0))
    }
}

fn report(sim: &Sim) -> ConnectionReport {
    sim.server.report(1).conns.remove(0)
}

/// Time for an upload of `LEN` octets, and what the window grew to.
fn upload(max_bytes: usize, multipath: bool) -> (Duration, usize) {
    let mut sim = Sim::new(config(max_bytes, Behaviour::default()));
    let sent = stream(1, LEN);
    let c = sim.connect(client(multipath));
    sim.run(|sim| sim.clients[c].established());
    let began = sim.now;
    sim.clients[c].send(&sent);
    sim.run(|sim| sim.clients[c].acknowledged() >= LEN as u64);
    let took = sim.now.since(began);
    let window = report(&sim).receive_limit_bytes;
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert_same(&sim.app.record().received, &sent);
    sim.finish();
    (took, window)
}

// RFC 8684 §3.3.4: the bandwidth-delay product at least.
#[test]
fn an_upload_over_a_long_path_gets_the_window_that_fills_it() {
    let at_line_rate = Duration::from_micros(LEN as u64 * 1_000_000 / RATE);
    for multipath in [false, true] {
        let (took, window) = upload(MAX, multipath);
        assert!(took < at_line_rate * 3 / 2, "{took:?} of {at_line_rate:?}");
        assert!((1_000_000..=MAX).contains(&window), "{window}");
        let (fixed, window) = upload(INITIAL, multipath);
        assert!(fixed > took * 2 && window == INITIAL, "{took:?} {fixed:?}");
    }
}

#[test]
fn a_download_over_a_long_path_gets_the_buffer_that_fills_it() {
    let download = |max_bytes| {
        let source = Behaviour {
            send_bytes: LEN,
            seed: 4,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(config(max_bytes, source));
        let c = sim.connect(client(true));
        let began = sim.now;
        sim.run(|sim| sim.clients[c].received().len() == LEN);
        let took = sim.now.since(began);
        assert_same(sim.clients[c].received(), &stream(4, LEN));
        // All is acknowledged a round trip later.
        sim.run_for(ONE_WAY * 3);
        let idle = report(&sim);
        assert_eq!(idle.send_buffered_bytes, 0);
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        sim.finish();
        took
    };
    let (grown, fixed) = (download(MAX), download(INITIAL));
    let at_line_rate = Duration::from_micros(LEN as u64 * 1_000_000 / RATE);
    assert!(grown < at_line_rate * 2, "{grown:?} of {at_line_rate:?}");
    assert!(fixed > grown * 2, "{grown:?} {fixed:?}");
}

#[test]
fn a_slow_reader_keeps_the_initial_window() {
    for multipath in [false, true] {
        let mut sim = Sim::new(config(MAX, Behaviour::default()));
        let c = sim.connect(client(multipath));
        // 160 kB/s of 5 MB/s.
        sim.app.log.borrow_mut().sips.insert(c, 4000);
        let sent = stream(2, 1_000_000);
        sim.clients[c].send(&sent);
        sim.clients[c].close_write();
        for _ in 0..200 {
            sim.run_for(Duration::from_millis(25));
            sim.app.grant();
            if let Some(conn) = sim.server.report(1).conns.first() {
                assert_eq!(conn.receive_limit_bytes, INITIAL);
                assert!(conn.unread_bytes <= INITIAL + INITIAL / 2);
            }
        }
        assert!(sim.app.record().received.len() > 700_000);
        sim.app.read_all();
        sim.run(|sim| sim.clients[c].closed());
        assert_same(&sim.app.record().received, &sent);
        sim.finish();
    }
}

/// The account of the server, after a look at what must hold whatever happens.
fn account(sim: &Sim) -> EngineReport {
    let report = sim.server.report(usize::MAX);
    let memory = &report.memory;
    assert!(memory.used_bytes <= memory.limit_bytes, "{memory:?}");
    let held: usize = report.conns.iter().map(|c| c.memory_bytes).sum();
    assert_eq!(held, memory.used_bytes);
    let fits = |c: &ConnectionReport| c.kept_bytes() <= c.memory_bytes;
    assert!(
        report.conns.iter().all(fits),
        "more is kept than charged for"
    );
    report
}

#[test]
fn five_hundred_slow_readers_share_little_memory_and_lose_nothing() {
    const CLIENTS: u64 = 500;
    const UPLOAD: usize = 20_000;
    let paused = Behaviour {
        paused: true,
        ..Behaviour::default()
    };
    let mut sim = Sim::new(SimConfig {
        paths: vec![Path {
            queue: Duration::from_secs(5),
            ..Path::default()
        }],
        receive_initial_bytes: INITIAL,
        receive_buffer_bytes: MAX,
        memory_max_bytes: 9 << 20,
        ..SimConfig::with(paused)
    });
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        if n == CLIENTS * 4 / 5 {
            // These are open before memory gets scarce, with a window each that is more than all.
            sim.run_for(Duration::from_millis(500));
        }
        clients.push(sim.connect(ClientConfig {
            multipath: n % 2 == 0,
            server_may_renege: true,
            flight_segments: 16,
            seed: n,
            ..ClientConfig::new(Family::V4.server(0))
        }));
    }
    for (n, c) in clients.iter().enumerate() {
        sim.clients[*c].send(&stream(n as u64, UPLOAD));
        sim.clients[*c].close_write();
    }
    let mut pressed = false;
    for _ in 0..20 {
        sim.run_for(Duration::from_millis(100));
        pressed |= account(&sim).memory.pressure;
    }
    let metrics = sim.server.engine.metrics.clone();
    let drops = metrics.rcv_queue_drop + metrics.ofo_drop;
    let counted = [metrics.memory_pressures, metrics.memory_refused, drops];
    assert!(pressed && counted.iter().all(|n| *n > 0), "{counted:?}");
    let open = account(&sim).connections as u64;
    assert!(open > 100 && open < CLIENTS, "{open} of {CLIENTS} are open");

    // What was refused comes again once there is room, and all of it gets through.
    sim.app.read_all();
    while !clients.iter().all(|c| sim.clients[*c].closed()) {
        sim.run_for(Duration::from_millis(100));
        account(&sim);
    }
    for (n, c) in clients.iter().enumerate() {
        let received = sim.app.with_client(*c, |r| r.received.clone());
        assert_same(&received.unwrap_or_default(), &stream(n as u64, UPLOAD));
    }
    sim.finish();
}

/// Opens `connections` one by one, and one more; returns how many the server has then, and what it
/// refused.
fn crowd(memory_max_bytes: usize, connections: usize) -> (EngineReport, u64) {
    let mut sim = Sim::new(SimConfig {
        memory_max_bytes,
        ..SimConfig::with(Behaviour::default())
    });
    let one = |sim: &mut Sim| {
        let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
        sim.run_for(Duration::from_millis(200));
        c
    };
    let mut clients: Vec<usize> = (0..=connections).map(|_| one(&mut sim)).collect();
    let report = account(&sim);
    let refused = sim.server.engine.metrics.memory_refused;
    // Below a half there is no pressure any more: the SYN is sent again and taken.
    while refused > 0 && account(&sim).memory.pressure {
        sim.clients[clients.remove(0)].fastclose();
        sim.run_for(Duration::from_millis(100));
    }
    sim.run(|sim| clients.iter().all(|c| sim.clients[*c].established()));
    for c in clients {
        sim.clients[c].fastclose();
    }
    sim.finish();
    (report, refused)
}

#[test]
fn connections_are_refused_from_just_above_three_quarters_on() {
    const COUNT: usize = 10;
    let each = crowd(1 << 30, 0).0.memory.used_bytes;
    let pressure = each * COUNT;
    let within = pressure.div_ceil(3) * 4;
    let (report, refused) = crowd(within, COUNT);
    assert_eq!((report.connections, refused), (COUNT + 1, 0));
    let (report, refused) = crowd(within - 4, COUNT);
    assert_eq!(report.connections, COUNT);
    assert!(refused > 0 && report.memory.pressure);
}

/// A connection of several subflows that has one, with a client's key of 7.
struct Opened {
    script: Script,
    /// Acknowledges the server's SYN; the client's first octet is 101.
    ack: TcpSeq,
    sender_key: u64,
    checksum: bool,
}

fn open(memory_max_bytes: usize, checksum: bool) -> Opened {
    let mut options = TcpOptions::default();
    let change = |config: &mut EngineConfig| config.memory_max_bytes = memory_max_bytes;
    let mut script = Script::configured(Box::new(Discard), Patience::default(), change);
    let flag = [0, MpCapable::FLAG_CHECKSUM][usize::from(checksum)];
    let capable = |content| {
        Some(MpCapable {
            version: 1,
            flags: MpCapable::FLAG_SHA256 | flag,
            content,
        })
    };
    options.mptcp.capable = capable(CapableContent::Syn);
    script.send(100, TcpSeq(0), SYN, options, &[]);
    let syn_ack = script.answers()[0].0;
    let ack = syn_ack.seq + 1;
    let content = syn_ack.options.mptcp.capable.map(|c| c.content);
    let Some(CapableContent::SynAck { sender_key }) = content else {
        panic!("no key in {syn_ack:?}");
    };
    options.mptcp.capable = capable(CapableContent::Ack {
        sender_key: 7,
        receiver_key: sender_key,
    });
    script.send(101, ack, ACK, options, &[]);
    Opened {
        script,
        ack,
        sender_key,
        checksum,
    }
}

impl Opened {
    /// Text `at` octets from the first on, under a mapping from `map_at` on of `map_len` octets.
    fn send(&mut self, at: u32, text: &[u8], map_at: u32, map_len: u16) {
        let mut options = TcpOptions::default();
        options.mptcp.dss = Some(Dss {
            data_ack: Some(DsnWidth::Eight(token_and_idsn(self.sender_key).1 + 1)),
            mapping: Some(DssMapping {
                dsn: DsnWidth::Eight(token_and_idsn(7).1 + 1 + u64::from(map_at)),
                subflow_seq: 1 + map_at,
                len: map_len,
                checksum: self.checksum.then_some(0),
            }),
            data_fin: false,
        });
        self.script.send(101 + at, self.ack, ACK, options, text);
    }

    fn account(&self) -> EngineReport {
        let report = self.script.engine.report(self.script.now, 1);
        let memory = &report.memory;
        assert!(memory.used_bytes <= memory.limit_bytes, "{memory:?}");
        report
    }
}

// RFC 8684 §3.3: what a checksum covers waits for the end of its mapping, and counts meanwhile. The
// model client maps no more than a segment at a time: this takes a longer mapping.
#[test]
fn text_that_waits_for_the_end_of_its_mapping_is_charged_for() {
    let mut opened = open(1 << 30, true);
    let before = opened.account().memory.used_bytes;
    for n in 0..12 {
        opened.send(n * 1000, &[7; 1000], 0, 20_000);
    }
    let report = opened.account();
    let conn = &report.conns[0];
    assert_eq!(conn.subflows[0].staged_bytes, 12_000);
    assert!(conn.kept_bytes() <= conn.memory_bytes, "{conn:?}");
    // Beyond the reserve, by what a buffer of 16 KiB takes.
    let reserve = mpx_datapath::memory::RECEIVE_RESERVE_BYTES;
    assert_eq!(report.memory.used_bytes - before, 16_384 - reserve);
}

// A peer may announce a mapping for every octet: each takes more memory than the octet.
#[test]
fn mappings_are_charged_for_and_refused_where_memory_ends() {
    const COUNT: u32 = 500;
    // With little memory, room for sixty-four mappings, but not for twice as many.
    let with_one = open(1 << 30, false).account().memory.used_bytes;
    for (limit, all) in [
        (1 << 30, true),
        (with_one + 64 * size_of::<Mapping>(), false),
    ] {
        let mut opened = open(limit, false);
        let before = opened.account().memory.used_bytes;
        for n in 1..=COUNT {
            opened.send(n * 2, &[7], n * 2, 1);
        }
        let charged = opened.account().memory.used_bytes - before;
        assert_eq!(charged >= 500 * size_of::<Mapping>(), all, "{charged}");
        let refused = opened.script.engine.metrics.rcv_pruned;
        assert_eq!(refused > 0, !all);
        // What comes in order is taken all the same, and makes room for the rest.
        for n in 0..=2 * COUNT {
            opened.send(n, &[7], n, 1);
        }
        let conn = &opened.account().conns[0];
        assert_eq!(conn.subflows[0].bytes_received, u64::from(2 * COUNT + 1));
        // All is given back but the smallest piece that a buffer keeps.
        let left = opened.account().memory.used_bytes - before;
        assert!(left <= 4096, "{left}");
    }
}

// Small segments: what is noted of each is more than its text.
#[test]
fn segments_in_flight_are_charged_for_and_are_few_where_memory_ends() {
    let download = |memory_max_bytes| {
        let mut sim = Sim::new(SimConfig {
            memory_max_bytes,
            ..config(
                MAX,
                Behaviour {
                    send_bytes: 30_000,
                    ..Behaviour::default()
                },
            )
        });
        let c = sim.connect(ClientConfig {
            mss: 88,
            ..ClientConfig::new(Family::V4.server(0))
        });
        let (mut segments, mut first) = (0, 0);
        while sim.clients[c].received().len() < 30_000 {
            sim.run_for(Duration::from_millis(5));
            let report = account(&sim);
            first = if first == 0 {
                report.memory.used_bytes
            } else {
                first
            };
            for conn in &report.conns {
                let unacked = conn.subflows[0].unacked_segments;
                assert!(conn.memory_bytes >= conn.kept_bytes() + 64 * unacked);
                segments = segments.max(unacked);
            }
        }
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        sim.finish();
        (first, segments)
    };
    let (reserve, many) = download(1 << 30);
    let (_, few) = download(reserve + 1000);
    assert!(many > 50 && few <= 13, "{many} and {few} segments");
}
