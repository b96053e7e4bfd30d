//! Evaluation of decoder-only language models: corpora and perplexity.

pub mod corpus;
pub mod error;
mod perplexity;
mod result;

pub use corpus::{Corpus, CorpusFormat, Half, boolq};
pub use error::{Error, Result};
pub use perplexity::{WindowChoice, perplexity, token_losses};
pub use result::{CorpusIdentity, EvalResult, ModelIdentity, Perplexity, SCHEMA};
