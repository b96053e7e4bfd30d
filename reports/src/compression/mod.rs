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
    /// What else the file says.
    pub details: Details,
}

/// What only some records say of a compression.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// Wall-clock seconds by stage, in the order they ran.
    pub stages: Vec<(String, f64)>,
    /// Most memory the process had resident, in bytes.
    pub peak_rss_bytes: Option<u64>,
    /// Bytes of all weights in the written precision, before and after.
    pub bytes: Option<(u64, u64)>,
    /// Bytes of the written directory.
    pub directory_bytes: Option<u64>,
    /// Precision of the written weights.
    pub dtype: Option<String>,
    /// Name and SHA-256 of the model it was made from.
    pub source: Option<(String, String)>,
    /// The recipe with every default filled in.
    pub recipe: Option<serde_json::Value>,
    /// The calibration text: name, SHA-256, windows, tokens in each.
    pub calibration: Option<(String, String, usize, usize)>,
    /// How latents of keys and values are cached.
    pub cache: Option<String>,
    /// Cinder's version.
    pub tool_version: Option<String>,
}

impl Details {
    /// Adds what only `other` says.
    fn complete(&mut self, other: &Self) {
        if self.stages.is_empty() {
            self.stages.clone_from(&other.stages);
        }
        self.peak_rss_bytes = self.peak_rss_bytes.or(other.peak_rss_bytes);
        self.bytes = self.bytes.or(other.bytes);
        self.directory_bytes = self.directory_bytes.or(other.directory_bytes);
        fn fill<T: Clone>(own: &mut Option<T>, other: &Option<T>) {
            if own.is_none() {
                own.clone_from(other);
            }
        }
        fill(&mut self.dtype, &other.dtype);
        fill(&mut self.source, &other.source);
        fill(&mut self.recipe, &other.recipe);
        fill(&mut self.calibration, &other.calibration);
        fill(&mut self.cache, &other.cache);
        fill(&mut self.tool_version, &other.tool_version);
    }
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
    #[serde(default)]
    stage_seconds: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    peak_rss_bytes: Option<u64>,
    #[serde(default)]
    bytes_before: Option<u64>,
    #[serde(default)]
    bytes_after: Option<u64>,
    #[serde(default)]
    directory_bytes: Option<u64>,
    #[serde(default)]
    dtype: Option<String>,
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
        let text = &manifest.calibration;
        let calibration = (!text.corpus.is_empty()).then(|| {
            let hash = text.corpus_sha256.clone();
            (text.corpus.clone(), hash, text.windows, text.window)
        });
        let details = Details {
            bytes: Some((manifest.bytes_before, manifest.bytes_after)),
            dtype: Some(manifest.dtype.clone()),
            source: Some((manifest.source.name.clone(), manifest.source.sha256.clone())),
            recipe: Some(manifest.recipe.clone()),
            calibration,
            cache: manifest.cache_format.map(|format| format.to_string()),
            tool_version: Some(manifest.tool_version.clone()),
            ..Details::default()
        };
        Ok(Some(Self {
            details,
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
        let stages = printed.stage_seconds.into_iter();
        let stages = stages.filter_map(|(name, seconds)| Some((name, seconds.as_f64()?)));
        let details = Details {
            stages: stages.collect(),
            peak_rss_bytes: printed.peak_rss_bytes,
            bytes: printed.bytes_before.zip(printed.bytes_after),
            directory_bytes: printed.directory_bytes,
            dtype: printed.dtype,
            ..Details::default()
        };
        Ok(Self {
            details,
            file: file.to_path_buf(),
            path: printed.path,
            recipe: printed.recipe,
            keep_ratio: printed.keep_ratio,
            seconds: Some(printed.seconds),
            sites: printed.sites,
        })
    }
}
