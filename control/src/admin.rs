//! The control socket: one line in, lines of JSON out. A thread of its own serves it; the figures
//! come from the workers' inboxes. `status` is answered with one document, `conns` with one for each
//! connection and a last line that says that they are all, `address` and a change in JSON with how many
//! connections it concerned.

use crate::cli::AddressCommand;
use mpx_datapath::engine::{AddressChange, AddressStep, Announce, ConnectionPage, EngineReport};
use mpx_datapath::port::{FrameAccounts, QueueStatistics};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) const DEFAULT_SOCKET: &str = "/run/mpxd.sock";

/// What either end waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that `mpxd status` shows.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) version: &'static str,
    pub(crate) uptime_ms: u64,
    #[serde(flatten)]
    pub(crate) engine: EngineReport,
    pub(crate) frames: FrameAccounts,
    pub(crate) queues: Vec<QueueStatus>,
    pub(crate) counters: Counters,
    pub(crate) xdp: Counters,
    pub(crate) apps: Vec<AppStatus>,
    pub(crate) workers: Vec<WorkerStatus>,
}

/// A worker beside the others.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct WorkerStatus {
    pub(crate) core: Option<usize>,
    pub(crate) connections: usize,
    /// Frames that it took in and sent.
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// Frames that it passed on to another worker, and of those received what was passed on to it.
    pub(crate) mesh_forwards: u64,
    pub(crate) mesh_received: u64,
}

/// The AF_XDP sockets of one queue.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct QueueStatus {
    pub(crate) interface: String,
    #[serde(flatten)]
    pub(crate) statistics: QueueStatistics,
}

/// The counters of the app of one service.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AppStatus {
    pub(crate) service: String,
    pub(crate) kind: &'static str,
    pub(crate) counters: Counters,
}

pub(crate) type Counters = BTreeMap<&'static str, u64>;

/// The listening end; its file goes away with it.
pub(crate) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds `path` with mode 0600. A file that a dead mpxd left is replaced.
    ///
    /// To be called before other threads exist: the umask is the process's.
    ///
    /// # Errors
    /// One line for the user.
    pub(crate) fn bind(path: &Path) -> Result<ControlSocket, String> {
        refuse_living(path)?;
        let usual = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(usual);
        let listener = bound.map_err(|error| {
            format!(
                "control_socket: cannot bind {} ({error}); choose a path in a directory that \
                 exists and is writable",
                path.display()
            )
        })?;
        Ok(ControlSocket {
            listener,
            path: path.to_owned(),
        })
    }

    /// A second listener on the same socket, for the thread that serves it.
    pub(crate) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Nothing is to be done about a file that somebody else has removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Finds out without touching anything whether [`ControlSocket::bind`] may have `path`; removes
/// nothing.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    dead_socket(path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let enter_and_write = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, directory, enter_and_write, AtFlags::EACCESS).map_err(|error| {
        format!(
            "control_socket: cannot make {} ({error}); choose a path in a directory that exists \
             and is writable",
            path.display()
        )
    })
}

fn refuse_living(path: &Path) -> Result<(), String> {
    if dead_socket(path)? {
        std::fs::remove_file(path).map_err(|error| {
            format!(
                "control_socket: cannot replace the stale {} ({error}); remove it",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// Whether `path` is a socket that nobody serves any more; `false` if nothing is there.
fn dead_socket(path: &Path) -> Result<bool, String> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(format!(
                "control_socket: cannot look at {} ({error}); choose another path",
                path.display()
            ));
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(format!(
                "control_socket: {} exists and is no socket; remove it or choose another path",
                path.display()
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(format!(
            "control_socket: {} is there, but cannot be asked who serves it ({error}); remove it \
             or choose another path",
            path.display()
        )),
        Ok(_) => Err(format!(
            "control_socket: another mpxd answers on {}; stop it or choose another path",
            path.display()
        )),
    }
}

/// Who knows what the control socket is asked. An error is one line for the user.
pub(crate) trait Figures {
    fn status(&self) -> Result<Status, String>;
    /// Some connections, from a place in their table on.
    fn connections(&self, from: usize) -> Result<ConnectionPage, String>;
    /// Names of the services, by their numbers.
    fn services(&self) -> Vec<&str>;
    /// Changes addresses for some connections, from a place in their table on.
    fn change_addresses(&self, change: &AddressChange, from: usize) -> Result<AddressStep, String>;
}

/// Answers one client after the other, for as long as the process lives.
pub(crate) fn serve(listener: &UnixListener, source: &impl Figures) {
    for stream in listener.incoming() {
        let answered = stream.and_then(|stream| answer(stream, source));
        if let Err(error) = answered {
            tracing::debug!("control socket: {error}");
            // Out of descriptors, say: do not spin on it.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn answer(stream: UnixStream, source: &impl Figures) -> io::Result<()> {
    /// Commands are short; whoever sends more is no client of ours.
    const LONGEST_COMMAND: u64 = 1024;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut command = String::new();
    BufReader::new((&stream).take(LONGEST_COMMAND)).read_line(&mut command)?;
    let mut reply = BufWriter::new(&stream);
    match command.trim_end() {
        "status" => match source.status() {
            Ok(status) => write_line(&mut reply, &status)?,
            Err(error) => refuse(&mut reply, error)?,
        },
        "conns" => list(&mut reply, source)?,
        other => match other.strip_prefix("address ").map(serde_json::from_str) {
            Some(Ok(change)) => match change_all(source, &change) {
                Ok(changed) => write_line(&mut reply, &serde_json::json!({ "changed": changed }))?,
                Err(error) => refuse(&mut reply, error)?,
            },
            Some(Err(error)) => refuse(&mut reply, format!("address: {error}"))?,
            None => refuse(
                &mut reply,
                format!("unknown command {other:?}; use status, conns or address"),
            )?,
        },
    }
    reply.flush()?;
    stream.shutdown(Shutdown::Both)
}

/// Step by step, so that no worker holds up its connections. Returns how many were concerned.
fn change_all(source: &impl Figures, command: &AddressCommand) -> Result<usize, String> {
    let change = address_change(command, &source.services())?;
    let (mut changed, mut next) = (0, Some(0));
    while let Some(from) = next {
        let step = source.change_addresses(&change, from)?;
        changed += step.changed;
        next = step.next;
    }
    Ok(changed)
}

/// What the engine is to do, which knows services by their numbers.
fn address_change(command: &AddressCommand, services: &[&str]) -> Result<AddressChange, String> {
    Ok(match command.clone() {
        AddressCommand::Announce {
            address,
            port,
            id,
            service,
            local,
            clients,
        } => {
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                return Err(format!("{address} is no address that a client could join"));
            }
            if let Some(local) = local.filter(|local| local.port() == 0) {
                return Err(format!(
                    "{local} is nowhere that joins could arrive; give the port after it"
                ));
            }
            let service = match service {
                Some(name) => services.iter().position(|s| **s == name).ok_or_else(|| {
                    format!(
                        "no service is named {name:?}; there is {}",
                        services.join(", ")
                    )
                })?,
                None if services.len() == 1 => 0,
                None => {
                    let names = services.join(", ");
                    return Err(format!(
                        "there are several services; name one with --service: {names}"
                    ));
                }
            };
            AddressChange::Announce {
                service,
                id,
                announce: Announce {
                    id: id.unwrap_or_default(),
                    address,
                    port,
                    local,
                    clients,
                },
            }
        }
        AddressCommand::Withdraw { address } => AddressChange::Withdraw { address },
        AddressCommand::Backup { address } => AddressChange::SetBackup {
            local: address.0,
            backup: true,
        },
        AddressCommand::Regular { address } => AddressChange::SetBackup {
            local: address.0,
            backup: false,
        },
    })
}

/// Page by page: neither the worker nor this thread ever holds the whole list.
fn list(reply: &mut impl Write, source: &impl Figures) -> io::Result<()> {
    let mut next = Some(0);
    while let Some(from) = next {
        match source.connections(from) {
            Ok(page) => {
                for connection in &page.conns {
                    write_line(reply, connection)?;
                }
                next = page.next;
            }
            Err(error) => return refuse(reply, error),
        }
    }
    write_line(reply, &serde_json::json!({ "end": true }))
}

fn refuse(reply: &mut impl Write, error: String) -> io::Result<()> {
    write_line(reply, &serde_json::json!({ "error": error }))
}

fn write_line(reply: &mut impl Write, document: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *reply, document)?;
    reply.write_all(b"\n")
}

/// `mpxd status`: what to print, or one line of error.
pub(crate) fn status(path: &Path, json: bool) -> Result<String, String> {
    let status = fetch_status(path)?;
    Ok(if json {
        format!("{status:#}")
    } else {
        readable(&status)
    })
}

/// `mpxd address`: what to print, or one line of error.
pub(crate) fn change_addresses(path: &Path, command: &AddressCommand) -> Result<String, String> {
    let document = serde_json::to_string(command).map_err(|error| error.to_string())?;
    let mut changed = 0;
    fetch(path, &format!("address {document}"), |reply| {
        changed = reply["changed"].as_u64().unwrap_or(0);
    })?;
    let plural = if changed == 1 { "" } else { "s" };
    Ok(format!("{changed} connection{plural} concerned"))
}

/// The document of `status` from the mpxd that serves `path`.
pub(crate) fn fetch_status(path: &Path) -> Result<Value, String> {
    let mut reply = Value::Null;
    fetch(path, "status", |document| reply = document)?;
    Ok(reply)
}

/// The connections of the mpxd that serves `path`, one after the other.
pub(crate) fn fetch_connections(path: &Path, mut each: impl FnMut(Value)) -> Result<(), String> {
    let mut ended = false;
    fetch(path, "conns", |document| {
        if document["end"] == true {
            ended = true;
        } else {
            each(document);
        }
    })?;
    if ended {
        Ok(())
    } else {
        Err("mpxd stopped before the end of the list; try again".to_owned())
    }
}

/// Gives every document of the reply to `each`.
fn fetch(path: &Path, command: &str, mut each: impl FnMut(Value)) -> Result<(), String> {
    for line in request(path, command).map_err(|error| no_answer(path, &error))? {
        let line = line.map_err(|error| no_answer(path, &error))?;
        let document: Value = serde_json::from_str(&line)
            .map_err(|error| format!("{} does not speak JSON ({error})", path.display()))?;
        if let Some(error) = document.get("error").and_then(Value::as_str) {
            return Err(error.to_owned());
        }
        each(document);
    }
    Ok(())
}

fn request(path: &Path, command: &str) -> io::Result<io::Lines<BufReader<UnixStream>>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "{command}")?;
    Ok(BufReader::new(stream).lines())
}

fn no_answer(path: &Path, error: &io::Error) -> String {
    format!(
        "no mpxd answers on {} ({error}); start one, or name its control_socket with --socket",
        path.display()
    )
}

/// What another version of mpxd does not say is shown as zero or nothing.
fn readable(status: &Value) -> String {
    let mut text = String::new();
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let seconds = number("uptime_ms") / 1000;
    let draining = if status["draining"] == true {
        ", draining"
    } else {
        ""
    };
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "mpxd {}, up {}:{:02}:{:02}{draining}",
        status["version"].as_str().unwrap_or("?"),
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    let tables = [
        "connections",
        "half_open",
        "stranded",
        "flows",
        "tokens",
        "time_wait",
        "flow_map",
    ];
    rows(&mut text, "tables", tables.map(|key| (key, number(key))));
    let refused = status["counters"]["FlowMapFull"].as_u64().unwrap_or(0);
    if refused > 0 {
        let most = mpx_ebpf::FLOWS_MAX;
        let _ = writeln!(
            text,
            "  {refused} joins were refused, for the flow_map held the {most} flows that it can"
        );
    }
    let memory = ["used_bytes", "limit_bytes", "share_bytes", "pressure"];
    let figure = |key: &'static str| {
        let value = &status["memory"][key];
        (key, value.as_u64().unwrap_or(u64::from(value == true)))
    };
    rows(&mut text, "memory", memory.map(figure));
    let frames = ["free", "in_kernel", "held", "lent", "total"];
    let frame = |key| (key, status["frames"][key].as_u64().unwrap_or(0));
    rows(&mut text, "frames", frames.map(frame));
    workers(&mut text, status["workers"].as_array());
    queues(&mut text, status["queues"].as_array());
    if let Some(fallbacks) = status["fallbacks"].as_array().filter(|f| !f.is_empty()) {
        let figure = |f: &Value| {
            let name = format!(
                "port {}, {}: {}",
                f["port"],
                word(f, "direction"),
                word(f, "cause")
            );
            (name, f["count"].as_u64().unwrap_or(0))
        };
        let figures: Vec<_> = fallbacks.iter().map(figure).collect();
        let figures = figures.iter().map(|(name, count)| (name.as_str(), *count));
        rows(&mut text, "fallbacks to TCP", figures);
    }
    for app in status["apps"].as_array().into_iter().flatten() {
        let (service, kind) = (word(app, "service"), word(app, "kind"));
        rows(
            &mut text,
            &format!("{service} ({kind})"),
            nonzero(&app["counters"]),
        );
    }
    text
}

pub(crate) fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

fn nonzero(counters: &Value) -> impl Iterator<Item = (&str, u64)> {
    let entries = counters.as_object().into_iter().flatten();
    entries
        .map(|(name, value)| (name.as_str(), value.as_u64().unwrap_or(0)))
        .filter(|(_, value)| *value != 0)
}

fn rows<'a>(text: &mut String, title: &str, rows: impl IntoIterator<Item = (&'a str, u64)>) {
    let _ = writeln!(text, "\n{title}");
    let mut empty = true;
    for (name, value) in rows {
        empty = false;
        let _ = writeln!(text, "  {name:<32} {value:>16}");
    }
    if empty {
        let _ = writeln!(text, "  all zero");
    }
}

fn workers(text: &mut String, workers: Option<&Vec<Value>>) {
    const FIGURES: [&str; 5] = [
        "connections",
        "received",
        "sent",
        "mesh_forwards",
        "mesh_received",
    ];
    let _ = write!(text, "\n{:<6} {:>5}", "worker", "core");
    for name in FIGURES {
        let _ = write!(text, " {name:>14}");
    }
    text.push('\n');
    for (index, worker) in workers.into_iter().flatten().enumerate() {
        let core = worker["core"].as_u64().map(|core| core.to_string());
        let _ = write!(text, "{index:<6} {:>5}", core.unwrap_or("any".to_owned()));
        for name in FIGURES {
            let _ = write!(text, " {:>14}", worker[name].as_u64().unwrap_or(0));
        }
        text.push('\n');
    }
}

/// What went wrong between interface and rings is shown where anything did.
fn queues(text: &mut String, queues: Option<&Vec<Value>>) {
    const FAULTS: [&str; 5] = [
        "rx_dropped",
        "rx_ring_full",
        "fill_ring_empty",
        "rx_invalid_descs",
        "tx_invalid_descs",
    ];
    let _ = writeln!(
        text,
        "\n{:<12} {:>5} {:>14} {:>14} {:>12}",
        "interface", "queue", "received", "sent", "wakeups"
    );
    for queue in queues.into_iter().flatten() {
        let number = |key: &str| queue[key].as_u64().unwrap_or(0);
        let _ = write!(
            text,
            "{:<12} {:>5} {:>14} {:>14} {:>12} ",
            word(queue, "interface"),
            number("queue"),
            number("received"),
            number("sent"),
            number("wakeups")
        );
        for key in FAULTS.into_iter().filter(|key| number(key) != 0) {
            let _ = write!(text, " {key}={}", number(key));
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Prefix;
    use mpx_datapath::engine::{FallbackReport, MemoryReport};
    use mpx_datapath::port::{IfaceId, RingOccupancy};
    use std::os::unix::fs::PermissionsExt;

    fn sample() -> Status {
        Status {
            version: "1.2.3",
            uptime_ms: 3_723_000,
            engine: EngineReport {
                draining: true,
                connections: 1,
                half_open: 0,
                stranded: 0,
                flows: 2,
                tokens: 1,
                time_wait: 4,
                flow_map: 3,
                memory: MemoryReport {
                    used_bytes: 31_000,
                    limit_bytes: 40_000,
                    pressure: true,
                    share_bytes: 15_000,
                },
                fallbacks: vec![FallbackReport {
                    port: 80,
                    cause: "checksum",
                    direction: "in",
                    count: 2,
                }],
                conns: vec![],
            },
            frames: FrameAccounts {
                free: 3,
                in_kernel: 5,
                held: 0,
                lent: 0,
                total: 8,
            },
            queues: vec![QueueStatus {
                interface: "s1".into(),
                statistics: QueueStatistics {
                    iface: IfaceId(0),
                    queue: 3,
                    received: 17,
                    sent: 18,
                    wakeups: 2,
                    rings: RingOccupancy {
                        fill_ring: 4,
                        receiving: 1,
                        ..RingOccupancy::default()
                    },
                    rx_dropped: 0,
                    rx_ring_full: 5,
                    rx_invalid_descs: 0,
                    fill_ring_empty: 0,
                    tx_invalid_descs: 0,
                    tx_ring_empty: 0,
                },
            }],
            counters: [("RxFrames", 17), ("DropFragment", 0), ("FlowMapFull", 6)].into(),
            xdp: [("XdpRedirectHome", 17)].into(),
            apps: vec![AppStatus {
                service: "web".into(),
                kind: "proxy",
                counters: [("ProxyConnects", 2)].into(),
            }],
            workers: vec![WorkerStatus {
                core: Some(3),
                connections: 1,
                received: 17,
                sent: 18,
                mesh_forwards: 5,
                mesh_received: 4,
            }],
        }
    }

    struct Sample;

    impl Figures for Sample {
        fn status(&self) -> Result<Status, String> {
            Ok(sample())
        }

        fn connections(&self, _: usize) -> Result<ConnectionPage, String> {
            Err("not here".to_owned())
        }

        fn services(&self) -> Vec<&str> {
            vec!["web", "echo"]
        }

        /// Three steps, the second of which concerns the port or nothing.
        fn change_addresses(
            &self,
            change: &AddressChange,
            from: usize,
        ) -> Result<AddressStep, String> {
            let changed = match change {
                AddressChange::Announce { announce, .. } => announce.port.unwrap_or(0).into(),
                AddressChange::Withdraw { address } => return Err(format!("not {address}")),
                AddressChange::SetBackup { .. } => 0,
            };
            Ok(AddressStep {
                changed: if from == 1 { changed } else { 0 },
                next: Some(from + 1).filter(|&next| next < 3),
            })
        }
    }

    #[test]
    fn status_over_the_socket_as_json_and_as_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let listener = socket.listener().unwrap();
        std::thread::spawn(move || serve(&listener, &Sample));

        let json: serde_json::Value = serde_json::from_str(&status(&path, true).unwrap()).unwrap();
        let keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            keys,
            [
                "apps",
                "connections",
                "counters",
                "draining",
                "fallbacks",
                "flow_map",
                "flows",
                "frames",
                "half_open",
                "memory",
                "queues",
                "stranded",
                "time_wait",
                "tokens",
                "uptime_ms",
                "version",
                "workers",
                "xdp"
            ]
        );
        assert_eq!(
            json["frames"],
            serde_json::json!({
                "free": 3, "in_kernel": 5, "held": 0, "lent": 0, "total": 8
            })
        );
        assert_eq!(json["counters"]["RxFrames"], 17);
        let queue = &json["queues"][0];
        assert_eq!(
            (&queue["interface"], &queue["queue"]),
            (&"s1".into(), &3.into())
        );
        assert_eq!(queue["rx_ring_full"], 5);
        assert_eq!(queue["rings"]["fill_ring"], 4);

        let text = status(&path, false).unwrap();
        assert!(
            text.starts_with("mpxd 1.2.3, up 1:02:03, draining\n"),
            "{text}"
        );
        assert!(!text.contains("RxFrames"), "counters are nstat's: {text}");
        assert!(text.contains("\nmemory\n  used_bytes "), "{text}");
        assert!(text.contains("\n  6 joins were refused, "), "{text}");
        let line = text.lines().find(|line| line.contains("checksum")).unwrap();
        assert!(line.starts_with("  port 80, in: checksum ") && line.ends_with(" 2"));
        let line = text.lines().find(|line| line.starts_with("s1 ")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["s1", "3", "17", "18", "2", "rx_ring_full=5"]);
        let line = text.lines().find(|line| line.starts_with("0 ")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["0", "3", "1", "17", "18", "5", "4"]);
    }

    #[test]
    fn addresses_are_changed_over_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        let listener = socket.listener().unwrap();
        std::thread::spawn(move || serve(&listener, &Sample));
        let announce = |address: &str, service: Option<&str>| AddressCommand::Announce {
            address: address.parse().unwrap(),
            port: Some(443),
            id: None,
            service: service.map(str::to_owned),
            local: "10.0.0.2:443".parse().ok(),
            clients: "2001:db8::/32".parse().ok(),
        };
        let change = |command| change_addresses(&path, &command);
        assert_eq!(
            change(announce("192.0.2.1", Some("web"))).unwrap(),
            "443 connections concerned"
        );
        for (command, error) in [
            (
                announce("192.0.2.1", None),
                "there are several services; name one with --service: web, echo",
            ),
            (
                announce("192.0.2.1", Some("w")),
                "no service is named \"w\"; there is web, echo",
            ),
            (
                announce("127.0.0.1", Some("web")),
                "127.0.0.1 is no address that a client could join",
            ),
            (
                AddressCommand::Withdraw {
                    address: "::2".parse().unwrap(),
                },
                "not ::2",
            ),
        ] {
            assert_eq!(change(command).unwrap_err(), error);
        }
        let all = AddressCommand::Backup {
            address: "10.0.0.0/8".parse().unwrap(),
        };
        assert_eq!(change(all).unwrap(), "0 connections concerned");
        assert_eq!("10.0.0.1".parse::<Prefix>().unwrap().0.prefix_len(), 32);
        assert!("10.0.0".parse::<Prefix>().is_err());
    }

    #[test]
    fn a_living_owner_is_respected_and_a_dead_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.sock");
        let first = ControlSocket::bind(&path).unwrap();
        let error = ControlSocket::bind(&path).map(|_| ()).unwrap_err();
        assert!(error.contains("another mpxd answers on"), "{error}");
        assert!(check(&path).is_err());

        // As after SIGKILL: the file stays, nobody listens.
        let ControlSocket { ref listener, .. } = first;
        rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();
        std::mem::forget(first);
        check(&path).unwrap();
        let second = ControlSocket::bind(&path).unwrap();
        drop(second);
        assert!(!path.exists());

        std::fs::write(&path, "mine").unwrap();
        let error = ControlSocket::bind(&path).map(|_| ()).unwrap_err();
        assert!(error.contains("is no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_directory_that_does_not_exist_is_found_before_the_start() {
        let directory = tempfile::tempdir().unwrap();
        check(&directory.path().join("m.sock")).unwrap();
        let error = check(&directory.path().join("none/m.sock")).unwrap_err();
        assert!(error.contains("choose a path in a directory"), "{error}");
    }

    #[test]
    fn nobody_there_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let error = status(&directory.path().join("none.sock"), true).unwrap_err();
        assert!(
            error.starts_with("no mpxd answers on ") && !error.contains('\n'),
            "{error}"
        );
    }
}
