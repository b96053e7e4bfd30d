//! # skipcat
//!
//! **What it does.** Factors the projections that read the same input together, as one basis with an expansion for each
//! (Cat), and stores the basis with an identity block: its r pivot inputs pass through unmultiplied (Skip), so that a
//! rank costs `m + n - r` scalars.
//!
//! **When to use it.** To reproduce the paper's setting, or where a shared latent is wanted. `frontier` uses both ideas
//! where they pay and keeps more quality.
//!
//! **Cost.** One f64 Gram and Cholesky per site, one eigendecomposition per site, one QR with column pivoting per basis.
//!
//! **Guarantees.** The identity block is exact: the product is that of the plain factors whatever the pivots; no entry of
//! it weighs more than `growth` times its pivot. The stored scalars never exceed `floor(keep · dense)`, and fall short by
//! less than the smallest next step.
//!
//! **Reference.** SkipCat, arXiv 2512.13494 (no code published); low-rank.md §2 has the algebra and the choice of pivots.

use cinder_models::Site;
use cinder_models::cache::CacheFormat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::factor::{DEFAULT_GROWTH, Factorization, Rule, Structures, default_sites};
use super::{Entry, Pass};

/// Settings of `skipcat`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SkipCatSettings {
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
    /// Share one basis among q, k and v, and one between gate and up (Cat).
    #[serde(default = "yes")]
    pub shared: bool,
    /// Store bases with an identity block (Skip).
    #[serde(default = "yes")]
    pub identity: bool,
    /// The most an entry of an identity block may weigh against its pivot, inputs scaled by their size; at least 1.
    #[serde(default = "default_growth")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub growth: f64,
    /// How ranks are shared out.
    #[serde(default)]
    pub allocation: Rule,
    /// Let the KV cache keep the latent of query, key and value, in layers where it is smaller than the keys and values, which
    /// attention then rebuilds from it; as `f32`, `f16`, or codes of 8, 4, 3 or 2 bits: `q8`, `q4`, `q3`, `q2`. Codes need
    /// every layer to be so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cache_latents: Option<CacheFormat>,
}

fn default_ridge() -> f64 {
    1e-6
}

fn yes() -> bool {
    true
}

fn default_growth() -> f64 {
    DEFAULT_GROWTH
}

pub(super) const ENTRY: Entry = Entry {
    name: "skipcat",
    summary: "shared bases for q/k/v and gate/up, and identity blocks inside the bases (SkipCat)",
    has_keep: true,
    build: |table| {
        Ok(
            Box::new(SkipCatSettings::factorization(super::factor::settings(
                table,
            )?)?) as Box<dyn Pass>,
        )
    },
    schema: |generator| generator.subschema_for::<SkipCatSettings>(),
};

impl SkipCatSettings {
    fn factorization(self) -> Result<Factorization, String> {
        let settings = super::factor::with_name("skipcat", &self);
        let qkv = self.shared && self.sites.iter().any(|s| s == Site::Qkv.name());
        if self.cache_latents.is_some() && !qkv {
            return Err("`cache_latents` needs `shared = true`, and qkv among the `sites`".into());
        }
        let factorization = Factorization {
            settings,
            keep: self.keep,
            sites: super::factor::parse_sites(&self.sites)?,
            identity: self.identity.then_some(self.growth),
            structures: Structures {
                separate: !self.shared,
                shared: self.shared,
                ..Structures::default()
            },
            rule: self.allocation,
            two_sided: self.allocation == Rule::Loss,
            input_ridge: self.ridge,
            cache: self.cache_latents,
            ..Factorization::default()
        };
        factorization.checked()
    }
}
