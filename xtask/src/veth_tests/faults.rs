//! Paths cut, clients killed, backends down, frames mangled, peers that stall.

use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::Case;
use super::lab::{
    Client, DEAD, DISCARD, ECHO, Lab, SILENT, SILENT_BACKEND, SOURCE, STALL, STALL_BACKEND, WEB,
};
use crate::process::{Process, until};
use crate::server::{CONNECT_TIMEOUT, Kind};
use crate::topology::{Family, server_socket};

const MIB: u64 = 1 << 20;
/// A download must be over so long after a path was cut: a few retransmission timeouts until the
/// lost data is sent on the other path, and the rest of the data.
const RECOVERY: Duration = Duration::from_secs(10);
/// Sends what no proper stack sends, as raw frames.
const MANGLE: &str = include_str!("mangle.py");
/// Opens connections that do nothing.
const CROWD: &str = include_str!("crowd.py");
/// Per connection, in the tests of backpressure.
const BUFFER_BYTES: u64 = 256 * 1024;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in [1, 2] {
        for (how, cut) in [
            ("link_down", link_down as fn(&Lab, u8) -> Result<(), String>),
            ("silent", silent),
        ] {
            let name = format!("download_path_{path}_cut_{how}");
            let body = move |lab: &mut Lab| cut_while_downloading(lab, path, cut);
            cases.push(Case::new(name, body).limit_s(120));
            cases.push(Case::new(
                format!("upload_path_{path}_cut_{how}"),
                move |lab| cut_while_uploading(lab, path, cut),
            ));
        }
    }
    cases.extend([
        Case::new("client_killed_idle", |lab| killed(lab, DISCARD, 1000)),
        Case::new("client_killed_with_unread_data", |lab| {
            killed(lab, ECHO, 64 * MIB)
        }),
        Case::new("client_killed_in_a_download", |lab| {
            let mut curl = lab
                .fetch(Client::Mptcp, Family::V4, WEB, "256m")
                .arg("--limit-rate")
                .arg("40M")
                .spawn()?;
            wait_for_bytes(lab, &mut curl, 8 * MIB)?;
            kill_and_settle(lab, curl)
        }),
        Case::new("backend_down", |lab| {
            let limit = Duration::from_secs(1);
            refused(lab, DEAD, "dead", "ProxyConnectRefused", limit)
        })
        .mpxd_only(),
        Case::new("backend_silent", |lab| {
            let address = SILENT_BACKEND.trim_end_matches(":80");
            lab.topology.server.ip(&format!(
                "neigh add {address} lladdr 02:00:00:00:00:99 dev s1 nud permanent\n"
            ))?;
            let limit = CONNECT_TIMEOUT + Duration::from_secs(1);
            refused(lab, SILENT, "silent", "ProxyConnectTimeouts", limit)
        })
        .mpxd_only(),
        Case::new("clients_that_do_not_read", |lab| {
            let clients = 16;
            bounded_memory(lab, clients, |lab| hold(lab, SOURCE, 0))
        })
        .configured(small_buffers)
        .mpxd_only(),
        Case::new("downloaders_that_do_not_read", |lab| {
            bounded_memory(lab, 16, |lab| {
                hold_with(lab, WEB, 0, Some("GET /256m HTTP/1.0"))
            })
        })
        .configured(small_buffers)
        .mpxd_only(),
        Case::new("backend_that_does_not_read", |lab| {
            let _backend = lab.backend("stall", STALL_BACKEND, 0)?;
            bounded_memory(lab, 16, |lab| hold(lab, STALL, 64 * MIB))
        })
        .configured(small_buffers)
        .mpxd_only(),
        Case::new("idle_server_sleeps", |lab| {
            lab.download(Client::Mptcp, Family::V4, WEB, "small")?;
            idle_cpu(lab)
        })
        .mpxd_only(),
        Case::new("idle_connections_cost_nothing", idle_crowd).mpxd_only(),
        Case::new("mangled_frames", mangled_frames).mpxd_only(),
    ]);
    cases
}

fn link_down(lab: &Lab, path: u8) -> Result<(), String> {
    lab.topology.client.ip(&format!("link set c{path} down\n"))
}

/// Nothing more arrives at the client by this path, and nobody is told.
fn silent(lab: &Lab, path: u8) -> Result<(), String> {
    lab.topology
        .client
        .cmd("nft")
        .args(["-f", "-"])
        .input(format!(
            "table netdev cut {{\n  chain in {{\n    \
             type filter hook ingress device \"c{path}\" priority 0\n    drop\n  }}\n}}\n"
        ))
        .run()
        .map(drop)
}

fn cut_while_downloading(
    lab: &mut Lab,
    path: u8,
    cut: fn(&Lab, u8) -> Result<(), String>,
) -> Result<(), String> {
    let (file, size) = ("256m", 256 * MIB);
    let before = lab.octets()?;
    let mut curl = lab.fetch(Client::Mptcp, Family::V4, WEB, file).spawn()?;
    wait_for_bytes(lab, &mut curl, size / 8)?;
    let at_cut = lab.octets()?;
    cut(lab, path)?;
    let there = fetched_bytes(lab);
    let index = usize::from(path - 1);
    let carried = at_cut[index].0 - before[index].0;
    if carried < 100_000 {
        return Err(format!(
            "path {path} carried only {carried} octets before the cut"
        ));
    }
    if there == size {
        return Err("the download was over before the cut".to_owned());
    }
    let limit = match lab.kind {
        Kind::Mpxd => RECOVERY,
        // Here its sender takes up to 40 s.
        Kind::Kernel => Duration::from_secs(90),
    };
    succeed(curl, limit)?;
    lab.check_fetched(file)?;
    lab.expect_mptcp(1)
}

fn cut_while_uploading(
    lab: &mut Lab,
    path: u8,
    cut: fn(&Lab, u8) -> Result<(), String>,
) -> Result<(), String> {
    let (file, size) = ("256m", 256 * MIB);
    let start: u64 = lab.octets()?.iter().map(|octets| octets.1).sum();
    let mut curl = lab.put(Client::Mptcp, Family::V4, WEB, file).spawn()?;
    until(Duration::from_secs(30), "an eighth of the upload", || {
        let now: u64 = lab.octets()?.iter().map(|octets| octets.1).sum();
        Ok(now - start > size / 8)
    })?;
    cut(lab, path)?;
    if curl.poll()?.is_some() {
        return Err("the upload was over before the cut".to_owned());
    }
    succeed(curl, Duration::from_secs(50))?;
    lab.check_uploaded(file)?;
    lab.expect_mptcp(1)
}

fn killed(lab: &mut Lab, port: u16, bytes: u64) -> Result<(), String> {
    let client = hold(lab, port, bytes)?;
    // Until the connection stands still: all is sent, or both directions are full.
    let mut last = 0;
    until(
        Duration::from_secs(20),
        "the transfer to stand still",
        || {
            let now = lab.octets()?.iter().map(|octets| octets.0 + octets.1).sum();
            let still = now == last;
            last = now;
            sleep(Duration::from_millis(300));
            Ok(still)
        },
    )?;
    kill_and_settle(lab, client)
}

fn kill_and_settle(lab: &mut Lab, mut client: Process) -> Result<(), String> {
    if let Ok(mpxd) = lab.mpxd() {
        let open = mpxd.status()?.connections()?;
        if open != 1 {
            return Err(format!(
                "{open} connections are open before the kill, not 1"
            ));
        }
    }
    client.signal(Signal::KILL)?;
    client.wait(Duration::from_secs(5))?;
    match lab.mpxd() {
        Ok(mpxd) => mpxd.settle(Duration::from_secs(5)),
        Err(_) => Ok(()),
    }
}

/// The client must see a reset or an early end within the limit, and the service must count why.
fn refused(
    lab: &mut Lab,
    port: u16,
    service: &str,
    reason: &str,
    limit: Duration,
) -> Result<(), String> {
    let output = lab
        .fetch(Client::Mptcp, Family::V4, port, "small")
        .limit(limit)
        .output()?;
    // curl: 52 is an empty reply, 55 a failure to send, 56 one to receive, 7 a reset before it saw the
    // connection.
    if !matches!(output.status.code(), Some(7 | 52 | 55 | 56)) {
        return Err(format!(
            "curl ended with {} instead of a reset or an early end: {}",
            output.status,
            output.stderr.trim()
        ));
    }
    let status = lab.mpxd()?.status()?;
    lab.expect_mptcp(0)?;
    for (name, wanted) in [(reason, 1), ("ProxyNoBackend", 1), ("ProxyConnects", 0)] {
        let value = status.app(service, name)?;
        if value != wanted {
            return Err(format!(
                "{name} of service {service} is {value}, not {wanted}"
            ));
        }
    }
    Ok(())
}

fn small_buffers(config: &mut crate::server::Config) {
    config.keys = format!(
        "limits = {{ receive_buffer_max_bytes = {BUFFER_BYTES}, send_buffer_max_bytes = {BUFFER_BYTES} }}\n"
    );
}

/// Connections that fill whatever they can fill must not take more than the configured buffers.
fn bounded_memory(
    lab: &mut Lab,
    clients: u64,
    start: impl Fn(&Lab) -> Result<Process, String>,
) -> Result<(), String> {
    // The buffers of both directions, and what an allocator keeps beside them.
    let bound = clients * 2 * BUFFER_BYTES * 2 + 8 * MIB;
    let before = resident_bytes(lab.mpxd()?.pid())?;
    let held: Result<Vec<_>, _> = (0..clients).map(|_| start(lab)).collect();
    let held = held?;
    sleep(Duration::from_secs(3));
    let grown = resident_bytes(lab.mpxd()?.pid())?.saturating_sub(before);
    if grown > bound {
        return Err(format!(
            "{clients} connections made mpxd grow by {grown} bytes, more than {bound}"
        ));
    }
    if let Some(client) = held
        .iter()
        .find(|client| client.stdout().contains("sent 6"))
    {
        return Err(format!("nothing held the sender back: {}", client.stdout()));
    }
    // The others are served as before.
    lab.download(Client::Mptcp, Family::V4, WEB, "64m")
}

fn resident_bytes(pid: u32) -> Result<u64, String> {
    let file = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| format!("{file} has no VmRSS"))
}

/// With no connection open, under 5 % of a core.
fn idle_cpu(lab: &mut Lab) -> Result<(), String> {
    // What the end of a connection leaves to do is over by then.
    lab.mpxd()?.settle(Duration::from_secs(5))?;
    low_cpu(lab)
}

/// Under 5 % of a core.
pub(super) fn low_cpu(lab: &mut Lab) -> Result<(), String> {
    let pid = lab.mpxd()?.pid();
    let before = cpu_ticks(pid)?;
    let window = Duration::from_secs(4);
    sleep(window);
    let used = Duration::from_millis(10 * (cpu_ticks(pid)? - before));
    if used * 20 >= window {
        return Err(format!(
            "an idle mpxd used {used:?} of processor time in {window:?}"
        ));
    }
    Ok(())
}

/// A thousand connections that do nothing cost nothing.
fn idle_crowd(lab: &mut Lab) -> Result<(), String> {
    let wanted = 1000;
    let to = server_socket(Family::V4, 1, WEB);
    let mut crowd = lab
        .topology
        .client
        .cmd("python3")
        .args(["-c", CROWD, &wanted.to_string()])
        .args([to.ip().to_string(), to.port().to_string()])
        .spawn()?;
    until(
        Duration::from_secs(20),
        "the clients to connect",
        || match crowd.poll()? {
            Some(status) => Err(format!(
                "the clients ended ({status}): {}",
                crowd.stderr().trim()
            )),
            None => Ok(crowd.stdout().contains("ready")),
        },
    )?;
    let open = lab.mpxd()?.status()?.connections()?;
    if open != wanted {
        return Err(format!("{open} connections are open instead of {wanted}"));
    }
    low_cpu(lab)?;
    crowd.kill();
    Ok(())
}

/// Processor time in ticks of 10 ms, Linux's USER_HZ.
fn cpu_ticks(pid: u32) -> Result<u64, String> {
    let file = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    // utime and stime are the 12th and 13th fields after the name.
    let fields: Vec<&str> = text
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    fields
        .get(11..13)
        .and_then(|times| {
            let times: Result<Vec<u64>, _> = times.iter().map(|time| time.parse()).collect();
            times.ok().map(|times| times.iter().sum())
        })
        .ok_or_else(|| format!("{file} has no processor times"))
}

/// Raw frames that are too short, too long, fragmented or inconsistent: counted, never passed to
/// the kernel in a way that makes it reset our connections, and never a panic.
fn mangled_frames(lab: &mut Lab) -> Result<(), String> {
    let mut curl = lab
        .fetch(Client::Mptcp, Family::V4, WEB, "64m")
        .args(["--limit-rate", "30M"])
        .spawn()?;
    wait_for_bytes(lab, &mut curl, MIB)?;
    let address = |link: Value| {
        link["address"]
            .as_str()
            .map(str::to_owned)
            .ok_or("a veth end has no address")
    };
    let to = address(lab.topology.server.link("s1")?)?;
    // The client's own, so that its kernel resets the connections that it knows nothing of.
    let from = address(lab.topology.client.link("c1")?)?;
    let sent = lab
        .topology
        .client
        .cmd("python3")
        .args(["-c", MANGLE, "c1", &to, &from])
        .run()?;
    succeed(curl, Duration::from_secs(20))?;
    lab.check_fetched("64m")?;
    let status = lab.mpxd()?.status()?;
    let fragments = status.xdp("XdpDropFragment")?;
    let mut reasons = vec![("XdpDropFragment", fragments)];
    for name in [
        "DropTruncated",
        "DropBadHeader",
        "DropBadTcpChecksum",
        "MPJoinNoTokenFound",
    ] {
        reasons.push((name, status.counter(name)?));
    }
    if let Some((name, _)) = reasons.iter().find(|(_, counted)| *counted == 0) {
        return Err(format!(
            "{name} counted nothing; sent: {}; {reasons:?}",
            sent.trim()
        ));
    }
    lab.download(Client::Mptcp, Family::V4, WEB, "64m")
}

pub(super) fn hold(lab: &Lab, port: u16, bytes: u64) -> Result<Process, String> {
    hold_with(lab, port, bytes, None)
}

pub(super) fn hold_with(
    lab: &Lab,
    port: u16,
    bytes: u64,
    request: Option<&str>,
) -> Result<Process, String> {
    let mut cmd = lab
        .peer(Client::Mptcp)?
        .args(["hold", "--to"])
        .arg(server_socket(Family::V4, 1, port).to_string())
        .args(["--bytes", &bytes.to_string()]);
    if let Some(request) = request {
        cmd = cmd.args(["--request", request]);
    }
    let mut process = cmd.spawn()?;
    until(
        Duration::from_secs(5),
        "the client to connect",
        || match process.poll()? {
            Some(status) => Err(format!(
                "the client ended ({status}): {}",
                process.stderr().trim()
            )),
            None => Ok(process.stdout().contains(crate::peer::READY)),
        },
    )?;
    Ok(process)
}

pub(super) fn wait_for_bytes(lab: &Lab, curl: &mut Process, bytes: u64) -> Result<(), String> {
    until(
        Duration::from_secs(30),
        "the download to get going",
        || match curl.poll()? {
            Some(status) if !status.success() => {
                Err(format!("curl ended ({status}): {}", curl.stderr().trim()))
            }
            _ => Ok(fetched_bytes(lab) >= bytes),
        },
    )
}

fn fetched_bytes(lab: &Lab) -> u64 {
    lab.output().metadata().map_or(0, |data| data.len())
}

pub(super) fn succeed(curl: Process, limit: Duration) -> Result<(), String> {
    let output = curl.wait(limit)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "curl ended ({}): {}",
            output.status,
            output.stderr.trim()
        ))
    }
}
