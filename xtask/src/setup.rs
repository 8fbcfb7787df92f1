//! Installs what a command needs and the machine lacks, or prints how to.
//!
//! Every check is cheap and looks at the thing itself (a package's status, a file, a program's
//! version), so a second run does nothing twice.

use std::path::Path;
use std::time::Duration;

use crate::ebpf;
use crate::process::{Cmd, cargo_bin, on_path};
use crate::project;
use crate::ui;

/// For compiling: libxdp and libbpf are built from source by a dependency.
const BUILD_PACKAGES: &[&str] = &[
    "clang",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "llvm",
    "m4",
    "make",
    "pkg-config",
    "zlib1g-dev",
];
/// For compiling bpf-linker, whose LLVM must be the one of the Rust compiler.
const LINKER_PACKAGES: &[&str] = &["libpolly-22-dev", "libzstd-dev", "llvm-22-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";
/// For namespaces, a backend and a client.
const RUN_PACKAGES: &[&str] = &[
    "curl",
    "ethtool",
    "iproute2",
    "mptcpize",
    "nginx-light",
    "util-linux",
];
/// For the clients of other people that the tests use.
const TEST_PACKAGES: &[&str] = &[
    "apache2-utils",
    "iperf3",
    "nftables",
    "nghttp2-client",
    "python3",
    "wrk",
];
/// Has the source of `core` where rustup cannot add it.
const RUST_SOURCE_PACKAGES: &[&str] = &["rust-web-src", "rustc-web"];

const APT_LIMIT: Duration = Duration::from_secs(1800);

/// What a command is going to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum For {
    Build,
    Demo,
    Test,
}

/// Makes the machine ready.
pub(crate) fn ensure(purpose: For) -> Result<(), String> {
    let needs_linker = !linker_ready();
    let mut packages = BUILD_PACKAGES.to_vec();
    if needs_linker {
        packages.extend(LINKER_PACKAGES);
    }
    if purpose >= For::Demo {
        packages.extend(RUN_PACKAGES);
    }
    if purpose >= For::Test {
        packages.extend(TEST_PACKAGES);
    }
    let missing = missing_packages(&packages);
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    ensure_rust_source()?;
    if needs_linker {
        install_linker()?;
    }
    Ok(())
}

/// For topologies alone.
pub(crate) fn ensure_tools() -> Result<(), String> {
    let missing = missing_packages(&["ethtool", "iproute2"]);
    if missing.is_empty() {
        return Ok(());
    }
    install_packages(&missing)
}

/// Namespaces and XDP are for root only.
pub(crate) fn require_root(command: &str) -> Result<(), String> {
    if is_root() {
        return Ok(());
    }
    Err(format!(
        "`{command}` makes network namespaces and attaches XDP programs, which takes root; \
         run: sudo --preserve-env=PATH,HOME {command}"
    ))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn missing_packages<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    // Fails where there is no dpkg, and when a package is unknown: what it knows it prints.
    let listed = Cmd::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .map_or_else(|_| String::new(), |output| output.stdout);
    let installed: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(package) && !there_by_other_means(package))
        .collect()
}

/// Another distribution's package, another flavour of it, or something built by hand.
fn there_by_other_means(package: &str) -> bool {
    let llvm = |file: &str| Path::new(LLVM_PREFIX).join(file).exists();
    match package {
        "apache2-utils" => on_path("ab"),
        "iproute2" => on_path("ip") && on_path("nstat") && on_path("ss"),
        "libc6-dev" => Path::new("/usr/include/stdlib.h").exists(),
        "libelf-dev" => Path::new("/usr/include/libelf.h").exists(),
        "libpolly-22-dev" => llvm("lib/libPolly.a"),
        "libzstd-dev" => Path::new("/usr/include/zstd.h").exists(),
        "llvm" => on_path("llvm-strip"),
        "llvm-22-dev" => llvm("include/llvm-c/Core.h"),
        "nftables" => on_path("nft"),
        "nghttp2-client" => on_path("h2load"),
        "nginx-light" => on_path("nginx"),
        "util-linux" => on_path("setpriv") && on_path("taskset"),
        "zlib1g-dev" => Path::new("/usr/include/zlib.h").exists(),
        program => on_path(program),
    }
}

fn install_packages(packages: &[&str]) -> Result<(), String> {
    let list = packages.join(" ");
    if !is_root() || !on_path("apt-get") {
        return Err(format!(
            "these system packages are missing: {list}; on Debian or Ubuntu install them with\n\
             \x20   sudo apt-get update\n\
             \x20   sudo apt-get install --no-install-recommends {list}\n\
             and run this command again"
        ));
    }
    ui::step(&format!("Installing {list}"), |progress| {
        // A broken third-party source makes this fail and need not matter; the install will tell.
        if let Err(error) = apt().arg("update").run_with_progress(progress) {
            progress(&error);
        }
        let unknown: Vec<_> = packages
            .iter()
            .filter(|name| !has_candidate(name))
            .collect();
        if !unknown.is_empty() {
            return Err(format!(
                "the apt sources of this machine do not have {unknown:?}; Debian 12 has them all \
                 with its security suite enabled, for LLVM 22 elsewhere see https://apt.llvm.org"
            ));
        }
        apt()
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages)
            .run_with_progress(progress)
    })
}

fn apt() -> Cmd {
    Cmd::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=600"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Installing nginx must not start it as a service.
        .env("RUNLEVEL", "1")
        .limit(APT_LIMIT)
}

fn has_candidate(package: &str) -> bool {
    Cmd::new("apt-cache")
        .args(["policy", package])
        .env("LC_ALL", "C")
        .run()
        .is_ok_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
}

fn ensure_rust_source() -> Result<(), String> {
    let pinned = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    if ebpf::has_core_sources(project::root(), &pinned)
        || missing_packages(RUST_SOURCE_PACKAGES).is_empty()
    {
        return Ok(());
    }
    let by_rustup = ui::step("Adding the source of Rust's core library", |progress| {
        Cmd::new("rustup")
            .args(["component", "add", "rust-src"])
            .directory(project::root())
            .run_with_progress(progress)
    });
    match by_rustup {
        Ok(()) => Ok(()),
        Err(error) if is_root() && on_path("apt-get") => {
            ui::say(&format!(
                "rustup cannot add rust-src, trying the system's: {error}"
            ));
            install_packages(RUST_SOURCE_PACKAGES)
        }
        Err(error) => Err(format!(
            "the source of Rust's core library is missing and rustup could not add it ({error}); \
             add it with\n    rustup component add rust-src\nor on Debian 12 with\n\
             \x20   sudo apt-get install --no-install-recommends {}",
            RUST_SOURCE_PACKAGES.join(" ")
        )),
    }
}

/// The program itself must run: it needs LLVM's shared library.
fn linker_ready() -> bool {
    let minor = LINKER_VERSION
        .rsplit_once('.')
        .map_or("", |(minor, _)| minor);
    on_path("bpf-linker")
        && Cmd::new("bpf-linker")
            .arg("--version")
            .run()
            .is_ok_and(|text| {
                text.split_whitespace()
                    .nth(1)
                    .is_some_and(|version| version.starts_with(minor))
            })
}

fn install_linker() -> Result<(), String> {
    let title = format!(
        "Compiling bpf-linker {LINKER_VERSION} into {}",
        cargo_bin().display()
    );
    ui::step(&title, |progress| {
        project::cargo()
            .args(["install", "bpf-linker", "--locked", "--force"])
            .args(["--version", LINKER_VERSION])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .without_env("CARGO_TARGET_DIR")
            .run_with_progress(progress)
    })?;
    if linker_ready() {
        Ok(())
    } else {
        Err(format!(
            "bpf-linker was installed but `{}/bpf-linker --version` does not run; \
             look whether {LLVM_PREFIX} is complete",
            cargo_bin().display()
        ))
    }
}
