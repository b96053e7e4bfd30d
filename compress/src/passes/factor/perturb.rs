//! One site factored alone, the others dense: what a measurement of sensitivity does to a model.

use cinder_models::{DecoderLayer, ModelConfig, Site};

use super::{DEFAULT_GROWTH, Factorization, Rule, analysis, apply, plan};
use crate::calibration::{Moments, SiteInputs};
use crate::error::{Error, Result};
use crate::passes::{LayerPlan, Needs, Pass};

/// Factors of one site at a time, at one keep ratio, each projection with its own.
#[derive(Debug, Clone)]
pub struct SiteFactoring(Factorization);

/// A layer with one of its sites factored.
#[derive(Debug)]
pub struct FactoredSite {
    /// The layer.
    pub block: DecoderLayer,
    /// Scalars that the site stores.
    pub stored: u64,
    /// What the second-order estimate expects it to add to the loss, in nats per token; none where it is not weighed by gradients.
    pub predicted_loss: Option<f64>,
    /// Largest relative output error of the site's projections.
    pub error: f64,
}

impl SiteFactoring {
    /// As `frontier` factors: weighed by the moments of inputs and gradients, bases with identity blocks.
    ///
    /// # Errors
    /// [`Error::Setting`] for a keep ratio out of range.
    pub fn frontier(keep: f64) -> Result<Self> {
        Self::checked(Factorization {
            keep,
            identity: Some(DEFAULT_GROWTH),
            rule: Rule::Loss,
            two_sided: true,
            input_ridge: 1e-3,
            ..Factorization::default()
        })
    }

    /// As `low_rank` factors by default: weighed by the moments of inputs.
    ///
    /// # Errors
    /// [`Error::Setting`] for a keep ratio out of range.
    pub fn low_rank(keep: f64) -> Result<Self> {
        Self::checked(Factorization {
            keep,
            ..Factorization::default()
        })
    }

    fn checked(factorization: Factorization) -> Result<Self> {
        let keep = factorization.keep;
        factorization
            .checked()
            .map(SiteFactoring)
            .map_err(|_| Error::Setting {
                what: "`keep`".into(),
                value: keep.to_string(),
                range: "above 0 and at most 1".into(),
                hint: "try 0.5",
            })
    }

    /// What it has to know of the calibration text.
    pub fn needs(&self) -> Needs {
        self.0.needs()
    }

    /// The sizes of all sites of a layer, each as if it were the only one.
    ///
    /// # Errors
    /// When the numerics fail, or the moments can not be read.
    pub fn plan(
        &self,
        config: &ModelConfig,
        layer: usize,
        dense: &DecoderLayer,
        moments: &dyn Moments,
    ) -> Result<LayerPlan> {
        let known = (!self.0.plans_from_shapes()).then_some((dense, moments));
        let analysis = analysis::analyse(&self.0, config, layer, known)?;
        Ok(plan::layer_at_keep(&self.0, &analysis))
    }

    /// The layer with one site factored as planned.
    ///
    /// # Errors
    /// When a projection is not dense, or the numerics fail.
    pub fn apply(
        &self,
        plan: &LayerPlan,
        site: Site,
        dense: &DecoderLayer,
        moments: &dyn Moments,
    ) -> Result<FactoredSite> {
        let mut block = dense.clone();
        let inputs = SiteInputs {
            gram: moments.input(site)?,
            targets: None,
        };
        let calibrated = Some((&inputs, moments));
        let records = apply::apply(&self.0, plan, site, dense, &mut block, calibrated)?;
        let predicted: Option<Vec<f64>> = records.iter().map(|r| r.predicted_loss).collect();
        Ok(FactoredSite {
            block,
            stored: records.iter().map(|r| r.scalars).sum(),
            predicted_loss: predicted.map(|losses| losses.iter().sum()),
            error: records.iter().map(|r| r.error).fold(0.0, f64::max),
        })
    }
}
