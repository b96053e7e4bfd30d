//! The record of a search for the best recipe within a budget.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The layout of [`SearchResult`] that this version writes.
pub const SEARCH_SCHEMA: u32 = 1;

/// What `cinder search` writes to `search.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchResult {
    /// Version of this layout.
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    /// Path or fetched name of the model that was compressed.
    pub model: String,
    pub budget: SearchBudget,
    /// The model as it is, on as many windows as the last rung.
    pub dense: SearchRow,
    /// Fewer candidates on more windows, from rung to rung.
    pub rungs: Vec<SearchRung>,
    /// The sizes of the winner that were tried, where the budget is one of quality.
    pub bisection: Vec<SearchRow>,
    pub winner: SearchRow,
    /// Path of the winner's recipe.
    pub recipe: String,
    /// The directory of all that was written.
    pub path: String,
    /// Everything that decides what is found: hashes, settings and every candidate's recipe.
    pub made_from: Value,
}

/// What could be spent; one of the three is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchBudget {
    /// Scalars of the decoder projections, after / before.
    pub keep: Option<f64>,
    /// Of all weights as a recipe stores them.
    pub bytes: Option<u64>,
    /// Most of the dense model's perplexity.
    pub max_ppl_ratio: Option<f64>,
}

/// Candidates on the same windows, the best first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchRung {
    /// The first of the text; those of the rung before are not measured again.
    pub windows: u64,
    pub candidates: Vec<SearchRow>,
}

/// One model, measured. The file `results/NAME-WINDOWS.json` has the whole result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchRow {
    pub name: String,
    pub perplexity: f64,
    pub stderr: f64,
    /// The first of the text.
    pub windows: u64,
    /// How it was compressed; none of the dense model.
    #[serde(flatten)]
    pub candidate: Option<SearchCandidate>,
    /// Over the dense model's perplexity, where the budget is one of quality.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_ratio: Option<f64>,
}

/// How a candidate was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchCandidate {
    /// Its name.
    pub recipe: String,
    /// The keep ratio that it was asked for.
    pub asked_keep: f64,
    /// The one that was reached.
    pub keep_ratio: f64,
    /// Bytes of all weights as the recipe stores them.
    pub bytes_after: u64,
    /// Seconds of compressing.
    pub seconds: f64,
}
