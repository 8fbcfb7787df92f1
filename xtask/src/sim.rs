//! `cargo xtask sim`: the deterministic simulator among the datapath's tests.

use std::path::PathBuf;
use std::process::Command;

use crate::project;
use crate::ui;

/// What the simulator is to do.
pub(crate) enum Task {
    Sweep { from: u64, seeds: u64 },
    Replay { seed: u64, capture: Option<PathBuf> },
    Throughput,
}

pub(crate) fn run(task: Task, layers: Option<u64>) -> Result<(), String> {
    const TEST: [&str; 6] = ["test", "--profile", "sim", "-p", "mpx-datapath", "--test"];
    ui::step("Building the simulator", |progress| {
        project::cargo()
            .args(TEST)
            .args(["sim", "--no-run"])
            .run_with_progress(progress)
    })?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(project::root())
        .args(TEST)
        .args(["sim", "--quiet", "--"]);
    match task {
        Task::Sweep { from, seeds } => {
            command.args(["--from", &from.to_string(), "--seeds", &seeds.to_string()]);
        }
        Task::Throughput => {
            command.arg("--throughput");
        }
        Task::Replay { seed, capture } => {
            // The test program runs in the folder of its package.
            let file = capture.unwrap_or_else(|| format!("sim-{seed}.pcapng").into());
            let file = std::path::absolute(&file)
                .map_err(|error| format!("cannot name the capture {}: {error}", file.display()))?;
            ui::say(&format!("all frames go to {}", file.display()));
            command
                .args(["--seed", &seed.to_string()])
                .arg("--capture")
                .arg(file);
        }
    }
    if let Some(layers) = layers {
        command.args(["--layers", &layers.to_string()]);
    }
    // What it says goes straight to the user: it may run for hours.
    let status = command
        .status()
        .map_err(|error| format!("cannot run the simulator: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("the simulator found something; it is described above".into())
    }
}
