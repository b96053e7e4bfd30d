//! What a pass is given to compress one site.

use cinder_models::checkpoint::SiteRecord;
use cinder_models::{DecoderLayer, ModelConfig, Site};

use super::LayerPlan;
use crate::calibration::{Moments, SiteInputs};
use crate::error::Error;

/// One site of one layer, and all that is known of it.
#[derive(Clone, Copy)]
pub struct SiteWork<'a> {
    /// The dense model's.
    pub config: &'a ModelConfig,
    /// What becomes of the layer.
    pub plan: &'a LayerPlan,
    /// Which of its sites.
    pub site: Site,
    /// The layer as it was.
    pub dense: &'a DecoderLayer,
    /// What the site now reads, and the moments of the dense model, where the calibration collected them.
    pub calibrated: Option<(&'a SiteInputs, &'a dyn Moments)>,
}

impl SiteWork<'_> {
    /// The record of one of the site's projections, of dense `[out, in]`: where it is, and nothing of what became of it.
    pub fn record(&self, projection: &str, shape: [usize; 2]) -> SiteRecord {
        site_record(self.plan.layer, self.site, projection, shape)
    }

    /// The error of algebra that has failed here.
    pub fn numerical(&self, why: String) -> Error {
        Error::Numerical {
            layer: self.plan.layer,
            site: self.site.name().into(),
            why,
        }
    }
}

/// The record of one projection of dense `[out, in]` before anything is said of what became of it.
pub(super) fn site_record(
    layer: usize,
    site: Site,
    projection: &str,
    shape: [usize; 2],
) -> SiteRecord {
    SiteRecord {
        layer,
        site: site.name().into(),
        projection: projection.into(),
        shape,
        ..SiteRecord::default()
    }
}
