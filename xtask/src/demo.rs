//! `cargo xtask demo`: a real client downloads a real file from a real nginx, through `mpxd`, over
//! two paths at once.

use std::time::{Duration, Instant};

use crate::backend::{self, Site};
use crate::content::hash_file;
use crate::counters::Counters;
use crate::project;
use crate::scratch::Scratch;
use crate::server::{App, Config, Mpxd, Service};
use crate::setup;
use crate::topology::{self, Family, Shape, Topology, server_socket};
use crate::ui;

const FILE_MIB: u64 = 64;
const WEB: u16 = 80;
const ECHO: u16 = 7;
const PATHS: u8 = 2;

pub(crate) fn run() -> Result<(), String> {
    setup::require_root("cargo xtask demo")?;
    setup::ensure(setup::For::Demo)?;
    project::build()?;
    topology::sweep()?;

    let scratch = Scratch::make()?;
    let shape = Shape {
        paths: PATHS,
        queues: 1,
    };
    let topology = ui::step("Joining two namespaces by two veth pairs", |_| {
        Topology::for_this_run("demo", shape)
    })?;
    let site = ui::step(&format!("Making a random file of {FILE_MIB} MiB"), |_| {
        Site::make(scratch.path(), &[FILE_MIB])
    })?;
    let _nginx = ui::step(&format!("Starting nginx on {}", backend::HTTP), |_| {
        site.serve(&topology.server, scratch.path())
    })?;
    let config = Config::new(
        PATHS,
        vec![
            Service::on_port(
                "web",
                WEB,
                PATHS,
                App::Proxy(vec![backend::HTTP.to_owned()]),
            ),
            Service::on_port("echo", ECHO, PATHS, App::Echo),
        ],
    );
    let mpxd = ui::step("Starting mpxd in front of it", |_| {
        Mpxd::start(&topology.server, scratch.path(), &config)
    })?;

    download(&topology, &scratch, &site)?;
    let table = ui::step(
        "Request/response load: 64 MPTCP connections, 5 s",
        |progress| {
            let target = server_socket(Family::V4, 1, ECHO).to_string();
            let mut load = topology
                .client
                .cmd(project::release_binary("mpx-bench"))
                .args(["load", "rr", "--proto", "mptcp"])
                .args(["--connections", "64", "--duration", "5s"])
                .args(["--target", &target])
                .spawn()?;
            // Its progress goes to its standard error.
            crate::process::until(Duration::from_secs(30), "the load to end", || {
                if let Some(line) = load.stderr().lines().last() {
                    progress(line);
                }
                Ok(load.poll()?.is_some())
            })?;
            let output = load.wait(Duration::from_secs(1))?;
            if output.status.success() {
                Ok(output.stdout)
            } else {
                Err(format!(
                    "mpx-bench ended ({}): {}",
                    output.status, output.stderr
                ))
            }
        },
    )?;
    println!("{}", table.trim_end());

    ui::step("Taking everything down", |_| {
        mpxd.settle(Duration::from_secs(20))?;
        mpxd.stop(&topology.server)
    })
}

fn download(topology: &Topology, scratch: &Scratch, site: &Site) -> Result<(), String> {
    let file = format!("{FILE_MIB}m");
    let output = scratch.join("fetched");
    let octets = || -> Result<Vec<u64>, String> {
        topology
            .paths()
            .map(|path| Ok(topology.client.octets(&format!("c{path}"))?.0))
            .collect()
    };
    let before = octets()?;
    let start = Instant::now();
    ui::step(&format!("mptcpize run curl: {FILE_MIB} MiB"), |_| {
        topology
            .client
            .cmd("mptcpize")
            .args(["run", "curl", "-sS", "--fail", "--max-time", "60", "-o"])
            .arg(&output)
            .arg(format!(
                "http://{}/{file}",
                server_socket(Family::V4, 1, WEB)
            ))
            .limit(Duration::from_secs(70))
            .run()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let after = octets()?;

    let hash = hash_file(&output)?;
    if hash != site.hash(&file)? {
        return Err(format!(
            "the download has SHA-256 {hash}, the file has {}",
            site.hash(&file)?
        ));
    }
    println!("SHA-256 {hash}: equal at both ends");
    println!(
        "{FILE_MIB} MiB in {seconds:.2} s, {:.2} Gbit/s",
        (FILE_MIB << 20) as f64 * 8.0 / seconds / 1e9
    );

    let counters = Counters::read(&topology.client)?;
    let joins = counters.get("MPTcpExtMPJoinSynAckRx")?;
    println!("client's kernel: {}", counters.mptcp());
    for (path, (after, before)) in topology.paths().zip(after.iter().zip(&before)) {
        println!(
            "path {path} (c{path}, 10.9.{path}.1): {} octets received",
            after - before
        );
    }
    if joins == 0 || counters.get("MPTcpExtMPCapableFallbackACK")? != 0 {
        return Err("the kernel's counters do not show a second subflow".to_owned());
    }
    Ok(())
}
