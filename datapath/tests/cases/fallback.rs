//! Multipath TCP that turns into plain TCP (RFC 8684 §3.1, §3.7).

use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::{ClientConfig, Mode, Quirks};
use crate::model::middlebox::Meddling;
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::subflow::State;
use crate::model::{assert_same, stream};
use mpx_datapath::time::Duration;

/// Both sides send 100,000 octets; `first` says who begins.
fn exchange(quirks: Quirks, server_first: bool) -> Sim {
    const LEN: usize = 100_000;
    let app = Behaviour {
        send_bytes: LEN,
        seed: 2,
        ..Behaviour::default()
    };
    let mut sim = Sim::new(SimConfig::with(app));
    let sent = stream(1, LEN);
    let c = sim.connect(ClientConfig {
        quirks,
        ..ClientConfig::new(Family::V4.server(0))
    });
    if !server_first {
        sim.clients[c].send(&sent);
    }
    sim.run(|sim| sim.clients[c].received().len() > LEN / 2);
    if server_first {
        sim.clients[c].send(&sent);
    }
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert_same(sim.clients[c].received(), &stream(2, LEN));
    assert_same(&sim.app.record().received, &sent);
    sim.finish();
    sim
}

// RFC 8684 §3.1: without MP_CAPABLE in the third ACK the connection is plain TCP.
#[test]
fn no_options_after_the_syn() {
    let quirks = Quirks {
        no_options_after_syn: true,
        ..Quirks::default()
    };
    for server_first in [false, true] {
        let sim = exchange(quirks, server_first);
        assert_eq!(sim.clients[0].mode, Mode::Tcp);
    }
}

// RFC 8684 §3.7: the first data comes without DSS.
#[test]
fn no_options_after_the_third_ack() {
    let quirks = Quirks {
        no_options_after_third_ack: true,
        ..Quirks::default()
    };
    let sim = exchange(quirks, false);
    assert!(sim.clients[0].infinite_mappings <= 1);
}

// RFC 8684 §3.7: our first window is acknowledged without a DATA_ACK.
#[test]
fn acknowledgments_without_data_ack() {
    let quirks = Quirks {
        no_options_after_third_ack: true,
        ..Quirks::default()
    };
    exchange(quirks, true);
}

// RFC 8684 §3.1: the first data carries the keys once more, so that the pure third ACK may be lost.
#[test]
fn keys_come_with_the_first_data_only() {
    let quirks = Quirks {
        no_pure_third_ack: true,
        ..Quirks::default()
    };
    let sim = exchange(quirks, false);
    assert_eq!(sim.clients[0].mode, Mode::Multipath);
}

// RFC 8684 §3.1: the keys of the third ACK must be those exchanged.
#[test]
fn keys_that_nobody_exchanged_make_no_multipath_connection() {
    let quirks = Quirks {
        wrong_capable_key: true,
        ..Quirks::default()
    };
    let mut sim = Sim::new(SimConfig::with(Behaviour::default()));
    let c = sim.connect(ClientConfig {
        quirks,
        ..ClientConfig::new(Family::V4.server(0))
    });
    sim.run(|sim| sim.clients[c].established());
    sim.settle();
    // Whatever the server made of it, a join finds nothing to join.
    let at = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[at].state != State::SynSent);
    assert!(matches!(sim.clients[c].subflows[at].state, State::Reset(_)));
    sim.clients[c].reset(0);
    sim.finish();
}

// RFC 8684 §3.7: after a fallback nothing can join.
#[test]
fn no_join_after_a_fallback() {
    let quirks = Quirks {
        no_options_after_third_ack: true,
        ..Quirks::default()
    };
    let mut sim = Sim::new(SimConfig::with(Behaviour {
        echo: true,
        ..Behaviour::default()
    }));
    let c = sim.connect(ClientConfig {
        quirks,
        ..ClientConfig::new(Family::V4.server(0))
    });
    sim.clients[c].send(&stream(1, 10_000));
    sim.run(|sim| sim.clients[c].received().len() == 10_000);
    let at = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[at].state != State::SynSent);
    assert!(matches!(sim.clients[c].subflows[at].state, State::Reset(_)));
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    sim.finish();
}

/// The client trusts no path; MPTCP options vanish on the last one on the way to the server, from the
/// frame of this number on.
fn losing_options(paths: usize, from_frame: u32, app: Behaviour) -> (Sim, usize) {
    let mut config = SimConfig {
        paths: vec![Path::default(); paths],
        ..SimConfig::with(app)
    };
    config.paths[paths - 1].meddling = Meddling {
        strips: Some((Side::Server, from_frame)),
        ..Meddling::default()
    };
    let mut sim = Sim::new(config);
    let c = sim.connect(ClientConfig {
        quirks: Quirks {
            distrusts_paths: true,
            ..Quirks::default()
        },
        ..ClientConfig::new(Family::V4.server(0))
    });
    (sim, c)
}

// RFC 8684 §3.7: options vanish in mid-connection, and the only subflow acknowledges what no DATA_ACK
// ever will: it is closed with a RST that blames a middlebox.
#[test]
fn a_path_that_begins_to_swallow_options_is_given_up() {
    let app = Behaviour {
        send_bytes: 10_000_000,
        ..Behaviour::default()
    };
    let (mut sim, c) = losing_options(1, 100, app);
    let began = sim.now;
    sim.run(|sim| !sim.clients[c].subflows[0].alive());
    assert_eq!(sim.clients[c].subflows[0].state, State::Reset(Some(6)));
    assert!(sim.now.since(began) < Duration::from_secs(30));
    let sent = stream(0, 10_000_000);
    let got = sim.clients[c].received();
    assert!(got.len() > 100_000 && got == &sent[..got.len()]);
    sim.finish();
}

// RFC 8684 §3.7: where another path is left, the connection goes on there, and nothing is missing.
#[test]
fn another_path_brings_what_one_without_options_took() {
    let (mut sim, c) = losing_options(2, 60, ECHO);
    sim.run(|sim| sim.clients[c].established());
    let sent = stream(1, 1_000_000);
    sim.clients[c].send(&sent);
    let joined = sim.join(c, 1);
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert!(!sim.clients[c].subflows[joined].alive());
    assert_same(sim.clients[c].received(), &sent);
    assert_same(&sim.app.record().received, &sent);
    sim.finish();
}
