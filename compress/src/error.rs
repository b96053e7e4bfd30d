//! What can go wrong while compressing.

use std::path::{Path, PathBuf};

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
    Recipe {
        /// The recipe's file.
        path: PathBuf,
        /// A sentence, with the line where one is to blame.
        why: String,
    },

    /// A setting is out of its range.
    #[error("{what} is {value}; it must be {range}")]
    Setting {
        /// The setting.
        what: String,
        /// What it is.
        value: String,
        /// What it may be.
        range: String,
        /// What to do about it.
        hint: &'static str,
    },

    /// The calibration text has too few tokens for what was asked.
    #[error(
        "the calibration text has {tokens} tokens, which is {available} windows of {window}; {wanted} are asked for"
    )]
    TooFewTokens {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens in a window.
        window: usize,
        /// Windows there are.
        available: usize,
        /// Windows asked for.
        wanted: usize,
    },

    /// A pass met a projection it can not take.
    #[error("`{projection}` of layer {layer} is {kind} already")]
    NotDense {
        /// Which, from 0.
        layer: usize,
        /// Its name, such as `q`.
        projection: String,
        /// What it is instead of dense.
        kind: String,
    },

    /// A pass found nothing of the kind it takes.
    #[error("`{}` has no low-rank projection with a plain basis", path.display())]
    NotLowRank {
        /// The model.
        path: PathBuf,
    },

    /// Files of an interrupted run are damaged.
    #[error("`{}` is damaged: {why}", path.display())]
    Work {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// What a run left behind was made from something else.
    #[error("what is in `{}` was made with {changes}", path.display())]
    Drift {
        /// Where the earlier run left its files.
        path: PathBuf,
        /// What it was made with, and in brackets what is asked for now.
        changes: String,
    },

    /// A run was interrupted by an error that another try may not meet; what it had done is kept.
    #[error(transparent)]
    Stopped {
        /// What interrupted it.
        error: Box<Error>,
    },

    /// There is nothing to go on with.
    #[error("there is no interrupted run for `{}`", path.display())]
    NothingToResume {
        /// The output that was asked for.
        path: PathBuf,
    },

    /// The linear algebra did not come to a result.
    #[error("layer {layer}, {site}: {why}")]
    Numerical {
        /// Which, from 0.
        layer: usize,
        /// Which part of the layer.
        site: String,
        /// A sentence.
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
            // Statistics and analyses are folders of their own, which may be shared; anything else is the run's.
            Error::Work { path, .. } => Some(match path.parent().filter(|p| made_again(p)) {
                Some(folder) => format!("remove `{}`: it is made again", folder.display()),
                None => "start over without `--resume`".into(),
            }),
            Error::Stopped { error } => Some(
                error.hint().map_or(String::new(), |hint| format!("{hint}; "))
                    + "what is done is kept: `--resume` goes on with it",
            ),
            Error::Drift { .. } => Some(
                "go on with what it was begun with, or start over without `--resume` (or with another `--work`)".into(),
            ),
            Error::NothingToResume { .. } => Some("run without `--resume`".into()),
            Error::Setting { hint, .. } => Some((*hint).into()),
            Error::Io(_) => None,
        }
    }
}

/// Whether a run that finds this folder missing fills it anew.
fn made_again(folder: &Path) -> bool {
    let name = folder.file_name().map(|n| n.to_string_lossy());
    name.is_some_and(|n| n.starts_with("statistics-") || n.starts_with("analysis-"))
}

impl Error {
    /// Whether another try may do better: the same input would not bring it again.
    pub(crate) fn may_pass(&self) -> bool {
        use cinder_models::Error as Model;
        match self {
            Error::Io(_) | Error::Work { .. } | Error::Drift { .. } => true,
            Error::Model(error) => matches!(error, Model::Io(_) | Model::Output { .. }),
            _ => false,
        }
    }
}

/// Result of `cinder-compress`.
pub type Result<T, E = Error> = std::result::Result<T, E>;
