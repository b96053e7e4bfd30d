//! # frontier
//!
//! **What it does.** Chooses for every site the structure and the size that lose least for the model's whole budget:
//! separate factors or a shared basis, both with identity blocks; for the feed-forward also fewer neurons, or fewer
//! neurons and factors of what remains; or dense. A size's loss is the second-order estimate of what the training loss
//! gains, from the second moments of inputs and of output gradients; structure and size are chosen at one multiplier.
//!
//! **When to use it.** By default: it keeps more quality than any other pass at every size.
//!
//! **Cost.** Two moments per site and projection (a forward and a backward pass over the calibration windows), some
//! fifty eigenvalue problems and one elimination of neurons per layer, and one decomposition per factored matrix.
//!
//! **Guarantees.** The stored scalars never exceed `floor(keep · dense)`, and fall short by less than the smallest next step. No entry
//! of an identity block weighs more than `growth` times its pivot. Raised ridges are recorded. Every tensor is finite.
//!
//! **Reference.** frontier.md §10 (our own measurements and algorithm). Its parts: K-FAC metrics (Martens and Grosse
//! 2015, arXiv 1503.05671; KFAC-SVD), identity block and shared basis (SkipCat, arXiv 2512.13494), removal of neurons with
//! closed-form refit (Hassibi and Stork 1993; MoDeGPT, arXiv 2408.09632), Lagrangian allocation.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::factor::{DEFAULT_GROWTH, Factorization, Rule, Structures, default_sites};
use super::{Entry, Pass};
use crate::allocation::Ranks;

/// Settings of `frontier`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FrontierSettings {
    /// Scalars kept of those the touched projections have, in (0, 1].
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub keep: f64,
    /// The sites to compress: `qkv`, `o`, `gate_up`, `down`.
    #[serde(default = "default_sites")]
    #[schemars(schema_with = "super::factor::sites_schema")]
    pub sites: Vec<String>,
    /// What a site may become besides dense.
    #[serde(default)]
    pub structures: FrontierStructures,
    /// Ridge added to each input moment, relative to its mean diagonal.
    #[serde(default = "default_input_ridge")]
    #[schemars(range(min = 0, max = 1))]
    pub input_ridge: f64,
    /// Ridge added to each gradient moment, relative to its mean diagonal.
    #[serde(default = "default_output_ridge")]
    #[schemars(range(min = 0, max = 1))]
    pub output_ridge: f64,
    /// The most an entry of an identity block may weigh against its pivot, inputs scaled by their size; at least 1.
    #[serde(default = "default_growth")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub growth: f64,
    /// The smallest rank.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub rank_floor: usize,
    /// Ranks are multiples of this.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub rank_step: usize,
    /// Neurons are removed in groups of this size.
    #[serde(default = "default_neuron_step")]
    #[schemars(range(min = 1))]
    pub neuron_step: usize,
    /// Numbers of neurons at which factors of the remaining ones are tried too, between all and a quarter.
    #[serde(default = "default_neuron_sizes")]
    pub neuron_sizes: usize,
    /// A file of `cinder sensitivity` for this model: each site's losses are scaled by the divergence that was measured there,
    /// over the loss that was predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<PathBuf>,
}

/// The structures `frontier` may choose from; separate factors and dense are always among them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FrontierStructures {
    /// Bases with an identity block.
    pub identity: bool,
    /// One basis for q, k and v, and one for gate and up.
    pub shared: bool,
    /// Fewer feed-forward neurons; where both `gate_up` and `down` are among the sites.
    pub pruned: bool,
    /// Fewer neurons, and factors of what remains.
    pub hybrid: bool,
}

impl Default for FrontierStructures {
    fn default() -> Self {
        FrontierStructures {
            identity: true,
            shared: true,
            pruned: true,
            hybrid: true,
        }
    }
}

fn default_input_ridge() -> f64 {
    1e-3
}
fn default_output_ridge() -> f64 {
    0.1
}
fn default_growth() -> f64 {
    DEFAULT_GROWTH
}
fn one() -> usize {
    1
}
fn default_neuron_step() -> usize {
    16
}
fn default_neuron_sizes() -> usize {
    12
}

pub(super) const ENTRY: Entry = Entry {
    name: "frontier",
    summary: "the structure and size of every site that lose least for the whole budget (default)",
    has_keep: true,
    build: |table| {
        Ok(
            Box::new(FrontierSettings::factorization(super::factor::settings(
                table,
            )?)?) as Box<dyn Pass>,
        )
    },
    schema: |generator| generator.subschema_for::<FrontierSettings>(),
};

impl FrontierSettings {
    fn factorization(self) -> Result<Factorization, String> {
        let settings = super::factor::with_name("frontier", &self);
        let structures = &self.structures;
        let factorization = Factorization {
            settings,
            keep: self.keep,
            sites: super::factor::parse_sites(&self.sites)?,
            identity: structures.identity.then_some(self.growth),
            structures: Structures {
                separate: true,
                shared: structures.shared,
                pruned: structures.pruned,
                hybrid: structures.hybrid,
            },
            rule: Rule::Loss,
            two_sided: true,
            input_ridge: self.input_ridge,
            output_ridge: self.output_ridge,
            ranks: Ranks {
                floor: self.rank_floor,
                step: self.rank_step,
            },
            neuron_step: self.neuron_step,
            neuron_sizes: self.neuron_sizes,
            ..Factorization::default()
        };
        let measured = self.sensitivity.as_deref();
        factorization.checked()?.scaled_by(measured)
    }
}
