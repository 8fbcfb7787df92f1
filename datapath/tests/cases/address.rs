//! Addresses and priorities (RFC 8684 §3.4, §3.3.8): what the server announces, takes in, takes back
//! and obeys. The model client checks the HMAC of every ADD_ADDR by its own reckoning.

use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::ClientConfig;
use crate::model::net::Side;
use crate::model::server::ServiceSetup;
use crate::model::sim::{Family, SERVICE_PORT, Sim, SimConfig};
use crate::model::subflow::State;
use crate::model::{assert_same, stream};
use mpx_datapath::engine::{AddressPolicy, Announce, JoinRule, Versions};
use mpx_datapath::mptcp::address::{ANNOUNCEMENTS_MAX, REMOTE_MAX};
use mpx_datapath::mptcp::close::{RST_NO_RESOURCES, RST_PROHIBITED};
use mpx_datapath::mptcp::signal::SIGNAL_PAUSE;
use mpx_datapath::port::IfaceId;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::{AddAddr, AddAddrForm};
use std::net::{IpAddr, SocketAddr};

const MS: Duration = Duration::from_millis(1);
/// Of the paths of a simulation, both ways, and some time for what is on them.
const RTT: Duration = Duration::from_millis(12);

fn announce(id: u8, address: IpAddr) -> Announce {
    Announce {
        id,
        address,
        port: None,
        local: None,
        clients: None,
    }
}

fn announcing(announce: Vec<Announce>) -> AddressPolicy {
    AddressPolicy {
        announce,
        ..AddressPolicy::default()
    }
}

fn server(path: usize) -> IpAddr {
    Family::V4.server(path).ip()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A connection whose client has sent five octets that came back.
fn connected(addresses: AddressPolicy) -> Sim {
    connected_as(SimConfig {
        addresses,
        ..SimConfig::with(ECHO)
    })
}

fn connected_as(config: SimConfig) -> Sim {
    let mut sim = Sim::new(config);
    let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
    sim.clients[c].send(b"hello");
    sim.run(|sim| sim.clients[c].received() == b"hello");
    sim
}

/// The client ends its stream and everything goes away.
fn end(mut sim: Sim) {
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    sim.finish();
}

fn join_to(sim: &mut Sim, path: usize, remote: SocketAddr) -> usize {
    let client = &mut sim.clients[0];
    let port = 50_000 + client.subflows.len() as u16;
    let local = SocketAddr::new(Family::of(remote).host(path, 1000), port);
    client.join(local, remote, IfaceId(path as u8), false)
}

fn reset_reason(sim: &Sim, subflow: usize) -> Option<u8> {
    match sim.clients[0].subflows[subflow].state {
        State::Reset(reason) => reason,
        ref state => panic!("not reset but {state:?}"),
    }
}

// RFC 8684 §3.4.1: each is told once where it is echoed; without a port it is that of the subflow. A
// join to an announced address is accepted under its ID (§3.2), also where a translator stands before
// it; unannounced addresses have IDs of their own, one for each.
#[test]
fn announced_addresses_are_joined_under_their_ids() {
    let behind_nat = Announce {
        local: Some(Family::V4.server(2)),
        ..announce(9, ip("203.0.113.7"))
    };
    let mut sim = connected(announcing(vec![announce(1, server(1)), behind_nat]));
    sim.run_for(Duration::from_secs(4));
    let announced = &sim.clients[0].announced;
    let told = announced.iter();
    let told: Vec<_> = told.map(|a| (a.address_id, a.address, a.port)).collect();
    assert_eq!(told, [(1, server(1), None), (9, ip("203.0.113.7"), None)]);
    assert_eq!(sim.server.count(|m| m.add_addr_tx), 2);
    assert_eq!(sim.server.count(|m| m.echo_add), 2);
    let ids: Vec<u8> = [0, 1, 2, 3, 3]
        .map(|path| {
            let at = sim.join(0, path);
            sim.run(|sim| sim.clients[0].subflows[at].open());
            sim.clients[0].subflows[at].server_id
        })
        .to_vec();
    assert_eq!(ids[..3], [0, 1, 9]);
    assert!(![0, 1, 9].contains(&ids[3]));
    assert_eq!(ids[3], ids[4], "an ID is an address's, not a subflow's");
    end(sim);
}

// RFC 8684 §3.4.1: an IPv6 address with a port takes all the room beside timestamps; the echo that
// comes back without a DATA_ACK is no fallback. §3.9: ports where they differ.
#[test]
fn an_ipv6_address_with_a_port_fits_and_is_echoed() {
    let with_port = Announce {
        port: Some(8443),
        ..announce(3, ip("2001:db8::7"))
    };
    let v4_with_port = Announce {
        port: Some(8080),
        ..announce(4, server(1))
    };
    for send_bytes in [0, 200_000] {
        let mut sim = Sim::new(SimConfig {
            addresses: announcing(vec![with_port, v4_with_port]),
            ..SimConfig::with(Behaviour {
                send_bytes,
                ..Behaviour::default()
            })
        });
        let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
        sim.run(|sim| sim.server.count(|m| m.echo_add) == 2);
        let told = sim.clients[c].announced.iter();
        let told: Vec<_> = told.map(|a| (a.address_id, a.port)).collect();
        assert_eq!(told, [(3, Some(8443)), (4, Some(8080))]);
        assert_eq!(sim.server.count(|m| m.port_add), 2);
        sim.clients[c].send(b"hello");
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        assert_eq!(sim.clients[c].received().len(), send_bytes);
        assert_eq!(
            sim.server
                .count(|m| m.dss_fallback + m.mp_capable_data_fallback),
            0
        );
        sim.finish();
    }
}

// RFC 8684 §3.4.1: ADD_ADDR is repeated until it is echoed, and given up in the end. At most two
// duplicate ACKs in a row carry signals: with nobody answering, the third address waits.
#[test]
fn what_is_not_echoed_is_repeated_and_never_three_in_a_row() {
    let addresses = (1..=3).map(|id| announce(id, server(id.into()))).collect();
    let mut sim = Sim::new(SimConfig {
        addresses: announcing(addresses),
        ..SimConfig::with(ECHO)
    });
    let c = sim.connect(ClientConfig {
        echoes: false,
        ..ClientConfig::new(Family::V4.server(0))
    });
    // The third ACK arrives after one and a half round trips of 10 ms.
    sim.run_for(MS * 16);
    assert_eq!(sim.server.count(|m| m.add_addr_tx), 2);
    sim.run_for(SIGNAL_PAUSE - MS * 2);
    assert_eq!(sim.server.count(|m| m.add_addr_tx), 2, "before its time");
    sim.run_for(RTT);
    let told = |sim: &Sim| -> Vec<u8> {
        let announced = sim.clients[c].announced.iter();
        announced.map(|a| a.address_id).collect()
    };
    // The one that was never told goes first.
    assert_eq!(told(&sim)[..3], [1, 2, 3]);
    sim.run_for(Duration::from_secs(300));
    let mut all = told(&sim);
    all.sort();
    let times = ANNOUNCEMENTS_MAX as usize;
    let expected: Vec<u8> = (1..=3u8).flat_map(|id| vec![id; times]).collect();
    assert_eq!(all, expected);
    assert_eq!(sim.server.count(|m| m.add_addr_unechoed), 3);
    // It gets on all the same.
    sim.clients[c].send(&stream(1, 100_000));
    sim.run(|sim| sim.clients[c].received().len() == 100_000);
    end(sim);
}

// RFC 8684 §3.4.1: lost on its way, or its echo is: it comes again.
#[test]
fn a_lost_announcement_or_echo_is_repeated() {
    for (lost_on_the_way_to, sent) in [(Side::Client, 2), (Side::Server, 2)] {
        let mut sim = Sim::new(SimConfig {
            addresses: announcing(vec![announce(1, server(1))]),
            ..SimConfig::with(ECHO)
        });
        let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
        // SYN/ACK and ADD_ADDR; SYN, third ACK and echo.
        let before = match lost_on_the_way_to {
            Side::Client => 1,
            Side::Server => 2,
        };
        sim.net.lose_nth = Some((lost_on_the_way_to, IfaceId(0), before));
        // The third ACK arrives after one and a half round trips of 10 ms.
        sim.run_for(MS * 16);
        let rto_ms = sim.server.report(1).conns[0].subflows[0].rto_ms;
        // As soon as text would be repeated.
        sim.run_for(Duration::from_millis(rto_ms) - MS * 2);
        assert_eq!(sim.server.count(|m| m.add_addr_tx), 1, "before its time");
        sim.run_for(MS * 3);
        assert_eq!(sim.server.count(|m| m.add_addr_tx), sent);
        sim.run_for(Duration::from_secs(10));
        assert_eq!(sim.server.count(|m| m.add_addr_tx), sent);
        assert_eq!(sim.server.count(|m| m.echo_add), 1);
        assert!(!sim.clients[c].announced.is_empty());
        end(sim);
    }
}

// RFC 8684 §3.4.1: a valid ADD_ADDR is echoed, field by field and without HMAC, whatever becomes of
// the address; one with a wrong HMAC is ignored.
#[test]
fn announcements_of_the_client_are_verified_and_echoed() {
    let mut sim = connected(AddressPolicy::default());
    let option = |address_id, address: &str, port| AddAddr {
        address_id,
        address: ip(address),
        port,
        form: AddAddrForm::Echo,
    };
    let forged = option(7, "10.16.0.99", None);
    sim.clients[0].advertise_option(0, forged, 1 << 63);
    sim.run_for(RTT * 4);
    assert_eq!(sim.clients[0].echoed, []);
    assert_eq!(sim.server.count(|m| m.add_addr_hmac_failure), 1);
    assert_eq!(sim.server.count(|m| m.add_addr), 0);

    let valid = [
        option(7, "10.16.0.99", None),
        option(8, "10.16.0.98", Some(4711)),
        option(9, "2001:db8::1", Some(4711)),
        option(10, "2001:db8::2", None),
        // Another address under a known ID is not obeyed; one too many is not kept.
        option(7, "10.16.0.97", None),
    ];
    let more = (20..).map(|id| option(id, "10.16.0.96", None));
    let valid: Vec<_> = valid.into_iter().chain(more.take(REMOTE_MAX - 3)).collect();
    for option in &valid {
        sim.clients[0].advertise_option(0, *option, 0);
        sim.run_for(RTT * 4);
    }
    assert_eq!(sim.clients[0].echoed, valid);
    assert_eq!(sim.server.count(|m| m.add_addr), valid.len() as u64);
    assert_eq!(sim.server.count(|m| m.echo_add_tx), valid.len() as u64);
    assert_eq!(sim.server.count(|m| m.add_addr_drop), 2);
    // One goes, one may come.
    sim.clients[0].withdraw(0, 7);
    sim.run_for(RTT * 4);
    sim.clients[0].advertise_option(0, option(7, "10.16.0.97", None), 0);
    sim.run_for(RTT * 4);
    assert_eq!(sim.server.count(|m| m.add_addr_drop), 2);
    end(sim);
}

// RFC 8684 §3.4.2: an unknown ID is ignored, and a subflow whose address was removed goes only if it
// no longer answers.
#[test]
fn a_removed_address_is_probed_before_its_subflows_go() {
    for alive in [true, false] {
        let mut sim = connected(AddressPolicy::default());
        let at = sim.join(0, 1);
        sim.run(|sim| sim.clients[0].subflows[at].open());
        sim.run_for(RTT * 4);
        let subflows = |sim: &Sim| sim.server.report(1).conns[0].subflows.len();
        sim.clients[0].withdraw(0, 99);
        sim.run_for(Duration::from_secs(10));
        assert_eq!(subflows(&sim), 2);
        sim.net.paths[1].cut = !alive;
        sim.clients[0].withdraw(0, at as u8);
        sim.run_for(MS * 6);
        assert_eq!(sim.server.count(|m| m.rm_addr), 2);
        if alive {
            sim.run_for(Duration::from_secs(60));
            assert_eq!(subflows(&sim), 2);
            assert_eq!(sim.server.count(|m| m.rm_subflow), 0);
        } else {
            // Three probes, each waited for twice as long as the one before.
            let rto_ms = sim.server.report(1).conns[0].subflows[1].rto_ms;
            let patience = Duration::from_millis(7 * rto_ms);
            sim.run_for(patience - MS * 4);
            assert_eq!(subflows(&sim), 2, "before its time");
            sim.run_for(MS * 8);
            assert_eq!(subflows(&sim), 1);
            assert_eq!(sim.server.count(|m| m.rm_subflow), 1);
            sim.clients[0].reset(at);
        }
        let sent = stream(3, 200_000);
        sim.clients[0].send(&sent);
        sim.run(|sim| sim.clients[0].received().len() == 200_005);
        assert_same(&sim.clients[0].received()[5..], &sent);
        end(sim);
    }
}

// RFC 8684 §3.4.2: what is withdrawn is said to those that were told; its subflows end with a FIN, and
// new clients hear nothing of it.
#[test]
fn a_withdrawn_address_is_taken_back() {
    let mut sim = connected(announcing(vec![
        announce(1, server(1)),
        announce(2, server(2)),
    ]));
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].open());
    sim.settle();
    let now = sim.now;
    let unknown = sim.server.withdraw(now, server(3)).expect_err("unknown");
    assert!(unknown.contains("is not announced"), "{unknown}");
    let taken = sim.server.announce(now, announce(1, server(3)));
    assert!(taken.expect_err("taken").contains("ID 1 is that of"));
    let foreign = sim.server.announce(now, announce(7, ip("192.0.2.7")));
    assert!(
        foreign
            .expect_err("foreign")
            .contains("no service listens on")
    );
    assert_eq!(sim.server.withdraw(now, server(1)), Ok(1));
    sim.run(|sim| sim.clients[0].subflows[at].peer_fin.is_some());
    sim.clients[0].leave(at);
    sim.settle();
    assert_eq!(sim.clients[0].removed, [1]);
    assert_eq!(sim.server.count(|m| m.rm_addr_tx), 1);
    assert_eq!(sim.server.report(1).conns[0].subflows.len(), 1);
    let c = sim.connect(ClientConfig {
        seed: 2,
        ..ClientConfig::new(Family::V4.server(0))
    });
    sim.settle();
    let told = sim.clients[c].announced.iter();
    let told: Vec<u8> = told.map(|a| a.address_id).collect();
    assert_eq!(told, [2]);
    // It may be given to another address now, which all are told of.
    let (now, again) = (sim.now, announce(1, server(3)));
    assert_eq!(sim.server.announce(now, again), Ok(2));
    sim.settle();
    for client in &sim.clients {
        assert_eq!(client.announced.last().map(|a| a.address), Some(server(3)));
    }
    sim.clients[c].close_write();
    end(sim);
}

/// Octets that the client got on subflow `at` of what the server sends meanwhile.
fn carried_by(sim: &mut Sim, at: usize, octets: usize) -> (u64, u64) {
    let before: Vec<u64> = sim.clients[0].subflows.iter().map(|s| s.received).collect();
    let goal = sim.clients[0].received().len() + octets;
    sim.clients[0].send(&stream(7, octets));
    sim.run(|sim| sim.clients[0].received().len() >= goal);
    let now = sim.clients[0].subflows.iter().map(|s| s.received);
    let all: Vec<u64> = now.zip(before).map(|(now, before)| now - before).collect();
    (all[at], all.iter().sum())
}

// RFC 8684 §3.3.8: a backup carries data only where nothing else works, whoever asked for that; when
// another subflow works again, it is left again.
#[test]
fn backups_are_used_when_nothing_else_works_and_left_again() {
    let mut sim = connected(AddressPolicy::default());
    let at = sim.join_as(0, 1, true, None);
    sim.run(|sim| sim.clients[0].subflows[at].open());
    assert_eq!(carried_by(&mut sim, at, 300_000).0, 0);
    sim.net.paths[0].cut = true;
    let (backup, _) = carried_by(&mut sim, at, 300_000);
    assert!(backup > 250_000, "{backup}");
    sim.net.paths[0].cut = false;
    sim.run_for(Duration::from_secs(60));
    let (backup, all) = carried_by(&mut sim, at, 300_000);
    assert_eq!(backup, 0, "of {all}");
    // MP_PRIO of the client, and that is what the first one becomes, too.
    sim.clients[0].prioritise(at, false);
    sim.clients[0].prioritise(0, true);
    sim.settle();
    assert_eq!(sim.server.count(|m| m.mp_prio_rx), 2);
    let (new, all) = carried_by(&mut sim, at, 300_000);
    assert_eq!(new, all);
    end(sim);
}

// RFC 8684 §3.3.8: the server asks for it, at the join by B and later by MP_PRIO, and keeps to it.
#[test]
fn the_server_makes_backups_too() {
    let backup = JoinRule {
        from: None,
        to: Some("10.48.0.0/16".parse().expect("a prefix")),
        accept: true,
        backup: true,
    };
    let mut sim = connected(AddressPolicy {
        join_rules: vec![backup],
        ..AddressPolicy::default()
    });
    let (plain, marked) = (sim.join(0, 1), sim.join(0, 2));
    sim.run(|sim| sim.clients[0].subflows.iter().all(|s| s.open()));
    let asked = |sim: &Sim, at: usize| sim.clients[0].subflows[at].server_backup;
    assert!(!asked(&sim, plain) && asked(&sim, marked));
    assert_eq!(carried_by(&mut sim, marked, 300_000).0, 0);
    let net = |text: &str| text.parse().expect("a prefix");
    let now = sim.now;
    let engine = &mut sim.server;
    assert_eq!(engine.set_backup(now, net("192.0.2.0/24"), true), 0);
    assert_eq!(engine.set_backup(now, net("10.48.0.0/16"), false), 1);
    assert_eq!(engine.set_backup(now, net("10.16.0.0/16"), true), 1);
    assert_eq!(engine.set_backup(now, net("10.32.0.0/16"), true), 1);
    sim.settle();
    assert_eq!(sim.server.count(|m| m.mp_prio_tx), 3);
    assert!(asked(&sim, 0) && asked(&sim, plain) && !asked(&sim, marked));
    let (octets, all) = carried_by(&mut sim, marked, 300_000);
    assert_eq!(octets, all);
    // What was said last is for those that join later, too, against the rules.
    let later = [1, 2].map(|path| sim.join(0, path));
    sim.run(|sim| later.iter().all(|&at| sim.clients[0].subflows[at].open()));
    assert!(asked(&sim, later[0]) && !asked(&sim, later[1]));
    end(sim);
}

// RFC 8684 §3.1: with C no subflow joins the initial address and port; others may.
#[test]
fn the_initial_address_can_be_barred() {
    let mut sim = connected(AddressPolicy {
        deny_join_initial: true,
        ..announcing(vec![announce(1, server(1))])
    });
    assert!(sim.clients[0].server_denies_joins);
    let barred = join_to(&mut sim, 1, Family::V4.server(0));
    let welcome = sim.join(0, 1);
    sim.settle();
    assert_eq!(reset_reason(&sim, barred), Some(RST_PROHIBITED));
    assert!(sim.clients[0].subflows[welcome].open());
    end(sim);
    let sim = connected(AddressPolicy::default());
    assert!(!sim.clients[0].server_denies_joins);
    end(sim);
}

// Same subnets in pairs: of four possible joins of two paths the one along the second path is left.
#[test]
fn rules_pair_subnets() {
    let rule = |net: Option<&str>, accept| JoinRule {
        from: net.map(|net| net.parse().expect("a prefix")),
        to: net.map(|net| net.parse().expect("a prefix")),
        accept,
        backup: false,
    };
    let mut sim = connected(AddressPolicy {
        join_rules: vec![rule(Some("10.32.0.0/16"), true), rule(None, false)],
        ..AddressPolicy::default()
    });
    let across = join_to(&mut sim, 1, Family::V4.server(0));
    let back = join_to(&mut sim, 0, Family::V4.server(1));
    let along = sim.join(0, 1);
    sim.settle();
    assert_eq!(reset_reason(&sim, across), Some(RST_PROHIBITED));
    assert_eq!(reset_reason(&sim, back), Some(RST_PROHIBITED));
    assert!(sim.clients[0].subflows[along].open());
    end(sim);
}

// Up to the limit of the service all subflows carry data; the next one is refused for now
// (RFC 8684 §3.6: reason 2).
#[test]
fn thirty_two_subflows_all_carry_data() {
    const SUBFLOWS: usize = 32;
    let mut sim = connected(AddressPolicy {
        subflows_max: Some(SUBFLOWS),
        ..AddressPolicy::default()
    });
    for n in 1..SUBFLOWS {
        sim.join(0, n % 4);
    }
    sim.run(|sim| sim.clients[0].subflows.iter().all(|s| s.open()));
    let one_more = sim.join(0, 1);
    sim.settle();
    assert_eq!(reset_reason(&sim, one_more), Some(RST_NO_RESOURCES));
    let sent = stream(1, 4_000_000);
    sim.clients[0].send(&sent);
    sim.run(|sim| sim.clients[0].received().len() == 4_000_005);
    assert_same(&sim.clients[0].received()[5..], &sent);
    for (at, subflow) in sim.clients[0].subflows[..SUBFLOWS].iter().enumerate() {
        assert!(subflow.received > 0, "nothing came on subflow {at}");
    }
    for subflow in &sim.server.report(1).conns[0].subflows {
        assert!(subflow.bytes_received > 0, "nothing left on {subflow:?}");
    }
    end(sim);
}

// A service's address takes joins to any port, if connections to that service could be joined at all.
#[test]
fn an_address_of_plain_tcp_only_takes_no_joins() {
    for (versions, taken) in [(Versions::default(), true), (Versions::NONE, false)] {
        let mut config = SimConfig::with(ECHO);
        // Its addresses of the other family are nobody else's.
        config.more_services.push(ServiceSetup {
            port: SERVICE_PORT + 1,
            versions,
            checksum: false,
            patience: config.patience,
            congestion: config.congestion,
            ecn: false,
        });
        let mut sim = connected_as(config);
        for port in [SERVICE_PORT + 1, SERVICE_PORT + 2] {
            let at = join_to(&mut sim, 1, Family::V6.server_at(1, port));
            let ends = |state: &State| matches!(state, State::Open | State::Reset(_));
            sim.run(|sim| ends(&sim.clients[0].subflows[at].state));
            match taken {
                true => assert!(sim.clients[0].subflows[at].open()),
                // RFC 8684 §3.6: administratively prohibited.
                false => assert_eq!(reset_reason(&sim, at), Some(3)),
            }
        }
        end(sim);
    }
}

// Joins to another port of an announced address, which nobody listens on.
#[test]
fn an_announced_port_is_joined() {
    let mut sim = connected(announcing(vec![Announce {
        port: Some(SERVICE_PORT + 1),
        ..announce(5, server(0))
    }]));
    sim.settle();
    assert_eq!(sim.clients[0].announced[0].port, Some(SERVICE_PORT + 1));
    let at = join_to(&mut sim, 1, Family::V4.server_at(0, SERVICE_PORT + 1));
    sim.run(|sim| sim.clients[0].subflows[at].open());
    sim.settle();
    assert_eq!(sim.clients[0].subflows[at].server_id, 5);
    assert_eq!(sim.server.count(|m| m.mp_join_port_syn_rx), 1);
    assert_eq!(sim.server.count(|m| m.mp_join_port_ack_rx), 1);
    end(sim);
}
