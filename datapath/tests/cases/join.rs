//! MP_JOIN (RFC 8684 §3.2) and what happens when a subflow goes.

use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::{ClientConfig, Quirks};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::subflow::State;
use crate::model::{assert_same, seeds, stream};

fn connected(app: Behaviour, quirks: Quirks) -> Sim {
    let mut sim = Sim::new(SimConfig::with(app));
    let c = sim.connect(ClientConfig {
        quirks,
        ..ClientConfig::new(Family::V4.server(0))
    });
    sim.clients[c].send(b"hello");
    sim.run(|sim| sim.clients[c].acknowledged() == 5);
    sim
}

// RFC 8684 §3.2: a wrong HMAC in the third ACK is answered with a RST, reason 1 of MP_TCPRST; the
// connection goes on.
#[test]
fn a_wrong_hmac_is_reset_and_harms_nobody() {
    let mut sim = connected(
        ECHO,
        Quirks {
            wrong_join_hmac: true,
            ..Quirks::default()
        },
    );
    let at = sim.join(0, 1);
    sim.run(|sim| !sim.clients[0].subflows[at].alive());
    assert_eq!(sim.clients[0].subflows[at].state, State::Reset(Some(1)));
    let sent = stream(1, 50_000);
    sim.clients[0].send(&sent);
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    assert_same(&sim.clients[0].received()[5..], &sent);
    sim.finish();
}

// RFC 8684 §3.2: an unknown token is answered with a RST.
#[test]
fn an_unknown_token_is_reset() {
    let mut sim = connected(ECHO, Quirks::default());
    let other = sim.connect(ClientConfig {
        seed: 99,
        ..ClientConfig::new(Family::V4.server(0))
    });
    // The other client's connection does not exist yet, so neither does its token.
    sim.clients[other].subflows.clear();
    let at = sim.join(other, 1);
    sim.run(|sim| !sim.clients[other].subflows[at].alive());
    assert_eq!(sim.clients[other].subflows[at].state, State::Reset(Some(1)));
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    sim.finish();
}

// RFC 8684 §3.6: one too many is refused, for now.
#[test]
fn subflows_have_a_limit() {
    let mut sim = connected(ECHO, Quirks::default());
    let limit = sim.config.subflows_max;
    let joins: Vec<usize> = (1..limit + 3).map(|n| sim.join(0, n % 4)).collect();
    sim.run(|sim| {
        joins
            .iter()
            .all(|at| sim.clients[0].subflows[*at].state != State::SynSent)
    });
    sim.settle();
    let open = sim.clients[0].subflows.iter().filter(|s| s.open()).count();
    assert_eq!(open, limit);
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    sim.finish();
}

// RFC 8684 §3.6, item "a RST closes only its subflow": what it carried goes over the other.
#[test]
fn a_reset_subflow_does_not_stop_the_streams() {
    const LEN: usize = 1_000_000;
    for gone in 0..2 {
        let mut sim = connected(ECHO, Quirks::default());
        let sent = stream(1, LEN);
        let at = sim.join(0, 1);
        sim.run(|sim| sim.clients[0].subflows[at].open());
        sim.clients[0].send(&sent);
        sim.clients[0].close_write();
        sim.run(|sim| sim.clients[0].received().len() > LEN / 3);
        sim.clients[0].reset(gone);
        sim.run(|sim| sim.clients[0].closed());
        assert_same(&sim.clients[0].received()[5..], &sent);
        sim.finish();
    }
}

#[test]
fn a_subflow_may_come_after_all_others_carried_everything() {
    let mut sim = connected(ECHO, Quirks::default());
    sim.clients[0].send(&stream(1, 100_000));
    sim.run(|sim| sim.clients[0].received().len() == 100_005);
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].open());
    sim.clients[0].reset(0);
    sim.run_for(mpx_datapath::time::Duration::from_millis(100));
    sim.clients[0].send(&stream(2, 100_000));
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    assert_same(&sim.clients[0].received()[100_005..], &stream(2, 100_000));
    assert!(sim.clients[0].subflows[at].received >= 100_000);
    sim.finish();
}

#[test]
fn joins_come_and_go_while_data_flows_both_ways() {
    for seed in seeds(8) {
        let mut sim = connected(ECHO, Quirks::default());
        let sent = stream(seed, 600_000);
        sim.clients[0].send(&sent);
        let mut last = 0;
        for round in 0..5 {
            let at = sim.join(0, (round + 1) % 4);
            sim.run(|sim| sim.clients[0].subflows[at].open());
            let goal = (round + 1) * 100_000;
            sim.run(|sim| sim.clients[0].received().len() > goal);
            sim.clients[0].reset(last);
            last = at;
        }
        sim.clients[0].close_write();
        sim.run(|sim| sim.clients[0].closed());
        assert_same(&sim.clients[0].received()[5..], &sent);
        sim.finish();
    }
}
