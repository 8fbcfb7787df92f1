//! `cargo xtask steering-cost`: nanoseconds of the XDP program.

use std::time::Duration;

use crate::process::Cmd;
use crate::{project, setup};

const LIMIT: Duration = Duration::from_secs(600);

/// Builds the program twice, and has the bench compare the two.
pub(crate) fn run(rounds: usize) -> Result<(), String> {
    setup::require_root("cargo xtask steering-cost")?;
    setup::ensure(setup::For::Build)?;
    project::build()?;
    let [whole, without_joins] = project::build_ebpf_variants()?;
    let table = Cmd::new(project::release_binary("mpx-bench"))
        .arg("steering")
        .arg("--whole")
        .arg(whole)
        .arg("--without-joins")
        .arg(without_joins)
        .args(["--rounds", &rounds.to_string()])
        .limit(LIMIT)
        .run()?;
    print!("{table}");
    Ok(())
}
