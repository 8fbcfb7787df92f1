//! `cargo xtask mutants`: cargo-mutants where a small mistake does the most harm, against the unit
//! tests. What survives needs a reason in `xtask/mutants/survivors.txt`, and each reason a survivor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::{Cmd, indented_tail, on_path};
use crate::project;
use crate::reasons;
use crate::ui;

const SURVIVORS: &str = "xtask/mutants/survivors.txt";
/// A mutant whose tests take longer is caught. Those of the unchanged tree take less than two seconds.
const TEST_LIMIT: &str = "20";
/// How long cargo-mutants may take to stop when it is told so.
const STOP_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// The unit tests that know these modules; the buffers' and one of every congestion control are not among
/// them and take most of the time.
const TESTS: [&str; 6] = [
    "seq::",
    "tcp::",
    "mptcp::",
    "engine::",
    "--skip",
    "windows_stay_in_bounds",
];

/// A file, and a regular expression for the names of its mutants.
struct Module {
    file: &'static str,
    only: &'static str,
}

/// In the order in which the time goes to them.
const MODULES: &[Module] = &[
    Module::whole("datapath/src/seq.rs"),
    Module::whole("datapath/src/tcp/rtt.rs"),
    Module::whole("datapath/src/tcp/sender/scoreboard.rs"),
    Module::whole("datapath/src/tcp/sender/rack.rs"),
    Module::whole("datapath/src/tcp/sender/tail_probe.rs"),
    Module::whole("datapath/src/tcp/sender/prr.rs"),
    Module::whole("datapath/src/tcp/congestion/lia.rs"),
    Module::whole("datapath/src/tcp/receiver.rs"),
    Module::whole("datapath/src/mptcp/autotune.rs"),
    Module {
        file: "datapath/src/mptcp/data.rs",
        only: "DataReceiver::|window_shift|DataSender::(start|window_room)",
    },
    Module {
        file: "datapath/src/mptcp/connection.rs",
        only: "window|tune_buffers|Buffers::within",
    },
];

pub(crate) fn run(minutes: u64, file: &str) -> Result<(), String> {
    if !on_path("cargo-mutants") {
        return Err(
            "cargo-mutants is not there; install it with: cargo install cargo-mutants --locked"
                .into(),
        );
    }
    let reasons = reasons::read(SURVIVORS)?;
    let modules: Vec<_> = MODULES.iter().filter(|m| m.file.contains(file)).collect();
    if modules.is_empty() {
        let files: Vec<_> = MODULES.iter().map(|m| m.file).collect();
        return Err(format!(
            "no file has `{file}` in its name; there are {}",
            files.join(", ")
        ));
    }
    let deadline = Instant::now() + Duration::from_secs(60 * minutes);
    let mut results = Vec::new();
    for module in modules {
        let known = reasons.iter().filter(|(name, _)| module.has(name));
        let known: Vec<_> = known.map(|(name, _)| name.as_str()).collect();
        results.push((module.file, module.test(deadline)?, known));
    }
    println!("mutants  caught  unviable  survivors  not reached");
    for (file, result, _) in &results {
        println!(
            "{:7}  {:6}  {:8}  {:9}  {:11}  {file}",
            result.all.len(),
            result.caught.len(),
            result.unviable.len(),
            result.survivors.len(),
            result.not_reached().len(),
        );
    }
    for (_, result, _) in &results {
        for name in result.not_reached() {
            println!("not reached: {name}");
        }
    }
    let elsewhere = reasons.iter().map(|(name, _)| name);
    let elsewhere = elsewhere.filter(|name| !MODULES.iter().any(|module| module.has(name)));
    let surprises: Vec<_> = results
        .iter()
        .flat_map(|(_, result, known)| result.compare(known))
        .chain(elsewhere.map(|name| format!("has a reason to live and is in no module: {name}")))
        .collect();
    for surprise in &surprises {
        println!("{surprise}");
    }
    if surprises.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} mutants did not do what {SURVIVORS} says; write a test, or mend that file",
        surprises.len()
    ))
}

impl Module {
    const fn whole(file: &'static str) -> Module {
        Module { file, only: "" }
    }

    fn has(&self, name: &str) -> bool {
        name.strip_prefix(self.file)
            .is_some_and(|rest| rest.starts_with(':'))
    }

    fn command(&self) -> Cmd {
        project::cargo()
            .args(["mutants", "--package", "mpx-datapath", "--no-shuffle"])
            .args(["--file", self.file, "--re", self.only])
            .args(["--colors", "never", "--cap-lints", "true"])
    }

    /// Tests its mutants one after the other, until `deadline`.
    fn test(&self, deadline: Instant) -> Result<Results, String> {
        // The next run builds on what this one has built.
        let target = project::target_directory().join("mutants");
        let out = target.join(self.file.replace('/', "-"));
        let all = self.command().arg("--list").run()?;
        let mut results = Results {
            all: all.lines().map(str::to_owned).collect(),
            ..Results::default()
        };
        let _ = fs::remove_dir_all(&out);
        // cargo-mutants makes `out` itself, but not what it is in.
        fs::create_dir_all(&target)
            .map_err(|error| format!("cannot make {}: {error}", target.display()))?;
        let title = format!("{}: {} mutants", self.file, results.all.len());
        ui::step(&title, |progress| {
            if Instant::now() >= deadline {
                return Ok(());
            }
            let mut process = self
                .command()
                .arg("--output")
                .arg(&out)
                .args(["--timeout", TEST_LIMIT])
                // Of the package, nothing but its unit tests is built.
                .args(["--cargo-arg=--lib", "--", "--"])
                .args(TESTS)
                .env("CARGO_TARGET_DIR", &target)
                .env("CARGO_PROFILE_DEV_DEBUG", "0")
                // Property tests catch the same mutants in every run.
                .env("PROPTEST_RNG_SEED", "1")
                .spawn()?;
            while process.poll()?.is_none() && Instant::now() < deadline {
                results.read(&out);
                progress(&format!("{} tested", results.tested().count()));
                sleep(POLL);
            }
            let stopped = process.poll()?.is_none();
            if stopped {
                process.signal(Signal::INT)?;
            }
            let output = process.wait(STOP_LIMIT)?;
            // 0: all were caught; 2: some were missed; 3: some took too long.
            match output.status.code() {
                Some(0 | 2 | 3) => Ok(()),
                _ if stopped => Ok(()),
                _ => Err(format!(
                    "cargo-mutants failed ({}){}",
                    output.status,
                    indented_tail(&(output.stdout + &output.stderr))
                )),
            }
        })?;
        results.read(&out);
        Ok(results)
    }
}

/// What became of the mutants of one file. Names are as cargo-mutants has them, with line and column.
#[derive(Default)]
struct Results {
    all: Vec<String>,
    survivors: Vec<String>,
    caught: Vec<String>,
    unviable: Vec<String>,
}

impl Results {
    /// What cargo-mutants has written down so far.
    fn read(&mut self, out: &Path) {
        let read = |name: &str| -> Vec<String> {
            let text = fs::read_to_string(out.join("mutants.out").join(name));
            let text = text.unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        self.survivors = read("missed.txt");
        self.unviable = read("unviable.txt");
        self.caught = [read("caught.txt"), read("timeout.txt")].concat();
    }

    fn tested(&self) -> impl Iterator<Item = &String> {
        let viable = self.survivors.iter().chain(&self.caught);
        viable.chain(&self.unviable)
    }

    fn not_reached(&self) -> Vec<&str> {
        let tested: BTreeSet<_> = self.tested().collect();
        let all = self.all.iter().filter(|name| !tested.contains(name));
        all.map(String::as_str).collect()
    }

    /// Survivors without a reason, and reasons without a survivor. `known` names one mutant each; where
    /// two have the same name but for their place, both are there if both may live.
    fn compare(&self, known: &[&str]) -> Vec<String> {
        let mut names = BTreeMap::<String, Count>::new();
        for name in &self.survivors {
            names.entry(without_place(name)).or_default().survive += 1;
        }
        for name in self.not_reached() {
            names.entry(without_place(name)).or_default().unknown += 1;
        }
        for &name in known {
            names.entry(name.to_owned()).or_default().may_survive += 1;
        }
        let mut surprises = Vec::new();
        for (name, count) in names {
            if count.survive > count.may_survive {
                let places = self.survivors.iter().filter(|s| without_place(s) == name);
                let places: Vec<_> = places.map(String::as_str).collect();
                surprises.push(format!("survived without a reason: {}", places.join("; ")));
            } else if count.survive + count.unknown < count.may_survive {
                surprises.push(format!("caught or gone, and has a reason to live: {name}"));
            }
        }
        surprises
    }
}

#[derive(Default)]
struct Count {
    survive: usize,
    may_survive: usize,
    unknown: usize,
}

/// `file:line:column: what` without line and column, which every change moves.
fn without_place(name: &str) -> String {
    match name.splitn(4, ':').collect::<Vec<_>>()[..] {
        [file, line, _, what] if line.parse::<u32>().is_ok() => format!("{file}:{what}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(all: &[&str], survivors: &[&str], caught: &[&str]) -> Results {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Results {
            all: owned(all),
            survivors: owned(survivors),
            caught: owned(caught),
            unviable: Vec::new(),
        }
    }

    #[test]
    fn survivors_and_reasons_have_to_match_whatever_the_line() {
        let (a, b) = (
            "f.rs:1:2: replace A::b -> u8 with 0",
            "f.rs:3:4: replace A::b -> u8 with 0",
        );
        let name = "f.rs: replace A::b -> u8 with 0";
        let one = results(&[a, b], &[a], &[b]);
        assert_eq!(one.compare(&[name]), Vec::<String>::new());
        assert!(one.compare(&[])[0].ends_with(a));
        assert_eq!(one.compare(&[name, name]).len(), 1);
        let both = results(&[a, b], &[a, b], &[]);
        assert_eq!(both.compare(&[name]).len(), 1);
        assert_eq!(both.compare(&[name, name]).len(), 0);
        // What was not reached may have been one that lives.
        let cut_short = results(&[a, b], &[a], &[]);
        assert_eq!(cut_short.not_reached(), [b]);
        assert_eq!(cut_short.compare(&[name, name]).len(), 0);
        assert_eq!(results(&[], &[], &[]).compare(&[name]).len(), 1);
    }
}
