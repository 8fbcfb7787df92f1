//! What interfaces do while they are in use, and what frames bear around a segment.

use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::Case;
use super::faults::{low_cpu, succeed, wait_for_bytes};
use super::lab::{Client, Lab, WEB};
use crate::process::until;
use crate::topology::Family;

const MIB: u64 = 1 << 20;
const TAGS: &str = include_str!("tags.py");
const HEADERS: &str = include_str!("headers.py");

pub(super) fn cases() -> Vec<Case> {
    [
        Case::new("server_interface_down_and_up_in_a_download", |lab| {
            let mut curl = lab
                .fetch(Client::Mptcp, Family::V4, WEB, "64m")
                .args(["--limit-rate", "30M"])
                .spawn()?;
            wait_for_bytes(lab, &mut curl, 8 * MIB)?;
            lab.topology.server.ip("link set s1 down\n")?;
            sleep(Duration::from_secs(1));
            lab.topology.server.ip("link set s1 up\n")?;
            succeed(curl, Duration::from_secs(20))?;
            lab.check_fetched("64m")?;
            expect_log(lab, &["s1 is down", "s1 is up again"])
        })
        .paths(1),
        Case::new("interface_removed_in_a_download", interface_removed).limit_s(90),
        Case::new("vlan_tags_come_back", |lab| {
            let address = |link: Value| {
                let address = link["address"].as_str().map(str::to_owned);
                address.ok_or("a veth end has no address")
            };
            let to = address(lab.topology.server.link("s1")?)?;
            // Nobody's, so that no kernel answers for it.
            let from = "02:00:00:00:00:77";
            let python = lab.topology.client.cmd("python3");
            lab.topology.client.ip("link set c1 promisc on\n")?;
            python.args(["-c", TAGS, "c1", &to, from]).run()?;
            match lab.mpxd()?.status()?.xdp("XdpPassNotIp")? {
                0 => Err("a frame under three tags was not passed to the kernel".to_owned()),
                _ => Ok(()),
            }
        }),
        Case::new("ip_options_and_extension_headers", |lab| {
            let python = lab.topology.client.cmd("python3");
            python.args(["-c", HEADERS]).run().map(drop)
        }),
    ]
    .into_iter()
    .map(Case::mpxd_only)
    .collect()
}

/// The download goes on over the other path; mpxd says what happened, does not spin, and ends well.
fn interface_removed(lab: &mut Lab) -> Result<(), String> {
    let mut curl = lab
        .fetch(Client::Mptcp, Family::V4, WEB, "256m")
        .args(["--limit-rate", "40M"])
        .spawn()?;
    wait_for_bytes(lab, &mut curl, 8 * MIB)?;
    lab.topology.server.ip("link del s1\n")?;
    succeed(curl, Duration::from_secs(40))?;
    lab.check_fetched("256m")?;
    expect_log(lab, &["s1 is gone"])?;
    low_cpu(lab)?;
    let mut mpxd = lab.take_mpxd()?;
    mpxd.signal(Signal::TERM)?;
    // A new one by the old name, to be asked like the others whether a program is left.
    lab.topology.client.ip(&format!(
        "link add c1 type veth peer name s1 netns {}\n",
        lab.topology.server.name
    ))?;
    mpxd.ended(&lab.topology.server, Duration::from_secs(5))
}

fn expect_log(lab: &mut Lab, lines: &[&str]) -> Result<(), String> {
    let mpxd = lab.mpxd()?;
    for line in lines {
        until(
            Duration::from_secs(2),
            &format!("mpxd to say `{line}`"),
            || Ok(mpxd.log().contains(line)),
        )?;
    }
    Ok(())
}
