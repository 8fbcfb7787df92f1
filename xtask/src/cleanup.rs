//! What must not outlive this program: processes, namespaces, directories. The owners of these
//! things remove them when they are dropped, also on failure and panic; a signal ends the program
//! without unwinding, so everything is entered here too and the signal handler works off the list.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// How long a child may take to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(1);

struct Registry {
    pids: BTreeSet<i32>,
    namespaces: BTreeSet<String>,
    directories: BTreeSet<PathBuf>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    pids: BTreeSet::new(),
    namespaces: BTreeSet::new(),
    directories: BTreeSet::new(),
});

/// Handles SIGINT, SIGTERM and SIGHUP: takes everything down and exits with status 130.
pub(crate) fn on_signals() -> Result<(), String> {
    ctrlc::set_handler(|| {
        eprintln!("\ninterrupted: taking everything down");
        // Held until the exit, so that the main thread can start nothing new.
        let registry = registry();
        end_processes(registry.pids.iter().copied());
        for name in &registry.namespaces {
            remove_namespace(name);
        }
        for path in &registry.directories {
            let _ = std::fs::remove_dir_all(path);
        }
        std::process::exit(130);
    })
    .map_err(|error| format!("cannot install the signal handler: {error}"))
}

/// Starts a child under the registry's lock: a signal sees it either not begun or entered.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let mut registry = registry();
    let child = command.spawn()?;
    registry.pids.insert(child.id() as i32);
    Ok(child)
}

/// Reaps a child that has ended. Its pid leaves the list at the same time, before it can be reused.
pub(crate) fn try_wait(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let mut registry = registry();
    let status = child.try_wait()?;
    if status.is_some() {
        registry.pids.remove(&(child.id() as i32));
    }
    Ok(status)
}

/// Lets a child run when this program ends.
pub(crate) fn keep_process(pid: u32) {
    registry().pids.remove(&(pid as i32));
}

/// Makes a network namespace and enters it.
pub(crate) fn add_namespace(name: &str) -> Result<(), String> {
    let mut registry = registry();
    ip(&["netns", "add", name])?;
    registry.namespaces.insert(name.to_owned());
    Ok(())
}

/// Removes a namespace, the processes in it, and with its devices their XDP programs.
pub(crate) fn drop_namespace(name: &str) {
    let mut registry = registry();
    remove_namespace(name);
    registry.namespaces.remove(name);
}

/// Leaves a namespace in place when this program ends.
pub(crate) fn keep_namespace(name: &str) {
    registry().namespaces.remove(name);
}

pub(crate) fn add_directory(path: &Path) {
    registry().directories.insert(path.to_owned());
}

pub(crate) fn drop_directory(path: &Path) {
    registry().directories.remove(path);
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_namespace(name: &str) {
    // `ip netns del` only takes the name away while a process still lives in the namespace.
    let inside = ip(&["netns", "pids", name]).unwrap_or_default();
    end_processes(inside.lines().filter_map(|line| line.trim().parse().ok()));
    if let Err(error) = ip(&["netns", "del", name]) {
        eprintln!("{error}; remove it with: ip netns del {name}");
    }
}

fn end_processes(pids: impl Iterator<Item = i32>) {
    let pids: Vec<Pid> = pids.filter_map(Pid::from_raw).collect();
    for &pid in &pids {
        let _ = kill_process(pid, Signal::TERM);
    }
    let deadline = Instant::now() + GRACE;
    while pids.iter().any(|&pid| alive(pid)) && Instant::now() < deadline {
        sleep(Duration::from_millis(10));
    }
    for &pid in pids.iter().filter(|&&pid| alive(pid)) {
        let _ = kill_process(pid, Signal::KILL);
    }
    let deadline = Instant::now() + GRACE;
    while pids.iter().any(|&pid| alive(pid)) && Instant::now() < deadline {
        sleep(Duration::from_millis(1));
    }
}

/// A zombie counts as ended: only its parent can reap it, and it holds nothing.
fn alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
        && std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| !rest.starts_with('Z'))
        })
}

fn ip(args: &[&str]) -> Result<String, String> {
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run ip (package iproute2): {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let reason = String::from_utf8_lossy(&output.stderr);
        Err(format!("ip {}: {}", args.join(" "), reason.trim()))
    }
}
