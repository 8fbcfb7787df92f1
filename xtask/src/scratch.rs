//! A temporary directory that goes away with its owner or with the program.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cleanup;

pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn make() -> Result<Self, String> {
        let directory = tempfile::Builder::new()
            .prefix("mpxd-")
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

impl Drop for Scratch {
    fn drop(&mut self) {
        cleanup::drop_directory(self.path());
    }
}
