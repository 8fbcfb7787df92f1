//! MP_JOIN (RFC 8684 §3.2) and what happens when a subflow goes.

use super::pen::Pen;
use super::script::SYN;
use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::{ClientConfig, Quirks};
use crate::model::server::ServiceSetup;
use crate::model::sim::{Family, SERVICE_PORT, Sim, SimConfig};
use crate::model::subflow::State;
use crate::model::{assert_same, seeds, stream};
use mpx_datapath::port::IfaceId;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::MpTcprst;
use mpx_datapath::wire::tcp::TcpFlags;
use std::net::SocketAddr;

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
    sim.run_for(Duration::from_millis(100));
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

// RFC 8684 §3.1, §3.2: a join that overtakes the third ACK of its connection is dropped, without a RST
// that would bar its path, and the next copy of its SYN is taken.
#[test]
fn a_join_that_overtakes_the_third_ack_is_left_to_its_retransmission() {
    let mut pen = Pen::half_open(false, ECHO);
    pen.join();
    assert_eq!(pen.script.answers(), []);
    assert_eq!(pen.script.engine.metrics.mp_join_rejected, 1);
    pen.third_ack();
    pen.join();
    let (syn_ack, _) = pen.answer();
    assert!(syn_ack.flags.contains(SYN));
    pen.join_ack(&syn_ack, true);
    assert_eq!(pen.script.engine.metrics.mp_join_ack_rx, 1);
}

// RFC 8684 §3.6: one too many is refused for lack of resources, and for now (T): there may be room
// later.
#[test]
fn a_limit_refuses_a_join_for_now() {
    for subflows_max in [1, 2] {
        let mut pen = Pen::configured(ECHO, |config| {
            config.subflows_per_connection_max = subflows_max;
        });
        pen.third_ack();
        pen.join();
        let (answer, _) = pen.answer();
        let refusal = (subflows_max == 1).then_some(MpTcprst {
            transient: true,
            reason: 2,
        });
        assert_eq!(answer.options.mptcp.tcprst, refusal);
        assert_eq!(answer.flags.contains(TcpFlags::RST), refusal.is_some());
    }
}

// RFC 8684 §3.2, §3.7: a third ACK without MP_JOIN is answered with a RST, and makes no connection of
// its own.
#[test]
fn a_join_that_loses_its_option_is_reset() {
    let mut pen = Pen::half_open(false, ECHO);
    pen.third_ack();
    pen.join();
    let (syn_ack, _) = pen.answer();
    pen.join_ack(&syn_ack, false);
    let (answer, _) = pen.answer();
    assert!(answer.flags.contains(TcpFlags::RST));
    assert_eq!(answer.options.mptcp.tcprst.map(|r| r.reason), Some(6));
    assert_eq!(pen.script.engine.metrics.mp_join_ack_missing, 1);
    assert_eq!(pen.script.engine.connections(), 1);
    assert_eq!(pen.mode(), "mptcp");
}

// RFC 8684 §3.2: a subflow may be of the other family than the one before it.
#[test]
fn a_connection_spans_both_families() {
    for (first, second) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let mut config = SimConfig::with(ECHO);
        config.more_services.push(ServiceSetup {
            port: SERVICE_PORT + 1,
            versions: config.versions,
            checksum: false,
            patience: config.patience,
            congestion: config.congestion,
            ecn: false,
        });
        let mut sim = Sim::new(config);
        let c = sim.connect(ClientConfig::new(first.server_at(0, SERVICE_PORT + 1)));
        sim.run(|sim| sim.clients[c].established());
        let local = SocketAddr::new(second.host(1, 1000), 50_000);
        let remote = second.server_at(1, SERVICE_PORT + 1);
        let at = sim.clients[c].join(local, remote, IfaceId(1), false);
        sim.run(|sim| sim.clients[c].subflows[at].open());
        // Only the other family is left; the name of the peer is the one it came with (§4).
        let peer = sim.clients[c].subflows[0].local;
        sim.clients[c].reset(0);
        sim.run_for(Duration::from_millis(100));
        let report = sim.server.engine.report(sim.now, 1);
        assert_eq!(report.conns[0].peer, peer);
        assert_eq!(report.conns[0].subflows.len(), 1);
        let sent = stream(1, 100_000);
        sim.clients[c].send(&sent);
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        assert_same(sim.clients[c].received(), &sent);
        sim.finish();
    }
}
