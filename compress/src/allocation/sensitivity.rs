//! What a measurement of each site says of predicted losses: `cinder sensitivity` writes it, allocation by loss goes by it.
//!
//! The loss of a size is an estimate of second order from moments, and what it misses differs from site to site. Where one size of
//! each site was tried, the divergence that was measured over the loss that was predicted is a factor by which the site's other
//! sizes are corrected too.

use std::collections::BTreeMap;
use std::path::Path;

use cinder_models::Site;
use cinder_models::checkpoint::sha256;
use serde::Deserialize;

/// The layout of the files that this version reads.
const SCHEMA: u32 = 1;

/// A factor may be this much larger or smaller than the median one: beyond that it is noise of a measurement near zero.
const WIDEST: f64 = 8.0;

/// What each site's losses are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteFactors {
    /// Of the model that was measured.
    pub model_sha256: String,
    /// Of the file.
    pub sha256: String,
    by_site: BTreeMap<(usize, Site), f64>,
    /// For sites that were not measured: the median of the others'.
    median: f64,
}

/// As much of a file as is needed.
#[derive(Deserialize)]
struct File {
    schema: u32,
    model: Model,
    sites: Vec<Measured>,
}

#[derive(Deserialize)]
struct Model {
    sha256: String,
}

#[derive(Deserialize)]
struct Measured {
    layer: usize,
    site: String,
    scalars_saved: u64,
    kl: Kl,
    #[serde(default)]
    predicted_loss: Option<f64>,
}

#[derive(Deserialize)]
struct Kl {
    mean: f64,
}

impl SiteFactors {
    /// Reads what `cinder sensitivity --out` wrote.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = fs_err::read(path).map_err(|e| format!("`sensitivity`: {e}"))?;
        Self::parse(&bytes).map_err(|why| format!("`sensitivity`: `{}` {why}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(bytes)
            .map_err(|e| format!("is no file of `cinder sensitivity`: {e}"))?;
        if file.schema != SCHEMA {
            return Err(format!(
                "has layout {}; this version reads {SCHEMA}",
                file.schema
            ));
        }
        let mut by_site = BTreeMap::new();
        for measured in file.sites.iter().filter(|m| m.scalars_saved > 0) {
            let name = &measured.site;
            let Some(site) = Site::ALL.into_iter().find(|s| s.name() == name) else {
                return Err(format!("names a site `{name}`"));
            };
            let Some(predicted) = measured.predicted_loss else {
                return Err(
                    "has no predicted losses to compare with: measure it with `--perturb frontier`"
                        .into(),
                );
            };
            // What costs nothing either way says nothing.
            if predicted > 0.0 && measured.kl.mean > 0.0 {
                by_site.insert((measured.layer, site), measured.kl.mean / predicted);
            }
        }
        let mut sorted: Vec<f64> = by_site.values().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let Some(median) = sorted.get(sorted.len() / 2).copied() else {
            return Err("has no site with a loss".into());
        };
        for factor in by_site.values_mut() {
            *factor = factor.clamp(median / WIDEST, median * WIDEST);
        }
        Ok(SiteFactors {
            model_sha256: file.model.sha256,
            sha256: sha256(bytes),
            by_site,
            median,
        })
    }

    /// The factor of one site of a layer.
    pub fn of(&self, layer: usize, site: Site) -> f64 {
        let known = self.by_site.get(&(layer, site));
        known.copied().unwrap_or(self.median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(sites: &str) -> String {
        format!(r#"{{"schema": 1, "model": {{"sha256": "m"}}, "sites": [{sites}]}}"#)
    }

    fn site(layer: usize, site: &str, kl: f64, predicted: f64) -> String {
        format!(
            r#"{{"layer": {layer}, "site": "{site}", "scalars_saved": 10, "kl": {{"mean": {kl}, "stderr": 0.1}}, "predicted_loss": {predicted}}}"#
        )
    }

    #[test]
    fn factors_are_measured_over_predicted_within_reason() {
        let sites = [
            site(0, "qkv", 0.3, 0.1),
            site(0, "down", 0.2, 0.1),
            site(1, "qkv", 0.1, 0.1),
            site(1, "o", 9.0, 0.1),
            site(1, "down", 0.0, 0.1),
        ];
        let factors = SiteFactors::parse(file(&sites.join(",")).as_bytes()).expect("reads");
        let close = |layer, site, wanted: f64| {
            let found = factors.of(layer, site);
            assert!((found - wanted).abs() < 1e-12, "{found} for {wanted}");
        };
        close(0, Site::Qkv, 3.0);
        close(1, Site::Qkv, 1.0);
        // Ninety times as much is eight times the median, and what was not measured is the median.
        close(1, Site::O, 24.0);
        close(1, Site::Down, 3.0);
        close(7, Site::GateUp, 3.0);
        assert_eq!(factors.model_sha256, "m");
    }

    #[test]
    fn other_files_are_refused() {
        let no_prediction = r#"{"layer": 0, "site": "o", "scalars_saved": 1, "kl": {"mean": 1}}"#;
        for (text, why) in [
            ("{}".to_owned(), "is no file of `cinder sensitivity`"),
            (
                file("").replace("\"schema\": 1", "\"schema\": 9"),
                "has layout 9",
            ),
            (file(""), "no site with a loss"),
            (file(no_prediction), "no predicted losses"),
            (file(&site(0, "head", 1.0, 1.0)), "names a site `head`"),
        ] {
            let error = SiteFactors::parse(text.as_bytes()).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }
}
