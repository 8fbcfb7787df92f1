//! Multipath TCP that turns into plain TCP (RFC 8684 §3.1, §3.7).

use crate::model::apps::Behaviour;
use crate::model::client::{ClientConfig, Mode, Quirks};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::subflow::State;
use crate::model::{assert_same, stream};

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
