//! All files of a report, or none of them.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::error::ReportError;

/// Files waiting under temporary names beside their final ones. Dropped before [`commit`](Self::commit), it removes
/// them.
pub(crate) struct Staged {
    directory: PathBuf,
    files: Vec<(PathBuf, PathBuf)>,
}

impl Staged {
    /// Files go into `directory`, which is created when missing.
    pub fn new(directory: &Path) -> Result<Self, ReportError> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.to_path_buf(),
            files: Vec::new(),
        })
    }

    /// Writes `bytes` under a temporary name; returns the path it will have.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<PathBuf, ReportError> {
        let path = self.directory.join(name);
        let mut hidden = OsString::from(".");
        // The process id keeps two reports into one folder from writing to the same temporary file.
        hidden.push(format!("{name}.{}.partial", std::process::id()));
        let temporary = self.directory.join(hidden);
        self.files.push((temporary.clone(), path.clone()));
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(path)
    }

    /// Gives every file its name, in the order they were added.
    pub fn commit(mut self) -> Result<(), ReportError> {
        for (temporary, path) in &self.files {
            fs::rename(temporary, path)?;
        }
        self.files.clear();
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for (temporary, _) in &self.files {
            // Already failing: a leftover that cannot be removed either must not hide the first error.
            let _ = fs::remove_file(temporary);
        }
    }
}
