//! The passes: one file each, one line in [`REGISTRY`].

mod factor;
mod frontier;
mod identity_block;
mod kv_low_rank;
mod low_rank;
mod skipcat;
mod substitute;
mod work;

use cinder_models::cache::CacheFormat;
use cinder_models::checkpoint::{Frame, HeadRecord, SiteRecord};
use cinder_models::ops::LowBit;
use cinder_models::projection::BlockLinear;
use cinder_models::{DecoderLayer, ModelConfig, Site};
use serde_json::Value;

use crate::allocation::Matrix;
use crate::calibration::Moments;
use crate::error::{Error, Result};

pub(crate) use factor::project;
pub use factor::{
    AlternativePlan, Analysis, FactoredSite, Fallback, Losses, SiteFactoring, UnitPlan,
};
pub use frontier::FrontierSettings;
pub use identity_block::IdentityBlockSettings;
pub use kv_low_rank::KvLowRankSettings;
pub use low_rank::LowRankSettings;
pub use skipcat::SkipCatSettings;
pub use substitute::{Override, SubstitutePass};
pub use work::SiteWork;

/// What a pass has to know of the calibration text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Nothing: the weights are enough.
    Nothing,
    /// The second moment of each site's inputs.
    Inputs,
    /// That, and the second moment of each projection's output gradient.
    Gradients,
}

/// The form in which a pass takes projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Plain matrices.
    Dense,
    /// Factors with a plain basis.
    LowRank,
}

/// One transformation of the decoder.
///
/// The pipeline calls the methods in their order here: for each layer `analyse`, then `plan` once with what all
/// layers' analyses said, then for each layer and each of its sites, in the order data flows, `apply`.
pub trait Pass: Send + Sync {
    /// The settings with every default filled in, as they go into the manifest.
    fn settings(&self) -> Value;

    /// The name that recipes use.
    fn name(&self) -> String {
        let settings = self.settings();
        settings["pass"].as_str().unwrap_or_default().to_owned()
    }

    /// What has to be collected for it.
    fn needs(&self) -> Needs;

    /// What it expects of the model; other models are refused.
    fn takes(&self) -> Takes;

    /// The projections it works on; no other pass of the recipe may.
    fn projections(&self) -> Vec<&'static str>;

    /// Leaves projections to another pass, where it can do without them.
    fn leave(&mut self, _projections: &[&'static str]) {}

    /// How the latents that it makes of keys and values are cached; none where it makes none.
    fn cache_format(&self) -> Option<CacheFormat> {
        None
    }

    /// Whether the cache keeps the latent of the basis that it makes query, key and value share.
    fn caches_shared_basis(&self) -> bool {
        false
    }

    /// Tokens of the residual window of that cache; 0 where there is none.
    fn residual_window(&self) -> usize {
        0
    }

    /// Bits of a code and inputs that share a scale, where it stores a projection as low-bit codes.
    fn low_bit(&self, _projection: &str) -> Option<LowBit> {
        None
    }

    /// The same of the output head, where it stores that as codes; none leaves the head to other passes.
    fn head_format(&self) -> Option<LowBit> {
        None
    }

    /// The output head that it stores, of the dense model's frame; none where it leaves the head alone.
    ///
    /// # Errors
    /// When the head has values that codes can not stand for.
    fn head(&self, _frame: &Frame) -> Result<Option<(BlockLinear, HeadRecord)>> {
        Ok(None)
    }

    /// Whether it changes the order of heads, and with it rows of `q` and columns of `o`.
    fn moves_heads(&self) -> bool {
        false
    }

    /// The most scalars that its projections may store.
    fn budget(&self, config: &ModelConfig) -> u64 {
        dense_scalars(config, &self.projections())
    }

    /// What one layer's projections may become and what that would lose. Without moments only shapes are known, which is
    /// enough for some rules.
    ///
    /// # Errors
    /// When the numerics fail, or the moments can not be read.
    fn analyse(
        &self,
        config: &ModelConfig,
        layer: usize,
        known: Option<(&DecoderLayer, &dyn Moments)>,
    ) -> Result<Analysis>;

    /// Whether the plan follows from shapes alone.
    fn plans_from_shapes(&self) -> bool;

    /// SHA-256 of the model that something in its settings was measured on; none where they fit any model.
    fn measured_on(&self) -> Option<&str> {
        None
    }

    /// What becomes of each layer, from all layers' analyses.
    ///
    /// # Errors
    /// When the settings can not be met on this model.
    fn plan(&self, analyses: &[Analysis]) -> Result<Plan>;

    /// Compresses the pass's projections of one site of `block`, the layer as other sites and passes have left it.
    ///
    /// # Errors
    /// When a projection is not in the form the pass takes, or the numerics fail.
    fn apply(&self, work: SiteWork<'_>, block: &mut DecoderLayer) -> Result<Vec<SiteRecord>>;
}

/// One matrix that is stored, or a stack of them: a projection, the projections that share a basis, or the heads of one
/// latent.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedUnit {
    /// Where it is.
    pub site: Site,
    /// Indices among the site's projections; more than one share a basis or a latent.
    pub members: Vec<usize>,
    /// Its shape.
    pub matrix: Matrix,
    /// None leaves it dense.
    pub rank: Option<usize>,
    /// What the allocator expects it to add to the loss, where it knows.
    pub predicted_loss: Option<f64>,
}

impl PlannedUnit {
    /// Scalars it will store.
    pub fn scalars(&self) -> u64 {
        self.matrix.stored(self.rank)
    }
}

/// What becomes of one layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerPlan {
    /// Which, from 0.
    pub layer: usize,
    /// The feed-forward neurons that are kept, ascending; none keeps all.
    pub neurons: Option<Vec<usize>>,
    /// What removing the others is expected to add to the loss.
    pub removal_loss: Option<f64>,
    /// What is stored, site by site.
    pub units: Vec<PlannedUnit>,
    /// What the analysis had to do differently for numerical reasons.
    pub fallbacks: Vec<Fallback>,
}

/// What a pass will do to the whole model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// All of them, in order.
    pub layers: Vec<LayerPlan>,
}

impl Plan {
    /// Scalars the touched projections will store.
    pub fn scalars(&self) -> u64 {
        let units = self.layers.iter().flat_map(|l| &l.units);
        units.map(PlannedUnit::scalars).sum()
    }
}

/// Gives each projection one owner: keys and values are factored once, so where a pass makes latents of them the others
/// leave them to it.
///
/// # Errors
/// [`Error::Setting`] naming a projection that two passes want.
pub fn share_out(passes: &mut [Box<dyn Pass>]) -> Result<()> {
    let latent = passes.iter().filter(|p| p.cache_format().is_some());
    let latent: Vec<&str> = latent.flat_map(|p| p.projections()).collect();
    for pass in passes.iter_mut().filter(|p| p.cache_format().is_none()) {
        pass.leave(&latent);
    }
    if passes.len() > 1 && passes.iter().any(|p| p.moves_heads()) {
        return Err(Error::Setting {
            what: "`reorder_heads`".into(),
            value: "true beside another pass".into(),
            range: "true in a recipe of one pass: it moves the rows of `q` and the columns of `o`"
                .into(),
            hint: "leave `reorder_heads` out, or compress twice",
        });
    }
    if passes.iter().filter_map(|p| p.head_format()).count() > 1 {
        return Err(Error::Setting {
            what: "the recipe".into(),
            value: "two passes with `head_bits`".into(),
            range: "one of them: there is one output head".into(),
            hint: "leave `head_bits` out of the others",
        });
    }
    let mut taken: Vec<&str> = Vec::new();
    for projection in passes.iter().flat_map(|p| p.projections()) {
        if taken.contains(&projection) {
            return Err(Error::Setting {
                what: "the recipe".into(),
                value: format!("factoring `{projection}` twice"),
                range: "one whose passes work on different projections".into(),
                hint: "give each site to one pass by its `sites`",
            });
        }
        taken.push(projection);
    }
    Ok(())
}

/// A cache of codes holds latents alone, so each layer needs one that is smaller than its keys and values.
///
/// # Errors
/// [`Error::Setting`] naming the first layer without one.
pub fn check_cached_basis(
    config: &ModelConfig,
    passes: &[Box<dyn Pass>],
    plans: &[Plan],
) -> Result<()> {
    let dense = 2 * config.kv_heads * config.head_dim;
    let small = |layer: &LayerPlan| {
        let shared = |unit: &&PlannedUnit| unit.site == Site::Qkv && unit.members.len() > 1;
        let unit = layer.units.iter().find(shared);
        unit.is_some_and(|unit| unit.rank.is_some_and(|rank| rank < dense))
    };
    for (pass, plan) in passes.iter().zip(plans) {
        let packed = pass.cache_format().filter(|format| format.is_packed());
        let Some(format) = packed.filter(|_| pass.caches_shared_basis()) else {
            continue;
        };
        if let Some(layer) = plan.layers.iter().find(|layer| !small(layer)) {
            return Err(Error::Setting {
                what: "`cache_latents`".into(),
                value: format.to_string(),
                range: format!(
                    "f32 or f16 here: the shared basis of layer {} is not smaller than the {dense} numbers of its keys and values",
                    layer.layer
                ),
                hint: "lower `keep`, or let the cache be f16",
            });
        }
    }
    Ok(())
}

/// Scalars of some projections of all layers when they are dense.
pub fn dense_scalars(config: &ModelConfig, projections: &[&str]) -> u64 {
    let scalars = projections.iter().map(|name| {
        let (out, input) = config.projection_shape(name);
        (out * input) as u64
    });
    scalars.sum::<u64>() * config.layers as u64
}

/// Whether a pass works on any projection of a site.
pub(crate) fn works_on(pass: &dyn Pass, site: Site) -> bool {
    let own = pass.projections();
    site.projections().iter().any(|name| own.contains(name))
}

/// How a pass is made from its table in a recipe.
type Build = fn(toml::Table) -> std::result::Result<Box<dyn Pass>, String>;

/// What recipes, help texts and the JSON schema know of a pass.
pub struct Entry {
    /// The name recipes use.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Whether it has a keep ratio for `--keep` to replace.
    pub has_keep: bool,
    pub(crate) build: Build,
    pub(crate) schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
}

/// One line per pass.
pub static REGISTRY: [Entry; 6] = [
    frontier::ENTRY,
    skipcat::ENTRY,
    low_rank::ENTRY,
    kv_low_rank::ENTRY,
    identity_block::ENTRY,
    substitute::ENTRY,
];
