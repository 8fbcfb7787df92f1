//! Queues that mark instead of dropping (RFC 3168): nothing is lost, the sender slows down, and both
//! ends agree on what was marked. The model client checks every segment for what may be ECT.

use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::ClientConfig;
use crate::model::net::Path;
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{assert_same, seeds, stream};
use mpx_datapath::tcp::congestion::Algorithm;

const LEN: usize = 2_000_000;

fn marking(permille: u32) -> Path {
    Path {
        mark_permille: permille,
        ..Path::default()
    }
}

fn download(config: SimConfig, client: ClientConfig) -> Sim {
    let subflows = config.paths.len();
    let mut sim = Sim::new(SimConfig {
        app: Behaviour {
            send_bytes: LEN,
            seed: 7,
            close_first: true,
            ..Behaviour::default()
        },
        ..config
    });
    let c = sim.connect(client);
    sim.run(|sim| sim.clients[c].established());
    for path in 1..subflows {
        sim.join(c, path);
    }
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].peer_finished() && sim.clients[c].all_acknowledged());
    assert_same(sim.clients[c].received(), &stream(7, LEN));
    sim.finish();
    sim
}

#[test]
fn marks_slow_a_download_down_and_nothing_is_sent_twice() {
    for algorithm in Algorithm::ALL {
        for family in [Family::V4, Family::V6] {
            let config = |permille| SimConfig {
                paths: vec![marking(permille); 2],
                family,
                congestion: algorithm,
                ..SimConfig::with(ECHO)
            };
            let client = ClientConfig {
                ecn: true,
                ..ClientConfig::new(family.server(0))
            };
            let sim = download(config(10), client.clone());
            let metrics = &sim.server.engine.metrics;
            let subflows = &sim.clients[0].subflows;
            assert_eq!(metrics.ecn_setup, 2);
            assert_eq!((metrics.tcp_retrans_segs, metrics.in_ce), (0, 0));
            let (mut marks, mut cwrs) = (0, 0);
            for s in subflows {
                assert_eq!(s.ecn.not_ect, 0, "text without ECT that left once");
                (marks, cwrs) = (marks + s.ecn.marks, cwrs + s.ecn.cwrs);
            }
            assert!(marks > 5 && marks == sim.net.marked, "{marks} marks");
            // Marks of one window count once, and each fall is announced, but a last one with
            // nothing left to send.
            let falls = metrics.ecn_window_falls;
            assert!(falls <= marks && cwrs <= falls && falls <= cwrs + 2);
            assert!(cwrs > 1, "{cwrs} of {marks}");
            let smooth = download(config(0), client);
            assert!(sim.now > smooth.now, "marks did not slow it down");
        }
    }
}

#[test]
fn marks_on_what_the_client_sends_are_echoed_until_it_answers() {
    let path = marking(20);
    let mut sim = Sim::new(SimConfig {
        paths: vec![path],
        ..SimConfig::with(Behaviour::default())
    });
    let c = sim.connect(ClientConfig {
        ecn: true,
        ..ClientConfig::new(Family::V4.server(0))
    });
    let sent = stream(3, LEN);
    sim.clients[c].send(&sent);
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].peer_finished() && sim.clients[c].all_acknowledged());
    assert_same(&sim.app.record().received, &sent);
    let metrics = &sim.server.engine.metrics;
    assert_eq!(metrics.in_ce, sim.net.marked);
    assert!(metrics.in_ect0 > metrics.in_ce && metrics.in_ect1 == 0);
    let answered = sim.clients[c].subflows[0].ecn.echoes_answered;
    assert!(answered > 1 && answered <= metrics.in_ce, "{answered}");
    sim.finish();
}

#[test]
fn what_is_sent_again_is_not_ect() {
    for seed in seeds(6) {
        let path = Path {
            loss_permille: 20,
            ..marking(20)
        };
        let config = SimConfig {
            paths: vec![path],
            seed,
            ..SimConfig::with(ECHO)
        };
        let client = ClientConfig {
            ecn: true,
            seed,
            ..ClientConfig::plain(Family::V4.server(0))
        };
        let sim = download(config, client);
        let ecn = &sim.clients[0].subflows[0].ecn;
        let again = sim.server.engine.metrics.tcp_retrans_segs;
        // Some of them are lost, too.
        assert!(ecn.not_ect > 0 && ecn.not_ect <= again);
        assert!(ecn.marks > 0 && ecn.cwrs > 0);
    }
}

#[test]
fn a_service_without_ecn_and_a_client_that_does_not_ask_get_none() {
    for (server, client) in [(false, true), (true, false)] {
        let config = SimConfig {
            paths: vec![marking(500)],
            ecn: server,
            ..SimConfig::with(ECHO)
        };
        let client = ClientConfig {
            ecn: client,
            ..ClientConfig::new(Family::V4.server(0))
        };
        let sim = download(config, client);
        assert_eq!(sim.net.marked, 0);
        assert_eq!(sim.server.engine.metrics.ecn_setup, 0);
    }
}
