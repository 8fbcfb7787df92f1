//! Streams come out as they went in, whatever the options.

use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::{ClientConfig, Mode};
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{assert_same, stream};
use mpx_datapath::time::Duration;

/// The client sends `len` octets, gets the same back, and both sides close.
pub(super) fn echo(mut sim: Sim, client: ClientConfig, subflows: usize, len: usize) -> Sim {
    let sent = stream(client.seed, len);
    let multipath = client.multipath;
    let c = sim.connect(client);
    sim.run(|sim| sim.clients[c].established());
    assert_eq!(sim.clients[c].mode == Mode::Multipath, multipath);
    sim.clients[c].send(&sent[..len / 2]);
    for i in 1..subflows {
        sim.run(|sim| sim.clients[c].may_join());
        sim.join(c, i);
    }
    sim.clients[c].send(&sent[len / 2..]);
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert_same(sim.clients[c].received(), &sent);
    assert!(sim.clients[c].peer_finished());
    assert_eq!(sim.clients[c].beyond_window, 0);
    assert_same(&sim.app.record().received, &sent);
    sim.finish();
    sim
}

#[test]
fn plain_tcp_with_every_set_of_options() {
    for bits in 0..8 {
        let mut client = ClientConfig::plain(Family::V4.server(0));
        client.timestamps = bits & 1 != 0;
        client.sack = bits & 2 != 0;
        client.window_scale = (bits & 4 != 0).then_some(4);
        client.receive_buffer_bytes = 60_000;
        client.seed = bits;
        echo(Sim::new(SimConfig::with(ECHO)), client, 1, 300_000);
    }
}

#[test]
fn multipath_with_every_form_of_dss_on_one_to_four_subflows() {
    for bits in 0..8u64 {
        for subflows in [1, 2, 4] {
            let mut client = ClientConfig::new(Family::V4.server(0));
            client.checksum = bits & 1 != 0;
            client.eight_octets = bits & 2 != 0;
            client.data_fin_with_data = bits & 4 != 0;
            client.seed = bits * 10 + subflows as u64;
            let sim = echo(Sim::new(SimConfig::with(ECHO)), client, subflows, 300_000);
            for i in 0..subflows {
                let bytes = sim.net.arrived_bytes[i];
                assert!(
                    bytes.iter().all(|b| *b > 10_000),
                    "path {i} of {subflows}: {bytes:?}"
                );
            }
        }
    }
}

#[test]
fn ipv6_plain_and_multipath() {
    let config = SimConfig {
        family: Family::V6,
        ..SimConfig::with(ECHO)
    };
    echo(
        Sim::new(config.clone()),
        ClientConfig::plain(Family::V6.server(0)),
        1,
        100_000,
    );
    echo(
        Sim::new(config),
        ClientConfig::new(Family::V6.server(0)),
        2,
        100_000,
    );
}

#[test]
fn a_stream_of_nothing_and_one_of_one_octet() {
    for len in [0, 1] {
        for multipath in [false, true] {
            for data_fin_with_data in [false, true] {
                let client = ClientConfig {
                    multipath,
                    data_fin_with_data,
                    ..ClientConfig::new(Family::V4.server(0))
                };
                echo(Sim::new(SimConfig::with(ECHO)), client, 1, len);
            }
        }
    }
}

/// The server sends `len` octets and closes; the client only listens.
fn download(sim: &mut Sim, c: usize, len: usize, seed: u64) {
    sim.run(|sim| sim.clients[c].peer_finished());
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert_same(sim.clients[c].received(), &stream(seed, len));
}

#[test]
fn a_download_uses_two_paths_and_both_lists_of_options() {
    const LEN: usize = 3_000_000;
    for checksum in [false, true] {
        let source = Behaviour {
            send_bytes: LEN,
            seed: 7,
            close_first: true,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(SimConfig::with(source));
        let client = ClientConfig {
            checksum,
            ..ClientConfig::new(Family::V4.server(0))
        };
        let c = sim.connect(client);
        sim.run(|sim| sim.clients[c].established());
        sim.join(c, 1);
        let began = sim.now;
        download(&mut sim, c, LEN, 7);
        for path in 0..2 {
            let share = sim.net.arrived_bytes[path][Side::Client as usize];
            assert!(
                share > LEN as u64 / 5,
                "path {path} carried {share} of {LEN}"
            );
        }
        // Two paths of 12.5 MB/s each; one alone would take 240 ms.
        let took = sim.now.since(began);
        assert!(took < Duration::from_millis(400), "{took:?}");
        sim.finish();
    }
}

#[test]
fn plain_download_fills_the_path() {
    const LEN: usize = 3_000_000;
    let source = Behaviour {
        send_bytes: LEN,
        seed: 8,
        close_first: true,
        ..Behaviour::default()
    };
    let mut sim = Sim::new(SimConfig::with(source));
    let c = sim.connect(ClientConfig::plain(Family::V4.server(0)));
    let began = sim.now;
    download(&mut sim, c, LEN, 8);
    // 12.5 MB/s, and a start from the initial window.
    let took = sim.now.since(began);
    assert!(took < Duration::from_millis(500), "{took:?}");
    sim.finish();
}

// RFC 9293 §3.8.6: the window closes when the client's application stops reading, is probed, and
// opens again.
#[test]
fn a_client_that_stops_reading_stops_the_server_until_it_reads_again() {
    for multipath in [false, true] {
        const LEN: usize = 1_000_000;
        const BUFFER: usize = 50_000;
        let source = Behaviour {
            send_bytes: LEN,
            seed: 9,
            close_first: true,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(SimConfig::with(source));
        let c = sim.connect(ClientConfig {
            multipath,
            receive_buffer_bytes: BUFFER,
            ..ClientConfig::new(Family::V4.server(0))
        });
        sim.clients[c].set_reading(false);
        sim.run_for(Duration::from_secs(20));
        let held = sim.clients[c].received().len();
        assert!(held <= BUFFER && held + 3000 > BUFFER, "{held} of {BUFFER}");
        // A probe now and then, no flood.
        assert!(
            sim.clients[c].beyond_window < 100,
            "{}",
            sim.clients[c].beyond_window
        );
        let record = sim.app.record();
        assert!(record.sent < LEN && record.closed.is_none());
        // The first window update is lost: only a probe finds the window open.
        sim.net
            .lose_next
            .push((Side::Server, mpx_datapath::port::IfaceId(0)));
        sim.clients[c].set_reading(true);
        download(&mut sim, c, LEN, 9);
        sim.finish();
    }
}

#[test]
fn a_server_that_stops_reading_stops_the_client_until_it_reads_again() {
    for multipath in [false, true] {
        const LEN: usize = 2_000_000;
        let paused = Behaviour {
            paused: true,
            ..Behaviour::default()
        };
        let config = SimConfig::with(paused);
        let limit = config.receive_buffer_bytes;
        let mut sim = Sim::new(config);
        let sent = stream(3, LEN);
        let c = sim.connect(ClientConfig {
            multipath,
            ..ClientConfig::new(Family::V4.server(0))
        });
        sim.run(|sim| sim.clients[c].established());
        sim.clients[c].send(&sent);
        sim.clients[c].close_write();
        sim.run_for(Duration::from_secs(5));
        let taken = sim.clients[c].acknowledged();
        assert!(
            taken <= limit as u64 + 1 && taken * 2 > limit as u64,
            "{taken} of {limit}"
        );
        sim.resume_app();
        sim.run(|sim| sim.clients[c].closed());
        assert_same(&sim.app.record().received, &sent);
        sim.finish();
    }
}

#[test]
fn many_connections_at_once_and_one_after_another() {
    let mut sim = Sim::new(SimConfig::with(ECHO));
    for round in 0..5 {
        let clients: Vec<usize> = (0..40)
            .map(|n| {
                let config = ClientConfig {
                    multipath: n % 3 != 0,
                    seed: 1000 * round + n,
                    ..ClientConfig::new(Family::V4.server(0))
                };
                let c = sim.connect(config);
                sim.clients[c].send(&stream(n, 5000));
                c
            })
            .collect();
        sim.run(|sim| {
            clients
                .iter()
                .all(|c| sim.clients[*c].received().len() == 5000)
        });
        for (n, c) in clients.iter().enumerate() {
            assert_same(sim.clients[*c].received(), &stream(n as u64, 5000));
            sim.clients[*c].close_write();
        }
        sim.run(|sim| clients.iter().all(|c| sim.clients[*c].closed()));
    }
    sim.finish();
}

#[test]
fn both_directions_full_at_once() {
    const LEN: usize = 1_000_000;
    let both = Behaviour {
        send_bytes: LEN,
        seed: 5,
        ..Behaviour::default()
    };
    let mut sim = Sim::new(SimConfig {
        paths: vec![Path::default(); 2],
        ..SimConfig::with(both)
    });
    let sent = stream(6, LEN);
    let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
    sim.run(|sim| sim.clients[c].established());
    sim.join(c, 1);
    sim.clients[c].send(&sent);
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert_same(sim.clients[c].received(), &stream(5, LEN));
    assert_same(&sim.app.record().received, &sent);
    sim.finish();
}
