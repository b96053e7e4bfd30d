//! What the factoring passes share: from statistics to plans to factored projections.
//!
//! `low_rank`, `skipcat` and `frontier` are three settings of one machine. [`analysis`] works out what each site may become
//! and what that would lose, an allocation rule decides, [`apply`] makes it so.

mod analysis;
mod apply;
mod install;
mod perturb;
mod plan;

use std::path::Path;
use std::sync::Arc;

use cinder_models::cache::CacheFormat;
use cinder_models::checkpoint::SiteRecord;
use cinder_models::{DecoderLayer, ModelConfig, Site};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Needs, Pass, Plan, SiteWork, Takes, dense_scalars};
use crate::allocation::{Ranks, SiteFactors};
use crate::calibration::Moments;
use crate::error::Result;

pub use analysis::{AlternativePlan, Analysis, Fallback, Losses, UnitPlan};
pub(super) use analysis::{NO_GRADIENT, raised, tails, weight};
pub(super) use apply::LEAST_WEIGHT;
pub(crate) use install::project;
pub(super) use install::{identity_block, shared_identity_block};
pub(super) use install::{linear, transposed};
pub use perturb::{FactoredSite, SiteFactoring};

/// The bound on identity blocks where a recipe gives none.
pub(super) const DEFAULT_GROWTH: f64 = 2.0;

/// How ranks are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// The same keep ratio for every matrix.
    #[default]
    Uniform,
    /// Every matrix loses a like share of its whitened energy.
    Energy,
    /// Keep ratios in proportion to the size of the weights' gradients (Palu).
    Fisher,
    /// Least loss, estimated from input and gradient moments.
    Loss,
}

/// What a site may become besides dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Structures {
    /// Each projection with factors of its own.
    pub separate: bool,
    /// One basis for the projections of a site.
    pub shared: bool,
    /// Fewer feed-forward neurons.
    pub pruned: bool,
    /// Fewer neurons, and factors of what remains.
    pub hybrid: bool,
}

impl Default for Structures {
    fn default() -> Self {
        Structures {
            separate: true,
            shared: false,
            pruned: false,
            hybrid: false,
        }
    }
}

/// A factoring pass with all its settings.
#[derive(Debug, Clone)]
pub(super) struct Factorization {
    /// As they go into the manifest.
    pub settings: Value,
    pub keep: f64,
    pub sites: Vec<Site>,
    /// Projections of those sites that another pass works on.
    pub left: Vec<&'static str>,
    /// The bound on identity blocks; none stores plain bases.
    pub identity: Option<f64>,
    pub structures: Structures,
    pub rule: Rule,
    /// Whether outputs are weighed by their gradients.
    pub two_sided: bool,
    pub input_ridge: f64,
    pub output_ridge: f64,
    pub ranks: Ranks,
    pub neuron_step: usize,
    pub neuron_sizes: usize,
    /// How the cache stores the latent of query, key and value; none where it keeps keys and values.
    pub cache: Option<CacheFormat>,
    /// What each site's losses are multiplied by; none where a site was not measured.
    pub measured: Option<Arc<SiteFactors>>,
}

impl Default for Factorization {
    fn default() -> Self {
        Factorization {
            settings: Value::Null,
            keep: 1.0,
            sites: Site::ALL.to_vec(),
            left: Vec::new(),
            identity: None,
            structures: Structures::default(),
            rule: Rule::Uniform,
            two_sided: false,
            input_ridge: 1e-6,
            output_ridge: 0.1,
            ranks: Ranks::ALL,
            neuron_step: 16,
            neuron_sizes: 12,
            cache: None,
            measured: None,
        }
    }
}

impl Factorization {
    /// Checks the settings that no type can hold.
    ///
    /// # Errors
    /// A sentence naming the setting.
    pub fn checked(self) -> std::result::Result<Self, String> {
        check_keep(self.keep)?;
        check_ridges([
            ("ridge", self.input_ridge),
            ("output_ridge", self.output_ridge),
        ])?;
        if self.sites.is_empty() {
            return Err(
                "`sites` is empty; it must name at least one of qkv, o, gate_up, down".into(),
            );
        }
        if let Some(growth) = self.identity {
            check_growth(growth)?;
        }
        check_steps([
            ("rank_floor", self.ranks.floor),
            ("rank_step", self.ranks.step),
            ("neuron_step", self.neuron_step),
        ])?;
        Ok(self)
    }

    /// Lets the losses be scaled by what a sensitivity file measured, where one is named, and notes its hash in the settings.
    ///
    /// # Errors
    /// A sentence when the file can not be used, or when nothing is decided by losses.
    pub fn scaled_by(mut self, file: Option<&Path>) -> std::result::Result<Self, String> {
        let Some(file) = file else { return Ok(self) };
        if self.rule != Rule::Loss {
            return Err(
                "`sensitivity` scales losses, which only `allocation = \"loss\"` goes by".into(),
            );
        }
        let factors = SiteFactors::read(file)?;
        if let Some(settings) = self.settings.as_object_mut() {
            settings.insert("sensitivity_sha256".into(), factors.sha256.clone().into());
        }
        self.measured = Some(Arc::new(factors));
        Ok(self)
    }

    /// What the losses of a site of a layer are multiplied by.
    fn factor(&self, layer: usize, site: Site) -> f64 {
        let measured = self.measured.as_ref();
        measured.map_or(1.0, |factors| factors.of(layer, site))
    }

    /// The places of a site's projections that are not left to another pass.
    fn members(&self, site: Site) -> impl Iterator<Item = usize> {
        let names = site.projections().iter().enumerate();
        names
            .filter(|(_, name)| !self.left.contains(name))
            .map(|(member, _)| member)
    }

    /// Whether the feed-forward of a layer is decided as a whole, its neurons among the choices.
    fn neurons(&self) -> bool {
        let both = self.sites.contains(&Site::GateUp) && self.sites.contains(&Site::Down);
        both && (self.structures.pruned || self.structures.hybrid)
    }
}

impl Pass for Factorization {
    fn settings(&self) -> Value {
        self.settings.clone()
    }

    fn needs(&self) -> Needs {
        match self.two_sided || self.rule == Rule::Fisher {
            true => Needs::Gradients,
            false => Needs::Inputs,
        }
    }

    fn takes(&self) -> Takes {
        Takes::Dense
    }

    fn projections(&self) -> Vec<&'static str> {
        let names = |site: &Site| {
            let names = site.projections();
            self.members(*site).map(|member| names[member])
        };
        self.sites.iter().flat_map(names).collect()
    }

    fn leave(&mut self, projections: &[&'static str]) {
        self.left.extend(projections);
    }

    fn cache_format(&self) -> Option<CacheFormat> {
        self.cache
    }

    fn caches_shared_basis(&self) -> bool {
        self.cache.is_some()
    }

    fn budget(&self, config: &ModelConfig) -> u64 {
        let dense = dense_scalars(config, &self.projections());
        (self.keep * dense as f64).floor() as u64
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
        self.rule == Rule::Uniform
    }

    fn measured_on(&self) -> Option<&str> {
        self.measured.as_ref().map(|m| m.model_sha256.as_str())
    }

    fn plan(&self, analyses: &[Analysis]) -> Result<Plan> {
        plan::plan(self, analyses)
    }

    fn apply(&self, work: SiteWork<'_>, block: &mut DecoderLayer) -> Result<Vec<SiteRecord>> {
        let (plan, dense) = (work.plan, work.dense);
        apply::apply(self, plan, work.site, dense, block, work.calibrated)
    }
}

/// A sentence about a setting that is out of its range.
fn within(what: &str, value: f64, ok: bool, range: &str) -> std::result::Result<(), String> {
    match ok {
        true => Ok(()),
        false => Err(format!("`{what}` is {value}; it must be {range}")),
    }
}

/// Checks a keep ratio.
pub(super) fn check_keep(keep: f64) -> std::result::Result<(), String> {
    let ok = keep > 0.0 && keep <= 1.0;
    within("keep", keep, ok, "above 0 and at most 1")
}

/// Checks ridges, by name.
pub(super) fn check_ridges<const N: usize>(
    ridges: [(&str, f64); N],
) -> std::result::Result<(), String> {
    ridges.into_iter().try_for_each(|(name, ridge)| {
        within(name, ridge, (0.0..=1.0).contains(&ridge), "between 0 and 1")
    })
}

/// Checks numbers that count, by name.
pub(super) fn check_steps<const N: usize>(
    steps: [(&str, usize); N],
) -> std::result::Result<(), String> {
    steps
        .into_iter()
        .try_for_each(|(name, step)| within(name, step as f64, step >= 1, "at least 1"))
}

/// Checks a bound on identity blocks.
pub(super) fn check_growth(growth: f64) -> std::result::Result<(), String> {
    let ok = (1.0..=1e6).contains(&growth);
    within("growth", growth, ok, "between 1 and a million")
}

/// Settings from a recipe's table.
pub(super) fn settings<S: DeserializeOwned>(table: toml::Table) -> std::result::Result<S, String> {
    S::deserialize(table).map_err(|e| e.message().to_owned())
}

/// Settings with the pass's name in front, as manifests have them.
pub(super) fn with_name(name: &str, settings: &impl Serialize) -> Value {
    let mut all = serde_json::Map::new();
    all.insert("pass".into(), name.into());
    if let Ok(Value::Object(settings)) = serde_json::to_value(settings) {
        all.extend(settings);
    }
    Value::Object(all)
}

pub(super) fn default_sites() -> Vec<String> {
    Site::ALL.iter().map(|s| s.name().to_owned()).collect()
}

/// Each site at most once, and at least one.
pub(super) fn sites_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {"enum": default_sites()},
        "minItems": 1,
        "uniqueItems": true,
    })
}

pub(super) fn parse_sites(names: &[String]) -> std::result::Result<Vec<Site>, String> {
    let site = |name: &String| {
        let found = Site::ALL.iter().find(|s| s.name() == name);
        found
            .copied()
            .ok_or_else(|| format!("a site is `{name}`; it must be qkv, o, gate_up or down"))
    };
    names.iter().map(site).collect()
}
