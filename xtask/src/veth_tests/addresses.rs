//! Addresses announced and removed, and priorities, with the kernel's path manager at the other end.

use std::thread::sleep;
use std::time::Duration;

use super::Case;
use super::faults::{succeed, wait_for_bytes};
use super::lab::{Client, Lab, PROXIED, WEB};
use crate::process::until;
use crate::server::Config;
use crate::topology::Family;

const MIB: u64 = 1 << 20;
/// A path that carried more than this carried data, and one that carried less only signals.
const USED: u64 = 500_000;
/// Where it matters who carries what: no path alone is enough for a client that takes all that comes, and
/// what leaves one shows on the other.
const NARROW: &str = "rate=60mbit delay=2ms queue=50ms";

pub(super) fn cases() -> Vec<Case> {
    let ours = |name: &str, family, port, configure: fn(&mut Config)| {
        let body = move |lab: &mut Lab| our_address_is_joined(lab, family, port);
        Case::new(format!("our_add_addr_{name}"), body).configured(configure)
    };
    [
        ours("ipv4", Family::V4, false, |config| {
            announce(config, "address = \"10.9.2.2\"");
        }),
        ours("ipv6", Family::V6, false, |config| {
            announce(config, "address = \"fd00:9:2::2\"");
        }),
        ours("ipv4_with_port", Family::V4, true, |config| {
            announce(config, &format!("address = \"10.9.2.2\"\nport = {PROXIED}"));
        }),
        ours("ipv6_with_port", Family::V6, true, |config| {
            announce(
                config,
                &format!("address = \"fd00:9:2::2\"\nport = {PROXIED}"),
            );
        }),
        Case::new("our_add_addr_is_only_for_some", |lab| {
            only_announced(lab)?;
            lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
            let told = lab.mpxd()?.status()?.counter("AddAddrTx")?;
            expect("ADD_ADDR sent to a client outside of `clients`", told, 0)
        })
        .configured(|config| {
            announce(config, "address = \"10.9.2.2\"\nclients = \"10.9.3.0/24\"");
        }),
        Case::new("client_signals_and_removes", client_signals_and_removes),
        Case::new("client_removes_a_subflow", client_removes_a_subflow),
        Case::new("client_changes_priorities", client_changes_priorities)
            .over(NARROW)
            .limit_s(120),
        Case::new("client_fullmesh", |lab| {
            only_announced(lab)?;
            let client = &lab.topology.client;
            client.ip("mptcp endpoint add 10.9.2.1 dev c2 id 7 subflow fullmesh\n")?;
            let carried = carried(lab, |lab| {
                lab.download(Client::Mptcp, Family::V4, WEB, "64m")
            })?;
            at_least("octets on the second path", carried[1], USED)?;
            lab.expect_mptcp(1)?;
            same_counts(lab)
        })
        .configured(|config| announce(config, "address = \"10.9.2.2\"")),
        Case::new("operator_changes_addresses", operator_changes_addresses)
            .over(NARROW)
            .limit_s(120),
        Case::new("initial_address_is_joined_again", initial_address_again).configured(|config| {
            config.services[0].keys += "user_timeout_ms = 2000\n";
            announce(config, "address = \"10.9.2.2\"");
        }),
        Case::new("joins_to_the_initial_address_barred", |lab| {
            lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
            let status = lab.mpxd()?.status()?;
            // The kernel obeys C: it does not even try.
            expect("joins", status.counter("MPJoinSynRx")?, 0)
        })
        .configured(|config| config.services[0].keys += "deny_join_initial = true\n"),
        Case::new("joins_refused_by_rule", |lab| {
            lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
            let status = lab.mpxd()?.status()?;
            at_least("MPJoinRejected", status.counter("MPJoinRejected")?, 1)?;
            expect("joins", status.counter("MPJoinAckRx")?, 0)
        })
        .configured(|config| {
            config.services[0].keys +=
                "[[service.join_rule]]\nfrom = \"10.9.2.0/24\"\naccept = false\n";
        }),
        Case::new("joins_made_backups_by_rule", |lab| {
            let carried = carried(lab, |lab| {
                lab.download(Client::Mptcp, Family::V4, WEB, "64m")
            })?;
            lab.expect_mptcp(1)?;
            at_most("octets on a backup", carried[1], USED)
        })
        .configured(|config| {
            config.services[0].keys +=
                "[[service.join_rule]]\nfrom = \"10.9.2.0/24\"\nbackup = true\n";
        }),
    ]
    .into_iter()
    .map(|case| case.paths(2).mpxd_only())
    .collect()
}

fn announce(config: &mut Config, keys: &str) {
    config.services[0].keys += &format!("[[service.announce]]\n{keys}\n");
}

/// The client opens subflows to what is announced and to nothing else.
pub(super) fn only_announced(lab: &Lab) -> Result<(), String> {
    lab.topology.client.ip("mptcp endpoint flush\n")
}

fn our_address_is_joined(lab: &mut Lab, family: Family, port: bool) -> Result<(), String> {
    only_announced(lab)?;
    let carried = carried(lab, |lab| lab.download(Client::Mptcp, family, WEB, "64m"))?;
    at_least("octets on the path that was announced", carried[1], USED)?;
    lab.expect_mptcp(1)?;
    same_counts(lab)?;
    let status = lab.mpxd()?.status()?;
    // More if the client's kernel took its time.
    at_least("ADD_ADDR echoed", status.counter("EchoAdd")?, 1)?;
    let joins = status.counter("MPJoinPortSynRx")?;
    expect("joins to another port", joins, port.into())
}

/// `ip mptcp endpoint … signal` reaches us and is echoed; its removal reaches us, too.
fn client_signals_and_removes(lab: &mut Lab) -> Result<(), String> {
    only_announced(lab)?;
    let client = &lab.topology.client;
    client.ip("mptcp endpoint add 10.9.2.1 dev c2 id 7 signal\n")?;
    let mut curl = slow_download(lab)?;
    wait_for_bytes(lab, &mut curl, 8 * MIB)?;
    wait_for_counter(lab, "EchoAddTx", 1)?;
    lab.topology.client.ip("mptcp endpoint del id 7\n")?;
    wait_for_counter(lab, "RmAddr", 1)?;
    succeed(curl, Duration::from_secs(20))?;
    lab.check_fetched("64m")?;
    same_counts(lab)?;
    let status = lab.mpxd()?.status()?;
    expect("ADD_ADDR received", status.counter("AddAddr")?, 1)
}

/// The client takes back an address under a running subflow: the other one brings the rest.
fn client_removes_a_subflow(lab: &mut Lab) -> Result<(), String> {
    only_announced(lab)?;
    let client = &lab.topology.client;
    client.ip("mptcp endpoint add 10.9.2.1 dev c2 id 7 subflow\n")?;
    let mut curl = slow_download(lab)?;
    wait_for_bytes(lab, &mut curl, 8 * MIB)?;
    lab.topology.client.ip("mptcp endpoint del id 7\n")?;
    wait_for_counter(lab, "RmAddr", 1)?;
    succeed(curl, Duration::from_secs(20))?;
    lab.check_fetched("64m")?;
    lab.expect_mptcp(1)?;
    same_counts(lab)
}

/// `ip mptcp endpoint change … backup` in a download moves the traffic to the other path, and back.
fn client_changes_priorities(lab: &mut Lab) -> Result<(), String> {
    only_announced(lab)?;
    let client = &lab.topology.client;
    client.ip("mptcp endpoint add 10.9.2.1 dev c2 id 7 subflow\n")?;
    let mut curl = lab.fetch(Client::Mptcp, Family::V4, WEB, "256m").spawn()?;
    wait_for_bytes(lab, &mut curl, 8 * MIB)?;
    let mut seen = Vec::new();
    for (time, flag) in ["", "backup", "nobackup"].into_iter().enumerate() {
        if time > 0 {
            let change = format!("mptcp endpoint change id 7 {flag}\n");
            lab.topology.client.ip(&change)?;
            wait_for_counter(lab, "MPPrioRx", time as u64)?;
        }
        seen.push(carried_in_a_second(lab)?);
    }
    succeed(curl, Duration::from_secs(60))?;
    lab.check_fetched("256m")?;
    at_least("octets on the second path at first", seen[0][1], USED)?;
    at_most("octets on the second path as a backup", seen[1][1], USED)?;
    at_least("octets on the first path then", seen[1][0], USED)?;
    at_least("octets on the second path afterwards", seen[2][1], USED)?;
    same_counts(lab)
}

/// `mpxd address …` in a download: the client joins what is announced, obeys priorities and leaves what
/// is withdrawn.
fn operator_changes_addresses(lab: &mut Lab) -> Result<(), String> {
    only_announced(lab)?;
    let mut curl = lab.fetch(Client::Mptcp, Family::V4, WEB, "256m").spawn()?;
    wait_for_bytes(lab, &mut curl, 8 * MIB)?;
    let announce = ["announce", "10.9.2.2", "--service", "web"];
    let said = lab.mpxd()?.address(&announce)?;
    if said.trim() != "1 connection concerned" {
        return Err(format!("`mpxd address` said {said:?}"));
    }
    wait_for_counter(lab, "MPJoinAckRx", 1)?;
    for (prios, change) in [(1, "backup"), (2, "regular")] {
        lab.mpxd()?.address(&[change, "10.9.2.2"])?;
        until(Duration::from_secs(5), "the client to take MP_PRIO", || {
            Ok(lab.client_counters()?.get("MPTcpExtMPPrioRx")? == prios)
        })?;
        let carried = carried_in_a_second(lab)?;
        match change {
            "backup" => at_most("octets on the second path as a backup", carried[1], USED)?,
            _ => at_least("octets on the second path afterwards", carried[1], USED)?,
        }
    }
    lab.mpxd()?.address(&["withdraw", "10.9.2.2"])?;
    until(Duration::from_secs(5), "the client to forget it", || {
        Ok(lab.client_counters()?.get("MPTcpExtRmAddr")? == 1)
    })?;
    let again = lab.mpxd()?.address(&["withdraw", "10.9.2.2"]);
    if !again.is_err_and(|error| error.contains("10.9.2.2 is not announced")) {
        return Err("what is withdrawn can be withdrawn once more".to_owned());
    }
    succeed(curl, Duration::from_secs(60))?;
    lab.check_fetched("256m")?;
    same_counts(lab)
}

/// The initial subflow is given up, as nothing comes from there: once its path works again, the client is
/// told of the address anew, by its ID 0, and comes back.
fn initial_address_again(lab: &mut Lab) -> Result<(), String> {
    only_announced(lab)?;
    let mut curl = lab
        .fetch(Client::Mptcp, Family::V4, WEB, "256m")
        .args(["--limit-rate", "20M"])
        .spawn()?;
    wait_for_counter(lab, "MPJoinAckRx", 1)?;
    wait_for_bytes(lab, &mut curl, 8 * MIB)?;
    // The client hears on, and so it learns that the subflow is reset.
    let rules = "table netdev cut {\n  chain out {\n    type filter hook egress device \"c1\" \
                 priority 0\n    drop\n  }\n}\n";
    let client = &lab.topology.client;
    client.cmd("nft").args(["-f", "-"]).input(rules).run()?;
    wait_for_counter(lab, "AddAddrAgain", 1)?;
    let restore = ["delete", "table", "netdev", "cut"];
    lab.topology.client.cmd("nft").args(restore).run()?;
    wait_for_counter(lab, "MPJoinAckRx", 2)?;
    let carried = carried(lab, |lab| {
        succeed(curl, Duration::from_secs(40))?;
        lab.check_fetched("256m")
    })?;
    at_least("octets on the first path afterwards", carried[0], 1)?;
    same_counts(lab)
}

pub(super) fn slow_download(lab: &Lab) -> Result<crate::process::Process, String> {
    lab.fetch(Client::Mptcp, Family::V4, WEB, "64m")
        .args(["--limit-rate", "20M"])
        .spawn()
}

/// Octets that the client received on every path meanwhile.
pub(super) fn carried(
    lab: &Lab,
    meanwhile: impl FnOnce(&Lab) -> Result<(), String>,
) -> Result<Vec<u64>, String> {
    let before = lab.octets()?;
    meanwhile(lab)?;
    let after = lab.octets()?;
    let paths = after.iter().zip(&before);
    Ok(paths.map(|(after, before)| after.0 - before.0).collect())
}

/// The same in a second, when what was in the buffers of the paths has come out.
fn carried_in_a_second(lab: &Lab) -> Result<Vec<u64>, String> {
    sleep(Duration::from_millis(500));
    carried(lab, |_| {
        sleep(Duration::from_secs(1));
        Ok(())
    })
}

pub(super) fn wait_for_counter(lab: &mut Lab, name: &str, least: u64) -> Result<(), String> {
    let mpxd = lab.mpxd()?;
    until(
        Duration::from_secs(5),
        &format!("mpxd to count {name} {least} times"),
        || Ok(mpxd.status()?.counter(name)? >= least),
    )
}

/// Both sides count the same of what went between them.
fn same_counts(lab: &mut Lab) -> Result<(), String> {
    let pairs = [
        ("AddAddr", "AddAddrTx"),
        ("AddAddrTx", "AddAddr"),
        ("EchoAdd", "EchoAddTx"),
        ("EchoAddTx", "EchoAdd"),
        ("RmAddr", "RmAddrTx"),
        ("RmAddrTx", "RmAddr"),
        ("MPPrioRx", "MPPrioTx"),
        ("MPPrioTx", "MPPrioRx"),
    ];
    let kernel = lab.client_counters()?;
    let status = lab.mpxd()?.status()?;
    for (ours, theirs) in pairs {
        let (mpxd, client) = (
            status.counter(ours)?,
            kernel.get(&format!("MPTcpExt{theirs}"))?,
        );
        if mpxd != client {
            return Err(format!(
                "mpxd counted {ours} {mpxd} times and the client's kernel {theirs} {client} times"
            ));
        }
    }
    Ok(())
}

pub(super) fn expect(what: &str, value: u64, wanted: u64) -> Result<(), String> {
    match value == wanted {
        true => Ok(()),
        false => Err(format!("{what}: {value}, not {wanted}")),
    }
}

pub(super) fn at_least(what: &str, value: u64, least: u64) -> Result<(), String> {
    match value >= least {
        true => Ok(()),
        false => Err(format!("{what}: {value}, at least {least} were expected")),
    }
}

fn at_most(what: &str, value: u64, most: u64) -> Result<(), String> {
    match value <= most {
        true => Ok(()),
        false => Err(format!("{what}: {value}, at most {most} were expected")),
    }
}
