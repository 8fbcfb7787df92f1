//! The deterministic simulator: engine, clients, paths and time in one thread, all from one number.
//!
//! Without arguments it plays a bounded sweep and the seeds that once failed. `--seeds N [--from S]`
//! sweeps, to the first that fails if `--until-failure` is there; `--seed S [--layers L]` replays one
//! with a listing of all frames and, with `--capture FILE`, a pcapng. `--throughput` only fills the
//! table of throughputs.

#![allow(unreachable_pub)]

mod flood;
#[allow(dead_code, reason = "another test program uses the rest")]
#[path = "../model/mod.rs"]
mod model;
mod run;
mod scenario;
mod throughput;

use run::Outcome;
use scenario::{LAYERS, Scenario};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Seeds that failed once, in how many layers, and what they found.
const FAILED_ONCE: &[(&str, u64, u64)] = &[
    (
        "an ACK that moves snd_una brings news of SACKed octets",
        14,
        1,
    ),
    (
        "the FIN of a subflow that left is repeated when the octets before it are released",
        86,
        1,
    ),
    (
        "a timeout that was backed off stays so where every window loses something",
        564,
        1,
    ),
    (
        "a subflow without a measurement waits a minute to repeat what it lost",
        1544,
        1,
    ),
    (
        "subflows that are backed off hold the stream and the send buffer",
        13567,
        1,
    ),
    (
        "the only subflow that still works is reset for holding the send buffer",
        13540,
        1,
    ),
    (
        "a path swallows segments that are smaller than what is tried after a black hole",
        1639,
        6,
    ),
    (
        "what came twice is told after it was dropped for want of memory",
        5688,
        5,
    ),
    (
        "the echo of an IPv6 address acknowledges text without a DATA_ACK, and is no fallback",
        4433,
        8,
    ),
    (
        "an IPv6 address comes in the place of a fourth ACK that was lost",
        1234,
        8,
    ),
    (
        "a cookie for another SYN of the flow was spent, and is not this one's",
        19147,
        12,
    ),
];

/// What test programs understand and a simulation has no use for.
const OF_TEST_PROGRAMS: &[&str] = &[
    "--exact",
    "--ignored",
    "--include-ignored",
    "--nocapture",
    "--no-capture",
    "--quiet",
    "-q",
    "--show-output",
];
/// With a value behind it.
const OF_TEST_PROGRAMS_WITH_VALUE: &[&str] =
    &["--color", "--format", "--skip", "--test-threads", "-Z"];

/// After so many failures a sweep ends, if not after the first.
const FAILURES_MAX: usize = 20;

enum Task {
    Sweep {
        from: u64,
        count: u64,
        layers: u64,
        failures_max: usize,
    },
    Replay {
        seed: u64,
        layers: u64,
        capture: Option<PathBuf>,
    },
    Throughput,
    Default,
    Nothing,
}

fn main() -> ExitCode {
    let task = match parse(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if !matches!(task, Task::Replay { .. }) {
        watch_for_hangs();
    }
    let passed = match task {
        Task::Nothing => true,
        Task::Sweep {
            from,
            count,
            layers,
            failures_max,
        } => sweep(from, count, layers, failures_max),
        Task::Replay {
            seed,
            layers,
            capture,
        } => replay(seed, layers, capture),
        Task::Throughput => throughput_table(),
        Task::Default => {
            failed_once()
                & throughput_table()
                & sweep(0, run::bounded_sweep(), LAYERS, FAILURES_MAX)
        }
    };
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(args: impl Iterator<Item = String>) -> Result<Task, String> {
    let (mut seeds, mut from, mut seed, mut layers) = (None, None, None, None);
    let (mut capture, mut failures_max) = (None, FAILURES_MAX);
    let mut filtered = false;
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let mut number = |name: &str| {
            let text = args
                .next()
                .ok_or_else(|| format!("{name} needs a number behind it"))?;
            text.parse::<u64>()
                .map_err(|_| format!("{name} needs a number, not `{text}`"))
        };
        match arg.as_str() {
            "--seeds" => seeds = Some(number("--seeds")?),
            "--from" => from = Some(number("--from")?),
            "--seed" => seed = Some(number("--seed")?),
            "--until-failure" => failures_max = 1,
            "--layers" => layers = Some(number("--layers")?),
            "--throughput" => return Ok(Task::Throughput),
            "--capture" => {
                let file = args.next().ok_or("--capture needs a file behind it")?;
                capture = Some(PathBuf::from(file));
            }
            // What `cargo test` passes on to every test program.
            "--list" => return Ok(Task::Nothing),
            flag if OF_TEST_PROGRAMS.contains(&flag) => {}
            flag if OF_TEST_PROGRAMS_WITH_VALUE.contains(&flag) => drop(args.next()),
            flag if flag.starts_with('-') => {
                return Err(format!(
                    "{flag} means nothing here; the head of sim/main.rs has what does"
                ));
            }
            name => filtered |= !"sim".contains(name),
        }
    }
    let layers = layers.unwrap_or(LAYERS);
    match (seeds, seed) {
        (Some(_), Some(_)) => Err("--seeds sweeps and --seed replays: give one of them".into()),
        (Some(count), None) => Ok(Task::Sweep {
            from: from.unwrap_or(0),
            count,
            layers,
            failures_max,
        }),
        (None, Some(seed)) => Ok(Task::Replay {
            seed,
            layers,
            capture,
        }),
        (None, None) if filtered => Ok(Task::Nothing),
        (None, None) => Ok(Task::Default),
    }
}

thread_local! {
    /// Where the last panic was and what it said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// No seed takes longer than this in real time, by far: something turns in circles.
const HANG: Duration = Duration::from_secs(60);

/// The seed under way, its layers, and when that began.
static UNDER_WAY: Mutex<Option<(u64, u64, Instant)>> = Mutex::new(None);

/// Looks at the clock beside the simulation, which cannot do it itself when it hangs.
fn watch_for_hangs() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(HANG / 10);
            let under_way = *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((seed, layers, since)) = under_way.filter(|u| u.2.elapsed() > HANG) {
                let error = format!("it hangs since {} s", since.elapsed().as_secs());
                report_failure(&seed.to_string(), seed, layers, &error);
                std::process::exit(1);
            }
        }
    });
}

/// Plays one seed; `Err` says what was violated.
fn play(seed: u64, layers: u64) -> Result<Outcome, String> {
    let began = Some((seed, layers, Instant::now()));
    *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) = began;
    let scenario = &Scenario::of(seed, layers);
    panic::set_hook(Box::new(|info| {
        PANIC.with_borrow_mut(|text| *text = info.to_string());
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(|| run::play(scenario)));
    drop(panic::take_hook());
    // Whatever comes between two seeds may take its time.
    *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) = None;
    result.map_err(|_| PANIC.take())
}

fn failed_once() -> bool {
    let mut passed = true;
    for (name, seed, layers) in FAILED_ONCE {
        if let Err(error) = play(*seed, *layers) {
            passed = false;
            report_failure(&format!("{seed} ({name})"), *seed, *layers, &error);
        }
    }
    passed
}

fn throughput_table() -> bool {
    // What differs is shown by the panic.
    panic::catch_unwind(throughput::check).is_ok()
}

fn sweep(from: u64, count: u64, layers: u64, failures_max: usize) -> bool {
    let began = Instant::now();
    let mut shown = began;
    let (mut total, mut slowest) = (Outcome::default(), from);
    let mut failures = Vec::new();
    let mut done = 0;
    for seed in from..from.saturating_add(count) {
        match play(seed, layers) {
            Ok(outcome) => {
                total.whole += outcome.whole;
                total.aborted += outcome.aborted;
                total.given_up += outcome.given_up;
                total.octets += outcome.octets;
                if outcome.converged > total.converged {
                    total.converged = outcome.converged;
                    slowest = seed;
                }
            }
            Err(error) => {
                failures.push(seed);
                report_failure(&seed.to_string(), seed, layers, &error);
            }
        }
        done += 1;
        let often = if std::io::stderr().is_terminal() {
            1
        } else {
            10
        };
        if shown.elapsed() >= Duration::from_secs(often) {
            shown = Instant::now();
            progress(done, count, began.elapsed(), failures.len());
        }
        if failures.len() >= failures_max {
            eprintln!("{failures_max} failed: enough");
            break;
        }
    }
    let took = began.elapsed();
    progress(done, count, took, failures.len());
    eprintln!(
        "connections: {} whole, {} aborted on purpose, {} given up after faults; {} MB delivered; \
         the slowest run, seed {slowest}, took {:.0} s with its paths in order",
        total.whole,
        total.aborted,
        total.given_up,
        total.octets / 1_000_000,
        total.converged.as_secs_f64(),
    );
    if !failures.is_empty() {
        eprintln!("failed: {failures:?}");
    }
    failures.is_empty()
}

fn progress(done: u64, count: u64, took: Duration, failures: usize) {
    let per_second = done as f64 / took.as_secs_f64().max(0.001);
    eprintln!("seeds: {done} of {count}, {per_second:.1} per second, {failures} failed");
}

fn report_failure(name: &str, seed: u64, layers: u64, error: &str) {
    let text: String = error.chars().take(600).collect();
    let layers = match layers {
        LAYERS => String::new(),
        fewer => format!(" --layers {fewer}"),
    };
    eprintln!("seed {name} FAILED: {text}\n  replay: cargo xtask sim --seed {seed}{layers}");
}

fn replay(seed: u64, layers: u64, capture: Option<PathBuf>) -> bool {
    let mut scenario = Scenario::of(seed, layers);
    eprintln!("{scenario:#?}");
    scenario.sim.trace = true;
    scenario.sim.capture = capture;
    // With the usual panic message, and a backtrace if `RUST_BACKTRACE` asks for one.
    let result = panic::catch_unwind(AssertUnwindSafe(|| run::play(&scenario)));
    match &result {
        Ok(outcome) => eprintln!("seed {seed} passed: {outcome:?}"),
        Err(_) => eprintln!("seed {seed} FAILED"),
    }
    result.is_ok()
}
