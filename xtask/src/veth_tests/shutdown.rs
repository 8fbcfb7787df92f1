//! SIGTERM and SIGINT with connections open.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Case;
use super::lab::{Client, ECHO, Lab, WEB};
use crate::process::{Process, until};
use crate::topology::{Family, server_socket};

const MIB: u64 = 1 << 20;
/// Time for mpxd to see a signal.
const NOTICE: Duration = Duration::from_millis(300);
/// For a restart.
const AT_ONCE: Duration = Duration::from_secs(1);

pub(super) fn cases() -> Vec<Case> {
    [
        Case::new("sigterm_lets_a_download_complete", |lab| {
            let download = slow_download(lab, "64m", "16M")?;
            let mut mpxd = lab.take_mpxd()?;
            mpxd.signal(Signal::TERM)?;
            sleep(NOTICE);
            refuse_new_connections(lab)?;
            let output = download.wait(Duration::from_secs(15))?;
            if !output.status.success() {
                return Err(format!("the download ended with: {}", output.stderr.trim()));
            }
            lab.check_fetched("64m")?;
            // Nothing is open any more: it need not wait for the deadline.
            mpxd.ended(&lab.topology.server, Duration::from_secs(5))
        }),
        Case::new("sigint_resets_what_is_open_at_the_deadline", |lab| {
            let download = slow_download(lab, "256m", "4M")?;
            let mut mpxd = lab.take_mpxd()?;
            let start = Instant::now();
            mpxd.signal(Signal::INT)?;
            mpxd.ended(&lab.topology.server, Duration::from_secs(5))?;
            if start.elapsed() < Duration::from_millis(900) {
                return Err(format!(
                    "mpxd ended after {:?}, before its drain_timeout_ms of 1000",
                    start.elapsed()
                ));
            }
            cut_off(download)?;
            let counters = lab.client_counters()?;
            let told = counters.get("MPTcpExtMPFastcloseRx")? + counters.get("MPTcpExtMPRstRx")?;
            if told == 0 {
                return Err("the client got no MP_FASTCLOSE and no MP_TCPRST".to_owned());
            }
            Ok(())
        })
        .configured(|config| config.drain_timeout = Duration::from_secs(1)),
        Case::new("second_signal_ends_at_once", |lab| {
            let download = slow_download(lab, "256m", "4M")?;
            let mut mpxd = lab.take_mpxd()?;
            mpxd.signal(Signal::TERM)?;
            sleep(NOTICE);
            mpxd.signal(Signal::TERM)?;
            // Its status is its own affair: it could not do what the first one asked for.
            mpxd.ended_somehow(&lab.topology.server, Duration::from_secs(2))?;
            // Nor does it owe the client more than the kernel's reset to its next segment.
            drop(download);
            Ok(())
        }),
        Case::new("sigkill_under_load_and_a_restart", sigkill_under_load),
    ]
    .into_iter()
    .map(Case::mpxd_only)
    .collect()
}

/// However mpxd ends, its program goes with it; the kernel answers then, and a new mpxd serves at once.
fn sigkill_under_load(lab: &mut Lab) -> Result<(), String> {
    // More than once: how long a start takes is also a matter of what else the machine does.
    const ROUNDS: usize = 3;
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let to = server_socket(Family::V4, 2, ECHO).to_string();
        let load = lab
            .peer(Client::Tcp)?
            .args(["exchange", "--to", &to, "--expect", "echo"])
            .args(["--bytes", "100000", "--connections", "1000000"])
            .args(["--parallel", "16"])
            .spawn()?;
        let download = slow_download(lab, "256m", "100M")?;
        let mut mpxd = lab.take_mpxd()?;
        mpxd.signal(Signal::KILL)?;
        until(
            Duration::from_secs(10),
            "the XDP programs to be gone",
            || {
                let server = &lab.topology.server;
                Ok(!server.has_xdp("s1")? && !server.has_xdp("s2")?)
            },
        )?;
        drop((mpxd, download, load));
        // By the kernel: nobody listens there.
        refuse_new_connections(lab)?;
        let start = Instant::now();
        lab.start_server()?;
        lab.download(Client::Mptcp, Family::V4, WEB, "small")?;
        fastest = fastest.min(start.elapsed());
        lab.download(Client::Mptcp, Family::V4, WEB, "8m")?;
    }
    match fastest <= AT_ONCE {
        true => Ok(()),
        false => Err(format!(
            "it took at least {} ms until mpxd served again",
            fastest.as_millis()
        )),
    }
}

/// A download that is well under way.
fn slow_download(lab: &Lab, file: &str, rate: &str) -> Result<Process, String> {
    let mut curl = lab
        .fetch(Client::Mptcp, Family::V4, WEB, file)
        .args(["--limit-rate", rate])
        .spawn()?;
    until(
        Duration::from_secs(10),
        "the download to get going",
        || match curl.poll()? {
            Some(status) => Err(format!("curl ended ({status}): {}", curl.stderr().trim())),
            None => Ok(lab
                .output()
                .metadata()
                .is_ok_and(|data| data.len() >= 2 * MIB)),
        },
    )?;
    Ok(curl)
}

/// A SYN gets a reset, from mpxd that drains or from the kernel, so curl fails at once.
fn refuse_new_connections(lab: &Lab) -> Result<(), String> {
    let output = lab
        .client(Client::Mptcp, "curl")
        .args(["-sS", "--max-time", "3", "-o", "/dev/null"])
        .arg(lab.url(Family::V4, WEB, "small"))
        .output()?;
    match output.status.code() {
        // curl: failed to connect.
        Some(7) => Ok(()),
        _ => Err(format!(
            "a new connection ended with {} instead of a refusal: {}",
            output.status,
            output.stderr.trim()
        )),
    }
}

fn cut_off(download: Process) -> Result<(), String> {
    // It reads at its own rate what its kernel holds, up to 32 MiB, before it sees the reset.
    let output = download.wait(Duration::from_secs(30))?;
    match output.status.code() {
        // curl: partial file, or failure to receive.
        Some(18 | 56) => Ok(()),
        _ => Err(format!(
            "the open download ended with {} instead of a reset: {}",
            output.status,
            output.stderr.trim()
        )),
    }
}
