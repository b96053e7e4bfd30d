//! Output directories that are either whole or not there.
//!
//! Everything is written to `<out>.partial`, every file is synced, and the directory is renamed into place. A process that
//! dies leaves at most a `.partial` directory, which the next run replaces or goes on with. An existing output is replaced only when that was
//! asked for, only if it looks like an earlier output, and only once the new one is whole.

use std::io::Write;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::hash::sha256;
use super::manifest::FileRecord;
use crate::error::{Error, Result};

/// Files of which an earlier output has at least one; any other directory is never replaced.
const MARKS: [&str; 4] = [
    "config.json",
    super::manifest::MANIFEST_FILE,
    DEMO_FILE,
    SWEEP_FILE,
];
/// What `cinder sweep` leaves in its directory, last.
pub const SWEEP_FILE: &str = "sweep.json";
/// What `cinder demo` leaves in its directory.
pub const DEMO_FILE: &str = "demo.json";

/// A directory being written. Dropped without [`OutputDirectory::commit`], it is removed.
#[derive(Debug)]
pub struct OutputDirectory {
    target: PathBuf,
    partial: PathBuf,
    committed: bool,
    kept: bool,
}

impl OutputDirectory {
    /// Prepares `<target>.partial`; folders above it are created.
    ///
    /// # Errors
    /// [`Error::Output`] as [`OutputDirectory::check`], [`Error::Io`] when the folder can not be made.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self> {
        Self::check(target, overwrite)?;
        // Without the slash that shells append to a directory's name: siblings are named after it.
        let target: PathBuf = target.components().collect();
        let partial = sibling(&target, ".partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        Ok(OutputDirectory {
            target,
            partial,
            committed: false,
            kept: false,
        })
    }

    /// Goes on with a `<target>.partial` that is there; none when there is none. What was resumed once stays there
    /// when this is dropped.
    ///
    /// # Errors
    /// As [`OutputDirectory::check`].
    pub fn resume(target: &Path, overwrite: bool) -> Result<Option<Self>> {
        Self::check(target, overwrite)?;
        let target: PathBuf = target.components().collect();
        let partial = sibling(&target, ".partial");
        Ok(partial.is_dir().then_some(OutputDirectory {
            target,
            partial,
            committed: false,
            kept: true,
        }))
    }

    /// The check of [`OutputDirectory::create`] alone, for failing before long work begins.
    ///
    /// # Errors
    /// [`Error::Output`] when `target` exists and `overwrite` is false, or it is nothing that should be replaced.
    pub fn check(target: &Path, overwrite: bool) -> Result<()> {
        let refuse = |why: &str, hint: &str| {
            Err(Error::Output {
                path: target.into(),
                why: why.into(),
                hint: hint.into(),
            })
        };
        if target.file_name().is_none() {
            return refuse(
                "can not be an output",
                "give a directory with a name of its own",
            );
        }
        if !target.exists() {
            return Ok(());
        }
        if !overwrite {
            return refuse(
                "exists already",
                "give another `--out`, or `--overwrite` to replace it",
            );
        }
        let empty = || fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
        let ours = || MARKS.iter().any(|mark| target.join(mark).is_file());
        match target.is_dir() && (ours() || empty()) {
            true => Ok(()),
            false => refuse(
                "exists and is no earlier output, so it is not replaced",
                "give another `--out`",
            ),
        }
    }

    /// Leaves the unfinished directory where it is when this is dropped, to be resumed.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Writes one small file and records it.
    ///
    /// # Errors
    /// [`Error::Io`].
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

    /// Puts the directory in its place. If that fails an earlier output is put back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn commit(mut self) -> Result<()> {
        sync_directory(&self.partial)?;
        let parent = match self.target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if self.target.exists() {
            // Inside a fresh directory, so that nothing of the user's can have the name.
            let aside = tempfile::Builder::new()
                .prefix(".cinder-replaced-")
                .tempdir_in(&parent)?;
            let old = aside.path().join("old");
            fs::rename(&self.target, &old)?;
            if let Err(error) = fs::rename(&self.partial, &self.target) {
                fs::rename(&old, &self.target)?;
                return Err(error.into());
            }
        } else {
            fs::rename(&self.partial, &self.target)?;
        }
        self.committed = true;
        sync_directory(&parent)
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        if !self.committed && !self.kept {
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
        fs::write(target.join("config.json"), "{}").expect("writes");
        let refused = OutputDirectory::create(&target, false).expect_err("refused");
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

    #[test]
    fn a_trailing_slash_names_the_same_directory() {
        let folder = tempfile::tempdir().expect("temp");
        let target = format!("{}/model/", folder.path().display());
        let output = OutputDirectory::create(target.as_ref(), false).expect("creates");
        output.write("a", b"1").expect("writes");
        output.commit().expect("commits");
        assert!(folder.path().join("model/a").is_file());
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }

    #[test]
    fn what_is_no_output_is_never_replaced() {
        let folder = tempfile::tempdir().expect("temp");
        fs::write(folder.path().join("thesis.tex"), "years").expect("writes");
        for target in [folder.path(), Path::new("/"), Path::new("..")] {
            assert!(
                OutputDirectory::create(target, true).is_err(),
                "{}",
                target.display()
            );
        }
        assert!(OutputDirectory::create(&folder.path().join("thesis.tex"), true).is_err());
    }
}
