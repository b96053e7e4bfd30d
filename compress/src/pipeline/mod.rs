//! The walks over the blocks: the only place that knows of order, memory, progress, resuming and files.
//!
//! 1. Statistics of the dense model, where a pass needs any ([`crate::calibration::Statistics`]).
//! 2. Analyses, block by block: what each site may become and what that would lose.
//! 3. The plan, from all analyses.
//! 4. The blocks, one by one: compressed as planned, checked, written, forgotten.
//!
//! Every step leaves a file when it is done, and what follows reads that file: a run that was killed goes on where it
//! stopped and ends in the same bytes. In memory at any time: the frame, or a block and its compressed form with one
//! block's statistics, and the hidden states of the calibration windows.

mod finish;
mod identity;
mod inputs;
mod walk;

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use cinder_models::checkpoint::{CompressedWriter, Manifest, ProjectionInfo, sha256};
use cinder_models::progress::Progress;
use cinder_models::{Checkpoint, ModelConfig, Precision};
use fs_err as fs;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::calibration::{Collection, Statistics, Windows, read_json, write_whole};
use crate::error::{Error, Result};
use crate::passes::{Analysis, Needs, Pass, Plan, Takes, dense_scalars};
use crate::recipe::Recipe;

pub(crate) use identity::check_identity;

/// The calibration text of a run.
#[derive(Debug, Clone)]
pub struct CalibrationText {
    /// Name and SHA-256.
    pub corpus: (String, String),
    pub windows: Windows,
    /// What the tokenizer puts before a text.
    pub bos_ids: Vec<u32>,
}

/// Everything one compression needs.
pub struct Job<'a> {
    pub checkpoint: &'a Checkpoint,
    pub recipe: &'a Recipe,
    /// None where no pass needs any.
    pub text: Option<&'a CalibrationText>,
    pub out: &'a Path,
    pub overwrite: bool,
    /// Go on with an interrupted run.
    pub resume: bool,
    /// Where statistics and analyses are kept for later runs; none keeps them with the unfinished output, and removes
    /// them with it.
    pub work: Option<&'a Path>,
    pub tool_version: String,
    pub threads: usize,
}

/// What came of a compression.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub manifest: Manifest,
    pub out: PathBuf,
    /// Bytes of all files of the written directory.
    pub directory_bytes: u64,
    /// Wall time of this process's part: what an interrupted run did before is not in it.
    pub seconds: f64,
    /// Wall time by stage.
    pub stages: Vec<(&'static str, f64)>,
    /// Wall time spent on each of the manifest's sites, as far as this process did it.
    pub site_seconds: Vec<Option<f64>>,
    pub warnings: Vec<String>,
}

/// Compresses a model as its recipe says.
///
/// # Errors
/// Before any work: an existing output, a model the passes do not take, a plan that can not be met. Later: whatever a pass
/// or the disk reports; an output that is not finished is removed, with what was kept beside it to resume from.
pub fn compress(job: &Job<'_>, device: &Device, progress: &dyn Progress) -> Result<Outcome> {
    let start = Instant::now();
    let config = job.checkpoint.config();
    require_form(job.checkpoint, &job.recipe.passes)?;
    if let Some(text) = job.text {
        check_window(config, text.windows.ids[0].len())?;
    }
    // What can not be planned should fail before anything slow.
    shape_plans(&job.recipe.passes, config)?;
    let writer = writer(job)?;
    let source = job.checkpoint.sha256()?;
    let identity = run_identity(job, &source);
    let own = writer.folder().join(WORK);
    fs::create_dir_all(&own)?;
    check_identity(&own.join("run.json"), &identity)?;
    let work = job.work.map_or_else(|| own.clone(), Path::to_owned);

    let mut stages = Vec::new();
    let mut stage = |name, since: Instant| stages.push((name, since.elapsed().as_secs_f64()));
    let since = Instant::now();
    let statistics = collect(job, &work, &source, device, progress)?;
    stage("statistics", since);
    let since = Instant::now();
    let mut analyses = Vec::new();
    for pass in &job.recipe.passes {
        analyses.push(analyse(
            job,
            &**pass,
            statistics.as_ref(),
            device,
            progress,
        )?);
    }
    stage("analysis", since);
    let since = Instant::now();
    let mut all = analyses.into_iter();
    let plans = plans(&job.recipe.passes, |_| Ok(all.next().unwrap_or_default()))?;
    stage("allocation", since);
    let since = Instant::now();
    let walk = walk::Walk {
        job,
        statistics: statistics.as_ref().map(|s| &s.store),
        plans: &plans,
        work: &own,
        device,
        progress,
    };
    let mut writer = writer;
    let sites = walk.run(&mut writer)?;
    stage("compression", since);
    let mut outcome = finish::finish(job, &source, &plans, writer, sites)?;
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome.stages = stages;
    Ok(outcome)
}

/// Where an unfinished output keeps what it can be resumed from.
const WORK: &str = "work";

/// Whether a run for this output was interrupted and can be gone on with.
pub fn interrupted(out: &Path) -> bool {
    let mut partial = out.components().collect::<PathBuf>().into_os_string();
    partial.push(".partial");
    Path::new(&partial).join(WORK).join("run.json").is_file()
}

fn writer(job: &Job<'_>) -> Result<CompressedWriter> {
    let (layers, dtype) = (job.checkpoint.config().layers, job.recipe.output.dtype);
    if !job.resume {
        return Ok(CompressedWriter::create(
            job.out,
            layers,
            dtype,
            job.overwrite,
        )?);
    }
    let writer = match interrupted(job.out) {
        true => CompressedWriter::resume(job.out, layers, dtype, job.overwrite)?,
        false => None,
    };
    writer.ok_or_else(|| Error::NothingToResume {
        path: job.out.into(),
    })
}

/// Everything that decides the bytes of the output.
fn run_identity(job: &Job<'_>, source: &str) -> Value {
    json!({
        "tool_version": job.tool_version,
        "model": source,
        "recipe": job.recipe.resolved(),
        "text": job.text.map(|t| json!({
            "corpus": t.corpus.0, "corpus_sha256": t.corpus.1, "tokens_sha256": t.windows.sha256,
        })),
        "threads": job.threads,
    })
}

/// Statistics with the identity they go by.
struct Collected {
    store: Statistics,
    folder: PathBuf,
}

/// Raised when the files of statistics or analyses change their meaning.
const STATISTICS_LAYOUT: u32 = 1;

/// Collects the statistics that the passes need, in a folder of their own by what decides them.
fn collect(
    job: &Job<'_>,
    work: &Path,
    source: &str,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Option<Collected>> {
    let needs = job.recipe.needs();
    let (Some(text), Some(settings)) = (job.text, &job.recipe.calibration) else {
        return Ok(None);
    };
    if needs == Needs::Nothing {
        return Ok(None);
    }
    let identity = json!({
        "layout": STATISTICS_LAYOUT,
        "tool_version": job.tool_version,
        "model": source,
        "tokens_sha256": text.windows.sha256,
        "window": text.windows.ids[0].len(),
        "gradients": settings.gradients,
        "seed": settings.seed,
        "threads": job.threads,
    });
    let folder = work.join(format!("statistics-{}", short_hash(&identity)));
    let store = Statistics::open(&folder, &identity)?;
    let collection = Collection {
        checkpoint: job.checkpoint,
        windows: &text.windows,
        gradients: &settings.gradients,
        seed: settings.seed,
        device,
    };
    store.collect(&collection, needs == Needs::Gradients, progress)?;
    Ok(Some(Collected { store, folder }))
}

/// One pass's analyses of all layers; those that need statistics are kept on disk beside them.
fn analyse(
    job: &Job<'_>,
    pass: &dyn Pass,
    collected: Option<&Collected>,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Vec<Analysis>> {
    let config = job.checkpoint.config();
    let Some(collected) = collected.filter(|_| !pass.plans_from_shapes()) else {
        return shape_analyses_of(pass, config);
    };
    let mut settings = pass.settings();
    // The keep ratio decides between what an analysis offers, not what that is.
    if let Some(map) = settings.as_object_mut() {
        map.remove("keep");
        map.insert("projections".into(), json!(pass.projections()));
    }
    let folder = collected
        .folder
        .join(format!("analysis-{}", short_hash(&settings)));
    fs::create_dir_all(&folder)?;
    progress.start("analysing", config.layers as u64);
    let path = |layer: usize| folder.join(format!("{layer:05}.json"));
    let missing: Vec<usize> = (0..config.layers).filter(|l| !path(*l).is_file()).collect();
    progress.advance((config.layers - missing.len()) as u64);
    let make = |layer: &usize| -> Result<()> {
        let block = job.checkpoint.load_layer(*layer, Precision::F32, device)?;
        let moments = collected.store.layer(*layer);
        let analysis = pass.analyse(config, *layer, Some((&block, &moments)))?;
        let text = serde_json::to_vec(&analysis).map_err(std::io::Error::from)?;
        write_whole(&path(*layer), &text)?;
        progress.advance(1);
        Ok(())
    };
    for layers in missing.chunks(side_by_side(job)) {
        layers.par_iter().map(make).collect::<Result<()>>()?;
    }
    // Read back even what was just written: a resumed run must see the same digits.
    let analyses = (0..config.layers).map(|l| read_json(&path(l))).collect();
    progress.finish();
    analyses
}

/// How many layers are worked on at a time: much of their algebra runs on one thread, but the moments of wide layers are
/// large, and one set of them is enough.
fn side_by_side(job: &Job<'_>) -> usize {
    match job.checkpoint.config().intermediate_size <= NARROW {
        true => job.threads.clamp(1, 4),
        false => 1,
    }
}

/// Widths up to which several layers are worked on at a time.
const NARROW: usize = 2048;

/// What a pass can say of every layer from shapes alone.
///
/// # Errors
/// As [`Pass::analyse`].
pub fn shape_analyses_of(pass: &dyn Pass, config: &ModelConfig) -> Result<Vec<Analysis>> {
    let layers = 0..config.layers;
    layers
        .map(|layer| pass.analyse(config, layer, None))
        .collect()
}

/// The plans of all passes; `analyses` is asked once for each, in order.
fn plans(
    passes: &[Box<dyn Pass>],
    mut analyses: impl FnMut(&dyn Pass) -> Result<Vec<Analysis>>,
) -> Result<Vec<Plan>> {
    passes.iter().map(|p| p.plan(&analyses(&**p)?)).collect()
}

/// What all passes will do to the whole model, where that follows from shapes alone.
///
/// # Errors
/// When a pass can not be planned.
pub fn shape_plans(passes: &[Box<dyn Pass>], config: &ModelConfig) -> Result<Option<Vec<Plan>>> {
    match passes.iter().all(|p| p.plans_from_shapes()) {
        true => plans(passes, |pass| shape_analyses_of(pass, config)).map(Some),
        false => Ok(None),
    }
}

/// Scalars of the decoder projections as they are and as they will be; projections that no pass touches stay.
pub fn projection_scalars(
    checkpoint: &Checkpoint,
    passes: &[Box<dyn Pass>],
    plans: &[Plan],
) -> (u64, u64) {
    let projections = checkpoint.projections();
    let before: u64 = projections.iter().map(|p| p.scalars).sum();
    let mut after = before;
    for (pass, plan) in passes.iter().zip(plans) {
        match pass.takes() {
            Takes::Dense => {
                after -= dense_scalars(checkpoint.config(), &pass.projections());
                after += plan.scalars();
            }
            // An identity block of rank r saves r² scalars of a plain basis; a shared one is the first member's.
            Takes::LowRank => {
                let first = |p: &ProjectionInfo| p.site.projections()[0] == p.projection;
                let plain = projections.iter().filter(|p| match p.kind {
                    "low-rank" => true,
                    "shared-basis" => first(p),
                    _ => false,
                });
                after -= plain
                    .filter_map(|p| p.rank)
                    .map(|r| (r * r) as u64)
                    .sum::<u64>();
            }
        }
    }
    (before, after)
}

/// Refuses a model in another form than the passes take.
///
/// # Errors
/// [`Error::NotDense`] or [`Error::NotLowRank`].
pub fn require_form(checkpoint: &Checkpoint, passes: &[Box<dyn Pass>]) -> Result<()> {
    let projections = checkpoint.projections();
    let dense = passes.iter().any(|p| p.takes() == Takes::Dense);
    let refused = |kind: &str| match dense {
        true => kind != "dense",
        // No pass knows what to do with latents.
        false => kind.ends_with("group-head"),
    };
    match projections.iter().find(|p| refused(p.kind)) {
        Some(p) => Err(Error::NotDense {
            layer: p.layer,
            projection: p.projection.into(),
            kind: p.kind.into(),
        }),
        _ if !dense
            && !projections
                .iter()
                .any(|p| matches!(p.kind, "low-rank" | "shared-basis")) =>
        {
            Err(Error::NotLowRank {
                path: checkpoint.path().into(),
            })
        }
        _ => Ok(()),
    }
}

fn check_window(config: &ModelConfig, window: usize) -> Result<()> {
    match window <= config.max_context {
        true => Ok(()),
        false => Err(Error::Setting {
            what: "`window` of the calibration".into(),
            value: format!("{window} tokens"),
            range: format!("at most the model's context of {}", config.max_context),
        }),
    }
}

fn short_hash(value: &Value) -> String {
    sha256(value.to_string().as_bytes())[..12].to_owned()
}
