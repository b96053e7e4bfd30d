//! # low_rank
//!
//! **What it does.** Replaces each projection `W` by `B A`, the best approximation of its rank on the inputs that
//! calibration saw: the truncated singular value decomposition of `W L`, where `L Lᵀ` is the input Gram.
//!
//! **When to use it.** As the plain baseline of the field, and where a simple pair of matrices is wanted. At every size
//! `frontier` keeps far more quality.
//!
//! **Cost.** One f64 Gram per site, one Cholesky per site and one eigendecomposition per projection:
//! about `out · in · min(out, in)` operations each.
//!
//! **Guarantees.** The stored scalars never exceed `floor(keep · dense)`, and fall short by less than the smallest next step. A raised
//! ridge is recorded with the projection. Every factor is finite.
//!
//! **Reference.** Palu, arXiv 2407.21118, §3.2 and SVD-LLM, arXiv 2403.07378, §3.1 (whitening by the Cholesky factor
//! of the input Gram), with a relative ridge and triangular solves. Allocation: uniform; by energy share; Palu's Fisher
//! rule (§3.3); or by loss.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::factor::{Factorization, Rule, Structures, default_sites};
use super::{Entry, Pass};

/// Settings of `low_rank`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LowRankSettings {
    /// Scalars kept of those the touched projections have, in (0, 1].
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub keep: f64,
    /// Ridge added to each input Gram, relative to its mean diagonal.
    #[serde(default = "default_ridge")]
    #[schemars(range(min = 0, max = 1))]
    pub ridge: f64,
    /// The sites to factor: `qkv`, `o`, `gate_up`, `down`.
    #[serde(default = "default_sites")]
    #[schemars(schema_with = "super::factor::sites_schema")]
    pub sites: Vec<String>,
    /// How ranks are shared out.
    #[serde(default)]
    pub allocation: Rule,
    /// Store bases with an identity block.
    #[serde(default)]
    pub identity: bool,
    /// A file of `cinder sensitivity` for this model: with `allocation = "loss"`, each site's losses are scaled by the divergence that was measured there,
    /// over the loss that was predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<PathBuf>,
}

fn default_ridge() -> f64 {
    1e-6
}

pub(super) const ENTRY: Entry = Entry {
    name: "low_rank",
    summary: "activation-whitened low-rank factorization of every projection (SVD-LLM, Palu)",
    has_keep: true,
    build: |table| {
        Ok(
            Box::new(LowRankSettings::factorization(super::factor::settings(
                table,
            )?)?) as Box<dyn Pass>,
        )
    },
    schema: |generator| generator.subschema_for::<LowRankSettings>(),
};

impl LowRankSettings {
    fn factorization(self) -> Result<Factorization, String> {
        let settings = super::factor::with_name("low_rank", &self);
        let factorization = Factorization {
            settings,
            keep: self.keep,
            sites: super::factor::parse_sites(&self.sites)?,
            identity: self.identity.then_some(super::factor::DEFAULT_GROWTH),
            structures: Structures::default(),
            rule: self.allocation,
            two_sided: self.allocation == Rule::Loss,
            input_ridge: self.ridge,
            ..Factorization::default()
        };
        let measured = self.sensitivity.as_deref();
        factorization.checked()?.scaled_by(measured)
    }
}
