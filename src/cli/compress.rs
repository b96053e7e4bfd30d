//! `cinder compress`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cinder::compress::calibration::{Windows, choose_windows};
use cinder::compress::passes::{PlannedProjection, plan_all, projection_scalars, require_dense};
use cinder::compress::pipeline::{Job, Outcome, Target, compress};
use cinder::compress::recipe::Recipe;
use cinder::eval::Corpus;
use cinder::models::checkpoint::{Checkpoint, OutputDirectory};
use serde_json::{Value, json};

use super::context::Context;
use super::format::{bytes, count, table};

/// Make a smaller model by the passes of a recipe
///
/// Walks the model block by block: calibration text goes through a block, the passes replace its projections, the
/// result is written, the block is forgotten. The output is a Hugging Face directory with factored weights and a manifest
/// (`cinder.json`) of everything that went in and came out.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    /// A recipe, such as recipes/low-rank.toml
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// The directory to make
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Replaces the recipe's keep ratio: stored scalars after / before
    #[arg(long, value_name = "RATIO", value_parser = parse_keep)]
    keep: Option<f64>,
    /// Replaces the recipe's calibration text: a file, or `boolq:calibration`
    #[arg(long, value_name = "FILE")]
    calibration: Option<String>,
    /// Show the plan, sizes and memory, and stop
    #[arg(long)]
    dry_run: bool,
    /// Replace the directory if it exists
    #[arg(long)]
    overwrite: bool,
}

/// A keep ratio from the command line.
pub fn parse_keep(text: &str) -> Result<f64, String> {
    let keep: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number"))?;
    match keep > 0.0 && keep <= 1.0 {
        true => Ok(keep),
        false => Err("a keep ratio is above 0 and at most 1".into()),
    }
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let mut recipe = Recipe::read(&args.recipe, args.keep)?;
    if let Some(corpus) = args.calibration {
        recipe.calibration.corpus = corpus;
    }
    if let Some(seed) = context.seed {
        recipe.calibration.seed = seed;
    }
    let checkpoint = context.open(&args.model)?;
    if args.dry_run {
        return dry_run(context, &checkpoint, &recipe);
    }
    let Some(out) = args.out else {
        anyhow::bail!("`--out` is missing");
    };
    // Before anything slow: an output that can not be written should fail now.
    OutputDirectory::check(&out, args.overwrite)?;
    let calibration = Calibration::prepare(context, &checkpoint, &recipe)?;
    let job = calibration.job(context, &checkpoint, args.overwrite);
    let outcomes = compress(
        &job,
        vec![Target { recipe, out }],
        &context.device,
        &context.printer,
    )?;
    for outcome in &outcomes {
        for warning in &outcome.warnings {
            context.printer.warn(warning);
        }
        context
            .printer
            .result(&outcome_json(outcome), &outcome_text(outcome))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The text and the windows a walk is calibrated on.
pub struct Calibration {
    corpus: Corpus,
    windows: Windows,
    bos_ids: Vec<u32>,
}

impl Calibration {
    pub fn prepare(context: &Context, checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Self> {
        let settings = &recipe.calibration;
        let corpus = context.corpus(&settings.corpus)?;
        let tokenizer = checkpoint.tokenizer()?;
        let tokens = tokenizer.encode(&corpus.text())?;
        let windows = choose_windows(&tokens, settings.windows, settings.window, settings.seed)?;
        let bos_ids = tokenizer.bos_ids().to_vec();
        Ok(Calibration {
            corpus,
            windows,
            bos_ids,
        })
    }

    pub fn job<'a>(
        &'a self,
        context: &Context,
        checkpoint: &'a Checkpoint,
        overwrite: bool,
    ) -> Job<'a> {
        Job {
            checkpoint,
            windows: &self.windows,
            corpus: (self.corpus.name.clone(), self.corpus.sha256()),
            bos_ids: self.bos_ids.clone(),
            overwrite,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            threads: context.threads,
        }
    }
}

fn outcome_json(outcome: &Outcome) -> Value {
    let m = &outcome.manifest;
    json!({
        "path": outcome.out,
        "keep_ratio": m.keep_ratio,
        "projection_scalars_before": m.projection_scalars_before,
        "projection_scalars_after": m.projection_scalars_after,
        "bytes_before": m.bytes_before,
        "bytes_after": m.bytes_after,
        "dtype": m.dtype,
        "source_bytes_on_disk": m.source.bytes_on_disk,
        "directory_bytes": outcome.directory_bytes,
        "seconds": outcome.seconds,
        "fallbacks": m.fallbacks,
        "warnings": outcome.warnings,
        "sites": m.sites,
    })
}

fn outcome_text(outcome: &Outcome) -> String {
    let m = &outcome.manifest;
    let mut text = format!(
        "{}: kept {:.4} of the decoder projections' scalars ({} of {}) in {:.0} s, {} fallbacks\n\
         all weights as {}: {} before, {} after",
        outcome.out.display(),
        m.keep_ratio,
        count(m.projection_scalars_after),
        count(m.projection_scalars_before),
        outcome.seconds,
        m.fallbacks,
        m.dtype,
        bytes(m.bytes_before),
        bytes(m.bytes_after),
    );
    if m.source.stored_as.contains('Q') {
        text += &format!(
            "\nnote: the source is quantised ({}, {} on disk); its dequantised weights are the baseline here",
            m.source.stored_as,
            bytes(m.source.bytes_on_disk)
        );
    }
    text
}

fn dry_run(context: &Context, checkpoint: &Checkpoint, recipe: &Recipe) -> Result<ExitCode> {
    require_dense(checkpoint)?;
    let config = checkpoint.config();
    let plans = plan_all(&recipe.passes, config)?;
    let planned: Vec<&PlannedProjection> = plans.iter().flat_map(|p| &p.projections).collect();
    let (before, after) = projection_scalars(config, &plans);
    let width = recipe.output.dtype.bytes();
    let bytes_before = checkpoint.parameters() * width;
    let bytes_after = (checkpoint.parameters() - before + after) * width;
    let memory = memory_estimate(checkpoint, recipe);

    let mut out = table(&["projection", "out × in", "rank", "keep"]);
    for p in planned.iter().filter(|p| p.layer == 0) {
        let kept = p.scalars() as f64 / (p.out * p.input) as f64;
        out.add_row(vec![
            p.name().to_owned(),
            format!("{} × {}", p.out, p.input),
            p.rank.map_or("dense".into(), |r| r.to_string()),
            format!("{kept:.4}"),
        ]);
    }
    let sites: Vec<Value> = planned
        .iter()
        .map(|p| {
            json!({"layer": p.layer, "site": p.site.name(), "projection": p.name(),
                        "shape": [p.out, p.input], "rank": p.rank, "scalars": p.scalars()})
        })
        .collect();
    let value = json!({
        "dry_run": true,
        "recipe": recipe.resolved(),
        "keep_ratio": after as f64 / before as f64,
        "projection_scalars_before": before,
        "projection_scalars_after": after,
        "bytes_before": bytes_before,
        "bytes_after": bytes_after,
        "peak_memory_bytes_estimate": memory,
        "sites": sites,
    });
    let text = format!(
        "plan for {} by recipe `{}` (nothing is written)\n\n{out}\n({} layers; later layers may differ by one rank)\n\n\
         keep ratio {:.4}: {} of {} scalars\nweights as {}: {} before, {} after\n\
         calibration: {} windows of {} tokens of {}\nmemory: about {} at the peak",
        checkpoint.name(),
        recipe.name,
        config.layers,
        after as f64 / before as f64,
        count(after),
        count(before),
        recipe.output.dtype.name(),
        bytes(bytes_before),
        bytes(bytes_after),
        recipe.calibration.windows,
        recipe.calibration.window,
        recipe.calibration.corpus,
        bytes(memory),
    );
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// The frame while the windows are embedded or, later: a block and its compressed form, its Grams and their factors, two
/// decompositions side by side, and the hidden states before and after the block.
fn memory_estimate(checkpoint: &Checkpoint, recipe: &Recipe) -> u64 {
    let c = checkpoint.config();
    let square = |n: usize| (n * n * 8) as u64;
    let calibration = &recipe.calibration;
    let hidden = (calibration.windows * calibration.window * c.hidden_size * 4) as u64;
    let states = if calibration.propagate { 3 } else { 2 };
    let block = c.dense_projection_scalars() / c.layers as u64 * 4;
    let grams =
        2 * square(c.hidden_size) + square(c.heads * c.head_dim) + square(c.intermediate_size);
    let whitening = 3 * square(c.intermediate_size);
    // Weight, product, both singular bases and the workspace, in f64.
    let decomposition = 6 * (c.intermediate_size * c.hidden_size * 8) as u64;
    let heads = if c.tied_embeddings { 1 } else { 2 };
    let frame = heads * (c.vocab_size * c.hidden_size * 4) as u64;
    (frame + hidden).max(states * hidden + 2 * block + grams + whitening + 2 * decomposition)
}
