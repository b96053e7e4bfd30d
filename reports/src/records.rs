//! Results that are printed rather than written by a type of their own: as much of them as a report shows.

use cinder_eval::divergence::Divergence;
use cinder_eval::{CorpusIdentity, Estimate, ModelIdentity, Paired};
use serde::Deserialize;

/// The loss over a range of positions of all windows.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct PositionLoss {
    /// Tokens before the first position of the range.
    pub from: u64,
    /// Tokens before the last.
    pub to: u64,
    /// Mean negative log-likelihood, in nats per token.
    pub mean_nll: f64,
    /// Its standard error; none where a single window was scored.
    #[serde(default)]
    pub stderr: Option<f64>,
}

/// What `cinder eval kl --json` prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DivergenceResult {
    #[serde(flatten)]
    pub divergence: Divergence,
    pub model: ModelIdentity,
    pub dtype: String,
    pub reference: ReferenceModel,
    #[serde(default)]
    pub device: String,
    #[serde(default)]
    pub command: String,
}

/// What a model was compared with, and on which text.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ReferenceModel {
    pub model: ModelIdentity,
    pub corpus: CorpusIdentity,
    pub window: u64,
    pub top_k: u64,
}

/// What `cinder compare --json` prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ComparisonResult {
    pub first: ComparedModel,
    pub second: ComparedModel,
    pub corpus: CorpusIdentity,
    pub nll: Paired,
    /// Perplexity of the second over the first's.
    pub perplexity_ratio: Estimate,
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ComparedModel {
    pub model: ModelIdentity,
    pub perplexity: f64,
}

/// What `cinder bench --json` prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BenchResult {
    /// Path or fetched name of the model.
    pub model: String,
    /// Precision of the weights in memory.
    pub weights: String,
    #[serde(default)]
    pub prefill_tokens_per_second: Option<f64>,
    #[serde(default)]
    pub decode_tokens_per_second: Option<f64>,
    #[serde(default)]
    pub peak_rss_bytes: Option<u64>,
    #[serde(default)]
    pub device: String,
    #[serde(default)]
    pub command: String,
}
