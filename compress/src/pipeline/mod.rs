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
mod resume;
mod spectra;
mod walk;

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use cinder_models::checkpoint::{
    CompressedWriter, DirectoryLock, Manifest, OutputDirectory, ProjectionInfo, Spectrum, sha256,
};
use cinder_models::progress::Progress;
use cinder_models::{Checkpoint, ModelConfig, Precision, ops};
use fs_err as fs;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::calibration::{Collection, Statistics, Windows, read_json, write_whole};
use crate::error::{Error, Result};
use crate::passes::{Analysis, Needs, Pass, Plan, Takes, check_cached_basis, dense_scalars};
use crate::recipe::{Calibration, Recipe};

pub use identity::{check_identity, read_identity, require_same};
pub use resume::{Earlier, check_resume, finished};

/// The calibration text of a run.
#[derive(Debug, Clone)]
pub struct CalibrationText {
    /// Name and SHA-256.
    pub corpus: (String, String),
    /// What goes through the model.
    pub windows: Windows,
    /// What the tokenizer puts before a text.
    pub bos_ids: Vec<u32>,
}

/// Everything one compression needs.
pub struct Job<'a> {
    /// The model.
    pub checkpoint: &'a Checkpoint,
    /// What to do with it.
    pub recipe: &'a Recipe,
    /// None where no pass needs any.
    pub text: Option<&'a CalibrationText>,
    /// The directory to make.
    pub out: &'a Path,
    /// Replace an earlier output there.
    pub overwrite: bool,
    /// Go on with an interrupted run.
    pub resume: bool,
    /// Where statistics and analyses are kept for later runs; none keeps them with the unfinished output, and removes
    /// them with it.
    pub work: Option<&'a Path>,
    /// Cinder's version, for the manifest.
    pub tool_version: String,
    /// Threads of the pool that everything runs on, for the manifest: the number decides how sums are split.
    pub threads: usize,
}

/// What came of a compression.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was written as `cinder.json`.
    pub manifest: Manifest,
    /// The directory.
    pub out: PathBuf,
    /// Bytes of all files of the written directory.
    pub directory_bytes: u64,
    /// Wall time of this process's part: what an interrupted run did before is not in it.
    pub seconds: f64,
    /// Wall time by stage.
    pub stages: Vec<(&'static str, f64)>,
    /// Wall time spent on each of the manifest's sites, as far as this process did it.
    pub site_seconds: Vec<Option<f64>>,
    /// What the analyses found, where they looked at weights; nothing of a run that had ended before.
    pub spectra: Vec<Spectrum>,
    /// What the user should know besides, each a sentence.
    pub warnings: Vec<String>,
}

/// Compresses a model as its recipe says.
///
/// # Errors
/// Before any work: an existing output, a model the passes do not take, a plan that can not be met. Later: whatever a pass
/// or the disk reports. What an error of the disk interrupts is kept to be gone on with ([`Error::Stopped`]); after any
/// other, which would come again, an output that is not finished is removed.
pub fn compress(job: &Job<'_>, device: &Device, progress: &dyn Progress) -> Result<Outcome> {
    let start = Instant::now();
    check(job.checkpoint, job.recipe)?;
    check_places(job.checkpoint, job.out, job.work)?;
    if job.resume && check_resume(job, device)? == Earlier::Finished {
        return finished(job.out);
    }
    let mut writer = resume::writer(job)?;
    fs::create_dir_all(writer.work())?;
    check_identity(
        &writer.work().join(resume::RUN_FILE),
        &resume::run_identity(job, device)?,
    )?;
    let mut outcome = match stages(job, &mut writer, device, progress) {
        Ok(outcome) => outcome,
        Err(error) if error.may_pass() => {
            writer.keep();
            return Err(Error::Stopped {
                error: Box::new(error),
            });
        }
        Err(error) => {
            writer.discard();
            return Err(error);
        }
    };
    outcome.seconds = start.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Everything that takes long.
fn stages(
    job: &Job<'_>,
    writer: &mut CompressedWriter,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let own = writer.work().to_owned();
    let work = job.work.unwrap_or(&own);
    fs::create_dir_all(work)?;
    let _lock = match job.work {
        Some(work) => Some(DirectoryLock::take(work)?),
        None => None,
    };
    let mut stages = Vec::new();
    let mut stage = |name, since: Instant| stages.push((name, since.elapsed().as_secs_f64()));
    let since = Instant::now();
    let statistics = collect(job, work, device, progress)?;
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
    let spectra = spectra::spectra(&analyses);
    let since = Instant::now();
    let mut all = analyses.into_iter();
    let plans = plans(&job.recipe.passes, job.checkpoint.config(), |_| {
        Ok(all.next().unwrap_or_default())
    })?;
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
    let made = walk.run(writer)?;
    stage("compression", since);
    let mut outcome = finish::finish(job, device, &plans, writer, made)?;
    outcome.stages = stages;
    outcome.spectra = spectra;
    Ok(outcome)
}

/// Statistics with the identity they go by.
pub struct Collected {
    /// The moments.
    pub store: Statistics,
    folder: PathBuf,
}

/// Raised when the files of statistics or analyses change their meaning.
const STATISTICS_LAYOUT: u32 = 2;

/// What statistics are collected of; runs in which all of it is the same share them.
pub struct StatisticsJob<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// What goes through it.
    pub text: &'a CalibrationText,
    /// How it was drawn, and how gradients are taken.
    pub settings: &'a Calibration,
    /// Whether gradients are needed too.
    pub needs: Needs,
    /// Cinder's version.
    pub tool_version: &'a str,
    /// Threads of the pool that everything runs on.
    pub threads: usize,
}

/// Collects the statistics that are not in `work` yet, in a folder of their own by what decides them.
///
/// # Errors
/// [`Error::Drift`] when the folder has statistics of something else; those of running the model, and of the disk.
pub fn statistics(
    job: &StatisticsJob<'_>,
    work: &Path,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Collected> {
    let identity = json!({
        "layout": STATISTICS_LAYOUT,
        "tool_version": job.tool_version,
        "model": job.checkpoint.sha256()?,
        "tokens_sha256": job.text.windows.sha256,
        "window": job.text.windows.ids[0].len(),
        "gradients": job.settings.gradients,
        "seed": job.settings.seed,
        "threads": job.threads,
        "device": ops::device_name(device),
        "instructions": ops::instructions(),
    });
    let folder = work.join(format!("statistics-{}", short_hash(&identity)));
    let store = Statistics::open(&folder, &identity)?;
    let collection = Collection {
        checkpoint: job.checkpoint,
        windows: &job.text.windows,
        gradients: &job.settings.gradients,
        seed: job.settings.seed,
        device,
    };
    store.collect(&collection, job.needs == Needs::Gradients, progress)?;
    Ok(Collected { store, folder })
}

/// The statistics that the passes need.
fn collect(
    job: &Job<'_>,
    work: &Path,
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
    let job = StatisticsJob {
        checkpoint: job.checkpoint,
        text,
        settings,
        needs,
        tool_version: &job.tool_version,
        threads: job.threads,
    };
    statistics(&job, work, device, progress).map(Some)
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
    // The keep ratio decides between what an analysis offers, not what that is; so do measured losses.
    if let Some(map) = settings.as_object_mut() {
        for decided_later in ["keep", "sensitivity", "sensitivity_sha256"] {
            map.shift_remove(decided_later);
        }
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
    config: &ModelConfig,
    mut analyses: impl FnMut(&dyn Pass) -> Result<Vec<Analysis>>,
) -> Result<Vec<Plan>> {
    let plans = passes.iter().map(|p| p.plan(&analyses(&**p)?));
    let plans = plans.collect::<Result<Vec<_>>>()?;
    check_cached_basis(config, passes, &plans)?;
    Ok(plans)
}

/// What all passes will do to the whole model, where that follows from shapes alone.
///
/// # Errors
/// When a pass can not be planned.
pub fn shape_plans(passes: &[Box<dyn Pass>], config: &ModelConfig) -> Result<Option<Vec<Plan>>> {
    match passes.iter().all(|p| p.plans_from_shapes()) {
        true => plans(passes, config, |pass| shape_analyses_of(pass, config)).map(Some),
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
    let refused = |p: &ProjectionInfo| match dense {
        true => p.kind != "dense",
        // No pass knows what to do with latents.
        false => p.kind.ends_with("group-head") || p.is_rebuilt(),
    };
    match projections.iter().find(|p| refused(p)) {
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

/// Refuses what can not be done, from shapes alone: before anything slow.
///
/// # Errors
/// As [`require_form`]; [`Error::Setting`] for calibration windows longer than the model's context, for sensitivities of another
/// model, and when a plan that follows from shapes can not be met.
pub fn check(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<()> {
    require_form(checkpoint, &recipe.passes)?;
    for measured in recipe.passes.iter().filter_map(|p| p.measured_on()) {
        if measured != checkpoint.sha256()? {
            return Err(Error::Setting {
                what: "`sensitivity`".into(),
                value: "a file about another model".into(),
                range: format!("one about `{}`", checkpoint.name()),
                hint: "measure this model: `cinder sensitivity MODEL --text FILE --out FILE`",
            });
        }
    }
    if let Some(calibration) = recipe.used_calibration() {
        check_window(checkpoint.config(), calibration.window)?;
    }
    shape_plans(&recipe.passes, checkpoint.config()).map(drop)
}

/// Refuses places for the output and the work folder that are in each other's way, or in the model's.
///
/// # Errors
/// [`cinder_models::Error::Output`].
pub fn check_places(checkpoint: &Checkpoint, out: &Path, work: Option<&Path>) -> Result<()> {
    OutputDirectory::spare(out, checkpoint.path())?;
    match work {
        Some(work) => Ok(OutputDirectory::keep_apart(out, work)?),
        None => Ok(()),
    }
}

fn check_window(config: &ModelConfig, window: usize) -> Result<()> {
    match window <= config.max_context {
        true => Ok(()),
        false => Err(Error::Setting {
            what: "`window` of the calibration".into(),
            value: format!("{window} tokens"),
            range: format!("at most the model's context of {}", config.max_context),
            hint: "lower it in the recipe's `[calibration]`",
        }),
    }
}

fn short_hash(value: &Value) -> String {
    sha256(value.to_string().as_bytes())[..12].to_owned()
}
