//! Evaluation of decoder-only language models: perplexity of corpora, and zero-shot tasks.

mod comparison;
pub mod corpus;
pub mod divergence;
pub mod error;
mod perplexity;
mod result;
pub mod rolling;
mod schema;
pub mod search;
pub mod sensitivity;
pub mod speculation;
mod statistics;
pub mod tasks;
mod together;

pub use comparison::{
    ComparedModel, ComparedPerplexities, ComparedPerplexity, ComparedTask, ComparedTasks, Paired,
};
pub use corpus::{Corpus, CorpusFormat, Half, boolq};
pub use divergence::{Divergence, DivergenceResult, Probe, Reference, ReferenceQuestion};
pub use error::{Error, Result};
pub use perplexity::{WindowChoice, perplexity, token_losses};
pub use result::{CorpusIdentity, EvalResult, LossAt, ModelIdentity, Perplexity, SCHEMA};
pub use schema::result_schema;
pub use sensitivity::{Sensitivity, SiteSensitivity};
pub use statistics::Estimate;
