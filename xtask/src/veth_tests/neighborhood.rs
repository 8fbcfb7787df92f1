//! The kernel beside mpxd on the same addresses, and addresses that are mpxd's alone.

use std::time::Duration;

use serde_json::Value;

use super::Case;
use super::faults::succeed;
use super::lab::{Client, Lab, WEB};
use crate::process::until;
use crate::server::{Config, spawn_peer_server};
use crate::topology::{Family, server_socket};

const JOINS: &str = include_str!("joins.py");
const MIB: u64 = 1 << 20;
/// A subflow that carried more than this carried data.
const USED: u64 = 500_000;
/// Where a kernel server listens, and no service.
const KERNEL: u16 = 9090;
/// Where joins arrive, and no service: another well-known port, and one drawn at random.
const JOINED: [(u8, u16); 2] = [(1, 8080), (2, 35_353)];

/// Further downloads of 256 MiB.
const AGAIN: usize = 7;

pub(super) fn cases() -> Vec<Case> {
    [
        Case::new(
            "kernel_mptcp_server_keeps_its_joins",
            kernel_keeps_its_joins,
        ),
        Case::new(
            "joins_on_ports_where_kernel_servers_listen",
            joins_beside_kernel_servers,
        )
        .limit_s(120)
        .configured(|config| {
            for (path, port) in JOINED {
                let address = server_socket(Family::V4, path, port).ip();
                config.services[0].keys +=
                    &format!("[[service.announce]]\naddress = \"{address}\"\nport = {port}\n");
            }
        }),
        Case::new("joins_that_nobody_takes_are_the_kernels", |lab| {
            // A malformed option is as good as absent; the kernel knows none of the ports but ours.
            answers(lab, ["0x14", "0x14", "0x14", "0x12", "0x14", "0x14"], 0, 3)
        })
        .configured(|config| only_at(config, JOINED[0].1)),
        Case::new("joins_that_nobody_takes_are_dropped", |lab| {
            let flags = ["0x14", "0x14", "nothing", "nothing", "nothing", "nothing"];
            answers(lab, flags, 4, 2)
        })
        .configured(|config| {
            only_at(config, JOINED[0].1);
            config.keys += "drop_invalid_joins = true\n";
        }),
        Case::new("a_forged_join_takes_no_flow_of_the_kernels", forged_join),
        own_address("ipv4", "10.9.1.77", "ip neigh show to"),
        own_address("ipv6", "fd00:9:1::77", "ip -6 neigh show to"),
    ]
    .into_iter()
    .map(Case::mpxd_only)
    .collect()
}

/// A kernel MPTCP server on another port of an address that mpxd serves gets all its subflows.
fn kernel_keeps_its_joins(lab: &mut Lab) -> Result<(), String> {
    let address = server_socket(Family::V4, 1, KERNEL);
    let _server = spawn_peer_server(&lab.topology.server, true, "echo", &[address], None, 0)?;
    let mpxd = lab.mpxd()?;
    until(
        Duration::from_secs(5),
        "mpxd to see that the kernel takes joins",
        || Ok(mpxd.log().contains("joins are the kernel's")),
    )?;
    let before = lab.octets()?[1];
    lab.peer(Client::Mptcp)?
        .args(["exchange", "--to", &address.to_string()])
        .args(["--expect", "echo", "--bytes", &(64 * MIB).to_string()])
        .run()?;
    let carried = lab.octets()?[1];
    let (received, sent) = (carried.0 - before.0, carried.1 - before.1);
    if received + sent < USED {
        return Err(format!(
            "the kernel's second subflow carried {received} and {sent} octets"
        ));
    }
    lab.expect_mptcp(1)?;
    let status = lab.mpxd()?.status()?;
    if status.xdp("XdpPassKernelJoin")? == 0 || status.counter("MPJoinSynRx")? != 0 {
        return Err("the kernel's join did not pass mpxd by".to_owned());
    }
    // Meanwhile ours are ours.
    lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
    match lab.mpxd()?.status()?.xdp("XdpRedirectToken")? {
        0 => Err("no join came to mpxd".to_owned()),
        _ => Ok(()),
    }
}

/// One connection with subflows to a service port, to another port and to one drawn at random, while
/// kernel servers on the latter two serve clients of their own.
fn joins_beside_kernel_servers(lab: &mut Lab) -> Result<(), String> {
    // The client opens subflows to what is announced and to nothing else.
    lab.topology.client.ip("mptcp endpoint flush\n")?;
    let addresses = JOINED.map(|(path, port)| server_socket(Family::V4, path, port));
    let _servers = spawn_peer_server(&lab.topology.server, false, "echo", &addresses, None, 0)?;
    // Once and, on the same connection, again: the client joins one announced address after the other.
    let url = lab.url(Family::V4, WEB, "256m");
    let again = (0..AGAIN).flat_map(|_| ["-o", "/dev/null", &url]);
    let download = lab.fetch(Client::Mptcp, Family::V4, WEB, "256m");
    let download = download.args(again).spawn()?;
    let exchanges = addresses.map(|address| {
        lab.peer(Client::Tcp)?
            .args(["exchange", "--to", &address.to_string(), "--expect", "echo"])
            .args([
                "--bytes",
                "200000",
                "--connections",
                "50",
                "--parallel",
                "4",
            ])
            .spawn()
    });
    let used = [server_socket(Family::V4, 1, WEB)]
        .into_iter()
        .chain(addresses);
    let used: Vec<_> = used.map(|address| address.to_string()).collect();
    let mut last = Vec::new();
    until(
        Duration::from_secs(60),
        "data on all three subflows",
        || {
            let connections = lab.mpxd()?.connections()?;
            if let Some(connection) = connections.iter().find(|c| c["service"] == "web") {
                last = carried(connection);
            }
            let carries = |address: &String| last.iter().any(|(l, n)| l == address && *n > USED);
            Ok(used.iter().all(carries))
        },
    )
    .map_err(|error| format!("{error}; they carried {last:?}"))?;
    for exchange in exchanges {
        let output = exchange?.wait(Duration::from_secs(60))?;
        if !output.status.success() {
            return Err(format!("beside our joins: {}", output.stderr.trim()));
        }
    }
    succeed(download, Duration::from_secs(60))?;
    lab.check_fetched("256m")?;
    lab.expect_mptcp(2)
}

/// Octets sent by the subflows to each of our addresses.
fn carried(connection: &Value) -> Vec<(String, u64)> {
    let subflows = connection["subflows"].as_array().into_iter().flatten();
    let carried = |subflow: &Value| {
        let local = subflow["local"].as_str()?.to_owned();
        Some((local, subflow["bytes_sent"].as_u64()?))
    };
    subflows.filter_map(carried).collect()
}

/// Besides service ports.
fn only_at(config: &mut Config, port: u16) {
    for service in &mut config.services {
        service.keys.insert_str(0, &format!("joins = [{port}]\n"));
        if service.name == "hash" {
            service.keys.insert_str(0, "mptcp = { versions = [] }\n");
        }
    }
}

/// Joins of a token that nobody has: where they are taken, where they are not, malformed, and to a
/// service of plain TCP.
fn answers(lab: &mut Lab, flags: [&str; 6], dropped: u64, taken: u64) -> Result<(), String> {
    let joins = ["8080 12", "80 12", "8081 12", "80 11", "8080 16", "82 12"];
    // An announcement that is refused changes nothing of that.
    let announce = |lab: &mut Lab, arguments: &[&str]| {
        let web = ["--service", "web", "--id", "1"];
        lab.mpxd()?
            .address(&[&["announce"], arguments, &web].concat())
    };
    announce(lab, &["10.9.2.2"])?;
    let refused = announce(lab, &["10.9.1.2", "--port", "8081"]);
    if !refused.is_err_and(|error| error.contains("ID 1 is that of 10.9.2.2")) {
        return Err("an ID was announced with two addresses".to_owned());
    }
    let wanted = joins.iter().zip(flags);
    let wanted: String = wanted.map(|(j, flags)| format!("{j} {flags}\n")).collect();
    let address = server_socket(Family::V4, 1, WEB).ip().to_string();
    let python = lab.topology.client.cmd("python3");
    let answers = python
        .args(["-c", JOINS, &address])
        .input(joins.join("\n"))
        .run()?;
    if answers.trim() != wanted.trim() {
        return Err(format!(
            "PORT LENGTH FLAGS were {answers:?}, not {wanted:?}"
        ));
    }
    let status = lab.mpxd()?.status()?;
    let found = (
        status.xdp("XdpDropInvalidJoin")?,
        status.counter("MPJoinSynRx")?,
    );
    match found == (dropped, taken) {
        true => Ok(()),
        false => Err(format!(
            "dropped and taken: {found:?}, not {:?}",
            (dropped, taken)
        )),
    }
}

/// Whoever has a token of ours forges a join from where a client of a kernel server is: that one notices
/// nothing.
fn forged_join(lab: &mut Lab) -> Result<(), String> {
    lab.topology.client.ip("mptcp endpoint flush\n")?;
    let address = server_socket(Family::V4, 1, KERNEL);
    let _server = spawn_peer_server(&lab.topology.server, false, "echo", &[address], None, 0)?;
    let file = lab.scratch.join("token");
    let python = lab.topology.client.cmd("python3");
    let mut clients = python
        .args(["-c", JOINS, &address.ip().to_string(), &KERNEL.to_string()])
        .arg(&file)
        .spawn()?;
    until(Duration::from_secs(10), "both clients", || {
        match clients.poll()? {
            Some(_) => Err(clients.stderr()),
            None => Ok(clients.stdout().contains("ready")),
        }
    })?;
    let connections = lab.mpxd()?.connections()?;
    let ours = connections.iter().find(|c| c["service"] == "echo");
    let token = ours.and_then(|c| c["token"].as_str());
    let token = token.ok_or("the client of mpxd has no token")?;
    let written = lab.scratch.join("token.new");
    std::fs::write(&written, token)
        .and_then(|()| std::fs::rename(&written, &file))
        .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    succeed(clients, Duration::from_secs(30))?;
    let status = lab.mpxd()?.status()?;
    match (
        status.counter("MPJoinSynAckTx")?.min(1),
        status.xdp("XdpRedirectFlow")?,
    ) {
        (1, 0) => Ok(()),
        found => Err(format!(
            "whether a join was answered, and segments claimed: {found:?}, not (1, 0)"
        )),
    }
}

/// An address that the kernel does not have is announced, answered for, and served.
fn own_address(name: &str, address: &'static str, neighbors: &'static str) -> Case {
    let host = match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    };
    let listen = format!("{host}:{WEB}");
    Case::new(format!("an_address_of_our_own_{name}"), move |lab| {
        lab.config.interface_keys = "announce = true\n".to_owned();
        lab.config.services[0].listen.push(listen.clone());
        // So that the client learns from what nobody asked for (IPv6 routers do), and does not take the
        // server for a router.
        let client = &lab.topology.client;
        client.sysctl(&[
            ("net/ipv4/conf/c1/arp_accept", "1"),
            ("net/ipv6/conf/c1/accept_untracked_na", "1"),
            ("net/ipv6/conf/c1/forwarding", "1"),
        ])?;
        client.shell(
            "ip rule del from 10.9.1.1 lookup 101\n\
             ip -6 rule del from fd00:9:1::1 lookup 101\n",
        )?;
        lab.start_server()?;
        let show = format!("{neighbors} {address} dev c1");
        let learned = || Ok(lab.topology.client.shell(&show)?.contains("lladdr"));
        until(
            Duration::from_secs(5),
            "the client to learn the address",
            learned,
        )?;
        lab.topology
            .client
            .shell(&show.replace("show to", "flush to"))?;
        lab.client(Client::Mptcp, "curl")
            .args(["-sS", "--fail", "--globoff", "--max-time", "20", "-o"])
            .arg(lab.output())
            .arg(format!("http://{host}/8m"))
            .run()?;
        lab.check_fetched("8m")?;
        let status = lab.mpxd()?.status()?;
        match status.xdp("XdpRedirectNeighbor")? {
            0 => Err("nobody asked mpxd for its address".to_owned()),
            _ => Ok(()),
        }
    })
    .no_server()
}
