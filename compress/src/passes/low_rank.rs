//! # low_rank
//!
//! **What it does.** Replaces each projection `W` by `B A`, the best approximation of its rank on the inputs that
//! calibration saw: the truncated singular value decomposition of `W L`, where `L Lᵀ` is the input Gram.
//!
//! **When to use it.** As the plain baseline of the field, and where a simple pair of matrices is wanted. Below a keep
//! ratio of about 0.9 the shared-basis and two-sided methods keep more quality at the same size.
//!
//! **Cost.** One f64 Gram per site, one Cholesky per site and one singular value decomposition per projection:
//! about `out · in · min(out, in)` operations each.
//!
//! **Guarantees.** The stored scalars never exceed `floor(keep · dense)`, and fall short by less than one rank. A raised
//! ridge is recorded with the projection. Every factor is finite.
//!
//! **Reference.** Palu, arXiv 2407.21118, §3.2 and SVD-LLM, arXiv 2403.07378, §3.1 (whitening by the Cholesky factor
//! of the input Gram), with a relative ridge and triangular solves.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Tensor, TensorData};
use cinder_models::checkpoint::SiteRecord;
use cinder_models::projection::{LowRank, Projection};
use cinder_models::{DecoderLayer, ModelConfig, Site};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Pass, Plan, PlannedProjection};
use crate::allocation::{Matrix, uniform};
use crate::calibration::BlockStatistics;
use crate::error::{Error, Result};
use crate::linalg::{Factors, Whitening};

/// Settings of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRankSettings {
    /// Scalars kept of those the touched projections have, in (0, 1].
    pub keep: f64,
    /// Ridge added to each input Gram, relative to its mean diagonal.
    #[serde(default = "default_ridge")]
    pub ridge: f64,
    /// The sites to factor: `qkv`, `o`, `gate_up`, `down`.
    #[serde(default = "default_sites")]
    pub sites: Vec<String>,
}

fn default_ridge() -> f64 {
    1e-6
}

fn default_sites() -> Vec<String> {
    Site::ALL.iter().map(|s| s.name().to_owned()).collect()
}

/// The pass.
#[derive(Debug, Clone)]
pub struct LowRankPass {
    settings: LowRankSettings,
    sites: Vec<Site>,
}

/// The registry's constructor.
pub(super) fn build(table: toml::Table) -> std::result::Result<Box<dyn Pass>, String> {
    let settings = LowRankSettings::deserialize(table).map_err(|e| e.message().to_owned())?;
    Ok(Box::new(
        LowRankPass::new(settings).map_err(|e| e.to_string())?,
    ))
}

impl LowRankPass {
    /// # Errors
    /// [`Error::Setting`] for a value out of range or a site that does not exist.
    pub fn new(settings: LowRankSettings) -> Result<Self> {
        let wrong = |what: &str, value: String, range: &str| {
            Err(Error::Setting {
                what: what.into(),
                value,
                range: range.into(),
            })
        };
        if !(settings.keep > 0.0 && settings.keep <= 1.0) {
            return wrong("`keep`", settings.keep.to_string(), "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&settings.ridge) {
            return wrong("`ridge`", settings.ridge.to_string(), "between 0 and 1");
        }
        let mut sites = Vec::new();
        for name in &settings.sites {
            match Site::ALL.iter().find(|s| s.name() == name) {
                Some(site) => sites.push(*site),
                None => return wrong("a site", format!("`{name}`"), "qkv, o, gate_up or down"),
            }
        }
        Ok(LowRankPass { settings, sites })
    }

    /// The factors of one projection and their relative output error; none when it stays dense.
    fn factor(
        &self,
        planned: &PlannedProjection,
        linear: &Linear,
        statistics: &BlockStatistics,
        whitening: &Whitening,
    ) -> std::result::Result<Option<(Factors, f64)>, String> {
        let Some(rank) = planned.rank else {
            return Ok(None);
        };
        let weight = linear.weight.val().into_data().try_into_vec::<f32>();
        let weight = weight.map_err(|e| format!("the weight could not be read: {e:?}"))?;
        let svd = statistics.decomposition(
            (planned.site, planned.member),
            &weight,
            planned.out,
            (self.settings.ridge, whitening),
        )?;
        let factors = svd.truncate(rank, whitening);
        let finite = |v: &[f32]| v.iter().all(|x| x.is_finite());
        if !(finite(&factors.basis) && finite(&factors.expansion)) {
            return Err(format!(
                "the factors of `{}` are not finite",
                planned.name()
            ));
        }
        let error = svd.output_error(&weight, &factors, whitening);
        Ok(Some((factors, error)))
    }
}

impl Pass for LowRankPass {
    fn settings(&self) -> Value {
        serde_json::json!({
            "pass": "low_rank",
            "keep": self.settings.keep,
            "ridge": self.settings.ridge,
            "sites": self.settings.sites,
        })
    }

    fn plan(&self, config: &ModelConfig) -> Result<Plan> {
        let mut projections: Vec<PlannedProjection> = (0..config.layers)
            .flat_map(|layer| self.sites.iter().map(move |site| (layer, *site)))
            .flat_map(|(layer, site)| {
                site.projections()
                    .iter()
                    .enumerate()
                    .map(move |(member, name)| {
                        let (out, input) = config.projection_shape(name);
                        PlannedProjection {
                            layer,
                            site,
                            member,
                            out,
                            input,
                            rank: None,
                        }
                    })
            })
            .collect();
        let matrices: Vec<Matrix> = projections.iter().map(PlannedProjection::matrix).collect();
        for (p, rank) in projections
            .iter_mut()
            .zip(uniform(&matrices, self.settings.keep))
        {
            p.rank = rank;
        }
        let plan = Plan { projections };
        let dense: u64 = matrices.iter().map(|m| m.dense()).sum();
        let planned: u64 = plan
            .projections
            .iter()
            .map(PlannedProjection::scalars)
            .sum();
        if planned as f64 > self.settings.keep * dense as f64 {
            return Err(Error::Setting {
                what: "`keep`".into(),
                value: self.settings.keep.to_string(),
                range: format!(
                    "at least {:.4}, which is rank 1 everywhere",
                    planned as f64 / dense as f64
                ),
            });
        }
        Ok(plan)
    }

    fn apply(
        &self,
        plan: &Plan,
        layer: usize,
        mut block: DecoderLayer,
        statistics: &BlockStatistics,
    ) -> Result<(DecoderLayer, Vec<SiteRecord>)> {
        let mut records = Vec::new();
        for site in &self.sites {
            let planned: Vec<&PlannedProjection> = plan
                .projections
                .iter()
                .filter(|p| p.layer == layer && p.site == *site)
                .collect();
            if planned.iter().all(|p| p.rank.is_none()) {
                records.extend(planned.iter().map(|p| untouched(p)));
                continue;
            }
            let numerical = |why| Error::Numerical {
                layer,
                site: site.name().into(),
                why,
            };
            let ridge = self.settings.ridge;
            let whitening = statistics.whitening(*site, ridge).map_err(numerical)?;
            let linears = planned
                .iter()
                .zip(block.site(*site))
                .map(|(p, projection)| dense(p, projection))
                .collect::<Result<Vec<Linear>>>()?;
            // The decompositions of a site are independent, and uneven in size.
            let solved: Vec<_> = planned
                .par_iter()
                .zip(&linears)
                .map(|(p, linear)| self.factor(p, linear, statistics, &whitening))
                .collect();
            let places = block.site_mut(*site).into_iter().zip(linears);
            for ((p, solved), (place, linear)) in planned.iter().zip(solved).zip(places) {
                match solved.map_err(numerical)? {
                    None => records.push(untouched(p)),
                    Some((factors, error)) => {
                        records.push(record(p, error, &whitening, ridge));
                        *place = low_rank(p, factors, &linear);
                    }
                }
            }
        }
        Ok((block, records))
    }
}

/// The linear map of a projection that is still dense.
fn dense(planned: &PlannedProjection, projection: &Projection) -> Result<Linear> {
    match projection {
        Projection::Dense(linear) => Ok(linear.clone()),
        other => Err(Error::NotDense {
            layer: planned.layer,
            projection: planned.name().into(),
            kind: other.kind().into(),
        }),
    }
}

/// The factored projection; the bias moves to the expansion.
fn low_rank(planned: &PlannedProjection, factors: Factors, linear: &Linear) -> Projection {
    let device = linear.weight.val().device();
    let tensor =
        |values, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(values, shape), &device);
    let basis = tensor(factors.basis, [planned.input, factors.rank]);
    let expansion = tensor(factors.expansion, [factors.rank, planned.out]);
    let bias = linear.bias.as_ref().map(Param::val);
    Projection::LowRank(LowRank::new(basis, expansion, bias))
}

fn untouched(planned: &PlannedProjection) -> SiteRecord {
    SiteRecord {
        layer: planned.layer,
        site: planned.site.name().into(),
        projection: planned.name().into(),
        kind: "dense".into(),
        shape: [planned.out, planned.input],
        rank: None,
        keep_ratio: 1.0,
        error: 0.0,
        scalars: planned.matrix().dense(),
        ..SiteRecord::default()
    }
}

fn record(
    planned: &PlannedProjection,
    error: f64,
    whitening: &Whitening,
    asked: f64,
) -> SiteRecord {
    let dense = planned.matrix().dense() as f64;
    SiteRecord {
        kind: "low-rank".into(),
        rank: planned.rank,
        scalars: planned.scalars(),
        keep_ratio: planned.scalars() as f64 / dense,
        error,
        condition: Some(whitening.condition),
        fallback: whitening
            .raised
            .then(|| format!("ridge raised from {asked:e} to {:e}", whitening.ridge)),
        ..untouched(planned)
    }
}
