//! The load generator: threads that each drive their share of the connections from one epoll loop.

mod bulk;
mod exchange;
mod http;
mod tally;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use crate::progress::Progress;
use crate::socket::{Pinning, Proto};

pub(crate) use tally::{ErrorKind, Live, Tally};

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Requests and responses on persistent connections
    Rr,
    /// Connect, one request and its response, close
    Short,
    /// Send to a server that discards; ends when the server has closed after the last byte
    Up,
    /// Receive from a server that sends by itself
    Down,
    /// Send to an echo server and check every byte that comes back
    Both,
}

impl Mode {
    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Self::Up | Self::Down | Self::Both)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Short => "short",
            Self::Up => "up",
            Self::Down => "down",
            Self::Both => "both",
        }
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    Duration(Duration),
    /// Operations attempted on all connections together (`rr` and `short`).
    Count(u64),
    /// Bytes on each connection (bulk).
    BytesEach(u64),
}

/// A run, checked: `targets` is not empty, `threads <= connections`, and each limit fits the mode.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) mode: Mode,
    pub(crate) proto: Proto,
    /// Where the connections go, in turn, and from which address.
    pub(crate) routes: Vec<(SocketAddr, Option<IpAddr>)>,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) pinning: Option<Pinning>,
    pub(crate) request_bytes: usize,
    /// The path to GET, when the server speaks HTTP instead of echoing.
    pub(crate) http_path: Option<String>,
    /// The length that a response body must have, when HTTP.
    pub(crate) response_bytes: Option<u64>,
    pub(crate) limit: Limit,
    /// Operations per second of all threads together.
    pub(crate) rate_per_s: Option<f64>,
    pub(crate) timeout: Duration,
    pub(crate) reset_on_close: bool,
    /// `short` over HTTP: the server is asked to close, and the operation lasts until it has.
    pub(crate) server_closes: bool,
    pub(crate) require_mptcp: bool,
    /// `down`: the server sends the pattern of `echo-server --mode source`.
    pub(crate) verify_source: bool,
}

/// What a run gave.
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// From the common start to the end of the duration or to the last completed operation,
    /// whichever is later.
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Duration,
    pub(crate) interrupted: bool,
}

/// Runs to the end, or until `stop` is set.
pub(crate) fn run(
    plan: &Plan,
    stop: &Arc<AtomicBool>,
    progress: Option<Progress>,
) -> Result<Outcome, String> {
    let cores = match &plan.pinning {
        Some(pinning) => pinning.cores(plan.threads)?.into_iter().map(Some).collect(),
        None => vec![None; plan.threads],
    };
    let live: Vec<Arc<Live>> = (0..plan.threads).map(|_| Arc::default()).collect();
    let start = StartLine::new(plan.threads);
    let cpu_before = process_cpu_time();

    let mut tally = Tally::new();
    let mut problem = None;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.threads)
            .map(|index| {
                let shared = Shared {
                    plan,
                    stop,
                    start: &start,
                    live: live[index].clone(),
                    index,
                };
                let core = cores[index];
                scope.spawn(move || {
                    if let Some(core) = core {
                        core_affinity::set_for_current(core);
                    }
                    if plan.mode.is_bulk() {
                        bulk::run(shared)
                    } else {
                        exchange::run(shared)
                    }
                })
            })
            .collect();
        if let Some(mut progress) = progress {
            progress.follow(&live, || workers.iter().all(|w| w.is_finished()));
        }
        for worker in workers {
            match worker.join() {
                Ok(Ok(part)) => tally.merge(part),
                Ok(Err(e)) => problem = Some(format!("epoll: {e}")),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    if let Some(problem) = problem {
        return Err(problem);
    }

    let began = start.time();
    let until_last = tally.last_completion.map_or(Duration::ZERO, |t| t - began);
    let interrupted = stop.load(Relaxed);
    let elapsed = match plan.limit {
        Limit::Duration(d) if !interrupted => d.max(until_last),
        _ if until_last.is_zero() => began.elapsed(),
        _ => until_last,
    };
    Ok(Outcome {
        tally,
        elapsed,
        cpu: process_cpu_time().saturating_sub(cpu_before),
        interrupted,
    })
}

/// User and system time of this process so far.
fn process_cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|t| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000))
        .sum()
}

/// What a thread is given.
struct Shared<'a> {
    plan: &'a Plan,
    stop: &'a AtomicBool,
    start: &'a StartLine,
    live: Arc<Live>,
    index: usize,
}

impl Shared<'_> {
    /// This thread's share of `total`.
    fn share(&self, total: u64) -> u64 {
        let threads = self.plan.threads as u64;
        total / threads + u64::from((self.index as u64) < total % threads)
    }

    /// The connections of this thread, by their number in the whole run.
    fn connections(&self) -> impl Iterator<Item = usize> + use<> {
        (self.index..self.plan.connections).step_by(self.plan.threads)
    }

    fn route(&self, connection: usize) -> (SocketAddr, Option<IpAddr>) {
        self.plan.routes[connection % self.plan.routes.len()]
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// Holds the threads until all have set up, and gives them one start time.
struct StartLine {
    barrier: Barrier,
    time: OnceLock<Instant>,
}

impl StartLine {
    fn new(threads: usize) -> Self {
        Self {
            barrier: Barrier::new(threads),
            time: OnceLock::new(),
        }
    }

    fn wait(&self) -> Instant {
        self.barrier.wait();
        self.time()
    }

    fn time(&self) -> Instant {
        *self.time.get_or_init(Instant::now)
    }
}
