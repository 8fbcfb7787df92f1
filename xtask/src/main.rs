//! Everything that is done to the project from its own checkout: set-up, builds, the demo, tests,
//! topologies. `cargo xtask --help` lists it.

mod backend;
mod cleanup;
mod close_load;
mod content;
mod counters;
mod demo;
mod ebpf;
mod figures;
mod flood;
mod goodput;
mod link;
mod mutants;
mod mutations;
mod packetdrill;
mod peer;
mod process;
mod project;
mod reasons;
mod scratch;
mod server;
mod setup;
mod sim;
mod status;
mod steering;
mod test;
mod topology;
mod ui;
mod veth_tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use server::Kind;
use topology::{Shape, Topology};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    disable_version_flag = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Every command does the set-up that it needs.
#[derive(Subcommand)]
enum Command {
    /// Installs what building, demo and tests need, or prints how to
    Setup,
    /// Builds the XDP program, mpxd and mpx-bench
    Build,
    /// Downloads through mpxd over two paths, runs a short load, takes everything down
    Demo,
    /// Formatting, lints, unit and property tests, then tests over veth pairs
    Test {
        /// Run only the veth tests with this in their name (may be repeated)
        #[arg(long, value_name = "NAME")]
        veth: Vec<String>,
        /// Leave the veth tests out
        #[arg(long, conflicts_with_all = ["only_veth", "veth"])]
        skip_veth: bool,
        /// Run nothing but the veth tests
        #[arg(long)]
        only_veth: bool,
        /// The server in the veth tests
        #[arg(long, value_enum, default_value = "mpxd")]
        server: Kind,
        /// Print the names of the veth tests and do nothing
        #[arg(long)]
        list: bool,
    },
    /// Measures mpxd against the kernel's MPTCP in the same run and prints a table
    Figures {
        /// Runs of each measurement, of which the median is given
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Seconds of each run
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Measures one download over an emulated link, mpxd against the kernel's TCP in the same run, and
    /// writes a table and a plot
    Goodput(goodput::Options),
    /// Closes many short connections of kernel clients and counts what is left in TIME-WAIT
    CloseLoad(close_load::Options),
    /// Floods mpxd with frames of nobody's and measures what its clients still get done
    Flood(flood::Options),
    /// Measures how fast a link the emulator can be on one core
    LinkSpeed {
        /// As in `veth up --link`
        #[arg(long, default_value = "rate=1gbit delay=1ms")]
        link: String,
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Measures what the XDP program takes for a frame, with and without its reading of joins
    SteeringCost {
        /// Measurements of each frame, of which the least and the median are given
        #[arg(long, default_value_t = 21)]
        rounds: usize,
    },
    /// Clients with four subflows each in every mode of steering: all sums and subflows are looked at, and
    /// how the XDP program and the workers brought their frames to their owner is counted
    SteeringCrowd(veth_tests::CrowdOptions),
    /// Plays seeds of the deterministic simulator, or replays one with a listing of all its frames
    #[command(group(clap::ArgGroup::new("task").required(true)))]
    Sim {
        /// Seeds to play
        #[arg(long, value_name = "N", group = "task", value_parser = clap::value_parser!(u64).range(1..))]
        seeds: Option<u64>,
        /// The first of them
        #[arg(long, value_name = "S", default_value_t = 0, conflicts_with_all = ["seed", "throughput", "mutations"])]
        from: u64,
        /// Replay this one
        #[arg(long, value_name = "S", group = "task")]
        seed: Option<u64>,
        /// With the first so many layers of what the seeds stand for: earlier versions had fewer
        #[arg(long, value_name = "N", conflicts_with_all = ["throughput", "mutations"])]
        layers: Option<u64>,
        /// Compare the table of throughputs with the file, or write it with UPDATE_EXPECT=1
        #[arg(long, group = "task")]
        throughput: bool,
        /// Make bugs on purpose, one at a time in a copy of the tree, and see that each is found
        #[arg(long, group = "task")]
        mutations: bool,
        /// Where the frames of a replay go; sim-SEED.pcapng if not given
        #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "throughput", "mutations"])]
        capture: Option<std::path::PathBuf>,
    },
    /// Runs the server scripts of a packetdrill collection against the engine
    Packetdrill {
        /// A directory with scripts, or one script
        path: std::path::PathBuf,
        /// Run only the scripts with this in their name
        #[arg(long, value_name = "TEXT", default_value = "")]
        filter: String,
        /// Run them over IPv6
        #[arg(long)]
        ipv6: bool,
        /// Show what the tool said of every script that fails, expected or not
        #[arg(long)]
        show: bool,
    },
    /// Runs cargo-mutants where a small mistake does the most harm, against the unit tests
    Mutants {
        /// What it may take; what was not reached is listed
        #[arg(long, value_name = "N", default_value_t = 60)]
        minutes: u64,
        /// Only the files with this in their name
        #[arg(long, value_name = "TEXT", default_value = "")]
        file: String,
    },
    /// Client and server namespaces to work in
    #[command(subcommand)]
    Veth(Veth),
    #[command(subcommand, hide = true)]
    Peer(peer::Peer),
    #[command(hide = true)]
    LinkRelay(Box<link::Arguments>),
}

#[derive(Subcommand)]
enum Veth {
    /// Makes one and leaves it up
    Up {
        #[arg(long, default_value = "veth")]
        name: String,
        /// veth pairs
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=4))]
        paths: u8,
        /// Receive and transmit queues of every end
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
        queues: u8,
        /// Put a link emulator into every pair, as "rate=100mbit delay=10ms loss=1%"; given more than
        /// once, one for each pair in turn
        #[arg(long, value_name = "LINK", long_help = format!("Put a link emulator into every pair; given more than once, one for each pair in turn. {}", link::SYNTAX))]
        link: Vec<String>,
    },
    /// Removes one
    Down {
        #[arg(long, default_value = "veth")]
        name: String,
    },
    /// Names those that stand
    List,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        // A peer is a child of another xtask, which takes it down.
        Command::Peer(peer) => peer::run(peer),
        Command::LinkRelay(arguments) => link::run(*arguments),
        command => process::complete_search_path()
            .and_then(|()| cleanup::on_signals())
            .and_then(|()| run(command)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Setup => {
            setup::ensure(setup::For::Test)?;
            ui::say("everything that building, demo and tests need is there");
            Ok(())
        }
        Command::Build => {
            setup::ensure(setup::For::Build)?;
            project::build()
        }
        Command::Demo => demo::run(),
        Command::Test { list: true, .. } => {
            for name in veth_tests::names() {
                println!("{name}");
            }
            Ok(())
        }
        Command::Test {
            veth,
            skip_veth,
            only_veth,
            server,
            list: false,
        } => test::run(&test::Options {
            veth: !skip_veth,
            only_veth: only_veth || !veth.is_empty(),
            filters: veth,
            kind: server,
        }),
        Command::Figures { runs, seconds } => figures::run(runs, seconds),
        Command::CloseLoad(options) => close_load::run(&options),
        Command::Goodput(options) => goodput::run(&options),
        Command::Flood(options) => flood::run(&options),
        Command::SteeringCost { rounds } => steering::run(rounds),
        Command::SteeringCrowd(options) => test::steering_crowd(&options),
        Command::LinkSpeed { link, seconds } => link::measure(&link, seconds),
        Command::Sim {
            seed: Some(seed),
            layers,
            capture,
            ..
        } => sim::run(sim::Task::Replay { seed, capture }, layers),
        Command::Sim {
            mutations: true, ..
        } => mutations::run(),
        Command::Sim {
            throughput: true, ..
        } => sim::run(sim::Task::Throughput, None),
        Command::Sim {
            seeds,
            from,
            layers,
            ..
        } => {
            let seeds = seeds.unwrap_or_default();
            sim::run(sim::Task::Sweep { from, seeds }, layers)
        }
        Command::Packetdrill {
            path,
            filter,
            ipv6,
            show,
        } => packetdrill::run(&path, &filter, ipv6, show),
        Command::Mutants { minutes, file } => mutants::run(minutes, &file),
        Command::Veth(veth) => run_veth(veth),
        Command::Peer(peer) => peer::run(peer),
        Command::LinkRelay(arguments) => link::run(*arguments),
    }
}

fn run_veth(veth: Veth) -> Result<(), String> {
    setup::require_root("cargo xtask veth")?;
    setup::ensure_tools()?;
    match veth {
        Veth::Up {
            name,
            paths,
            queues,
            link,
        } => {
            if topology::list()?.contains(&name) {
                return Err(format!(
                    "topology `{name}` stands already; remove it with: cargo xtask veth down --name {name}"
                ));
            }
            for spec in &link {
                spec.parse::<link::Spec>()?;
            }
            if link.len() > usize::from(paths) {
                return Err(format!("{} links are given for {paths} pairs", link.len()));
            }
            let shape = Shape { paths, queues };
            let topology = match link.is_empty() {
                true => Topology::up(&name, shape)?,
                false => Topology::linked(&name, shape)?,
            };
            println!("client: ip netns exec {} COMMAND", topology.client.name);
            println!("server: ip netns exec {} COMMAND", topology.server.name);
            for path in topology.paths() {
                println!(
                    "path {path}: c{path} 10.9.{path}.1 fd00:9:{path}::1 - s{path} 10.9.{path}.2 fd00:9:{path}::2"
                );
            }
            for (path, spec) in topology.paths().zip(link.iter().cycle()) {
                let report = topology::link_report(&name, path);
                let pid = topology.leave_link(path, spec, &report)?;
                println!(
                    "link {path}: {spec}; counts: kill -USR1 {pid}; sleep 0.1; cat {}",
                    report.display()
                );
            }
            topology.keep();
            Ok(())
        }
        Veth::Down { name } => topology::down(&name),
        Veth::List => {
            for name in topology::list()? {
                println!("{name}");
            }
            Ok(())
        }
    }
}
