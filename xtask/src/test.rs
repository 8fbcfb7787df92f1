//! `cargo xtask test`: what a change must pass.

use std::time::Instant;

use crate::process::Cmd;
use crate::project::{self, cargo};
use crate::server::Kind;
use crate::setup;
use crate::topology;
use crate::ui;
use crate::veth_tests::{self, CrowdOptions};

pub(crate) struct Options {
    pub(crate) veth: bool,
    pub(crate) only_veth: bool,
    pub(crate) filters: Vec<String>,
    pub(crate) kind: Kind,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let start = Instant::now();
    if options.veth {
        setup::require_root("cargo xtask test")?;
    }
    setup::ensure(if options.veth {
        setup::For::Test
    } else {
        setup::For::Build
    })?;
    if !options.only_veth {
        static_checks()?;
    }
    if options.veth {
        if options.kind == Kind::Mpxd {
            project::build()?;
        }
        topology::sweep()?;
        veth_tests::run(options.kind, &options.filters)?;
    }
    ui::say(&format!("all passed in {}", ui::seconds(start.elapsed())));
    Ok(())
}

/// The modes of steering with more clients than fit into `cargo xtask test`.
pub(crate) fn steering_crowd(options: &CrowdOptions) -> Result<(), String> {
    setup::require_root("cargo xtask steering-crowd")?;
    setup::ensure(setup::For::Test)?;
    project::build()?;
    topology::sweep()?;
    veth_tests::steering_crowd(options)
}

fn static_checks() -> Result<(), String> {
    let step = |title: &str, cmd: Cmd| ui::step(title, |progress| cmd.run_with_progress(progress));
    step("Formatting", cargo().args(["fmt", "--all", "--check"]))?;
    project::build_ebpf()?;
    step(
        "Lints",
        cargo()
            .args(["clippy", "--workspace", "--all-targets"])
            .args(["--", "-D", "warnings"]),
    )?;
    step(
        "Lints of the packetdrill shim",
        cargo()
            .args(["clippy", "-p", "mpx-packetdrill", "--features", "shim"])
            .args(["--", "-D", "warnings"]),
    )?;
    step(
        "Unit and property tests",
        cargo().args(["test", "--workspace"]),
    )
}
