//! The file that a block file is while it is written: `.NAME.partial-` and six letters or digits, beside where it will be.
//!
//! Its writer has locked it, and the lock ends with the writer, however that ends. One that nobody has locked was left by a
//! writer that was killed, as large as a model and of no use to anyone.

use std::fs::OpenOptions;
use std::io::{Error, Result};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::checkpoint::{Owned, try_own};

/// Files that are begun before it is given up: another writer takes one only between its making and its locking.
const TRIES: usize = 8;

fn prefix(name: &str) -> String {
    format!(".{name}.partial-")
}

/// A file for the blocks of `name` in the making, which is removed when it is dropped.
pub(super) fn create(folder: &Path, name: &str) -> Result<NamedTempFile> {
    let prefix = prefix(name);
    let mut options = tempfile::Builder::new();
    options.prefix(&prefix);
    // As any other file: what the user's mask leaves.
    #[cfg(unix)]
    options.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    for _ in 0..TRIES {
        let file = options.tempfile_in(folder)?;
        // Before it was locked, another writer may have taken it for one that nobody writes.
        if try_own(file.as_file())? != Owned::Others {
            return Ok(file);
        }
    }
    Err(Error::other("other writers remove what is begun"))
}

/// Removes what killed writers of `name` have left in `folder`. What can not be removed stays: it is in nobody's way.
pub(super) fn remove_abandoned(folder: &Path, name: &str) {
    let prefix = prefix(name);
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let found = entry.file_name();
        let rest = found.to_str().and_then(|found| found.strip_prefix(&prefix));
        let ours = rest
            .is_some_and(|rest| rest.len() == 6 && rest.bytes().all(|b| b.is_ascii_alphanumeric()));
        // Neither what a link leads to nor what would block when it is opened.
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let file = OpenOptions::new().write(true).open(entry.path());
        if let Ok(file) = file
            && let Ok(Owned::Ours) = try_own(&file)
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("temp");
        let folder = folder.path();
        let living = create(folder, "blocks").expect("creates");
        let kept = [
            ".blocks.partial-short",
            ".blocks.partial-keep.x",
            ".blocks.partial-abcdefg",
            ".other.partial-abc123",
            "blocks",
        ];
        let left = [".blocks.partial-abc123", ".blocks.partial-XYZ789"];
        for name in kept.iter().chain(&left) {
            std::fs::write(folder.join(name), "half").expect("writes");
        }
        std::fs::create_dir(folder.join(".blocks.partial-folder")).expect("makes");
        remove_abandoned(folder, "blocks");
        for name in kept.into_iter().chain([".blocks.partial-folder"]) {
            assert!(folder.join(name).exists(), "{name}");
        }
        for name in left {
            assert!(!folder.join(name).exists(), "{name}");
        }
        assert!(living.path().exists());
        // A writer that was killed leaves its file, and its lock goes.
        let (file, path) = living.keep().expect("stays");
        remove_abandoned(folder, "blocks");
        assert!(path.exists());
        drop(file);
        remove_abandoned(folder, "blocks");
        assert!(!path.exists());
        // There is no folder to look into.
        remove_abandoned(&folder.join("none"), "blocks");
    }
}
