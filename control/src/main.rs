//! `mpxd`: configuration, loading and attaching, workers, control socket.

mod admin;
mod announce;
mod bpf;
mod cli;
mod config;
mod conns;
mod entries;
mod ethtool;
mod kernel_joins;
mod net;
mod netlink;
mod nic;
mod nstat;
mod observer;
mod placement;
mod preflight;
mod proxy;
mod routes;
mod supervisor;

use clap::Parser;
use cli::{Cli, Command};
use config::Config;
use conns::Filter;
use placement::Placement;
use preflight::Plan;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run { config } => run(&config),
        Command::Check { config } => check(&config).map(|(config, plan, placement)| {
            if let Some(remark) = &placement.remark {
                println!("remark: {remark}");
            }
            println!("ok: {}; {}", plan.summary(&config), placement.summary());
        }),
        Command::Status { json, asked } => admin::status(&asked.socket, json).and_then(print),
        Command::Conns {
            json,
            service,
            peer,
            asked,
        } => conns::ask(&asked.socket, json, &Filter { service, peer }).and_then(print),
        Command::Address { change, asked } => {
            admin::change_addresses(&asked.socket, &change).and_then(print)
        }
        Command::Nstat { json, zeros, asked } => {
            nstat::ask(&asked.socket, json, zeros).and_then(print)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mpxd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A reader that has seen enough, `head` say, is no error.
fn print(text: String) -> Result<(), String> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("cannot write the answer ({error})"))
        }
        _ => Ok(()),
    }
}

fn run(file: &Path) -> Result<(), String> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    let (config, plan, placement) = check(file)?;
    supervisor::run(config, plan, placement)
}

fn check(file: &Path) -> Result<(Config, Plan, Placement), String> {
    let config = Config::load(file).map_err(|error| error.to_string())?;
    let plan = preflight::check(&config).map_err(|error| error.to_string())?;
    let in_file = |error| format!("{}: {error}", file.display());
    let placement = supervisor::check(&config, &plan).map_err(in_file)?;
    admin::check(&config.control_socket).map_err(in_file)?;
    Ok((config, plan, placement))
}
