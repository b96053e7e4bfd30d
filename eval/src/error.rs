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

    /// The text has no whole window.
    #[error("the text has {tokens} tokens, fewer than one window of {window}")]
    TooShort { tokens: usize, window: usize },

    /// A window was asked for that the text does not have.
    #[error("there is no window {index}: the text has {available} whole windows, counted from 0")]
    NoSuchWindow { index: usize, available: usize },

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

    /// An Arrow or Parquet file has no such column.
    #[error("`{}` has no column {wanted}; it has {found}", path.display())]
    MissingColumn {
        path: PathBuf,
        wanted: String,
        found: String,
    },

    /// An Arrow file is damaged, or its column holds no text.
    #[error("`{}`: {why}", path.display())]
    Arrow { path: PathBuf, why: String },

    /// A Parquet file is damaged, or its column holds no text.
    #[error("`{}`: {why}", path.display())]
    Parquet { path: PathBuf, why: String },

    /// A file is not what a reference model predicted, or is damaged.
    #[error("`{}` is no reference file: {why}", path.display())]
    Reference { path: PathBuf, why: String },

    /// Two models do not read the same tokens.
    #[error("the text's tokens are not those that `{reference}` was run on")]
    OtherTokens {
        /// Name of the reference model.
        reference: String,
    },

    /// Two measurements are no parts of one.
    #[error("the two measurements are of different {what}, and can not be put together")]
    OtherMeasurement {
        /// Such as `models`.
        what: &'static str,
    },

    /// A Parquet file is compressed in a way that this build can not undo.
    #[error("`{}` is compressed by {codec}, which Cinder does not read", path.display())]
    ParquetCodec {
        path: PathBuf,
        /// Such as `zstd`.
        codec: String,
    },

    /// A task file of Cinder's own, or one that was given to it, is malformed.
    #[error("task `{name}`: {why}")]
    Task { name: String, why: String },

    /// No file of a task is in the data folder.
    #[error("`{}` has no file of the task `{task}`", dir.display())]
    MissingTask {
        task: String,
        dir: PathBuf,
        /// Where a file was looked for, relative to `dir`.
        places: Vec<String>,
    },

    /// The data file of a task is empty.
    #[error("`{}` holds no documents", path.display())]
    NoDocuments { path: PathBuf },

    /// A document of a task is malformed, lacks something, or is there twice.
    #[error("`{}`, {place}: {why}", path.display())]
    TaskData {
        path: PathBuf,
        /// Such as `line 3`, from 1, or `row 3`, from 0.
        place: String,
        why: String,
    },

    /// More documents are to be shown than there are beside the one that is asked.
    #[error("{shots} documents can not be shown before each: the file has {documents}")]
    TooFewForShots { shots: usize, documents: usize },

    /// A continuation is longer than the model's context.
    #[error("a continuation of {tokens} tokens does not fit the model's context of {max}")]
    ContinuationTooLong { tokens: usize, max: usize },

    /// There is nothing to put before a continuation that has no context.
    #[error("a context is empty, and the tokenizer has no token that begins or ends a text")]
    NoPrefix,
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Model(error) => error.hint(),
            Error::MissingFile { hint, .. } => Some(hint.clone()),
            Error::NotUtf8 { .. } => Some(
                "a corpus is UTF-8 text, `.jsonl`, `.arrow` or `.parquet`; convert other encodings with `iconv`".into(),
            ),
            Error::Jsonl { .. } => Some(
                "each line is one JSON object with the text in `text`, or in `prefix` and `gold_completion`"
                    .into(),
            ),
            Error::Arrow { .. } => Some(
                "Cinder reads Arrow's stream format, uncompressed, as Hugging Face `datasets` writes it".into(),
            ),
            Error::Parquet { .. } => Some(
                "Cinder reads whole Parquet files with a column of strings, no row of it null".into(),
            ),
            Error::ParquetCodec { .. } => Some(
                "write it again, not compressed or by snappy, gzip or lz4: in pandas \
                 `df.to_parquet(path, compression=\"snappy\")`"
                    .into(),
            ),
            Error::Reference { .. } => Some("make it again: `cinder eval kl --reference MODEL --save FILE`".into()),
            Error::OtherTokens { .. } => Some(
                "give the text, and a model with the tokenizer, that the reference was made with".into(),
            ),
            Error::TooShort { .. } => Some("give a longer text, or a smaller `--window`".into()),
            Error::NoSuchWindow { .. } => Some("leave `--windows` out to score all of them".into()),
            Error::MissingTask { places, .. } => Some(format!("one of {}", places.join(", "))),
            Error::TooFewForShots { .. } => Some("give fewer `--shots`".into()),
            Error::Io(_)
            | Error::EmptyCorpus { .. }
            | Error::MissingColumn { .. }
            | Error::Task { .. }
            | Error::NoDocuments { .. }
            | Error::TaskData { .. }
            | Error::ContinuationTooLong { .. }
            | Error::NoPrefix
            | Error::OtherMeasurement { .. } => None,
        }
    }
}

/// Result of `cinder-eval`.
pub type Result<T, E = Error> = std::result::Result<T, E>;
