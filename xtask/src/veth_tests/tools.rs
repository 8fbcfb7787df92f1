//! Other people's load generators through the proxy: none may report an error.

use std::time::Duration;

use serde_json::Value;

use super::Case;
use super::lab::{Client, IPERF, IPERF_BACKEND, Lab, WEB};
use crate::process::{Cmd, Process, until};
use crate::topology::{Family, server_address};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("wrk", |lab| {
            wrk(lab, &[])?;
            lab.expect_mptcp(1)
        }),
        Case::new("wrk_connection_close", |lab| {
            wrk(lab, &["-H", "Connection: close"])?;
            lab.expect_mptcp(0)
        }),
        Case::new("ab_keepalive", |lab| {
            let text = tool(lab, "ab")
                .args(["-q", "-k", "-n", "20000", "-c", "32"])
                .arg(lab.url(Family::V4, WEB, "small"))
                .run()?;
            expect_number(&text, "Complete requests:", 20_000)?;
            expect_number(&text, "Failed requests:", 0)?;
            lab.expect_mptcp(1)
        }),
        Case::new("h2load_http1", |lab| {
            let text = tool(lab, "h2load")
                .args(["--h1", "-n", "20000", "-c", "32", "-t", "1"])
                .arg(lab.url(Family::V4, WEB, "small"))
                .run()?;
            if !text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout") {
                return Err(format!("h2load reports:\n{text}"));
            }
            lab.expect_mptcp(1)
        }),
        Case::new("iperf3_to_the_server", |lab| iperf3(lab, &[])),
        Case::new("iperf3_from_the_server", |lab| iperf3(lab, &["-R"])),
    ]
}

fn tool(lab: &Lab, program: &str) -> Cmd {
    lab.client(Client::Mptcp, program)
        .limit(Duration::from_secs(50))
}

fn wrk(lab: &Lab, options: &[&str]) -> Result<(), String> {
    let text = tool(lab, "wrk")
        .args(["-t", "1", "-c", "32", "-d", "3s"])
        .args(options)
        .arg(lab.url(Family::V4, WEB, "small"))
        .run()?;
    // wrk prints these lines only when there was something to tell.
    for sign in ["Socket errors", "Non-2xx"] {
        if text.contains(sign) {
            return Err(format!("wrk reports {sign}:\n{text}"));
        }
    }
    at_least(requests_before(&text, " requests in "), 100, &text)
}

pub(super) fn iperf3(lab: &mut Lab, options: &[&str]) -> Result<(), String> {
    let _server = iperf3_server(lab)?;
    let text = tool(lab, "iperf3")
        .args(["-J", "-t", "3", "-p", &IPERF.to_string(), "-c"])
        .arg(server_address(Family::V4, 1).to_string())
        .args(options)
        .run()?;
    let report: Value =
        serde_json::from_str(&text).map_err(|error| format!("iperf3 printed no JSON: {error}"))?;
    if let Some(error) = report.get("error") {
        return Err(format!("iperf3 reports {error}"));
    }
    let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
    at_least(Some(received), 1 << 20, "bytes received")?;
    lab.expect_mptcp(1)
}

fn iperf3_server(lab: &Lab) -> Result<Process, String> {
    let (address, port) = IPERF_BACKEND
        .split_once(':')
        .ok_or("the backend's address has a port")?;
    let mut server = lab
        .topology
        .server
        .cmd("iperf3")
        .args(["-s", "-B", address, "-p", port])
        .spawn()?;
    until(
        Duration::from_secs(5),
        "the iperf3 server to listen",
        || {
            if let Some(status) = server.poll()? {
                return Err(format!("iperf3 -s ended ({status}): {}", server.stderr()));
            }
            let sockets = lab.topology.server.cmd("ss").args(["-Hltn"]).run()?;
            Ok(sockets.contains(IPERF_BACKEND))
        },
    )?;
    Ok(server)
}

/// The number in front of a phrase.
fn requests_before(text: &str, phrase: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.split_once(phrase))
        .and_then(|(number, _)| number.trim().parse().ok())
}

fn at_least(value: Option<u64>, least: u64, text: &str) -> Result<(), String> {
    match value {
        Some(value) if value >= least => Ok(()),
        _ => Err(format!("{value:?} is less than {least}:\n{text}")),
    }
}

/// The number after a label at the beginning of a line.
fn expect_number(text: &str, label: &str, wanted: u64) -> Result<(), String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(label))
        .and_then(|rest| rest.trim().parse::<u64>().ok());
    if value == Some(wanted) {
        Ok(())
    } else {
        Err(format!("`{label}` is {value:?}, not {wanted}:\n{text}"))
    }
}
