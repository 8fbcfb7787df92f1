//! `mpx-bench`: a load generator on kernel sockets, and the kernel's own MPTCP to compare with.

mod flood;
mod keys;
mod load;
mod pattern;
mod progress;
mod report;
mod server;
mod socket;
mod steering;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use load::{Limit, Mode, Plan};
use progress::Progress;
use report::{Report, parse_bytes, parse_duration};
use server::{Server, ServerMode};
use socket::{Pinning, Proto};

/// Load generator for MPTCP and TCP servers
#[derive(Debug, Parser)]
#[command(name = "mpx-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put load on a server and measure; exit status 1 if there was any error
    Load(Box<LoadArgs>),
    /// Run the kernel's own MPTCP or TCP as the server to compare with
    EchoServer(ServerArgs),
    /// Measure what the XDP program takes for a frame
    Steering(SteeringArgs),
    /// Draw keys of MPTCP connections: are tokens unique and owners served alike, and what does it cost
    Keys(keys::KeysArgs),
    /// Send frames of nobody's over a virtual interface, as fast as it takes them
    Flood(flood::FloodArgs),
}

#[derive(Debug, Args)]
struct SteeringArgs {
    /// The object as it is
    #[arg(long, value_name = "FILE")]
    whole: PathBuf,
    /// One that does not read joins
    #[arg(long, value_name = "FILE")]
    without_joins: PathBuf,
    /// Runs of one measurement
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Measurements of each frame
    #[arg(long, default_value_t = 21)]
    rounds: usize,
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// What each connection does
    mode: Mode,
    #[arg(long, default_value = "mptcp")]
    proto: Proto,
    /// Address and port of the server; several are used in turn
    #[arg(long, required = true, value_delimiter = ',', value_name = "ADDR:PORT")]
    target: Vec<SocketAddr>,
    /// Local address to connect from; several are used in turn, and each has its own ports
    #[arg(long, value_delimiter = ',', value_name = "ADDR")]
    source: Vec<IpAddr>,
    /// Connections open at once
    #[arg(long, short, default_value_t = 64, value_name = "N")]
    connections: usize,
    #[arg(long, short, default_value_t = 1, value_name = "N")]
    threads: usize,
    /// Pin the threads to cores: --pin, or --pin=0,2-3
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "auto", value_name = "CORES")]
    pin: Option<Pinning>,
    /// Bytes of a request to an echo server (rr, short)
    #[arg(long, default_value = "64", value_parser = parse_bytes, value_name = "SIZE")]
    request_bytes: u64,
    /// Bytes that a response must have: the body with --http; an echo is as long as its request
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    response_bytes: Option<u64>,
    /// GET this path over HTTP/1.1 instead of talking to an echo server (rr, short)
    #[arg(long, value_name = "PATH")]
    http: Option<String>,
    /// How long to run; 10s unless --count or --bytes says otherwise
    #[arg(long, short, value_parser = parse_duration, value_name = "TIME", conflicts_with_all = ["count", "bytes"])]
    duration: Option<Duration>,
    /// Operations to attempt in all (rr, short)
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..), value_name = "N", conflicts_with = "bytes")]
    count: Option<u64>,
    /// Bytes to transfer on each connection (up, down, both)
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    bytes: Option<u64>,
    /// Operations per second in all, each measured from when it is due (rr, short)
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// How long an operation may take, or a bulk transfer stand still
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    timeout: Duration,
    /// Close with RST or MP_FASTCLOSE, which leaves no TIME-WAIT behind
    #[arg(long)]
    rst_close: bool,
    /// Ask the HTTP server to close after its response, and wait until it has (short)
    #[arg(long, requires = "http", conflicts_with = "rst_close")]
    server_closes: bool,
    /// Count a connection that fell back to TCP as an error
    #[arg(long)]
    require_mptcp: bool,
    /// Check the pattern that `echo-server --mode source` sends (down)
    #[arg(long)]
    verify: bool,
    /// Write the latency distribution to this file
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write the results as JSON to this file; "-" is stdout, and the table then goes to stderr
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress lines
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct ServerArgs {
    #[arg(long, default_value = "mptcp")]
    proto: Proto,
    #[arg(long, required = true, value_delimiter = ',', value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    #[arg(long, default_value = "echo")]
    mode: ServerMode,
    #[arg(long, short, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// Pin the threads to cores: --pin, or --pin=1,2-3
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "auto", value_name = "CORES")]
    pin: Option<Pinning>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Load(args) => load(&args),
        Command::EchoServer(args) => echo_server(&args),
        Command::Steering(args) => {
            steering::run(&args.whole, &args.without_joins, args.repeat, args.rounds)
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Keys(args) => keys::run(&args),
        Command::Flood(args) => flood::run(&args),
    };
    match result {
        Ok(status) => status,
        Err(problem) => {
            eprintln!("mpx-bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn load(args: &LoadArgs) -> Result<ExitCode, String> {
    let plan = plan(args)?;
    for target in &args.target {
        plan.proto.check(*target)?;
    }
    const PER_THREAD: usize = 4; // epoll and its like
    socket::raise_file_limit(plan.connections + plan.threads * PER_THREAD)?;
    // Before the run, so that nothing is measured in vain.
    let hgrm = args.hgrm.as_deref().map(create).transpose()?;
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    let json = match args.json.as_deref() {
        Some(path) if !to_stdout => Some(create(path)?),
        _ => None,
    };

    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = stop.clone();
    ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed))
        .map_err(|e| format!("cannot handle SIGINT: {e}"))?;
    let progress = (!args.quiet).then(Progress::new);
    let outcome = load::run(&plan, &stop, progress)?;

    let report = Report::new(&plan, &outcome);
    let failed = |what: &str, e: io::Error| format!("cannot write {what}: {e}");
    if let Some(mut out) = hgrm {
        report::write_hgrm(&outcome.tally.latency, &mut out)
            .and_then(|()| out.flush())
            .map_err(|e| failed("--hgrm", e))?;
    }
    if let Some(mut out) = json {
        report
            .write_json(&mut out)
            .and_then(|()| out.flush())
            .map_err(|e| failed("--json", e))?;
    }
    if to_stdout {
        eprint!("{report}");
        report
            .write_json(&mut io::stdout().lock())
            .map_err(|e| failed("to stdout", e))?;
    } else {
        write!(io::stdout().lock(), "{report}").map_err(|e| failed("to stdout", e))?;
    }
    Ok(ExitCode::from(report.exit_status()))
}

fn echo_server(args: &ServerArgs) -> Result<ExitCode, String> {
    args.proto.check(args.listen[0])?;
    socket::raise_file_limit(0)?;
    let threads = usize::from(args.threads);
    let server = Server::bind(
        args.proto,
        &args.listen,
        args.mode,
        threads,
        args.pin.as_ref(),
    )?;
    for addr in server.addrs() {
        println!("listening on {addr} ({})", args.proto.name());
    }
    let forever = AtomicBool::new(false);
    server.run(&forever).map_err(|e| format!("epoll: {e}"))?;
    Ok(ExitCode::SUCCESS)
}

fn create(path: &Path) -> Result<BufWriter<File>, String> {
    let file = File::create(path).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(BufWriter::new(file))
}

/// Checks what clap cannot: that the options fit each other and this host.
fn plan(args: &LoadArgs) -> Result<Plan, String> {
    let mode = args.mode;
    if args.connections == 0 || args.threads == 0 {
        return Err("--connections and --threads must be at least 1".into());
    }
    if mode.is_bulk() {
        let exchange_only = [
            (args.count.is_some(), "--count"),
            (args.rate.is_some(), "--rate"),
            (args.http.is_some(), "--http"),
            (args.response_bytes.is_some(), "--response-bytes"),
        ];
        if let Some((_, option)) = exchange_only.iter().find(|(given, _)| *given) {
            return Err(format!(
                "{option} works with rr and short, not with {}",
                mode.name()
            ));
        }
    } else if args.bytes.is_some() {
        return Err(format!(
            "--bytes is for up, down and both; use --count with {}",
            mode.name()
        ));
    }
    if args.verify && mode != Mode::Down {
        return Err("--verify is for down; rr, short and both check what an echo returns".into());
    }
    if args.require_mptcp && args.proto == Proto::Tcp {
        return Err("--require-mptcp contradicts --proto tcp".into());
    }
    if args.rate.is_some_and(|r| !r.is_finite() || r <= 0.0) {
        return Err("--rate must be above 0 operations per second".into());
    }
    let request_bytes = usize::try_from(args.request_bytes)
        .map_err(|_| "--request-bytes does not fit in memory".to_owned())?;
    match (&args.http, args.response_bytes) {
        (Some(path), _) if !path.starts_with('/') || path.contains(char::is_whitespace) => {
            return Err(format!(
                "--http {path}: a path starts with / and has no spaces"
            ));
        }
        (None, Some(n)) if n != args.request_bytes => {
            return Err(format!(
                "--response-bytes {n}: an echo has the {request_bytes} bytes of its request; \
                 leave it out or use --http"
            ));
        }
        _ => {}
    }
    Ok(Plan {
        mode,
        proto: args.proto,
        routes: routes(&args.target, &args.source)?,
        connections: args.connections,
        threads: args.threads.min(args.connections),
        pinning: args.pin.clone(),
        request_bytes,
        http_path: args.http.clone(),
        response_bytes: args.response_bytes,
        limit: match (args.count, args.bytes, args.duration) {
            (Some(n), ..) => Limit::Count(n),
            (_, Some(n), _) => Limit::BytesEach(n),
            (.., d) => Limit::Duration(d.unwrap_or(Duration::from_secs(10))),
        },
        rate_per_s: args.rate,
        timeout: args.timeout,
        reset_on_close: args.rst_close,
        server_closes: args.server_closes,
        require_mptcp: args.require_mptcp,
        verify_source: args.verify,
    })
}

/// Every target from every source of its family.
fn routes(
    targets: &[SocketAddr],
    sources: &[IpAddr],
) -> Result<Vec<(SocketAddr, Option<IpAddr>)>, String> {
    for &source in sources {
        TcpListener::bind((source, 0)).map_err(|e| {
            format!("--source {source}: cannot bind it: {e}; use an address of this host")
        })?;
    }
    if sources.is_empty() {
        return Ok(targets.iter().map(|&t| (t, None)).collect());
    }
    let mut routes = Vec::new();
    for &target in targets {
        let of_family = |s: &&IpAddr| s.is_ipv4() == target.is_ipv4();
        let before = routes.len();
        routes.extend(sources.iter().filter(of_family).map(|&s| (target, Some(s))));
        if routes.len() == before {
            return Err(format!(
                "--target {target}: no --source of the same address family"
            ));
        }
    }
    Ok(routes)
}
