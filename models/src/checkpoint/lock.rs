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
        match try_own(file.file())? {
            // A file system without locks is no reason to do nothing on it.
            Owned::Ours | Owned::Unknown => Ok(DirectoryLock { _file: file }),
            Owned::Others => Err(Error::Output {
                path: directory.into(),
                why: "is being written by another run".into(),
                hint: "wait for that run to end, or give another directory".into(),
            }),
        }
    }
}

/// Whose an open file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owned {
    /// Ours until it is closed.
    Ours,
    /// Another open file's; or it was, and that one was removed.
    Others,
    /// Its file system knows no locks.
    Unknown,
}

/// Takes the lock of an open file if nobody has it.
pub(crate) fn try_own(file: &std::fs::File) -> std::io::Result<Owned> {
    match file.try_lock() {
        Ok(()) if removed(file)? => Ok(Owned::Others),
        Ok(()) => Ok(Owned::Ours),
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
            Ok(Owned::Unknown)
        }
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => Ok(Owned::Others),
    }
}

/// Whether the run that had the lock removed its file between our opening and locking it.
#[cfg(unix)]
fn removed(file: &std::fs::File) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() == 0)
}

/// Open files are not removed here.
#[cfg(not(unix))]
fn removed(_file: &std::fs::File) -> std::io::Result<bool> {
    Ok(false)
}
