//! How much each site of a model matters: one site at a time is compressed, and how far the model's predictions move is measured.
//!
//! The Kullback–Leibler divergence from the dense model needs no labels and shows changes far smaller than perplexity does; per
//! stored scalar saved it says where a budget is best spent (the idea of per-layer sensitivity in HAWQ, arXiv 1911.03852, and of
//! PPL probes in OWL, arXiv 2310.05175, with the divergence in their place).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::divergence::{Divergence, ReferenceIdentity};
use crate::result::{CorpusIdentity, ModelIdentity};
use crate::statistics::Estimate;

/// The layout of [`Sensitivity`] that this version writes and reads.
pub const SENSITIVITY_SCHEMA: u32 = 1;

/// What `cinder sensitivity --out` writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sensitivity {
    /// Version of this layout.
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    /// The dense model.
    pub model: ModelIdentity,
    /// What was done to each site.
    pub perturbation: Perturbed,
    /// The text that the divergence was measured on.
    pub corpus: CorpusIdentity,
    /// SHA-256 over the ids that were scored, as little-endian 32-bit numbers.
    pub ids_sha256: String,
    /// Window length in tokens; all but the first of each are scored.
    pub window: u64,
    /// Which of the text's windows, counted from 0.
    pub window_indices: Vec<u64>,
    /// Tokens of the dense model's distribution that are kept at each position; the others count as one, by which the divergence
    /// can only come out smaller.
    pub top_k: u64,
    /// Where it ran, such as `cpu (2 threads)`.
    pub device: String,
    /// The command line that made this.
    pub command: String,
    /// Seconds of measuring, over all runs that were gone on with.
    pub seconds: f64,
    /// Layer by layer, in the order data flows.
    pub sites: Vec<SiteSensitivity>,
}

/// What was done to each site, one at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Perturbed {
    /// `frontier` (factors weighed by both moments, with identity blocks), `low-rank` (plain factors, weighed by the inputs), or
    /// a precision such as `q4`.
    pub kind: String,
    /// The keep ratio of the site; none where it was rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<f64>,
    /// The calibration text of the factors: name, SHA-256 of the text and of the drawn tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibratedOn>,
}

/// A calibration text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CalibratedOn {
    /// Short name, such as `boolq:calibration`.
    pub corpus: String,
    /// SHA-256 of the text.
    pub corpus_sha256: String,
    /// SHA-256 of the tokens that were drawn of it.
    pub tokens_sha256: String,
    /// How many windows.
    pub windows: u64,
    /// Tokens in each.
    pub window: u64,
}

/// One site compressed, all others dense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SiteSensitivity {
    /// From 0.
    pub layer: u64,
    /// `qkv`, `o`, `gate_up` or `down`.
    pub site: String,
    /// Scalars of the dense site.
    pub scalars: u64,
    /// Scalars fewer that the compressed site stores; of a rounded one the bytes saved over 4.
    pub scalars_saved: u64,
    /// Kullback–Leibler divergence from the dense model, in nats per token.
    pub kl: Estimate,
    /// Over the scalars saved; none where nothing was.
    pub kl_per_scalar: Option<f64>,
    /// Part of the positions at which both find the same token most likely.
    pub top1_agreement: f64,
    /// Perplexity over the dense model's.
    pub perplexity_ratio: Estimate,
    /// What the allocator expected it to add to the loss, in nats per token, where it has an opinion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_loss: Option<f64>,
    /// Largest relative output error of its projections on the calibration inputs; none of a rounded site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

impl SiteSensitivity {
    /// What was measured of a site.
    pub fn new(
        (layer, site): (usize, &str),
        (scalars, saved): (u64, u64),
        divergence: &Divergence,
    ) -> Self {
        SiteSensitivity {
            layer: layer as u64,
            site: site.to_owned(),
            scalars,
            scalars_saved: saved,
            kl: divergence.kl,
            kl_per_scalar: (saved > 0).then(|| divergence.kl.mean / saved as f64),
            top1_agreement: divergence.top1_agreement.mean,
            perplexity_ratio: divergence.perplexity_ratio,
            predicted_loss: None,
            error: None,
        }
    }
}

impl Sensitivity {
    /// A result without sites; `identity` is what the dense model was run on.
    pub fn new(identity: &ReferenceIdentity, perturbation: Perturbed) -> Self {
        Sensitivity {
            schema: SENSITIVITY_SCHEMA,
            tool_version: identity.tool_version.clone(),
            model: identity.model.clone(),
            perturbation,
            corpus: identity.corpus.clone(),
            ids_sha256: identity.ids_sha256.clone(),
            window: identity.window,
            window_indices: identity.window_indices.clone(),
            top_k: identity.top_k,
            device: String::new(),
            command: String::new(),
            seconds: 0.0,
            sites: Vec::new(),
        }
    }

    /// The sites by divergence per scalar saved, the most sensitive first; those where nothing was saved last.
    pub fn ranked(&self) -> Vec<&SiteSensitivity> {
        let mut sites: Vec<&SiteSensitivity> = self.sites.iter().collect();
        let key = |site: &SiteSensitivity| site.kl_per_scalar.unwrap_or(f64::NEG_INFINITY);
        sites.sort_by(|a, b| key(b).total_cmp(&key(a)));
        sites
    }
}
