//! Child processes: in a namespace or not, with a time limit, with their output kept for the
//! error message.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::cleanup;

/// What is killed ends at once, unless the kernel is broken.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(3);
const DEFAULT_LIMIT: Duration = Duration::from_secs(30);
/// How many lines of a failed command's output its error shows.
const ERROR_LINES: usize = 30;

/// No wait lasts beyond this instant: the time limit of the running test.
static DEADLINE: Mutex<Option<Instant>> = Mutex::new(None);

pub(crate) fn set_deadline(deadline: Option<Instant>) {
    *DEADLINE.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
}

/// A command to be run.
pub(crate) struct Cmd {
    argv: Vec<OsString>,
    envs: Vec<(OsString, Option<OsString>)>,
    namespace: Option<String>,
    directory: Option<PathBuf>,
    input: Option<String>,
    limit: Duration,
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            argv: vec![program.as_ref().to_owned()],
            envs: Vec::new(),
            namespace: None,
            directory: None,
            input: None,
            limit: DEFAULT_LIMIT,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs
            .push((name.into(), Some(value.as_ref().to_owned())));
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.envs.push((name.into(), None));
        self
    }

    pub(crate) fn directory(mut self, path: &Path) -> Self {
        self.directory = Some(path.to_owned());
        self
    }

    /// Text for the standard input, which is empty otherwise.
    pub(crate) fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// Runs in a network namespace, and dies with this program even when that is killed.
    pub(crate) fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs to the end; the standard output of a command that exits with status 0.
    pub(crate) fn run(self) -> Result<String, String> {
        let text = self.text();
        let output = self.output()?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(format!(
                "`{text}` failed ({}){}",
                output.status,
                indented_tail(&(output.stdout + &output.stderr))
            ))
        }
    }

    /// Runs to the end, however that is.
    pub(crate) fn output(self) -> Result<Output, String> {
        let limit = self.limit;
        self.spawn()?.wait(limit)
    }

    /// Runs to the end with every line that it prints given to `progress`.
    pub(crate) fn run_with_progress(self, progress: &dyn Fn(&str)) -> Result<(), String> {
        let text = self.text();
        // One pipe for both, in the order in which the lines came.
        let (reader, writer) =
            std::io::pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
        let copy = writer
            .try_clone()
            .map_err(|error| format!("cannot share a pipe: {error}"))?;
        let mut child = self.start(Stdio::from(copy), Stdio::from(writer))?;
        let mut tail = Vec::new();
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let shown = String::from_utf8_lossy(&line).trim_end().to_owned();
            progress(&shown);
            tail.push(shown);
            line.clear();
        }
        loop {
            match cleanup::try_wait(&mut child) {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    let output = indented_tail(&tail.join("\n"));
                    return Err(format!("`{text}` failed ({status}){output}"));
                }
                Ok(None) => sleep(POLL),
                Err(error) => return Err(format!("cannot wait for `{text}`: {error}")),
            }
        }
    }

    /// Starts the command and leaves it running; it is killed when the handle is dropped.
    pub(crate) fn spawn(self) -> Result<Process, String> {
        let text = self.text();
        let file = || {
            tempfile::tempfile().map_err(|error| format!("cannot make a temporary file: {error}"))
        };
        let share = |file: &File| {
            file.try_clone()
                .map(Stdio::from)
                .map_err(|error| format!("cannot share a file: {error}"))
        };
        let (stdout, stderr) = (file()?, file()?);
        let child = self.start(share(&stdout)?, share(&stderr)?)?;
        Ok(Process {
            text,
            child,
            stdout,
            stderr,
            status: None,
        })
    }

    fn start(self, stdout: Stdio, stderr: Stdio) -> Result<Child, String> {
        let text = self.text();
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command
                    .args(["netns", "exec", namespace.as_str()])
                    .args(["setpriv", "--pdeathsig", "KILL"])
                    .args(&self.argv);
                command
            }
            None => {
                let mut command = Command::new(&self.argv[0]);
                command.args(&self.argv[1..]);
                command
            }
        };
        for (name, value) in &self.envs {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdout(stdout).stderr(stderr);
        command.stdin(match &self.input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        });
        let mut child = cleanup::spawn(&mut command)
            .map_err(|error| format!("cannot run `{text}`: {error}"))?;
        if let (Some(input), Some(mut pipe)) = (self.input, child.stdin.take()) {
            // A child that ends early says why on its own standard error.
            let _ = pipe.write_all(input.as_bytes());
        }
        Ok(child)
    }

    fn text(&self) -> String {
        let words: Vec<_> = self.argv.iter().map(|arg| arg.to_string_lossy()).collect();
        words.join(" ")
    }
}

/// What a command that has ended left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running child.
pub(crate) struct Process {
    text: String,
    child: Child,
    stdout: File,
    stderr: File,
    status: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once it has ended.
    pub(crate) fn poll(&mut self) -> Result<Option<ExitStatus>, String> {
        if self.status.is_none() {
            self.status = cleanup::try_wait(&mut self.child)
                .map_err(|error| format!("cannot wait for `{}`: {error}", self.text))?;
        }
        Ok(self.status)
    }

    /// Waits for the end; kills the child and fails when `limit` or the test's time is over.
    pub(crate) fn wait(mut self, limit: Duration) -> Result<Output, String> {
        let mut status = None;
        let ended = until(limit, &format!("`{}` to end", self.text), || {
            status = self.poll()?;
            Ok(status.is_some())
        });
        match (ended, status) {
            (Ok(()), Some(status)) => Ok(Output {
                status,
                stdout: self.stdout(),
                stderr: self.stderr(),
            }),
            (Err(error), _) => {
                self.kill();
                Err(error + &indented_tail(&(self.stdout() + &self.stderr())))
            }
            (Ok(()), None) => unreachable!("until() ends when there is a status"),
        }
    }

    /// What it has printed so far.
    pub(crate) fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    pub(crate) fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), String> {
        if self.poll()?.is_some() {
            return Err(format!(
                "`{}` has already ended{}",
                self.text,
                indented_tail(&self.stderr())
            ));
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).map_err(|error| format!("cannot signal `{}`: {error}", self.text))
    }

    /// Lets it run when this program ends; its pid.
    pub(crate) fn leave(self) -> u32 {
        let pid = self.pid();
        cleanup::keep_process(pid);
        std::mem::forget(self);
        pid
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.signal(Signal::KILL);
        let start = Instant::now();
        while matches!(self.poll(), Ok(None)) {
            if start.elapsed() >= KILL_LIMIT {
                // A thread that its kernel holds for ever: killing is all that can be done.
                eprintln!(
                    "warning: `{}` (pid {}) is killed and does not end; see dmesg for what its kernel \
                     is stuck in",
                    self.text,
                    self.pid()
                );
                return;
            }
            sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `done` says so.
pub(crate) fn until(
    limit: Duration,
    what: &str,
    mut done: impl FnMut() -> Result<bool, String>,
) -> Result<(), String> {
    let start = Instant::now();
    let deadline = *DEADLINE.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if done()? {
            return Ok(());
        }
        if start.elapsed() >= limit {
            return Err(format!("waited {} s in vain for {what}", limit.as_secs()));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(format!(
                "the test's time limit was over while waiting for {what}"
            ));
        }
        sleep(POLL);
    }
}

/// Starts this program anew when PATH lacks a place where a plain root shell or a fresh rustup does
/// not look: everything that is run from here inherits it.
pub(crate) fn complete_search_path() -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known: Vec<_> = std::env::split_paths(&path).collect();
    let wanted = [cargo_bin(), "/usr/sbin".into(), "/sbin".into()];
    let missing: Vec<_> = wanted
        .into_iter()
        .filter(|directory| !known.contains(directory))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let path = std::env::join_paths(known.iter().chain(&missing))
        .map_err(|error| format!("PATH cannot be completed: {error}"))?;
    let program = std::env::current_exe()
        .map_err(|error| format!("cannot find this program's own file: {error}"))?;
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env("PATH", path)
        .exec();
    Err(format!("cannot start this program anew: {error}"))
}

pub(crate) fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Where `cargo install` puts programs.
pub(crate) fn cargo_bin() -> PathBuf {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .unwrap_or_else(|| PathBuf::from("/root/.cargo"))
        .join("bin")
}

/// Whether a program of this name is on the search path.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn contents(file: &File) -> String {
    let mut bytes = vec![0; file.metadata().map_or(0, |data| data.len()) as usize];
    // Not read(): the child shares this file's offset.
    let length = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// The last lines of a failed command's output, for its error message.
pub(crate) fn indented_tail(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(ERROR_LINES)..]
        .iter()
        .map(|line| format!("\n           | {line}"))
        .collect()
}
