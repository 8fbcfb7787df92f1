//! `cargo xtask goodput`: one download over one emulated link, from `mpxd` and from the kernel's TCP
//! in turn, with the same client, congestion control and seeds; a table and a plot.
//!
//! Both servers send without end, and the client closes when it has got its bytes: neither side reads
//! files or passes bytes on. The kernel's TCP works in the relay's context, where other work on the
//! machine does not delay it; a server in user space would wait for a core. So that a busy machine does
//! not pass for a slow server, all programs run under a real-time policy.

mod plot;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::counters::Counters;
use crate::figures::{kernel_server, machine, median};
use crate::link::{Side, Spec};
use crate::process::Cmd;
use crate::project;
use crate::scratch::Scratch;
use crate::server::{App, Config, Mpxd, Service};
use crate::setup;
use crate::topology::{self, Family, Namespace, Shape, Topology, server_socket};
use crate::ui;

const PORT: u16 = 19;
const CONGESTION: &str = "reno";
/// The servers have the other core for themselves.
const CLIENT_CORE: usize = 0;
const SERVER_CORE: &str = "1";
/// Below the relay's.
const PRIORITY: &str = "5";
/// What `mpxd` is to reach of the kernel's goodput.
const GOAL: f64 = 0.95;
/// A transfer that is slower than this has come to a halt.
const SLOWEST_BITS_PER_S: u64 = 100_000;
const MIB: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Losses in the direction of the download, in percent
    #[arg(long, value_delimiter = ',', default_value = "0,0.1,1,3")]
    loss: Vec<f64>,
    /// Downloads of each server at each loss, in turn, of which the median is given
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// MiB of each download
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
    size: u64,
    #[arg(long, default_value = "100mbit")]
    rate: String,
    /// Without what queues: half of it in each direction
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=120_000))]
    rtt_ms: u64,
    /// In front of the rate, as in `veth up --link`; one round trip's worth at the rate if not given
    #[arg(long)]
    queue: Option<String>,
    /// More of the link, as in `veth up --link`
    #[arg(long, value_name = "LINK", default_value = "")]
    link: String,
    /// Of the first run at each loss; the next run has the next. Both servers get the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where goodput.md and goodput.svg go
    #[arg(long, value_name = "DIR", default_value = "target/goodput")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Kernel,
    Mpxd,
}

/// All downloads at one loss.
struct Cell {
    loss_percent: f64,
    /// Mbit/s of every run.
    runs: [Vec<f64>; 2],
    /// Runs in which the link was not what it should have been, with the reason.
    doubts: Vec<String>,
}

struct Sample {
    mbit_per_s: f64,
    doubt: Option<String>,
    lost: u64,
    queue_full: u64,
    /// What the server counted, in the order of `RECOVERY`.
    recovery: [u64; RECOVERY.len()],
}

/// Counters of loss recovery: as nstat has them, as `mpxd status` has them, in words.
const RECOVERY: [(&str, &str, &str); 4] = [
    ("TcpRetransSegs", "RetransSegs", "retransmissions"),
    ("TcpExtTCPTimeouts", "TCPTimeouts", "timeouts"),
    ("TcpExtTCPLossProbes", "TCPLossProbes", "loss probes"),
    ("TcpExtTCPLossUndo", "TCPLossUndo", "undone"),
];

pub(crate) fn run(options: &Options) -> Result<(), String> {
    // Mistakes are told before anything is built.
    for &loss_percent in &options.loss {
        options.spec(loss_percent, options.seed).parse::<Spec>()?;
    }
    setup::require_root("cargo xtask goodput")?;
    setup::ensure(setup::For::Demo)?;
    project::build()?;
    topology::sweep()?;
    let topology = prepare()?;
    let mut cells = Vec::new();
    for &loss_percent in &options.loss {
        cells.push(measure_cell(options, &topology, loss_percent)?);
    }

    let table = table(options, &cells)?;
    println!("{table}");
    let write = |name: &str, text: String| {
        let path = options.out.join(name);
        std::fs::write(&path, text)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    std::fs::create_dir_all(&options.out)
        .map_err(|error| format!("cannot make {}: {error}", options.out.display()))?;
    write("goodput.md", table)?;
    write("goodput.svg", plot::draw(&cells, &options.link_text())?)?;
    let out = options.out.display();
    ui::say(&format!("written: {out}/goodput.md and {out}/goodput.svg"));
    reached(&cells)
}

/// Whether `mpxd` is as good as it is to be at every loss.
fn reached(cells: &[Cell]) -> Result<(), String> {
    let below: Vec<_> = cells
        .iter()
        .filter(|cell| cell.ratio() < GOAL)
        .map(|cell| format!("{:.3} at loss {} %", cell.ratio(), cell.loss_percent))
        .collect();
    if below.is_empty() {
        return Ok(());
    }
    Err(format!(
        "mpxd is to reach {GOAL} of the kernel's goodput and reaches {}; is the machine quiet?",
        below.join(", ")
    ))
}

impl Options {
    fn spec(&self, loss_percent: f64, seed: u64) -> String {
        let half_us = self.rtt_ms * 500;
        let queue = match &self.queue {
            Some(queue) => queue.clone(),
            None => format!("{}ms", self.rtt_ms),
        };
        format!(
            "rate={} delay={half_us}us queue={queue} down.loss={loss_percent}% seed={seed} {}",
            self.rate, self.link
        )
    }

    /// The link in words.
    fn link_text(&self) -> String {
        let queue = match &self.queue {
            Some(queue) => queue.clone(),
            None => "1 BDP".to_owned(),
        };
        let more = match self.link.as_str() {
            "" => String::new(),
            more => format!(", {more}"),
        };
        format!("{}, RTT {} ms, queue {queue}{more}", self.rate, self.rtt_ms)
    }
}

impl Contender {
    const ALL: [Self; 2] = [Self::Kernel, Self::Mpxd];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Mpxd => "mpxd",
        }
    }
}

impl Cell {
    fn median(&self, contender: Contender) -> f64 {
        median(self.runs[contender as usize].clone())
    }

    /// `mpxd` by the kernel.
    fn ratio(&self) -> f64 {
        self.median(Contender::Mpxd) / self.median(Contender::Kernel)
    }
}

/// A path that carries nothing but what is measured: the n-th frame of a run is of the same kind for
/// both servers.
fn prepare() -> Result<Topology, String> {
    let shape = Shape {
        paths: 1,
        queues: 1,
    };
    let topology = Topology::linked_for_this_run("goodput", shape)?;
    let address = |link: Value| {
        let address = link["address"].as_str().map(str::to_owned);
        address.ok_or("a veth end has no address")
    };
    let client = address(topology.client.link("c1")?)?;
    let server = address(topology.server.link("s1")?)?;
    for (end, neighbour) in [
        (&topology.client, format!("10.9.1.2 lladdr {server} dev c1")),
        (&topology.server, format!("10.9.1.1 lladdr {client} dev s1")),
    ] {
        end.sysctl(&[
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv4/tcp_congestion_control", CONGESTION),
            // Or the kernel begins a run with what it learned in the one before.
            ("net/ipv4/tcp_no_metrics_save", "1"),
        ])?;
        end.ip(&format!("neigh replace {neighbour} nud permanent\n"))?;
    }
    Ok(topology)
}

fn measure_cell(options: &Options, topology: &Topology, loss_percent: f64) -> Result<Cell, String> {
    let mut cell = Cell {
        loss_percent,
        runs: [Vec::new(), Vec::new()],
        doubts: Vec::new(),
    };
    for run in 0..options.runs {
        let spec = options.spec(loss_percent, options.seed.wrapping_add(run));
        for contender in Contender::ALL {
            let run = run + 1;
            let name = contender.name();
            let step = format!(
                "loss {loss_percent} %, {name}, run {run} of {}",
                options.runs
            );
            let bytes = options.size * MIB;
            let sample = ui::step(&step, |_| measure(topology, contender, &spec, bytes))?;
            let recovery: String = RECOVERY
                .iter()
                .zip(sample.recovery)
                .map(|((.., words), count)| format!(", {count} {words}"))
                .collect();
            ui::say(&format!(
                "{:.2} Mbit/s; {} frames lost, {} dropped at the queue{recovery}",
                sample.mbit_per_s, sample.lost, sample.queue_full
            ));
            cell.runs[contender as usize].push(sample.mbit_per_s);
            if let Some(doubt) = sample.doubt {
                ui::say(&doubt);
                cell.doubts.push(format!("{name}, run {run}: {doubt}"));
            }
        }
    }
    ui::say(&format!("loss {loss_percent} %: ratio {:.2}", cell.ratio()));
    Ok(cell)
}

/// Each run has a link and a server of its own.
fn measure(
    topology: &Topology,
    contender: Contender,
    spec: &str,
    bytes: u64,
) -> Result<Sample, String> {
    let scratch = Scratch::make()?;
    let link = topology.link(1, spec, Some(CLIENT_CORE))?;
    let mut recovery = [0; RECOVERY.len()];
    let mbit_per_s = match contender {
        Contender::Kernel => {
            let before = Counters::read(&topology.server)?;
            let bench = in_real_time(&topology.server).arg(project::release_binary("mpx-bench"));
            let _server = kernel_server(topology, bench, "tcp", "source", PORT)?;
            let mbit_per_s = download(topology, bytes)?;
            let after = Counters::read(&topology.server)?;
            for (count, (name, ..)) in recovery.iter_mut().zip(RECOVERY) {
                *count = after.get(name)? - before.get(name)?;
            }
            mbit_per_s
        }
        Contender::Mpxd => {
            let service = Service {
                name: "source".to_owned(),
                listen: vec![server_socket(Family::V4, 1, PORT).to_string()],
                app: App::Source,
                keys: format!("congestion = {CONGESTION:?}\n"),
            };
            let config = Config::new(1, vec![service]);
            let server = &topology.server;
            let cmd = in_real_time(server)
                .args(["taskset", "-c", SERVER_CORE])
                .arg(project::release_binary("mpxd"));
            let mpxd = Mpxd::start_as(cmd, scratch.path(), &config)?;
            let mbit_per_s = download(topology, bytes)?;
            mpxd.settle(Duration::from_secs(20))?;
            let status = mpxd.status()?;
            for (count, (_, name, _)) in recovery.iter_mut().zip(RECOVERY) {
                *count = status.counter(name)?;
            }
            mpxd.stop(server)?;
            mbit_per_s
        }
    };
    let report = link.stop()?;
    Ok(Sample {
        mbit_per_s,
        doubt: report.kept_up().err(),
        lost: report.count(Side::Down, "lost")?,
        queue_full: report.count(Side::Down, "queue_full")?,
        recovery,
    })
}

/// Mbit/s from the connection's begin to the last byte.
fn download(topology: &Topology, bytes: u64) -> Result<f64, String> {
    let output = in_real_time(&topology.client)
        .arg(project::release_binary("mpx-bench"))
        .args(["load", "down", "--proto", "tcp", "--connections", "1"])
        .args(["--quiet", "--json", "-", "--timeout", "60s"])
        .arg(format!("--pin={CLIENT_CORE}"))
        .args(["--bytes", &bytes.to_string(), "--target"])
        .arg(server_socket(Family::V4, 1, PORT).to_string())
        .limit(Duration::from_secs(60 + bytes * 8 / SLOWEST_BITS_PER_S))
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
    let rate = report["received_bits_per_s"]
        .as_f64()
        .ok_or("the report of mpx-bench has no number received_bits_per_s")?;
    Ok(rate / 1e6)
}

/// A command that lacks its program.
fn in_real_time(namespace: &Namespace) -> Cmd {
    namespace.cmd("chrt").args(["--fifo", PRIORITY])
}

fn table(options: &Options, cells: &[Cell]) -> Result<String, String> {
    let date = Cmd::new("date").args(["-u", "+%Y-%m-%d"]).run()?;
    let mut text = format!(
        "{}, {}; emulated link: {}, loss in the direction of the download only; one connection, \
         {} MiB, plain TCP, {CONGESTION} on both sides, kernel client, all under SCHED_FIFO; medians \
         (least-most) of {} runs in turn, seeds from {}.\n\n\
         | loss | kernel, Mbit/s | mpxd, Mbit/s | ratio | |\n|---|---|---|---|---|\n",
        date.trim(),
        machine()?,
        options.link_text(),
        options.size,
        options.runs,
        options.seed,
    );
    for cell in cells {
        text += &row(cell);
    }
    for cell in cells {
        for doubt in &cell.doubts {
            text += &format!(
                "\nNot to be believed: loss {} %, {doubt}.\n",
                cell.loss_percent
            );
        }
    }
    Ok(text)
}

fn row(cell: &Cell) -> String {
    let [kernel, mpxd] = Contender::ALL.map(|contender| {
        let runs = &cell.runs[contender as usize];
        let least = runs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = runs.iter().copied().fold(0.0, f64::max);
        format!("{:.2} ({least:.2}-{most:.2})", cell.median(contender))
    });
    let mut notes = Vec::new();
    if cell.ratio() < GOAL {
        notes.push(format!("below {GOAL}"));
    }
    if !cell.doubts.is_empty() {
        notes.push(format!("{} runs in doubt", cell.doubts.len()));
    }
    format!(
        "| {} % | {kernel} | {mpxd} | {:.2} | {} |\n",
        cell.loss_percent,
        cell.ratio(),
        notes.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(kernel: f64, mpxd: f64) -> Cell {
        Cell {
            loss_percent: 0.1,
            runs: [vec![kernel - 1.0, kernel, kernel + 2.0], vec![mpxd; 3]],
            doubts: Vec::new(),
        }
    }

    #[test]
    fn a_cell_below_the_goal_says_so() {
        let good = row(&cell(100.0, 95.0));
        assert_eq!(
            good,
            "| 0.1 % | 100.00 (99.00-102.00) | 95.00 (95.00-95.00) | 0.95 |  |\n"
        );
        assert!(row(&cell(100.0, 94.99)).ends_with("| below 0.95 |\n"));
    }

    #[test]
    fn a_single_cell_below_the_goal_is_a_failure() {
        assert_eq!(reached(&[cell(100.0, 95.0), cell(10.0, 12.0)]), Ok(()));
        let error = reached(&[cell(100.0, 96.0), cell(100.0, 94.0)]).unwrap_err();
        assert!(error.contains("0.940 at loss 0.1 %"), "{error}");
    }

    #[test]
    fn every_option_of_a_link_is_understood() {
        let options = Options {
            loss: vec![0.1],
            runs: 1,
            size: 1,
            rate: "100mbit".to_owned(),
            rtt_ms: 25,
            queue: None,
            link: "up.loss=1%".to_owned(),
            seed: 7,
            out: PathBuf::new(),
        };
        let spec: Spec = options.spec(0.1, 8).parse().unwrap();
        assert_eq!(spec.down.delay_ns + spec.up.delay_ns, 25_000_000);
        assert_eq!(
            (spec.down.loss.0, spec.up.loss.0, spec.seed),
            (0.001, 0.01, 8)
        );
    }
}
