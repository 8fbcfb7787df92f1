//! What the user sees: one line per step, its progress while it runs, its duration at the end.

use std::cell::Cell;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Where there is no terminal, progress lines are kept this far apart.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Runs one step of a command; `work` reports its progress through the callback.
pub(crate) fn step<T>(
    title: &str,
    work: impl FnOnce(&dyn Fn(&str)) -> Result<T, String>,
) -> Result<T, String> {
    let start = Instant::now();
    let result = if stderr().is_terminal() {
        with_spinner(title, work)
    } else {
        with_lines(title, work)
    };
    let mark = if result.is_ok() { "ok" } else { "FAILED" };
    eprintln!("{mark:>7}  {title} ({})", seconds(start.elapsed()));
    result
}

/// One line between steps.
pub(crate) fn say(text: &str) {
    eprintln!("         {text}");
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn with_spinner<T>(
    title: &str,
    work: impl FnOnce(&dyn Fn(&str)) -> Result<T, String>,
) -> Result<T, String> {
    let bar = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner:>7}  {prefix} [{elapsed}] {wide_msg:.dim}")
            .expect("the template is constant"),
    );
    bar.set_prefix(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    let result = work(&|line| bar.set_message(line.trim().to_owned()));
    bar.finish_and_clear();
    result
}

fn with_lines<T>(
    title: &str,
    work: impl FnOnce(&dyn Fn(&str)) -> Result<T, String>,
) -> Result<T, String> {
    eprintln!("    ...  {title}");
    let last = Cell::new(Instant::now());
    work(&|line| {
        if last.get().elapsed() >= PLAIN_INTERVAL {
            last.set(Instant::now());
            say(line.trim());
        }
    })
}
