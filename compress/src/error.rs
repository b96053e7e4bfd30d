//! What can go wrong while compressing.

use std::path::PathBuf;

use cinder_models::Hint;

/// Errors of `cinder-compress`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing the model failed.
    #[error(transparent)]
    Model(#[from] cinder_models::Error),

    /// Reading a recipe failed; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// The recipe is not valid.
    #[error("recipe `{}`: {why}", path.display())]
    Recipe { path: PathBuf, why: String },

    /// A setting is out of its range.
    #[error("{what} is {value}; it must be {range}")]
    Setting {
        what: String,
        value: String,
        range: String,
    },

    /// The calibration text has too few tokens for what was asked.
    #[error(
        "the calibration text has {tokens} tokens, which is {available} windows of {window}; {wanted} are asked for"
    )]
    TooFewTokens {
        tokens: usize,
        window: usize,
        available: usize,
        wanted: usize,
    },

    /// A pass met a projection it can not take.
    #[error("`{projection}` of layer {layer} is {kind} already")]
    NotDense {
        layer: usize,
        projection: String,
        kind: String,
    },

    /// A pass found nothing of the kind it takes.
    #[error("`{}` has no low-rank projection with a plain basis", path.display())]
    NotLowRank { path: PathBuf },

    /// Files of an interrupted run are damaged.
    #[error("`{}` is damaged: {why}", path.display())]
    Work { path: PathBuf, why: String },

    /// What a run left behind was made from something else.
    #[error("what is in `{}` was made with {changes}", path.display())]
    Drift { path: PathBuf, changes: String },

    /// There is nothing to go on with.
    #[error("there is no interrupted run for `{}`", path.display())]
    NothingToResume { path: PathBuf },

    /// The linear algebra did not come to a result.
    #[error("layer {layer}, {site}: {why}")]
    Numerical {
        layer: usize,
        site: String,
        why: String,
    },
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Model(e) => e.hint(),
            Error::TooFewTokens { .. } => {
                Some("give a longer text, or lower `windows` or `window` in the recipe".into())
            }
            Error::NotDense { .. } => Some(
                "start from the dense model; `cinder export --dense` multiplies factors out".into(),
            ),
            Error::Numerical { .. } => {
                Some("raise the ridges in the recipe, or calibrate on more tokens".into())
            }
            Error::Recipe { .. } => Some(
                "`recipes/frontier.toml` is one to start from; `cinder compress --print-schema` describes them all".into(),
            ),
            Error::NotLowRank { .. } => {
                Some("`identity_block` takes models that `low_rank` made, or their like".into())
            }
            Error::Work { .. } => Some("start over without `--resume`".into()),
            Error::Drift { .. } => Some(
                "go on with what it was begun with, or start over without `--resume` (or with another `--work`)".into(),
            ),
            Error::NothingToResume { .. } => Some("run without `--resume`".into()),
            Error::Io(_) | Error::Setting { .. } => None,
        }
    }
}

/// Result of `cinder-compress`.
pub type Result<T, E = Error> = std::result::Result<T, E>;
