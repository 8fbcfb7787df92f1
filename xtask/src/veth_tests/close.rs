//! Ends: whose TIME-WAIT it is, and MP_FASTCLOSE both ways.

use std::time::Duration;

use super::Case;
use super::lab::{Client, Lab, STALL, STALL_BACKEND, WEB};
use super::tools::iperf3;
use crate::close_load::{self, First};
use crate::process::until;
use crate::server::{Config, Server};
use crate::topology::{Family, server_socket};

/// More than both ends buffer.
const MUCH: &str = "268435456";
const CONNECTIONS: u64 = 4_000;
const AT_ONCE: u64 = 32;
/// Of services whose subflow FINs wait for the client's, and of such whose don't.
const PASSIVE: u16 = 4001;
const ACTIVE: u16 = 4002;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, first, configure) in [
        (
            "time_wait_is_the_clients_after_its_close",
            First::Client,
            client_first as fn(&mut Config),
        ),
        (
            "time_wait_is_the_clients_after_the_servers_close",
            First::Server,
            server_first,
        ),
    ] {
        let body = move |lab: &mut Lab| whose_time_wait(lab, first);
        cases.push(Case::new(name, body).configured(configure).mpxd_only());
    }
    cases.extend([
        Case::new("fastclose_from_iperf3", |lab| {
            iperf3(lab, &["-R"])?;
            told(lab, "MPTcpExtMPFastcloseTx", "MPTcpExtMPFastcloseRx")?;
            lab.download(Client::Mptcp, Family::V4, WEB, "8m")
        })
        .mpxd_only(),
        Case::new("fastclose_to_a_client_on_abort", |lab| {
            let backend = lab.backend("stall", STALL_BACKEND, 0)?;
            let mut sender = lab
                .peer(Client::Mptcp)?
                .args(["give", "--bytes", MUCH, "--to"])
                .arg(server_socket(Family::V4, 1, STALL).to_string())
                .spawn()?;
            until(Duration::from_secs(5), "the join", || {
                Ok(lab.mpxd()?.counters()?.get("MPTcpExtMPJoinAckRx")? >= 1)
            })?;
            drop(backend);
            told(lab, "MPTcpExtMPFastcloseRx", "MPTcpExtMPFastcloseTx")?;
            // A plain RST on either subflow would leave the client with a connection on the other, or
            // with none and no word of it.
            until(Duration::from_secs(5), "the client to see the end", || {
                Ok(sender.poll()?.is_some())
            })?;
            // ECONNRESET, or EPIPE where the next call meets it.
            if !sender.stderr().contains("cannot send") {
                return Err(format!("the client was told {:?}", sender.stderr()));
            }
            lab.download(Client::Mptcp, Family::V4, WEB, "8m")
        })
        .mpxd_only(),
    ]);
    cases
}

/// With passive closing no subflow goes to TIME-WAIT here, or next to none; without, most do where the
/// server closes first.
fn whose_time_wait(lab: &mut Lab, first: First) -> Result<(), String> {
    let load = |port| match &lab.server {
        Some(Server::Mpxd(mpxd)) => {
            let client = &lab.topology.client;
            close_load::load(client, mpxd, first, port, CONNECTIONS, AT_ONCE)
        }
        _ => Err("this test needs a running mpxd".to_owned()),
    };
    let passive = load(PASSIVE)?;
    if let Some(problem) = passive.problem(CONNECTIONS) {
        return Err(problem);
    }
    let active = load(ACTIVE)?;
    // After its own close a Linux client sends its FIN at once: there it mostly comes before ours anyway.
    if first == First::Server && active.entered < CONNECTIONS / 2 {
        return Err(format!(
            "without passive closing {} of {CONNECTIONS} went to TIME-WAIT",
            active.entered
        ));
    }
    Ok(())
}

fn client_first(config: &mut Config) {
    both(config, First::Client);
}

fn server_first(config: &mut Config) {
    both(config, First::Server);
}

fn both(config: &mut Config, first: First) {
    config.services.extend([
        first.service("passive", PASSIVE, true),
        first.service("active", ACTIVE, false),
    ]);
}

/// The client's kernel and the server count the MP_FASTCLOSE that one of them sent.
fn told(lab: &mut Lab, theirs: &str, ours: &str) -> Result<(), String> {
    let mut counts = (0, 0);
    until(Duration::from_secs(5), "MP_FASTCLOSE to be counted", || {
        counts = (
            lab.client_counters()?.get(theirs)?,
            lab.mpxd()?.counters()?.get(ours)?,
        );
        Ok(counts.0 > 0 && counts.1 > 0)
    })
    .map_err(|error| format!("{error}: client's {theirs} and mpxd's {ours} are {counts:?}"))
}
