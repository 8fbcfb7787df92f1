//! Puts the XDP object that `cargo xtask build` made where the loader embeds it.

use std::{env, fs, path::PathBuf, process};

/// Names the object explicitly, for builds outside of the workspace.
const OBJECT_VARIABLE: &str = "MPX_XDP_OBJECT";
/// Where the object is in the target directory.
const OBJECT_IN_TARGET: &str = "ebpf/mpx-xdp";

fn main() {
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    let Some(out_dir) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        fail("OUT_DIR is not set: this is for cargo to run");
    };
    // The target directory, wherever the environment or the configuration of cargo has put it, is
    // one of those above OUT_DIR.
    let object = match env::var_os(OBJECT_VARIABLE) {
        Some(path) => Some(PathBuf::from(path)),
        None => out_dir
            .ancestors()
            .map(|dir| dir.join(OBJECT_IN_TARGET))
            .find(|path| path.is_file()),
    };
    let Some(object) = object else {
        fail("the XDP program is not built: run cargo xtask build");
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, out_dir.join("mpx-xdp")) {
        fail(&format!(
            "cannot copy the XDP program from {}: {error}: run cargo xtask build",
            object.display()
        ));
    }
}

fn fail(problem: &str) -> ! {
    println!("cargo::error={problem}");
    process::exit(1);
}
