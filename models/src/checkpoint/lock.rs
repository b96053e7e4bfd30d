//! One writer to a directory at a time.

use std::fs::TryLockError;
use std::io::ErrorKind;
use std::path::Path;

use fs_err as fs;

use crate::error::{Error, Result};

/// The file that is locked. It stays when a process is killed; its lock does not.
pub(super) const LOCK_FILE: &str = "cinder.lock";

/// The right to write to a directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: fs::File,
}

impl DirectoryLock {
    /// Locks a directory that is there.
    ///
    /// # Errors
    /// [`Error::Output`] when another run has it, [`Error::Io`] when the lock's file can not be made.
    pub fn take(directory: &Path) -> Result<Self> {
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = options.open(directory.join(LOCK_FILE))?;
        let free = match file.file().try_lock() {
            Ok(()) => !removed(file.file())?,
            // A file system without locks is no reason to do nothing on it.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => true,
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) => false,
        };
        match free {
            true => Ok(DirectoryLock { _file: file }),
            false => Err(Error::Output {
                path: directory.into(),
                why: "is being written by another run".into(),
                hint: "wait for that run to end, or give another directory".into(),
            }),
        }
    }
}

/// Whether the run that had the lock removed its file between our opening and locking it.
#[cfg(unix)]
fn removed(file: &std::fs::File) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() == 0)
}

/// Open files are not removed here.
#[cfg(not(unix))]
fn removed(_file: &std::fs::File) -> Result<bool> {
    Ok(false)
}
