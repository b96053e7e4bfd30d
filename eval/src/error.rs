//! What can go wrong with a corpus or an evaluation: what, where, and (as a hint) what to do.

use std::path::PathBuf;

use cinder_models::Hint;

/// Errors of `cinder-eval`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be read or run.
    #[error(transparent)]
    Model(#[from] cinder_models::Error),

    /// Reading failed; the message of `fs-err` names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// A file the user named, or one of the task files, is not there.
    #[error("`{}` does not exist", path.display())]
    MissingFile { path: PathBuf, hint: String },

    /// The text is not UTF-8.
    #[error("`{}` is not UTF-8 text: bad byte at offset {offset}", path.display())]
    NotUtf8 {
        path: PathBuf,
        /// Bytes before the first bad one.
        offset: usize,
    },

    /// There is no text to score.
    #[error("corpus `{name}` holds no text")]
    EmptyCorpus { name: String },

    /// A line of a JSONL file is malformed, or lacks the field the text is in.
    #[error("`{}`, line {line}: {why}", path.display())]
    Jsonl {
        path: PathBuf,
        /// From 1.
        line: usize,
        why: String,
    },

    /// An Arrow file has no such column.
    #[error("`{}` has no column {wanted}; it has {found}", path.display())]
    ArrowColumn {
        path: PathBuf,
        wanted: String,
        found: String,
    },

    /// An Arrow file is damaged, or its column holds no text.
    #[error("`{}`: {why}", path.display())]
    Arrow { path: PathBuf, why: String },
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Model(error) => error.hint(),
            Error::MissingFile { hint, .. } => Some(hint.clone()),
            Error::NotUtf8 { .. } => Some(
                "a corpus is UTF-8 text, `.jsonl` or `.arrow`; convert other encodings with `iconv`".into(),
            ),
            Error::Jsonl { .. } => Some(
                "each line is one JSON object with the text in `text`, or in `prefix` and `gold_completion`"
                    .into(),
            ),
            Error::Arrow { .. } => Some(
                "Cinder reads Arrow's stream format, uncompressed, as Hugging Face `datasets` writes it".into(),
            ),
            Error::Io(_) | Error::EmptyCorpus { .. } | Error::ArrowColumn { .. } => None,
        }
    }
}

/// Result of `cinder-eval`.
pub type Result<T, E = Error> = std::result::Result<T, E>;
