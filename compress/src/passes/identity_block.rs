//! # identity_block
//!
//! **What it does.** Stores the factors of a model that is low-rank already with an identity block in each basis: exactly
//! the same products, in `r (m + n - r)` scalars instead of `r (m + n)`.
//!
//! **When to use it.** On any low-rank checkpoint, whoever made it: it costs nothing but rounding.
//!
//! **Cost.** One QR and one QR with column pivoting per projection; no calibration text.
//!
//! **Guarantees.** No entry of an identity block exceeds `growth`. Projections that are not low-rank stay as they are.
//!
//! **Reference.** SkipCat, arXiv 2512.13494; low-rank.md §2.4.

use cinder_models::checkpoint::SiteRecord;
use cinder_models::projection::Basis;
use cinder_models::{DecoderLayer, ModelConfig, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::factor::{self, Analysis, DEFAULT_GROWTH};
use super::{Entry, LayerPlan, Needs, Pass, Plan, SiteWork, Takes};
use crate::calibration::Moments;
use crate::error::Result;

/// Settings of `identity_block`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityBlockSettings {
    /// The most an entry of an identity block may be; at least 1.
    #[serde(default = "default_growth")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub growth: f64,
}

fn default_growth() -> f64 {
    DEFAULT_GROWTH
}

pub(super) const ENTRY: Entry = Entry {
    name: "identity_block",
    summary: "the same products of a low-rank model in fewer scalars (lossless)",
    has_keep: false,
    build: |table| {
        let settings: IdentityBlockSettings = factor::settings(table)?;
        factor::check_growth(settings.growth)?;
        Ok(Box::new(settings) as Box<dyn Pass>)
    },
    schema: |generator| generator.subschema_for::<IdentityBlockSettings>(),
};

impl Pass for IdentityBlockSettings {
    fn settings(&self) -> Value {
        factor::with_name("identity_block", self)
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn takes(&self) -> Takes {
        Takes::LowRank
    }

    fn projections(&self) -> Vec<&'static str> {
        Site::ALL
            .iter()
            .flat_map(|s| s.projections())
            .copied()
            .collect()
    }

    fn analyse(
        &self,
        _config: &ModelConfig,
        layer: usize,
        _known: Option<(&DecoderLayer, &dyn Moments)>,
    ) -> Result<Analysis> {
        Ok(Analysis {
            layer,
            ..Analysis::default()
        })
    }

    fn plans_from_shapes(&self) -> bool {
        true
    }

    /// Empty: what is stored now and then follows from the checkpoint's own ranks.
    fn plan(&self, analyses: &[Analysis]) -> Result<Plan> {
        let layer = |a: &Analysis| LayerPlan {
            layer: a.layer,
            ..LayerPlan::default()
        };
        Ok(Plan {
            layers: analyses.iter().map(layer).collect(),
        })
    }

    fn apply(&self, work: SiteWork<'_>, block: &mut DecoderLayer) -> Result<Vec<SiteRecord>> {
        let (site, numerical) = (work.site, |why| work.numerical(why));
        let mut shared = None;
        if let Some(group) = block.group_mut(site).filter(|g| g.basis.is_some()) {
            let converted = factor::shared_identity_block(group, self.growth);
            let mut growth = None;
            if let Some((made, g)) = converted.map_err(numerical)? {
                *group = made;
                growth = Some(g);
            }
            shared = group.basis.as_ref().map(|basis| Shared {
                input: basis.input(),
                scalars: basis.scalars(),
                identity: matches!(basis, Basis::Identity(_)),
                growth,
            });
        }
        let mut records = Vec::new();
        for (member, projection) in block.site_mut(site).into_iter().enumerate() {
            // The dense map's: the layer's own may have fewer neurons.
            let name = site.projections()[member];
            let (out, input) = work.config.projection_shape(name);
            let mut record = work.record(name, [out, input]);
            if let Some(shared) = &shared {
                let (own_out, rank) = projection.shape();
                let own = [own_out, shared.input];
                record.neurons = neurons(site, own, record.shape);
                record.kind = match shared.identity {
                    true => "shared-identity-block".into(),
                    false => "shared-basis".into(),
                };
                record.rank = Some(rank);
                // What is shared is counted with the first.
                record.scalars =
                    projection.scalars() + if member == 0 { shared.scalars } else { 0 };
                record.growth = shared.growth;
            } else {
                let converted = factor::identity_block(projection, self.growth);
                if let Some((made, growth)) = converted.map_err(numerical)? {
                    *projection = made;
                    record.growth = Some(growth);
                }
                let own: [usize; 2] = projection.shape().into();
                record.neurons = neurons(site, own, record.shape);
                record.kind = match (projection.rank(), record.neurons) {
                    (None, Some(_)) => "pruned".into(),
                    _ => projection.kind().into(),
                };
                record.rank = projection.rank();
                record.scalars = projection.scalars();
            }
            record.keep_ratio = record.scalars as f64 / (out * input) as f64;
            records.push(record);
        }
        Ok(records)
    }
}

/// How many neurons a projection of `own` shape has, where those are not all.
fn neurons(site: Site, own: [usize; 2], full: [usize; 2]) -> Option<usize> {
    match site {
        Site::Qkv | Site::O => None,
        Site::GateUp => (own[0] != full[0]).then_some(own[0]),
        Site::Down => (own[1] != full[1]).then_some(own[1]),
    }
}

/// A basis that projections share, as it is stored now.
struct Shared {
    input: usize,
    scalars: u64,
    identity: bool,
    growth: Option<f64>,
}
