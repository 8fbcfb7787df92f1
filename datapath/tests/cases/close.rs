//! Ends of every kind.

use crate::model::apps::Behaviour;
use crate::model::client::ClientConfig;
use crate::model::net::Path;
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::subflow::Again;
use crate::model::{assert_same, seeds, stream};
use mpx_datapath::app::CloseCause;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;

fn client(multipath: bool) -> ClientConfig {
    ClientConfig {
        multipath,
        ..ClientConfig::new(Family::V4.server(0))
    }
}

/// A client with two subflows where it can have them.
fn open(app: Behaviour, multipath: bool) -> Sim {
    let mut sim = Sim::new(SimConfig::with(app));
    let c = sim.connect(client(multipath));
    sim.clients[c].send(b"hello");
    sim.run(|sim| sim.clients[c].acknowledged() == 5);
    if multipath {
        let at = sim.join(c, 1);
        sim.run(|sim| sim.clients[c].subflows[at].open());
    }
    sim
}

// RFC 9293 §3.6, RFC 8684 §3.3.3: the client has nothing more to say and still gets its answer.
#[test]
fn half_closed_by_the_client() {
    for multipath in [false, true] {
        const LEN: usize = 500_000;
        // The answer begins before the end of the question and goes on long after it.
        let app = Behaviour {
            send_bytes: LEN,
            seed: 1,
            ..Behaviour::default()
        };
        let mut sim = open(app, multipath);
        sim.clients[0].close_write();
        sim.run(|sim| sim.app.record().peer_finished);
        assert!(sim.clients[0].received().len() < LEN);
        sim.run(|sim| sim.clients[0].closed());
        assert_same(sim.clients[0].received(), &stream(1, LEN));
        assert_eq!(sim.app.record().closed, None.or(sim.app.record().closed));
        sim.finish();
        assert_eq!(sim.app.record().closed, Some(CloseCause::Finished));
    }
}

#[test]
fn half_closed_by_the_server() {
    for multipath in [false, true] {
        let app = Behaviour {
            send_bytes: 1000,
            seed: 1,
            close_first: true,
            ..Behaviour::default()
        };
        let mut sim = open(app, multipath);
        sim.run(|sim| sim.clients[0].peer_finished());
        sim.run_for(Duration::from_secs(2));
        let sent = stream(2, 400_000);
        sim.clients[0].send(&sent);
        sim.clients[0].close_write();
        sim.run(|sim| sim.clients[0].closed());
        assert_same(&sim.app.record().received[5..], &sent);
        sim.finish();
        assert_eq!(sim.app.record().closed, Some(CloseCause::Finished));
    }
}

#[test]
fn closed_by_both_at_once() {
    for multipath in [false, true] {
        let app = Behaviour {
            send_bytes: 10,
            close_first: true,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(SimConfig {
            paths: vec![
                Path {
                    delay: Duration::from_millis(50),
                    ..Path::default()
                };
                2
            ],
            ..SimConfig::with(app)
        });
        let c = sim.connect(client(multipath));
        // The client's end and the server's cross each other.
        sim.clients[c].send(b"x");
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        sim.finish();
        assert_eq!(sim.app.record().closed, Some(CloseCause::Finished));
    }
}

// RFC 9293 §3.10.7.4; RFC 8684 §3.5: plain TCP ends with its RST, Multipath TCP with
// MP_FASTCLOSE on one.
#[test]
fn aborted_by_the_client() {
    for multipath in [false, true] {
        let app = Behaviour {
            send_bytes: 1_000_000,
            ..Behaviour::default()
        };
        let mut sim = open(app, multipath);
        sim.clients[0].fastclose();
        sim.settle();
        assert_eq!(sim.app.record().closed, Some(CloseCause::PeerAborted));
        sim.finish();
    }
}

#[test]
fn aborted_by_the_application() {
    for multipath in [false, true] {
        let app = Behaviour {
            abort_after_bytes: Some(1000),
            ..Behaviour::default()
        };
        let mut sim = open(app, multipath);
        sim.clients[0].send(&stream(1, 2000));
        sim.run(|sim| sim.clients[0].closed());
        assert_eq!(sim.clients[0].fastclosed, multipath);
        sim.finish();
        assert_eq!(sim.app.record().closed, Some(CloseCause::Aborted));
    }
}

// RFC 8684 §3.3.3: every subflow of a Multipath TCP connection was reset, none with MP_FASTCLOSE: it
// ends after a timeout.
#[test]
fn every_subflow_reset_one_by_one() {
    let app = Behaviour {
        send_bytes: 1_000_000,
        ..Behaviour::default()
    };
    let mut sim = open(app, true);
    sim.clients[0].reset(0);
    sim.run_for(Duration::from_millis(100));
    assert_eq!(sim.app.record().closed, None);
    sim.clients[0].reset(1);
    sim.settle();
    assert_eq!(sim.app.record().closed, None);
    sim.finish();
    assert_eq!(sim.app.record().closed, Some(CloseCause::TimedOut));
}

// RFC 9293 §3.10.7.4: the last ACK of the client may be lost; TIME-WAIT is on the side that closed
// first and answers.
#[test]
fn fins_are_lost_in_every_place() {
    for multipath in [false, true] {
        for close_first in [false, true] {
            for seed in seeds(30) {
                let app = Behaviour {
                    send_bytes: 10,
                    close_first,
                    ..Behaviour::default()
                };
                let mut sim = open(app, multipath);
                sim.run(|sim| sim.clients[0].received().len() == 10);
                for path in &mut sim.net.paths {
                    path.loss_permille = 300;
                }
                sim.net.reseed(seed);
                sim.clients[0].close_write();
                sim.run(|sim| sim.clients[0].peer_finished() && sim.clients[0].all_acknowledged());
                for path in &mut sim.net.paths {
                    path.loss_permille = 0;
                }
                sim.finish();
                assert_eq!(sim.app.record().closed, Some(CloseCause::Finished));
            }
        }
    }
}

#[test]
fn a_port_is_used_again_after_its_connection() {
    for multipath in [false, true] {
        let mut sim = open(
            Behaviour {
                echo: true,
                ..Behaviour::default()
            },
            multipath,
        );
        sim.clients[0].close_write();
        sim.run(|sim| sim.clients[0].closed());
        // From the same address and port as before, a little later (RFC 9293 §3.10.7.4 and
        // RFC 6191: TIME-WAIT yields to a newer SYN).
        sim.run_for(Duration::from_secs(3));
        let again = ClientConfig {
            seed: 5,
            ..client(multipath)
        };
        let c = sim.connect_again(again, 0, Again::Newer);
        sim.clients[c].send(b"again");
        sim.run(|sim| sim.clients[c].received() == b"again");
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        sim.finish();
    }
}

// RFC 9293 §3.4.1 and RFC 1122 §4.2.2.13: a connection that takes the place of one in TIME-WAIT begins
// with a sequence number beyond all that the old one used, also when that was faster than the clock
// that initial sequence numbers are made of.
#[test]
fn a_connection_out_of_time_wait_begins_beyond_the_old_one() {
    const LEN: usize = 20_000_000;
    let mut sim = Sim::new(SimConfig {
        paths: vec![Path {
            delay: Duration::from_millis(1),
            rate: 0,
            ..Path::default()
        }],
        ..SimConfig::with(Behaviour {
            send_bytes: LEN,
            close_first: true,
            ..Behaviour::default()
        })
    });
    let first = sim.connect(client(false));
    sim.run(|sim| sim.clients[first].peer_finished());
    sim.clients[first].close_write();
    sim.run(|sim| sim.clients[first].closed());
    sim.run_for(Duration::from_millis(10));
    assert_eq!(sim.server.engine.report(sim.now, 0).time_wait, 1);
    let old = &sim.clients[first].subflows[0];
    let old_end = TcpSeq(old.irs) + old.rcv_nxt as usize;

    let again = ClientConfig {
        seed: 5,
        ..client(false)
    };
    let second = sim.connect_again(again, first, Again::Newer);
    sim.run(|sim| sim.clients[second].established());
    assert_eq!(sim.server.count(|m| m.time_wait_recycled), 1);
    let new = TcpSeq(sim.clients[second].subflows[0].irs);
    assert!(new.at_or_after(old_end), "{new:?} is before {old_end:?}");
}
