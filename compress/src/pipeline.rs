//! The walk over the blocks: the only place that knows of order, memory, progress and files.
//!
//! Several targets can share one walk: as long as they do not propagate, the statistics of a block are the same for all
//! of them and are collected once. In memory at any time: the frame's embedding, one block and its compressed
//! form, one block's statistics, and the hidden states of the calibration windows.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use cinder_models::Precision;
use cinder_models::checkpoint::{
    CalibrationRecord, CompressedWriter, MANIFEST_SCHEMA, Manifest, SiteRecord, SourceRecord,
};
use cinder_models::decoder::{Rotary, RotaryTable};
use cinder_models::progress::Progress;
use cinder_models::{Checkpoint, DecoderLayer};

use crate::calibration::{BlockStatistics, Windows, observe_block};
use crate::error::{Error, Result};
use crate::passes::{Plan, plan_all, projection_scalars, require_dense};
use crate::recipe::Recipe;

/// One compressed model to be made.
pub struct Target {
    pub recipe: Recipe,
    pub out: PathBuf,
}

/// Everything a walk needs besides the targets.
pub struct Job<'a> {
    pub checkpoint: &'a Checkpoint,
    pub windows: &'a Windows,
    /// Name and SHA-256 of the calibration text.
    pub corpus: (String, String),
    /// What the tokenizer put before it.
    pub bos_ids: Vec<u32>,
    pub overwrite: bool,
    pub tool_version: String,
    pub threads: usize,
}

/// What came of one target.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub manifest: Manifest,
    pub out: PathBuf,
    /// Bytes of all files of the written directory.
    pub directory_bytes: u64,
    /// Wall time of the whole walk; targets of one walk share it.
    pub seconds: f64,
    pub warnings: Vec<String>,
}

struct Running {
    recipe: Recipe,
    plans: Vec<Plan>,
    out: PathBuf,
    writer: CompressedWriter,
    sites: Vec<SiteRecord>,
}

/// Compresses the model once for each target.
///
/// # Errors
/// Before any work: an existing output, a plan that can not be met. Later: whatever a pass or the disk reports;
/// outputs that are not finished are removed.
pub fn compress(
    job: &Job<'_>,
    targets: Vec<Target>,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Vec<Outcome>> {
    let start = Instant::now();
    let config = job.checkpoint.config();
    require_dense(job.checkpoint)?;
    let window = job.windows.ids[0].len();
    if window > config.max_context {
        return Err(Error::Setting {
            what: "`window` of the calibration".into(),
            value: format!("{window} tokens"),
            range: format!("at most the model's context of {}", config.max_context),
        });
    }
    let mut running = Vec::new();
    for Target { recipe, out } in targets {
        let plans = plan_all(&recipe.passes, config)?;
        let dtype = recipe.output.dtype;
        let writer = CompressedWriter::create(&out, config.layers, dtype, job.overwrite)?;
        running.push(Running {
            recipe,
            plans,
            out,
            writer,
            sites: Vec::new(),
        });
    }
    // Targets that propagate each follow their own hidden states; the others share one set.
    let (alone, together): (Vec<_>, Vec<_>) = running
        .into_iter()
        .partition(|r| r.recipe.calibration.propagate);
    let mut streams: Vec<Vec<Running>> = alone.into_iter().map(|r| vec![r]).collect();
    if !together.is_empty() {
        streams.push(together);
    }
    let mut outcomes = Vec::new();
    for stream in streams {
        outcomes.extend(walk(job, stream, start, device, progress)?);
    }
    Ok(outcomes)
}

/// One pass over the blocks for targets that see the same inputs.
fn walk(
    job: &Job<'_>,
    mut stream: Vec<Running>,
    start: Instant,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Vec<Outcome>> {
    let checkpoint = job.checkpoint;
    let config = checkpoint.config();
    let window = job.windows.ids[0].len();
    let rotary = Rotary::new(config).table(0, window, device);
    let mut hidden = embed_windows(job, device)?;
    for running in &mut stream {
        running.writer.write_frame(checkpoint)?;
    }

    let steps = config.layers * (hidden.len() + stream.len());
    progress.start("compressing", steps as u64);
    for layer in 0..config.layers {
        let block = checkpoint.load_layer(layer, Precision::F32, device)?;
        progress.note(&format!("block {}/{}", layer + 1, config.layers));
        let (statistics, outputs) =
            observe_block(&block, &hidden, &rotary, &mut || progress.advance(1))?;
        // With one target nothing is asked for twice, and decompositions are large.
        let statistics = statistics.remembering(stream.len() > 1);
        hidden = outputs_after(
            layer,
            block,
            &statistics,
            &mut stream,
            hidden,
            outputs,
            &rotary,
        )?;
        progress.advance(stream.len() as u64);
    }
    progress.finish();

    let source = SourceRecord {
        name: checkpoint.name(),
        sha256: checkpoint.sha256()?,
        stored_as: checkpoint.stored_as(),
        bytes_on_disk: checkpoint.tensors().iter().map(|(_, i)| i.bytes).sum(),
    };
    stream
        .into_iter()
        .map(|running| finish(job, running, source.clone(), start))
        .collect()
}

/// Compresses and writes one block for every target, and returns what the next block reads.
fn outputs_after(
    layer: usize,
    block: DecoderLayer,
    statistics: &BlockStatistics,
    stream: &mut [Running],
    inputs: Vec<Tensor<3>>,
    outputs: Vec<Tensor<3>>,
    rotary: &RotaryTable,
) -> Result<Vec<Tensor<3>>> {
    let mut next = outputs;
    for running in stream {
        let mut compressed = block.clone();
        for (pass, plan) in running.recipe.passes.iter().zip(&running.plans) {
            let (applied, records) = pass.apply(plan, layer, compressed, statistics)?;
            compressed = applied;
            running.sites.extend(records);
        }
        running.writer.write_layer(layer, &compressed)?;
        if running.recipe.calibration.propagate {
            next = inputs
                .iter()
                .map(|x| compressed.forward(x.clone(), rotary, None, &mut |_, _| {}))
                .collect();
        }
    }
    Ok(next)
}

/// The calibration windows as the first block reads them, `[1, window, hidden]` each.
fn embed_windows(job: &Job<'_>, device: &Device) -> Result<Vec<Tensor<3>>> {
    let frame = job.checkpoint.load_frame(Precision::F32, device)?;
    let rows = job.windows.ids.iter();
    rows.map(|ids| Ok(frame.embedding.embed(std::slice::from_ref(ids))?))
        .collect()
}

fn finish(
    job: &Job<'_>,
    running: Running,
    source: SourceRecord,
    start: Instant,
) -> Result<Outcome> {
    let Running {
        recipe,
        out,
        writer,
        sites,
        plans,
    } = running;
    let checkpoint = job.checkpoint;
    let (before, after) = projection_scalars(checkpoint.config(), &plans);
    let dtype = recipe.output.dtype;
    let tokens = job.windows.ids.len() * job.windows.ids[0].len();
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA,
        tool_version: job.tool_version.clone(),
        recipe: recipe.resolved(),
        source,
        calibration: CalibrationRecord {
            corpus: job.corpus.0.clone(),
            corpus_sha256: job.corpus.1.clone(),
            tokens_sha256: job.windows.sha256.clone(),
            windows: job.windows.ids.len(),
            window: job.windows.ids[0].len(),
            seed: recipe.calibration.seed,
            bos_ids: job.bos_ids.clone(),
            window_indices: job.windows.indices.clone(),
        },
        threads: job.threads,
        dtype: dtype.name().into(),
        projection_scalars_before: before,
        projection_scalars_after: after,
        keep_ratio: after as f64 / before as f64,
        bytes_before: checkpoint.parameters() * dtype.bytes(),
        bytes_after: writer.tensor_bytes(),
        fallbacks: sites.iter().filter(|s| s.fallback.is_some()).count(),
        sites,
        files: Vec::new(),
        tensors: Vec::new(),
    };
    let warnings = warnings(&manifest, tokens);
    let (manifest, directory_bytes) = writer.finish(checkpoint, manifest)?;
    Ok(Outcome {
        manifest,
        out,
        directory_bytes,
        seconds: start.elapsed().as_secs_f64(),
        warnings,
    })
}

/// What the user should know besides the numbers.
fn warnings(manifest: &Manifest, tokens: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    let widest = manifest
        .sites
        .iter()
        .filter(|s| s.rank.is_some())
        .map(|s| s.shape[1])
        .max();
    if let Some(widest) = widest.filter(|w| tokens < 2 * w) {
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
    warnings
}
