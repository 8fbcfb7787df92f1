//! The results of a load, for people (a table), for programs (JSON) and for plotters (`.hgrm`).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::{ErrorKind, Outcome, Plan};

/// Everything that the JSON holds; keys end in their unit.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) mode: &'static str,
    pub(crate) proto: &'static str,
    pub(crate) targets: Vec<String>,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) request_bytes: usize,
    pub(crate) http_path: Option<String>,
    pub(crate) rate_asked_per_s: Option<f64>,
    pub(crate) elapsed_s: f64,
    pub(crate) interrupted: bool,
    /// Successful operations.
    pub(crate) operations: u64,
    pub(crate) operations_per_s: f64,
    pub(crate) errors: u64,
    /// Only kinds that occurred.
    pub(crate) errors_by_kind: BTreeMap<&'static str, ErrorCount>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) sent_bits_per_s: f64,
    pub(crate) received_bits_per_s: f64,
    pub(crate) connections_established: u64,
    pub(crate) connections_mptcp: u64,
    /// MPTCP was asked for and the connection was plain TCP when it was closed.
    pub(crate) mptcp_fallback: u64,
    /// The most subflows that a connection had when it was closed.
    pub(crate) mptcp_subflows_max: u32,
    pub(crate) client_cpu_s: f64,
    pub(crate) latency_counts_from: &'static str,
    pub(crate) latency: Distribution,
    pub(crate) connect: Distribution,
}

#[derive(Debug, Serialize)]
pub(crate) struct ErrorCount {
    pub(crate) count: u64,
    pub(crate) first: String,
    #[serde(skip)]
    meaning: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct Distribution {
    pub(crate) count: u64,
    pub(crate) min_us: f64,
    pub(crate) mean_us: f64,
    pub(crate) stddev_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p75_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) p99_99_us: f64,
    pub(crate) max_us: f64,
}

impl Distribution {
    fn of(h: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
        let quantile = |q: f64| us(h.value_at_quantile(q));
        Self {
            count: h.len(),
            min_us: us(h.min()),
            mean_us: h.mean() / 1e3,
            stddev_us: h.stdev() / 1e3,
            p50_us: quantile(0.5),
            p75_us: quantile(0.75),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p99_9_us: quantile(0.999),
            p99_99_us: quantile(0.9999),
            max_us: us(h.max()),
        }
    }

    fn rows(&self) -> [(&'static str, f64); 10] {
        [
            ("min", self.min_us),
            ("50 %", self.p50_us),
            ("75 %", self.p75_us),
            ("90 %", self.p90_us),
            ("99 %", self.p99_us),
            ("99.9 %", self.p99_9_us),
            ("99.99 %", self.p99_99_us),
            ("max", self.max_us),
            ("mean", self.mean_us),
            ("std dev", self.stddev_us),
        ]
    }
}

impl Report {
    pub(crate) fn new(plan: &Plan, outcome: &Outcome) -> Self {
        let tally = &outcome.tally;
        let elapsed_s = outcome.elapsed.as_secs_f64();
        let per_s = |n: u64| n as f64 / elapsed_s.max(f64::MIN_POSITIVE);
        let mut targets: Vec<String> = plan.routes.iter().map(|(t, _)| t.to_string()).collect();
        targets.sort();
        targets.dedup();
        let errors_by_kind = ErrorKind::ALL
            .iter()
            .filter(|&&kind| tally.errors[kind as usize] > 0)
            .map(|&kind| {
                let error = ErrorCount {
                    count: tally.errors[kind as usize],
                    first: tally.first_errors[kind as usize]
                        .clone()
                        .unwrap_or_default(),
                    meaning: kind.meaning(),
                };
                (kind.name(), error)
            })
            .collect();
        Self {
            mode: plan.mode.name(),
            proto: plan.proto.name(),
            targets,
            connections: plan.connections,
            threads: plan.threads,
            request_bytes: plan.request_bytes,
            http_path: plan.http_path.clone(),
            rate_asked_per_s: plan.rate_per_s,
            elapsed_s,
            interrupted: outcome.interrupted,
            operations: tally.latency.len(),
            operations_per_s: per_s(tally.latency.len()),
            errors: tally.errors_total(),
            errors_by_kind,
            bytes_sent: tally.bytes_sent,
            bytes_received: tally.bytes_received,
            sent_bits_per_s: per_s(tally.bytes_sent) * 8.0,
            received_bits_per_s: per_s(tally.bytes_received) * 8.0,
            connections_established: tally.connect.len(),
            connections_mptcp: tally.mptcp,
            mptcp_fallback: match plan.proto {
                crate::socket::Proto::Mptcp => tally.not_mptcp,
                crate::socket::Proto::Tcp => 0,
            },
            mptcp_subflows_max: tally.subflows_max,
            client_cpu_s: outcome.cpu.as_secs_f64(),
            latency_counts_from: match (plan.mode, plan.rate_per_s) {
                (_, Some(_)) => "when the operation was due",
                (crate::load::Mode::Rr, None) => "the start of the request",
                (crate::load::Mode::Short, None) => "connect()",
                _ => "connect(), to the end of the transfer",
            },
            latency: Distribution::of(&tally.latency),
            connect: Distribution::of(&tally.connect),
        }
    }

    /// Exit status of the program: errors are failures, and so is a run that did nothing.
    pub(crate) fn exit_status(&self) -> u8 {
        const INTERRUPTED: u8 = 130;
        match self.errors {
            0 if self.interrupted => INTERRUPTED,
            0 if self.operations > 0 => 0,
            _ => 1,
        }
    }

    pub(crate) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        writeln!(
            f,
            "{} over {} to {}: {} connection{}, {} thread{}, {}",
            self.mode,
            self.proto,
            self.targets.join(" "),
            count(self.connections as u64),
            plural(self.connections),
            self.threads,
            plural(self.threads),
            match (&self.http_path, self.mode) {
                (Some(path), _) => format!("GET {path}"),
                (None, "rr" | "short") => format!("{} each way", bytes(self.request_bytes as f64)),
                _ => "bulk".into(),
            }
        )?;
        let rate = match (self.mode, self.rate_asked_per_s) {
            ("rr" | "short", asked) => {
                let asked = asked.map_or(String::new(), |r| format!(" ({r} /s asked for)"));
                format!(
                    ": {} /s{asked}",
                    count(self.operations_per_s.round() as u64)
                )
            }
            _ => String::new(),
        };
        writeln!(
            f,
            "  {:<10}  {} in {:.3} s{rate}{}",
            if rate.is_empty() {
                "transfers"
            } else {
                "operations"
            },
            count(self.operations),
            self.elapsed_s,
            if self.interrupted {
                "; interrupted"
            } else {
                ""
            },
        )?;
        writeln!(f, "  errors      {}", count(self.errors))?;
        for error in self.errors_by_kind.values() {
            writeln!(f, "    {:>9} {}", count(error.count), error.meaning)?;
            writeln!(f, "              first: {}", error.first)?;
        }
        let direction = |n: u64, rate: f64| format!("{} ({})", bytes(n as f64), bit_rate(rate));
        writeln!(
            f,
            "  sent        {}\n  received    {}",
            direction(self.bytes_sent, self.sent_bits_per_s),
            direction(self.bytes_received, self.received_bits_per_s),
        )?;
        let established = count(self.connections_established);
        match self.proto {
            "MPTCP" => writeln!(
                f,
                "  connections {established} established: {} MPTCP (up to {} subflow{}), {} fell \
                 back to TCP",
                count(self.connections_mptcp),
                self.mptcp_subflows_max,
                plural(self.mptcp_subflows_max as usize),
                count(self.mptcp_fallback),
            )?,
            _ => writeln!(f, "  connections {established} established")?,
        }
        writeln!(
            f,
            "  client CPU  {:.3} s: {:.0} % of a core",
            self.client_cpu_s,
            100.0 * self.client_cpu_s / self.elapsed_s.max(f64::MIN_POSITIVE),
        )?;
        let with_connect = self.connect.count > 0;
        let mut table = format!("\n  latency from {}", self.latency_counts_from);
        let _ = writeln!(
            table,
            "\n  {:>10}  {:>14}{}",
            "percentile",
            "latency, µs",
            if with_connect {
                "     connect, µs"
            } else {
                ""
            }
        );
        for ((name, us), (_, connect_us)) in self.latency.rows().iter().zip(self.connect.rows()) {
            let _ = write!(table, "  {name:>10}  {us:>14.1}");
            if with_connect {
                let _ = write!(table, "  {connect_us:>14.1}");
            }
            table.push('\n');
        }
        let _ = write!(table, "  {:>10}  {:>14}", "count", self.latency.count);
        if with_connect {
            let _ = write!(table, "  {:>14}", self.connect.count);
        }
        writeln!(f, "{table}")
    }
}

/// Writes the percentile distribution that HdrHistogram plotters read; values in microseconds.
pub(crate) fn write_hgrm(h: &Histogram<u64>, out: &mut dyn Write) -> io::Result<()> {
    const TICKS_PER_HALF_DISTANCE: u32 = 5;
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut total = 0;
    for step in h.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        total += step.count_since_last_iteration();
        let value_us = step.value_iterated_to() as f64 / 1e3;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value_us:>12.3} {quantile:>14.12} {total:>10}")?;
        match quantile < 1.0 {
            true => writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?,
            false => writeln!(out)?,
        }
    }
    let us = |ns: f64| ns / 1e3;
    let (mean, deviation, max) = (us(h.mean()), us(h.stdev()), us(h.max() as f64));
    let total = h.len();
    writeln!(
        out,
        "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]"
    )?;
    writeln!(
        out,
        "#[Max     = {max:>12.3}, Total count    = {total:>12}]"
    )?;
    writeln!(out, "#[Unit    = microseconds]")
}

/// A number in groups of three digits.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// Bytes in the largest binary unit that fits.
pub(crate) fn bytes(n: f64) -> String {
    scaled(n, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// Bits per second in the largest decimal unit that fits.
pub(crate) fn bit_rate(bits_per_s: f64) -> String {
    scaled(
        bits_per_s,
        1000.0,
        &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"],
    )
}

fn scaled(mut n: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while n >= step && unit + 1 < units.len() {
        n /= step;
        unit += 1;
    }
    match unit {
        0 => format!("{n:.0} {}", units[0]),
        _ => format!("{n:.2} {}", units[unit]),
    }
}

/// `10`, `10s`, `500ms` or `2m`.
pub(crate) fn parse_duration(s: &str) -> Result<Duration, String> {
    let at = s.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(s.len());
    let unit_s = match s[at..].trim() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        _ => f64::NAN,
    };
    let seconds = s[..at].trim().parse::<f64>().unwrap_or(f64::NAN) * unit_s;
    match Duration::try_from_secs_f64(seconds) {
        Ok(d) if !d.is_zero() => Ok(d),
        _ => Err("write a time above zero such as 10s, 500ms or 2m".into()),
    }
}

/// `64`, `16KiB`, `64MiB` or `1GiB`.
pub(crate) fn parse_bytes(s: &str) -> Result<u64, String> {
    let at = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let unit = match s[at..].trim() {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    unit.zip(s[..at].parse::<u64>().ok())
        .and_then(|(unit, n)| n.checked_mul(unit))
        .filter(|&n| n > 0)
        .ok_or_else(|| "write a size above zero such as 64, 16KiB, 64MiB or 1GiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hgrm_ends_at_the_maximum_with_every_value_counted() {
        let mut h = Histogram::<u64>::new(3).unwrap();
        (1..=10_000u64).for_each(|us| h.record(us * 1000).unwrap());
        let mut out = Vec::new();
        write_hgrm(&h, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let last = text.lines().rfind(|l| !l.starts_with('#')).unwrap();
        let fields: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(fields[1..], ["1.000000000000", "10000"]);
        let max: f64 = fields[0].parse().unwrap();
        assert!((max / 10_000.0 - 1.0).abs() < 2e-3, "{max}");
        let median = text
            .lines()
            .find(|l| l.contains(" 0.500000000000 "))
            .unwrap();
        assert!(median.trim().starts_with("500"), "{median}");
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("1"), Ok(1));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["", "0", "-1", "10h", "KiB", "1e9999", "99999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(count(1_234_567), "1 234 567");
        assert_eq!(bytes(1536.0), "1.50 KiB");
        assert_eq!(bit_rate(3.3e9), "3.30 Gbit/s");
    }
}
