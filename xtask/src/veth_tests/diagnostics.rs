//! What `mpxd conns` and `mpxd nstat` say against what `ss` and `nstat` say on the client's side.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::Case;
use super::faults::{hold, hold_with};
use super::lab::{Client, DISCARD, Lab, STALL, STALL_BACKEND, WEB};
use crate::process::until;
use crate::topology::Family;

const MIB: u64 = 1 << 20;
/// Of every connection that lives long enough.
const SUBFLOWS: u64 = 2;

/// Events that both ends see: names here and at the client's kernel.
const EVENTS: &[(&str, &str)] = &[
    ("MPTcpExtMPCapableSYNRX", "MPTcpExtMPCapableSYNTX"),
    ("MpxdMPCapableSYNACKTX", "MPTcpExtMPCapableSYNACKRX"),
    ("MPTcpExtMPCapableACKRX", "MPTcpExtMPCapableSYNACKRX"),
    ("MPTcpExtMPJoinSynRx", "MPTcpExtMPJoinSynTx"),
    ("MpxdMPJoinSynAckTx", "MPTcpExtMPJoinSynAckRx"),
    ("MPTcpExtMPJoinAckRx", "MPTcpExtMPJoinSynAckRx"),
    ("MPTcpExtAddAddr", "MPTcpExtAddAddrTx"),
    ("MPTcpExtAddAddrTx", "MPTcpExtAddAddr"),
    ("MPTcpExtEchoAdd", "MPTcpExtEchoAddTx"),
    ("MPTcpExtEchoAddTx", "MPTcpExtEchoAdd"),
    ("MPTcpExtRmAddr", "MPTcpExtRmAddrTx"),
    ("MPTcpExtRmAddrTx", "MPTcpExtRmAddr"),
    ("MPTcpExtMPPrioRx", "MPTcpExtMPPrioTx"),
    ("MPTcpExtMPPrioTx", "MPTcpExtMPPrioRx"),
    ("MPTcpExtMPFailRx", "MPTcpExtMPFailTx"),
    ("MPTcpExtMPFailTx", "MPTcpExtMPFailRx"),
];
/// What ends all subflows of a connection: each of them has it, and the first that comes may be the last
/// that is heard.
const ENDS: &[(&str, &str)] = &[
    ("MPTcpExtMPFastcloseRx", "MPTcpExtMPFastcloseTx"),
    ("MPTcpExtMPFastcloseTx", "MPTcpExtMPFastcloseRx"),
];
/// Of those, what the run below is to bring about.
const HAPPENED: &[&str] = &[
    "MPTcpExtMPCapableSYNRX",
    "MPTcpExtMPJoinAckRx",
    "MPTcpExtAddAddr",
    "MPTcpExtAddAddrTx",
    "MPTcpExtEchoAdd",
    "MPTcpExtEchoAddTx",
    "MPTcpExtRmAddr",
    "MPTcpExtRmAddrTx",
    "MPTcpExtMPPrioRx",
    "MPTcpExtMPPrioTx",
    "MPTcpExtMPFastcloseRx",
    "MPTcpExtMPFastcloseTx",
];

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("conns_agree_with_ss", |lab| {
            let _giver = hold(lab, DISCARD, 4 * MIB)?;
            let _taker = hold_with(lab, WEB, 0, Some("GET /small HTTP/1.1\r\nHost: lab"))?;
            let mut difference = String::new();
            until(Duration::from_secs(10), "conns and ss to agree", || {
                difference = compare_connections(lab)?;
                Ok(difference.is_empty())
            })
            .map_err(|error| format!("{error}: {difference}"))
        })
        .mpxd_only(),
        Case::new("counters_agree_with_nstat", |lab| {
            counters_are_the_kernels(lab)?;
            mixed_run(lab)?;
            let mut difference = String::new();
            until(Duration::from_secs(10), "both counts to agree", || {
                difference = compare_counters(lab)?;
                Ok(difference.is_empty())
            })
            .map_err(|error| format!("{error}: {difference}"))
        })
        .mpxd_only(),
    ]
}

/// The first thing that two connections with two subflows each look different in from the two ends;
/// empty if there is none.
fn compare_connections(lab: &mut Lab) -> Result<String, String> {
    let client = &lab.topology.client;
    let connections = sockets(&client.cmd("ss").args(["-HOMni"]).run()?);
    let subflows = sockets(&client.cmd("ss").args(["-HOtni"]).run()?);
    let ours = lab.mpxd()?.connections()?;
    if ours.len() != 2 {
        return Ok(format!("mpxd has {} connections", ours.len()));
    }
    for conn in &ours {
        let token = text(conn, "remote_token");
        let Some(theirs) = connections.iter().find(|c| c.is("token", &token)) else {
            return Ok(format!("the client has no token {token}: {conn}"));
        };
        for (here, there) in [
            ("rcv_nxt", "write_seq"),
            ("write_seq", "rcv_nxt"),
            ("snd_una", "rcv_nxt"),
            ("snd_nxt", "rcv_nxt"),
        ] {
            if !theirs.is(there, &text(conn, here)) {
                return Ok(format!(
                    "{here} is not the client's {there}: {conn}, {theirs:?}"
                ));
            }
        }
        let list = conn["subflows"].as_array().map_or(&[][..], |list| list);
        if list.len() != 2 {
            return Ok(format!("mpxd has {} subflows: {conn}", list.len()));
        }
        for subflow in list {
            let (local, remote) = (text(subflow, "local"), text(subflow, "remote"));
            let same = |s: &&Socket| s.local == remote && s.peer == local;
            let Some(theirs) = subflows.iter().find(same) else {
                return Ok(format!("the client has no subflow {remote} to {local}"));
            };
            let wrong = different(conn, subflow, theirs)?;
            if !wrong.is_empty() {
                return Ok(format!("{wrong}: {subflow}, {theirs:?}"));
            }
        }
    }
    Ok(String::new())
}

fn different(conn: &Value, subflow: &Value, theirs: &Socket) -> Result<&'static str, String> {
    let joined = subflow["joined"] == true;
    let number = |key: &str| subflow[key].as_u64().unwrap_or(u64::MAX);
    // As ss puts them: the other end's token first, which the initial subflow does not keep.
    let token = format!(
        "{}(id:{})/{}(id:{})",
        if joined {
            text(conn, "token")
        } else {
            "0000".to_owned()
        },
        number("local_id"),
        text(conn, "remote_token"),
        number("remote_id")
    );
    let flags = theirs.values.get("flags").map_or("", String::as_str);
    let sent = theirs.number("bytes_sent")? - theirs.number("bytes_retrans")?;
    Ok(if subflow["state"] != *theirs.state {
        "another state"
    } else if !theirs.is("token", &token) {
        "other tokens or address ids"
    } else if flags.contains('j') != joined || flags.contains('m') != (subflow["capable"] == true) {
        "another kind"
    } else if !flags.contains('e') || subflow["fully_established"] != true {
        "not fully established at both ends"
    } else if number("bytes_received") != sent {
        "other octets to mpxd"
    } else if number("bytes_sent") != theirs.number("bytes_received")? {
        "other octets from mpxd"
    } else if number("path_mtu_bytes") != theirs.number("pmtu")? {
        "another path MTU"
    } else {
        ""
    })
}

/// A line of `ss -O`.
#[derive(Debug)]
struct Socket {
    state: String,
    local: String,
    peer: String,
    values: BTreeMap<String, String>,
}

impl Socket {
    fn is(&self, name: &str, value: &str) -> bool {
        self.values.get(name).is_some_and(|v| v == value)
    }

    /// Zero if it is not there: ss leaves zeros out.
    fn number(&self, name: &str) -> Result<u64, String> {
        let Some(value) = self.values.get(name) else {
            return Ok(0);
        };
        value
            .parse()
            .map_err(|_| format!("ss says {name}:{value}, which is no number"))
    }
}

fn sockets(text: &str) -> Vec<Socket> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let state = words.next()?.to_owned();
            let (local, peer) = (without_device(words.nth(2)?), words.next()?.to_owned());
            let values = words
                .filter_map(|word| word.split_once(':'))
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
            Some(Socket {
                state,
                local,
                peer,
                values: values.collect(),
            })
        })
        .collect()
}

/// `10.9.2.1%c2:46003` is a socket that its endpoint ties to a device.
fn without_device(address: &str) -> String {
    match (address.split_once('%'), address.rsplit_once(':')) {
        (Some((host, _)), Some((_, port))) => format!("{host}:{port}"),
        _ => address.to_owned(),
    }
}

/// Every counter that the kernel has as well bears the name that `nstat` gives it, and no other does.
fn counters_are_the_kernels(lab: &mut Lab) -> Result<(), String> {
    let kernels = lab.client_counters()?;
    let ours = lab.mpxd()?.counters()?;
    for name in ours.names().filter(|name| !name.starts_with("Xdp")) {
        let Some(own) = name.strip_prefix("Mpxd") else {
            kernels.get(name)?;
            continue;
        };
        let tables = ["Tcp", "TcpExt", "IpExt", "MPTcpExt"];
        if let Some(table) = tables.iter().find(|t| kernels.has(&format!("{t}{own}"))) {
            return Err(format!(
                "{name} is {table}{own} in the kernel; add it to MIBS in control/src/nstat.rs"
            ));
        }
    }
    Ok(())
}

/// Something of everything that both ends count.
fn mixed_run(lab: &mut Lab) -> Result<(), String> {
    lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
    lab.upload(Client::Mptcp, Family::V4, WEB, "8m")?;
    lab.download(Client::Tcp, Family::V4, WEB, "8m")?;
    // A backend that dies with something unread: the proxy aborts. The client takes MP_FASTCLOSE for
    // nothing but a RST unless a DATA_ACK came before it.
    let backend = lab.backend("stall", STALL_BACKEND, 0)?;
    let _sender = hold(lab, STALL, MIB)?;
    expect_count(lab, "MPTcpExtMPJoinAckRx", 3)?;
    drop(backend);
    expect_count(lab, "MPTcpExtMPFastcloseTx", 1)?;
    // Signals on a connection with two subflows.
    let talker = hold(lab, DISCARD, MIB)?;
    expect_count(lab, "MPTcpExtMPJoinAckRx", 4)?;
    let ip = |lab: &Lab, line: &str| lab.topology.client.ip(line);
    ip(lab, "mptcp endpoint change 10.9.2.1 backup\n")?;
    expect_count(lab, "MPTcpExtMPPrioRx", 1)?;
    ip(lab, "mptcp endpoint add 10.9.1.77 id 77 dev c1 signal\n")?;
    expect_count(lab, "MPTcpExtAddAddr", 1)?;
    ip(lab, "mptcp endpoint delete id 77\n")?;
    expect_count(lab, "MPTcpExtRmAddr", 1)?;
    // And ours, with a subflow that the client opens for the first of them.
    let ours = |lab: &mut Lab, change: &[&str]| lab.mpxd()?.address(change).map(drop);
    ours(lab, &["announce", "10.9.2.2", "--service", "discard"])?;
    expect_count(lab, "MPTcpExtMPJoinAckRx", 5)?;
    ours(lab, &["backup", "10.9.1.2"])?;
    expect_count(lab, "MPTcpExtMPPrioTx", 2)?;
    ours(lab, &["regular", "10.9.1.2"])?;
    expect_count(lab, "MPTcpExtMPPrioTx", 4)?;
    ours(lab, &["withdraw", "10.9.2.2"])?;
    expect_count(lab, "MPTcpExtRmAddrTx", 1)?;
    drop(talker);
    // Killed with something unread, a client says MP_FASTCLOSE.
    let reader = hold_with(lab, WEB, 0, Some("GET /8m HTTP/1.1\r\nHost: lab"))?;
    expect_count(lab, "MPTcpExtMPJoinAckRx", 6)?;
    drop(reader);
    expect_count(lab, "MPTcpExtMPFastcloseRx", 1)
}

fn expect_count(lab: &mut Lab, name: &str, least: u64) -> Result<(), String> {
    until(
        Duration::from_secs(5),
        &format!("{name} to be {least}"),
        || Ok(lab.mpxd()?.counters()?.get(name)? >= least),
    )
}

/// The first event that the two ends count differently; empty if there is none.
fn compare_counters(lab: &mut Lab) -> Result<String, String> {
    let ours = lab.mpxd()?.counters()?;
    let theirs = lab.client_counters()?;
    for (here, there) in EVENTS.iter().chain(ENDS) {
        let (here_count, there_count) = (ours.get(here)?, theirs.get(there)?);
        let ends = ENDS.iter().any(|(end, _)| end == here);
        let (received, sent) = match here.ends_with("Rx") {
            true => (here_count, there_count),
            false => (there_count, here_count),
        };
        let agree = match ends {
            true => (received..=received * SUBFLOWS).contains(&sent),
            false => here_count == there_count,
        };
        if !agree {
            return Ok(format!(
                "{here} is {here_count}, the client's {there} {there_count}"
            ));
        }
        if here_count == 0 && HAPPENED.contains(here) {
            return Err(format!("{here} did not happen"));
        }
    }
    // A client whose MP_FASTCLOSE is answered is gone by then.
    let told = ours
        .get("MPTcpExtMPRstTx")?
        .saturating_sub(ours.get("MPTcpExtMPFastcloseRx")?);
    let heard = theirs.get("MPTcpExtMPRstRx")?;
    if told != heard {
        return Ok(format!(
            "MPTcpExtMPRstTx is {told} beside answers to MP_FASTCLOSE, the client's MPTcpExtMPRstRx {heard}"
        ));
    }
    let opened = ours.get("TcpPassiveOpens")? + ours.get("MPTcpExtMPJoinAckRx")?;
    let connected = theirs.get("TcpActiveOpens")?;
    if opened != connected {
        return Ok(format!(
            "{opened} subflows were opened here, {connected} at the client"
        ));
    }
    Ok(String::new())
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or("").to_owned()
}
