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
                Some("raise `ridge` in the recipe, or calibrate on more tokens".into())
            }
            Error::Recipe { .. } => Some("`recipes/low-rank.toml` is one to start from".into()),
            Error::Io(_) | Error::Setting { .. } => None,
        }
    }
}

/// Result of `cinder-compress`.
pub type Result<T, E = Error> = std::result::Result<T, E>;
