//! Output directories that are either whole or not there.
//!
//! Everything is written to `<out>.partial`; the manifest or index comes last, every file is synced, and the
//! directory is renamed into place. A process that dies leaves at most a `.partial` directory, which the
//! next run replaces. An existing output is only replaced when that was asked for, and only once the new one is whole.

use std::io::Write;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::hash::sha256;
use super::manifest::FileRecord;
use crate::error::{Error, Result};

/// A directory being written. Dropped without [`OutputDirectory::commit`], it is removed.
pub struct OutputDirectory {
    target: PathBuf,
    partial: PathBuf,
    committed: bool,
}

impl OutputDirectory {
    /// Prepares `<target>.partial`.
    ///
    /// # Errors
    /// [`Error::Output`] when `target` exists and `overwrite` is false, or its folder does not exist.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self> {
        Self::check(target, overwrite)?;
        let mut partial = target.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        Ok(OutputDirectory {
            target: target.into(),
            partial,
            committed: false,
        })
    }

    /// The check of [`OutputDirectory::create`] alone, for failing before long work begins.
    pub fn check(target: &Path, overwrite: bool) -> Result<()> {
        if target.exists() && !overwrite {
            return Err(Error::Output {
                path: target.into(),
                why: "exists already".into(),
                hint: "give another `--out`, or `--overwrite` to replace it".into(),
            });
        }
        if target.is_file() {
            return Err(Error::Output {
                path: target.into(),
                why: "is a file, not a directory".into(),
                hint: "give another `--out`".into(),
            });
        }
        Ok(())
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Writes one small file and records it.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<FileRecord> {
        let mut file = fs::File::create(self.partial.join(name))?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(FileRecord {
            name: name.into(),
            bytes: content.len() as u64,
            sha256: sha256(content),
        })
    }

    /// Puts the directory in its place.
    pub fn commit(mut self) -> Result<()> {
        sync_directory(&self.partial)?;
        if self.target.exists() {
            let mut old = self.target.as_os_str().to_owned();
            old.push(".old");
            let old = PathBuf::from(old);
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            fs::rename(&self.target, &old)?;
            fs::rename(&self.partial, &self.target)?;
            fs::remove_dir_all(&old)?;
        } else {
            fs::rename(&self.partial, &self.target)?;
        }
        self.committed = true;
        if let Some(parent) = self.target.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_directory(parent)?;
        }
        Ok(())
    }
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a failure to clean up after a failure.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Makes renames inside `path` durable; only Unix has a way to ask for that.
fn sync_directory(path: &Path) -> Result<()> {
    if cfg!(unix) {
        fs::File::open(path)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uncommitted_directory_leaves_nothing() {
        let folder = tempfile::tempdir().expect("temp");
        let target = folder.path().join("model");
        let output = OutputDirectory::create(&target, false).expect("creates");
        output.write("a", b"1").expect("writes");
        drop(output);
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0);
    }

    #[test]
    fn an_existing_output_is_replaced_only_when_asked_and_only_when_whole() {
        let folder = tempfile::tempdir().expect("temp");
        let target = folder.path().join("model");
        fs::create_dir(&target).expect("creates");
        fs::write(target.join("old"), "1").expect("writes");
        let refused = OutputDirectory::create(&target, false)
            .err()
            .expect("refused");
        assert!(refused.to_string().contains("exists already"));

        let abandoned = OutputDirectory::create(&target, true).expect("creates");
        drop(abandoned);
        assert!(target.join("old").exists());

        let output = OutputDirectory::create(&target, true).expect("creates");
        output.write("new", b"2").expect("writes");
        output.commit().expect("commits");
        assert!(target.join("new").exists() && !target.join("old").exists());
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }
}
