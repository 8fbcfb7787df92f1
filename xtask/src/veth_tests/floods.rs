//! Crowds of what anybody can send, held off by the XDP program.

use std::time::Duration;

use super::Case;
use super::faults::succeed;
use super::lab::{Client, ECHO, Lab};
use crate::process::Process;
use crate::project;
use crate::topology::{Family, server_socket};

/// What is let through and what is sent, in a second.
const MAX_PER_S: u64 = 1_500;
const FLOOD_PER_S: u64 = 15_000;
const FLOOD_S: u64 = 4;

pub(super) fn cases() -> Vec<Case> {
    [
        ("syn", "XdpDropCrowdedSyn"),
        ("join", "XdpDropCrowdedSyn"),
        ("ack", "XdpDropCrowdedStray"),
        ("rst", "XdpDropCrowdedStray"),
    ]
    .into_iter()
    .map(|(kind, verdict)| {
        let name = format!("a_crowd_of_{kind}_is_held_off");
        let case = Case::new(name, move |lab| held_off(lab, kind, verdict));
        case.mpxd_only().configured(|config| {
            // What strangers open is forgotten at once.
            config.keys += &format!(
                "[limits]\nmax_syns_per_s = {MAX_PER_S}\nmax_strays_per_s = {MAX_PER_S}\n\
                 syn_cookies_from = 0\n"
            );
        })
    })
    .collect()
}

/// No SYN is lost of a client that was there before, and the worker sees little of the crowd.
fn held_off(lab: &mut Lab, kind: &str, verdict: &str) -> Result<(), String> {
    exchange(lab, 1)?;
    let before = lab.mpxd()?.status()?.counter("RxFrames")?;
    let crowd = flood(lab, kind)?;
    exchange(lab, 40)?;
    succeed(crowd, Duration::from_secs(FLOOD_S + 20))?;
    let status = lab.mpxd()?.status()?;
    let refused = status.xdp(verdict)?;
    let seen = status.counter("RxFrames")? - before;
    // The clients' own are a few hundred.
    let most = MAX_PER_S * (FLOOD_S + 1) + 2_000;
    if refused < FLOOD_PER_S * FLOOD_S / 2 || seen > most {
        return Err(format!(
            "{refused} were refused, {seen} seen of at most {most}"
        ));
    }
    let lost = lab.client_counters()?.get("TcpExtTCPSynRetrans")?;
    match lost {
        0 => lab.expect_mptcp(0),
        _ => Err(format!(
            "a client that is known had to repeat its SYN ({lost} times)"
        )),
    }
}

fn exchange(lab: &Lab, connections: u64) -> Result<(), String> {
    let address = server_socket(Family::V4, 1, ECHO).to_string();
    lab.peer(Client::Mptcp)?
        .args([
            "exchange", "--expect", "echo", "--bytes", "2000", "--to", &address,
        ])
        .args(["--connections", &connections.to_string()])
        .run()
        .map(drop)
}

fn flood(lab: &Lab, kind: &str) -> Result<Process, String> {
    let server = lab.topology.server.link("s1")?;
    let mac = server["address"].as_str().ok_or("s1 has no link address")?;
    lab.topology
        .client
        .cmd(project::release_binary("mpx-bench"))
        .args(["flood", kind, "--interface", "c1", "--target-mac", mac])
        .args(["--target", &server_socket(Family::V4, 1, ECHO).to_string()])
        .args(["--rate", &FLOOD_PER_S.to_string()])
        .args(["--duration", &format!("{FLOOD_S}s")])
        .spawn()
}
