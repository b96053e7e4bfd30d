//! What a compression record must satisfy before it is drawn.

use std::collections::BTreeSet;

use super::Compression;
use crate::error::ReportError;

/// No decoder has this many layers: a larger number is damage, and would draw a figure of any width.
const MOST_LAYERS: usize = 10_000;

/// Rejects numbers that are not finite or negative where nothing negative makes sense, and projections given twice.
pub(super) fn check(compression: &Compression) -> Result<(), ReportError> {
    let contradiction = |message: String| {
        Err(ReportError::Contradiction {
            file: compression.file.clone(),
            message,
        })
    };
    let finite = |field: String, value: f64| {
        if value.is_finite() {
            return Ok(value);
        }
        Err(ReportError::NotFinite {
            file: compression.file.clone(),
            field,
            value,
        })
    };
    if finite("keep_ratio".to_owned(), compression.keep_ratio)? <= 0.0 {
        return contradiction(format!(
            "keep ratio {} is not positive",
            compression.keep_ratio
        ));
    }
    if let Some(seconds) = compression.seconds {
        finite("seconds".to_owned(), seconds)?;
    }
    let mut seen = BTreeSet::new();
    for (index, site) in compression.sites.iter().enumerate() {
        let record = &site.record;
        let named = |field: &str| format!("sites[{index}].{field}");
        let keep = finite(named("keep_ratio"), record.keep_ratio)?;
        let error = finite(named("error"), record.error)?;
        let optional = [
            ("predicted_loss", record.predicted_loss),
            ("condition", record.condition),
            ("growth", record.growth),
            ("seconds", site.seconds),
        ];
        for (field, value) in optional {
            value.map_or(Ok(0.0), |value| finite(named(field), value))?;
        }
        if keep < 0.0 || error < 0.0 {
            return contradiction(format!(
                "sites[{index}]: keep ratio {keep} and error {error} must not be negative"
            ));
        }
        if record.layer >= MOST_LAYERS {
            return contradiction(format!(
                "sites[{index}]: layer {} of a decoder",
                record.layer
            ));
        }
        if !seen.insert((record.layer, record.projection.as_str())) {
            return contradiction(format!(
                "projection `{}` of layer {} is recorded twice",
                record.projection, record.layer
            ));
        }
    }
    Ok(())
}
