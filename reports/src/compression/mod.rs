//! How a model was compressed, projection by projection: what the manifests and the compression results say.

mod cells;
mod check;
mod join;
pub(crate) mod wording;

use std::path::{Path, PathBuf};

use cinder_models::checkpoint::{MANIFEST_FILE, Manifest, SiteRecord};
use serde::Deserialize;

pub(crate) use cells::{Cell, KINDS, position};
pub(crate) use join::{Compressed, join, most_different};

/// How one model was compressed, and the file that says so.
#[derive(Debug, Clone)]
pub struct Compression {
    /// The manifest or the compression result, as the report should show it.
    pub file: PathBuf,
    /// Directory of the compressed model. It need not exist any more.
    pub path: PathBuf,
    /// Name of the recipe; none where the file does not say.
    pub recipe: Option<String>,
    /// Stored scalars of the decoder projections, after / before.
    pub keep_ratio: f64,
    /// Wall-clock seconds the compression took; a manifest holds no timings.
    pub seconds: Option<f64>,
    /// One entry a projection.
    pub sites: Vec<CompressedSite>,
}

/// What was done to one projection.
#[derive(Debug, Clone, Deserialize)]
pub struct CompressedSite {
    /// The manifest's record.
    #[serde(flatten)]
    pub record: SiteRecord,
    /// Seconds spent on it, where the compression result says so.
    #[serde(default)]
    pub seconds: Option<f64>,
}

/// What `cinder compress --json` prints, as far as a report needs it.
#[derive(Deserialize)]
struct Printed {
    path: PathBuf,
    keep_ratio: f64,
    seconds: f64,
    #[serde(default)]
    recipe: Option<String>,
    sites: Vec<CompressedSite>,
}

impl Compression {
    /// The record in the manifest of `directory`; none when it has none.
    pub(crate) fn from_manifest(directory: &Path) -> Result<Option<Self>, cinder_models::Error> {
        let Some(manifest) = Manifest::read(directory)? else {
            return Ok(None);
        };
        let site = |record| CompressedSite {
            record,
            seconds: None,
        };
        Ok(Some(Self {
            file: directory.join(MANIFEST_FILE),
            path: directory.to_path_buf(),
            recipe: manifest.recipe["name"].as_str().map(str::to_owned),
            keep_ratio: manifest.keep_ratio,
            seconds: None,
            sites: manifest.sites.into_iter().map(site).collect(),
        }))
    }

    /// The record in what `cinder compress --json` printed into `file`.
    pub(crate) fn from_printed(file: &Path, text: &str) -> Result<Self, serde_json::Error> {
        let printed: Printed = serde_json::from_str(text)?;
        Ok(Self {
            file: file.to_path_buf(),
            path: printed.path,
            recipe: printed.recipe,
            keep_ratio: printed.keep_ratio,
            seconds: Some(printed.seconds),
            sites: printed.sites,
        })
    }
}
