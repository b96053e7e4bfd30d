use std::io;
use std::path::PathBuf;

/// Why a report could not be made. Every message names the file to look at.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Nothing to report.
    #[error(
        "no evaluation results: give result files, or directories that hold them (`cinder eval ppl --json` makes one)"
    )]
    NoResults,
    /// A directory without a single result in it.
    #[error("{}: no evaluation result in this directory (a result is a .json file made by `cinder eval`)", .0.display())]
    EmptyDirectory(PathBuf),
    /// Not JSON, or not the JSON of an evaluation result.
    #[error("{}:{line}:{column}: {message}", file.display())]
    Json {
        /// The file that could not be read.
        file: PathBuf,
        /// Line of the problem, from 1.
        line: usize,
        /// Column of the problem, from 1.
        column: usize,
        /// What was wrong, without the position.
        message: String,
    },
    /// A result of a layout this version does not know.
    #[error("{}: schema {found} is not known to this version, which reads schema {known}", file.display())]
    Schema {
        /// The file with the unknown layout.
        file: PathBuf,
        /// The layout it declares.
        found: u32,
        /// The layout this version reads.
        known: u32,
    },
    /// A manifest that is damaged or of a newer version.
    #[error(transparent)]
    Manifest(#[from] cinder_models::Error),
    /// A number no chart can show.
    #[error("{}: {field} is {value}, which is not a finite number", file.display())]
    NotFinite {
        /// The file with the number.
        file: PathBuf,
        /// Which number, as a path into the JSON.
        field: String,
        /// The number as Rust prints it.
        value: f64,
    },
    /// A result that contradicts itself.
    #[error("{}: {message}", file.display())]
    Contradiction {
        /// The file in question.
        file: PathBuf,
        /// What does not fit together.
        message: String,
    },
    /// Two results that cannot both be right, or cannot share one report.
    #[error("{} and {}: {message}", first.display(), second.display())]
    Conflict {
        /// One of the two files.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// What does not fit together.
        message: String,
    },
    /// The chart could not be drawn or rasterised.
    #[error("cannot draw the chart: {0}")]
    Draw(String),
    /// Reading or writing failed; the message carries the path.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl cinder_models::Hint for ReportError {
    fn hint(&self) -> Option<String> {
        match self {
            ReportError::NoResults | ReportError::EmptyDirectory(_) => {
                Some("`cinder eval ppl MODEL --text FILE --out result.json` makes one".into())
            }
            ReportError::Manifest(error) => error.hint(),
            _ => None,
        }
    }
}
