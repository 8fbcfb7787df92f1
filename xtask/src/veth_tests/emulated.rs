//! Transfers over emulated links, and whether the emulator did what it was asked for.

use super::Case;
use super::lab::{Client, Lab, WEB};
use crate::link::{Report, Side};
use crate::topology::Family;

/// Everything that goes wrong on a link without a rate, in a measure that lets 8 MiB pass in seconds.
const BAD: &str = "delay=2ms jitter=200us loss=1% reorder=1%:1ms duplicate=1%";
const LOSS: f64 = 0.01;

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
    ]
}

fn both_ways(lab: &mut Lab, client: Client) -> Result<(), String> {
    lab.download(client, Family::V4, WEB, "8m")?;
    lab.upload(client, Family::V4, WEB, "8m")?;
    for link in &mut lab.links {
        let report = link.report()?;
        for side in [Side::Up, Side::Down] {
            plausible(&report, side).map_err(|error| format!("{error} ({side:?}): {report}"))?;
        }
    }
    Ok(())
}

/// The accidents are drawn, so their number lies within five standard deviations of what is expected.
fn plausible(report: &Report, side: Side) -> Result<(), String> {
    let count = |name| report.count(side, name).map(|frames| frames as f64);
    let frames = count("frames_in")?;
    if frames < 1000.0 {
        return Err("too few frames passed to say anything".to_owned());
    }
    let expected = frames * LOSS;
    let bound = 5.0 * expected.sqrt();
    for name in ["lost", "reordered", "duplicated"] {
        if (count(name)? - expected).abs() > bound {
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
