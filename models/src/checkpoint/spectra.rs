//! How fast the singular values of a model's projections fall, as a compression measured it: a file beside its result.

use serde::{Deserialize, Serialize};

/// The layout of [`Spectra`] that this version writes and reads.
pub const SPECTRA_SCHEMA: u32 = 1;
/// What [`Spectra::kind`] says.
pub const SPECTRA_KIND: &str = "spectra";

/// The spectra of one model's projections under one recipe. They do not depend on the keep ratio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spectra {
    /// `spectra`: tells the file from other results.
    pub kind: String,
    /// Version of this layout.
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    /// Name of the model.
    pub model: String,
    /// Its SHA-256.
    pub model_sha256: String,
    /// Name of the recipe: its passes decide what the values are weighted by.
    pub recipe: String,
    pub spectra: Vec<Spectrum>,
}

/// What a matrix loses when it is cut to a rank, at up to 64 ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spectrum {
    /// Which, from 0.
    pub layer: usize,
    /// The site that it is of.
    pub site: String,
    /// The projections it stacks: one, or those that share a basis or a latent.
    pub projections: Vec<String>,
    /// Ranks, ascending from 0 to the full one.
    pub ranks: Vec<usize>,
    /// `Σ_{i>r} σᵢ² / Σ σᵢ²` of the whitened matrix at each rank r: the share of its output, weighted as the recipe weighs it,
    /// that the rank leaves out. 1 at rank 0.
    pub left_out: Vec<f64>,
}
