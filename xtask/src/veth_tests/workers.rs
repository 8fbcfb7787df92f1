//! Several workers: every segment reaches the one that owns its connection, by the XDP program or over
//! the mesh, whatever the number of queues.

use std::time::Duration;

use rustix::process::Signal;

use super::Case;
use super::lab::{Client, DISCARD, ECHO, Lab};
use crate::process::{Process, until};
use crate::project;
use crate::server::Config;
use crate::status::Status;
use crate::topology::{Family, server_socket};

/// Connects, says so, and sends when it gets SIGUSR1.
const BULK: &str = include_str!("bulk.py");
const CONNECTIONS: u64 = 40;
/// So many are open at once.
const PARALLEL: u64 = 20;
/// Each sends so much, all at once, and gets it back.
const BYTES: u64 = 2_000_000;
/// Second addresses of the client, one on each path: with them a connection has four subflows.
const SECOND_HOST: u8 = 11;
/// So many frames for a worker that is not at home.
const FRAMES: u64 = 1_000_000;
/// Until frames on their way have arrived.
const SETTLED: Duration = Duration::from_secs(5);
/// Small, for the frames count and not the octets; IPv4 only.
const SMALL_MTU: u64 = 600;
const SMALL_MSS: u64 = SMALL_MTU - 40 - 12;

pub(super) fn cases() -> Vec<Case> {
    let direct = |lab: &mut Lab| {
        crowd(lab)?;
        expect_direct(lab, "RedirectTimestamp")
    };
    let without_timestamps = |lab: &mut Lab| {
        let off = [("net/ipv4/tcp_timestamps", "0")];
        lab.topology.client.sysctl(&off)?;
        crowd(lab)?;
        expect_direct(lab, "RedirectFlow")
    };
    let mesh = |lab: &mut Lab| {
        crowd(lab)?;
        expect_mesh(lab)
    };
    let mesh_without_timestamps = |lab: &mut Lab| {
        let off = [("net/ipv4/tcp_timestamps", "0")];
        lab.topology.client.sysctl(&off)?;
        crowd(lab)?;
        expect_mesh(lab)
    };
    let two = |name: &str, body: fn(&mut Lab) -> Result<(), String>| {
        Case::new(name, body).queues(2).limit_s(180).mpxd_only()
    };
    vec![
        two("two_workers_direct", direct).configured(|c| workers(c, 2, "")),
        two("two_workers_without_timestamps", without_timestamps).configured(|c| workers(c, 2, "")),
        two("two_workers_mesh", mesh).configured(|c| workers(c, 2, MESH)),
        two(
            "two_workers_mesh_without_timestamps",
            mesh_without_timestamps,
        )
        .configured(|c| workers(c, 2, MESH)),
        two("three_workers_on_two_queues", direct).configured(|c| workers(c, 3, "")),
        two("one_worker_on_two_queues", crowd).configured(|c| workers(c, 1, "")),
        two("two_workers_generic_mesh", mesh)
            .configured(|c| workers(c, 2, "generic = \"always\"\nsteering = \"mesh\"\n")),
        Case::new("a_million_frames_for_a_worker_not_at_home", not_at_home)
            .paths(1)
            .limit_s(240)
            .mpxd_only()
            .configured(|config| {
                workers(config, 2, "");
                // Less than an RX ring holds: what is lost is not lost there.
                config.keys += "[limits]\nreceive_buffer_max_bytes = 500000\n";
            }),
    ]
}

const MESH: &str = "steering = \"mesh\"\n";

fn workers(config: &mut Config, workers: u32, keys: &str) {
    config.keys += &format!("workers = {workers}\n{keys}");
}

/// Connections with four subflows each over two interfaces; every octet is compared.
fn crowd(lab: &mut Lab) -> Result<(), String> {
    second_addresses(lab)?;
    let target = server_socket(Family::V4, 1, ECHO).to_string();
    let bench = project::release_binary("mpx-bench");
    for _ in 0..CONNECTIONS / PARALLEL {
        lab.client(Client::Tcp, &bench.to_string_lossy())
            .args(["load", "both", "--require-mptcp", "--quiet"])
            .args(["--target", &target])
            .args(["--connections", &PARALLEL.to_string()])
            .args(["--bytes", &BYTES.to_string()])
            .limit(Duration::from_secs(60))
            .run()?;
    }
    // The client's kernel opens three more subflows of each, unless its end comes before.
    lab.expect_mptcp(2 * CONNECTIONS)?;
    let status = lab.mpxd()?.status()?;
    let taken = status.workers("received")?;
    let least = taken.iter().sum::<u64>() / (20 * taken.len() as u64);
    if taken.iter().any(|&frames| frames < least) {
        return Err(format!("the load is not shared: frames {taken:?}"));
    }
    for counter in ["FlowMapFull", "FlowLookupsSkipped"] {
        let count = status.counter(counter)?;
        if count != 0 {
            return Err(format!("{counter} is {count}"));
        }
    }
    for verdict in ["XdpDropWrongQueue", "XdpDropNoSocket"] {
        let count = status.xdp(verdict)?;
        if count != 0 {
            return Err(format!("{verdict} is {count}"));
        }
    }
    Ok(())
}

fn second_addresses(lab: &Lab) -> Result<(), String> {
    let (mut links, mut endpoints) = (String::new(), String::new());
    for path in lab.topology.paths() {
        let address = format!("10.9.{path}.{SECOND_HOST}");
        let table = 100 + u16::from(path);
        links +=
            &format!("addr add {address}/24 dev c{path}\nrule add from {address} lookup {table}\n");
        endpoints += &format!("mptcp endpoint add {address} dev c{path} subflow\n");
    }
    lab.topology.client.ip(&links)?;
    lab.topology.client.ip(&endpoints)
}

/// The program names the worker of every segment, and does so by `verdict` where there are several.
fn expect_direct(lab: &mut Lab, verdict: &str) -> Result<(), String> {
    let status = lab.mpxd()?.status()?;
    for counter in ["MeshForwards", "WrongWorker"] {
        let count = status.counter(counter)?;
        if count != 0 {
            return Err(format!(
                "{counter} is {count}: frames came to the wrong worker"
            ));
        }
    }
    let named = status.xdp(&format!("Xdp{verdict}"))?;
    if named < CONNECTIONS {
        return Err(format!("{verdict} only {named} times"));
    }
    Ok(())
}

fn expect_mesh(lab: &mut Lab) -> Result<(), String> {
    // The workers answer one after another.
    until(SETTLED, "what is passed on to be taken in", || {
        let status = lab.mpxd()?.status()?;
        let forwards = status.counter("MeshForwards")?;
        let received = status.counter("MeshReceived")?;
        Ok(forwards >= CONNECTIONS && received + status.counter("MeshDrops")? == forwards)
    })?;
    let status = lab.mpxd()?.status()?;
    for verdict in [
        "RedirectToken",
        "RedirectTimestamp",
        "RedirectFlow",
        "RedirectHome",
    ] {
        let count = status.xdp(&format!("Xdp{verdict}"))?;
        if count != 0 {
            return Err(format!("{count} frames by {verdict} in mesh mode"));
        }
    }
    Ok(())
}

/// One queue, whose home is worker 0, and one connection, which is worker 1's.
fn not_at_home(lab: &mut Lab) -> Result<(), String> {
    let small = format!("link set c1 mtu {SMALL_MTU}\n");
    lab.topology.client.ip(&small)?;
    let mut sender = connect_to_worker(lab, 1)?;
    let status = lab.mpxd()?.status()?;
    let (before, redirected) = (status.workers("received")?, redirects(&status)?);
    sender.signal(Signal::USR1)?;
    let output = sender.wait(Duration::from_secs(200))?;
    if !output.status.success() {
        return Err(format!("the sender ended badly: {}", output.stderr.trim()));
    }
    let status = lab.mpxd()?.status()?;
    let after = status.workers("received")?;
    let taken: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    if taken[1] < FRAMES || taken[0] > 100 {
        return Err(format!("frames taken in by the workers: {taken:?}"));
    }
    // All that the program gave to a socket was taken out of it again.
    until(SETTLED, "all redirected frames to be taken in", || {
        let status = lab.mpxd()?.status()?;
        let after: u64 = status.workers("received")?.iter().sum();
        let taken = after - before.iter().sum::<u64>();
        Ok(status.queue_faults() == 0 && redirects(&status)? - redirected == taken)
    })
}

fn redirects(status: &Status) -> Result<u64, String> {
    let verdicts = [
        "Token",
        "Timestamp",
        "Flow",
        "Home",
        "Mesh",
        "TooBig",
        "Neighbor",
    ];
    let counts = verdicts.map(|verdict| status.xdp(&format!("XdpRedirect{verdict}")));
    counts.into_iter().sum()
}

/// A connection that the `worker`-th has: its port, and so its home, is a matter of chance.
fn connect_to_worker(lab: &mut Lab, worker: usize) -> Result<Process, String> {
    const TRIES: usize = 64;
    let to = server_socket(Family::V4, 1, DISCARD);
    let bytes = FRAMES * SMALL_MSS;
    for _ in 0..TRIES {
        let mut sender = lab
            .client(Client::Tcp, "python3")
            .args(["-c", BULK])
            .args([
                to.ip().to_string(),
                to.port().to_string(),
                bytes.to_string(),
            ])
            .spawn()?;
        until(Duration::from_secs(5), "a connection", || {
            Ok(sender.stdout().contains("connected"))
        })?;
        let mut has = Vec::new();
        until(Duration::from_secs(5), "mpxd to have it", || {
            has = lab.mpxd()?.status()?.workers("connections")?;
            Ok(has.iter().sum::<u64>() == 1)
        })?;
        if has[worker] == 1 {
            return Ok(sender);
        }
        sender.kill();
        until(Duration::from_secs(5), "mpxd to forget it", || {
            Ok(lab.mpxd()?.status()?.connections()? == 0)
        })?;
    }
    Err(format!(
        "{TRIES} connections, and none is of worker {worker}"
    ))
}
