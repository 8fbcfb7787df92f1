//! `cargo xtask close-load`: many short connections of kernel clients, and how many subflows they leave in
//! TIME-WAIT on the server: with the client's stream ending first and with the server's, and both once
//! more with `passive_close` switched off, which shows what that saves.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::backend::{HTTP, Site};
use crate::figures::machine;
use crate::process::{Cmd, until};
use crate::project;
use crate::scratch::Scratch;
use crate::server::{App, Config, Mpxd, Service};
use crate::setup;
use crate::topology::{self, Family, Namespace, Shape, Topology, server_socket};
use crate::ui;

const PORT: u16 = 7;
/// As an operator has it, and so long that nobody leaves TIME-WAIT while a run lasts.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Between two looks at the server.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// With passive closing: at most so much of the connections in TIME-WAIT at once.
const PEAK_SHARE_MAX: f64 = 0.01;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Connections of each of the four runs
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    connections: u64,
    /// So many at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    parallel: u64,
}

/// Whose stream ends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// The app is an echo, which ends its stream when the client has.
    Client,
    /// The app is a proxy to an HTTP server that is asked for `Connection: close`, and the client
    /// waits for the end.
    Server,
}

/// What a run left behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    per_second: f64,
    /// Subflows that went to TIME-WAIT, in all, at once at most, and those that are there at the end.
    pub(crate) entered: u64,
    pub(crate) peak: u64,
    pub(crate) left: u64,
}

impl First {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The service for it, with `passive_close` or without.
    pub(crate) fn service(self, name: &str, port: u16, passive: bool) -> Service {
        let app = match self {
            Self::Client => App::Echo,
            Self::Server => App::Proxy(vec![HTTP.to_owned()]),
        };
        Service::on_port(name, port, 1, app)
            .with_keys(&format!("close = {{ passive = {passive} }}\n"))
    }
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    setup::require_root("cargo xtask close-load")?;
    setup::ensure(setup::For::Demo)?;
    project::build()?;
    topology::sweep()?;
    let scratch = Scratch::make()?;
    let site = Site::make(scratch.path(), &[])?;
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    for passive in [true, false] {
        for first in [First::Client, First::Server] {
            let switch = if passive { "on" } else { "off" };
            let title = format!(
                "the {} closes first, passive closing {switch}",
                first.name()
            );
            let sample = ui::step(&title, |_| one_run(options, &site, first, passive))?;
            problems.extend(
                passive
                    .then(|| sample.problem(options.connections))
                    .flatten(),
            );
            rows.push(format!(
                "| {} | {switch} | {:.0} | {} | {} | {} |",
                first.name(),
                sample.per_second,
                sample.entered,
                sample.peak,
                sample.left
            ));
        }
    }
    println!(
        "{}; {} connections of kernel clients in each run, {} at once.\n",
        machine()?,
        options.connections,
        options.parallel
    );
    println!(
        "| closes first | passive closing | connections/s | to TIME-WAIT | at once | at the end |"
    );
    println!("|---|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems.join("; ")),
    }
}

impl Sample {
    /// What is wrong with it where closing is passive.
    pub(crate) fn problem(&self, connections: u64) -> Option<String> {
        let peak_max = connections as f64 * PEAK_SHARE_MAX;
        let too_many = self.left > 0 || self.peak as f64 >= peak_max;
        too_many.then(|| {
            format!(
                "{} subflows were in TIME-WAIT at once, less than {peak_max} were expected; {} were left",
                self.peak, self.left
            )
        })
    }
}

fn one_run(options: &Options, site: &Site, first: First, passive: bool) -> Result<Sample, String> {
    let topology = Topology::for_this_run(
        "close",
        Shape {
            paths: 1,
            queues: 1,
        },
    )?;
    let scratch = Scratch::make()?;
    let _backend = site.serve(&topology.server, scratch.path())?;
    let mut config = Config::new(1, vec![first.service("close", PORT, passive)]);
    config.time_wait = TIME_WAIT;
    let mpxd = Mpxd::start_on_core(&topology.server, scratch.path(), &config, "1")?;
    let sample = load(
        &topology.client,
        &mpxd,
        first,
        PORT,
        options.connections,
        options.parallel,
    )?;
    mpxd.stop(&topology.server)?;
    Ok(sample)
}

/// Puts so many connections on the service and watches the server until the last of them is gone.
pub(crate) fn load(
    client: &Namespace,
    mpxd: &Mpxd,
    first: First,
    port: u16,
    connections: u64,
    parallel: u64,
) -> Result<Sample, String> {
    let before = mpxd.status()?;
    let limit = Duration::from_secs(30 + connections / 500);
    let http: &[&str] = match first {
        First::Client => &[],
        First::Server => &["--http", "/small", "--server-closes"],
    };
    let mut bench = bench(client, port, connections, parallel)
        .args(http)
        .limit(limit)
        .spawn()?;
    let mut peak = 0;
    until(limit, "the connections to end", || {
        std::thread::sleep(LOOK_EVERY);
        peak = peak.max(mpxd.status()?.time_wait()?);
        Ok(bench.poll()?.is_some())
    })?;
    let output = bench.wait(Duration::from_secs(5))?;
    if !output.status.success() {
        let said = output.stderr.trim();
        return Err(format!("mpx-bench ended ({}): {said}", output.status));
    }
    let report: Value = serde_json::from_str(&output.stdout)
        .map_err(|error| format!("mpx-bench printed no JSON: {error}"))?;
    until(
        Duration::from_secs(10),
        "the last connection to be gone",
        || Ok(mpxd.status()?.connections()? == 0),
    )?;
    let after = mpxd.status()?;
    let count = |name: &str| Ok::<_, String>(after.counter(name)? - before.counter(name)?);
    let opened = count("PassiveOpens")?;
    if opened < connections {
        return Err(format!(
            "{opened} connections of {connections} came to the server"
        ));
    }
    let left = after.time_wait()?;
    Ok(Sample {
        per_second: report["operations_per_s"].as_f64().unwrap_or_default(),
        entered: count("TimeWaitEntered")?,
        peak: peak.max(left),
        left,
    })
}

fn bench(client: &Namespace, port: u16, connections: u64, parallel: u64) -> Cmd {
    client
        .cmd(project::release_binary("mpx-bench"))
        .args(["load", "short", "--proto", "mptcp", "--require-mptcp"])
        .args(["--pin=0", "--quiet", "--json", "-"])
        .args(["--connections", &parallel.to_string()])
        .args(["--count", &connections.to_string()])
        .args(["--target", &server_socket(Family::V4, 1, port).to_string()])
}
