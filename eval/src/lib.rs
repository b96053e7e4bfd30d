//! Evaluation of decoder-only language models: perplexity of corpora, and zero-shot tasks.

mod comparison;
pub mod corpus;
pub mod divergence;
pub mod error;
mod perplexity;
mod result;
pub mod rolling;
pub mod speculation;
mod statistics;
pub mod tasks;

pub use comparison::Paired;
pub use corpus::{Corpus, CorpusFormat, Half, boolq};
pub use divergence::{Divergence, Reference, ReferenceQuestion};
pub use error::{Error, Result};
pub use perplexity::{WindowChoice, perplexity, token_losses};
pub use result::{CorpusIdentity, EvalResult, ModelIdentity, Perplexity, SCHEMA};
pub use statistics::Estimate;
