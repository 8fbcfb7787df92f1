//! `cargo xtask link-speed`: more datagrams than the link takes, from kernel to kernel, and what the
//! relay on its one core makes of them.

use std::time::Duration;

use crate::process::until;
use crate::setup;
use crate::topology::{self, Family, Shape, Topology, server_address};
use crate::ui;

use super::Side;

/// Fills a frame of 1514 octets.
const DATAGRAM_OCTETS: &str = "1472";
const RELAY_CORE: usize = 0;
const ENDS_CORE: &str = "1";

pub(crate) fn measure(link: &str, seconds: u64) -> Result<(), String> {
    let spec: super::Spec = link.parse()?;
    let rate_bps = spec
        .up
        .rate_bps
        .ok_or("link-speed needs a link with a rate")?;
    setup::require_root("cargo xtask link-speed")?;
    setup::ensure(setup::For::Test)?;
    topology::sweep()?;
    let shape = Shape {
        paths: 1,
        queues: 1,
    };
    let topology = Topology::linked_for_this_run("speed", shape)?;
    let mut link = topology.link(1, link, Some(RELAY_CORE))?;
    let mut server = topology
        .server
        .cmd("taskset")
        .args(["-c", ENDS_CORE, "iperf3", "-s", "--forceflush"])
        .spawn()?;
    until(
        Duration::from_secs(5),
        "iperf3 to listen",
        || match server.poll()? {
            Some(status) => Err(format!("iperf3 ended ({status}): {}", server.stderr())),
            None => Ok(server.stdout().contains("listening")),
        },
    )?;
    let before = link.report()?;
    // A tenth more of payload than frames may go out.
    let offered = (rate_bps + rate_bps / 10).to_string();
    ui::step("Sending datagrams", |_| {
        topology
            .client
            .cmd("taskset")
            .args(["-c", ENDS_CORE, "iperf3", "-u", "-b", &offered])
            .args(["-l", DATAGRAM_OCTETS, "-t", &seconds.to_string(), "-c"])
            .arg(server_address(Family::V4, 1).to_string())
            .limit(Duration::from_secs(seconds + 20))
            .run()
    })?;
    let report = link.stop()?;
    let count = |name| {
        let before = before.count(Side::Up, name)?;
        Ok::<_, String>(report.count(Side::Up, name)? - before)
    };
    let cpu_s = report.cpu_s()? - before.cpu_s()?;
    let (frames, octets) = (count("frames_out")?, count("octets_out")?);
    println!(
        "{} frames/s in, {} frames/s out, {:.1} Mbit/s of {:.1}; relay: {:.0} % of a core, \
         {:.1} us per frame, {} frames over 1 ms late, the latest by {} us",
        count("frames_in")? / seconds,
        frames / seconds,
        octets as f64 * 8e-6 / seconds as f64,
        rate_bps as f64 / 1e6,
        100.0 * cpu_s / seconds as f64,
        1e6 * cpu_s / frames as f64,
        count("late")?,
        report.count(Side::Up, "latest_us")?,
    );
    report.kept_up()
}
