//! Texts to score or to calibrate on.
//!
//! A corpus is a list of documents; what a model sees is [`Corpus::text`], the documents joined by a blank line, and
//! what a result records is that text's hash. How a file is cut into documents is its [`CorpusFormat`].

mod arrow;
mod articles;
mod boolq;
mod column;
mod jsonl;
mod parquet;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::Path;

use cinder_models::checkpoint::sha256;

use crate::error::{Error, Result};
use crate::result::CorpusIdentity;

pub use boolq::{Half, boolq};
pub(crate) use parquet::check_codec;

/// Documents with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// Short name, such as `wiki.test.raw` or `boolq:evaluation`.
    pub name: String,
    /// In the order they are joined. For WikiText these are its rows, most of them one paragraph, many empty.
    pub documents: Vec<String>,
    /// Whether the documents are WikiText's rows, several of which make an article.
    pub rows: bool,
}

/// How a file is cut into documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CorpusFormat {
    /// By the file's extension: `.raw` is WikiText, `.jsonl`, `.arrow` and `.parquet` are what they say, anything else
    /// is plain.
    ///
    /// JSONL takes `text`, or else `prefix` and `gold_completion` joined; Arrow and Parquet take `text`, or else
    /// `passage`.
    #[default]
    Auto,
    /// The whole file is one document, as it is.
    Plain,
    /// The rows of Hugging Face's WikiText, made from its raw file: each line with its line break is a row, a blank
    /// line is an empty row. Joined, this is the text on which compression papers report perplexity.
    WikitextRows,
    /// One JSON object a line; the document is the text in `field`.
    Jsonl { field: String },
    /// An Arrow IPC stream (a Hugging Face `datasets` file); the documents are the text column `column`.
    Arrow { column: String },
    /// A Parquet file, not compressed or by Snappy, gzip or LZ4; the documents are the text column `column`.
    Parquet { column: String },
}

/// Columns that tables have their text in, best first.
const TEXT_COLUMNS: &[&str] = &["text", "passage"];

/// Where the text of a row is, best first. Each way is a list of fields, joined without anything between.
type Fields<'a> = &'a [&'a [&'a str]];

impl Corpus {
    /// Reads the file at `path`. The corpus is named after the file.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::NotUtf8`], [`Error::EmptyCorpus`] when there is nothing but white space, and
    /// [`Error::Jsonl`], [`Error::MissingColumn`], [`Error::Arrow`], [`Error::Parquet`] or [`Error::ParquetCodec`] by
    /// format.
    pub fn read(path: &Path, format: &CorpusFormat) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        let documents = match format {
            CorpusFormat::Auto => match extension {
                "raw" => wikitext_rows(&text(path)?),
                "jsonl" => jsonl::read(
                    path,
                    &text(path)?,
                    &[&["text"], &["prefix", "gold_completion"]],
                )?,
                "arrow" => arrow::read(path, &bytes(path)?, TEXT_COLUMNS)?,
                "parquet" => parquet::read(path, open(path)?, TEXT_COLUMNS)?,
                _ => vec![text(path)?],
            },
            CorpusFormat::Plain => vec![text(path)?],
            CorpusFormat::WikitextRows => wikitext_rows(&text(path)?),
            CorpusFormat::Jsonl { field } => jsonl::read(path, &text(path)?, &[&[field]])?,
            CorpusFormat::Arrow { column } => arrow::read(path, &bytes(path)?, &[column])?,
            CorpusFormat::Parquet { column } => parquet::read(path, open(path)?, &[column])?,
        };
        let raw = match format {
            CorpusFormat::Auto => extension == "raw",
            format => *format == CorpusFormat::WikitextRows,
        };
        let name = path.file_name().unwrap_or(path.as_os_str());
        let mut corpus = Self::new(name.to_string_lossy(), documents)?;
        corpus.rows = raw || articles::are_rows(&corpus.documents);
        Ok(corpus)
    }

    /// A corpus of `documents`.
    ///
    /// # Errors
    /// [`Error::EmptyCorpus`] when there is nothing but white space in them.
    pub fn new(name: impl Into<String>, documents: Vec<String>) -> Result<Self> {
        let name = name.into();
        if documents.iter().all(|document| document.trim().is_empty()) {
            return Err(Error::EmptyCorpus { name });
        }
        Ok(Self {
            name,
            documents,
            rows: false,
        })
    }

    /// The documents joined by a blank line (`"\n\n"`).
    pub fn text(&self) -> String {
        self.documents.join("\n\n")
    }

    /// The documents as a reader would see them: WikiText's rows from one level-one heading to the next, joined as
    /// [`text`](Self::text) joins them; of other corpora the documents as they are. Those of white space only are left
    /// out.
    pub fn articles(&self) -> Vec<String> {
        let mut documents = match self.rows {
            true => articles::articles(&self.documents),
            false => self.documents.clone(),
        };
        documents.retain(|document| !document.trim().is_empty());
        documents
    }

    /// SHA-256 of [`text`](Self::text), in lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        sha256(self.text().as_bytes())
    }

    /// What an [`EvalResult`](crate::EvalResult) records of this corpus, whose text is `tokens` tokens long.
    pub fn identity(&self, tokens: u64) -> CorpusIdentity {
        CorpusIdentity {
            name: self.name.clone(),
            sha256: self.sha256(),
            documents: self.documents.len() as u64,
            tokens,
        }
    }
}

/// What `datasets` makes of a WikiText raw file, which it reads with Python's universal line breaks.
fn wikitext_rows(text: &str) -> Vec<String> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let rows = text.split_inclusive('\n').map(|line| {
        if line.trim().is_empty() {
            String::new()
        } else {
            line.to_owned()
        }
    });
    rows.collect()
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    fs_err::read(path).map_err(|error| unread(path, error))
}

fn open(path: &Path) -> Result<std::fs::File> {
    let file = fs_err::File::open(path).map_err(|error| unread(path, error))?;
    Ok(file.into_file())
}

fn unread(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::MissingFile {
            path: path.into(),
            hint: "a corpus is a text file, `.jsonl`, `.arrow`, `.parquet`, `boolq:calibration` or `boolq:evaluation`"
                .into(),
        },
        _ => error.into(),
    }
}

fn text(path: &Path) -> Result<String> {
    String::from_utf8(bytes(path)?).map_err(|error| Error::NotUtf8 {
        path: path.into(),
        offset: error.utf8_error().valid_up_to(),
    })
}
