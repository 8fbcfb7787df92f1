//! The command line.

use clap::{Args, Parser, Subcommand};
use std::net::IpAddr;
use std::path::PathBuf;

/// Multipath TCP server endpoint on AF_XDP.
#[derive(Debug, Parser)]
#[command(name = "mpxd", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve until SIGTERM or SIGINT.
    Run {
        /// Configuration in TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say whether `run` would start; touches nothing.
    Check {
        /// Configuration in TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show how a running mpxd is: tables, memory, frames, queues.
    Status {
        /// As JSON, with the counters.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        asked: Asked,
    },
    /// List the connections of a running mpxd with their subflows, like `ss -tMni`.
    Conns {
        /// As JSON: a list with one connection per line.
        #[arg(long)]
        json: bool,
        /// Only those of this service.
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Only those with a subflow from this address.
        #[arg(long, value_name = "ADDRESS")]
        peer: Option<IpAddr>,
        #[command(flatten)]
        asked: Asked,
    },
    /// Show the counters of a running mpxd since its start, like `nstat -as`: the kernel's names where
    /// it counts the same thing, `Mpxd...` and `Xdp...` where it does not.
    Nstat {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Also those that are zero.
        #[arg(short, long)]
        zeros: bool,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Asked {
    /// The `control_socket` of its configuration.
    #[arg(long, value_name = "PATH", default_value = crate::admin::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
}
