//! Whole transfers on links that behave.

use std::time::Duration;

use super::Case;
use super::lab::{
    Client, DISCARD, ECHO, GREET, GREET_BACKEND, HASH, HASH_BACKEND, Lab, NO_CHECKSUM, PROXIED,
    SECOND_BACKEND, SOURCE, WEB,
};
use crate::server::Service;
use crate::topology::{Family, server_socket};

const MIB: u64 = 1 << 20;
/// A path that carried less than this was not used to send.
const USED: u64 = 10_000;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (family, version) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
        for subflows in [1, 2, 4] {
            cases.push(
                Case::new(
                    format!("download_{version}_{subflows}_subflows"),
                    move |lab| {
                        over_all_paths(
                            lab,
                            |octets| octets.0,
                            |lab| lab.download(Client::Mptcp, family, WEB, "64m"),
                        )
                    },
                )
                .paths(subflows),
            );
            cases.push(
                Case::new(
                    format!("upload_{version}_{subflows}_subflows"),
                    move |lab| {
                        over_all_paths(
                            lab,
                            |octets| octets.1,
                            |lab| lab.upload(Client::Mptcp, family, WEB, "64m"),
                        )
                    },
                )
                .paths(subflows),
            );
        }
        cases.push(Case::new(format!("plain_tcp_{version}"), move |lab| {
            lab.download(Client::Tcp, family, WEB, "64m")?;
            lab.upload(Client::Tcp, family, WEB, "64m")?;
            lab.expect_no_mptcp()
        }));
    }
    cases.extend([
        Case::new("echo_both_ways_at_once", |lab| {
            exchange(lab, Client::Mptcp, ECHO, "echo", 64 * MIB, 1, 1)?;
            lab.expect_mptcp(1)
        }),
        Case::new("echo_both_ways_plain_tcp", |lab| {
            exchange(lab, Client::Tcp, ECHO, "echo", 16 * MIB, 1, 1)?;
            lab.expect_no_mptcp()
        }),
        Case::new("mptcp_disabled_at_the_client", |lab| {
            lab.topology.client.sysctl(&[("net/mptcp/enabled", "0")])?;
            lab.download(Client::Tcp, Family::V4, WEB, "64m")?;
            lab.upload(Client::Tcp, Family::V4, WEB, "64m")?;
            lab.expect_no_mptcp()
        }),
        Case::new("checksums_asked_by_both", |lab| {
            ask_for_checksums(lab)?;
            both_ways(lab, WEB)
        }),
        Case::new("checksums_asked_by_the_client", |lab| {
            ask_for_checksums(lab)?;
            both_ways(lab, NO_CHECKSUM)
        }),
        Case::new("checksums_asked_by_nobody", |lab| {
            both_ways(lab, NO_CHECKSUM)
        }),
        Case::new("two_queues", |lab| {
            over_all_paths(
                lab,
                |octets| octets.0,
                |lab| lab.download(Client::Mptcp, Family::V4, WEB, "64m"),
            )?;
            short_connections(lab, ECHO, "echo", 200, 20)
        })
        .queues(2),
        Case::new("coupled_congestion_control", |lab| {
            over_all_paths(
                lab,
                |octets| octets.0,
                |lab| lab.download(Client::Mptcp, Family::V4, WEB, "64m"),
            )
        })
        .configured(|config| config.services[0].keys += "congestion = \"lia\"\n")
        .mpxd_only(),
        Case::new("wildcard_listen", |lab| {
            lab.download(Client::Mptcp, Family::V4, WEB, "64m")?;
            lab.download(Client::Mptcp, Family::V6, WEB, "64m")?;
            lab.expect_mptcp(2)
        })
        .configured(|config| {
            let web: &mut Service = &mut config.services[0];
            web.listen = ["0.0.0.0:80", "[::]:80"].map(str::to_owned).to_vec();
        })
        .mpxd_only(),
        Case::new("client_half_closes", |lab| {
            let _backend = lab.backend("hash", HASH_BACKEND, 0)?;
            exchange(lab, Client::Mptcp, HASH, "hash", 16 * MIB, 1, 1)?;
            exchange(lab, Client::Tcp, HASH, "hash", MIB, 1, 1)?;
            lab.expect_mptcp(1)
        }),
        Case::new("backend_half_closes", |lab| {
            let backend = lab.backend("greet", GREET_BACKEND, MIB)?;
            let sent = 4 * MIB;
            lab.peer(Client::Mptcp)?
                .args(["last", "--to"])
                .arg(server_socket(Family::V4, 1, GREET).to_string())
                .args(["--after", &MIB.to_string(), "--bytes", &sent.to_string()])
                .run()?;
            let wanted = format!("received {sent} bytes");
            crate::process::until(Duration::from_secs(5), &wanted, || {
                Ok(backend.stdout().contains(&wanted))
            })
        }),
        Case::new("discard_takes_everything", |lab| {
            lab.peer(Client::Mptcp)?
                .args(["give", "--to"])
                .arg(server_socket(Family::V4, 1, DISCARD).to_string())
                .args(["--bytes", &(64 * MIB).to_string()])
                .run()?;
            if let Ok(mpxd) = lab.mpxd() {
                // The client's kernel sends on after the close; its end must be an orderly one.
                mpxd.settle(Duration::from_secs(10))?;
                let status = mpxd.status()?;
                let (taken, aborted) =
                    (status.counter("RxBytes")?, status.counter("MPFastcloseRx")?);
                if taken < 64 * MIB || aborted != 0 {
                    return Err(format!("{taken} octets came, {aborted} MP_FASTCLOSE"));
                }
            }
            lab.expect_mptcp(1)
        }),
        Case::new("source_until_the_client_closes", |lab| {
            lab.peer(Client::Mptcp)?
                .args(["take", "--to"])
                .arg(server_socket(Family::V4, 1, SOURCE).to_string())
                .args(["--bytes", &(64 * MIB).to_string()])
                .run()?;
            lab.expect_mptcp(1)
        }),
        Case::new("short_connections_2000_in_turn_echo", |lab| {
            short_connections(lab, ECHO, "echo", 2000, 1)
        }),
        Case::new("short_connections_2000_in_turn_proxy", |lab| {
            let _backend = lab.backend("hash", HASH_BACKEND, 0)?;
            short_connections(lab, HASH, "hash", 2000, 1)
        })
        .limit_s(90),
        Case::new("short_connections_200_at_once_echo", |lab| {
            short_connections(lab, ECHO, "echo", 1000, 200)
        }),
        Case::new("short_connections_200_at_once_proxy", |lab| {
            let _backend = lab.backend("hash", HASH_BACKEND, 0)?;
            short_connections(lab, HASH, "hash", 1000, 200)
        }),
        Case::new("proxy_protocol_tells_the_client", |lab| {
            for (family, address) in [(Family::V4, "10.9.1.1"), (Family::V6, "fd00:9:1::1")] {
                let told = lab
                    .client(Client::Mptcp, "curl")
                    .args(["-sS", "--fail", "--globoff", "--max-time", "10"])
                    .arg(lab.url(family, PROXIED, ""))
                    .run()?;
                if told != address {
                    return Err(format!("the backend was told `{told}`, not `{address}`"));
                }
            }
            Ok(())
        })
        .mpxd_only(),
        Case::new("second_backend_when_the_first_refuses", |lab| {
            for _ in 0..4 {
                lab.download(Client::Mptcp, Family::V4, SECOND_BACKEND, "small")?;
            }
            lab.download(Client::Mptcp, Family::V4, SECOND_BACKEND, "64m")
        })
        .mpxd_only(),
    ]);
    cases
}

/// A transfer with as many subflows as paths, and data on each of them.
fn over_all_paths(
    lab: &mut Lab,
    direction: fn(&(u64, u64)) -> u64,
    transfer: impl Fn(&Lab) -> Result<(), String>,
) -> Result<(), String> {
    let before = lab.octets()?;
    transfer(lab)?;
    let after = lab.octets()?;
    let carried: Vec<_> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| direction(after) - direction(before))
        .collect();
    if carried.iter().any(|&octets| octets < USED) {
        return Err(format!("not every path carried data: octets {carried:?}"));
    }
    lab.expect_mptcp(u64::from(lab.topology.shape.paths) - 1)
}

fn both_ways(lab: &mut Lab, port: u16) -> Result<(), String> {
    lab.download(Client::Mptcp, Family::V4, port, "64m")?;
    lab.upload(Client::Mptcp, Family::V4, port, "64m")?;
    lab.expect_mptcp(2)
}

fn ask_for_checksums(lab: &Lab) -> Result<(), String> {
    lab.topology
        .client
        .sysctl(&[("net/mptcp/checksum_enabled", "1")])
}

/// Connections of up to 20 kB, every one of them MPTCP to the end.
fn short_connections(
    lab: &mut Lab,
    port: u16,
    expect: &str,
    connections: u64,
    parallel: u64,
) -> Result<(), String> {
    exchange(
        lab,
        Client::Mptcp,
        port,
        expect,
        20_000,
        connections,
        parallel,
    )?;
    let counters = lab.client_counters()?;
    let (asked, accepted) = (
        counters.get("MPTcpExtMPCapableSYNTX")?,
        counters.get("MPTcpExtMPCapableSYNACKRX")?,
    );
    if asked < connections || accepted < connections {
        return Err(format!(
            "{connections} connections: {asked} asked for MPTCP, {accepted} got it"
        ));
    }
    Ok(())
}

fn exchange(
    lab: &Lab,
    client: Client,
    port: u16,
    expect: &str,
    bytes: u64,
    connections: u64,
    parallel: u64,
) -> Result<(), String> {
    lab.peer(client)?
        .args(["exchange", "--expect", expect, "--to"])
        .arg(server_socket(Family::V4, 1, port).to_string())
        .args(["--bytes", &bytes.to_string()])
        .args(["--connections", &connections.to_string()])
        .args(["--parallel", &parallel.to_string()])
        .limit(Duration::from_secs(60))
        .run()
        .map(drop)
}
