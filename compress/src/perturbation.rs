//! One site compressed, all others dense: what is done to a model to see how much each site matters.

use burn::tensor::Device;
use cinder_models::ops::BlockFormat;
use cinder_models::projection::{BlockLinear, Projection};
use cinder_models::{Checkpoint, DecoderLayer, Precision, Site};

use crate::calibration::Statistics;
use crate::error::{Error, Result};
use crate::passes::{FactoredSite, LayerPlan, Needs, SiteFactoring};

/// What is done to one site at a time.
#[derive(Debug, Clone)]
pub enum Perturbation {
    /// Factors.
    Factored(Box<SiteFactoring>),
    /// Weights rounded to 8 or 4 bits.
    Rounded(Precision),
}

impl Perturbation {
    /// What it has to know of a calibration text.
    pub fn needs(&self) -> Needs {
        match self {
            Perturbation::Factored(factoring) => factoring.needs(),
            Perturbation::Rounded(_) => Needs::Nothing,
        }
    }

    /// Gets ready for one layer; `statistics` are there where [`Perturbation::needs`] asks for any.
    ///
    /// # Errors
    /// When the layer can not be read, or the numerics fail.
    pub fn layer<'a>(
        &'a self,
        checkpoint: &Checkpoint,
        statistics: Option<&'a Statistics>,
        layer: usize,
        device: &Device,
    ) -> Result<PerturbedLayer<'a>> {
        let dense = checkpoint.load_layer(layer, Precision::F32, device)?;
        let plan = match (self, statistics) {
            (Perturbation::Factored(factoring), Some(statistics)) => {
                let moments = statistics.layer(layer);
                Some(factoring.plan(checkpoint.config(), layer, &dense, &moments)?)
            }
            _ => None,
        };
        Ok(PerturbedLayer {
            perturbation: self,
            statistics,
            layer,
            dense,
            plan,
        })
    }
}

/// One layer, any of whose sites can be compressed.
pub struct PerturbedLayer<'a> {
    perturbation: &'a Perturbation,
    statistics: Option<&'a Statistics>,
    layer: usize,
    dense: DecoderLayer,
    plan: Option<LayerPlan>,
}

/// A layer with one of its sites compressed.
#[derive(Debug)]
pub struct PerturbedSite {
    /// The layer.
    pub block: DecoderLayer,
    /// Scalars of the dense site.
    pub scalars: u64,
    /// Scalars fewer that it stores now; of a rounded site the bytes saved over 4.
    pub saved: u64,
    /// What the second-order estimate expects it to add to the loss, in nats per token, where it has an opinion.
    pub predicted_loss: Option<f64>,
    /// Largest relative output error of the site's projections on the calibration inputs; none of a rounded one.
    pub error: Option<f64>,
}

impl PerturbedLayer<'_> {
    /// The layer with `site` compressed.
    ///
    /// # Errors
    /// When a projection is not dense, or the numerics fail.
    pub fn site(&self, site: Site) -> Result<PerturbedSite> {
        let shapes = self.dense.site(site).into_iter().map(Projection::shape);
        let scalars: u64 = shapes.map(|(out, input)| (out * input) as u64).sum();
        let numerical = |why: String| Error::Numerical {
            layer: self.layer,
            site: site.name().into(),
            why,
        };
        match (self.perturbation, self.statistics, &self.plan) {
            (Perturbation::Rounded(precision), ..) => {
                let mut block = self.dense.clone();
                let mut bytes = 0;
                for projection in block.site_mut(site) {
                    let (out, input) = projection.shape();
                    bytes += precision.matrix_bytes(out, input);
                    let linear = projection.to_dense();
                    let rounded = BlockLinear::quantize(&linear, format(*precision))
                        .map_err(|e| numerical(format!("the weight could not be read: {e:?}")))?;
                    *projection = Projection::Quantized(rounded);
                }
                Ok(PerturbedSite {
                    block,
                    scalars,
                    saved: (4 * scalars).saturating_sub(bytes) / 4,
                    predicted_loss: None,
                    error: None,
                })
            }
            (Perturbation::Factored(factoring), Some(statistics), Some(plan)) => {
                let moments = statistics.layer(self.layer);
                let FactoredSite {
                    block,
                    stored,
                    predicted_loss,
                    error,
                } = factoring.apply(plan, site, &self.dense, &moments)?;
                Ok(PerturbedSite {
                    block,
                    scalars,
                    saved: scalars.saturating_sub(stored),
                    predicted_loss,
                    error: Some(error),
                })
            }
            (Perturbation::Factored(_), ..) => {
                Err(numerical("no statistics were collected".into()))
            }
        }
    }
}

/// The block format of a precision; 8 bits for those that have none.
fn format(precision: Precision) -> BlockFormat {
    match precision {
        Precision::Q4 => BlockFormat::Q4,
        Precision::Q4Min => BlockFormat::Q4Min,
        Precision::F32 | Precision::F16 | Precision::Bf16 | Precision::Q8 => BlockFormat::Q8,
    }
}
