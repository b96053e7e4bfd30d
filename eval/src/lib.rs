//! Evaluation of decoder-only language models: corpora and perplexity.

pub mod corpus;
pub mod error;
mod result;

pub use corpus::{Corpus, CorpusFormat, Half, boolq};
pub use error::{Error, Result};
pub use result::{CorpusIdentity, EvalResult, ModelIdentity, Perplexity};
