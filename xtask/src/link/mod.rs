//! The link emulator: a relay in a namespace between the client's and the server's, one process for
//! each veth pair that was cut in two (`Topology::linked`). What the link does to frames stands in
//! [`Spec`]; the same text and seed do the same to the n-th frame of every run.

mod ecn;
mod model;
mod relay;
mod spec;
mod speed;

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::process::{Cmd, Process, until};
use crate::topology::Namespace;

pub(crate) use relay::{Arguments, run};
pub(crate) use spec::{SYNTAX, Spec};
pub(crate) use speed::measure;

/// Printed by a relay when frames can come.
const READY: &str = "ready";
/// A frame that leaves so long after it was due is late.
const LATE: Duration = Duration::from_millis(1);
/// One of so many may be late, and none by more than this, where a measurement is to be believed.
const FRAMES_PER_LATE: u64 = 100;
const LATEST: Duration = Duration::from_millis(10);
/// Above everything that has no real-time policy.
const PRIORITY: &str = "10";
const ANSWER: Duration = Duration::from_secs(5);

/// The two interfaces that a relay joins.
pub(crate) struct Ends {
    pub(crate) client: String,
    pub(crate) server: String,
}

/// A link at work; it goes down with its owner.
pub(crate) struct Link {
    process: Process,
    reports: usize,
}

/// What a relay has counted.
#[derive(Clone, Debug)]
pub(crate) struct Report(Value);

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// From the client.
    Up,
    /// From the server.
    Down,
}

impl Link {
    /// Starts a relay, on one core if asked, and waits until frames can come.
    pub(crate) fn start(
        namespace: &Namespace,
        ends: &Ends,
        spec: &str,
        core: Option<usize>,
    ) -> Result<Self, String> {
        Self::start_as(namespace.cmd("chrt"), ends, spec, core, None)
    }

    /// Starts a relay that stays when this program ends; it writes its reports to a file.
    pub(crate) fn leave(
        namespace: &Namespace,
        ends: &Ends,
        spec: &str,
        report: &Path,
    ) -> Result<u32, String> {
        let cmd = Cmd::new("setsid").args(["ip", "netns", "exec", &namespace.name, "chrt"]);
        let link = Self::start_as(cmd, ends, spec, None, Some(report))?;
        Ok(link.process.leave())
    }

    fn start_as(
        chrt: Cmd,
        ends: &Ends,
        spec: &str,
        core: Option<usize>,
        report: Option<&Path>,
    ) -> Result<Self, String> {
        // A mistake is better told here than by the relay's exit.
        spec.parse::<Spec>()?;
        let program = std::env::current_exe()
            .map_err(|error| format!("cannot find this program's own file: {error}"))?;
        let mut cmd = chrt.args(["--fifo", PRIORITY]);
        if let Some(core) = core {
            cmd = cmd.args(["taskset", "-c", &core.to_string()]);
        }
        let mut cmd = cmd
            .arg(program)
            .args(["link-relay", "--client", &ends.client])
            .args(["--server", &ends.server, "--link", spec]);
        if let Some(report) = report {
            cmd = cmd.arg("--report").arg(report);
        }
        let mut process = cmd.spawn()?;
        until(ANSWER, "the link's relay to start", || {
            match process.poll()? {
                Some(status) => Err(format!(
                    "the link's relay ended ({status}): {}",
                    process.stderr().trim()
                )),
                None => Ok(process.stdout().contains(READY)),
            }
        })?;
        Ok(Self {
            process,
            reports: 0,
        })
    }

    /// What has been counted so far.
    pub(crate) fn report(&mut self) -> Result<Report, String> {
        self.process.signal(Signal::USR1)?;
        let wanted = self.reports + 1;
        let mut text = String::new();
        until(ANSWER, "the link's report", || {
            text = self.process.stdout();
            Ok(reports(&text).count() >= wanted)
        })?;
        self.reports = wanted;
        Report::parse(&text)
    }

    /// For tests that hold the relay up.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), String> {
        self.process.signal(signal)
    }

    /// Ends the relay; what it held is lost.
    pub(crate) fn stop(mut self) -> Result<Report, String> {
        self.process.signal(Signal::TERM)?;
        let output = self.process.wait(ANSWER)?;
        if output.status.success() {
            Report::parse(&output.stdout)
        } else {
            Err(format!(
                "the link's relay ended ({}): {}",
                output.status,
                output.stderr.trim()
            ))
        }
    }
}

/// Whole lines only: the last may be in the making.
fn reports(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    text.split_inclusive('\n')
        .filter(|line| line.starts_with('{') && line.ends_with('\n'))
}

impl Report {
    fn parse(text: &str) -> Result<Self, String> {
        let line = reports(text)
            .next_back()
            .ok_or("the link's relay ended without a report")?;
        serde_json::from_str(line)
            .map(Self)
            .map_err(|error| format!("the link's relay printed no JSON ({error}): {line}"))
    }

    pub(crate) fn count(&self, side: Side, name: &str) -> Result<u64, String> {
        let side = match side {
            Side::Up => "up",
            Side::Down => "down",
        };
        self.0[side][name]
            .as_u64()
            .ok_or_else(|| format!("the link's report has no number {side}.{name}"))
    }

    /// Processor time that the relay has used.
    pub(crate) fn cpu_s(&self) -> Result<f64, String> {
        self.0["cpu_s"]
            .as_f64()
            .ok_or_else(|| "the link's report has no number cpu_s".to_owned())
    }

    /// An error where the relay did not do what the link asked for: what was measured over it then
    /// says nothing about that link.
    pub(crate) fn kept_up(&self) -> Result<(), String> {
        for side in [Side::Up, Side::Down] {
            let count = |name| self.count(side, name);
            let fail = |what: String| {
                let way = format!("{side:?}").to_lowercase();
                Err(format!("the link's relay did not keep up: {what} ({way})"))
            };
            for (name, meaning) in [
                ("not_received", "frames dropped before it had read them"),
                ("refused", "frames that the kernel would not send"),
                ("over_limit", "frames dropped because it held too much"),
            ] {
                let frames = count(name)?;
                if frames > 0 {
                    return fail(format!("{frames} {meaning}"));
                }
            }
            let (late, frames) = (count("late")?, count("frames_out")?);
            let latest = Duration::from_micros(count("latest_us")?);
            if late * FRAMES_PER_LATE > frames || latest > LATEST {
                return fail(format!(
                    "{late} of {frames} frames left over {} ms late, the latest by {} us",
                    LATE.as_millis(),
                    latest.as_micros()
                ));
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(late: u64, latest_us: u64, not_received: u64) -> Report {
        let side = serde_json::json!({
            "frames_out": 200, "late": late, "latest_us": latest_us,
            "not_received": not_received, "refused": 0, "over_limit": 0,
        });
        let line = serde_json::json!({ "up": side, "down": side, "cpu_s": 0.5 });
        Report::parse(&format!("{READY}\n{line}\n{{\"half of a line")).unwrap()
    }

    #[test]
    fn a_relay_has_kept_up_with_one_late_frame_in_a_hundred_and_no_more() {
        assert_eq!(report(2, 10_000, 0).kept_up(), Ok(()));
        for (report, part) in [
            (report(3, 1_001, 0), "3 of 200 frames left over 1 ms late"),
            (report(1, 10_001, 0), "the latest by 10001 us"),
            (report(0, 0, 1), "1 frames dropped before"),
        ] {
            let error = report.kept_up().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
