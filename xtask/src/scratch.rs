//! A temporary directory that goes away with its owner or with the program.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cleanup;
use crate::process;

const PREFIX: &str = "mpxd-";

pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn make() -> Result<Self, String> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .tempdir()
            .map_err(|error| format!("cannot make a temporary directory: {error}"))?;
        cleanup::add_directory(directory.path());
        Ok(Self(directory))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// Removes what runs left that were killed: the name holds the id of a process that is gone.
pub(crate) fn sweep() {
    let entries = std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid| !process::exists(pid)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        cleanup::drop_directory(self.path());
    }
}
