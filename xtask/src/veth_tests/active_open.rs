//! Subflows that the server opens, to an endpoint where the client's kernel listens.

use std::time::Duration;

use super::Case;
use super::addresses::{
    at_least, carried, expect, only_announced, slow_download, wait_for_counter,
};
use super::faults::succeed;
use super::lab::{Client, Lab, WEB};
use crate::topology::Family;

/// Where the client listens for joins.
const PORT: u16 = 7000;
/// A path that carried more than this carried data.
const USED: u64 = 500_000;
/// One after the other: their flows have homes at either of two workers.
const DOWNLOADS: u64 = 8;

pub(super) fn cases() -> Vec<Case> {
    let opening =
        |case: Case| case.configured(|config| config.services[0].keys += "open_subflows = 1\n");
    let of_family =
        |name: &str, family| opening(Case::new(name, move |lab| server_opens(lab, family)));
    let workers = Case::new("server_opens_at_two_workers", |lab: &mut Lab| {
        listen(lab, Family::V4)?;
        for _ in 0..DOWNLOADS {
            lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
        }
        // Linux announces once, and what a busy machine loses is not announced again in time.
        let told = lab.mpxd()?.status()?.counter("AddAddr")?;
        at_least("announcements that came", told, DOWNLOADS / 2)?;
        counted(lab, told)
    });
    [
        of_family("server_opens_ipv4", Family::V4),
        of_family("server_opens_ipv6", Family::V6),
        opening(Case::new("server_opens_and_is_shown", is_shown)),
        opening(Case::new("server_is_refused", is_refused)),
        Case::new("server_opens_nothing_by_default", |lab: &mut Lab| {
            listen(lab, Family::V4)?;
            lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
            let counters = lab.client_counters()?;
            expect("joins", counters.get("MPTcpExtMPJoinSynRx")?, 0)
        }),
        workers.queues(2).configured(|config| {
            config.keys += "workers = 2\n";
            config.services[0].keys += "open_subflows = 1\n";
        }),
    ]
    .into_iter()
    .map(|case| case.paths(2).mpxd_only())
    .collect()
}

/// The client's only endpoint: its address on the second path, with a port.
fn listen(lab: &Lab, family: Family) -> Result<(), String> {
    only_announced(lab)?;
    let address = match family {
        Family::V4 => "10.9.2.1",
        Family::V6 => {
            // Linux announces no IPv6 address with a port beside timestamps: it pads those to 12 octets.
            let off = [("net/ipv4/tcp_timestamps", "0")];
            lab.topology.client.sysctl(&off)?;
            "fd00:9:2::1"
        }
    };
    let endpoint = format!("mptcp endpoint add {address} dev c2 id 7 signal port {PORT}\n");
    lab.topology.client.ip(&endpoint)
}

fn server_opens(lab: &mut Lab, family: Family) -> Result<(), String> {
    listen(lab, family)?;
    let carried = carried(lab, |lab| lab.download(Client::Mptcp, family, WEB, "64m"))?;
    at_least("octets on the path that was announced", carried[1], USED)?;
    counted(lab, 1)
}

/// Both sides count so many joins of ours, and nothing that went wrong.
fn counted(lab: &mut Lab, joins: u64) -> Result<(), String> {
    let kernel = lab.client_counters()?;
    let status = lab.mpxd()?.status()?;
    for (name, wanted) in [
        ("MPJoinSynRx", joins),
        ("MPJoinAckRx", joins),
        ("MPJoinPortSynRx", joins),
        ("MPJoinAckHMacFailure", 0),
        ("MPJoinNoTokenFound", 0),
    ] {
        let value = kernel.get(&format!("MPTcpExt{name}"))?;
        expect(&format!("the client's {name}"), value, wanted)?;
    }
    for name in ["MPJoinSynTx", "MPJoinSynAckRx", "MPJoinPortSynAckRx"] {
        expect(name, status.counter(name)?, joins)?;
    }
    expect("MPJoinTimeouts", status.counter("MPJoinTimeouts")?, 0)
}

/// `mpxd conns` shows it for what it is.
fn is_shown(lab: &mut Lab) -> Result<(), String> {
    listen(lab, Family::V4)?;
    let curl = slow_download(lab)?;
    wait_for_counter(lab, "MPJoinSynAckRx", 1)?;
    let connections = lab.mpxd()?.connections()?;
    let subflows: Vec<_> = connections
        .iter()
        .flat_map(|c| c["subflows"].as_array().cloned().unwrap_or_default())
        .filter(|s| s["opened_here"] == true)
        .collect();
    let [subflow] = &subflows[..] else {
        return Err(format!("not one subflow that mpxd opened: {connections:?}"));
    };
    let wanted = format!("10.9.2.1:{PORT}");
    let from_second = |local: &str| local.starts_with("10.9.2.2:");
    if subflow["remote"] != wanted || !subflow["local"].as_str().is_some_and(from_second) {
        return Err(format!("it does not go to {wanted}: {subflow}"));
    }
    succeed(curl, Duration::from_secs(20))?;
    lab.check_fetched("64m")
}

/// Nobody listens where the client says: the download goes on, and no more is tried.
fn is_refused(lab: &mut Lab) -> Result<(), String> {
    only_announced(lab)?;
    let client = &lab.topology.client;
    client.ip("mptcp endpoint add 10.9.2.1 dev c2 id 7 signal\n")?;
    lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
    let status = lab.mpxd()?.status()?;
    expect("MPJoinSynTx", status.counter("MPJoinSynTx")?, 1)?;
    expect("MPJoinSynAckRx", status.counter("MPJoinSynAckRx")?, 0)?;
    expect("MPJoinTimeouts", status.counter("MPJoinTimeouts")?, 0)
}
