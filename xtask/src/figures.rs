//! `cargo xtask figures`: `mpxd` and the kernel's own MPTCP echo server on the same topology, in
//! the same run, in turn; medians, as a table for the README.

use std::time::Duration;

use serde_json::Value;

use crate::process::{Cmd, Process, until};
use crate::project;
use crate::scratch::Scratch;
use crate::server::{App, Config, Mpxd, Service};
use crate::setup;
use crate::topology::{self, Family, Shape, Topology, server_socket};
use crate::ui;

const PORT: u16 = 7;
const CONNECTIONS: &str = "64";
/// For all ends: the kernel is faster with it here than with bbr, its usual default.
const CONGESTION: &str = "reno";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Contender {
    Kernel,
    Mpxd,
}

/// What is measured: a mode of `mpx-bench load`, and its name in the table.
const MODES: [(&str, &str); 2] = [
    ("rr", "requests/s, 64 connections, 64 B"),
    ("short", "short connections/s, 64 at once, 64 B"),
];

/// The result of one run.
#[derive(Clone, Copy)]
struct Sample {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

pub(crate) fn run(runs: usize, seconds: u64) -> Result<(), String> {
    setup::require_root("cargo xtask figures")?;
    setup::ensure(setup::For::Demo)?;
    project::build()?;
    topology::sweep()?;
    if runs == 0 {
        return Err("--runs must be at least 1".to_owned());
    }

    let mut rows = Vec::new();
    for paths in [1, 2] {
        let topology = Topology::for_this_run("figures", Shape { paths, queues: 1 })?;
        for end in [&topology.client, &topology.server] {
            end.sysctl(&[("net/ipv4/tcp_congestion_control", CONGESTION)])?;
        }
        for (mode, title) in MODES {
            let mut samples = [Vec::new(), Vec::new()];
            for round in 1..=runs {
                for contender in [Contender::Kernel, Contender::Mpxd] {
                    let name = contender.name();
                    let step = format!("{title}, {paths} subflow(s), {name}, run {round}");
                    let sample = ui::step(&step, |_| measure(&topology, contender, mode, seconds))?;
                    samples[contender as usize].push(sample);
                }
            }
            rows.push(row(title, paths, &samples));
        }
    }
    print(&rows, runs, seconds)
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Mpxd => "mpxd",
        }
    }
}

/// Each run has a server of its own: what one leaves behind does not slow the next.
fn measure(
    topology: &Topology,
    contender: Contender,
    mode: &str,
    seconds: u64,
) -> Result<Sample, String> {
    let scratch = Scratch::make()?;
    match contender {
        Contender::Kernel => {
            let bench = topology.server.cmd(project::release_binary("mpx-bench"));
            let _server = kernel_server(topology, bench, "mptcp", "echo", PORT)?;
            load(topology, mode, seconds)
        }
        Contender::Mpxd => {
            let paths = topology.shape.paths;
            let config = Config::new(
                paths,
                vec![
                    Service::on_port("echo", PORT, paths, App::Echo)
                        .with_keys(&format!("congestion = {CONGESTION:?}\n")),
                ],
            );
            let mpxd = Mpxd::start_on_core(&topology.server, scratch.path(), &config, "1")?;
            let sample = load(topology, mode, seconds)?;
            mpxd.settle(Duration::from_secs(20))?;
            mpxd.stop(&topology.server)?;
            Ok(sample)
        }
    }
}

/// The kernel as the server, on the second core: `mpx-bench echo-server` with these options, where
/// `bench` is a command that ends in the program's name.
pub(crate) fn kernel_server(
    topology: &Topology,
    bench: Cmd,
    proto: &str,
    mode: &str,
    port: u16,
) -> Result<Process, String> {
    let listen: Vec<_> = topology
        .paths()
        .map(|path| server_socket(Family::V4, path, port).to_string())
        .collect();
    let mut server = bench
        .args(["echo-server", "--proto", proto, "--mode", mode])
        .args(["--pin=1", "--listen"])
        .arg(listen.join(","))
        .spawn()?;
    until(
        Duration::from_secs(5),
        "the kernel's server",
        || match server.poll()? {
            Some(status) => Err(format!("mpx-bench ended ({status}): {}", server.stderr())),
            None => Ok(server.stdout().contains("listening on")),
        },
    )?;
    Ok(server)
}

fn load(topology: &Topology, mode: &str, seconds: u64) -> Result<Sample, String> {
    let target = server_socket(Family::V4, 1, PORT).to_string();
    let output = topology
        .client
        .cmd(project::release_binary("mpx-bench"))
        .args(["load", mode, "--proto", "mptcp", "--require-mptcp"])
        .args(["--pin=0", "--quiet", "--json", "-"])
        .args(["--connections", CONNECTIONS])
        .args(["--duration", &format!("{seconds}s"), "--target", &target])
        .limit(Duration::from_secs(seconds + 30))
        .output()?;
    if !output.status.success() {
        return Err(format!(
            "mpx-bench ended ({}): {}",
            output.status,
            output.stderr.trim()
        ));
    }
    let report: Value = serde_json::from_str(&output.stdout)
        .map_err(|error| format!("mpx-bench printed no JSON: {error}"))?;
    let number = |value: &Value, name: &str| {
        value[name]
            .as_f64()
            .ok_or_else(|| format!("the report of mpx-bench has no number {name}"))
    };
    Ok(Sample {
        per_second: number(&report, "operations_per_s")?,
        p50_us: number(&report["latency"], "p50_us")?,
        p99_us: number(&report["latency"], "p99_us")?,
    })
}

fn row(title: &str, paths: u8, samples: &[Vec<Sample>; 2]) -> String {
    let median = |contender: Contender, part: fn(&Sample) -> f64| {
        median(samples[contender as usize].iter().map(part).collect())
    };
    let cells = [Contender::Kernel, Contender::Mpxd].map(|contender| {
        format!(
            "{:.0} ({:.0}/{:.0})",
            median(contender, |sample| sample.per_second),
            median(contender, |sample| sample.p50_us),
            median(contender, |sample| sample.p99_us),
        )
    });
    let ratio = median(Contender::Mpxd, |sample| sample.per_second)
        / median(Contender::Kernel, |sample| sample.per_second);
    format!(
        "| {title}, {paths} subflow{} | {} | {} | {ratio:.2} |",
        if paths == 1 { "" } else { "s" },
        cells[0],
        cells[1]
    )
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

fn print(rows: &[String], runs: usize, seconds: u64) -> Result<(), String> {
    let date = Cmd::new("date").args(["-u", "+%Y-%m-%d"]).run()?;
    println!(
        "{}, {}; client and server pinned to a core each, kernel client, offloads off, \
         medians of {runs} runs of {seconds} s in turn; congestion control of all: \
         {CONGESTION}.",
        date.trim(),
        machine()?
    );
    println!();
    println!("| rate (p50/p99 in µs) | kernel | mpxd | ratio |");
    println!("|---|---|---|---|");
    for row in rows {
        println!("{row}");
    }
    Ok(())
}

/// Processor, cores, kernel.
pub(crate) fn machine() -> Result<String, String> {
    let info = std::fs::read_to_string("/proc/cpuinfo")
        .map_err(|error| format!("cannot read /proc/cpuinfo: {error}"))?;
    let model = info
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|error| format!("cannot read the kernel's release: {error}"))?;
    // Without what a distribution or a cloud hangs on to the number.
    let release = release.trim().split(['-', '+']).next().unwrap_or_default();
    Ok(format!("{model}, {cores} cores, Linux {release}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
