//! Connections that lose subflows, and all of them (RFC 8684 §3.3.3, §3.3.6): what was lost with them
//! comes over others, or over one that joins in time; the app is told nothing.

use super::pen::{self, Pen};
use super::script::{ACK, SYN};
use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::{ClientConfig, Quirks};
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::subflow::State;
use crate::model::{assert_same, stream};
use mpx_datapath::app::CloseCause;
use mpx_datapath::engine::{AddressPolicy, Announce, EngineConfig, Patience};
use mpx_datapath::mptcp::address::AGAIN_WAIT;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions};

const LEN: usize = 600_000;
const MS: Duration = Duration::from_millis(1);
const TIMEOUT: Duration = Duration::from_secs(60);

fn source(send_bytes: usize) -> Behaviour {
    Behaviour {
        send_bytes,
        seed: 7,
        ..Behaviour::default()
    }
}

/// A connection over path 0.
fn connected(config: SimConfig) -> Sim {
    let mut sim = Sim::new(config);
    let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
    sim.run(|sim| sim.clients[c].established());
    sim.clients[c].send(b"hello");
    sim.run(|sim| sim.clients[c].acknowledged() == 5);
    sim
}

/// Until the server has lost all subflows of so many connections.
fn stranded(sim: &mut Sim, connections: u64) {
    sim.run(|sim| sim.server.count(|m| m.stranded) == connections);
}

fn waiting(sim: &Sim) -> usize {
    sim.server.report(0).stranded
}

// RFC 8684 §3.3.3, §3.3.6: with the only subflow gone in the middle of both streams, the connection
// waits, and what no DATA_ACK covered comes over the next one, from the same address or from another.
#[test]
fn a_connection_without_a_subflow_is_joined_and_goes_on() {
    for path in [0, 1] {
        let mut sim = connected(SimConfig::with(ECHO));
        let sent = stream(1, LEN);
        sim.clients[0].send(&sent);
        sim.clients[0].close_write();
        let mut gone = 0;
        for round in 1..4 {
            sim.run(|sim| sim.clients[0].received().len() > round * LEN / 5);
            sim.clients[0].reset(gone);
            stranded(&mut sim, round as u64);
            assert_eq!(waiting(&sim), 1);
            let received = sim.clients[0].received().len();
            sim.run_for(Duration::from_secs(5));
            assert_eq!(sim.clients[0].received().len(), received);
            assert_eq!(sim.app.record().closed, None);
            gone = sim.join(0, path);
            sim.run(|sim| sim.clients[0].subflows[gone].open());
            assert_eq!(waiting(&sim), 0);
        }
        sim.run(|sim| sim.clients[0].closed());
        assert_same(&sim.clients[0].received()[5..], &sent);
        assert_eq!(sim.server.count(|m| m.rejoined), 3);
        sim.finish();
        assert_eq!(sim.app.record().closed, Some(CloseCause::Finished));
    }
}

// The path dies without a word: the server gives the subflow up, not the connection.
#[test]
fn a_path_that_dies_takes_no_connection_with_it() {
    let mut sim = connected(SimConfig::with(source(LEN)));
    sim.run(|sim| sim.clients[0].received().len() > LEN / 3);
    sim.net.paths[0].cut = true;
    sim.clients[0].reset(0);
    stranded(&mut sim, 1);
    assert_eq!(sim.server.count(|m| m.subflow_timeouts), 1);
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].received().len() == LEN);
    assert!(sim.clients[0].subflows[at].received > 0);
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    assert_same(sim.clients[0].received(), &stream(7, LEN));
    sim.finish();
}

// All that is left is the end of our stream, with octets before it or without.
#[test]
fn the_end_of_a_stream_comes_over_the_next_subflow() {
    for len in [0, 1000] {
        let mut sim = Sim::new(SimConfig::with(Behaviour {
            close_first: true,
            ..source(len)
        }));
        let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
        sim.run(|sim| sim.clients[c].established());
        sim.net.paths[0].cut_towards = Some(Side::Client);
        sim.run(|sim| sim.server.count(|m| m.passive_opens) == 1);
        sim.clients[c].reset(0);
        stranded(&mut sim, 1);
        let at = sim.join(c, 1);
        sim.run(|sim| sim.clients[c].subflows[at].open());
        let joined_at = sim.now;
        sim.run(|sim| sim.clients[c].peer_finished());
        assert!(
            sim.now.since(joined_at) < MS * 100,
            "no timer is waited for"
        );
        assert_same(sim.clients[c].received(), &stream(7, len));
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        sim.finish();
    }
}

// The timer: a handshake that is over just before its end is in time. One that fails buys none.
#[test]
fn a_connection_without_a_subflow_ends_at_its_timeout() {
    // A handshake takes three times the delay of the path until the third ACK is here.
    for (before, in_time) in [(17, true), (13, false)] {
        let mut sim = connected(SimConfig::with(ECHO));
        sim.clients[0].reset(0);
        while sim.server.count(|m| m.stranded) == 0 {
            sim.run_for(MS / 4);
        }
        let ends_at = sim.now + TIMEOUT;
        sim.run_for(TIMEOUT / 2);
        sim.clients[0].config.quirks.wrong_join_hmac = true;
        let wrong = sim.join(0, 1);
        sim.run(|sim| !sim.clients[0].subflows[wrong].alive());
        sim.clients[0].config.quirks = Quirks::default();
        assert_eq!(waiting(&sim), 1);
        sim.run_for(ends_at.since(sim.now) - MS * before);
        let at = sim.join(0, 1);
        sim.run_for(ends_at.since(sim.now) - MS);
        assert_eq!(sim.app.record().closed, None);
        sim.run_for(MS * 2);
        if in_time {
            sim.run(|sim| sim.clients[0].subflows[at].open());
            sim.run_for(TIMEOUT * 2);
            assert_eq!(sim.app.record().closed, None);
            sim.clients[0].close_write();
            sim.run(|sim| sim.clients[0].closed());
        } else {
            assert_eq!(sim.app.record().closed, Some(CloseCause::TimedOut));
            sim.run(|sim| !sim.clients[0].subflows[at].alive());
            let late = sim.join(0, 1);
            sim.run(|sim| !sim.clients[0].subflows[late].alive());
            assert_eq!(sim.clients[0].subflows[late].state, State::Reset(Some(1)));
        }
        sim.finish();
    }
}

// With no time to wait the last subflow takes the connection with it. A user timeout goes on while
// there is none, if anything is outstanding.
#[test]
fn what_is_waited_for_is_configured() {
    let patience = |without_subflow, user_timeout| Patience {
        keepalive: None,
        without_subflow,
        user_timeout,
        ..Patience::default()
    };
    let ends = |patience, app| {
        let config = SimConfig {
            patience,
            ..SimConfig::with(app)
        };
        let mut sim = connected(config);
        sim.run_for(MS * 100);
        sim.clients[0].reset(0);
        let begun = sim.now;
        sim.finish();
        let record = sim.app.record();
        // The last second of a simulation sees that nothing comes any more.
        (record.closed, sim.now.since(begun).as_secs() - 1)
    };
    let user_timeout = Some(Duration::from_secs(20));
    let timed_out = Some(CloseCause::TimedOut);
    let at_once = (Some(CloseCause::PeerAborted), 0);
    assert_eq!(ends(patience(Duration::ZERO, None), ECHO), at_once);
    assert_eq!(ends(patience(TIMEOUT, user_timeout), ECHO), (timed_out, 60));
    // The client's window keeps most of it here.
    let more = source(100_000_000);
    let (cause, seconds) = ends(patience(TIMEOUT, user_timeout), more);
    assert_eq!((cause, seconds), (timed_out, 20));
}

// Under the limit all wait; beyond it the one that has waited for longest goes, and so it does where
// the table of connections is full.
#[test]
fn those_that_wait_have_a_limit_and_make_room() {
    const MANY: usize = 6;
    for (stranded_max, connections_max) in [(4, 100), (100, MANY)] {
        let mut sim = Sim::new(SimConfig {
            stranded_max,
            connections_max,
            ..SimConfig::with(ECHO)
        });
        for n in 0..MANY {
            let c = sim.connect(ClientConfig {
                seed: n as u64,
                ..ClientConfig::new(Family::V4.server(0))
            });
            sim.clients[c].send(b"hello");
            sim.run(|sim| sim.clients[c].received().len() == 5);
            sim.clients[c].reset(0);
            stranded(&mut sim, c as u64 + 1);
        }
        assert_eq!(waiting(&sim), stranded_max.min(MANY));
        if connections_max == MANY {
            // Two come, for whom two go.
            for n in 0..2 {
                let c = sim.connect(ClientConfig {
                    seed: 100 + n,
                    ..ClientConfig::new(Family::V4.server(0))
                });
                sim.run(|sim| sim.server.count(|m| m.stranded_overflow) == n + 1);
                assert!(sim.clients[c].established());
            }
            for c in MANY..MANY + 2 {
                sim.clients[c].close_write();
            }
        }
        for c in 0..MANY {
            let closed = sim.app.with_client(c, |r| r.closed);
            assert_eq!(closed.flatten().is_some(), c < 2, "{c}");
        }
        assert_eq!(sim.server.count(|m| m.stranded_overflow), 2);
        // One that was joined waits anew.
        let at = sim.join(2, 1);
        sim.run(|sim| sim.clients[2].subflows[at].open());
        sim.clients[2].reset(at);
        stranded(&mut sim, MANY as u64 + 1);
        sim.run(|sim| sim.app.with_client(3, |r| r.closed).flatten().is_some());
        assert_eq!(sim.app.with_client(2, |r| r.closed), Some(None));
        sim.finish();
    }
}

/// A client whose only subflow is gone, at an engine of this configuration.
fn pen_waits(change: impl FnOnce(&mut EngineConfig)) -> Pen {
    let mut pen = Pen::configured(ECHO, change);
    pen.third_ack();
    reset(&mut pen);
    assert_eq!(pen.script.engine.metrics.stranded, 1);
    pen
}

fn reset(pen: &mut Pen) {
    let options = TcpOptions::default();
    let seq = pen::ISS.wrapping_add(1);
    pen.script.send(seq, pen.ack, TcpFlags::RST, options, b"");
}

/// What another client's SYN is answered with.
fn other_syn(pen: &mut Pen) -> Option<TcpHeader> {
    pen.script.client.set_port(6000);
    pen.script
        .send(1, TcpSeq(0), SYN, TcpOptions::default(), b"");
    let answer = pen.script.answers().pop();
    answer.map(|(header, _)| header)
}

// One goes for one that comes, also where a join is under way that nobody completes: it does not keep its
// place until its handshake is told of that.
#[test]
fn a_handshake_keeps_no_place_of_a_connection_that_waits() {
    let mut pen = pen_waits(|config| config.stranded_max = 1);
    pen.join();
    assert_eq!(pen.script.answers().len(), 1);
    pen.script.client.set_port(6000);
    let mut pen = pen.connected(SYN, 0);
    pen.third_ack();
    reset(&mut pen);
    let engine = &pen.script.engine;
    assert_eq!((engine.metrics.stranded, engine.open_connections()), (2, 1));
    assert_eq!(engine.metrics.stranded_overflow, 1);
    assert_eq!(engine.report(pen.script.now, 2).stranded, 1);
    // What comes of that handshake finds nobody.
    let none = TcpOptions::default();
    pen.script.client.set_port(pen::JOIN_PORT);
    pen.script.send(pen::ISS + 1, TcpSeq(7), ACK, none, b"");
    let [(answer, 0)] = pen.script.answers()[..] else {
        panic!("a RST")
    };
    assert_eq!((answer.flags, answer.seq), (TcpFlags::RST, TcpSeq(7)));
}

// Anybody can send a SYN; only who is there brings a cookie back.
#[test]
fn what_waits_gives_way_to_a_client_and_not_to_a_syn() {
    let mut pen = pen_waits(|config| config.connections_max = 1);
    let mut syn_ack = None;
    for _ in 0..3 {
        syn_ack = other_syn(&mut pen);
    }
    let metrics = &pen.script.engine.metrics;
    assert_eq!(
        (metrics.stranded_overflow, metrics.listen_overflows),
        (0, 0)
    );
    let ack = syn_ack.expect("a cookie").seq + 1;
    pen.script.send(2, ack, ACK, TcpOptions::default(), b"");
    assert_eq!(pen.script.engine.metrics.stranded_overflow, 1);
    assert_eq!(pen.script.engine.open_connections(), 1);
    // Where nothing waits, nothing makes room.
    pen.script.client.set_port(6001);
    pen.script
        .send(1, TcpSeq(0), SYN, TcpOptions::default(), b"");
    assert!(pen.script.answers().is_empty());
    assert_eq!(pen.script.engine.metrics.listen_overflows, 1);
}

/// Under pressure nothing new comes, but what waits is joined: while it waits it frees nothing.
#[test]
fn what_waits_is_joined_where_memory_is_short() {
    let used_bytes = |pen: &Pen| {
        pen.script
            .engine
            .report(pen.script.now, 0)
            .memory
            .used_bytes
    };
    // Just above three quarters of what there may be.
    let memory_max_bytes = used_bytes(&pen_waits(|_| {})) * 4 / 3 - 4;
    for waits in [true, false] {
        let mut pen = Pen::configured(ECHO, |config| config.memory_max_bytes = memory_max_bytes);
        pen.third_ack();
        if waits {
            reset(&mut pen);
        }
        assert!(pen.script.engine.report(pen.script.now, 0).memory.pressure);
        // Nor does a SYN of somebody else end it.
        other_syn(&mut pen);
        assert_eq!(pen.script.engine.metrics.stranded_overflow, 0);
        pen.script.client.set_port(pen::JOIN_PORT);
        pen.join();
        let (answer, _) = pen.answer();
        assert_eq!(!answer.flags.contains(TcpFlags::RST), waits);
    }
}

// Nothing can be said to the client, which learns it when it joins.
#[test]
fn the_app_may_abort_what_waits() {
    let mut sim = connected(SimConfig::with(ECHO));
    sim.clients[0].reset(0);
    stranded(&mut sim, 1);
    sim.app.abort(0);
    sim.run_for(MS);
    assert_eq!(sim.app.record().closed, Some(CloseCause::Aborted));
    assert_eq!(sim.server.report(0).connections, 0);
    let at = sim.join(0, 0);
    sim.run(|sim| !sim.clients[0].subflows[at].alive());
    assert_eq!(sim.clients[0].subflows[at].state, State::Reset(Some(1)));
    sim.finish();
}

// RFC 8684 §3.3.6: a path that gets worse and worse is left before its subflow is given up; the
// download never stops for long.
#[test]
fn a_path_that_fades_is_left_in_time() {
    let mut paths = vec![Path::default(); 2];
    for path in &mut paths {
        path.rate = 500_000;
    }
    let mut sim = connected(SimConfig {
        paths,
        ..SimConfig::with(source(20_000_000))
    });
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].received > 50_000);
    let (mut longest, mut last) = (Duration::ZERO, (sim.now, 0));
    for tick in 0..200 {
        // From nothing to everything in 10 s, and 10 s without the path.
        sim.net.paths[0].loss_permille = (tick * 10).min(1000);
        sim.run_for(MS * 100);
        let received = sim.clients[0].received().len();
        if received > last.1 {
            last = (sim.now, received);
        }
        longest = longest.max(sim.now.since(last.0));
    }
    assert_eq!(sim.server.count(|m| m.subflow_timeouts), 0, "not given up");
    assert!(sim.server.count(|m| m.reinjected_segments) > 0);
    assert!(longest <= MS * 600, "it stood still for {longest:?}");
    sim.clients[0].fastclose();
    sim.finish();
}

// RFC 8684 §3.6: a stale subflow that holds the send buffer with what others brought is reset for now
// (T = 1, reason 5), and the client may join there again.
#[test]
fn a_subflow_that_holds_the_buffer_is_reset_and_comes_again() {
    let mut sim = connected(SimConfig {
        send_buffer_bytes: 256 * 1024,
        ..SimConfig::with(source(20_000_000))
    });
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].received > 100_000);
    sim.net.paths[0].cut_towards = Some(Side::Server);
    sim.run(|sim| !sim.clients[0].subflows[0].alive());
    assert_eq!(sim.clients[0].subflows[0].state, State::Reset(Some(5)));
    assert_eq!(sim.clients[0].subflows[0].reset_transient, Some(true));
    assert_eq!(sim.server.count(|m| m.subflow_timeouts), 0);
    sim.net.paths[0].cut_towards = None;
    let again = sim.join(0, 0);
    sim.run(|sim| sim.clients[0].subflows[again].received > 100_000);
    sim.clients[0].fastclose();
    sim.finish();
}

// RFC 8684 §3.2, §3.4.1: the initial address has the ID 0 and may be told anew, too; not where C bars
// joins to it (§3.1), nor behind a translator, where the client knows it as another one.
#[test]
fn the_initial_address_is_announced_anew_when_its_subflow_failed() {
    let translated = Announce {
        id: 1,
        address: "203.0.113.7".parse().expect("an address"),
        port: None,
        local: Some(Family::V4.server(0)),
        clients: None,
    };
    for (deny_join_initial, announce) in
        [(false, vec![]), (true, vec![]), (false, vec![translated])]
    {
        let again = !deny_join_initial && announce.is_empty();
        let mut sim = connected(SimConfig {
            addresses: AddressPolicy {
                deny_join_initial,
                announce,
                ..AddressPolicy::default()
            },
            ..SimConfig::with(ECHO)
        });
        let initial = Family::V4.server(0);
        let beside = sim.join(0, 1);
        sim.run(|sim| sim.clients[0].subflows[beside].open());
        sim.clients[0].reset(0);
        sim.clients[0].send(b"hello");
        sim.run_for(AGAIN_WAIT - MS * 100);
        assert_eq!(sim.clients[0].announced.len(), 0, "before its time");
        sim.run_for(MS * 200);
        let told = sim.clients[0].announced.iter();
        let told: Vec<_> = told.map(|a| (a.address_id, a.address, a.port)).collect();
        if !again {
            assert_eq!(told, []);
        } else {
            assert_eq!(told, [(0, initial.ip(), None)]);
            assert_eq!(sim.server.count(|m| m.add_addr_again), 1);
            let back = sim.join(0, 0);
            sim.run(|sim| sim.clients[0].subflows[back].open());
            assert_eq!(sim.clients[0].subflows[back].server_id, 0);
            sim.run_for(AGAIN_WAIT * 1000);
            assert_eq!(sim.clients[0].announced.len(), 1, "it is there");
            // Once more, and the wait begins anew.
            sim.clients[0].reset(back);
            sim.run_for(AGAIN_WAIT + MS * 200);
            assert_eq!(sim.clients[0].announced.len(), 2);
        }
        sim.clients[0].close_write();
        sim.run(|sim| sim.clients[0].closed());
        sim.finish();
    }
}

// RFC 8684 §3.4.1: the address of a subflow that failed is announced anew, until the client has joined
// it again; not where the client's RST says that it is for good (§3.6).
#[test]
fn the_address_of_a_failed_subflow_is_announced_anew() {
    for for_good in [false, true] {
        let announce = Announce {
            id: 3,
            address: Family::V4.server(1).ip(),
            port: None,
            local: None,
            clients: None,
        };
        let mut sim = connected(SimConfig {
            addresses: AddressPolicy {
                announce: vec![announce],
                ..AddressPolicy::default()
            },
            ..SimConfig::with(ECHO)
        });
        let at = sim.join(0, 1);
        sim.run(|sim| sim.clients[0].subflows[at].open());
        sim.settle();
        assert_eq!(sim.clients[0].announced.len(), 1);
        // Then its RST has MP_TCPRST.
        sim.clients[0].subflows[at].gave_up = for_good;
        sim.clients[0].reset(at);
        sim.run_for(AGAIN_WAIT * 4);
        let again = if for_good { 0 } else { 2 };
        assert_eq!(sim.clients[0].announced.len(), 1 + again);
        let at = sim.join(0, 1);
        sim.run(|sim| sim.clients[0].subflows[at].open());
        sim.run_for(AGAIN_WAIT * 1000);
        assert_eq!(sim.clients[0].announced.len(), 1 + again, "it is there");
        sim.clients[0].close_write();
        sim.run(|sim| sim.clients[0].closed());
        sim.finish();
    }
}
