//! Output directories that are either whole or not there.
//!
//! All that a run writes is in `<out>.partial`, which it has [locked](DirectoryLock):
//!
//! - `new`: the output in the making. Every file is synced, and at the end the directory is renamed to `<out>`: that one
//!   step makes an output of it.
//! - `work`: what a killed run can be gone on with. It never is a part of the output.
//! - `old`: the output that is being replaced, between two renames. Whoever comes next puts it back if the new one is not
//!   there.
//!
//! An existing output is replaced only when that was asked for, only if it looks like an earlier output, and only once the
//! new one is whole.

use std::io::Write;
use std::path::{Component, Path, PathBuf};

use fs_err as fs;

use super::hash::sha256;
use super::lock::{DirectoryLock, LOCK_FILE};
use super::manifest::FileRecord;
use crate::error::{Error, Result};

/// Files of which an earlier output has at least one; any other directory is never replaced.
const MARKS: [&str; 5] = [
    "config.json",
    super::manifest::MANIFEST_FILE,
    DEMO_FILE,
    SWEEP_FILE,
    SEARCH_FILE,
];
/// What `cinder sweep` leaves in its directory, last.
pub const SWEEP_FILE: &str = "sweep.json";
/// What `cinder search` leaves in its directory, last.
pub const SEARCH_FILE: &str = "search.json";
/// What `cinder demo` leaves in its directory.
pub const DEMO_FILE: &str = "demo.json";

/// A directory being written. Dropped without [`OutputDirectory::commit`], it is removed, unless it is
/// [kept](OutputDirectory::keep).
#[derive(Debug)]
pub struct OutputDirectory {
    places: Places,
    overwrite: bool,
    kept: bool,
    _lock: DirectoryLock,
}

impl OutputDirectory {
    /// Prepares an empty directory in `<target>.partial`; folders above it are created, and what an interrupted run left
    /// there is removed.
    ///
    /// # Errors
    /// [`Error::Output`] as [`OutputDirectory::check`], [`Error::Io`] when the folder can not be made.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self> {
        let places = Places::of(target)?;
        let lock = match places.claim(overwrite)? {
            Some(lock) => lock,
            None => {
                fs::create_dir_all(&places.partial)?;
                DirectoryLock::take(&places.partial)?
            }
        };
        for path in [&places.new, &places.work] {
            remove(path)?;
        }
        fs::create_dir(&places.new)?;
        Ok(OutputDirectory {
            places,
            overwrite,
            kept: false,
            _lock: lock,
        })
    }

    /// Goes on with what an interrupted run left in `<target>.partial`; none when there is nothing. It stays there when
    /// this is dropped.
    ///
    /// # Errors
    /// As [`OutputDirectory::check`].
    pub fn resume(target: &Path, overwrite: bool) -> Result<Option<Self>> {
        let places = Places::of(target)?;
        let lock = places.claim(overwrite)?;
        Ok(lock
            .filter(|_| places.new.is_dir())
            .map(|lock| OutputDirectory {
                places,
                overwrite,
                kept: true,
                _lock: lock,
            }))
    }

    /// Removes what a run that was killed just after its commit has left beside its output.
    ///
    /// # Errors
    /// As [`OutputDirectory::check`].
    pub fn clear(target: &Path) -> Result<()> {
        let places = Places::of(target)?;
        if places.partial.exists() && !places.new.exists() {
            let lock = places.claim(true)?;
            drop(lock.map(|lock| OutputDirectory {
                places,
                overwrite: true,
                kept: false,
                _lock: lock,
            }));
        }
        Ok(())
    }

    /// Where an interrupted run for `target` left `name` in its [work folder](OutputDirectory::work); none when there is
    /// no such run, or it had not come so far.
    pub fn interrupted(target: &Path, name: &str) -> Option<PathBuf> {
        let places = Places::of(target).ok()?;
        let file = places.work.join(name);
        (places.new.is_dir() && file.is_file()).then_some(file)
    }

    /// The check of [`OutputDirectory::create`] alone, for failing before long work begins.
    ///
    /// # Errors
    /// [`Error::Output`] when `target` exists and `overwrite` is false, or it is nothing that should be replaced; when
    /// `<target>.partial` is another run's, or nobody's that is known.
    pub fn check(target: &Path, overwrite: bool) -> Result<()> {
        Places::of(target)?.claim(overwrite).map(drop)
    }

    /// Refuses an output whose making would remove `source`, which is read for it.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn spare(target: &Path, source: &Path) -> Result<()> {
        let (places, source) = (Places::of(target)?, real(source));
        match within(&source, &places) {
            true => Err(refusal(
                target,
                &format!(
                    "is or holds `{}`, which the output is made from",
                    source.display()
                ),
                "give another `--out`",
            )),
            false => Ok(()),
        }
    }

    /// Refuses an output inside a folder that is kept beside it, or around it.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn keep_apart(target: &Path, work: &Path) -> Result<()> {
        let (places, work) = (Places::of(target)?, real(work));
        match within(&work, &places) || real(target).starts_with(&work) {
            true => Err(refusal(
                target,
                &format!(
                    "and the work folder `{}` are one inside the other",
                    work.display()
                ),
                "give a `--work` beside `--out`",
            )),
            false => Ok(()),
        }
    }

    /// Leaves the unfinished directory where it is when this is dropped, to be resumed.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Removes the unfinished directory when this is dropped, even if it was resumed.
    pub fn discard(&mut self) {
        self.kept = false;
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.places.new
    }

    /// A folder for what a later run can go on with; gone after the commit. It may have to be created.
    pub fn work(&self) -> &Path {
        &self.places.work
    }

    /// Writes one small file and records it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<FileRecord> {
        let mut file = fs::File::create(self.places.new.join(name))?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(FileRecord {
            name: name.into(),
            bytes: content.len() as u64,
            sha256: sha256(content),
        })
    }

    /// Puts the directory in its place. If that fails an earlier output is put back; after a success there is nothing
    /// left to write to.
    ///
    /// # Errors
    /// [`Error::Output`] when something has come in the way since [`OutputDirectory::create`]; [`Error::Io`].
    pub fn commit(&mut self) -> Result<()> {
        let Places {
            target, new, old, ..
        } = &self.places;
        sync_directory(new)?;
        self.places.check_target(self.overwrite)?;
        if target.exists() {
            remove(old)?;
            fs::rename(target, old)?;
        }
        if let Err(error) = fs::rename(new, target) {
            self.places.restore()?;
            return Err(error.into());
        }
        self.kept = false;
        sync_directory(match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        })
    }
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Nothing more can be done about a failure to clean up. The lock's file goes last: it says whose the rest is.
        let places = &self.places;
        let _ = places.restore().and_then(|()| {
            for path in [&places.new, &places.work, &places.old] {
                remove(path)?;
            }
            fs::remove_file(places.partial.join(LOCK_FILE))?;
            Ok(fs::remove_dir(&places.partial)?)
        });
    }
}

/// An output and the places beside it.
#[derive(Debug)]
struct Places {
    target: PathBuf,
    partial: PathBuf,
    new: PathBuf,
    work: PathBuf,
    old: PathBuf,
}

impl Places {
    fn of(target: &Path) -> Result<Self> {
        if target.file_name().is_none() {
            return Err(refusal(
                target,
                "can not be an output",
                "give a directory with a name of its own",
            ));
        }
        // Without the slash that shells append to a directory's name: siblings are named after it.
        let target: PathBuf = target.components().collect();
        let mut partial = target.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        Ok(Places {
            new: partial.join("new"),
            work: partial.join("work"),
            old: partial.join("old"),
            target,
            partial,
        })
    }

    /// Locks `<target>.partial`, if there is one, puts an earlier output back that a killed run had moved, and checks that
    /// the target may be written.
    fn claim(&self, overwrite: bool) -> Result<Option<DirectoryLock>> {
        let lock = match self.partial.exists() {
            true => {
                let locked = || self.partial.join(LOCK_FILE).is_file();
                // A run may be killed before it has made its lock.
                let begun = || self.partial.is_dir() && is_empty(&self.partial);
                if !(locked() || begun()) {
                    return Err(refusal(
                        &self.partial,
                        "exists and is no unfinished output, so it is not replaced",
                        "move it away, or give another `--out`",
                    ));
                }
                Some(DirectoryLock::take(&self.partial)?)
            }
            false => None,
        };
        if lock.is_some() {
            self.restore()?;
        }
        self.check_target(overwrite)?;
        Ok(lock)
    }

    /// Puts an earlier output back if nothing has taken its place.
    fn restore(&self) -> Result<()> {
        match self.old.exists() && !self.target.exists() {
            true => Ok(fs::rename(&self.old, &self.target)?),
            false => Ok(()),
        }
    }

    fn check_target(&self, overwrite: bool) -> Result<()> {
        let target = &self.target;
        if !target.exists() {
            return Ok(());
        }
        if !overwrite {
            return Err(refusal(
                target,
                "exists already",
                "give another `--out`, or `--overwrite` to replace it",
            ));
        }
        let ours = || MARKS.iter().any(|mark| target.join(mark).is_file());
        match target.is_dir() && (ours() || is_empty(target)) {
            true => Ok(()),
            false => Err(refusal(
                target,
                "exists and is no earlier output, so it is not replaced",
                "give another `--out`",
            )),
        }
    }
}

fn refusal(path: &Path, why: &str, hint: &str) -> Error {
    Error::Output {
        path: path.into(),
        why: why.into(),
        hint: hint.into(),
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a path is in the output or in what is removed when it is done.
fn within(path: &Path, places: &Places) -> bool {
    path.starts_with(real(&places.target)) || path.starts_with(real(&places.partial))
}

/// A path without links and dots, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let mut rest = Vec::new();
    for existing in path.ancestors() {
        if let Ok(found) = existing.canonicalize() {
            return found.join(rest.into_iter().rev().collect::<PathBuf>());
        }
        rest.extend(existing.components().next_back().map(Component::as_os_str));
    }
    path
}

fn remove(directory: &Path) -> Result<()> {
    // A link to a directory is none, and is there even if what it names is not.
    match directory.symlink_metadata().is_ok() {
        true => Ok(fs::remove_dir_all(directory)?),
        false => Ok(()),
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

    /// A target with an earlier output in it.
    fn earlier() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("temp");
        let target = folder.path().join("model");
        fs::create_dir(&target).expect("creates");
        fs::write(target.join("config.json"), "{}").expect("writes");
        (folder, target)
    }

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
        let (folder, target) = earlier();
        let refused = OutputDirectory::create(&target, false).expect_err("refused");
        assert!(refused.to_string().contains("exists already"));

        let abandoned = OutputDirectory::create(&target, true).expect("creates");
        drop(abandoned);
        assert!(target.join("config.json").exists());

        let mut output = OutputDirectory::create(&target, true).expect("creates");
        output.write("new", b"2").expect("writes");
        output.commit().expect("commits");
        drop(output);
        assert!(target.join("new").exists() && !target.join("config.json").exists());
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_trailing_slash_names_the_same_directory() {
        let folder = tempfile::tempdir().expect("temp");
        let target = format!("{}/model/", folder.path().display());
        let mut output = OutputDirectory::create(target.as_ref(), false).expect("creates");
        output.write("a", b"1").expect("writes");
        output.commit().expect("commits");
        drop(output);
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
        // Nor is what only has the name of an unfinished one.
        let partial = folder.path().join("model.partial");
        fs::create_dir(&partial).expect("creates");
        fs::write(partial.join("thesis.tex"), "years").expect("writes");
        let refused = OutputDirectory::create(&folder.path().join("model"), true);
        let refused = refused.expect_err("refused").to_string();
        assert!(refused.contains("is no unfinished output"), "{refused}");
        assert!(partial.join("thesis.tex").is_file());
    }

    #[test]
    fn an_output_that_came_in_the_meantime_stays() {
        let folder = tempfile::tempdir().expect("temp");
        let target = folder.path().join("model");
        let mut output = OutputDirectory::create(&target, false).expect("creates");
        fs::create_dir(&target).expect("creates");
        fs::write(target.join("config.json"), "another's").expect("writes");
        assert!(output.commit().is_err());
        drop(output);
        let content = fs::read_to_string(target.join("config.json")).expect("reads");
        assert_eq!(content, "another's");
    }

    #[test]
    fn a_kill_between_the_two_renames_loses_neither() {
        let (_folder, target) = earlier();
        let mut output = OutputDirectory::create(&target, true).expect("creates");
        output.write("config.json", b"new").expect("writes");
        output.keep();
        fs::rename(&target, &output.places.old).expect("renames");
        drop(output);

        // Without `--overwrite` the earlier one is what there is.
        assert!(OutputDirectory::check(&target, false).is_err());
        let content = fs::read_to_string(target.join("config.json")).expect("reads");
        assert_eq!(content, "{}");
        let mut output = OutputDirectory::resume(&target, true)
            .expect("resumes")
            .expect("is there");
        output.commit().expect("commits");
        let content = fs::read_to_string(target.join("config.json")).expect("reads");
        assert_eq!(content, "new");
    }

    #[test]
    fn a_kill_after_the_commit_leaves_nothing_for_long() {
        let (folder, target) = earlier();
        let mut output = OutputDirectory::create(&target, true).expect("creates");
        output.keep();
        fs::rename(&target, &output.places.old).expect("renames");
        fs::rename(&output.places.new, &target).expect("renames");
        drop(output);
        OutputDirectory::clear(&target).expect("clears");
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }

    #[test]
    fn only_one_writes_at_a_time() {
        let folder = tempfile::tempdir().expect("temp");
        let target = folder.path().join("model");
        let mut first = OutputDirectory::create(&target, false).expect("creates");
        first.keep();
        for second in [
            OutputDirectory::check(&target, true).map(drop),
            OutputDirectory::create(&target, true).map(drop),
            OutputDirectory::resume(&target, true).map(drop),
        ] {
            let why = second.expect_err("refused").to_string();
            assert!(why.contains("by another run"), "{why}");
        }
        drop(first);
        assert!(
            OutputDirectory::resume(&target, true)
                .expect("is free")
                .is_some()
        );
    }

    #[test]
    fn what_is_read_and_what_is_kept_are_spared() {
        let (folder, target) = earlier();
        let root = folder.path();
        for source in [
            &target,
            &target.join("config.json"),
            &root.join("model.partial/x"),
        ] {
            assert!(OutputDirectory::spare(&target, source).is_err());
        }
        assert!(OutputDirectory::spare(&root.join("model/small"), &target).is_ok());
        assert!(OutputDirectory::spare(&root.join("mod"), &target).is_ok());
        for work in ["model/work", "model", "", "model/../model/a/b"] {
            assert!(
                OutputDirectory::keep_apart(&target, &root.join(work)).is_err(),
                "{work}"
            );
        }
        assert!(OutputDirectory::keep_apart(&target, &root.join("work")).is_ok());
    }
}
