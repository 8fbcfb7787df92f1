//! A line per second on stderr while a load runs; in place when stderr is a terminal.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::load::Live;
use crate::report::{bit_rate, count};

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    operations: u64,
    errors: u64,
    bytes_sent: u64,
    bytes_received: u64,
    connections: u64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar }
    }

    /// Shows what `live` counts until `done`.
    pub(crate) fn follow(&mut self, live: &[Arc<Live>], done: impl Fn() -> bool) {
        const TICK: Duration = Duration::from_millis(20);
        const LINE: Duration = Duration::from_secs(1);
        let began = Instant::now();
        let (mut last, mut last_at) = (Sums::default(), began);
        while !done() {
            std::thread::sleep(TICK);
            let since = last_at.elapsed();
            if since < LINE {
                continue;
            }
            let sums = Sums::of(live);
            self.show(&line(began.elapsed(), &last, &sums, since));
            (last, last_at) = (sums, Instant::now());
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn show(&self, line: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(line.to_owned());
                bar.tick();
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Sums {
    fn of(live: &[Arc<Live>]) -> Self {
        live.iter().fold(Self::default(), |sums, live| Self {
            operations: sums.operations + live.operations.load(Relaxed),
            errors: sums.errors + live.errors.load(Relaxed),
            bytes_sent: sums.bytes_sent + live.bytes_sent.load(Relaxed),
            bytes_received: sums.bytes_received + live.bytes_received.load(Relaxed),
            connections: sums.connections + live.connections.load(Relaxed),
        })
    }
}

fn line(at: Duration, last: &Sums, now: &Sums, since: Duration) -> String {
    let per_s = |a: u64, b: u64| (b - a) as f64 / since.as_secs_f64();
    format!(
        "{:>4} s  {:>8} operations/s  {:>8} connects/s  up {:>12}  down {:>12}  {} errors",
        at.as_secs(),
        count(per_s(last.operations, now.operations) as u64),
        count(per_s(last.connections, now.connections) as u64),
        bit_rate(per_s(last.bytes_sent, now.bytes_sent) * 8.0),
        bit_rate(per_s(last.bytes_received, now.bytes_received) * 8.0),
        count(now.errors),
    )
}
