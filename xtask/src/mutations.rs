//! `cargo xtask sim --mutations`: bugs made on purpose, each of which the simulator has to find.
//!
//! They are made in a copy of the working tree. Text that is to be replaced and is not there (any
//! more) is an error: then it is for the author of the change to say what the bug would be now.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::process::{Cmd, Output};
use crate::project;
use crate::ui;

/// Each is found among so many seeds.
const SEEDS: u64 = 200;
/// For all of them, on the slowest machine.
const SWEEP_LIMIT: Duration = Duration::from_secs(1800);

struct Mutation {
    name: &'static str,
    file: &'static str,
    /// Stands in the file once.
    find: &'static str,
    replace: &'static str,
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "reassembly: a segment inside a known range cuts that range short",
        file: "datapath/src/buffer.rs",
        find: "if end.after(last.1) { end } else { last.1 },",
        replace: "end,",
    },
    Mutation {
        name: "reassembly: octets are put where the segment began before its known part was cut off",
        file: "datapath/src/tcp/receiver.rs",
        find: ".write_at(start.distance(self.rcv_nxt), &payload[range]);",
        replace: ".write_at(start.distance(self.rcv_nxt), &payload[..range.len()]);",
    },
    Mutation {
        name: "SACK: the range that came last is reported one octet too long",
        file: "datapath/src/tcp/receiver.rs",
        find: "if let Some((left, right)) = first {
            blocks.push(left, right);",
        replace: "if let Some((left, right)) = first {
            blocks.push(left, right + 1);",
    },
    Mutation {
        name: "DSS: every checksum is right",
        file: "datapath/src/mptcp/text.rs",
        find: "dss_valid(mapping.dsn.0, relative, len, sum, expected)",
        replace: "dss_valid(mapping.dsn.0, relative, len, sum, expected) || len > 0",
    },
    Mutation {
        name: "window: the rest of a unit is taken back",
        file: "datapath/src/mptcp/data.rs",
        find: "promised.div_ceil(1 << shift)",
        replace: "(promised >> shift)",
    },
    Mutation {
        name: "window: one segment more than there is room for",
        file: "datapath/src/mptcp/data.rs",
        find: "self.window_edge.distance(self.snd_nxt)\n        } else {",
        replace: "self.window_edge.distance(self.snd_nxt) + 1400\n        } else {",
    },
    Mutation {
        name: "window: a closed one is never probed",
        file: "datapath/src/mptcp/schedule.rs",
        find: "subflow.persist_at.get_or_insert(now + wait);",
        replace: "let _ = wait;",
    },
];

pub(crate) fn run() -> Result<(), String> {
    let scratch = project::target_directory().join("mutations");
    let tree = scratch.join("tree");
    ui::step("Copying the working tree", |_| copy(&tree))?;
    for mutation in MUTATIONS {
        mutation.apply(&tree)?;
        mutation.undo(&tree)?;
    }
    let first = sweep("Nothing changed", &scratch)?;
    if !first.status.success() {
        return Err(format!(
            "the simulator finds something where nothing was changed:\n{}",
            first.stderr
        ));
    }
    let mut missed = Vec::new();
    for mutation in MUTATIONS {
        mutation.apply(&tree)?;
        let output = sweep(mutation.name, &scratch);
        mutation.undo(&tree)?;
        let output = output?;
        match found(&output.stderr) {
            Some(text) if !output.status.success() => ui::say(&format!("found: {text}")),
            _ => {
                ui::say("NOT FOUND");
                missed.push(mutation.name);
            }
        }
    }
    if missed.is_empty() {
        let count = MUTATIONS.len();
        ui::say(&format!(
            "{count} of {count} found within {SEEDS} seeds each"
        ));
        Ok(())
    } else {
        Err(format!("not found: {}", missed.join("; ")))
    }
}

/// The seed that failed first and what it said.
fn found(stderr: &str) -> Option<&str> {
    let from = stderr.find("seed ")?;
    let report = stderr[from..].split_once("  replay:")?.0.trim();
    // The state of everything is for replays.
    let len = report.char_indices().nth(240).map_or(report.len(), |c| c.0);
    Some(&report[..len])
}

/// Builds the copy and plays its seeds, up to the first that fails.
fn sweep(title: &str, scratch: &Path) -> Result<Output, String> {
    ui::step(title, |progress| {
        let cargo = || {
            project::cargo()
                .directory(&scratch.join("tree"))
                .env("CARGO_TARGET_DIR", scratch.join("target"))
                .args(["test", "--profile", "sim", "-p", "mpx-datapath"])
                .args(["--test", "sim", "--quiet"])
                .limit(SWEEP_LIMIT)
        };
        cargo().arg("--no-run").run_with_progress(progress)?;
        cargo()
            .args(["--", "--until-failure", "--seeds", &SEEDS.to_string()])
            .output()
    })
}

impl Mutation {
    fn apply(&self, tree: &Path) -> Result<(), String> {
        let source = read(&project::root().join(self.file))?;
        match source.matches(self.find).count() {
            1 => write(
                &tree.join(self.file),
                &source.replace(self.find, self.replace),
            ),
            n => Err(format!(
                "{} holds {n} times what the mutation `{}` replaces: bring {} up to date",
                self.file,
                self.name,
                file!()
            )),
        }
    }

    fn undo(&self, tree: &Path) -> Result<(), String> {
        write(
            &tree.join(self.file),
            &read(&project::root().join(self.file))?,
        )
    }
}

/// Brings the copy up to date. Files that are the same keep their times, for cargo's sake.
fn copy(tree: &Path) -> Result<(), String> {
    let listed = Cmd::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .directory(project::root())
        .run()?;
    for name in listed.lines() {
        let from = project::root().join(name);
        // One that was deleted and not yet committed.
        if !from.is_file() {
            let _ = fs::remove_file(tree.join(name));
            continue;
        }
        let to = tree.join(name);
        let octets = fs::read(&from).map_err(|e| format!("cannot read {name}: {e}"))?;
        if fs::read(&to).is_ok_and(|there| there == octets) {
            continue;
        }
        let folder = to.parent().unwrap_or(tree);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&to, octets))
            .map_err(|e| format!("cannot write {}: {e}", to.display()))?;
    }
    Ok(())
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(file).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(file, text).map_err(|e| format!("cannot write {}: {e}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mutation_replaces_stands_in_its_file_once() {
        for mutation in MUTATIONS {
            let source = read(&project::root().join(mutation.file)).unwrap();
            let found = source.matches(mutation.find).count();
            assert_eq!(found, 1, "{}: {}", mutation.file, mutation.name);
        }
    }
}
