//! Transfers over emulated links, and whether the emulator did what it was asked for.

use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use super::Case;
use super::faults::{succeed, wait_for_bytes};
use super::lab::{Client, Lab, WEB};
use crate::link::{Report, Side};
use crate::topology::Family;

const MIB: u64 = 1 << 20;
/// Everything that goes wrong on a link without a rate, in a measure that lets 8 MiB pass in seconds.
const BAD: &str = "delay=2ms jitter=200us loss=1% reorder=1%:1ms duplicate=1%";
const PROBABILITY: f64 = 0.01;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("mptcp_over_two_bad_links", |lab| {
            both_ways(lab, Client::Mptcp)?;
            lab.expect_mptcp(1)
        })
        .over(BAD),
        Case::new("plain_tcp_over_a_bad_link", |lab| {
            both_ways(lab, Client::Tcp)
        })
        .paths(1)
        .over(BAD),
        Case::new("a_link_that_was_held_up_says_so", |lab| {
            let mut curl = lab.fetch(Client::Tcp, Family::V4, WEB, "64m").spawn()?;
            wait_for_bytes(lab, &mut curl, MIB)?;
            lab.links[0].signal(Signal::STOP)?;
            sleep(Duration::from_millis(200));
            lab.links[0].signal(Signal::CONT)?;
            succeed(curl, Duration::from_secs(40))?;
            lab.check_fetched("64m")?;
            let report = lab.links[0].report()?;
            // A busy machine alone does not hold it up for so long.
            let latest_us = report.count(Side::Down, "latest_us")?;
            match report.kept_up() {
                Err(_) if latest_us > 100_000 => Ok(()),
                _ => Err(format!("the link stood still for 200 ms and says {report}")),
            }
        })
        .paths(1)
        .over("rate=200mbit delay=2ms"),
    ]
}

fn both_ways(lab: &mut Lab, client: Client) -> Result<(), String> {
    lab.download(client, Family::V4, WEB, "8m")?;
    lab.upload(client, Family::V4, WEB, "8m")?;
    let reports: Result<Vec<_>, _> = lab.links.iter_mut().map(|link| link.report()).collect();
    let reports = reports?;
    for side in [Side::Up, Side::Down] {
        plausible(&reports, side).map_err(|error| format!("{error} ({side:?}): {reports:?}"))?;
    }
    Ok(())
}

/// The accidents are drawn, so their number lies within five standard deviations of what is expected.
fn plausible(reports: &[Report], side: Side) -> Result<(), String> {
    // Over all paths: how much each carries is the schedulers' affair.
    let count = |name| -> Result<f64, String> {
        let counts = reports.iter().map(|report| report.count(side, name));
        Ok(counts.sum::<Result<u64, _>>()? as f64)
    };
    let frames = count("frames_in")?;
    let expected = frames * PROBABILITY;
    for name in ["lost", "reordered", "duplicated"] {
        if (count(name)? - expected).abs() > 5.0 * expected.sqrt() {
            return Err(format!("not one in a hundred was {name}"));
        }
    }
    let left = frames - count("lost")? + count("duplicated")?;
    let failed = count("over_limit")? + count("queue_full")?;
    // The rest is still on its way.
    if failed > 0.0 || !(left - 100.0..=left).contains(&count("frames_out")?) {
        return Err("frames were not accounted for".to_owned());
    }
    Ok(())
}
