//! Evaluation of decoder-only language models: perplexity of corpora, and zero-shot tasks.

pub mod corpus;
pub mod error;
mod perplexity;
mod result;
pub mod tasks;

pub use corpus::{Corpus, CorpusFormat, Half, boolq};
pub use error::{Error, Result};
pub use perplexity::{WindowChoice, perplexity, token_losses};
pub use result::{CorpusIdentity, EvalResult, ModelIdentity, Perplexity, SCHEMA};
