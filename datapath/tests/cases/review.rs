//! What would leave a connection stuck, slow or short of octets although every rule seems kept.

use crate::model::apps::Behaviour;
use crate::model::client::{ClientConfig, Quirks};
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{Rng, assert_same, seeds, stream};
use mpx_datapath::app::CloseCause;
use mpx_datapath::port::IfaceId;
use mpx_datapath::time::Duration;

fn sink() -> Behaviour {
    Behaviour::default()
}

fn source(len: usize) -> Behaviour {
    Behaviour {
        send_bytes: len,
        seed: 7,
        ..sink()
    }
}

fn client(multipath: bool) -> ClientConfig {
    ClientConfig {
        multipath,
        ..ClientConfig::new(Family::V4.server(0))
    }
}

fn open(config: SimConfig, client: ClientConfig) -> Sim {
    let mut sim = Sim::new(config);
    sim.connect(client);
    sim.run(|sim| sim.clients[0].established());
    sim
}

/// A download that stands still because the client does not read.
fn stalled(multipath: bool, len: usize) -> Sim {
    let mut sim = open(SimConfig::with(source(len)), client(multipath));
    sim.clients[0].set_reading(false);
    sim.run_for(Duration::from_secs(5));
    assert!(sim.clients[0].received().len() < len);
    sim
}

fn end(mut sim: Sim) {
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    sim.finish();
}

// RFC 9293 §3.8.6.1: a closed window is probed again and again, also when a probe or its answer is
// lost.
#[test]
fn window_update_and_probes_lost() {
    for multipath in [false, true] {
        const LEN: usize = 600_000;
        let mut sim = stalled(multipath, LEN);
        sim.net.paths[0].cut = true;
        sim.clients[0].set_reading(true);
        sim.run_for(Duration::from_secs(20));
        sim.net.paths[0].cut = false;
        sim.run(|sim| sim.clients[0].received().len() == LEN);
        end(sim);
    }
}

// RFC 9293 §3.8.6.1 keeps a connection open as long as its probes are answered, not longer.
#[test]
fn a_client_that_vanishes_behind_a_closed_window_is_forgotten() {
    for multipath in [false, true] {
        let mut sim = stalled(multipath, 600_000);
        for path in &mut sim.net.paths {
            path.cut = true;
        }
        sim.clients.clear();
        sim.finish();
        assert_eq!(sim.app.record().closed, Some(CloseCause::TimedOut));
    }
}

// What a subflow had in flight is free once it is gone, and the application may write again.
#[test]
fn a_reset_subflow_lets_go_of_the_send_buffer() {
    let mut sim = open(SimConfig::with(source(4_000_000)), client(true));
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].received > 100_000);
    // Long enough for the data on the dead path to come over the other one, too short for the
    // server to give the dead path up.
    sim.net.paths[0].cut = true;
    sim.run_for(Duration::from_millis(350));
    let before = sim.clients[0].received().len();
    sim.net.paths[0].cut = false;
    sim.clients[0].reset(0);
    sim.run_for(Duration::from_millis(30));
    assert!(sim.clients[0].received().len() > before, "it stands still");
    sim.run(|sim| sim.clients[0].received().len() == 4_000_000);
    end(sim);
}

// RFC 8684 §3.3.1: every segment has its own mapping, and all of them count while one is missing.
#[test]
fn a_hole_before_hundreds_of_small_segments() {
    for checksum in [false, true] {
        let client = ClientConfig {
            checksum,
            segment_bytes: 120,
            flight_segments: 1500,
            ..client(true)
        };
        let mut sim = open(SimConfig::with(sink()), client);
        sim.clients[0].send(b"first");
        sim.run(|sim| sim.clients[0].acknowledged() == 5);
        let sent = stream(1, 150_000);
        sim.net.lose_next.push((Side::Server, IfaceId(0)));
        sim.clients[0].send(&sent);
        let began = sim.now;
        sim.run(|sim| sim.app.total_received() == 5 + sent.len());
        let took = sim.now.since(began);
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_same(&sim.app.record().received[5..], &sent);
        end(sim);
    }
}

// RFC 8684 §3.7: a FIN without DSS before any DSS was seen comes from a peer that fell back.
#[test]
fn options_vanish_and_the_first_segment_is_a_fin() {
    let quirks = Quirks {
        no_options_after_third_ack: true,
        ..Quirks::default()
    };
    let client = ClientConfig {
        quirks,
        ..client(true)
    };
    let mut sim = open(SimConfig::with(sink()), client);
    sim.run_for(Duration::from_millis(100));
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    sim.finish();
    assert_eq!(sim.app.record().closed, Some(CloseCause::Finished));
}

// What was acknowledged is the application's, however long after the end of the subflows it reads.
#[test]
fn octets_wait_for_an_application_that_reads_after_the_end() {
    for multipath in [false, true] {
        let app = Behaviour {
            paused: true,
            close_first: true,
            ..source(10)
        };
        let mut sim = open(SimConfig::with(app), client(multipath));
        let sent = stream(1, 100_000);
        sim.clients[0].send(&sent);
        sim.clients[0].close_write();
        sim.run(|sim| sim.clients[0].closed());
        sim.run_for(Duration::from_secs(300));
        assert_eq!(sim.app.record().closed, None);
        sim.resume_app();
        sim.settle();
        assert_same(&sim.app.record().received, &sent);
        assert_eq!(sim.app.record().closed, Some(CloseCause::Finished));
        sim.finish();
    }
}

// RFC 9293 §3.8.6.2.2: without window scaling the edge cannot follow a large buffer; that is no
// reason to acknowledge acknowledgments.
#[test]
fn acknowledgments_are_not_acknowledged() {
    for multipath in [false, true] {
        let client = ClientConfig {
            window_scale: None,
            receive_buffer_bytes: 60_000,
            ..client(multipath)
        };
        let mut sim = open(SimConfig::with(source(140_000)), client);
        sim.run(|sim| sim.clients[0].received().len() == 140_000);
        sim.settle();
        let sent = sim.server.engine.metrics.tx_frames;
        assert!(sent < 140_000 / 1300 + 10, "{sent} frames");
        end(sim);
    }
}

// RFC 6298 §5.7, §3: a backed-off timeout is kept until there is a measurement again.
#[test]
fn a_path_that_becomes_slower_than_the_timeout() {
    let mut sim = open(SimConfig::with(source(400_000)), client(false));
    sim.run(|sim| sim.clients[0].received().len() > 50_000);
    sim.net.paths[0].delay = Duration::from_millis(400);
    sim.run(|sim| sim.clients[0].received().len() == 400_000);
    let timeouts = sim.server.engine.metrics.tcp_timeouts;
    assert!(timeouts <= 4, "{timeouts} timeouts on a path without loss");
    end(sim);
}

// RFC 8684 §3.3.1: the window belongs to the connection; the subflow that filled it may be gone
// when it opens.
#[test]
fn the_window_opens_after_its_subflow_is_gone() {
    let app = Behaviour {
        paused: true,
        ..sink()
    };
    let mut sim = open(SimConfig::with(app), client(true));
    let sent = stream(1, 600_000);
    sim.clients[0].send(&sent[..100]);
    sim.run(|sim| sim.clients[0].acknowledged() == 100);
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].open());
    sim.net.paths[0].delay = Duration::from_millis(1);
    sim.clients[0].send(&sent[100..]);
    sim.run_for(Duration::from_millis(300));
    sim.clients[0].reset(at);
    sim.run_for(Duration::from_millis(40));
    let before = sim.clients[0].acknowledged();
    assert!(before < 300_000);
    sim.resume_app();
    sim.run_for(Duration::from_millis(30));
    assert!(sim.clients[0].acknowledged() > before + 10);
    sim.run(|sim| sim.app.total_received() == sent.len());
    assert_same(&sim.app.record().received, &sent);
    end(sim);
}

// RFC 8684 §3.3.3: with FINs on all subflows and no DATA_FIN the connection is closed after a
// timeout, and only then.
#[test]
fn subflows_end_without_a_data_fin() {
    for subflows in [1, 2] {
        let quirks = Quirks {
            no_data_fin: true,
            ..Quirks::default()
        };
        let client = ClientConfig {
            quirks,
            ..client(true)
        };
        let mut sim = open(SimConfig::with(source(1000)), client);
        sim.clients[0].send(b"hello");
        sim.run(|sim| sim.clients[0].acknowledged() == 5);
        for path in 1..subflows {
            let at = sim.join(0, path);
            sim.run(|sim| sim.clients[0].subflows[at].open());
        }
        sim.clients[0].close_write();
        sim.run_for(Duration::from_secs(30));
        assert_eq!(sim.app.record().closed, None);
        sim.finish();
        assert_eq!(sim.app.record().closed, Some(CloseCause::TimedOut));
    }
}

// RFC 8684 §3.7: the peer fell back before it saw our DATA_FIN; the FIN says the same.
#[test]
fn options_vanish_from_a_data_fin() {
    let quirks = Quirks {
        no_options_after_third_ack: true,
        ..Quirks::default()
    };
    for len in [0, 3000] {
        let app = Behaviour {
            close_first: true,
            ..source(len)
        };
        let client = ClientConfig {
            quirks,
            ..client(true)
        };
        let mut sim = open(SimConfig::with(app), client);
        sim.run(|sim| sim.clients[0].peer_finished());
        assert_same(sim.clients[0].received(), &stream(7, len));
        let sent = stream(1, 3000);
        sim.clients[0].send(&sent);
        sim.run(|sim| sim.app.total_received() == sent.len());
        end(sim);
    }
}

/// Octets go both ways while paths fail and come back, both sides stop reading for a while, and
/// subflows come and go. Either the first path is never cut or no subflow is reset, so that there
/// is a way at last.
#[test]
fn whatever_happens_on_the_way_both_streams_arrive() {
    for seed in seeds(60) {
        let mut rng = Rng(seed);
        let len = 100_000 + rng.below(400_000);
        let app = Behaviour {
            close_first: rng.permille(500),
            ..source(len)
        };
        let path = Path {
            loss_permille: rng.below(20) as u32,
            reorder_permille: rng.below(50) as u32,
            ..Path::default()
        };
        let config = SimConfig {
            paths: vec![path; 3],
            seed,
            checksum: rng.permille(300),
            receive_buffer_bytes: 65_536 << rng.below(3),
            send_buffer_bytes: 65_536 << rng.below(3),
            ..SimConfig::with(app)
        };
        let client = ClientConfig {
            seed,
            sack: rng.permille(700),
            eight_octets: rng.permille(700),
            data_fin_with_data: rng.permille(500),
            segment_bytes: 200 + rng.below(1200),
            receive_buffer_bytes: 65_536 << rng.below(3),
            ..client(true)
        };
        let mut sim = open(config, client);
        let sent = stream(seed, 50_000 + rng.below(400_000));
        sim.clients[0].send(&sent);
        sim.run(|sim| sim.clients[0].acknowledged() > 0);
        sim.clients[0].close_write();
        let resets = rng.permille(500);
        for _ in 0..rng.below(12) {
            let path = rng.below(3);
            match rng.below(7) {
                0 | 1 if path > 0 || !resets => sim.net.paths[path].cut ^= true,
                2 => sim.clients[0].set_reading(rng.permille(500)),
                3 => sim.app.log.borrow_mut().behaviour.paused = true,
                4 => sim.resume_app(),
                5 if sim.clients[0].subflows[0].alive() => {
                    sim.join(0, path);
                }
                _ => {
                    let last = sim.clients[0].subflows.len() - 1;
                    if last > 0 && resets {
                        sim.clients[0].reset(last);
                    }
                }
            }
            let wait = 10 + rng.below(600) as u64;
            sim.run_for(Duration::from_millis(wait));
        }
        for path in &mut sim.net.paths {
            path.cut = false;
        }
        sim.clients[0].set_reading(true);
        sim.resume_app();
        let began = sim.now;
        let done = |sim: &Sim| {
            let client = &sim.clients[0];
            client.peer_finished() && sim.app.total_received() == sent.len()
        };
        sim.run(done);
        let took = sim.now.since(began);
        assert!(took < Duration::from_secs(60), "seed {seed}: {took:?}");
        assert_same(sim.clients[0].received(), &stream(7, len));
        assert_same(&sim.app.record().received, &sent);
        sim.finish();
    }
}
