//! Paths that take less than our interface: what routers say of it (RFC 1191, RFC 8201), what forgers
//! say (RFC 5927), and what is found out where nobody says anything (RFC 4821).

use super::script::{ACK, CLIENT, SERVER, SYN, Script, sack_permitted};
use crate::model::apps::Behaviour;
use crate::model::client::ClientConfig;
use crate::model::icmp;
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{Rng, assert_same, seeds, stream};
use mpx_datapath::metrics::Metrics;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::frame::{self, Link};
use mpx_datapath::wire::tcp::{TcpHeader, TcpOptions};
use std::net::SocketAddr;

const MTU: usize = 1300;

/// A server that sends `len` octets at once, over paths like this one.
fn source(family: Family, path: Path, len: usize) -> Sim {
    let source = Behaviour {
        send_bytes: len,
        seed: 7,
        close_first: true,
        ..Behaviour::default()
    };
    Sim::new(SimConfig {
        paths: vec![path; 2],
        family,
        ..SimConfig::with(source)
    })
}

/// Returns how long it took for the rest to arrive.
fn finish_download(sim: &mut Sim, c: usize, len: usize) -> Duration {
    let began = sim.now;
    sim.run(|sim| sim.clients[c].peer_finished());
    let took = sim.now.since(began);
    assert_same(sim.clients[c].received(), &stream(7, len));
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    sim.finish();
    took
}

/// Path MTUs of the only connection's subflows.
fn path_mtus(sim: &Sim) -> Vec<usize> {
    let report = sim.server.report(1);
    let subflows = report.conns[0].subflows.iter();
    subflows.map(|s| s.path_mtu_bytes).collect()
}

fn metrics(sim: &Sim) -> &Metrics {
    &sim.server.engine.metrics
}

// RFC 1191 §6.4: segments that were too big leave again at once, cut to size, and nothing is taken for
// congestion. RFC 8684 §3.3.1: each part bears the mapping of the whole, whose checksum covers it.
#[test]
fn a_router_that_says_what_it_takes_costs_one_round_trip() {
    const LEN: usize = 1_000_000;
    for family in [Family::V4, Family::V6] {
        for multipath in [false, true] {
            for checksum in [false, true] {
                let path = Path {
                    mtu: MTU,
                    ..Path::default()
                };
                let mut sim = source(family, path, LEN);
                let c = sim.connect(ClientConfig {
                    multipath,
                    checksum,
                    ..ClientConfig::new(family.server(0))
                });
                sim.run(|sim| sim.clients[c].established());
                if multipath {
                    sim.join(c, 1);
                }
                let began = sim.now;
                sim.run(|sim| sim.clients[c].received().len() > LEN / 2);
                let paths = 1 + usize::from(multipath);
                assert_eq!(path_mtus(&sim), vec![MTU; paths]);
                let took = sim.now.since(began) + finish_download(&mut sim, c, LEN);
                // 12.5 MB/s per path; 80 ms for one.
                assert!(took < Duration::from_millis(300), "{took:?}");
                assert_eq!(metrics(&sim).tcp_timeouts, 0);
                assert_eq!(metrics(&sim).path_mtu_reduced, paths as u64);
                assert_eq!(metrics(&sim).tcp_fast_recoveries, 0);
            }
        }
    }
}

// RFC 4821 §7.7: nobody says anything. Timeouts in a row do, and then probes find the size.
#[test]
fn a_black_hole_is_found_and_its_size_is_searched_for() {
    const LEN: usize = 3_000_000;
    for family in [Family::V4, Family::V6] {
        for multipath in [false, true] {
            let path = Path {
                mtu: MTU,
                mtu_icmp: false,
                ..Path::default()
            };
            let mut sim = source(family, path, LEN);
            // Fifteen segments of ten milliseconds: so long is waited after a failed probe (§7.6.2).
            let c = sim.connect(ClientConfig {
                multipath,
                receive_buffer_bytes: 20_000,
                ..ClientConfig::new(family.server(0))
            });
            let began = sim.now;
            sim.run(|sim| sim.clients[c].received().len() > LEN - 100_000);
            let [found] = path_mtus(&sim)[..] else {
                panic!("one subflow: {}", sim.describe())
            };
            assert!((MTU - 8..=MTU).contains(&found), "{found}");
            let took = sim.now.since(began) + finish_download(&mut sim, c, LEN);
            // Two timeouts, 200 ms and 400 ms, and 2 MB/s through that window.
            assert!(took < Duration::from_millis(2500), "{took:?}");
            let metrics = metrics(&sim);
            assert_eq!(metrics.path_mtu_black_holes, 1);
            assert!(metrics.mtu_probe_success > 0 && metrics.mtu_probe_fail > 0);
            assert_eq!(
                metrics.mtu_probes,
                metrics.mtu_probe_success + metrics.mtu_probe_fail
            );
            assert_eq!(metrics.tcp_timeouts, 2, "a failed probe costs none");
        }
    }
}

#[test]
fn a_path_mtu_that_falls_in_a_download_is_followed() {
    const LEN: usize = 3_000_000;
    for family in [Family::V4, Family::V6] {
        for mtu_icmp in [true, false] {
            for multipath in [false, true] {
                let mut sim = source(family, Path::default(), LEN);
                let c = sim.connect(ClientConfig {
                    multipath,
                    ..ClientConfig::new(family.server(0))
                });
                sim.run(|sim| sim.clients[c].received().len() > 500_000);
                assert_eq!(path_mtus(&sim), [1500]);
                for mtu in [1400, 1350, 1280] {
                    let path = &mut sim.net.paths[0];
                    (path.mtu, path.mtu_icmp) = (mtu, mtu_icmp);
                    sim.run_for(Duration::from_millis(if mtu_icmp { 40 } else { 1500 }));
                }
                finish_download(&mut sim, c, LEN);
                assert_eq!(metrics(&sim).path_mtu_reduced > 0, mtu_icmp);
                assert_eq!(metrics(&sim).path_mtu_black_holes > 0, !mtu_icmp);
            }
        }
    }
}

// RFC 4821 §7.6.2: the probe that fails is sent again in parts, and the window stays as it was. A path
// that only seemed to be a black hole (an outage) gets its size back without loss.
#[test]
fn an_outage_costs_the_size_only_for_a_while() {
    const LEN: usize = 4_000_000;
    let mut sim = source(Family::V4, Path::default(), LEN);
    let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
    sim.run(|sim| sim.clients[c].received().len() > 500_000);
    sim.net.paths[0].cut = true;
    sim.run(|sim| metrics(sim).path_mtu_black_holes == 1);
    assert_eq!(path_mtus(&sim), [1064]);
    sim.net.paths[0].cut = false;
    sim.run(|sim| path_mtus(sim) == [1500]);
    assert_eq!(metrics(&sim).mtu_probe_fail, 0);
    finish_download(&mut sim, c, LEN);
}

/// What is cut, lost, doubled and out of order at once comes out right all the same.
#[test]
fn narrow_paths_that_are_rough_as_well() {
    const LEN: usize = 400_000;
    for seed in seeds(16) {
        let path = |n: u64| Path {
            mtu: 1280 + Rng(seed + n).below(220),
            mtu_icmp: !(seed + n).is_multiple_of(3),
            loss_permille: 20,
            duplicate_permille: 10,
            reorder_permille: 20,
            ..Path::default()
        };
        let family = [Family::V4, Family::V6][seed as usize % 2];
        let mut sim = source(family, Path::default(), LEN);
        sim.net.reseed(seed);
        (sim.net.paths[0], sim.net.paths[1]) = (path(0), path(1));
        let c = sim.connect(ClientConfig {
            multipath: !seed.is_multiple_of(4),
            checksum: seed % 8 < 4,
            sack: !seed.is_multiple_of(5),
            eight_octets: !seed.is_multiple_of(3),
            seed,
            ..ClientConfig::new(family.server(0))
        });
        sim.run(|sim| sim.clients[c].established());
        if !seed.is_multiple_of(4) {
            sim.join(c, 1);
        }
        sim.run(|sim| sim.clients[c].received().len() > LEN / 2);
        let narrowest = |n: usize| sim.net.paths[n].mtu;
        for (n, mtu) in path_mtus(&sim).into_iter().enumerate() {
            let used = sim.net.arrived_bytes[n][Side::Client as usize] > 100_000;
            assert!(!used || mtu <= narrowest(n), "seed {seed}: {mtu}");
        }
        finish_download(&mut sim, c, LEN);
    }
}

// RFC 8201 §4, RFC 1191 §6.3: larger packets are tried again ten minutes after an error, by a probe.
#[test]
fn a_path_that_takes_more_again_is_noticed_after_ten_minutes() {
    const LEN: usize = 4_000_000;
    for (wait_s, noticed) in [(590, false), (601, true)] {
        let path = Path {
            mtu: MTU,
            ..Path::default()
        };
        let mut sim = source(Family::V6, path, LEN);
        let c = sim.connect(ClientConfig::new(Family::V6.server(0)));
        sim.run(|sim| sim.clients[c].received().len() > 500_000);
        assert_eq!(path_mtus(&sim), [MTU]);
        sim.net.paths[0].mtu = 1500;
        sim.clients[c].set_reading(false);
        sim.run_for(Duration::from_secs(wait_s));
        sim.clients[c].set_reading(true);
        let now = sim.clients[c].received().len();
        sim.run(|sim| sim.clients[c].received().len() > now + 1_500_000);
        assert_eq!(path_mtus(&sim), [if noticed { 1500 } else { MTU }]);
        finish_download(&mut sim, c, LEN);
    }
}

/// Ten segments of 1460 octets in flight.
fn ten_in_flight() -> (Script, TcpSeq) {
    let mut script = Script::new();
    script.send(100, TcpSeq(0), SYN, sack_permitted(), &[]);
    let una = script.answers()[0].0.seq + 1;
    script.send(101, una, ACK, TcpOptions::default(), &[]);
    assert_eq!(script.answers().len(), 10);
    (script, una)
}

/// The error about a segment from `src` to `dst`.
fn error(src: SocketAddr, dst: SocketAddr, seq: TcpSeq, text_len: usize, mtu: usize) -> Vec<u8> {
    let header = TcpHeader {
        src_port: src.port(),
        dst_port: dst.port(),
        seq,
        ack: TcpSeq(101),
        flags: ACK,
        window: 1000,
        urgent: 0,
        options: TcpOptions::default(),
    };
    let link = Link::default();
    let mut frame = vec![0; 2048];
    let (src, dst) = (src.ip(), dst.ip());
    let len = frame::emit(&mut frame, &link, src, dst, 0, &header, text_len, 0);
    icmp::too_big(&frame[..len], mtu)
}

type Count = fn(&Metrics) -> u64;

// RFC 5927 §4.1, §7: an error must quote what is in flight and claim what makes sense of it. Each case
// is just outside of what is believed, or just inside.
#[test]
fn forged_errors_change_nothing() {
    let out_of_window: Count = |m| m.out_of_window_icmps;
    let not_smaller: Count = |m| m.path_mtu_not_smaller;
    let below_minimum: Count = |m| m.path_mtu_below_minimum;
    let no_flow: Count = |m| m.icmp_no_flow;
    let believed: Count = |m| m.path_mtu_reduced;
    let flight = 10 * 1460;
    let mut elsewhere = CLIENT;
    elsewhere.set_port(CLIENT.port() + 1);
    let least = MTU as i32 - 40;
    for (what, dst, seq, text_len, mtu, counter) in [
        ("before", CLIENT, -1, 1460, MTU, out_of_window),
        ("its first octet", CLIENT, 0, 1460, MTU, believed),
        ("its last octet", CLIENT, flight - 1, 1460, MTU, believed),
        ("behind", CLIENT, flight, 1460, MTU, out_of_window),
        ("another port", elsewhere, 0, 1460, MTU, no_flow),
        ("the minimum", CLIENT, 0, 1460, 552, believed),
        ("less", CLIENT, 0, 1460, 551, below_minimum),
        ("one less than in use", CLIENT, 0, 1460, 1499, believed),
        ("what is in use", CLIENT, 0, 1460, 1500, not_smaller),
        ("what it quotes", CLIENT, 0, least, MTU, not_smaller),
        ("one less", CLIENT, 0, least + 1, MTU, believed),
    ] {
        let (mut script, una) = ten_in_flight();
        let seq = TcpSeq(una.0.wrapping_add_signed(seq));
        let before = script.report();
        script.receive(&error(SERVER, dst, seq, text_len as usize, mtu));
        let counted = counter(&script.engine.metrics);
        assert_eq!(counted, 1, "{what}: {:?}", script.engine.metrics);
        let after = script.report();
        if script.engine.metrics.path_mtu_reduced == 1 {
            assert_eq!((after.path_mtu_bytes, after.mss_bytes), (mtu, mtu - 40));
        } else {
            assert_eq!(script.answers(), [], "{what}");
            assert_eq!(after.path_mtu_bytes, 1500, "{what}");
            assert_eq!(after.cwnd_bytes, before.cwnd_bytes, "{what}");
        }
    }
}

// RFC 1191 §6.4: at once, no larger than the new path MTU, without slowing down; and the errors about
// the other segments of the same flight cause nothing any more.
#[test]
fn what_was_too_big_leaves_again_in_parts() {
    let (mut script, una) = ten_in_flight();
    for segment in 0..10 {
        let seq = una + segment * 1460;
        script.receive(&error(SERVER, CLIENT, seq, 1460, 1040));
    }
    assert_eq!(script.engine.metrics.path_mtu_reduced, 1);
    assert_eq!(script.engine.metrics.path_mtu_not_smaller, 9);
    let mut next = una;
    for (header, len) in script.answers() {
        assert_eq!(header.seq, next, "in order and without a hole");
        assert!(len == 1000 || len == 460, "{len}");
        next += len;
    }
    // As many segments as the window has, in octets that are no more than before.
    let window = script.report().cwnd_bytes;
    assert_eq!(window, 10 * 1000);
    assert!(next.distance(una) > window - 1000);
    assert_eq!(script.engine.metrics.tcp_fast_recoveries, 0);
    // Three duplicates, for segments of before that arrived: no news of loss.
    for _ in 0..3 {
        script.send(101, una, ACK, TcpOptions::default(), &[]);
    }
    assert_eq!(script.engine.metrics.tcp_fast_recoveries, 0);
    assert_eq!(script.report().cwnd_bytes, window);
}

// Errors by the thousand get no more of the worker's time than some hundreds in a second.
#[test]
fn a_flood_of_errors_is_cut_off_for_the_rest_of_its_second() {
    let (mut script, una) = ten_in_flight();
    let other = error(CLIENT, SERVER, una, 1460, MTU);
    let real = error(SERVER, CLIENT, una, 1460, MTU);
    for _ in 0..2000 {
        script.receive(&other);
    }
    let looked_at = script.engine.metrics.icmp_no_flow;
    assert!((500..=1000).contains(&looked_at), "{looked_at}");
    assert_eq!(script.engine.metrics.icmp_rate_limited, 2000 - looked_at);
    script.wait(Duration::from_millis(999));
    script.receive(&real);
    assert_eq!(script.engine.metrics.path_mtu_reduced, 0);
    script.wait(Duration::from_millis(1));
    script.receive(&real);
    assert_eq!(script.engine.metrics.path_mtu_reduced, 1);
}
