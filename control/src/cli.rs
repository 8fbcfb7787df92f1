//! The command line.

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

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
    /// Announce and take back addresses, make them backups, in a running mpxd; like `ip mptcp endpoint`.
    /// What is changed lasts until mpxd ends: the configuration stays as it is.
    Address {
        #[command(subcommand)]
        change: AddressCommand,
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

/// What is done to addresses, as it goes over the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AddressCommand {
    /// Tell clients of an address that they may join (ADD_ADDR); again, if they know it.
    Announce {
        address: IpAddr,
        /// If it is not that of their initial subflow.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
        /// Address ID; the one that it has, or the lowest that is free.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
        id: Option<u8>,
        /// To the connections of this service; has to be given where there are several.
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Where that arrives here, if a translator changes it.
        #[arg(long, value_name = "ADDRESS:PORT")]
        local: Option<SocketAddr>,
        /// Only to clients whose initial subflow comes from there.
        #[arg(long, value_name = "PREFIX")]
        clients: Option<IpNet>,
    },
    /// Take an announced address back (REMOVE_ADDR); subflows to it end where there are others.
    Withdraw { address: IpAddr },
    /// Use subflows to these addresses of ours only when nothing else works, and ask the clients to do the
    /// same (MP_PRIO).
    Backup { address: Prefix },
    /// Use them like any other.
    Regular { address: Prefix },
}

/// A prefix, or an address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prefix(pub(crate) IpNet);

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        let alone = text.parse().map(|address: IpAddr| IpNet::from(address));
        alone
            .or_else(|_| text.parse())
            .map(Prefix)
            .map_err(|_| "write 192.0.2.1, or 192.0.2.0/24".to_owned())
    }
}

#[derive(Debug, Args)]
pub(crate) struct Asked {
    /// The `control_socket` of its configuration.
    #[arg(long, global = true, value_name = "PATH", default_value = crate::admin::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
}
