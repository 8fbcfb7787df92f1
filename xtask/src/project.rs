//! Where things are, and calls of cargo.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ebpf::{self, Variant};
use crate::process::Cmd;
use crate::ui;

/// The slowest machine's longest build.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// The workspace's directory.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Builds the XDP program, which `mpxd` takes in when it is built.
pub(crate) fn build_ebpf() -> Result<(), String> {
    ui::step("Building the XDP program", |progress| {
        ebpf::build(root(), Variant::Whole, progress).map(drop)
    })
}

/// Builds the XDP program with and without its reading of joins.
pub(crate) fn build_ebpf_variants() -> Result<[PathBuf; 2], String> {
    ui::step("Building the XDP program twice", |progress| {
        let build = |variant| ebpf::build(root(), variant, progress);
        Ok([build(Variant::Whole)?, build(Variant::WithoutJoins)?])
    })
}

/// Builds the XDP program and then everything that is to be run.
pub(crate) fn build() -> Result<(), String> {
    build_ebpf()?;
    ui::step("Building mpxd and mpx-bench", |progress| {
        cargo()
            .args(["build", "--release", "-p", "mpx-control", "-p", "mpx-bench"])
            .run_with_progress(progress)
    })
}

/// A program of this workspace, built for release.
pub(crate) fn release_binary(name: &str) -> PathBuf {
    target_directory().join("release").join(name)
}

/// Builds the engine as a shared object for the packetdrill tool, with debug assertions.
pub(crate) fn build_packetdrill_shim() -> Result<PathBuf, String> {
    ui::step("Building the shared object", |progress| {
        cargo()
            .args(["build", "-p", "mpx-packetdrill", "--features", "shim"])
            .run_with_progress(progress)
    })?;
    Ok(target_directory().join("debug/libmpx_packetdrill.so"))
}

/// A call of the cargo that started this program.
pub(crate) fn cargo() -> Cmd {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Cmd::new(cargo).directory(root()).limit(BUILD_LIMIT)
}

pub(crate) fn target_directory() -> PathBuf {
    // A relative one is relative to where cargo was called.
    let named = std::env::var_os("CARGO_TARGET_DIR").filter(|named| !named.is_empty());
    named
        .and_then(|named| std::path::absolute(named).ok())
        .unwrap_or_else(|| root().join("target"))
}
