//! Evaluation of decoder-only language models: corpora and perplexity.

mod result;

pub use result::{CorpusIdentity, EvalResult, ModelIdentity, Perplexity};
