//! A router between client and server whose way to the client takes less than their interfaces.

use std::time::Duration;

use super::Case;
use super::faults::{succeed, wait_for_bytes};
use super::lab::{Client, Lab, WEB};
use crate::process::until;
use crate::topology::{Family, Namespace};

const MIB: u64 = 1 << 20;
const MTU: u32 = 1300;
const ICMP: &str = include_str!("icmp.py");
/// No service.
const CLOSED: u16 = 4444;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, family) in [("v4", Family::V4), ("v6", Family::V6)] {
        for client in [Client::Mptcp, Client::Tcp] {
            let client_name = format!("{client:?}").to_lowercase();
            cases.push(Case::new(
                format!("path_mtu_told_by_a_router_{name}_{client_name}"),
                move |lab| {
                    download(lab, client, family, true)?;
                    expect(lab, &["PathMtuReduced"], &["PathMtuBlackHoles"])?;
                    match lab.mpxd()?.status()?.xdp("XdpRedirectTooBig")? {
                        0 => Err("no ICMP error reached mpxd".to_owned()),
                        _ => Ok(()),
                    }
                },
            ));
            cases.push(Case::new(
                format!("path_mtu_told_by_nobody_{name}_{client_name}"),
                move |lab| {
                    download(lab, client, family, false)?;
                    let found = ["PathMtuBlackHoles", "TCPMTUPSuccess"];
                    expect(lab, &found, &["PathMtuReduced"])
                },
            ));
        }
        cases.push(Case::new(
            format!("path_mtu_falls_in_a_download_{name}"),
            move |lab| falls(lab, family),
        ));
    }
    let mut cases: Vec<_> = cases
        .into_iter()
        .map(|case| case.paths(1).no_server())
        .collect();
    cases.push(Case::new("icmp_of_others_is_the_kernels", icmp_of_others).mpxd_only());
    cases
}

fn download(lab: &mut Lab, client: Client, family: Family, tells: bool) -> Result<(), String> {
    insert_router(lab)?;
    set_mtu(lab, MTU)?;
    if !tells {
        silence(lab)?;
    }
    lab.start_server()?;
    lab.download(client, family, WEB, "8m")
}

fn falls(lab: &mut Lab, family: Family) -> Result<(), String> {
    insert_router(lab)?;
    lab.start_server()?;
    let mut curl = lab
        .fetch(Client::Mptcp, family, WEB, "64m")
        .args(["--limit-rate", "30M"])
        .spawn()?;
    for (mtu, at) in [(1400, 8 * MIB), (1280, 24 * MIB)] {
        wait_for_bytes(lab, &mut curl, at)?;
        set_mtu(lab, mtu)?;
    }
    succeed(curl, Duration::from_secs(20))?;
    lab.check_fetched("64m")?;
    expect(lab, &["PathMtuReduced"], &["PathMtuBlackHoles"])
}

/// These counters have counted, and those have not.
fn expect(lab: &mut Lab, some: &[&str], none: &[&str]) -> Result<(), String> {
    let status = lab.mpxd()?.status()?;
    for name in some {
        if status.counter(name)? == 0 {
            return Err(format!("{name} is 0"));
        }
    }
    for name in none {
        let value = status.counter(name)?;
        if value != 0 {
            return Err(format!("{name} is {value}"));
        }
    }
    Ok(())
}

/// Ping is answered by the kernel, which also gets errors about ports that are no service's. Those
/// about a service come to mpxd.
fn icmp_of_others(lab: &mut Lab) -> Result<(), String> {
    let python = |lab: &Lab, port: u16| {
        let client = &lab.topology.client;
        let args = ["-c", ICMP, &port.to_string()];
        client.cmd("python3").args(args).run().map(drop)
    };
    python(lab, CLOSED)?;
    let status = lab.mpxd()?.status()?;
    let passed = status.xdp("XdpPassNotTcp")?;
    if status.xdp("XdpRedirectTooBig")? != 0 || passed < 4 {
        return Err(format!("only {passed} frames of ICMP went to the kernel"));
    }
    python(lab, WEB)?;
    until(
        Duration::from_secs(2),
        "two ICMP errors to reach mpxd",
        || {
            let status = lab.mpxd()?.status()?;
            Ok(status.xdp("XdpRedirectTooBig")? == 2 && status.counter("IcmpNoFlow")? == 2)
        },
    )
}

/// Puts a router in the way of path 1: the client is 10.8.1.1 and fd00:8:1::1 now, and the router
/// 254 on both its sides.
fn insert_router(lab: &mut Lab) -> Result<(), String> {
    let (client, server) = (&lab.topology.client, &lab.topology.server);
    let name = client.name.strip_suffix('c').unwrap_or(&client.name);
    let router = Namespace::add(&format!("{name}l"))?;
    router.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ])?;
    // Takes the other end with it.
    server.ip("link del s1\n")?;
    for (end, device, at_router) in [(client, "c1", "rc"), (server, "s1", "rs")] {
        end.ip(&format!(
            "link add {device} type veth peer name {at_router} netns {}\n",
            router.name
        ))?;
        let offloads = |device| format!("ethtool -K {device} tx off tso off gso off gro off");
        end.shell(&offloads(device))?;
        router.shell(&offloads(at_router))?;
    }
    router.ip("link set rc up\n\
         link set rs up\n\
         addr add 10.8.1.254/24 dev rc noprefixroute\n\
         addr add fd00:8:1::254/64 dev rc nodad noprefixroute\n\
         addr add 10.9.1.254/24 dev rs\n\
         addr add fd00:9:1::254/64 dev rs nodad\n\
         route add 10.8.1.0/24 dev rc\n\
         route add fd00:8:1::/64 dev rc\n")?;
    for (end, device, ours, theirs, host) in [(client, "c1", 8, 9, 1), (server, "s1", 9, 8, 2)] {
        end.ip(&format!(
            "link set {device} up\n\
             addr add 10.{ours}.1.{host}/24 dev {device}\n\
             addr add fd00:{ours}:1::{host}/64 dev {device} nodad\n\
             route add 10.{theirs}.1.0/24 via 10.{ours}.1.254\n\
             route add fd00:{theirs}:1::/64 via fd00:{ours}:1::254\n"
        ))?;
    }
    lab.router = Some(router);
    Ok(())
}

/// Octets that it takes towards the client.
fn set_mtu(lab: &Lab, mtu: u32) -> Result<(), String> {
    router(lab)?.ip(&format!(
        "route replace 10.8.1.0/24 dev rc mtu {mtu}\n\
         route replace fd00:8:1::/64 dev rc mtu {mtu}\n"
    ))
}

/// What it has to say itself goes nowhere.
fn silence(lab: &Lab) -> Result<(), String> {
    router(lab)?.shell(
        "ip rule add iif lo to 10.9.1.0/24 blackhole\n\
         ip -6 rule add iif lo to fd00:9:1::/64 blackhole\n",
    )?;
    Ok(())
}

fn router<'a>(lab: &'a Lab) -> Result<&'a Namespace, String> {
    let router = lab.router.as_ref();
    router.ok_or_else(|| "no router was inserted".to_owned())
}
