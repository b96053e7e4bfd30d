//! The cache folder: where it is, who may write an entry, and how a finished entry gets into place.
//!
//! An entry is written by one process at a time, the holder of its lock file. All it writes goes to a folder called
//! `.NAME-VERSION.partial-XXXXXX` first; a killed process leaves such a folder behind, and the next holder removes it.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use cinder_models::progress::Progress;
use tempfile::TempDir;

use super::Fetched;
use super::error::{Error, Result};
use super::items::Item;
use super::stamp::intact;

/// The folder fetched items are kept in: `CINDER_CACHE`, else `$XDG_CACHE_HOME/cinder`, else `~/.cache/cinder`.
///
/// # Errors
/// [`Error::NoHome`] when none of the three is set.
pub fn cache_root() -> Result<PathBuf> {
    cache_root_from(|name| std::env::var_os(name))
}

/// [`cache_root`] with the environment as a function, so that tests need not change the process's own.
pub(super) fn cache_root_from(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let set = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(root) = set("CINDER_CACHE") {
        return Ok(root);
    }
    // The XDG specification has relative paths ignored.
    if let Some(caches) = set("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
        return Ok(caches.join("cinder"));
    }
    let home = set("HOME").ok_or(Error::NoHome)?;
    Ok(home.join(".cache").join("cinder"))
}

/// Makes an error of writing to the cache at `root`.
pub(super) fn unwritable(root: &Path, source: std::io::Error) -> Error {
    Error::CacheNotWritable {
        path: root.into(),
        source,
    }
}

/// Waits until no other process writes `item`. The lock lasts as long as the file returned stays open.
pub(super) fn lock(root: &Path, item: &Item, progress: &dyn Progress) -> Result<Option<File>> {
    // Plain `std::fs` here: the error already names the cache.
    std::fs::create_dir_all(root).map_err(|e| unwritable(root, e))?;
    // The file stays: removing it would let a third process lock a new one while a second waits on the old one.
    let file = File::create(root.join(format!(".{}.lock", item.folder())))
        .map_err(|e| unwritable(root, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            progress.start("waiting for another `cinder fetch`", 0);
            let locked = file.lock();
            progress.finish();
            locked.map_err(|e| unwritable(root, e))?;
            Ok(Some(file))
        }
        // Some network file systems have no locks. Two processes then download twice; `install` still lets one win.
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(None),
        Err(TryLockError::Error(e)) => Err(unwritable(root, e)),
    }
}

/// A new folder of the cache for unfinished work on `item`, removed when dropped.
///
/// It lies in the cache because a rename works only within one file system. With `sweep`, folders that killed
/// processes left go first: only the holder of the lock knows that nobody works in them.
pub(super) fn partial(root: &Path, item: &Item, sweep: bool) -> Result<TempDir> {
    let prefix = format!(".{}.partial-", item.folder());
    if sweep && let Ok(entries) = std::fs::read_dir(root) {
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                // What can not be removed costs room, not correctness.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
    tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(root)
        .map_err(|e| unwritable(root, e))
}

/// Renames the finished `content` to `folder`; what was there (damaged, or older) goes to `partial` and with it.
pub(super) fn install(
    item: &Item,
    content: &Path,
    partial: &Path,
    folder: &Path,
    verify: bool,
) -> Result<Fetched> {
    if intact(item, folder, verify).is_none() && folder.symlink_metadata().is_ok() {
        let _ = std::fs::rename(folder, partial.join("replaced"));
    }
    let renamed = std::fs::rename(content, folder);
    let found = intact(item, folder, verify);
    match (renamed, found) {
        (Ok(()), Some(found)) => Ok(Fetched {
            from_cache: false,
            ..found
        }),
        // Without locks another process may have been first; its content is the same.
        (Err(_), Some(found)) => Ok(found),
        (Err(error), None) => Err(unwritable(folder, error)),
        (Ok(()), None) => Err(unwritable(
            folder,
            std::io::Error::other("it was changed while it was written"),
        )),
    }
}
