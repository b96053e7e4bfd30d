//! # kv_low_rank
//!
//! **What it does.** Replaces keys and values by latents of fewer numbers, `h = A x`, from which they are rebuilt where
//! attention reads them, `k = B_k h` and `v = B_v h`: the KV cache stores the latents. The heads of a group share a latent;
//! by default a latent serves all heads, keys and values together. Keys are rebuilt before the rotary embedding.
//!
//! **When to use it.** Where the KV cache is what fills the memory: many sequences, or long ones. It can be combined with
//! a pass that makes the weights smaller; keys and values then belong to this one.
//!
//! **Cost.** Two moments per site and projection (a forward and a backward pass over the calibration windows), one
//! eigenvalue problem per latent for the plan and one for the factors. The weights may grow: a latent of rank r stores
//! `r (in + out)` scalars.
//!
//! **Guarantees.** `keep` is of the numbers that the dense cache has for a token, over all layers, not of stored weights:
//! the latents never exceed `floor(keep · dense)` and fall short by less than one step of ranks. Full rank gives keys and values
//! back. Raised ridges are recorded. Every tensor is finite.
//!
//! **Reference.** Palu, arXiv 2407.21118, §3.2 (latents by groups of heads: M-LRD, G-LRD, J-LRD), §3.3 (Fisher ranks) and
//! §3.4 (rotation); low-rank.md §1. The residual window of packed caches is KIVI's, arXiv 2402.02750, §3.3. The joint latent of keys and values, moments on both sides and ranks by loss are
//! frontier.md §10, like heads in one group ReCalKV's, arXiv 2505.24357 (whose re-fit of the values would change nothing here:
//! factors from one decomposition are best for each other). At half the cache they add a fifth of what whitened uniform J-LRD adds to SmolLM2-135M's perplexity.

mod analysis;
mod apply;
mod order;
#[cfg(test)]
mod tests;

use std::ops::Range;

use cinder_models::cache::CacheFormat;
use cinder_models::checkpoint::SiteRecord;
use cinder_models::{DecoderLayer, ModelConfig, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::factor::{self, Analysis};
use super::{Entry, Needs, Pass, Plan, SiteWork, Takes, dense_scalars};
use crate::calibration::Moments;
use crate::error::Result;

/// Settings of `kv_low_rank`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KvLowRankSettings {
    /// Numbers that the latents have of those that the dense KV cache has, in (0, 1]; not of stored weights.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub keep: f64,
    /// What is rebuilt from one latent.
    #[serde(default)]
    pub latent: Latent,
    /// Consecutive KV heads that share a latent; 0 is all of them. The last group may have fewer.
    #[serde(default)]
    pub group_heads: usize,
    /// Let heads that are alike share a latent (ReCalKV) rather than neighbours: KV heads change places, and with them the
    /// query heads that read them and what `o` reads. Of use where `group_heads` makes several groups of several heads.
    #[serde(default)]
    pub reorder_heads: bool,
    /// How ranks are shared out.
    #[serde(default)]
    pub rule: KvRule,
    /// Weigh keys and values by the moments of their gradients.
    #[serde(default = "yes")]
    pub two_sided: bool,
    /// Ridge added to each input moment, relative to its mean diagonal.
    #[serde(default = "default_input_ridge")]
    #[schemars(range(min = 0, max = 1))]
    pub input_ridge: f64,
    /// Ridge added to each gradient moment, relative to its mean diagonal.
    #[serde(default = "default_output_ridge")]
    #[schemars(range(min = 0, max = 1))]
    pub output_ridge: f64,
    /// The smallest rank.
    #[serde(default = "eight")]
    #[schemars(range(min = 1))]
    pub rank_floor: usize,
    /// Ranks are multiples of this, or full; packed caches store eight values together.
    #[serde(default = "eight")]
    #[schemars(range(min = 1))]
    pub rank_step: usize,
    /// Turn each latent so that all its values are of like size and lose least in few bits.
    #[serde(default = "yes")]
    pub rotate: bool,
    /// How the cache stores latents: `f32` (default), `f16`, or codes of 8, 4, 3 or 2 bits: `q8`, `q4`, `q3`, `q2`.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub cache: CacheFormat,
    /// The last tokens whose latents a packed cache keeps in f16 too, where attention reads them (KIVI's residual window),
    /// and up to 255 more; 0 is none.
    #[serde(default)]
    pub residual_window: usize,
}

/// What is rebuilt from one latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Latent {
    /// Keys and values of a group of heads.
    #[default]
    Joint,
    /// One of the two (Palu).
    Separate,
}

/// How ranks are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KvRule {
    /// The same share of every latent's outputs.
    Uniform,
    /// Shares in proportion to the size of a projection's gradients, the same for all its groups (Palu's default).
    Fisher,
    /// The same for each group.
    FisherGroup,
    /// Least loss, estimated from input and gradient moments.
    #[default]
    Loss,
}

fn yes() -> bool {
    true
}
fn default_input_ridge() -> f64 {
    1e-3
}
fn default_output_ridge() -> f64 {
    0.1
}
fn eight() -> usize {
    8
}

pub(super) const ENTRY: Entry = Entry {
    name: "kv_low_rank",
    summary: "keys and values rebuilt from low-rank latents, which the KV cache stores (Palu)",
    has_keep: true,
    build: |table| {
        let settings: KvLowRankSettings = factor::settings(table)?;
        Ok(Box::new(settings.checked()?) as Box<dyn Pass>)
    },
    schema: |generator| generator.subschema_for::<KvLowRankSettings>(),
};

/// One latent of a layer: what is rebuilt from it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slice {
    /// Places of the projections among the site's: key, value or both.
    members: Vec<usize>,
    /// Rows of each of them.
    rows: Range<usize>,
}

impl Slice {
    /// Numbers that the dense cache has of it for a token.
    fn out(&self) -> usize {
        self.members.len() * self.rows.len()
    }
}

/// The places of keys and values among the projections of [`Site::Qkv`].
const KEYS: usize = 1;
const VALUES: usize = 2;

impl KvLowRankSettings {
    fn checked(self) -> std::result::Result<Self, String> {
        factor::check_keep(self.keep)?;
        factor::check_ridges([
            ("input_ridge", self.input_ridge),
            ("output_ridge", self.output_ridge),
        ])?;
        factor::check_steps([
            ("rank_floor", self.rank_floor),
            ("rank_step", self.rank_step),
        ])?;
        if self.reorder_heads && self.group_heads < 2 {
            return Err(format!(
                "`reorder_heads` is for groups of several heads, and `group_heads` is {}",
                match self.group_heads {
                    0 => "0: all heads share a latent".into(),
                    heads => heads.to_string(),
                }
            ));
        }
        if self.residual_window > 0 && !self.cache.is_packed() {
            return Err(format!(
                "`residual_window` is {}, which is for packed caches (`cache` = \"q8\", \"q4\", \"q3\" or \"q2\"), and \
                 `cache` is \"{}\"",
                self.residual_window, self.cache
            ));
        }
        match self.rule == KvRule::Loss && !self.two_sided {
            // frontier.md §10: without gradients, losses of different layers can not be compared.
            true => Err("`rule = \"loss\"` needs `two_sided = true`".into()),
            false => Ok(self),
        }
    }

    /// The latents of a layer, in their order: those of the key groups and then those of the value groups, or the joint ones.
    fn slices(&self, kv_heads: usize, head_dim: usize) -> Vec<Slice> {
        let size = match self.group_heads {
            0 => kv_heads,
            heads => heads.min(kv_heads),
        };
        let of = |members: &[usize]| {
            let members = members.to_vec();
            (0..kv_heads).step_by(size.max(1)).map(move |first| Slice {
                members: members.clone(),
                rows: first * head_dim..(first + size).min(kv_heads) * head_dim,
            })
        };
        match self.latent {
            Latent::Joint => of(&[KEYS, VALUES]).collect(),
            Latent::Separate => of(&[KEYS]).chain(of(&[VALUES])).collect(),
        }
    }
}

impl Pass for KvLowRankSettings {
    fn settings(&self) -> Value {
        factor::with_name("kv_low_rank", self)
    }

    fn needs(&self) -> Needs {
        match self.two_sided || matches!(self.rule, KvRule::Fisher | KvRule::FisherGroup) {
            true => Needs::Gradients,
            false => Needs::Inputs,
        }
    }

    fn takes(&self) -> Takes {
        Takes::Dense
    }

    fn projections(&self) -> Vec<&'static str> {
        Site::Qkv.projections()[KEYS..].to_vec()
    }

    fn cache_format(&self) -> Option<CacheFormat> {
        Some(self.cache)
    }

    fn residual_window(&self) -> usize {
        self.residual_window
    }

    fn moves_heads(&self) -> bool {
        self.reorder_heads
    }

    /// Every latent value is a row of a basis and a column of expansions.
    fn budget(&self, config: &ModelConfig) -> u64 {
        let slices = self.slices(config.kv_heads, config.head_dim);
        let widest = slices.iter().map(Slice::out).max().unwrap_or(0);
        let dense = dense_scalars(config, &self.projections()) / config.hidden_size.max(1) as u64;
        (self.keep * dense as f64) as u64 * (config.hidden_size + widest) as u64
    }

    fn analyse(
        &self,
        config: &ModelConfig,
        layer: usize,
        known: Option<(&DecoderLayer, &dyn Moments)>,
    ) -> Result<Analysis> {
        analysis::analyse(self, config, layer, known)
    }

    fn plans_from_shapes(&self) -> bool {
        self.rule == KvRule::Uniform
    }

    fn plan(&self, analyses: &[Analysis]) -> Result<Plan> {
        analysis::plan(self, analyses)
    }

    fn apply(&self, work: SiteWork<'_>, block: &mut DecoderLayer) -> Result<Vec<SiteRecord>> {
        apply::apply(self, work, block)
    }
}
