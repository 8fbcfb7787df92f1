//! The command line.

use clap::{Parser, Subcommand};
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
    /// Show connections, counters and frames of a running mpxd.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// The `control_socket` of its configuration.
        #[arg(long, value_name = "PATH", default_value = crate::admin::DEFAULT_SOCKET)]
        socket: PathBuf,
    },
}
