//! `cinder.json`: what a compressed directory says of itself.
//!
//! It holds nothing that differs between two runs with the same inputs, settings, seed, thread count and
//! instructions (no dates, no timings), so that such runs give the same bytes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cache::CacheFormat;
use crate::error::{Error, Result};

/// File name of the manifest.
pub const MANIFEST_FILE: &str = "cinder.json";
/// The layout this version writes; older ones stay readable.
pub const MANIFEST_SCHEMA: u32 = 2;

/// The record of how a compressed model came to be, and of every byte in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: u32,
    pub tool_version: String,
    /// The recipe with every default and override filled in.
    pub recipe: serde_json::Value,
    pub source: SourceRecord,
    pub calibration: CalibrationRecord,
    pub threads: usize,
    /// What it was computed on, and the CPU's [instructions](crate::ops::instructions): they decide how sums are rounded.
    /// Empty in manifests that do not say.
    #[serde(default)]
    pub device: String,
    #[serde(default)]
    pub instructions: String,
    /// Type the tensors are stored in.
    pub dtype: String,
    /// Scalars of the decoder projections before and after; biases not counted.
    pub projection_scalars_before: u64,
    pub projection_scalars_after: u64,
    /// `after / before`.
    pub keep_ratio: f64,
    /// Bytes of all tensors at `dtype`, before and after.
    pub bytes_before: u64,
    pub bytes_after: u64,
    /// How the KV cache stores latents; none where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_format: Option<CacheFormat>,
    /// Whether the KV cache keeps the latent of a basis that query, key and value of a layer share, where that is smaller than keys
    /// and values are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub caches_shared_basis: bool,
    /// Tokens of the KV cache's residual window; 0 where there is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub residual_window: usize,
    /// Times a numerical fallback was taken; the sites say which.
    pub fallbacks: usize,
    pub sites: Vec<SiteRecord>,
    /// The output head, where it is stored as low-bit codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadRecord>,
    pub files: Vec<FileRecord>,
    pub tensors: Vec<TensorRecord>,
}

/// The model that was compressed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceRecord {
    /// File or directory name, without its folder.
    pub name: String,
    /// SHA-256 over the model's files.
    pub sha256: String,
    /// Stored types on disk, such as `Q4_1+Q8_0+F32`.
    pub stored_as: String,
    /// Bytes of its weights on disk.
    pub bytes_on_disk: u64,
}

/// The text the statistics were collected on; all empty where none was needed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CalibrationRecord {
    pub corpus: String,
    pub corpus_sha256: String,
    /// SHA-256 of the chosen windows' token ids, little-endian u32.
    pub tokens_sha256: String,
    /// Windows of `window` tokens each.
    pub windows: usize,
    pub window: usize,
    pub seed: u64,
    /// What the tokenizer put before the text of its own accord.
    pub bos_ids: Vec<u32>,
    /// How the windows were drawn: `documents`, `text` or `even`; empty where the model wrote them, and in manifests that
    /// do not say.
    #[serde(default)]
    pub draw: String,
    /// What each window is made of.
    #[serde(default)]
    pub windows_from: Vec<Vec<Piece>>,
    /// Only in older manifests: indices of the windows among the corpus' non-overlapping ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub window_indices: Vec<usize>,
}

/// Tokens in a row of one document of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Which document, from 0; a joined text is one document.
    pub document: usize,
    /// Tokens of that document before the piece.
    pub start: usize,
    /// Tokens in it.
    pub tokens: usize,
}

/// What a pass did to one projection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SiteRecord {
    pub layer: usize,
    pub site: String,
    pub projection: String,
    /// The pass it belongs to; empty in manifests that do not say.
    #[serde(default)]
    pub pass: String,
    /// `dense`, `low-rank`, `identity-block`, `shared-basis`, `shared-identity-block`, `pruned`, `group-head`,
    /// `joint-group-head` or `quantized`.
    pub kind: String,
    /// `[out, in]` of the dense map.
    pub shape: [usize; 2],
    /// Of keys and values rebuilt from latents, the latent values of a token that they are rebuilt from.
    pub rank: Option<usize>,
    /// Feed-forward neurons kept, where some were removed.
    #[serde(default)]
    pub neurons: Option<usize>,
    /// Stored scalars; a shared basis is counted with the first projection of its site, and a joint latent's with the keys.
    #[serde(default)]
    pub scalars: u64,
    /// Stored scalars after / before.
    pub keep_ratio: f64,
    /// Relative error of the output on the calibration inputs, `‖(W - Ŵ)X‖_F / ‖W X‖_F`; of low-bit codes, which are made without
    /// any, that of the weights, `‖W - Ŵ‖_F / ‖W‖_F`.
    pub error: f64,
    /// Bits a weight that low-bit codes take, scales, minimums and padding counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_weight: Option<f64>,
    /// What the allocator expects this projection's change to add to the loss, in nats a token.
    #[serde(default)]
    pub predicted_loss: Option<f64>,
    /// Lower bound on the condition number of the damped input Gram; none when it was not needed.
    pub condition: Option<f64>,
    /// Largest entry of an identity block's A', each scaled by the sizes of the inputs it adds and adds to.
    #[serde(default)]
    pub growth: Option<f64>,
    /// What had to be done differently for numerical reasons, if anything.
    pub fallback: Option<String>,
}

/// The output head as low-bit codes: in the place of a head, or beside the embedding that is one too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadRecord {
    /// `[vocab, hidden]`.
    pub shape: [usize; 2],
    /// Bits of a code.
    pub bits: usize,
    /// Inputs that share a scale.
    pub group: usize,
    /// Bytes of codes, scales and minimums.
    pub bytes: u64,
    /// Relative error of the weights, `‖W - Ŵ‖_F / ‖W‖_F`.
    pub error: f64,
    /// Bits a weight, scales, minimums and padding counted.
    pub bits_per_weight: f64,
}

/// One file of the directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileRecord {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// One stored tensor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TensorRecord {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: String,
    pub sha256: String,
}

fn is_zero(tokens: &usize) -> bool {
    *tokens == 0
}

#[derive(Deserialize)]
struct Layout {
    schema: u32,
}

impl Manifest {
    /// Numbers that the KV cache stores of a token / those of keys and values in full; none where nothing was made of latents.
    pub fn kv_keep_ratio(&self) -> Option<f64> {
        if self.caches_shared_basis {
            let keys = self.sites.iter().filter(|s| s.projection == "k");
            let (kept, full) = keys.fold((0, 0), |(kept, full), key| {
                let both = 2 * key.shape[0];
                let shared = key.rank.filter(|_| key.kind.starts_with("shared"));
                (kept + shared.unwrap_or(both).min(both), full + both)
            });
            return (kept < full).then(|| kept as f64 / full as f64);
        }
        let kinds = ["group-head", "joint-group-head"];
        let latents = self
            .sites
            .iter()
            .filter(|s| kinds.contains(&s.kind.as_str()));
        let (kept, full) = latents.fold((0, 0), |(kept, full), site| {
            // Values read the latent that counts with the keys.
            let shared = site.kind == kinds[1] && site.projection != "k";
            let own = site.rank.filter(|_| !shared).unwrap_or(0);
            (kept + own, full + site.shape[0])
        });
        (full > 0).then(|| kept as f64 / full as f64)
    }

    /// Reads the manifest of `directory`; `None` when it has none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is not valid, [`Error::Unsupported`] when a newer Cinder wrote it.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(MANIFEST_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs_err::read_to_string(&path)?;
        let corrupt = |e: serde_json::Error| Error::Corrupt {
            path: path.clone(),
            why: format!("not a valid manifest: {e}"),
        };
        // The layout first: a newer one may lack fields that are required here.
        let Layout { schema } = serde_json::from_str(&text).map_err(corrupt)?;
        if schema > MANIFEST_SCHEMA {
            return Err(Error::Unsupported {
                path,
                what: format!("manifest schema {schema}"),
                hint: "a newer Cinder wrote it: update Cinder".into(),
            });
        }
        serde_json::from_str(&text).map(Some).map_err(corrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibrations_of_older_manifests_are_read() {
        let old = r#"{"corpus": "c", "corpus_sha256": "", "tokens_sha256": "", "windows": 2, "window": 8, "seed": 0,
            "bos_ids": [], "window_indices": [3, 5]}"#;
        let record: CalibrationRecord = serde_json::from_str(old).unwrap();
        assert_eq!(record.window_indices, [3, 5]);
        assert!(record.draw.is_empty() && record.windows_from.is_empty());
        let new = old.replace(
            "\"window_indices\": [3, 5]",
            r#""draw": "even", "windows_from": [[{"document": 1, "start": 2, "tokens": 8}]]"#,
        );
        let record: CalibrationRecord = serde_json::from_str(&new).unwrap();
        assert_eq!(
            (record.draw.as_str(), record.windows_from[0][0].document),
            ("even", 1)
        );
        let written = serde_json::to_value(&record).unwrap();
        assert!(written.get("window_indices").is_none(), "{written}");
    }
}
