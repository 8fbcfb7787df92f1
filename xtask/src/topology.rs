//! A client and a server namespace joined by veth pairs.
//!
//! Pair `i` is `c<i>` with 10.9.i.1 and fd00:9:i::1 in the client's namespace and `s<i>` with
//! 10.9.i.2 and fd00:9:i::2 in the server's. Offloads are off on every end: a frame must reach XDP
//! whole, with a checksum and below the MTU. The client's own addresses are `subflow` endpoints, so
//! a Linux client opens its further subflows by itself.
//!
//! A linked topology has a namespace in the middle: pair `i` is `c<i>` with `lc<i>`, and `ls<i>` with
//! `s<i>`. No frame gets from `lc<i>` to `ls<i>` but through a link emulator between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cleanup;
use crate::link::{Ends, Link};
use crate::process::{self, Cmd};
use crate::scratch;

/// Every namespace made here has a name that begins like this.
const PREFIX: &str = "mpxd-";
pub(crate) const MAX_PATHS: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// veth pairs, 1 to 4.
    pub(crate) paths: u8,
    /// Receive and transmit queues of every veth end.
    pub(crate) queues: u8,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            paths: 2,
            queues: 1,
        }
    }
}

pub(crate) struct Topology {
    pub(crate) client: Namespace,
    pub(crate) server: Namespace,
    /// Of a linked topology.
    middle: Option<Namespace>,
    pub(crate) shape: Shape,
}

impl Topology {
    /// `kind` and this process's id make the names, so that concurrent runs cannot clash.
    pub(crate) fn for_this_run(kind: &str, shape: Shape) -> Result<Self, String> {
        Self::up(&format!("{kind}-{}", std::process::id()), shape)
    }

    pub(crate) fn up(name: &str, shape: Shape) -> Result<Self, String> {
        Self::make(name, shape, false)
    }

    /// Like [`Self::for_this_run`], with a namespace for link emulators in the middle.
    pub(crate) fn linked_for_this_run(kind: &str, shape: Shape) -> Result<Self, String> {
        Self::linked(&format!("{kind}-{}", std::process::id()), shape)
    }

    /// Paths are dead until [`Self::link`] joins their halves.
    pub(crate) fn linked(name: &str, shape: Shape) -> Result<Self, String> {
        Self::make(name, shape, true)
    }

    /// Starts the link emulator of a path; the path is dead again when the link is dropped.
    pub(crate) fn link(&self, path: u8, spec: &str, core: Option<usize>) -> Result<Link, String> {
        Link::start(self.middle()?, &ends(path), spec, core)
    }

    /// The same for a topology that is kept: the relay's pid, and it writes its reports to a file.
    pub(crate) fn leave_link(&self, path: u8, spec: &str, report: &Path) -> Result<u32, String> {
        Link::leave(self.middle()?, &ends(path), spec, report)
    }

    fn middle(&self) -> Result<&Namespace, String> {
        self.middle
            .as_ref()
            .ok_or_else(|| "this topology has no namespace for links".to_owned())
    }

    fn make(name: &str, shape: Shape, linked: bool) -> Result<Self, String> {
        if !(1..=MAX_PATHS).contains(&shape.paths) {
            return Err(format!(
                "{} paths asked for: 1 to {MAX_PATHS} can be had",
                shape.paths
            ));
        }
        let topology = Self {
            client: Namespace::add(&format!("{PREFIX}{name}-c"))?,
            server: Namespace::add(&format!("{PREFIX}{name}-s"))?,
            middle: linked
                .then(|| Namespace::add(&format!("{PREFIX}{name}-l")))
                .transpose()?,
            shape,
        };
        topology.configure()?;
        Ok(topology)
    }

    /// Leaves the namespaces in place when this program ends.
    pub(crate) fn keep(self) {
        for namespace in [self.client, self.server].into_iter().chain(self.middle) {
            cleanup::keep_namespace(&namespace.name);
            std::mem::forget(namespace);
        }
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.shape.paths
    }

    fn configure(&self) -> Result<(), String> {
        let Self { client, server, .. } = self;
        for end in [client, server] {
            // rp_filter: a join to the server's first address arrives on its second interface.
            end.sysctl(&[
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_ra", "0"),
            ])?;
            end.ip("link set lo up")?;
        }
        // Many short connections otherwise run out of client ports in TIME-WAIT.
        client.sysctl(&[("net/ipv4/tcp_max_tw_buckets", "16")])?;

        match &self.middle {
            None => self.join(client, 'c', server, "s")?,
            Some(middle) => {
                self.join(client, 'c', middle, "lc")?;
                self.join(server, 's', middle, "ls")?;
                self.configure_middle(middle)?;
            }
        }

        let mut at_client = String::new();
        let mut at_client_v6 = String::new();
        let mut at_server = String::new();
        for i in self.paths() {
            at_client += &addresses(i, 'c', 1);
            at_server += &addresses(i, 's', 2);
            // A subflow leaves by the interface of its source address, wherever it goes.
            let table = 100 + u16::from(i);
            at_client += &format!(
                "rule add from 10.9.{i}.1 lookup {table}\n\
                 route add default via 10.9.{i}.2 dev c{i} table {table}\n"
            );
            at_client_v6 += &format!(
                "rule add from fd00:9:{i}::1 lookup {table}\n\
                 route add default via fd00:9:{i}::2 dev c{i} table {table}\n"
            );
        }
        client.ip(&at_client)?;
        client.batch(&["-6"], &at_client_v6)?;
        server.ip(&at_server)?;

        for (end, letter) in [(client, 'c'), (server, 's')] {
            let script: String = self
                .paths()
                .map(|i| format!("ethtool -K {letter}{i} tx off tso off gso off gro off\n"))
                .collect();
            end.shell(&script)?;
        }

        let limits =
            format!("mptcp limits set subflows {MAX_PATHS} add_addr_accepted {MAX_PATHS}\n");
        let mut endpoints = limits.clone();
        for i in self.paths() {
            endpoints += &format!(
                "mptcp endpoint add 10.9.{i}.1 dev c{i} subflow\n\
                 mptcp endpoint add fd00:9:{i}::1 dev c{i} subflow\n"
            );
        }
        client.ip(&endpoints)?;
        // For the kernel as a server, to compare with.
        server.ip(&limits)
    }

    /// Makes the veth pairs of all paths between two namespaces.
    fn join(&self, a: &Namespace, at_a: char, b: &Namespace, at_b: &str) -> Result<(), String> {
        let queues = self.shape.queues;
        let mut links = String::new();
        for i in self.paths() {
            links += &format!(
                "link add {at_a}{i} numrxqueues {queues} numtxqueues {queues} type veth \
                 peer name {at_b}{i} numrxqueues {queues} numtxqueues {queues} netns {}\n",
                b.name
            );
        }
        a.ip(&links)
    }

    /// The middle has no addresses and says nothing itself: all that passes is what the ends send.
    fn configure_middle(&self, middle: &Namespace) -> Result<(), String> {
        middle.sysctl(&[
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
        ])?;
        let (mut offloads, mut up) = (String::new(), String::new());
        for end in self
            .paths()
            .flat_map(|i| [format!("lc{i}"), format!("ls{i}")])
        {
            offloads += &format!("ethtool -K {end} tx off tso off gso off gro off\n");
            up += &format!("link set {end} promisc on up\n");
        }
        middle.shell(&offloads)?;
        middle.ip(&up)
    }
}

/// The server's address on a path.
pub(crate) fn server_address(family: Family, path: u8) -> IpAddr {
    let path16 = u16::from(path);
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, path, 2).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 9, path16, 0, 0, 0, 0, 2).into(),
    }
}

pub(crate) fn server_socket(family: Family, path: u8, port: u16) -> SocketAddr {
    SocketAddr::new(server_address(family, path), port)
}

/// A network namespace, removed with everything in it when dropped.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn add(name: &str) -> Result<Self, String> {
        cleanup::add_namespace(name)?;
        Ok(Self {
            name: name.to_owned(),
        })
    }

    pub(crate) fn cmd(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        Cmd::new(program).within(&self.name)
    }

    /// Runs lines of `ip` commands.
    pub(crate) fn ip(&self, lines: &str) -> Result<(), String> {
        self.batch(&[], lines)
    }

    fn batch(&self, options: &[&str], lines: &str) -> Result<(), String> {
        Cmd::new("ip")
            .args(["-n", &self.name])
            .args(options)
            .args(["-batch", "-"])
            .input(lines)
            .run()
            .map(drop)
    }

    pub(crate) fn shell(&self, script: &str) -> Result<String, String> {
        self.cmd("sh").args(["-e", "-c", script]).run()
    }

    /// Sets kernel parameters; the names have slashes.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> Result<(), String> {
        let script: String = settings
            .iter()
            .map(|(name, value)| format!("echo {value} > /proc/sys/{name}\n"))
            .collect();
        self.shell(&script).map(drop)
    }

    /// `ip -j -d -s link show DEVICE`.
    pub(crate) fn link(&self, device: &str) -> Result<Value, String> {
        let text = Cmd::new("ip")
            .args(["-n", &self.name, "-j", "-d", "-s", "link", "show", device])
            .run()?;
        let links: Value = serde_json::from_str(&text)
            .map_err(|error| format!("ip link show {device} printed no JSON: {error}"))?;
        Ok(links[0].clone())
    }

    /// Octets that a device has received and sent.
    pub(crate) fn octets(&self, device: &str) -> Result<(u64, u64), String> {
        let link = self.link(device)?;
        let read = |direction: &str| {
            link["stats64"][direction]["bytes"]
                .as_u64()
                .ok_or_else(|| format!("ip link show {device} has no {direction} bytes"))
        };
        Ok((read("rx")?, read("tx")?))
    }

    /// Whether an XDP program is attached to a device.
    pub(crate) fn has_xdp(&self, device: &str) -> Result<bool, String> {
        Ok(self.link(device)?.get("xdp").is_some())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        cleanup::drop_namespace(&self.name);
    }
}

/// Names of the topologies that stand now.
pub(crate) fn list() -> Result<Vec<String>, String> {
    Ok(namespaces()?
        .iter()
        .filter_map(|name| name.strip_prefix(PREFIX)?.strip_suffix("-s"))
        .map(str::to_owned)
        .collect())
}

fn namespaces() -> Result<Vec<String>, String> {
    let text = Cmd::new("ip").args(["netns", "list"]).run()?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Removes a topology by the name that `list` gives.
pub(crate) fn down(name: &str) -> Result<(), String> {
    if !list()?.iter().any(|known| known == name) {
        return Err(format!(
            "there is no topology `{name}`; `cargo xtask veth list` names those that stand"
        ));
    }
    let mut ends = vec![format!("{PREFIX}{name}-c"), format!("{PREFIX}{name}-s")];
    let middle = format!("{PREFIX}{name}-l");
    if namespaces()?.contains(&middle) {
        ends.push(middle);
    }
    for end in ends {
        cleanup::drop_namespace(&end);
    }
    for path in 1..=MAX_PATHS {
        let _ = std::fs::remove_file(link_report(name, path));
    }
    Ok(())
}

/// The interfaces of a path in the middle.
fn ends(path: u8) -> Ends {
    Ends {
        client: format!("lc{path}"),
        server: format!("ls{path}"),
    }
}

/// Where the link emulator of a path writes its reports, in a topology that is kept.
pub(crate) fn link_report(name: &str, path: u8) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}link-{name}-{path}.json"))
}

/// Removes what runs left that were killed: their names end in the id of a process that is gone.
pub(crate) fn sweep() -> Result<(), String> {
    for name in list()? {
        let owner = name.rsplit_once('-').map(|(_, owner)| owner.parse::<u32>());
        if let Some(Ok(pid)) = owner
            && !process::exists(pid)
        {
            down(&name)?;
        }
    }
    scratch::sweep();
    Ok(())
}

fn addresses(path: u8, letter: char, host: u8) -> String {
    format!(
        "link set {letter}{path} up\n\
         addr add 10.9.{path}.{host}/24 dev {letter}{path}\n\
         addr add fd00:9:{path}::{host}/64 dev {letter}{path} nodad\n"
    )
}
