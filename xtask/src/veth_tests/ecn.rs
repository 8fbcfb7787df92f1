//! Congestion marks (RFC 3168) between the server and the client's kernel: from a queue on the way,
//! and by chance from the client's own packet filter, before its stack counts what came and after it
//! has sent.

use super::Case;
use super::lab::{Client, Lab, WEB};
use crate::link::Side;
use crate::topology::Family;
use serde_json::Value;

const FILE: &str = "64m";
/// It has room for several times what a window holds that heeds the marks.
const QUEUE: &str = "rate=200mbit delay=5ms queue=2mb ecn=100kb";
/// One in so many ECT packets is marked: what comes are segments, what leaves the client's stack is
/// cut into dozens of them behind the filter.
const ONE_IN_DOWN: u32 = 200;
const ONE_IN_UP: u32 = 20;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, client, family, subflows) in [
        ("plain_tcp", Client::Tcp, Family::V4, 1),
        ("mptcp", Client::Mptcp, Family::V4, 2),
        ("ipv6", Client::Mptcp, Family::V6, 2),
    ] {
        cases.push(Case::new(format!("ecn_{name}"), move |lab| {
            marked_both_ways(lab, client, family, subflows)
        }));
    }
    cases.push(
        Case::new("ecn_queue_that_marks", queue_that_marks)
            .paths(1)
            .over(QUEUE),
    );
    cases.push(
        Case::new("ecn_refused", |lab| {
            prepare(lab)?;
            lab.download(Client::Mptcp, Family::V4, WEB, "8m")?;
            match (marked(lab)?, lab.mpxd()?.status()?.counter("EcnSetup")?) {
                ((0, 0), 0) => Ok(()),
                other => Err(format!("a service without ECN: {other:?}")),
            }
        })
        .configured(|config| {
            for service in &mut config.services {
                service.keys += "ecn = false\n";
            }
        }),
    );
    cases.into_iter().map(Case::mpxd_only).collect()
}

fn marked_both_ways(
    lab: &mut Lab,
    client: Client,
    family: Family,
    subflows: u64,
) -> Result<(), String> {
    prepare(lab)?;
    lab.download(client, family, WEB, FILE)?;
    let (down, _) = marked(lab)?;
    let status = lab.mpxd()?.status()?;
    let falls = status.counter("EcnWindowFalls")?;
    let again = status.counter("RetransSegs")?;
    let probes = status.counter("TCPLossProbes")?;
    let counters = lab.client_counters()?;
    let seen = counters.get("IpExtInCEPkts")? + counters.get("Ip6InCEPkts")?;
    if down < 20 || seen != down {
        return Err(format!(
            "{down} segments were marked, the client saw {seen}"
        ));
    }
    // Marks of one window make it fall once.
    if !(5..=down).contains(&falls) {
        return Err(format!("{down} marks made the window fall {falls} times"));
    }
    // A busy machine may answer too late for a tail loss probe, which sends a segment again.
    if again > probes || status.counter("TCPFastRecoveries")? > 0 {
        return Err(format!("{again} segments were sent again, none was lost"));
    }
    let setup = status.counter("EcnSetup")?;
    if setup != subflows {
        return Err(format!("{setup} of {subflows} subflows agreed to ECN"));
    }

    lab.upload(client, family, WEB, FILE)?;
    let (_, up) = marked(lab)?;
    let seen = lab.mpxd()?.status()?.counter("InCEPkts")?;
    // The client's kernel counts what was delivered under an echo.
    let echoed = lab.client_counters()?.get("TcpExtTCPDeliveredCE")?;
    if up < 5 || seen < up || echoed == 0 {
        return Err(format!(
            "{up} packets were marked, mpxd saw {seen} segments, its echoes covered {echoed}"
        ));
    }
    Ok(())
}

/// Neither side overflows the queue, and both see every mark.
fn queue_that_marks(lab: &mut Lab) -> Result<(), String> {
    ask(lab)?;
    lab.download(Client::Mptcp, Family::V4, WEB, "8m")?;
    lab.upload(Client::Mptcp, Family::V4, WEB, "8m")?;
    let report = lab.links[0].report()?;
    let mpxd = lab.mpxd()?.status()?;
    let client = lab.client_counters()?;
    for (side, seen) in [
        (Side::Down, client.get("IpExtInCEPkts")?),
        (Side::Up, mpxd.counter("InCEPkts")?),
    ] {
        let marked = report.count(side, "marked")?;
        let dropped = report.count(side, "queue_full")?;
        if marked == 0 || seen != marked || dropped > 0 {
            return Err(format!(
                "{marked} were marked, {seen} seen, {dropped} dropped ({side:?})"
            ));
        }
    }
    match mpxd.counter("EcnWindowFalls")? {
        0 => Err("the window never fell".to_owned()),
        _ => Ok(()),
    }
}

fn ask(lab: &Lab) -> Result<(), String> {
    lab.topology.client.sysctl(&[("net/ipv4/tcp_ecn", "1")])
}

/// Lets the client ask for ECN, and marks.
fn prepare(lab: &Lab) -> Result<(), String> {
    ask(lab)?;
    let mut rules =
        String::from("table netdev marks {\n  counter marked_down {}\n  counter marked_up {}\n");
    for path in lab.topology.paths() {
        for (hook, counter, one_in) in [
            ("ingress", "marked_down", ONE_IN_DOWN),
            ("egress", "marked_up", ONE_IN_UP),
        ] {
            rules += &format!(
                "  chain {counter}_{path} {{\n    \
                 type filter hook {hook} device \"c{path}\" priority 0\n"
            );
            for ip in ["ip", "ip6"] {
                rules += &format!(
                    "    {ip} ecn ect0 numgen random mod {one_in} 0 {ip} ecn set ce \
                     counter name {counter}\n"
                );
            }
            rules += "  }\n";
        }
    }
    let nft = lab.topology.client.cmd("nft").args(["-f", "-"]);
    nft.input(rules + "}\n").run().map(drop)
}

/// Packets that were marked on their way to the client, and from it.
fn marked(lab: &Lab) -> Result<(u64, u64), String> {
    let nft = lab.topology.client.cmd("nft");
    let text = nft.args(["-j", "list", "counters", "netdev"]).run()?;
    let json: Value =
        serde_json::from_str(&text).map_err(|error| format!("nft printed no JSON: {error}"))?;
    let packets = |name: &str| {
        json["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|object| object["counter"]["name"] == name)
            .and_then(|object| object["counter"]["packets"].as_u64())
            .ok_or_else(|| format!("nft has no counter {name}"))
    };
    Ok((packets("marked_down")?, packets("marked_up")?))
}
