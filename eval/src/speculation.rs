//! The record of a benchmark of speculative decoding. Reports read only these files.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What [`SpeculationResult::kind`] says.
pub const SPECULATION_KIND: &str = "speculation";

/// One model decoded with a draft in several ways, beside plain decoding of the same prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpeculationResult {
    /// `speculation`: tells the file from other results.
    #[schemars(extend("const" = SPECULATION_KIND))]
    pub kind: String,
    /// Version of this layout: [`SCHEMA`](crate::SCHEMA).
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    /// Path or fetched name of the model whose tokens come out.
    pub model: String,
    /// Where the drafts come from, in words: a substitute and its precision, or a model.
    pub draft: String,
    /// Where it ran, such as `cpu (2 threads)`.
    pub device: String,
    /// The command line that made this.
    pub command: String,
    /// Runs without a draft: what the speed-ups are against. `draft`, `depth`, `width` and what follows from them are empty.
    #[serde(default)]
    pub baselines: Vec<SpeculationRun>,
    pub runs: Vec<SpeculationRun>,
}

/// One way of decoding, measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpeculationRun {
    /// What charts call it, such as `tree 6×4`.
    pub label: String,
    /// The draft, where runs differ in it.
    #[serde(default)]
    pub draft: String,
    /// Tokens drafted one after another in a round; the depth of a tree.
    #[serde(default)]
    pub depth: u64,
    /// Nodes of a tree at each depth; 1 for a chain.
    #[serde(default)]
    pub width: u64,
    /// How drafts are verified, such as `greedy` or `sampling`.
    #[serde(default)]
    pub verify: String,
    /// The speed that blocks are streamed at; none where that is not held back or nothing is streamed.
    #[serde(default)]
    pub bandwidth_bytes_per_second: Option<f64>,
    /// Blocks that stay in memory.
    #[serde(default)]
    pub resident_blocks: u64,
    /// Tokens that came out.
    pub tokens: u64,
    pub tokens_per_second: f64,
    /// Prompts that were continued.
    #[serde(default)]
    pub prompts: u64,
    /// Of them, those whose text was plain decoding's, token for token. Fewer only where a run is lossy.
    #[serde(default)]
    pub identical: u64,
    /// Acceptance length: tokens a round of drafting and verification yields, the target's own (bonus) token counted.
    #[serde(default)]
    pub tokens_per_round_with_bonus: Option<f64>,
    /// The same without the bonus token.
    #[serde(default)]
    pub accepted_per_round: Option<f64>,
    /// Share of rounds whose draft is accepted to at least this depth, from depth 1.
    #[serde(default)]
    pub acceptance_by_depth: Vec<f64>,
    /// Where the time went.
    #[serde(default)]
    pub seconds: SpeculationSeconds,
    #[serde(default)]
    pub bytes_read_per_token: f64,
    /// What the cost model expects over plain decoding; none without one.
    #[serde(default)]
    pub predicted_speedup: Option<f64>,
    /// Tokens per second over those of plain decoding under the same conditions.
    #[serde(default)]
    pub speedup_over_plain: Option<f64>,
}

/// Wall-clock seconds of a run by what they were spent on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SpeculationSeconds {
    /// The prompt, until the first token.
    pub prefill: f64,
    /// Drafting.
    pub draft: f64,
    /// Waiting for streamed blocks.
    pub read: f64,
    /// The target's passes over drafts.
    pub verify: f64,
    /// The rest.
    pub overhead: f64,
}
