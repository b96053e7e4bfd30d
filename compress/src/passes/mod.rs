//! The passes: one file each, one line in [`REGISTRY`].

mod low_rank;

use std::collections::BTreeSet;

use cinder_models::checkpoint::SiteRecord;
use cinder_models::{Checkpoint, DecoderLayer, ModelConfig, Site};
use serde_json::Value;

use crate::allocation::Matrix;
use crate::calibration::BlockStatistics;
use crate::error::{Error, Result};

pub use low_rank::{LowRankPass, LowRankSettings};

/// One transformation of the decoder, block by block.
pub trait Pass: Send + Sync {
    /// The settings with every default filled in, as they go into the manifest.
    fn settings(&self) -> Value;

    /// What the pass will make of each projection it touches, from shapes alone.
    ///
    /// # Errors
    /// When the settings can not be met on this model.
    fn plan(&self, config: &ModelConfig) -> Result<Plan>;

    /// Applies the plan to one block.
    ///
    /// # Errors
    /// When a projection is not in the form the pass takes, or the numerics fail.
    fn apply(
        &self,
        plan: &Plan,
        layer: usize,
        block: DecoderLayer,
        statistics: &BlockStatistics,
    ) -> Result<(DecoderLayer, Vec<SiteRecord>)>;
}

/// One projection's place in a plan.
#[derive(Debug, Clone)]
pub struct PlannedProjection {
    pub layer: usize,
    pub site: Site,
    /// Index among the site's projections.
    pub member: usize,
    pub out: usize,
    pub input: usize,
    /// None leaves it dense.
    pub rank: Option<usize>,
}

impl PlannedProjection {
    /// `q`, `k`, `v`, `o`, `gate`, `up` or `down`.
    pub fn name(&self) -> &'static str {
        self.site.projections()[self.member]
    }

    /// Scalars it will store.
    pub fn scalars(&self) -> u64 {
        self.matrix().stored(self.rank)
    }

    /// Its shape, as allocation counts it.
    pub fn matrix(&self) -> Matrix {
        Matrix {
            out: self.out,
            input: self.input,
        }
    }
}

/// What a pass will do to the whole model.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub projections: Vec<PlannedProjection>,
}

/// Refuses a model that is factored already: plans and keep ratios are those of the dense model.
///
/// # Errors
/// [`Error::NotDense`] naming the first projection that is not.
pub fn require_dense(checkpoint: &Checkpoint) -> Result<()> {
    match checkpoint.projections().iter().find(|p| p.rank.is_some()) {
        None => Ok(()),
        Some(p) => Err(Error::NotDense {
            layer: p.layer,
            projection: p.projection.into(),
            kind: p.kind.into(),
        }),
    }
}

/// Plans every pass of a recipe.
///
/// # Errors
/// When a pass can not be planned, or two passes want the same projection.
pub fn plan_all(passes: &[Box<dyn Pass>], config: &ModelConfig) -> Result<Vec<Plan>> {
    let plans = passes
        .iter()
        .map(|pass| pass.plan(config))
        .collect::<Result<Vec<Plan>>>()?;
    let mut taken = BTreeSet::new();
    for p in plans.iter().flat_map(|plan| &plan.projections) {
        if !taken.insert((p.layer, p.name())) {
            return Err(Error::Setting {
                what: "the recipe".into(),
                value: format!("factoring `{}` of layer {} twice", p.name(), p.layer),
                range: "one whose passes touch different sites".into(),
            });
        }
    }
    Ok(plans)
}

/// Scalars of the decoder projections before and after `plans`; projections in no plan stay dense.
pub fn projection_scalars(config: &ModelConfig, plans: &[Plan]) -> (u64, u64) {
    let before = config.dense_projection_scalars();
    let planned = || plans.iter().flat_map(|p| &p.projections);
    let touched: u64 = planned().map(|p| p.matrix().dense()).sum();
    let stored: u64 = planned().map(PlannedProjection::scalars).sum();
    (before, before - touched + stored)
}

/// How a pass is built from its table in a recipe; the keep ratio of the command line, if any, replaces the table's.
type Build = fn(toml::Table) -> std::result::Result<Box<dyn Pass>, String>;

/// One line per pass: the name recipes use, what it does in one line, and its constructor.
pub static REGISTRY: [(&str, &str, Build); 1] = [(
    "low_rank",
    "activation-whitened low-rank factorization of every projection at one keep ratio",
    low_rank::build,
)];
