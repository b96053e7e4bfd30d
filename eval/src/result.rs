//! The self-describing record of one evaluation. Reports read only these files.

use cinder_models::cache::CacheFormat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The layout of [`EvalResult`] that this version writes and reads.
pub const SCHEMA: u32 = 1;

/// One evaluation of one model on one corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvalResult {
    /// Version of this layout.
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    pub model: ModelIdentity,
    pub corpus: CorpusIdentity,
    #[serde(flatten)]
    pub perplexity: Perplexity,
    /// Where it ran, such as `cpu (2 threads)`.
    pub device: String,
    /// Type the weights were computed in, such as `f32`.
    pub dtype: String,
    /// How the KV cache stores what it keeps, which the perplexity is measured through; none in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cache: Option<CacheFormat>,
    /// Bytes that one token takes in that cache, scales and minimums counted; none in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_bytes_per_token: Option<u64>,
    /// Tokens that a packed cache keeps in f16 too; 0 for none.
    #[serde(default)]
    pub residual_window: usize,
    /// Bytes that these take for a sequence, however long it gets.
    #[serde(default)]
    pub residual_window_bytes: u64,
    /// The command line that made this, for the report's reader.
    pub command: String,
    /// Seconds spent evaluating, without loading.
    pub seconds: f64,
}

/// Which model was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelIdentity {
    /// Short name for charts, such as `smollm2` or `low-rank 0.8`.
    pub name: String,
    /// Path or fetched name it was opened by.
    pub path: String,
    /// SHA-256 over the model's files, in name order.
    pub sha256: String,
    /// Precision the weights are stored in on disk, such as `Q4_1+Q8_0` or `f32`.
    pub stored_as: String,
    /// All parameters held in memory, tied ones once.
    pub parameters: u64,
    /// Scalars of the decoder projections.
    pub decoder_projection_scalars: u64,
    /// Kept scalars of the decoder projections over the dense model's; 1 when dense.
    pub keep_ratio: f64,
    /// Bytes of the model's weights in memory.
    pub bytes: u64,
    /// Name of the recipe that made it; none for a dense model.
    pub recipe: Option<String>,
}

/// Which text was scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CorpusIdentity {
    /// Short name, such as `wiki.test.raw` or `boolq:evaluation`.
    pub name: String,
    /// SHA-256 of the text.
    pub sha256: String,
    /// Documents joined by a blank line.
    pub documents: u64,
    /// Tokens of the whole text.
    pub tokens: u64,
}

/// Perplexity as compression papers report it: non-overlapping windows, `window - 1` tokens scored in each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Perplexity {
    /// exp of the mean of the windows' mean negative log-likelihoods (nats).
    pub perplexity: f64,
    /// Standard error of the perplexity: the window means' (with one window the tokens'), times the perplexity.
    pub stderr: f64,
    /// Window length in tokens.
    pub window: u64,
    /// Tokens between the starts of two windows; equals `window` (no overlap).
    pub stride: u64,
    /// How many windows were scored.
    pub windows: u64,
    /// Which of the text's windows these are, counted from 0.
    pub window_indices: Vec<u64>,
    /// Mean negative log-likelihood of each scored window (nats per token), in the order of `window_indices`.
    pub window_nll: Vec<f64>,
    /// By how far into its window a token is, in ranges that double; empty in older files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_position: Vec<LossAt>,
    pub tokens_scored: u64,
    pub tokens_per_second: f64,
    /// Tokens the tokenizer puts before a text of its own accord; empty when it adds none.
    pub bos_ids: Vec<u32>,
}

/// Losses over a range of positions of all windows: whether a model makes use of what is far back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LossAt {
    /// Tokens before the first position of the range.
    pub from: u64,
    /// Tokens before the last.
    pub to: u64,
    /// Mean negative log-likelihood, in nats per token.
    pub mean_nll: f64,
    /// Its standard error, windows taken as independent draws (of one window its tokens).
    pub stderr: f64,
}
