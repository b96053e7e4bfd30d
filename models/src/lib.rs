//! Decoder-only language models as Burn modules.

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod progress;
pub mod tokenizer;

pub use error::{Error, Hint, Result};
