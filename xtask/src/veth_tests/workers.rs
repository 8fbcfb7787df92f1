//! Several workers: every segment reaches the one that owns its connection, by the XDP program or over
//! the mesh, whatever the number of queues.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Case;
use super::lab::{Client, DISCARD, ECHO, Lab};
use crate::process::{Cmd, Process, until};
use crate::server::Config;
use crate::status::Status;
use crate::topology::{Family, server_socket};

/// Connects, says so, and sends when it gets SIGUSR1.
const BULK: &str = include_str!("bulk.py");
/// Echo over connections that wait for all their subflows; every sum is compared.
const FOUR_SUBFLOWS: &str = include_str!("four_subflows.py");
/// Connections of a case; `cargo xtask steering-crowd` makes more.
const CONNECTIONS: u64 = 100;
/// So many exchange data at once. Downloads of hundreds at a time make Linux 6.18 as a client divide by zero
/// (`tcp_tso_segs`), and what the thread holds it then holds for ever.
const PARALLEL: u64 = 20;
/// Each sends so much and gets it back; all its subflows carry data.
const BYTES: u64 = 2_000_000;
const SUBFLOWS: u64 = 4;
/// For one connection, on a machine that is busy.
const CONNECTION_LIMIT: Duration = Duration::from_secs(2);
/// For all of them.
const CROWD_LIMIT: Duration = Duration::from_secs(60);
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
    let mut cases = crowds(CONNECTIONS, None);
    cases.push(
        Case::new("a_million_frames_for_a_worker_not_at_home", not_at_home)
            .paths(1)
            .limit_s(240)
            .mpxd_only()
            .configured(|config| {
                workers(config, 2, "");
                // Less than an RX ring holds: what is lost is not lost there.
                config.keys += "[limits]\nreceive_buffer_max_bytes = 500000\n";
            }),
    );
    cases
}

/// How frames find their worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The program names the worker of every segment; it does so by this verdict.
    Direct(&'static str),
    Mesh,
    /// All frames are said to come on queue 0.
    GenericMesh,
    /// There is only one.
    Alone,
}

/// The same crowd of clients for every number of workers and every way; `report` gets the row of a table
/// from each.
pub(super) fn crowds(connections: u64, report: Option<fn(String)>) -> Vec<Case> {
    type Mode = (&'static str, bool, Way, fn(&mut Config));
    let modes: [Mode; 7] = [
        (
            "two_workers_direct",
            true,
            Way::Direct("RedirectTimestamp"),
            |c| workers(c, 2, ""),
        ),
        (
            "two_workers_without_timestamps",
            false,
            Way::Direct("RedirectFlow"),
            |c| workers(c, 2, ""),
        ),
        ("two_workers_mesh", true, Way::Mesh, |c| workers(c, 2, MESH)),
        (
            "two_workers_mesh_without_timestamps",
            false,
            Way::Mesh,
            |c| workers(c, 2, MESH),
        ),
        (
            "three_workers_on_two_queues",
            true,
            Way::Direct("RedirectTimestamp"),
            |c| workers(c, 3, ""),
        ),
        ("one_worker_on_two_queues", true, Way::Alone, |c| {
            workers(c, 1, "")
        }),
        ("two_workers_generic_mesh", true, Way::GenericMesh, |c| {
            workers(c, 2, "generic = \"always\"\nsteering = \"mesh\"\n")
        }),
    ];
    let case = |(name, timestamps, way, configure): Mode| {
        let body = move |lab: &mut Lab| {
            if !timestamps {
                let off = [("net/ipv4/tcp_timestamps", "0")];
                lab.topology.client.sysctl(&off)?;
            }
            let start = Instant::now();
            let status = crowd(lab, connections, way)?;
            if let Some(report) = report {
                report(row(name, connections, start.elapsed(), &status)?);
            }
            Ok(())
        };
        Case::new(name, body)
            .queues(2)
            .limit_s((crowd_limit(connections) + CROWD_LIMIT).as_secs())
            .mpxd_only()
            .configured(configure)
    };
    modes.into_iter().map(case).collect()
}

fn crowd_limit(connections: u64) -> Duration {
    CROWD_LIMIT + CONNECTION_LIMIT * connections as u32
}

const MESH: &str = "steering = \"mesh\"\n";

fn workers(config: &mut Config, workers: u32, keys: &str) {
    config.keys += &format!("workers = {workers}\n{keys}");
}

/// Connections with four subflows each over two interfaces; every sum is compared. Returns what mpxd
/// counted while all of them were open: what comes of a subflow after its end is nobody's.
fn crowd(lab: &mut Lab, connections: u64, way: Way) -> Result<Status, String> {
    second_addresses(lab)?;
    let script = lab.scratch.join("four_subflows.py");
    std::fs::write(&script, FOUR_SUBFLOWS)
        .map_err(|error| format!("cannot write {}: {error}", script.display()))?;
    let target = server_socket(Family::V4, 1, ECHO);
    let oopses = kernel_oopses()?.len();
    let mut clients = lab
        .client(Client::Tcp, "python3")
        .arg(&script)
        .args([connections, PARALLEL, SUBFLOWS, BYTES].map(|number| number.to_string()))
        .args([target.ip().to_string(), target.port().to_string()])
        .spawn()?;
    let limit = crowd_limit(connections);
    let carried = until(
        limit,
        "all connections to carry their data",
        || match clients.poll()? {
            Some(status) => Err(format!("the clients: {status}, {}", clients.stderr())),
            None => Ok(clients.stdout().contains("carried")),
        },
    );
    let new: Vec<_> = kernel_oopses()?.into_iter().skip(oopses).collect();
    if !new.is_empty() {
        return Err(format!(
            "the kernel of this machine is broken, and what fails from here on says nothing of mpxd; \
             start it anew. dmesg: {}",
            new.join("; ")
        ));
    }
    carried?;
    // And none of our HMACs was refused.
    lab.expect_mptcp((SUBFLOWS - 1) * connections)?;
    if way == Way::Mesh || way == Way::GenericMesh {
        expect_mesh(lab, connections)?;
    }
    let status = lab.mpxd()?.status()?;
    shared_out("workers", &status.workers("received")?)?;
    if way != Way::GenericMesh {
        shared_out("queues", &status.queues("received")?)?;
    }
    none(
        &status,
        &["FlowMapFull", "FlowLookupsSkipped", "WrongWorker"],
    )?;
    for verdict in ["XdpDropWrongQueue", "XdpDropNoSocket"] {
        let count = status.xdp(verdict)?;
        if count != 0 {
            return Err(format!("{verdict} is {count}"));
        }
    }
    if way != Way::Mesh && way != Way::GenericMesh {
        none(&status, &["MeshForwards"])?;
    }
    if let Way::Direct(verdict) = way {
        let named = status.xdp(&format!("Xdp{verdict}"))?;
        if named < connections {
            return Err(format!("{verdict} only {named} times"));
        }
    }
    clients.signal(Signal::USR1)?;
    let output = clients.wait(limit)?;
    match output.status.success() {
        true => Ok(status),
        false => Err(format!("the clients' end: {}", output.stderr.trim())),
    }
}

/// Each has its part, a tenth of an equal one at least.
fn shared_out(what: &str, frames: &[u64]) -> Result<(), String> {
    let least = frames.iter().sum::<u64>() / (10 * frames.len() as u64);
    if frames.iter().any(|&count| count < least) {
        return Err(format!(
            "the load is not shared among the {what}: frames {frames:?}"
        ));
    }
    Ok(())
}

fn none(status: &Status, counters: &[&str]) -> Result<(), String> {
    for counter in counters {
        let count = status.counter(counter)?;
        if count != 0 {
            return Err(format!("{counter} is {count}"));
        }
    }
    Ok(())
}

/// Lines of the kernel's log that tell of its own failure.
fn kernel_oopses() -> Result<Vec<String>, String> {
    const SIGNS: [&str; 6] = [
        "divide error",
        "Oops",
        "BUG:",
        "general protection fault",
        "blocked for more than",
        "rcu_sched detected stalls",
    ];
    let log = Cmd::new("dmesg").run()?;
    let tells = |line: &&str| SIGNS.iter().any(|sign| line.contains(sign));
    Ok(log.lines().filter(tells).map(str::to_owned).collect())
}

pub(super) const REPORT_HEAD: &str = "\
| mode | connections | opened | s | frames by token | timestamp | flow | home | mesh | passed on | lost there | wrong worker |
|---|---|---|---|---|---|---|---|---|---|---|---|";

fn row(name: &str, connections: u64, time: Duration, status: &Status) -> Result<String, String> {
    let verdicts = ["Token", "Timestamp", "Flow", "Home", "Mesh"];
    let verdicts: Vec<_> = verdicts
        .iter()
        .map(|verdict| status.xdp(&format!("XdpRedirect{verdict}")))
        .collect::<Result<_, _>>()?;
    let counters: Vec<_> = ["MeshForwards", "MeshDrops", "WrongWorker"]
        .iter()
        .map(|counter| status.counter(counter))
        .collect::<Result<_, _>>()?;
    let figures: Vec<_> = verdicts
        .iter()
        .chain(&counters)
        .map(u64::to_string)
        .collect();
    // Where a subflow was left idle, another connection took the place of its own.
    let opened = status.counter("PassiveOpens")?;
    Ok(format!(
        "| {name} | {connections} | {opened} | {:.1} | {} |",
        time.as_secs_f64(),
        figures.join(" | ")
    ))
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

fn expect_mesh(lab: &mut Lab, connections: u64) -> Result<(), String> {
    // The workers answer one after another.
    until(SETTLED, "what is passed on to be taken in", || {
        let status = lab.mpxd()?.status()?;
        let forwards = status.counter("MeshForwards")?;
        let received = status.counter("MeshReceived")?;
        Ok(forwards >= connections && received + status.counter("MeshDrops")? == forwards)
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
