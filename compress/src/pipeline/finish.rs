//! The manifest, and what is said at the end.

use burn::tensor::Device;
use cinder_models::checkpoint::{
    CalibrationRecord, CompressedWriter, HeadRecord, MANIFEST_SCHEMA, Manifest, SourceRecord,
};
use cinder_models::ops;

use super::walk::Timed;
use super::{Job, Outcome, projection_scalars};
use crate::calibration::OWN_TEXT;
use crate::error::Result;
use crate::passes::Plan;

/// Writes everything but the weights, and puts the output in its place.
pub(super) fn finish(
    job: &Job<'_>,
    device: &Device,
    plans: &[Plan],
    writer: &mut CompressedWriter,
    (sites, head): (Vec<Timed>, Option<HeadRecord>),
) -> Result<Outcome> {
    let checkpoint = job.checkpoint;
    let dtype = job.recipe.output.dtype;
    let (sites, site_seconds): (Vec<_>, Vec<_>) = sites.into_iter().unzip();
    // The keep ratio is against the dense model, whatever form the source has.
    let before = checkpoint.config().dense_projection_scalars();
    let (_, after) = projection_scalars(checkpoint, &job.recipe.passes, plans);
    let calibration = job.recipe.calibration.as_ref().zip(job.text);
    let mut passes = job.recipe.passes.iter();
    let latent = passes.find(|p| p.cache_format().is_some());
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA,
        tool_version: job.tool_version.clone(),
        recipe: job.recipe.resolved(),
        source: SourceRecord {
            name: checkpoint.name(),
            sha256: checkpoint.sha256()?,
            stored_as: checkpoint.stored_as(),
            bytes_on_disk: checkpoint.tensors().iter().map(|(_, i)| i.bytes).sum(),
        },
        calibration: calibration
            .map(|(settings, text)| CalibrationRecord {
                corpus: text.corpus.0.clone(),
                corpus_sha256: text.corpus.1.clone(),
                tokens_sha256: text.windows.sha256.clone(),
                windows: text.windows.ids.len(),
                window: text.windows.ids[0].len(),
                seed: settings.seed,
                bos_ids: text.bos_ids.clone(),
                // The model's own text is not drawn from any.
                draw: match settings.corpus == OWN_TEXT {
                    true => String::new(),
                    false => settings.draw.name().into(),
                },
                windows_from: text.windows.sources.clone(),
                window_indices: Vec::new(),
            })
            .unwrap_or_default(),
        threads: job.threads,
        device: ops::device_name(device),
        instructions: ops::instructions(),
        dtype: dtype.name().into(),
        projection_scalars_before: before,
        projection_scalars_after: after,
        keep_ratio: after as f64 / before as f64,
        bytes_before: checkpoint.parameters() * dtype.bytes(),
        bytes_after: writer.tensor_bytes(),
        cache_format: latent.and_then(|p| p.cache_format()),
        caches_shared_basis: latent.is_some_and(|p| p.caches_shared_basis()),
        residual_window: latent.map_or(0, |p| p.residual_window()),
        fallbacks: sites.iter().filter(|s| s.fallback.is_some()).count(),
        sites,
        head,
        files: Vec::new(),
        tensors: Vec::new(),
    };
    let (manifest, directory_bytes) = writer.finish(checkpoint, manifest)?;
    Ok(Outcome {
        warnings: warnings(&manifest),
        manifest,
        out: job.out.into(),
        directory_bytes,
        seconds: 0.0,
        stages: Vec::new(),
        site_seconds,
        spectra: Vec::new(),
    })
}

/// What the user should know besides the numbers.
pub(super) fn warnings(manifest: &Manifest) -> Vec<String> {
    let tokens = manifest.calibration.windows * manifest.calibration.window;
    let mut warnings = Vec::new();
    let factored = manifest.sites.iter().filter(|s| s.rank.is_some());
    let widest = factored.map(|s| s.shape[1]).max();
    if let Some(widest) = widest.filter(|w| tokens > 0 && tokens < 2 * w) {
        warnings.push(format!(
            "{tokens} calibration tokens are few for inputs of width {widest}: expect a poor model, use more windows"
        ));
    }
    if manifest.fallbacks > 0 {
        warnings.push(format!(
            "{} projections needed a larger ridge than asked for; the manifest names them",
            manifest.fallbacks
        ));
    }
    if manifest.caches_shared_basis && manifest.kv_keep_ratio().is_none() {
        warnings.push(
            "no shared basis of query, key and value is smaller than the keys and values: the KV cache stays as it was; \
             a lower `keep` makes it smaller"
                .into(),
        );
    }
    warnings
}
