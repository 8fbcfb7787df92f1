//! The server under test: `mpxd`, or the kernel's own MPTCP in its place.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::Signal;
use serde_json::Value;

use crate::counters::Counters;
use crate::peer;
use crate::process::{Cmd, Output, Process, until};
use crate::project;
use crate::status::{self, Status};
use crate::topology::{Family, Namespace, server_socket};

/// TIME-WAIT in tests.
pub(crate) const TIME_WAIT: Duration = Duration::from_secs(1);

/// What a backend gets to accept in tests.
/// Enough for a backend whose accept queue (128, what `std` asks for) was full twice: Linux repeats a
/// SYN after 1 and after 3 s.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Mpxd,
    /// The kernel's MPTCP in front of the same backends: what fails here too is no defect of mpxd.
    Kernel,
}

#[derive(Clone, Debug)]
pub(crate) enum App {
    Proxy(Vec<String>),
    Echo,
    Discard,
    Source,
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) listen: Vec<String>,
    pub(crate) app: App,
    /// Further keys of the service, as TOML.
    pub(crate) keys: String,
}

impl Service {
    /// A service on this port of the server's addresses on every path.
    pub(crate) fn on_port(name: &str, port: u16, paths: u8, app: App) -> Self {
        let listen = (1..=paths)
            .flat_map(|path| [Family::V4, Family::V6].map(|family| (family, path)))
            .map(|(family, path)| server_socket(family, path, port).to_string())
            .collect();
        Self {
            name: name.to_owned(),
            listen,
            app,
            keys: String::new(),
        }
    }

    pub(crate) fn with_keys(mut self, keys: &str) -> Self {
        self.keys = keys.to_owned();
        self
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) interfaces: Vec<String>,
    /// Further keys of every interface, as TOML.
    pub(crate) interface_keys: String,
    pub(crate) services: Vec<Service>,
    pub(crate) drain_timeout: Duration,
    pub(crate) time_wait: Duration,
    /// Further top-level keys, as TOML.
    pub(crate) keys: String,
}

impl Config {
    pub(crate) fn new(paths: u8, services: Vec<Service>) -> Self {
        Self {
            interfaces: (1..=paths).map(|path| format!("s{path}")).collect(),
            interface_keys: String::new(),
            services,
            drain_timeout: Duration::from_secs(20),
            time_wait: TIME_WAIT,
            keys: String::new(),
        }
    }

    pub(crate) fn toml(&self, socket: &Path) -> String {
        let mut text = format!(
            "control_socket = {:?}\ntime_wait_ms = {}\ndrain_timeout_ms = {}\n{}",
            socket,
            self.time_wait.as_millis(),
            self.drain_timeout.as_millis(),
            self.keys
        );
        for name in &self.interfaces {
            text += &format!("\n[[interface]]\nname = {name:?}\n{}", self.interface_keys);
        }
        for service in &self.services {
            let app = match &service.app {
                App::Proxy(backends) => format!(
                    "{{ kind = \"proxy\", backends = {backends:?}, connect_timeout_ms = {} }}",
                    CONNECT_TIMEOUT.as_millis()
                ),
                App::Echo => "{ kind = \"echo\" }".to_owned(),
                App::Discard => "{ kind = \"discard\" }".to_owned(),
                App::Source => "{ kind = \"source\" }".to_owned(),
            };
            text += &format!(
                "\n[[service]]\nname = {:?}\nlisten = {:?}\napp = {app}\n{}",
                service.name, service.listen, service.keys
            );
        }
        text
    }
}

/// A running server.
pub(crate) enum Server {
    Mpxd(Mpxd),
    Kernel { _peers: Vec<Process> },
}

impl Server {
    pub(crate) fn start(
        kind: Kind,
        namespace: &Namespace,
        directory: &Path,
        config: &Config,
    ) -> Result<Self, String> {
        match kind {
            Kind::Mpxd => Mpxd::start(namespace, directory, config).map(Self::Mpxd),
            Kind::Kernel => config
                .services
                .iter()
                .map(|service| kernel_server(namespace, service))
                .collect::<Result<_, _>>()
                .map(|_peers| Self::Kernel { _peers }),
        }
    }
}

pub(crate) struct Mpxd {
    process: Process,
    socket: PathBuf,
    interfaces: Vec<String>,
}

impl Mpxd {
    /// Starts `mpxd run` and waits until it answers on its control socket.
    pub(crate) fn start(
        namespace: &Namespace,
        directory: &Path,
        config: &Config,
    ) -> Result<Self, String> {
        let cmd = namespace.cmd(project::release_binary("mpxd"));
        Self::start_as(cmd, directory, config)
    }

    /// The same with one core to run on.
    pub(crate) fn start_on_core(
        namespace: &Namespace,
        directory: &Path,
        config: &Config,
        core: &str,
    ) -> Result<Self, String> {
        let cmd = namespace
            .cmd("taskset")
            .args(["-c", core])
            .arg(project::release_binary("mpxd"));
        Self::start_as(cmd, directory, config)
    }

    /// The same with a command that ends in the program's name.
    pub(crate) fn start_as(cmd: Cmd, directory: &Path, config: &Config) -> Result<Self, String> {
        let socket = directory.join("mpxd.sock");
        let file = directory.join("mpxd.toml");
        std::fs::write(&file, config.toml(&socket))
            .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        let mut process = cmd.args(["run", "--config"]).arg(&file).spawn()?;
        until(Duration::from_secs(20), "mpxd to answer", || {
            if let Some(status) = process.poll()? {
                return Err(format!(
                    "mpxd ended ({status}): {}",
                    process.stderr().trim()
                ));
            }
            Ok(socket.exists() && Status::read(&socket).is_ok())
        })
        .map_err(|error| format!("{error}; mpxd said: {}", process.stderr().trim()))?;
        Ok(Self {
            process,
            socket,
            interfaces: config.interfaces.clone(),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn status(&self) -> Result<Status, String> {
        Status::read(&self.socket)
    }

    pub(crate) fn connections(&self) -> Result<Vec<Value>, String> {
        status::connections(&self.socket)
    }

    /// `mpxd address …`
    pub(crate) fn address(&self, arguments: &[&str]) -> Result<String, String> {
        Cmd::new(project::release_binary("mpxd"))
            .arg("address")
            .args(arguments)
            .arg("--socket")
            .arg(&self.socket)
            .run()
    }

    pub(crate) fn counters(&self) -> Result<Counters, String> {
        status::counters(&self.socket)
    }

    pub(crate) fn settle(&self, limit: Duration) -> Result<(), String> {
        status::settle(&self.socket, limit, TIME_WAIT)
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), String> {
        self.process.signal(signal)
    }

    /// Waits for the exit after a signal: status 0, and nothing left.
    pub(crate) fn ended(self, namespace: &Namespace, limit: Duration) -> Result<(), String> {
        let output = self.ended_somehow(namespace, limit)?;
        if output.status.success() {
            Ok(())
        } else {
            Err(format!(
                "mpxd ended with {} instead of 0: {}",
                output.status,
                output.stderr.trim()
            ))
        }
    }

    /// Waits for the exit after a signal: no XDP program and no control socket left.
    pub(crate) fn ended_somehow(
        self,
        namespace: &Namespace,
        limit: Duration,
    ) -> Result<Output, String> {
        let output = self.process.wait(limit)?;
        for name in &self.interfaces {
            if namespace.has_xdp(name)? {
                return Err(format!("mpxd left an XDP program on {name}"));
            }
        }
        if self.socket.exists() {
            return Err(format!("mpxd left {} behind", self.socket.display()));
        }
        Ok(output)
    }

    /// SIGTERM with nothing open: it ends at once.
    pub(crate) fn stop(mut self, namespace: &Namespace) -> Result<(), String> {
        self.signal(Signal::TERM)?;
        self.ended(namespace, Duration::from_secs(5))
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.stderr() + &self.process.stdout()
    }
}

fn kernel_server(namespace: &Namespace, service: &Service) -> Result<Process, String> {
    let role = match &service.app {
        App::Proxy(_) => "proxy",
        App::Echo => "echo",
        App::Discard => "discard",
        App::Source => "source",
    };
    let backend = match &service.app {
        App::Proxy(backends) => backends.first().map(|backend| backend.parse()),
        _ => None,
    };
    let backend = backend
        .transpose()
        .map_err(|error| format!("service {}: {error}", service.name))?;
    let listen: Result<Vec<SocketAddr>, _> = service
        .listen
        .iter()
        .map(|address| address.parse())
        .collect();
    let listen = listen.map_err(|error| format!("service {}: {error}", service.name))?;
    spawn_peer_server(namespace, true, role, &listen, backend, 0)
}

/// Starts `xtask peer serve` and waits until it listens.
pub(crate) fn spawn_peer_server(
    namespace: &Namespace,
    mptcp: bool,
    role: &str,
    listen: &[SocketAddr],
    backend: Option<SocketAddr>,
    bytes: u64,
) -> Result<Process, String> {
    let mut cmd = peer_cmd(namespace, mptcp)?
        .args(["serve", role])
        .args(["--bytes", &bytes.to_string()]);
    for address in listen {
        cmd = cmd.args(["--listen", &address.to_string()]);
    }
    if let Some(backend) = backend {
        cmd = cmd.args(["--backend", &backend.to_string()]);
    }
    let mut process = cmd.spawn()?;
    until(
        Duration::from_secs(5),
        &format!("the {role} peer to listen"),
        || match process.poll()? {
            Some(status) => Err(format!(
                "the {role} peer ended ({status}): {}",
                process.stderr().trim()
            )),
            None => Ok(process.stdout().contains(peer::READY)),
        },
    )?;
    Ok(process)
}

/// `xtask peer …` in a namespace, on MPTCP sockets or plain ones.
pub(crate) fn peer_cmd(namespace: &Namespace, mptcp: bool) -> Result<Cmd, String> {
    let program = std::env::current_exe()
        .map_err(|error| format!("cannot find this program's own file: {error}"))?;
    let cmd = if mptcp {
        namespace.cmd("mptcpize").arg("run").arg(program)
    } else {
        namespace.cmd(program)
    };
    Ok(cmd.arg("peer"))
}
