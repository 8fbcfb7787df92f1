//! What gets lost, doubled and out of order comes out right all the same.

use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::ClientConfig;
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{assert_same, seeds, stream};
use mpx_datapath::port::IfaceId;
use mpx_datapath::time::Duration;

fn rough(loss: u32, duplicate: u32, reorder: u32) -> Path {
    Path {
        loss_permille: loss,
        duplicate_permille: duplicate,
        reorder_permille: reorder,
        ..Path::default()
    }
}

/// Echo over `subflows` paths that all are like `path`.
fn echo_over(path: Path, subflows: usize, client: ClientConfig, len: usize) {
    let mut sim = Sim::new(SimConfig {
        paths: vec![path; subflows.max(1)],
        seed: client.seed,
        ..SimConfig::with(ECHO)
    });
    let sent = stream(client.seed, len);
    let c = sim.connect(client);
    sim.run(|sim| sim.clients[c].established());
    sim.clients[c].send(&sent);
    for i in 1..subflows {
        sim.join(c, i);
    }
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].peer_finished() && sim.clients[c].all_acknowledged());
    assert_same(sim.clients[c].received(), &sent);
    assert_same(&sim.app.record().received, &sent);
    sim.finish();
}

#[test]
fn plain_tcp_over_rough_paths() {
    for seed in seeds(20) {
        let client = ClientConfig {
            sack: seed % 2 == 0,
            timestamps: seed % 3 != 0,
            seed,
            ..ClientConfig::plain(Family::V4.server(0))
        };
        echo_over(rough(20, 10, 20), 1, client, 150_000);
    }
}

#[test]
fn multipath_over_rough_paths() {
    for seed in seeds(30) {
        let client = ClientConfig {
            checksum: seed % 2 == 0,
            eight_octets: seed % 3 != 0,
            data_fin_with_data: seed % 4 == 0,
            seed,
            ..ClientConfig::new(Family::V4.server(0))
        };
        echo_over(rough(20, 10, 20), 1 + seed as usize % 3, client, 150_000);
    }
}

#[test]
fn heavy_loss_is_slow_but_right() {
    for seed in seeds(6) {
        let multipath = seed % 2 == 0;
        let client = ClientConfig {
            multipath,
            seed,
            ..ClientConfig::new(Family::V4.server(0))
        };
        echo_over(
            rough(150, 50, 100),
            1 + usize::from(multipath),
            client,
            40_000,
        );
    }
}

#[test]
fn reordering_alone_loses_nothing() {
    for seed in seeds(6) {
        let client = ClientConfig {
            seed,
            ..ClientConfig::new(Family::V4.server(0))
        };
        echo_over(rough(0, 0, 300), 2, client, 200_000);
    }
}

// RFC 6298 §5: the last segment has no later one whose acknowledgments could tell of its loss.
#[test]
fn a_lost_last_segment_comes_again_after_the_retransmission_timeout() {
    for multipath in [false, true] {
        let hello = Behaviour {
            send_bytes: 1000,
            seed: 4,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(SimConfig::with(hello));
        let c = sim.connect(ClientConfig {
            multipath,
            ..ClientConfig::new(Family::V4.server(0))
        });
        sim.run(|sim| sim.clients[c].established());
        sim.net.lose_next.push((Side::Client, IfaceId(0)));
        let lost_at = sim.now;
        sim.run(|sim| sim.clients[c].received().len() == 1000);
        let waited = sim.now.since(lost_at);
        // Never under the minimum RTO that the server keeps, and not much above a second.
        assert!(waited > Duration::from_millis(100), "{waited:?}");
        assert!(waited < Duration::from_millis(1500), "{waited:?}");
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        sim.finish();
    }
}

// RFC 5681 §3.2: three duplicate ACKs repair a loss without waiting for the timer.
#[test]
fn a_segment_lost_among_others_comes_again_at_once() {
    for multipath in [false, true] {
        let hello = Behaviour {
            send_bytes: 60_000,
            seed: 4,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(SimConfig::with(hello));
        let c = sim.connect(ClientConfig {
            multipath,
            ..ClientConfig::new(Family::V4.server(0))
        });
        sim.run(|sim| sim.clients[c].received().len() > 20_000);
        sim.net.lose_next.push((Side::Client, IfaceId(0)));
        let lost_at = sim.now;
        sim.run(|sim| sim.clients[c].received().len() == 60_000);
        let waited = sim.now.since(lost_at);
        assert!(waited < Duration::from_millis(100), "{waited:?}");
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        sim.finish();
    }
}

/// Frames of the handshakes, counted per side from the first: each lost once.
#[test]
fn every_frame_of_the_handshakes_may_be_lost() {
    for joined in [false, true] {
        for side in [Side::Client, Side::Server] {
            for nth in 0..4 {
                for server_speaks_first in [false, true] {
                    let app = if server_speaks_first {
                        Behaviour {
                            send_bytes: 3000,
                            seed: 2,
                            ..Behaviour::default()
                        }
                    } else {
                        ECHO
                    };
                    let mut sim = Sim::new(SimConfig::with(app));
                    let iface = u8::from(joined);
                    sim.net.lose_nth = Some((side, IfaceId(iface), nth));
                    let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
                    sim.run(|sim| sim.clients[c].established());
                    if joined {
                        let at = sim.join(c, 1);
                        sim.run(|sim| sim.clients[c].subflows[at].open());
                    }
                    let sent = stream(1, 3000);
                    sim.clients[c].send(&sent);
                    sim.run(|sim| sim.clients[c].received().len() == 3000);
                    sim.clients[c].close_write();
                    sim.run(|sim| sim.clients[c].closed());
                    let expected = if server_speaks_first {
                        stream(2, 3000)
                    } else {
                        sent
                    };
                    assert_same(sim.clients[c].received(), &expected);
                    sim.finish();
                }
            }
        }
    }
}

// RFC 8684 §3.3.3, §3.3.6: a DATA_FIN is repeated until it is acknowledged, whatever else is.
#[test]
fn every_frame_of_a_short_exchange_may_be_lost() {
    for multipath in [false, true] {
        for data_fin_with_data in [false, true] {
            for side in [Side::Client, Side::Server] {
                for nth in 0..12 {
                    let mut sim = Sim::new(SimConfig::with(ECHO));
                    sim.net.lose_nth = Some((side, IfaceId(0), nth));
                    let sent = stream(1, 4000);
                    let c = sim.connect(ClientConfig {
                        multipath,
                        data_fin_with_data,
                        ..ClientConfig::new(Family::V4.server(0))
                    });
                    sim.clients[c].send(&sent);
                    let began = sim.now;
                    // The ends of both streams follow the data while that is not acknowledged.
                    sim.run(|sim| sim.app.total_received() == sent.len());
                    sim.clients[c].close_write();
                    sim.run(|sim| sim.clients[c].closed());
                    assert_same(sim.clients[c].received(), &sent);
                    let took = sim.now.since(began);
                    assert!(took < Duration::from_secs(5), "{took:?}");
                    sim.finish();
                }
            }
        }
    }
}

// RFC 8684 §3.3.6: what is stuck on a dead path goes out again on another.
#[test]
fn a_download_survives_the_loss_of_either_path() {
    const LEN: usize = 2_000_000;
    for cut in 0..2 {
        let source = Behaviour {
            send_bytes: LEN,
            seed: 3,
            close_first: true,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(SimConfig::with(source));
        let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
        sim.run(|sim| sim.clients[c].established());
        let at = sim.join(c, 1);
        sim.run(|sim| sim.clients[c].subflows[at].received > 100_000);
        sim.net.paths[cut].cut = true;
        let began = sim.now;
        sim.run(|sim| sim.clients[c].peer_finished());
        let took = sim.now.since(began);
        // The dead subflow may not hold the send buffer for long.
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_same(sim.clients[c].received(), &stream(3, LEN));
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].all_acknowledged());
        sim.finish();
    }
}

#[test]
fn an_upload_survives_the_loss_of_either_path() {
    const LEN: usize = 1_000_000;
    for cut in 0..2 {
        let mut sim = Sim::new(SimConfig::with(Behaviour::default()));
        let sent = stream(3, LEN);
        let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
        sim.run(|sim| sim.clients[c].established());
        let at = sim.join(c, 1);
        sim.run(|sim| sim.clients[c].subflows[at].open());
        sim.clients[c].send(&sent);
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].acknowledged() > 200_000);
        sim.net.paths[cut].cut = true;
        sim.run(|sim| sim.clients[c].peer_finished() && sim.clients[c].all_acknowledged());
        assert_same(&sim.app.record().received, &sent);
        // RFC 8684 §3.3.3: the subflow on the dead path is not waited for once all is said.
        let began = sim.now;
        sim.run(|sim| sim.server.engine.connections() == 0);
        let took = sim.now.since(began);
        assert!(took < Duration::from_secs(10), "{took:?}");
        sim.finish();
    }
}

#[test]
fn a_client_that_vanishes_is_forgotten() {
    for multipath in [false, true] {
        let source = Behaviour {
            send_bytes: 1_000_000,
            seed: 3,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(SimConfig::with(source));
        let c = sim.connect(ClientConfig {
            multipath,
            ..ClientConfig::new(Family::V4.server(0))
        });
        sim.run(|sim| sim.clients[c].received().len() > 100_000);
        for path in &mut sim.net.paths {
            path.cut = true;
        }
        sim.clients.clear();
        sim.finish();
    }
}
