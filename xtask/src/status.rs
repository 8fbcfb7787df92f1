//! What `mpxd status`, `conns` and `nstat` say with `--json`. The field names of the first stand here
//! and nowhere else in this package.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::counters::Counters;
use crate::process::{Cmd, until};
use crate::project;

pub(crate) struct Status(Value);

impl Status {
    pub(crate) fn read(socket: &Path) -> Result<Self, String> {
        ask(socket, "status", &[]).map(Self)
    }

    /// A counter of the datapath. One that does not exist is an error: it must not pass for zero.
    pub(crate) fn counter(&self, name: &str) -> Result<u64, String> {
        self.number(&["counters", name])
    }

    /// A counter of the XDP program.
    pub(crate) fn xdp(&self, name: &str) -> Result<u64, String> {
        self.number(&["xdp", name])
    }

    /// A counter of a service's app.
    pub(crate) fn app(&self, service: &str, name: &str) -> Result<u64, String> {
        self.0["apps"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|app| app["service"] == service)
            .and_then(|app| app["counters"][name].as_u64())
            .ok_or_else(|| format!("mpxd status --json has no {name} of service {service}"))
    }

    pub(crate) fn connections(&self) -> Result<u64, String> {
        self.number(&["connections"])
    }

    /// Octets that connections hold.
    pub(crate) fn memory_used(&self) -> Result<u64, String> {
        self.number(&["memory", "used_bytes"])
    }

    pub(crate) fn time_wait(&self) -> Result<u64, String> {
        self.number(&["time_wait"])
    }

    /// A figure of each worker.
    pub(crate) fn workers(&self, name: &str) -> Result<Vec<u64>, String> {
        let workers = self.0["workers"].as_array().into_iter().flatten();
        let figures: Option<Vec<_>> = workers.map(|worker| worker[name].as_u64()).collect();
        figures
            .filter(|figures| !figures.is_empty())
            .ok_or_else(|| format!("mpxd status --json has no {name} of workers"))
    }

    /// A figure of each queue.
    pub(crate) fn queues(&self, name: &str) -> Result<Vec<u64>, String> {
        let queues = self.0["queues"].as_array().into_iter().flatten();
        let figures: Option<Vec<_>> = queues.map(|queue| queue[name].as_u64()).collect();
        figures
            .filter(|figures| !figures.is_empty())
            .ok_or_else(|| format!("mpxd status --json has no {name} of queues"))
    }

    /// Frames that the queues lost.
    pub(crate) fn queue_faults(&self) -> u64 {
        let queues = self.0["queues"].as_array().into_iter().flatten();
        let faults = ["rx_dropped", "rx_ring_full", "rx_invalid_descs"];
        let of = |queue: &Value| -> u64 { faults.iter().filter_map(|f| queue[f].as_u64()).sum() };
        queues.map(of).sum()
    }

    /// For an error message: the counters that are not zero.
    pub(crate) fn summary(&self) -> String {
        let not_zero = |counters: &Value| {
            let shown: Vec<_> = counters
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(_, value)| value.as_u64() != Some(0))
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            shown.join(" ")
        };
        let mut text = format!("\n         mpxd counted: {}", not_zero(&self.0["counters"]));
        for app in self.0["apps"].as_array().into_iter().flatten() {
            text += &format!(
                "\n         its {}: {}",
                app["service"].as_str().unwrap_or("app"),
                not_zero(&app["counters"])
            );
        }
        for queue in self.0["queues"].as_array().into_iter().flatten() {
            text += &format!("\n         mpxd's queue: {queue}");
        }
        text
    }

    /// What must be gone once the last connection is.
    fn tables(&self) -> Result<[(&'static str, u64); 3], String> {
        Ok([
            ("connections", self.connections()?),
            ("flows", self.number(&["flows"])?),
            ("tokens", self.number(&["tokens"])?),
        ])
    }

    /// `free + in kernel + held + lent == total`, and nothing held or lent between turns.
    fn frames_balance(&self) -> Result<(), String> {
        let part = |name: &str| self.number(&["frames", name]);
        let (free, in_kernel) = (part("free")?, part("in_kernel")?);
        let (held, lent, total) = (part("held")?, part("lent")?, part("total")?);
        let account = format!(
            "{free} free + {in_kernel} in kernel + {held} held + {lent} lent, {total} in all"
        );
        if total == 0 {
            return Err(format!("there are no UMEM frames: {account}"));
        }
        if free + in_kernel + held + lent != total {
            return Err(format!("the UMEM account does not balance: {account}"));
        }
        if held + lent != 0 {
            return Err(format!("UMEM frames outlived their turn: {account}"));
        }
        let queues = self.0["queues"].as_array().filter(|all| !all.is_empty());
        let queues = queues.ok_or("mpxd status --json has no queues")?;
        let at_rest = |queue: &&Value| {
            let rings = &queue["rings"];
            [&rings["tx_ring"], &rings["sending"]].map(Value::as_u64) == [Some(0); 2]
        };
        match queues.iter().find(|queue| !at_rest(queue)) {
            Some(queue) => Err(format!("frames to send stayed with the kernel: {queue}")),
            None => Ok(()),
        }
    }

    fn number(&self, path: &[&str]) -> Result<u64, String> {
        path.iter()
            .fold(&self.0, |value, key| &value[key])
            .as_u64()
            .ok_or_else(|| format!("mpxd status --json has no number {}", path.join(".")))
    }
}

/// The connections.
pub(crate) fn connections(socket: &Path) -> Result<Vec<Value>, String> {
    match ask(socket, "conns", &[])? {
        Value::Array(connections) => Ok(connections),
        other => Err(format!("mpxd conns --json printed no list: {other}")),
    }
}

/// Every counter, under the names of `nstat`.
pub(crate) fn counters(socket: &Path) -> Result<Counters, String> {
    Counters::from_json(&ask(socket, "nstat", &["--zeros"])?, "mpxd")
}

fn ask(socket: &Path, verb: &str, options: &[&str]) -> Result<Value, String> {
    let text = Cmd::new(project::release_binary("mpxd"))
        .args([verb, "--json", "--socket"])
        .arg(socket)
        .args(options)
        .limit(Duration::from_secs(5))
        .run()?;
    serde_json::from_str(&text)
        .map_err(|error| format!("mpxd {verb} --json printed no JSON ({error}): {text}"))
}

/// Waits until no connection, flow or token is left, then until no TIME-WAIT is, and checks the
/// UMEM accounts.
pub(crate) fn settle(socket: &Path, limit: Duration, time_wait: Duration) -> Result<(), String> {
    let mut left = String::new();
    let waited = until(limit, "mpxd to forget its connections", || {
        let tables = Status::read(socket)?.tables()?;
        left = format!("{tables:?}");
        Ok(tables.iter().all(|(_, entries)| *entries == 0))
    });
    waited.map_err(|error| format!("{error}; left: {left}"))?;
    let mut left = 0;
    let limit = time_wait + Duration::from_secs(2);
    let waited = until(limit, "TIME-WAIT to be over", || {
        left = Status::read(socket)?.time_wait()?;
        Ok(left == 0)
    });
    waited.map_err(|error| format!("{error}; {left} are left"))?;
    Status::read(socket)?.frames_balance()
}
