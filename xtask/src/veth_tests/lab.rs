//! What every case works with: topology, backend, server, and the questions at the end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Case;
use crate::backend::{self, Site};
use crate::content::hash_file;
use crate::counters::Counters;
use crate::link::Link;
use crate::process::{Cmd, Process};
use crate::scratch::Scratch;
use crate::server::{App, Config, Kind, Mpxd, Server, Service, peer_cmd, spawn_peer_server};
use crate::topology::{Family, Namespace, Topology, server_socket};

/// How long the server may keep state after the last connection's end.
const SETTLE: Duration = Duration::from_secs(20);

/// How much of mpxd's log an error shows.
const LOG_LINES: usize = 10;
const LOG_WIDTH: usize = 200;

pub(super) const WEB: u16 = 80;
pub(super) const PROXIED: u16 = 81;
pub(super) const HASH: u16 = 82;
pub(super) const DEAD: u16 = 83;
pub(super) const SECOND_BACKEND: u16 = 84;
pub(super) const GREET: u16 = 85;
pub(super) const STALL: u16 = 86;
pub(super) const SILENT: u16 = 87;
pub(super) const NO_CHECKSUM: u16 = 88;
pub(super) const ECHO: u16 = 7;
pub(super) const DISCARD: u16 = 9;
pub(super) const SOURCE: u16 = 19;
pub(super) const IPERF: u16 = 5201;

pub(super) const HASH_BACKEND: &str = "127.0.0.1:9001";
pub(super) const GREET_BACKEND: &str = "127.0.0.1:9002";
pub(super) const STALL_BACKEND: &str = "127.0.0.1:9003";
pub(super) const IPERF_BACKEND: &str = "127.0.0.1:5201";
/// Nothing listens there.
const DEAD_BACKEND: &str = "127.0.0.1:9";
/// Nobody answers there.
pub(super) const SILENT_BACKEND: &str = "10.9.1.99:80";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Mptcp,
    Tcp,
}

pub(super) struct Lab<'a> {
    /// Of every path in its order, where the case has any; they go down before the topology.
    pub(super) links: Vec<Link>,
    pub(super) topology: Topology,
    pub(super) site: &'a Site,
    pub(super) kind: Kind,
    pub(super) config: Config,
    /// Taken by cases that end it themselves.
    pub(super) server: Option<Server>,
    pub(super) scratch: Scratch,
    falls_back: bool,
    /// Between client and server, where a case has put one.
    pub(super) router: Option<Namespace>,
    _nginx: Process,
}

impl<'a> Lab<'a> {
    pub(super) fn start(case: &Case, kind: Kind, site: &'a Site) -> Result<Self, String> {
        let topology = match case.link {
            None => Topology::for_this_run("test", case.shape)?,
            Some(_) => Topology::linked_for_this_run("test", case.shape)?,
        };
        // A seed for each path, or all would lose the same frames.
        let links = topology
            .paths()
            .filter_map(|path| Some((path, format!("{} seed={path}", case.link?))))
            .map(|(path, spec)| topology.link(path, &spec, None))
            .collect::<Result<_, _>>()?;
        let scratch = Scratch::make()?;
        let nginx = site.serve(&topology.server, scratch.path())?;
        let mut config = Config::new(case.shape.paths, services(case.shape.paths));
        (case.configure)(&mut config);
        let mut lab = Self {
            links,
            topology,
            site,
            kind,
            config,
            server: None,
            scratch,
            falls_back: case.falls_back,
            router: None,
            _nginx: nginx,
        };
        if !case.no_server {
            lab.start_server()?;
        }
        Ok(lab)
    }

    pub(super) fn start_server(&mut self) -> Result<(), String> {
        let directory = self.scratch.path();
        let server = Server::start(self.kind, &self.topology.server, directory, &self.config)?;
        self.server = Some(server);
        Ok(())
    }

    /// The questions that end every case.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        let counters = self.client_counters()?;
        for name in [
            "MPTcpExtDataCsumErr",
            "MPTcpExtMPCapableFallbackACK",
            "MPTcpExtMPCapableFallbackSYNACK",
            "TcpInCsumErrors",
            "IpInHdrErrors",
        ] {
            let value = counters.get(name)?;
            if value != 0 && !(self.falls_back && name.contains("Fallback")) {
                return Err(format!("the client's kernel counted {name} {value} times"));
            }
        }
        if let Some(Server::Mpxd(mpxd)) = &self.server {
            mpxd.settle(SETTLE)?;
        }
        if let Some(Server::Mpxd(mpxd)) = self.server.take() {
            mpxd.stop(&self.topology.server)?;
        }
        Ok(())
    }

    /// Adds to an error what the two sides say.
    pub(super) fn explain(&self, error: String) -> String {
        let mut text = error;
        if let Ok(counters) = self.client_counters() {
            text += &format!("\n         client's kernel: {}", counters.mptcp());
        }
        if let Some(Server::Mpxd(mpxd)) = &self.server {
            if let Ok(status) = mpxd.status() {
                text += &status.summary();
            }
            for connection in mpxd.connections().into_iter().flatten().take(3) {
                text += &format!("\n         mpxd has: {connection}");
            }
            let log = mpxd.log();
            let lines: Vec<_> = log.lines().rev().take(LOG_LINES).collect();
            for line in lines.iter().rev() {
                let line: String = line.chars().take(LOG_WIDTH).collect();
                text += &format!("\n         mpxd: {line}");
            }
        }
        text
    }

    pub(super) fn mpxd(&mut self) -> Result<&mut Mpxd, String> {
        match &mut self.server {
            Some(Server::Mpxd(mpxd)) => Ok(mpxd),
            _ => Err("this test needs a running mpxd".to_owned()),
        }
    }

    pub(super) fn take_mpxd(&mut self) -> Result<Mpxd, String> {
        match self.server.take() {
            Some(Server::Mpxd(mpxd)) => Ok(mpxd),
            _ => Err("this test needs a running mpxd".to_owned()),
        }
    }

    pub(super) fn client_counters(&self) -> Result<Counters, String> {
        Counters::read(&self.topology.client)
    }

    /// The client's kernel must have done MPTCP with so many joins accepted.
    pub(super) fn expect_mptcp(&self, joins: u64) -> Result<(), String> {
        let counters = self.client_counters()?;
        for (name, least) in [
            ("MPTcpExtMPCapableSYNTX", 1),
            ("MPTcpExtMPCapableSYNACKRX", 1),
            ("MPTcpExtMPJoinSynAckRx", joins),
        ] {
            let value = counters.get(name)?;
            if value < least {
                return Err(format!("{name} is {value}, at least {least} was expected"));
            }
        }
        let hmac = counters.get("MPTcpExtMPJoinSynAckHMacFailure")?;
        if hmac > 0 {
            return Err(format!("{hmac} of our MP_JOIN HMACs were refused"));
        }
        Ok(())
    }

    pub(super) fn expect_no_mptcp(&self) -> Result<(), String> {
        match self.client_counters()?.get("MPTcpExtMPCapableSYNACKRX")? {
            0 => Ok(()),
            n => Err(format!("a plain TCP client got MP_CAPABLE in {n} SYN/ACKs")),
        }
    }

    /// Octets received and sent so far by the client, per path.
    pub(super) fn octets(&self) -> Result<Vec<(u64, u64)>, String> {
        self.topology
            .paths()
            .map(|path| self.topology.client.octets(&format!("c{path}")))
            .collect()
    }

    /// A program in the client's namespace, under `mptcpize` or not.
    pub(super) fn client(&self, client: Client, program: &str) -> Cmd {
        match client {
            Client::Mptcp => self.topology.client.cmd("mptcpize").args(["run", program]),
            Client::Tcp => self.topology.client.cmd(program),
        }
    }

    /// `xtask peer …` in the client's namespace.
    pub(super) fn peer(&self, client: Client) -> Result<Cmd, String> {
        peer_cmd(&self.topology.client, client == Client::Mptcp)
    }

    /// `xtask peer serve …` as a backend.
    pub(super) fn backend(&self, role: &str, listen: &str, bytes: u64) -> Result<Process, String> {
        let listen: SocketAddr = listen
            .parse()
            .map_err(|error| format!("{listen}: {error}"))?;
        spawn_peer_server(&self.topology.server, false, role, &[listen], None, bytes)
    }

    pub(super) fn url(&self, family: Family, port: u16, file: &str) -> String {
        format!("http://{}/{file}", server_socket(family, 1, port))
    }

    pub(super) fn output(&self) -> PathBuf {
        self.scratch.join("fetched")
    }

    /// curl into `output()`.
    pub(super) fn fetch(&self, client: Client, family: Family, port: u16, file: &str) -> Cmd {
        self.client(client, "curl")
            .args(["-sS", "--fail", "--globoff", "--max-time", "100", "-o"])
            .arg(self.output())
            .arg(self.url(family, port, file))
            .limit(Duration::from_secs(110))
    }

    pub(super) fn download(
        &self,
        client: Client,
        family: Family,
        port: u16,
        file: &str,
    ) -> Result<(), String> {
        self.fetch(client, family, port, file).run()?;
        self.check_fetched(file)
    }

    pub(super) fn check_fetched(&self, file: &str) -> Result<(), String> {
        same_hash(&self.output(), self.site.hash(file)?)
    }

    pub(super) fn upload(
        &self,
        client: Client,
        family: Family,
        port: u16,
        file: &str,
    ) -> Result<(), String> {
        self.put(client, family, port, file).run()?;
        self.check_uploaded(file)
    }

    /// curl that sends a file to the backend.
    pub(super) fn put(&self, client: Client, family: Family, port: u16, file: &str) -> Cmd {
        self.client(client, "curl")
            .args(["-sS", "--fail", "--globoff", "--max-time", "100"])
            .args(["-H", "Expect:", "-T"])
            .arg(self.site.path(file))
            .arg(self.url(family, port, "uploads/one"))
            .limit(Duration::from_secs(110))
    }

    pub(super) fn check_uploaded(&self, file: &str) -> Result<(), String> {
        let kept = self.site.path("uploads/one");
        same_hash(&kept, self.site.hash(file)?)?;
        std::fs::remove_file(&kept)
            .map_err(|error| format!("cannot remove {}: {error}", kept.display()))
    }
}

fn services(paths: u8) -> Vec<Service> {
    let proxy = |backends: &[&str]| App::Proxy(backends.iter().map(|&b| b.to_owned()).collect());
    let on = |name: &str, port, app| Service::on_port(name, port, paths, app);
    vec![
        on("web", WEB, proxy(&[backend::HTTP])),
        on("proxied", PROXIED, proxy(&[backend::HTTP_PROXIED]))
            .with_keys("proxy_protocol = \"v2\"\n"),
        on("hash", HASH, proxy(&[HASH_BACKEND])),
        on("dead", DEAD, proxy(&[DEAD_BACKEND])),
        on(
            "second",
            SECOND_BACKEND,
            proxy(&[DEAD_BACKEND, backend::HTTP]),
        ),
        on("greet", GREET, proxy(&[GREET_BACKEND])),
        on("stall", STALL, proxy(&[STALL_BACKEND])),
        on("silent", SILENT, proxy(&[SILENT_BACKEND])),
        on("no-checksum", NO_CHECKSUM, proxy(&[backend::HTTP])).with_keys("checksum = false\n"),
        on("iperf", IPERF, proxy(&[IPERF_BACKEND])),
        on("echo", ECHO, App::Echo),
        on("discard", DISCARD, App::Discard),
        on("source", SOURCE, App::Source),
    ]
}

fn same_hash(path: &Path, wanted: &str) -> Result<(), String> {
    let hash = hash_file(path)?;
    if hash == wanted {
        return Ok(());
    }
    let bytes = path.metadata().map_or(0, |data| data.len());
    Err(format!(
        "what came over has SHA-256 {hash} ({bytes} bytes), the source has {wanted}"
    ))
}
