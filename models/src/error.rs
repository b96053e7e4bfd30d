//! What can go wrong with a model on disk, said in one line: what, where, and (as a hint) what to do.

use std::path::PathBuf;

use crate::cache::CacheFormat;
use crate::decode::offload::{MemoryPlan, size};

/// A suggestion that goes with an error; the command line prints it on its own `hint:` line.
pub trait Hint {
    /// What the user can do about it, if anything is known.
    fn hint(&self) -> Option<String>;
}

/// Errors of `cinder-models`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed; the message of `fs-err` names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// The path does not hold a model of a kind Cinder reads.
    #[error("`{}` is not a model: {why}", path.display())]
    NotAModel {
        path: PathBuf,
        why: String,
        hint: String,
    },

    /// The file is damaged, truncated, or says things about itself that are not true.
    #[error("`{}` is damaged: {why}", path.display())]
    Corrupt { path: PathBuf, why: String },

    /// The file is sound, but asks for something Cinder does not do.
    #[error("`{}` is not supported: {what}", path.display())]
    Unsupported {
        path: PathBuf,
        what: String,
        hint: String,
    },

    /// A tensor is missing, or has another shape than the configuration says.
    #[error("tensor `{name}` of `{}` {why}", path.display())]
    Tensor {
        path: PathBuf,
        name: String,
        why: String,
    },

    /// A field of a configuration file is missing or wrong.
    #[error("`{}`: {why}", path.display())]
    Config { path: PathBuf, why: String },

    /// The tokenizer is missing or could not be built or used.
    #[error("tokenizer of `{}`: {why}", path.display())]
    Tokenizer { path: PathBuf, why: String },

    /// A value that is not finite where only finite values make sense.
    #[error("{what} is not finite")]
    NonFinite { what: String },

    /// A request that does not fit the model, such as a prompt longer than its context.
    #[error("{0}")]
    Request(String),

    /// A packed cache was asked for where keys and values are kept in full.
    #[error("a {format} cache packs latents, and layer {layer} keeps keys and values in full")]
    CacheFormat { format: CacheFormat, layer: usize },

    /// A residual window beside numbers that are not codes.
    #[error(
        "a residual window of {tokens} tokens is for packed latents, and the cache is {format}"
    )]
    ResidualWindow { tokens: usize, format: CacheFormat },

    /// The file that a model's blocks are streamed from is not what it should be, or no longer.
    #[error("`{}` {why}", path.display())]
    Offload {
        path: PathBuf,
        why: String,
        hint: String,
    },

    /// A budget of memory that does not do even when every block is streamed.
    #[error(
        "{} of memory are too little: {} are needed when every block is streamed: {}",
        size(*allowed), size(plan.total()), plan.parts()
    )]
    Budget { plan: MemoryPlan, allowed: u64 },

    /// The output can not be written where it was asked for.
    #[error("`{}` {why}", path.display())]
    Output {
        path: PathBuf,
        why: String,
        hint: String,
    },
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NotAModel { hint, .. }
            | Error::Unsupported { hint, .. }
            | Error::Offload { hint, .. }
            | Error::Output { hint, .. } => Some(hint.clone()),
            Error::Corrupt { .. } => {
                Some("the file is incomplete or altered: fetch it again from its source".into())
            }
            Error::Tensor { .. } => {
                Some("the checkpoint does not match its configuration: fetch both again".into())
            }
            Error::Tokenizer { .. } => Some(
                "a Hugging Face directory needs `tokenizer.json`; a GGUF file carries its vocabulary in its metadata"
                    .into(),
            ),
            Error::NonFinite { .. } => Some(
                "run `cinder verify` on the model; a value too large for f16 fits bf16 or f32".into(),
            ),
            Error::CacheFormat { .. } => Some(
                "cache in f32 or f16, or compress the model so that it caches latents (group-head keys and values)".into(),
            ),
            Error::Budget { plan, .. } => Some(format!(
                "give at least {}, or fewer tokens, or narrower weights",
                size(plan.total())
            )),
            Error::ResidualWindow { .. } => Some(
                "cache latents as q8, q4, q3 or q2, or leave the window out".into(),
            ),
            Error::Io(_) | Error::Config { .. } | Error::Request(_) => None,
        }
    }
}

/// Result of `cinder-models`.
pub type Result<T, E = Error> = std::result::Result<T, E>;
