//! The configuration: TOML as written (`Raw*`) is parsed into a [`Config`] whose values are all in
//! range, or into one line that says file, line, key, what is wrong and what to do.

mod close;
mod joins;
mod mptcp;
mod workers;

pub(crate) use workers::{FlowHash, Generic, Steering, Workers};

use close::RawClose;
use ipnet::IpNet;
use mptcp::RawMptcp;
use mpx_datapath::engine::{
    AddressPolicy, Announce, Closing, JoinPolicy, JoinRule, Patience, Versions,
};
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::tcp::fast_open::FastOpen;
use mpx_ebpf::{INTERFACES_MAX, OWNER_BITS_DEFAULT};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// Everything `mpxd` was told, checked as far as the text alone allows.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) file: PathBuf,
    pub(crate) interfaces: Vec<InterfaceConfig>,
    pub(crate) services: Vec<Service>,
    /// Serve addresses and ports that a kernel socket holds as well.
    pub(crate) takeover: bool,
    /// Drop joins that are malformed or for a port that takes none before they reach a socket.
    pub(crate) drop_invalid_joins: bool,
    pub(crate) control_socket: PathBuf,
    /// What open connections get after the first SIGTERM or SIGINT.
    pub(crate) drain_timeout: Duration,
    /// How long a closed subflow's 4-tuple stays reserved (RFC 9293 §3.6.1: twice the MSL).
    pub(crate) time_wait: Duration,
    pub(crate) limits: Limits,
    pub(crate) server: Server,
    pub(crate) workers: Workers,
}

/// `[[interface]]`
#[derive(Clone, Debug)]
pub(crate) struct InterfaceConfig {
    pub(crate) name: String,
    /// Answer ARP and neighbour solicitations for served addresses that the kernel does not have.
    pub(crate) announce: bool,
    pub(crate) line: usize,
}

/// `[[service]]`
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) listen: Vec<Listen>,
    pub(crate) app: AppConfig,
    /// Of Multipath TCP.
    pub(crate) versions: Versions,
    /// Ask for DSS checksums (RFC 8684 §3.1, flag A).
    pub(crate) checksum: bool,
    pub(crate) joins: JoinPolicy,
    pub(crate) addresses: AddressPolicy,
    pub(crate) congestion: Algorithm,
    /// Agree to ECN where a client asks for it (RFC 3168).
    pub(crate) ecn: bool,
    pub(crate) fast_open: FastOpen,
    pub(crate) patience: Patience,
    pub(crate) closing: Closing,
}

/// One address of `listen`; an unspecified address stands for the interfaces' own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    pub(crate) line: usize,
}

/// `app = { kind = ... }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AppConfig {
    Proxy(ProxyConfig),
    Echo,
    Discard,
    Source,
}

impl AppConfig {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            AppConfig::Proxy(_) => "proxy",
            AppConfig::Echo => "echo",
            AppConfig::Discard => "discard",
            AppConfig::Source => "source",
        }
    }
}

/// The settings of a proxy to kernel TCP backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyConfig {
    /// Never empty.
    pub(crate) backends: Vec<SocketAddr>,
    /// For one backend; then the next one is tried.
    pub(crate) connect_timeout: Duration,
    /// Send a PROXY protocol v2 header with the client's address first.
    pub(crate) proxy_protocol: bool,
}

/// Upper bounds on what peers can make a worker hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    /// Subflows of one connection, the initial one included.
    pub(crate) max_subflows: usize,
    /// Handshakes that wait for their third ACK.
    pub(crate) max_half_open: usize,
    /// Connections that have no subflow left and wait for one.
    pub(crate) max_stranded: usize,
    /// So many of them, and SYNs are answered with cookies; above `max_half_open`: never.
    pub(crate) syn_cookies_from: usize,
    /// Joins of one source that wait for their third ACK.
    pub(crate) max_pending_joins_per_source: u32,
    /// Keys that are drawn in idle time.
    pub(crate) max_keys_ahead: usize,
    /// Connections of one service that Fast Open has opened and that still wait for their third ACK.
    pub(crate) max_pending_fast_opens: usize,
    /// Per connection, shared by its subflows: how far the receive window grows.
    pub(crate) receive_buffer_max_bytes: usize,
    /// Per connection: how far what the app may write ahead of the acknowledgments grows.
    pub(crate) send_buffer_max_bytes: usize,
    /// What the buffers of all connections of a worker may hold; by default a quarter of the machine's
    /// memory.
    pub(crate) memory_max_bytes: Option<usize>,
    /// Answers in one second to what fits a connection and is not acceptable (RFC 5961 §7).
    pub(crate) max_challenge_acks_per_s: u32,
    /// RSTs in one second to what fits no connection.
    pub(crate) max_resets_per_s: u32,
    pub(crate) max_syns_per_s: u32,
    pub(crate) max_strays_per_s: u32,
}

/// This server among those that share the addresses behind a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) id: u32,
    pub(crate) of: u32,
}

impl Config {
    /// Reads and parses `file`.
    pub(crate) fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            file: file.to_owned(),
            line: None,
            key: String::new(),
            what: format!("cannot be read ({error}); give the configuration with --config FILE"),
        })?;
        Config::parse(file, &text)
    }

    /// Parses `text`, which came from `file`.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        Source { file, text }.config()
    }

    /// An error about one line of this configuration that only the machine could tell.
    pub(crate) fn error(&self, line: usize, key: &str, what: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.file.clone(),
            line: Some(line),
            key: key.to_owned(),
            what: what.into(),
        }
    }
}

impl Service {
    /// The addresses served, with `0.0.0.0` and `[::]` replaced by those of the interfaces that
    /// are in `own`. Each appears once.
    pub(crate) fn addresses(&self, own: &[IpAddr]) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for listen in &self.listen {
            for address in listen.addresses(own) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        addresses
    }
}

impl Listen {
    /// Link-local addresses are left out of `[::]`: they mean nothing without their interface.
    pub(crate) fn addresses(&self, own: &[IpAddr]) -> Vec<SocketAddr> {
        if !self.address.ip().is_unspecified() {
            return vec![self.address];
        }
        own.iter()
            .filter(|ip| ip.is_ipv4() == self.address.is_ipv4())
            .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .map(|ip| SocketAddr::new(*ip, self.address.port()))
            .collect()
    }

    /// Whether one segment could be for both.
    fn overlaps(&self, other: &Listen) -> bool {
        let (a, b) = (self.address, other.address);
        a.port() == b.port()
            && a.is_ipv4() == b.is_ipv4()
            && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
    }
}

/// One line: `FILE:LINE: KEY: what is wrong; what to do`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    key: String,
    what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        // Whatever a library put into its message, ours stays on one line.
        for word in self.what.split_whitespace() {
            write!(f, " {word}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawConfig {
    #[serde(default)]
    interface: Vec<RawInterface>,
    #[serde(default)]
    service: Vec<RawService>,
    #[serde(default)]
    takeover: bool,
    #[serde(default)]
    drop_invalid_joins: bool,
    control_socket: Option<Spanned<PathBuf>>,
    drain_timeout_ms: Option<Spanned<u64>>,
    time_wait_ms: Option<Spanned<u64>>,
    #[serde(default)]
    limits: RawLimits,
    server: Option<RawServer>,
    workers: Option<Spanned<u64>>,
    cores: Option<Spanned<Vec<Spanned<u64>>>>,
    steering: Option<Spanned<String>>,
    flow_hash: Option<Spanned<String>>,
    generic: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawInterface {
    name: Spanned<String>,
    #[serde(default)]
    announce: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawService {
    name: Spanned<String>,
    listen: Spanned<Vec<Spanned<String>>>,
    app: Spanned<RawApp>,
    mptcp: Option<RawMptcp>,
    checksum: Option<bool>,
    joins: Option<Spanned<toml::Value>>,
    max_subflows: Option<Spanned<u64>>,
    open_subflows: Option<Spanned<u64>>,
    deny_join_initial: Option<bool>,
    #[serde(default)]
    announce: Vec<Spanned<RawAnnounce>>,
    #[serde(default)]
    join_rule: Vec<Spanned<RawJoinRule>>,
    proxy_protocol: Option<Spanned<String>>,
    keepalive_ms: Option<Spanned<u64>>,
    congestion: Option<Spanned<String>>,
    ecn: Option<bool>,
    fast_open: Option<Spanned<String>>,
    keepalive_interval_ms: Option<Spanned<u64>>,
    keepalive_probes: Option<Spanned<u64>>,
    persist_interval_max_ms: Option<Spanned<u64>>,
    persist_probes: Option<Spanned<u64>>,
    user_timeout_ms: Option<Spanned<u64>>,
    no_subflow_timeout_ms: Option<Spanned<u64>>,
    #[serde(default)]
    close: RawClose,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawAnnounce {
    address: Spanned<String>,
    port: Option<Spanned<u64>>,
    id: Option<Spanned<u64>>,
    local: Option<Spanned<String>>,
    clients: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawJoinRule {
    from: Option<Spanned<String>>,
    to: Option<Spanned<String>>,
    accept: Option<bool>,
    backup: Option<bool>,
}

/// The keys of all kinds: which of them go together is checked with the line at hand.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawApp {
    kind: Spanned<String>,
    backends: Option<Spanned<Vec<Spanned<String>>>>,
    connect_timeout_ms: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawLimits {
    max_connections: Option<Spanned<u64>>,
    max_subflows: Option<Spanned<u64>>,
    max_half_open: Option<Spanned<u64>>,
    max_stranded: Option<Spanned<u64>>,
    syn_cookies_from: Option<Spanned<u64>>,
    max_pending_joins_per_source: Option<Spanned<u64>>,
    max_keys_ahead: Option<Spanned<u64>>,
    max_pending_fast_opens: Option<Spanned<u64>>,
    receive_buffer_max_bytes: Option<Spanned<u64>>,
    send_buffer_max_bytes: Option<Spanned<u64>>,
    memory_max_bytes: Option<Spanned<u64>>,
    max_challenge_acks_per_s: Option<Spanned<u64>>,
    max_resets_per_s: Option<Spanned<u64>>,
    max_syns_per_s: Option<Spanned<u64>>,
    max_strays_per_s: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawServer {
    id: Spanned<u64>,
    of: Spanned<u64>,
}

/// Why no segment for `address` would ever be found ours, with the remedy.
fn not_servable(address: SocketAddr) -> Option<String> {
    let ip = address.ip();
    if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("is no unicast address; name one".into());
    }
    if ip.is_loopback() {
        return Some("is a loopback address, which no interface receives; name another".into());
    }
    let IpAddr::V6(v6) = ip else { return None };
    if let Some(v4) = v6.to_ipv4_mapped() {
        let plain = SocketAddr::new(v4.into(), address.port());
        return Some(format!("is an IPv4 address in disguise; write \"{plain}\""));
    }
    // An address is served on every interface.
    matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0)
        .then(|| format!("names an interface; write \"[{v6}]:{}\"", address.port()))
}

/// How each key is written: the remedy for a wrong type or a missing key. The values are the
/// defaults where the key has one.
const EXAMPLES: &[(&str, &str)] = &[
    ("interface", "[[interface]] with name = \"eth0\""),
    ("service", "[[service]] with name, listen and app"),
    ("takeover", "takeover = false"),
    ("drop_invalid_joins", "drop_invalid_joins = false"),
    ("control_socket", "control_socket = \"/run/mpxd.sock\""),
    ("drain_timeout_ms", "drain_timeout_ms = 30000"),
    ("time_wait_ms", "time_wait_ms = 60000"),
    ("limits", "[limits]"),
    ("server", "server = { id = 0, of = 1 }"),
    ("workers", "workers = 2"),
    ("cores", "cores = [2, 3]"),
    ("steering", "steering = \"direct\" or \"mesh\""),
    ("flow_hash", "flow_hash = \"xdp\" or \"nic\""),
    ("generic", "generic = \"never\", \"allow\" or \"always\""),
    ("id", "server = { id = 0, of = 1 }"),
    ("of", "server = { id = 0, of = 1 }"),
    ("name", "name = \"web\""),
    (
        "listen",
        "listen = [\"192.0.2.1:80\", \"[2001:db8::1]:80\"]",
    ),
    (
        "app",
        "app = { kind = \"proxy\", backends = [\"127.0.0.1:8080\"] }",
    ),
    (
        "kind",
        "kind = \"proxy\", \"echo\", \"discard\" or \"source\"",
    ),
    ("backends", "backends = [\"127.0.0.1:8080\"]"),
    ("connect_timeout_ms", "connect_timeout_ms = 3000"),
    ("mptcp", "mptcp = { versions = [1, 0] }"),
    ("versions", "versions = [1, 0]"),
    ("checksum", "checksum = true"),
    (
        "joins",
        "joins = \"any-port\", \"service-ports\" or [8080, 8443]",
    ),
    ("open_subflows", "open_subflows = 1, or 0 to open none"),
    ("deny_join_initial", "deny_join_initial = false"),
    (
        "announce",
        "[[service.announce]] with address = \"192.0.2.2\"",
    ),
    (
        "join_rule",
        "[[service.join_rule]] with from, to, accept or backup",
    ),
    ("address", "address = \"192.0.2.2\""),
    ("port", "port = 443"),
    ("local", "local = \"10.0.0.2:443\""),
    ("clients", "clients = \"198.51.100.0/24\""),
    ("from", "from = \"198.51.100.0/24\""),
    ("to", "to = \"192.0.2.0/24\""),
    ("accept", "accept = false"),
    ("backup", "backup = true"),
    ("proxy_protocol", "proxy_protocol = \"none\" or \"v2\""),
    ("keepalive_ms", "keepalive_ms = 7200000, or 0 for never"),
    ("congestion", "congestion = \"cubic\", \"reno\" or \"lia\""),
    ("ecn", "ecn = true"),
    (
        "fast_open",
        "fast_open = \"off\", \"on\" or \"without-cookies\"",
    ),
    ("keepalive_interval_ms", "keepalive_interval_ms = 75000"),
    ("keepalive_probes", "keepalive_probes = 9"),
    ("persist_interval_max_ms", "persist_interval_max_ms = 60000"),
    ("persist_probes", "persist_probes = 10"),
    (
        "user_timeout_ms",
        "user_timeout_ms = 100000, or 0 to go by the number of retransmissions",
    ),
    (
        "no_subflow_timeout_ms",
        "no_subflow_timeout_ms = 60000, or 0 to end with the last subflow",
    ),
    (
        "close",
        "close = { passive = true, hold_client_first_ms = 5000 }",
    ),
    ("passive", "passive = true"),
    ("hold_client_first_ms", "hold_client_first_ms = 5000"),
    ("hold_server_first_ms", "hold_server_first_ms = 2000"),
    ("fin_timeout_ms", "fin_timeout_ms = 60000"),
    ("max_connections", "max_connections = 65536"),
    ("max_subflows", "max_subflows = 8"),
    ("max_half_open", "max_half_open = 4096"),
    ("max_stranded", "max_stranded = 16384"),
    ("syn_cookies_from", "syn_cookies_from = 1024"),
    (
        "max_pending_joins_per_source",
        "max_pending_joins_per_source = 1024",
    ),
    ("max_keys_ahead", "max_keys_ahead = 1024"),
    ("max_pending_fast_opens", "max_pending_fast_opens = 1024"),
    (
        "receive_buffer_max_bytes",
        "receive_buffer_max_bytes = 8388608",
    ),
    ("send_buffer_max_bytes", "send_buffer_max_bytes = 8388608"),
    ("memory_max_bytes", "memory_max_bytes = 1073741824"),
    (
        "max_challenge_acks_per_s",
        "max_challenge_acks_per_s = 1000",
    ),
    ("max_resets_per_s", "max_resets_per_s = 10000"),
    ("max_syns_per_s", "max_syns_per_s = 20000"),
    ("max_strays_per_s", "max_strays_per_s = 30000"),
];

/// Of one connection.
const SUBFLOWS_MAX: u64 = 64;

/// The text under parse, to turn byte offsets into lines.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn config(&self) -> Result<Config, ConfigError> {
        let raw = self.raw()?;
        if raw.interface.is_empty() {
            return Err(self.error_without_line(
                "interface",
                "none is configured; add [[interface]] with name = \"eth0\"",
            ));
        }
        if raw.service.is_empty() {
            return Err(self.error_without_line(
                "service",
                "none is configured; add [[service]] with name, listen and app",
            ));
        }
        let config = Config {
            file: self.file.to_owned(),
            interfaces: self.interfaces(&raw.interface)?,
            services: raw
                .service
                .iter()
                .map(|service| self.service(service))
                .collect::<Result<_, _>>()?,
            takeover: raw.takeover,
            drop_invalid_joins: raw.drop_invalid_joins,
            control_socket: self.control_socket(raw.control_socket.as_ref())?,
            drain_timeout: self.millis(
                "drain_timeout_ms",
                raw.drain_timeout_ms.as_ref(),
                30_000,
                0..=3_600_000,
            )?,
            time_wait: self.millis(
                "time_wait_ms",
                raw.time_wait_ms.as_ref(),
                60_000,
                0..=240_000,
            )?,
            limits: self.limits(&raw.limits)?,
            server: self.server(raw.server.as_ref())?,
            workers: self.workers(&raw)?,
        };
        self.refuse_shared_names(&raw)?;
        self.refuse_shared_addresses(&config.services)?;
        Ok(config)
    }

    fn raw(&self) -> Result<RawConfig, ConfigError> {
        let deserializer =
            toml::Deserializer::parse(self.text).map_err(|error| self.toml_error("", &error))?;
        serde_path_to_error::deserialize(deserializer)
            .map_err(|error| self.toml_error(&key_of(error.path()), error.inner()))
    }

    fn toml_error(&self, key: &str, error: &toml::de::Error) -> ConfigError {
        let message = error.message();
        let (what, wanted) = if let Some(rest) = message.strip_prefix("unknown field ") {
            (format!("unknown key {rest}; remove or rename it"), None)
        } else if let Some(rest) = message.strip_prefix("missing field ") {
            (format!("missing key {rest}"), Some(rest.trim_matches('`')))
        } else if message.starts_with("invalid type") || message.starts_with("invalid value") {
            let last = key.rsplit('.').next().unwrap_or(key);
            (
                message.to_owned(),
                Some(last.split('[').next().unwrap_or(last)),
            )
        } else {
            (format!("{message}; mend the TOML here"), None)
        };
        let example = wanted.and_then(|wanted| EXAMPLES.iter().find(|(key, _)| *key == wanted));
        let what = match example {
            Some((_, example)) => format!("{what}; write {example}"),
            None => what,
        };
        ConfigError {
            file: self.file.to_owned(),
            line: error.span().map(|span| self.line(span.start)),
            key: key.to_owned(),
            what,
        }
    }

    fn interfaces(&self, raw: &[RawInterface]) -> Result<Vec<InterfaceConfig>, ConfigError> {
        if let Some(surplus) = raw.get(INTERFACES_MAX as usize) {
            return Err(self.error(
                &surplus.name,
                "interface",
                format!("more than {INTERFACES_MAX} are configured; remove some"),
            ));
        }
        raw.iter()
            .map(|interface| {
                let name = interface.name.get_ref();
                // IFNAMSIZ counts the closing NUL.
                if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) {
                    return Err(self.error(
                        &interface.name,
                        "interface.name",
                        format!("{name:?} cannot name an interface; see `ip link`"),
                    ));
                }
                Ok(InterfaceConfig {
                    name: name.clone(),
                    announce: interface.announce,
                    line: self.line_of(&interface.name),
                })
            })
            .collect()
    }

    fn service(&self, raw: &RawService) -> Result<Service, ConfigError> {
        if raw.name.get_ref().is_empty() {
            return Err(self.error(
                &raw.name,
                "service.name",
                "is empty; give each service a name of its own",
            ));
        }
        if raw.listen.get_ref().is_empty() {
            return Err(self.error(
                &raw.listen,
                "service.listen",
                "is empty; write listen = [\"192.0.2.1:80\"]",
            ));
        }
        let listen = raw
            .listen
            .get_ref()
            .iter()
            .map(|text| {
                let address = self.address("service.listen", text)?;
                if let Some(what) = not_servable(address) {
                    return Err(self.error(text, "service.listen", format!("{address} {what}")));
                }
                Ok(Listen {
                    address,
                    line: self.line_of(text),
                })
            })
            .collect::<Result<_, _>>()?;
        let congestion = self.choice(
            "service.congestion",
            raw.congestion.as_ref(),
            &Algorithm::ALL.map(|algorithm| (algorithm.name(), algorithm)),
        )?;
        Ok(Service {
            name: raw.name.get_ref().clone(),
            listen,
            app: self.app(raw)?,
            versions: self.versions(raw.mptcp.as_ref())?,
            checksum: raw.checksum.unwrap_or(true),
            joins: self.joins(raw.joins.as_ref())?,
            addresses: self.addresses(raw)?,
            patience: self.patience(raw)?,
            closing: self.closing(&raw.close)?,
            congestion,
            ecn: raw.ecn.unwrap_or(true),
            fast_open: self.choice(
                "service.fast_open",
                raw.fast_open.as_ref(),
                &[
                    ("off", FastOpen::Off),
                    ("on", FastOpen::On),
                    ("without-cookies", FastOpen::WithoutCookies),
                ],
            )?,
        })
    }

    fn addresses(&self, raw: &RawService) -> Result<AddressPolicy, ConfigError> {
        let mut announce: Vec<Announce> = Vec::new();
        for (place, value) in raw.announce.iter().enumerate() {
            let this = self.announce(value.get_ref(), place as u64 + 1)?;
            if announce.iter().any(|other| other.id == this.id) {
                let at = match &value.get_ref().id {
                    Some(id) => id.span(),
                    None => value.get_ref().address.span(),
                };
                return Err(ConfigError {
                    file: self.file.to_owned(),
                    line: Some(self.line(at.start)),
                    key: "service.announce.id".into(),
                    what: format!(
                        "{} is another address's; give each an id of its own from 1 to 255",
                        this.id
                    ),
                });
            }
            announce.push(this);
        }
        let join_rules = raw.join_rule.iter().map(|value| {
            let rule = value.get_ref();
            if rule.from.is_none()
                && rule.to.is_none()
                && rule.accept.is_none()
                && rule.backup.is_none()
            {
                return Err(self.error(
                    value,
                    "service.join_rule",
                    "says nothing; give it from, to, accept or backup, or remove it",
                ));
            }
            let (accept, backup) = (rule.accept.unwrap_or(true), rule.backup.unwrap_or(false));
            if backup && !accept {
                return Err(self.error(
                    value,
                    "service.join_rule",
                    "what is not accepted is no backup; remove accept = false or backup = true",
                ));
            }
            Ok(JoinRule {
                from: self.network("service.join_rule.from", rule.from.as_ref())?,
                to: self.network("service.join_rule.to", rule.to.as_ref())?,
                accept,
                backup,
            })
        });
        let subflows_max = raw.max_subflows.as_ref();
        let subflows_max = subflows_max
            .map(|value| self.number("service.max_subflows", Some(value), 0, 1..=SUBFLOWS_MAX))
            .transpose()?;
        let open_subflows = raw.open_subflows.as_ref();
        let open_subflows =
            self.number("service.open_subflows", open_subflows, 0, 0..=SUBFLOWS_MAX)?;
        Ok(AddressPolicy {
            announce,
            join_rules: join_rules.collect::<Result<_, _>>()?,
            deny_join_initial: raw.deny_join_initial.unwrap_or(false),
            subflows_max: subflows_max.map(|subflows| subflows as usize),
            open_subflows: open_subflows as usize,
        })
    }

    fn announce(&self, raw: &RawAnnounce, place: u64) -> Result<Announce, ConfigError> {
        const KEY: &str = "service.announce.address";
        let text = &raw.address;
        let address: IpAddr = text.get_ref().parse().map_err(|_| {
            self.error(
                text,
                KEY,
                format!(
                    "{:?} is not an address; write it like \"192.0.2.2\" and the port, if it is \
                     another one, as port = 443",
                    text.get_ref()
                ),
            )
        })?;
        if address.is_unspecified() {
            return Err(self.error(
                text,
                KEY,
                format!("{address} is no address to connect to; name one"),
            ));
        }
        if let Some(what) = not_servable(SocketAddr::new(address, 0)) {
            return Err(self.error(text, KEY, format!("{address} {what}")));
        }
        let port = raw.port.as_ref().map(|value| {
            self.number(
                "service.announce.port",
                Some(value),
                0,
                1..=u64::from(u16::MAX),
            )
        });
        let id = self.number("service.announce.id", raw.id.as_ref(), place, 1..=255)?;
        let local = raw.local.as_ref();
        let local = local.map(|text| self.address("service.announce.local", text));
        Ok(Announce {
            id: id as u8,
            address,
            port: port.transpose()?.map(|port| port as u16),
            local: local.transpose()?,
            clients: self.network("service.announce.clients", raw.clients.as_ref())?,
        })
    }

    fn network(
        &self,
        key: &str,
        text: Option<&Spanned<String>>,
    ) -> Result<Option<IpNet>, ConfigError> {
        let Some(text) = text else { return Ok(None) };
        let network = text.get_ref().parse::<IpNet>().map_err(|_| {
            self.error(
                text,
                key,
                format!(
                    "{:?} is not ADDRESS/LENGTH; write it like \"198.51.100.0/24\" or \
                     \"2001:db8::/32\"",
                    text.get_ref()
                ),
            )
        })?;
        if network.trunc() != network {
            return Err(self.error(
                text,
                key,
                format!(
                    "{network} names a host; the network is \"{}\"",
                    network.trunc()
                ),
            ));
        }
        Ok(Some(network))
    }

    fn patience(&self, raw: &RawService) -> Result<Patience, ConfigError> {
        const DAY_MS: u64 = 86_400_000;
        // Less than a retransmission timeout would end sound connections (RFC 5482 §3.1).
        const USER_TIMEOUT_MIN_MS: u64 = 1_000;
        let millis = |key: &str, value: &Option<Spanned<u64>>, default: Duration, range| {
            self.millis(key, value.as_ref(), default.as_millis() as u64, range)
        };
        let probes = |key: &str, value: &Option<Spanned<u64>>, default: u32| {
            self.number(key, value.as_ref(), u64::from(default), 1..=100)
                .map(|probes| probes as u32)
        };
        let default = Patience::default();
        let keepalive = millis(
            "service.keepalive_ms",
            &raw.keepalive_ms,
            default.keepalive.unwrap_or_default(),
            0..=DAY_MS,
        )?;
        let user_timeout = millis(
            "service.user_timeout_ms",
            &raw.user_timeout_ms,
            default.user_timeout.unwrap_or_default(),
            0..=DAY_MS,
        )?;
        if let Some(value) = &raw.user_timeout_ms
            && (1..USER_TIMEOUT_MIN_MS).contains(value.get_ref())
        {
            return Err(self.error(
                value,
                "service.user_timeout_ms",
                format!(
                    "{} is too short; choose 0 for none or from {USER_TIMEOUT_MIN_MS} to {DAY_MS}",
                    value.get_ref()
                ),
            ));
        }
        Ok(Patience {
            keepalive: (!keepalive.is_zero()).then_some(keepalive),
            keepalive_interval: millis(
                "service.keepalive_interval_ms",
                &raw.keepalive_interval_ms,
                default.keepalive_interval,
                1_000..=DAY_MS,
            )?,
            keepalive_probes: probes(
                "service.keepalive_probes",
                &raw.keepalive_probes,
                default.keepalive_probes,
            )?,
            persist_interval_max: millis(
                "service.persist_interval_max_ms",
                &raw.persist_interval_max_ms,
                default.persist_interval_max,
                1_000..=DAY_MS,
            )?,
            persist_probes: probes(
                "service.persist_probes",
                &raw.persist_probes,
                default.persist_probes,
            )?,
            user_timeout: (!user_timeout.is_zero()).then_some(user_timeout),
            without_subflow: millis(
                "service.no_subflow_timeout_ms",
                &raw.no_subflow_timeout_ms,
                default.without_subflow,
                0..=DAY_MS,
            )?,
        })
    }

    fn app(&self, service: &RawService) -> Result<AppConfig, ConfigError> {
        let raw = service.app.get_ref();
        let proxy_protocol = self.choice(
            "service.proxy_protocol",
            service.proxy_protocol.as_ref(),
            &[("none", false), ("v2", true)],
        )?;
        let plain = match raw.kind.get_ref().as_str() {
            "proxy" => {
                return Ok(AppConfig::Proxy(ProxyConfig {
                    backends: self.backends(raw)?,
                    connect_timeout: self.millis(
                        "service.app.connect_timeout_ms",
                        raw.connect_timeout_ms.as_ref(),
                        3_000,
                        1..=600_000,
                    )?,
                    proxy_protocol,
                }));
            }
            "echo" => AppConfig::Echo,
            "discard" => AppConfig::Discard,
            "source" => AppConfig::Source,
            kind => {
                return Err(self.error(
                    &raw.kind,
                    "service.app.kind",
                    format!("unknown app {kind:?}; use proxy, echo, discard or source"),
                ));
            }
        };
        let stray = raw
            .backends
            .as_ref()
            .map(|value| ("service.app.backends", value.span()))
            .or(raw
                .connect_timeout_ms
                .as_ref()
                .map(|value| ("service.app.connect_timeout_ms", value.span())))
            .or(service
                .proxy_protocol
                .as_ref()
                .filter(|_| proxy_protocol)
                .map(|value| ("service.proxy_protocol", value.span())));
        match stray {
            None => Ok(plain),
            Some((key, span)) => Err(ConfigError {
                file: self.file.to_owned(),
                line: Some(self.line(span.start)),
                key: key.to_owned(),
                what: format!(
                    "app {} takes no such key; remove it or set kind = \"proxy\"",
                    plain.kind()
                ),
            }),
        }
    }

    fn backends(&self, raw: &RawApp) -> Result<Vec<SocketAddr>, ConfigError> {
        const KEY: &str = "service.app.backends";
        const NONE: &str = "a proxy needs at least one; write backends = [\"127.0.0.1:8080\"]";
        let Some(list) = &raw.backends else {
            return Err(self.error(&raw.kind, KEY, NONE));
        };
        if list.get_ref().is_empty() {
            return Err(self.error(list, KEY, NONE));
        }
        list.get_ref()
            .iter()
            .map(|text| {
                let address = self.address(KEY, text)?;
                if address.ip().is_unspecified() {
                    return Err(self.error(
                        text,
                        KEY,
                        format!("{address} is nowhere to connect to; name the backend's address"),
                    ));
                }
                Ok(address)
            })
            .collect()
    }

    fn address(&self, key: &str, text: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        let address: SocketAddr = text.get_ref().parse().map_err(|_| {
            self.error(
                text,
                key,
                format!(
                    "{:?} is not ADDRESS:PORT; write it like \"192.0.2.1:80\" or \
                     \"[2001:db8::1]:80\"",
                    text.get_ref()
                ),
            )
        })?;
        if address.port() == 0 {
            return Err(self.error(
                text,
                key,
                format!(
                    "{:?} has port 0; name a port from 1 to 65535",
                    text.get_ref()
                ),
            ));
        }
        Ok(address)
    }

    fn control_socket(&self, raw: Option<&Spanned<PathBuf>>) -> Result<PathBuf, ConfigError> {
        /// `sun_path` less its closing NUL.
        const LONGEST: usize = 107;
        let Some(raw) = raw else {
            return Ok(PathBuf::from(crate::admin::DEFAULT_SOCKET));
        };
        let path = raw.get_ref();
        if !path.is_absolute() || path.as_os_str().len() > LONGEST {
            return Err(self.error(
                raw,
                "control_socket",
                format!(
                    "must be an absolute path of at most {LONGEST} bytes; shorten or complete it"
                ),
            ));
        }
        Ok(path.clone())
    }

    fn limits(&self, raw: &RawLimits) -> Result<Limits, ConfigError> {
        const BUFFER: std::ops::RangeInclusive<u64> = 16_384..=1 << 30;
        const MEMORY: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 44;
        const RATE: std::ops::RangeInclusive<u64> = 1..=10_000_000;
        // Counted in windows of 67 ms, of at least one.
        const CROWD: std::ops::RangeInclusive<u64> = 15..=1_000_000_000;
        let number = |key, value: &Option<Spanned<u64>>, default, range| {
            self.number(key, value.as_ref(), default, range)
                .map(|value| value as usize)
        };
        Ok(Limits {
            max_connections: number(
                "limits.max_connections",
                &raw.max_connections,
                65_536,
                1..=1 << 24,
            )?,
            max_subflows: number(
                "limits.max_subflows",
                &raw.max_subflows,
                8,
                1..=SUBFLOWS_MAX,
            )?,
            max_half_open: number(
                "limits.max_half_open",
                &raw.max_half_open,
                4_096,
                1..=1 << 24,
            )?,
            max_stranded: number(
                "limits.max_stranded",
                &raw.max_stranded,
                16_384,
                0..=1 << 24,
            )?,
            syn_cookies_from: number(
                "limits.syn_cookies_from",
                &raw.syn_cookies_from,
                1_024,
                0..=1 << 25,
            )?,
            max_pending_joins_per_source: number(
                "limits.max_pending_joins_per_source",
                &raw.max_pending_joins_per_source,
                1_024,
                1..=1 << 24,
            )? as u32,
            max_keys_ahead: number(
                "limits.max_keys_ahead",
                &raw.max_keys_ahead,
                1_024,
                0..=1 << 20,
            )?,
            max_pending_fast_opens: number(
                "limits.max_pending_fast_opens",
                &raw.max_pending_fast_opens,
                1_024,
                1..=1 << 24,
            )?,
            receive_buffer_max_bytes: number(
                "limits.receive_buffer_max_bytes",
                &raw.receive_buffer_max_bytes,
                8 << 20,
                BUFFER,
            )?,
            send_buffer_max_bytes: number(
                "limits.send_buffer_max_bytes",
                &raw.send_buffer_max_bytes,
                8 << 20,
                BUFFER,
            )?,
            memory_max_bytes: raw
                .memory_max_bytes
                .as_ref()
                .map(|value| self.number("limits.memory_max_bytes", Some(value), 0, MEMORY))
                .transpose()?
                .map(|bytes| bytes as usize),
            max_challenge_acks_per_s: number(
                "limits.max_challenge_acks_per_s",
                &raw.max_challenge_acks_per_s,
                1_000,
                RATE,
            )? as u32,
            max_resets_per_s: number(
                "limits.max_resets_per_s",
                &raw.max_resets_per_s,
                10_000,
                RATE,
            )? as u32,
            max_syns_per_s: number("limits.max_syns_per_s", &raw.max_syns_per_s, 20_000, CROWD)?
                as u32,
            max_strays_per_s: number(
                "limits.max_strays_per_s",
                &raw.max_strays_per_s,
                30_000,
                CROWD,
            )? as u32,
        })
    }

    fn server(&self, raw: Option<&RawServer>) -> Result<Server, ConfigError> {
        let Some(raw) = raw else {
            return Ok(Server { id: 0, of: 1 });
        };
        // The owner number in our timestamps tells the servers apart.
        let of = self.number("server.of", Some(&raw.of), 1, 1..=1 << OWNER_BITS_DEFAULT)?;
        let id = self.number("server.id", Some(&raw.id), 0, 0..=of - 1)?;
        Ok(Server {
            id: id as u32,
            of: of as u32,
        })
    }

    fn millis(
        &self,
        key: &str,
        value: Option<&Spanned<u64>>,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        self.number(key, value, default, range)
            .map(Duration::from_millis)
    }

    fn number(
        &self,
        key: &str,
        value: Option<&Spanned<u64>>,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        match value {
            None => Ok(default),
            Some(value) if range.contains(value.get_ref()) => Ok(*value.get_ref()),
            Some(value) => Err(self.error(
                value,
                key,
                format!(
                    "{} is out of range; choose from {} to {}",
                    value.get_ref(),
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// The value that `raw` names; the first of `choices` when there is none.
    fn choice<T: Copy>(
        &self,
        key: &str,
        raw: Option<&Spanned<String>>,
        choices: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some(raw) = raw else {
            return Ok(choices[0].1);
        };
        choices
            .iter()
            .find(|(name, _)| *name == raw.get_ref())
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let names: Vec<_> = choices
                    .iter()
                    .map(|(name, _)| format!("{name:?}"))
                    .collect();
                self.error(
                    raw,
                    key,
                    format!("{:?} is unknown; use {}", raw.get_ref(), names.join(" or ")),
                )
            })
    }

    fn refuse_shared_names(&self, raw: &RawConfig) -> Result<(), ConfigError> {
        for (key, names) in [
            (
                "interface.name",
                raw.interface.iter().map(|i| &i.name).collect::<Vec<_>>(),
            ),
            (
                "service.name",
                raw.service.iter().map(|s| &s.name).collect(),
            ),
        ] {
            let mut seen = BTreeMap::new();
            for name in names {
                if let Some(first) = seen.insert(name.get_ref(), self.line_of(name)) {
                    return Err(self.error(
                        name,
                        key,
                        format!(
                            "{:?} is already on line {first}; keep one of them",
                            name.get_ref()
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    fn refuse_shared_addresses(&self, services: &[Service]) -> Result<(), ConfigError> {
        for (index, service) in services.iter().enumerate() {
            for listen in &service.listen {
                for earlier in &services[..index] {
                    let Some(other) = earlier.listen.iter().find(|other| other.overlaps(listen))
                    else {
                        continue;
                    };
                    return Err(ConfigError {
                        file: self.file.to_owned(),
                        line: Some(listen.line),
                        key: "service.listen".into(),
                        what: format!(
                            "{} of service {:?} is already served by {:?} as {} on line {}; \
                             give one of them another address or port",
                            listen.address, service.name, earlier.name, other.address, other.line
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    fn error<T>(&self, at: &Spanned<T>, key: &str, what: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: Some(self.line_of(at)),
            key: key.to_owned(),
            what: what.into(),
        }
    }

    fn error_without_line(&self, key: &str, what: &str) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: None,
            key: key.to_owned(),
            what: what.to_owned(),
        }
    }

    fn line_of<T>(&self, at: &Spanned<T>) -> usize {
        self.line(at.span().start)
    }

    /// Counted from 1.
    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        before.iter().filter(|octet| **octet == b'\n').count() + 1
    }
}

/// `service[0].app.kind`. `Spanned` adds keys of its own making, which are left out.
fn key_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut key = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => key.push_str(&format!("[{index}]")),
            Segment::Map { key: name } if !name.starts_with("$__") => {
                if !key.is_empty() {
                    key.push('.');
                }
                key.push_str(name);
            }
            _ => {}
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[interface]]
name = "s1"

[[interface]]
name = "s2"

[[service]]
name = "web"
listen = ["10.9.1.2:80", "10.9.2.2:80", "[fd00:9:1::2]:80"]
app = { kind = "proxy", backends = ["127.0.0.1:8080"] }
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("m.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_gets_the_documented_defaults() {
        let config = parse(GOOD).unwrap();
        let names: Vec<_> = config
            .interfaces
            .iter()
            .map(|i| (i.name.as_str(), i.line))
            .collect();
        assert_eq!(names, [("s1", 3), ("s2", 6)]);
        assert!(!config.takeover);
        assert!(!config.drop_invalid_joins);
        assert!(!config.interfaces[0].announce);
        assert_eq!(config.control_socket, Path::new("/run/mpxd.sock"));
        assert_eq!(config.drain_timeout, Duration::from_secs(30));
        assert_eq!(config.time_wait, Duration::from_secs(60));
        assert_eq!(config.server, Server { id: 0, of: 1 });
        let web = &config.services[0];
        assert!(web.checksum);
        assert_eq!(web.joins, JoinPolicy::AnyPort);
        assert_eq!(web.addresses, AddressPolicy::default());
        assert_eq!(web.congestion, Algorithm::Cubic);
        assert!(web.ecn);
        assert_eq!(web.fast_open, FastOpen::Off);
        assert_eq!(config.limits.max_pending_fast_opens, 1024);
        assert_eq!(web.patience, Patience::default());
        assert_eq!(web.closing, Closing::default());
        assert_eq!(
            web.app,
            AppConfig::Proxy(ProxyConfig {
                backends: vec!["127.0.0.1:8080".parse().unwrap()],
                connect_timeout: Duration::from_secs(3),
                proxy_protocol: false,
            })
        );
    }

    #[test]
    fn every_key_with_its_example_is_taken() {
        let text = r#"
takeover = true
drop_invalid_joins = true
control_socket = "/tmp/x.sock"
drain_timeout_ms = 0
time_wait_ms = 1000
server = { id = 2, of = 4 }
[limits]
max_connections = 10
max_subflows = 2
max_half_open = 5
max_stranded = 6
syn_cookies_from = 3
max_pending_joins_per_source = 6
max_keys_ahead = 7
max_pending_fast_opens = 6
receive_buffer_max_bytes = 65536
send_buffer_max_bytes = 131072
memory_max_bytes = 268435456
max_challenge_acks_per_s = 20
max_resets_per_s = 30
max_syns_per_s = 31
max_strays_per_s = 32
[[interface]]
name = "s1"
[[service]]
name = "web"
listen = ["0.0.0.0:80", "10.9.1.2:80"]
checksum = false
joins = "service-ports"
max_subflows = 32
open_subflows = 3
deny_join_initial = true
proxy_protocol = "v2"
congestion = "reno"
ecn = false
fast_open = "without-cookies"
keepalive_ms = 0
keepalive_interval_ms = 1000
keepalive_probes = 3
persist_interval_max_ms = 2000
persist_probes = 4
user_timeout_ms = 5000
no_subflow_timeout_ms = 7000
close = { passive = false, hold_client_first_ms = 0, hold_server_first_ms = 7, fin_timeout_ms = 1000 }
[service.app]
kind = "proxy"
backends = ["127.0.0.1:1", "[::1]:2"]
connect_timeout_ms = 250
[[service.announce]]
address = "192.0.2.2"
[[service.announce]]
address = "2001:db8::2"
port = 443
id = 7
local = "[fd00::2]:443"
clients = "2001:db8::/32"
[[service.join_rule]]
from = "10.0.0.0/8"
to = "192.0.2.2/32"
backup = true
[[service.join_rule]]
accept = false
[[service]]
name = "echo"
listen = ["[::]:7"]
app = { kind = "echo" }
"#;
        let config = parse(text).unwrap();
        assert!(config.takeover);
        assert!(config.drop_invalid_joins);
        assert_eq!(config.server, Server { id: 2, of: 4 });
        assert_eq!(
            config.limits,
            Limits {
                max_connections: 10,
                max_subflows: 2,
                max_half_open: 5,
                max_stranded: 6,
                syn_cookies_from: 3,
                max_pending_joins_per_source: 6,
                max_keys_ahead: 7,
                max_pending_fast_opens: 6,
                receive_buffer_max_bytes: 65536,
                send_buffer_max_bytes: 131072,
                memory_max_bytes: Some(1 << 28),
                max_challenge_acks_per_s: 20,
                max_resets_per_s: 30,
                max_syns_per_s: 31,
                max_strays_per_s: 32,
            }
        );
        let AppConfig::Proxy(proxy) = &config.services[0].app else {
            panic!("not a proxy")
        };
        assert!(proxy.proxy_protocol);
        assert_eq!(proxy.connect_timeout, Duration::from_millis(250));
        assert_eq!(config.services[0].joins, JoinPolicy::ServicePorts);
        let net = |text: &str| text.parse::<IpNet>().ok();
        let addresses = AddressPolicy {
            announce: vec![
                Announce {
                    id: 1,
                    address: "192.0.2.2".parse().unwrap(),
                    port: None,
                    local: None,
                    clients: None,
                },
                Announce {
                    id: 7,
                    address: "2001:db8::2".parse().unwrap(),
                    port: Some(443),
                    local: "[fd00::2]:443".parse().ok(),
                    clients: net("2001:db8::/32"),
                },
            ],
            join_rules: vec![
                JoinRule {
                    from: net("10.0.0.0/8"),
                    to: net("192.0.2.2/32"),
                    accept: true,
                    backup: true,
                },
                JoinRule {
                    from: None,
                    to: None,
                    accept: false,
                    backup: false,
                },
            ],
            deny_join_initial: true,
            subflows_max: Some(32),
            open_subflows: 3,
        };
        assert_eq!(config.services[0].addresses, addresses);
        assert_eq!(config.services[0].congestion, Algorithm::Reno);
        assert!(!config.services[0].ecn);
        assert_eq!(config.services[0].fast_open, FastOpen::WithoutCookies);
        assert!(!config.services[0].checksum);
        assert_eq!(
            config.services[0].patience,
            Patience {
                keepalive: None,
                keepalive_interval: Duration::from_secs(1),
                keepalive_probes: 3,
                persist_interval_max: Duration::from_secs(2),
                persist_probes: 4,
                user_timeout: Some(Duration::from_secs(5)),
                without_subflow: Duration::from_secs(7),
            }
        );
        assert_eq!(
            config.services[0].closing,
            Closing {
                passive: false,
                hold_peer_first: Duration::ZERO,
                hold_we_first: Duration::from_millis(7),
                fin_timeout: Duration::from_secs(1),
            }
        );

        let own: Vec<IpAddr> = ["10.9.1.2", "10.9.2.2", "fe80::1", "fd00:9:1::2"]
            .map(|ip| ip.parse().unwrap())
            .to_vec();
        let expected: Vec<SocketAddr> = ["10.9.1.2:80", "10.9.2.2:80"]
            .map(|a| a.parse().unwrap())
            .to_vec();
        assert_eq!(config.services[0].addresses(&own), expected);
        let expected: Vec<SocketAddr> = vec!["[fd00:9:1::2]:7".parse().unwrap()];
        assert_eq!(config.services[1].addresses(&own), expected);
    }

    /// Each bad input is GOOD with one piece replaced.
    #[test]
    fn bad_input_names_line_key_and_remedy() {
        let web = r#"app = { kind = "proxy", backends = ["127.0.0.1:8080"] }"#;
        let cases: &[(&str, &str, &str)] = &[
            (
                "name = \"s1\"",
                "name = \"s1\"\nmut = 1500",
                "m.toml:4: interface[0].mut: unknown key `mut`, expected `name` or `announce`; remove or rename it",
            ),
            (
                "name = \"s1\"",
                "name = 1",
                "m.toml:3: interface[0].name: invalid type: integer `1`, expected a string; \
                 write name = \"web\"",
            ),
            (
                "name = \"s2\"",
                "name = \"s1\"",
                "m.toml:6: interface.name: \"s1\" is already on line 3; keep one of them",
            ),
            (
                "\n[[interface]]\nname = \"s1\"",
                "drain_timeout_ms = \"soon\"\n[[interface]]\nname = \"s1\"",
                "m.toml:1: drain_timeout_ms: invalid type: string \"soon\", expected u64; \
                 write drain_timeout_ms = 30000",
            ),
            (
                "\n[[interface]]\nname = \"s1\"",
                "time_wait_ms = -1\n[[interface]]\nname = \"s1\"",
                "m.toml:1: time_wait_ms: invalid value: integer `-1`, expected u64; \
                 write time_wait_ms = 60000",
            ),
            (
                "\n[[interface]]\nname = \"s1\"",
                "[limits]\nmax_subflows = 0\n[[interface]]\nname = \"s1\"",
                "m.toml:2: limits.max_subflows: 0 is out of range; choose from 1 to 64",
            ),
            (
                "name = \"web\"",
                "name = \"web\"\nopen_subflows = 65",
                "m.toml:10: service.open_subflows: 65 is out of range; choose from 0 to 64",
            ),
            (
                "name = \"web\"",
                "name = \"web\"\nopen_subflows = true",
                "m.toml:10: service[0].open_subflows: invalid type: boolean `true`, expected u64; \
                 write open_subflows = 1, or 0 to open none",
            ),
            (
                "\n[[interface]]\nname = \"s1\"",
                "server = { id = 3, of = 3 }\n[[interface]]\nname = \"s1\"",
                "m.toml:1: server.id: 3 is out of range; choose from 0 to 2",
            ),
            (
                "\n[[interface]]\nname = \"s1\"",
                "server = { id = 3, of = 300 }\n[[interface]]\nname = \"s1\"",
                "m.toml:1: server.of: 300 is out of range; choose from 1 to 256",
            ),
            (
                "10.9.2.2:80",
                "10.9.2.2",
                "m.toml:10: service.listen: \"10.9.2.2\" is not ADDRESS:PORT; write it like \
                 \"192.0.2.1:80\" or \"[2001:db8::1]:80\"",
            ),
            (
                "10.9.2.2:80",
                "10.9.2.2:0",
                "m.toml:10: service.listen: \"10.9.2.2:0\" has port 0; name a port from 1 to 65535",
            ),
            (
                "10.9.2.2:80",
                "255.255.255.255:80",
                "m.toml:10: service.listen: 255.255.255.255:80 is no unicast address; name one",
            ),
            (
                "10.9.2.2:80",
                "127.0.0.1:80",
                "m.toml:10: service.listen: 127.0.0.1:80 is a loopback address, which no \
                 interface receives; name another",
            ),
            (
                "10.9.2.2:80",
                "[::ffff:10.9.2.2]:80",
                "m.toml:10: service.listen: [::ffff:10.9.2.2]:80 is an IPv4 address in disguise; \
                 write \"10.9.2.2:80\"",
            ),
            (
                "10.9.2.2:80",
                "[fe80::2%3]:80",
                "m.toml:10: service.listen: [fe80::2%3]:80 names an interface; \
                 write \"[fe80::2]:80\"",
            ),
            (
                web,
                r#"app = { kind = "proxi", backends = ["127.0.0.1:8080"] }"#,
                "m.toml:11: service.app.kind: unknown app \"proxi\"; \
                 use proxy, echo, discard or source",
            ),
            (
                web,
                r#"app = { kind = "proxy" }"#,
                "m.toml:11: service.app.backends: a proxy needs at least one; \
                 write backends = [\"127.0.0.1:8080\"]",
            ),
            (
                web,
                r#"app = { kind = "proxy", backends = [] }"#,
                "m.toml:11: service.app.backends: a proxy needs at least one; \
                 write backends = [\"127.0.0.1:8080\"]",
            ),
            (
                web,
                r#"app = { kind = "proxy", backends = ["127.0.0.1:8080", 9] }"#,
                "m.toml:11: service[0].app.backends[1]: invalid type: integer `9`, \
                 expected a string; write backends = [\"127.0.0.1:8080\"]",
            ),
            (
                web,
                r#"app = { kind = "echo", backends = ["127.0.0.1:8080"] }"#,
                "m.toml:11: service.app.backends: app echo takes no such key; \
                 remove it or set kind = \"proxy\"",
            ),
            (
                web,
                r#"app = "proxy""#,
                "m.toml:11: service[0].app: invalid type: string \"proxy\", \
                 expected a table; write app = { kind = \"proxy\", \
                 backends = [\"127.0.0.1:8080\"] }",
            ),
            (
                web,
                "app = { kind = \"echo\" }\njoins = \"all\"",
                "m.toml:12: service.joins: \"all\" is unknown; \
                 use \"any-port\", \"service-ports\" or a list of ports",
            ),
            (
                web,
                "app = { kind = \"echo\" }\njoins = [80, 65536]",
                "m.toml:12: service.joins: 65536 is no port; choose from 1 to 65535",
            ),
            (
                web,
                "app = { kind = \"echo\" }\ncongestion = \"bbr\"",
                "m.toml:12: service.congestion: \"bbr\" is unknown; use \"cubic\" or \"reno\" \
                 or \"lia\"",
            ),
            (
                web,
                "app = { kind = \"echo\" }\nuser_timeout_ms = 999",
                "m.toml:12: service.user_timeout_ms: 999 is too short; \
                 choose 0 for none or from 1000 to 86400000",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service.announce]]\naddress = \"192.0.2.2:80\"",
                "m.toml:13: service.announce.address: \"192.0.2.2:80\" is not an address; write it \
                 like \"192.0.2.2\" and the port, if it is another one, as port = 443",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service.announce]]\naddress = \"224.0.0.1\"",
                "m.toml:13: service.announce.address: 224.0.0.1 is no unicast address; name one",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service.announce]]\naddress = \"192.0.2.2\"\nid = 2\n\
                 [[service.announce]]\naddress = \"192.0.2.3\"",
                "m.toml:16: service.announce.id: 2 is another address's; \
                 give each an id of its own from 1 to 255",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service.announce]]\naddress = \"192.0.2.2\"\nid = 0",
                "m.toml:14: service.announce.id: 0 is out of range; choose from 1 to 255",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service.join_rule]]\nfrom = \"10.0.0.1\"",
                "m.toml:13: service.join_rule.from: \"10.0.0.1\" is not ADDRESS/LENGTH; \
                 write it like \"198.51.100.0/24\" or \"2001:db8::/32\"",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service.join_rule]]\nto = \"10.0.0.1/8\"",
                "m.toml:13: service.join_rule.to: 10.0.0.1/8 names a host; \
                 the network is \"10.0.0.0/8\"",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service.join_rule]]\naccept = false\nbackup = true",
                "m.toml:12: service.join_rule: what is not accepted is no backup; \
                 remove accept = false or backup = true",
            ),
            (
                web,
                "app = { kind = \"echo\" }\nkeepalive_probes = 0",
                "m.toml:12: service.keepalive_probes: 0 is out of range; choose from 1 to 100",
            ),
            (
                web,
                "app = { kind = \"echo\" }\nclose = { fin_timeout_ms = 0 }",
                "m.toml:12: service.close.fin_timeout_ms: 0 is out of range; choose from 1000 to \
                 3600000",
            ),
            (
                web,
                "",
                "m.toml:8: service[0]: missing key `app`; write app = { kind = \"proxy\", \
                 backends = [\"127.0.0.1:8080\"] }",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service]]\nname = \"b\"\n\
                 listen = [\"10.9.2.2:80\"]\napp = { kind = \"echo\" }",
                "m.toml:14: service.listen: 10.9.2.2:80 of service \"b\" is already served by \
                 \"web\" as 10.9.2.2:80 on line 10; give one of them another address or port",
            ),
            (
                web,
                "app = { kind = \"echo\" }\n[[service]]\nname = \"b\"\n\
                 listen = [\"[::]:80\"]\napp = { kind = \"echo\" }",
                "m.toml:14: service.listen: [::]:80 of service \"b\" is already served by \
                 \"web\" as [fd00:9:1::2]:80 on line 10; give one of them another address or port",
            ),
            (
                "[[service]]",
                "[[service]",
                "m.toml:8: unclosed array table, expected `]`; mend the TOML here",
            ),
        ];
        for (piece, replacement, expected) in cases {
            assert!(GOOD.contains(piece), "{piece:?} is not in GOOD");
            let text = GOOD.replacen(piece, replacement, 1);
            assert_eq!(
                parse(&text).map(|_| ()),
                Err((*expected).to_owned()),
                "{replacement}"
            );
        }
        assert_eq!(
            parse("").map(|_| ()),
            Err(
                "m.toml: interface: none is configured; add [[interface]] with name = \"eth0\""
                    .to_owned()
            )
        );
    }

    #[test]
    fn same_port_of_the_other_family_is_no_conflict() {
        let text = GOOD.replace("\"10.9.1.2:80\", \"10.9.2.2:80\", ", "")
            + "[[service]]\nname = \"b\"\nlisten = [\"0.0.0.0:80\"]\napp = { kind = \"echo\" }";
        parse(&text).unwrap();
    }
}
