//! Connections whose only path fails, with the kernel's client at the other end: it comes back, or a
//! subflow is joined from the same address or from another, and the file is whole.

use std::thread::sleep;
use std::time::Duration;

use super::Case;
use super::addresses::{only_announced, slow_download, wait_for_counter};
use super::faults::{succeed, wait_for_bytes};
use super::lab::Lab;

const MIB: u64 = 1 << 20;
/// How long there is no path.
const CUT: Duration = Duration::from_secs(5);

pub(super) fn cases() -> Vec<Case> {
    let rejoined = |name: &str, endpoint: &'static str| {
        let body = move |lab: &mut Lab| only_subflow_goes(lab, endpoint);
        Case::new(format!("rejoin_from_{name}"), body)
    };
    [
        Case::new("only_path_cut_for_5_s", only_path_cut),
        rejoined("the_same_address", "10.9.1.1 dev c1"),
        rejoined("another_address", "10.9.2.1 dev c2"),
    ]
    .into_iter()
    .map(|case| case.paths(2).mpxd_only())
    .collect()
}

/// Nothing gets through for a while: both ends repeat themselves until something does.
fn only_path_cut(lab: &mut Lab) -> Result<(), String> {
    only_announced(lab)?;
    let mut curl = slow_download(lab)?;
    wait_for_bytes(lab, &mut curl, 8 * MIB)?;
    let client = &lab.topology.client;
    let hook = |hook: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} device \"c1\" priority 0; policy drop; }}\n"
        )
    };
    let rules = format!(
        "table netdev cut {{\n{}{}}}\n",
        hook("ingress"),
        hook("egress")
    );
    client.cmd("nft").args(["-f", "-"]).input(rules).run()?;
    sleep(CUT);
    let restore = ["delete", "table", "netdev", "cut"];
    client.cmd("nft").args(restore).run()?;
    succeed(curl, Duration::from_secs(30))?;
    lab.check_fetched("64m")
}

/// The only subflow is killed in the middle of a download. Later the kernel gets an endpoint to join
/// from, as after a change of networks.
fn only_subflow_goes(lab: &mut Lab, endpoint: &str) -> Result<(), String> {
    only_announced(lab)?;
    let mut curl = slow_download(lab)?;
    wait_for_bytes(lab, &mut curl, 8 * MIB)?;
    let client = &lab.topology.client;
    client.cmd("ss").args(["-HtK", "dst", "10.9.1.2"]).run()?;
    wait_for_counter(lab, "Stranded", 1)?;
    sleep(CUT);
    let add = format!("mptcp endpoint add {endpoint} subflow\n");
    lab.topology.client.ip(&add)?;
    wait_for_counter(lab, "Rejoined", 1)?;
    succeed(curl, Duration::from_secs(30))?;
    lab.check_fetched("64m")?;
    lab.expect_mptcp(1)
}
