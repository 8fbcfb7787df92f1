//! `cargo xtask flood`: what kernel clients still get done while somebody floods the service, against
//! what they get done beside as many frames of the same size that no protocol takes.
//!
//! Flood, clients and the client's half of the veth pair share one core, `mpxd` has the other. The
//! frames of the comparison cost the first one what the flood's cost it; what is missing is `mpxd`'s.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::figures::machine;
use crate::process::{Cmd, Process, until};
use crate::project;
use crate::scratch::Scratch;
use crate::server::{App, Config, Mpxd, Service};
use crate::setup;
use crate::topology::{self, Family, Namespace, Shape, Topology, server_socket};
use crate::ui;

const PORT: u16 = 7;
const CLIENT_CORE: &str = "0";
const SERVER_CORE: &str = "1";
/// Above whatever else runs: a busy machine is not to pass for a flood.
const NICE: &str = "-15";
/// Of its connections `mpxd` may hold so much.
const MEMORY_MAX_BYTES: u64 = 256 << 20;
/// Requests in turn on as many connections.
const CONNECTIONS: &str = "64";
/// Meanwhile so many new connections per second, each of which has to be completed.
const NEW_PER_S: &str = "100";
/// A SYN that is lost in the crowd comes again after 1, 2 and 4 s.
const PATIENCE: &str = "20s";
/// What the clients are to get done of what they did before.
const GOAL: f64 = 0.9;
/// The flood begins before the clients and ends after them.
const AHEAD: Duration = Duration::from_secs(1);
const BEHIND_S: u64 = 2;

const KINDS: [(&str, &str); 5] = [
    ("syn", "SYN"),
    ("capable", "SYN with MP_CAPABLE"),
    ("join", "SYN with MP_JOIN"),
    ("ack", "ACK"),
    ("rst", "RST"),
];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each flood
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only these kinds: syn, capable, join, ack, rst
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    only: Vec<String>,
    /// Frames per second, if not as many as the veth pair takes
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
}

/// What clients got done beside a flood.
struct Sample {
    flood_per_s: f64,
    requests_per_s: f64,
    new_connections: u64,
    failed: u64,
    used_bytes: u64,
    resident_kib: u64,
    counted: String,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    setup::require_root("cargo xtask flood")?;
    let known = |kind: &String| KINDS.iter().any(|(name, _)| name == kind);
    if let Some(stranger) = options.only.iter().find(|kind| !known(kind)) {
        return Err(format!(
            "there is no flood of {stranger:?}; use syn, capable, join, ack or rst"
        ));
    }
    setup::ensure(setup::For::Test)?;
    project::build()?;
    topology::sweep()?;
    let shape = Shape {
        paths: 1,
        queues: 1,
    };
    let topology = Topology::for_this_run("flood", shape)?;
    // A client whose SYNs were lost in the crowd is not to give up Multipath TCP for an hour, nor for
    // that connection (Linux calls it a black hole).
    let patience = [
        ("net/mptcp/blackhole_timeout", "0"),
        ("net/mptcp/syn_retrans_before_tcp_fallback", "6"),
    ];
    topology.client.sysctl(&patience)?;
    // Answers to strangers go to other hosts; here they would be routed on the core of `mpxd`, which
    // sends them.
    topology.client.shell(
        "nft add table netdev flood\n\
         nft add chain netdev flood in '{ type filter hook ingress device c1 priority 0; }'\n\
         nft add rule netdev flood in ip daddr 172.16.0.0/12 drop\n",
    )?;
    let (mut rows, mut faults, mut counted) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, title) in KINDS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == kind) {
            continue;
        }
        let flood = ui::step(&format!("A flood of {title}"), |_| {
            measure(&topology, kind, false, options.seconds, options.rate)
        })?;
        let rate = Some(flood.flood_per_s);
        let before = ui::step("As many frames of no protocol", |_| {
            measure(&topology, kind, true, options.seconds, rate)
        })?;
        faults.extend(faults_of(title, &flood, &before));
        rows.push(row(title, &flood, &before));
        counted.push(format!("{title}: {}", flood.counted));
    }
    print(&rows, &counted, options.seconds)?;
    match faults.is_empty() {
        true => Ok(()),
        false => Err(faults.join("; ")),
    }
}

fn measure(
    topology: &Topology,
    kind: &str,
    of_no_protocol: bool,
    seconds: u64,
    rate: Option<f64>,
) -> Result<Sample, String> {
    let scratch = Scratch::make()?;
    let echo = Service::on_port("echo", PORT, 1, App::Echo);
    let mut config = Config::new(1, vec![echo]);
    config.keys = format!("limits = {{ memory_max_bytes = {MEMORY_MAX_BYTES} }}\n");
    let program = prioritised(&topology.server, SERVER_CORE, "mpxd");
    let mpxd = Mpxd::start_as(program, scratch.path(), &config)?;
    let flooding = start_flood(topology, kind, of_no_protocol, seconds, rate)?;
    std::thread::sleep(AHEAD);
    let arrivals = ["--rate", NEW_PER_S, "--connections", "1000"];
    let newcomers = load(topology, "short", seconds, &arrivals).spawn()?;
    let requests = ["--connections", CONNECTIONS];
    let requests = report(&load(topology, "rr", seconds, &requests).output()?.stdout)?;
    let limit = Duration::from_secs(seconds + 30);
    let newcomers = report(&newcomers.wait(limit)?.stdout)?;
    let status = mpxd.status()?;
    let resident_kib = resident_kib(mpxd.pid())?;
    let flooded = report(&flooding.wait(limit)?.stdout)?;
    let sample = Sample {
        flood_per_s: number(&flooded, "frames_per_s")?,
        requests_per_s: number(&requests, "operations_per_s")?,
        new_connections: number(&newcomers, "operations")? as u64,
        failed: (number(&newcomers, "errors")? + number(&requests, "errors")?) as u64,
        used_bytes: status.memory_used()?,
        resident_kib,
        counted: status.summary(),
    };
    end(mpxd, topology)?;
    Ok(sample)
}

/// It does not wait for what strangers have half opened.
fn end(mut mpxd: Mpxd, topology: &Topology) -> Result<(), String> {
    mpxd.signal(rustix::process::Signal::TERM)?;
    mpxd.ended(&topology.server, Duration::from_secs(30))
}

fn start_flood(
    topology: &Topology,
    kind: &str,
    of_no_protocol: bool,
    seconds: u64,
    rate: Option<f64>,
) -> Result<Process, String> {
    let server = topology.server.link("s1")?;
    let mac = server["address"]
        .as_str()
        .ok_or("ip link show s1 has no address")?;
    let target = server_socket(Family::V4, 1, PORT).to_string();
    let duration = format!("{}s", AHEAD.as_secs() + seconds + BEHIND_S);
    let mut cmd = prioritised(&topology.client, CLIENT_CORE, "mpx-bench")
        .args(["flood", kind, "--interface", "c1", "--target-mac", mac])
        .args(["--target", &target, "--duration", &duration]);
    if of_no_protocol {
        cmd = cmd.arg("--unused-ethertype");
    }
    if let Some(rate) = rate {
        cmd = cmd.args(["--rate", &format!("{rate:.0}")]);
    }
    let before = frames_received(topology)?;
    let mut process = cmd.spawn()?;
    until(
        Duration::from_secs(10),
        "the flood to begin",
        || match process.poll()? {
            Some(status) => Err(format!("mpx-bench ended ({status}): {}", process.stderr())),
            None => Ok(frames_received(topology)? > before + 1_000),
        },
    )?;
    Ok(process)
}

fn frames_received(topology: &Topology) -> Result<u64, String> {
    let link = topology.server.link("s1")?;
    let frames = &link["stats64"]["rx"]["packets"];
    frames
        .as_u64()
        .ok_or_else(|| "ip link show s1 counts no frames".to_owned())
}

fn load(topology: &Topology, mode: &str, seconds: u64, more: &[&str]) -> Cmd {
    let target = server_socket(Family::V4, 1, PORT).to_string();
    prioritised(&topology.client, CLIENT_CORE, "mpx-bench")
        .args(["load", mode, "--proto", "mptcp", "--require-mptcp"])
        .args(["--quiet", "--json", "-", "--timeout", PATIENCE])
        .args(["--duration", &format!("{seconds}s"), "--target", &target])
        .args(more)
        .limit(Duration::from_secs(seconds + 40))
}

fn prioritised(namespace: &Namespace, core: &str, program: &str) -> Cmd {
    namespace
        .cmd("nice")
        .args(["-n", NICE, "taskset", "-c", core])
        .arg(project::release_binary(program))
}

fn report(json: &str) -> Result<Value, String> {
    serde_json::from_str(json).map_err(|error| format!("mpx-bench printed no JSON: {error}"))
}

fn number(report: &Value, name: &str) -> Result<f64, String> {
    report[name]
        .as_f64()
        .ok_or_else(|| format!("the report of mpx-bench has no number {name}"))
}

/// Memory of the process that is in use.
fn resident_kib(pid: u32) -> Result<u64, String> {
    let file = format!("/proc/{pid}/status");
    let text =
        std::fs::read_to_string(&file).map_err(|error| format!("cannot read {file}: {error}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .ok_or_else(|| format!("{file} has no VmRSS"))
}

fn ratio(flood: &Sample, before: &Sample) -> f64 {
    flood.requests_per_s / before.requests_per_s
}

fn faults_of(title: &str, flood: &Sample, before: &Sample) -> Vec<String> {
    let mut faults = Vec::new();
    let ratio = ratio(flood, before);
    // Without requests in the comparison there is no number.
    if !ratio.is_finite() || ratio < GOAL {
        faults.push(format!("{title}: {ratio:.2} of the requests, not {GOAL}"));
    }
    if flood.failed > 0 || flood.new_connections == 0 {
        let (failed, new) = (flood.failed, flood.new_connections);
        faults.push(format!(
            "{title}: {failed} failed, {new} new connections did not"
        ));
    }
    if flood.used_bytes > MEMORY_MAX_BYTES {
        faults.push(format!("{title}: {} octets are held", flood.used_bytes));
    }
    faults
}

fn row(title: &str, flood: &Sample, before: &Sample) -> String {
    format!(
        "| {title} | {:.0} | {:.0} | {:.0} | {:.2} | {} ({}) | {:.1} | {:.0} |",
        flood.flood_per_s,
        before.requests_per_s,
        flood.requests_per_s,
        ratio(flood, before),
        flood.new_connections,
        flood.failed,
        flood.used_bytes as f64 / f64::from(1 << 20),
        flood.resident_kib as f64 / 1024.0,
    )
}

fn print(rows: &[String], counted: &[String], seconds: u64) -> Result<(), String> {
    let date = Cmd::new("date").args(["-u", "+%Y-%m-%d"]).run()?;
    let busy = std::fs::read_to_string("/proc/loadavg")
        .map_err(|error| format!("cannot read /proc/loadavg: {error}"))?;
    let busy = busy.split(' ').next().unwrap_or_default();
    println!(
        "{}, {}, load {busy}; {CONNECTIONS} connections with requests of 64 B, {NEW_PER_S} new \
         connections per second meanwhile, {seconds} s each.",
        date.trim(),
        machine()?
    );
    for line in counted {
        println!("{line}");
    }
    println!();
    println!(
        "| flood of | frames/s | requests/s beside frames of no protocol | beside the flood | ratio \
         | new connections (failed) | held, MiB | resident, MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        println!("{row}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(requests_per_s: f64, failed: u64, used_bytes: u64) -> Sample {
        Sample {
            flood_per_s: 1e5,
            requests_per_s,
            new_connections: 10,
            failed,
            used_bytes,
            resident_kib: 1,
            counted: String::new(),
        }
    }

    #[test]
    fn what_falls_short_is_named() {
        let before = sample(1_000.0, 0, 0);
        let faults = |requests_per_s, failed, used_bytes| {
            faults_of("SYN", &sample(requests_per_s, failed, used_bytes), &before).len()
        };
        assert_eq!(faults(900.0, 0, MEMORY_MAX_BYTES), 0);
        assert_eq!(faults(899.0, 0, 0), 1);
        assert_eq!(faults(1_000.0, 1, 0), 1);
        assert_eq!(faults(0.0, 1, MEMORY_MAX_BYTES + 1), 3);
        let nothing = sample(0.0, 0, 0);
        assert_eq!(faults_of("SYN", &nothing, &nothing).len(), 1);
    }
}
