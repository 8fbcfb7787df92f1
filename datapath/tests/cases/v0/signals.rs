//! Addresses and priorities in version 0 (RFC 6824 §3.3.8, §3.4).

use super::{Pen, client, config, connected, end};
use crate::model::apps::ECHO;
use crate::model::client::ClientConfig;
use crate::model::sim::{Family, SERVICE_PORT, Sim, SimConfig};
use mpx_datapath::engine::{AddressPolicy, Announce};
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::{AddAddr, AddAddrForm};
use std::net::IpAddr;

fn announcing(announce: Vec<Announce>) -> SimConfig {
    SimConfig {
        addresses: AddressPolicy {
            announce,
            ..AddressPolicy::default()
        },
        ..config(ECHO)
    }
}

fn announce(id: u8, address: IpAddr, port: Option<u16>) -> Announce {
    Announce {
        id,
        address,
        port,
        local: None,
        clients: None,
    }
}

// RFC 6824 §3.4.1: without HMAC and never echoed; sent three times in all, but not again once a join
// shows that it arrived. With and without port, IPv4 and IPv6: 8, 10, 20 and 22 octets.
#[test]
fn addresses_are_announced_without_hmac_until_they_are_joined() {
    let v6 = |n| Family::V6.host(n, 2);
    let mut sim = connected(
        announcing(vec![
            announce(1, Family::V4.host(1, 2), None),
            announce(2, Family::V4.host(2, 2), Some(SERVICE_PORT + 1)),
            announce(3, v6(1), None),
            announce(4, v6(2), Some(443)),
        ]),
        client(),
    );
    sim.run(|sim| sim.clients[0].announced.len() == 4);
    let joined = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[joined].open());
    assert_eq!(sim.clients[0].subflows[joined].server_id, 1);
    sim.run_for(Duration::from_secs(60));
    let told = |id| {
        let announced = sim.clients[0].announced.iter();
        let ports: Vec<_> = announced
            .filter(|a| a.address_id == id)
            .map(|a| a.port)
            .collect();
        (ports.len(), ports[0])
    };
    assert_eq!(told(1), (1, None));
    assert_eq!(told(2), (3, Some(SERVICE_PORT + 1)));
    assert_eq!(told(3), (3, None));
    assert_eq!(told(4), (3, Some(443)));
    // Nobody was expected to echo them.
    assert_eq!(sim.server.count(|m| m.add_addr_unechoed), 0);
    end(sim);
}

// RFC 6824 §3.4: what the client announces is kept and not echoed; what it removes goes once it no
// longer answers; what we withdraw is said.
#[test]
fn addresses_are_learnt_and_removed() {
    let mut sim = connected(
        announcing(vec![announce(9, Family::V4.host(2, 2), None)]),
        client(),
    );
    for (id, address) in [(7, Family::V4.host(3, 9)), (8, Family::V6.host(3, 9))] {
        sim.clients[0].advertise(0, id, address);
        sim.settle();
    }
    assert_eq!(sim.server.count(|m| m.add_addr), 2);
    assert_eq!(sim.server.count(|m| m.add_addr_drop + m.echo_add_tx), 0);
    // What a form of version 1 says means nothing here.
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].open());
    sim.net.paths[1].cut = true;
    sim.clients[0].withdraw(0, at as u8);
    sim.run(|sim| sim.server.count(|m| m.rm_subflow) == 1);
    assert_eq!(sim.server.report(1).conns[0].subflows.len(), 1);
    sim.clients[0].reset(at);
    let now = sim.now;
    assert_eq!(sim.server.withdraw(now, Family::V4.host(2, 2)), Ok(1));
    sim.settle();
    assert_eq!(sim.clients[0].removed, [9]);
    end(sim);
}

// RFC 8684 §3.4.1, RFC 6824 §3.4.1: the forms of the other version mean nothing to a connection.
#[test]
fn forms_of_the_other_version_mean_nothing() {
    let mut pen = Pen::opened(false);
    pen.script.answers();
    for form in [AddAddrForm::Echo, AddAddrForm::Signed(1), AddAddrForm::Bare] {
        let mut options = pen.data_ack();
        options.mptcp.add_addr = Some(AddAddr {
            address_id: 5,
            address: "192.0.2.9".parse().expect("an address"),
            port: None,
            form,
        });
        pen.send(0, options, &[]);
    }
    let metrics = &pen.script.engine.metrics;
    assert_eq!(metrics.add_addr, 1);
    assert_eq!(metrics.echo_add + metrics.add_addr_hmac_failure, 0);

    // Version 1 in return: no ADD_ADDR without an HMAC, and MP_PRIO about other subflows is none.
    let mut sim = connected(config(ECHO), ClientConfig::new(Family::V4.server(0)));
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].open());
    sim.clients[0].subflows[0].signals.add_addr = Some(AddAddr {
        address_id: 5,
        address: Family::V4.host(3, 9),
        port: None,
        form: AddAddrForm::Bare,
    });
    sim.clients[0].prioritise_address(0, at as u8, true);
    sim.settle();
    assert_eq!(sim.server.count(|m| m.add_addr + m.mp_prio_rx), 0);
    assert!(
        sim.server.report(1).conns[0]
            .subflows
            .iter()
            .all(|s| !s.backup)
    );
    end(sim);
}

// RFC 6824 §3.3.8: about the subflow that carries it, or about all from the address it names; ours is
// about its own.
#[test]
fn priorities_of_one_subflow_and_of_an_address() {
    let mut sim = connected(config(ECHO), client());
    let joined = [sim.join(0, 1), sim.join(0, 2)];
    sim.run(|sim| sim.clients[0].subflows.iter().all(|s| s.open()));
    let backups = |sim: &Sim| {
        let mut subflows = sim.server.report(1).conns[0].subflows.clone();
        subflows.sort_by_key(|s| s.remote_id);
        let backups: Vec<bool> = subflows.iter().map(|s| s.backup).collect();
        backups
    };
    sim.clients[0].prioritise_address(0, joined[0] as u8, true);
    sim.settle();
    assert_eq!(backups(&sim), [false, true, false]);
    sim.clients[0].prioritise_address(joined[1], 0, true);
    sim.settle();
    assert_eq!(backups(&sim), [true, true, false]);
    sim.clients[0].prioritise(0, false);
    // An address that nothing comes from.
    sim.clients[0].prioritise_address(joined[1], 200, true);
    sim.settle();
    assert_eq!(backups(&sim), [false, true, false]);
    sim.clients[0].prioritise(joined[0], false);
    sim.settle();
    assert_eq!(backups(&sim), [false, false, false]);
    assert_eq!(sim.server.count(|m| m.mp_prio_rx), 5);
    let now = sim.now;
    let net = "10.32.0.0/16".parse().expect("a prefix");
    assert_eq!(sim.server.set_backup(now, net, true), 1);
    sim.settle();
    assert!(sim.clients[0].subflows[joined[0]].server_backup);
    end(sim);
}
