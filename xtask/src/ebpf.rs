//! Builds the XDP program.
//!
//! What must be installed: `bpf-linker` (0.13, built against LLVM 22), and the sources of `core`
//! for a compiler that can be told to build it: the `rust-src` component of the pinned toolchain,
//! or else Debian's packages `rustc-web` and `rust-web-src`, whose compiler is then used for this
//! one object. Neither has `core` ready for the BPF target, hence `-Z build-std` and
//! `RUSTC_BOOTSTRAP=1`.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "mpx-xdp";

/// What is built from the same sources.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Whole,
    /// Does not read joins, to measure against.
    WithoutJoins,
}

impl Variant {
    /// Name of the object, features, and name of the file whose time says when it was built.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Variant::Whole => (OBJECT, "bpf", ".built"),
            Variant::WithoutJoins => (
                "mpx-xdp-without-joins",
                "without-joins",
                ".built-without-joins",
            ),
        }
    }
}

/// Compiler of the fallback.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
/// Everything that the object depends on, from the root of the workspace.
const SOURCES: &[&str] = &[
    "ebpf",
    "Cargo.toml",
    "Cargo.lock",
    "rust-toolchain.toml",
    "xtask/src/ebpf.rs",
];

/// Builds the program for the workspace at `root` unless it is newer than its sources. Returns the
/// path of the object, `ebpf/mpx-xdp` in the target directory, where the build script of `mpxd`
/// looks for it. `progress` gets a line at a time.
pub(crate) fn build(
    root: &Path,
    variant: Variant,
    progress: &dyn Fn(&str),
) -> Result<PathBuf, String> {
    let (name, features, stamp) = variant.names();
    let dir = target_dir(root)?.join("ebpf");
    let object = dir.join(name);
    // Apart from the object, whose own time must not change when its content does not: mpxd would
    // be built anew.
    let stamp = dir.join(stamp);
    if object.is_file() && is_newer_than_sources(root, &stamp)? {
        progress("XDP program: up to date");
        return Ok(object);
    }
    let compiler = Compiler::find(root)?;
    require_linker()?;
    progress("XDP program: building");
    compile(root, &dir, features, &compiler, progress)?;

    let built = dir.join(TARGET).join("release").join(OBJECT);
    let read = |path: &Path| fs::read(path).map_err(|e| at(path, &e));
    let content = read(&built)?;
    if !object.is_file() || read(&object)? != content {
        fs::write(&object, content).map_err(|e| at(&object, &e))?;
    }
    fs::write(&stamp, "").map_err(|e| at(&stamp, &e))?;
    Ok(object)
}

/// The compiler that can build `core`.
enum Compiler {
    Pinned,
    System,
}

impl Compiler {
    /// The pinned one where its sources of `core` are there, else Debian's.
    fn find(root: &Path) -> Result<Self, String> {
        let pinned = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        if has_core_sources(root, &pinned) {
            Ok(Self::Pinned)
        } else if has_core_sources(root, SYSTEM_RUSTC.as_ref()) {
            Ok(Self::System)
        } else {
            Err(
                "no sources of core for the XDP program: run cargo xtask setup, or rustup \
                 component add rust-src, or apt-get install rustc-web rust-web-src"
                    .to_owned(),
            )
        }
    }
}

/// Whether `-Z build-std` finds what it needs beside this compiler.
pub(crate) fn has_core_sources(root: &Path, rustc: &std::ffi::OsStr) -> bool {
    let Ok(output) = Command::new(rustc)
        .args(["--print", "sysroot"])
        .current_dir(root)
        .output()
    else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success()
        && Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
}

fn require_linker() -> Result<(), String> {
    let version = Command::new("bpf-linker")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match version {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "bpf-linker does not run ({status}): build it again with cargo xtask setup"
        )),
        Err(error) => Err(format!(
            "bpf-linker cannot be started ({error}): install it with cargo xtask setup"
        )),
    }
}

fn compile(
    root: &Path,
    dir: &Path,
    features: &str,
    compiler: &Compiler,
    progress: &dyn Fn(&str),
) -> Result<(), String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--package", "mpx-ebpf", "--bin", OBJECT])
        .args(["--features", features, "--release", "--locked"])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", "bpf-linker")
        // The kernel reads the types of the maps from BTF, which the linker makes from full debug
        // information. Flags meant for the host must not get here.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Cdebuginfo=2\u{1f}-Clink-arg=--btf",
        )
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("CARGO_TERM_COLOR", "never")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Compiler::System = compiler {
        cargo.env("RUSTC", SYSTEM_RUSTC);
    }
    let mut child = cargo
        .spawn()
        .map_err(|error| format!("cargo cannot be started: {error}"))?;
    let mut log = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line.map_err(|error| format!("the output of cargo: {error}"))?;
            progress(&format!("XDP program: {}", line.trim()));
            log.push(line);
        }
    }
    let status = child
        .wait()
        .map_err(|error| format!("cargo was lost: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!(
        "the XDP program does not build ({status}):\n{}",
        log.join("\n")
    ))
}

/// The target directory of the workspace, as cargo sees it.
fn target_dir(root: &Path) -> Result<PathBuf, String> {
    // Relative ones are relative to where cargo was called, which is where this runs.
    let given = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty());
    let dir = given.map_or_else(|| root.join("target"), PathBuf::from);
    std::path::absolute(&dir).map_err(|e| at(&dir, &e))
}

fn is_newer_than_sources(root: &Path, stamp: &Path) -> Result<bool, String> {
    let Ok(built) = fs::metadata(stamp).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    for source in SOURCES {
        let path = root.join(source);
        if newest(&path).map_err(|e| at(&path, &e))? >= built {
            return Ok(false);
        }
    }
    Ok(true)
}

/// When a file, or anything below a directory, was last changed.
fn newest(path: &Path) -> io::Result<SystemTime> {
    let metadata = fs::metadata(path)?;
    let mut time = metadata.modified()?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            time = time.max(newest(&entry?.path())?);
        }
    }
    Ok(time)
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_anywhere_in_the_sources_is_seen() {
        let root = tempfile::tempdir().unwrap();
        for source in SOURCES {
            let path = root.path().join(source);
            if *source == "ebpf" {
                fs::create_dir_all(path.join("src")).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
        }
        let stamp = root.path().join("stamp");
        assert_eq!(is_newer_than_sources(root.path(), &stamp), Ok(false));
        let built = SystemTime::now() + std::time::Duration::from_secs(10);
        fs::write(&stamp, "").unwrap();
        let set = |path: &Path, time| {
            fs::File::options()
                .write(true)
                .open(path)?
                .set_modified(time)
        };
        set(&stamp, built).unwrap();
        assert_eq!(is_newer_than_sources(root.path(), &stamp), Ok(true));
        let nested = root.path().join("ebpf/src/lib.rs");
        fs::write(&nested, "").unwrap();
        set(&nested, built + std::time::Duration::from_secs(1)).unwrap();
        assert_eq!(is_newer_than_sources(root.path(), &stamp), Ok(false));
    }
}
