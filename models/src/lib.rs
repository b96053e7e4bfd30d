//! Decoder-only language models as Burn modules.

pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod decode;
pub mod decoder;
pub mod error;
pub mod ops;
pub mod precision;
pub mod progress;
pub mod projection;
pub mod substitute;
#[cfg(test)]
mod test_data;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use decoder::{Decoder, DecoderLayer, Site};
pub use error::{Error, Hint, Result};
pub use precision::Precision;
pub use substitute::{SubstituteSettings, substitute, substitute_layer};
