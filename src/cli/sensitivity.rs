//! `cinder sensitivity`

mod progress;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cinder::compress::passes::{Needs, SiteFactoring};
use cinder::compress::perturbation::Perturbation;
use cinder::compress::pipeline::{CalibrationText, StatisticsJob, require_form, statistics};
use cinder::compress::recipe::Recipe;
use cinder::eval::sensitivity::{CalibratedOn, Perturbed};
use cinder::eval::{Probe, ReferenceQuestion, Sensitivity, SiteSensitivity, WindowChoice};
use cinder::models::checkpoint::DirectoryLock;
use cinder::models::progress::Progress as _;
use cinder::models::{Precision, Site, ops};
use serde_json::{Value, json};

use self::progress::Unfinished;
use super::compress::{calibration_text, parse_keep, read_recipe};
use super::context::{Cached, Context, Usage, command_line, identity};
use super::eval::{parse_window, parse_windows, write_result};
use super::format::{count, table};
use super::memory::Length;

/// Measure how much each site of a model matters: one at a time is compressed, all others stay dense
///
/// A site is q, k and v, or o, or gate and up, or down of a layer. For each, the Kullback–Leibler divergence of the model's
/// predictions from the dense model's is measured on a few windows of a text (nats per token), and sites are ranked by
/// divergence per stored scalar saved. What enters each layer is kept, so that only the layers from the compressed one on are
/// run again.
///
/// The file can drive a recipe: `sensitivity = "FILE"` in the settings of `frontier` (or of `low_rank` with `allocation =
/// "loss"`) scales each site's predicted losses by what was measured. `cinder report` draws it.
#[derive(clap::Args)]
pub struct Args {
    /// A dense model: a Hugging Face directory, a `.gguf` file, or a fetched name (`smollm2`)
    model: String,
    /// The text to measure on: a text file (`.raw`, `.jsonl`, `.arrow`, `.parquet`), or `boolq:evaluation`
    #[arg(long, value_name = "FILE")]
    text: String,
    /// Tokens in a window
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = parse_window)]
    window: usize,
    /// How many windows from the start (`4`), or which (`0,10,20`)
    #[arg(long, default_value = "4", value_parser = parse_windows, value_name = "N|I,J,K")]
    windows: WindowChoice,
    /// What is done to a site: `frontier` (factors weighed by both moments, with identity blocks), `low-rank` (plain factors,
    /// weighed by the inputs), or rounding to `q8`, `q4` or `q4min`
    #[arg(long, default_value = "frontier", value_name = "HOW")]
    perturb: How,
    /// Scalars that a factored site keeps
    #[arg(long, default_value_t = 0.5, value_name = "RATIO", value_parser = parse_keep)]
    keep: f64,
    /// The sites to measure: `qkv`, `o`, `gate_up`, `down`
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "qkv,o,gate_up,down",
        value_name = "SITE,..."
    )]
    sites: Vec<String>,
    /// A recipe whose `[calibration]` factors are calibrated by [default: that of recipes/frontier.toml]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Replaces the calibration text: a file, `boolq:calibration`, or `self`
    #[arg(long, value_name = "FILE")]
    calibration: Option<String>,
    /// Tokens of the dense model's distribution to keep at each position; the others count as one
    #[arg(long, default_value_t = 256, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: u32,
    /// Keep statistics in this directory, and use what is there; `compress` and `sweep` share them
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// The file to write; until it is done, `FILE.unfinished` holds what is known
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Go on with a run that was interrupted
    #[arg(long)]
    resume: bool,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

/// What is done to a site.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Frontier,
    LowRank,
    Rounded(Precision),
}

impl std::str::FromStr for How {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("frontier", _) => Ok(How::Frontier),
            ("low-rank", _) => Ok(How::LowRank),
            (_, Ok(precision @ (Precision::Q8 | Precision::Q4 | Precision::Q4Min))) => {
                Ok(How::Rounded(precision))
            }
            _ => Err("it is `frontier`, `low-rank`, `q8`, `q4` or `q4min`".into()),
        }
    }
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Frontier => "frontier",
            How::LowRank => "low-rank",
            How::Rounded(precision) => precision.name(),
        }
    }
}

const CALIBRATION: &str = include_str!("../../recipes/frontier.toml");

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let sites = sites(&args.sites)?;
    let perturbation = match args.perturb {
        How::Frontier => Perturbation::Factored(SiteFactoring::frontier(args.keep)?.into()),
        How::LowRank => Perturbation::Factored(SiteFactoring::low_rank(args.keep)?.into()),
        How::Rounded(precision) => Perturbation::Rounded(precision),
    };
    if args.out.exists() && !args.overwrite && !args.resume {
        return Err(Usage::new(
            format!("`{}` exists", args.out.display()),
            "give another `--out`, or `--overwrite` it",
        )
        .into());
    }
    let corpus = context.corpus(&args.text)?;
    let checkpoint = context.open(&args.model)?;
    let recipe = recipe(context, &args)?;
    require_form(&checkpoint, &recipe.passes)?;
    let text = match perturbation.needs() {
        Needs::Nothing => None,
        _ => calibration_text(context, &checkpoint, &recipe)?,
    };
    let tokens = checkpoint.tokenizer()?.encode(&corpus.text())?;
    let made_from = json!({
        "tool_version": env!("CARGO_PKG_VERSION"),
        "model": checkpoint.sha256()?,
        "text": corpus.sha256(),
        "window": args.window,
        "windows": format!("{:?}", args.windows),
        "perturb": args.perturb.name(),
        "keep": factor_keep(&args),
        "sites": args.sites,
        "calibration": text.as_ref().map(|t| json!({
            "tokens_sha256": t.windows.sha256, "settings": recipe.calibration,
        })),
        "top_k": args.top_k,
        "device": context.device_name,
        "instructions": ops::instructions(),
    });
    let mut unfinished = Unfinished::open(&args.out, &made_from, args.resume)?;
    let length = Length {
        held: 0,
        at_once: args.window,
    };
    let cached = Cached::declared(&checkpoint);
    let decoder = context.decoder(&checkpoint, Precision::F32, cached, length)?;
    let question = ReferenceQuestion {
        model: identity(&checkpoint, Precision::F32, &args.model, None)?,
        corpus: corpus.identity(tokens.len() as u64),
        dtype: Precision::F32.name().into(),
        cache: cached.format,
        top_k: args.top_k as usize,
        tool_version: env!("CARGO_PKG_VERSION").into(),
    };
    let printer = &context.printer;
    let probe = Probe::new(
        &decoder,
        &tokens,
        args.window,
        &args.windows,
        question,
        printer,
    )?;
    let work = args
        .work
        .clone()
        .unwrap_or_else(|| unfinished.folder().to_owned());
    let _lock = match &args.work {
        Some(work) => {
            fs_err::create_dir_all(work)?;
            Some(DirectoryLock::take(work)?)
        }
        None => None,
    };
    let store = match (&text, &recipe.calibration) {
        (Some(text), Some(settings)) => {
            let job = StatisticsJob {
                checkpoint: &checkpoint,
                text,
                settings,
                needs: perturbation.needs(),
                tool_version: env!("CARGO_PKG_VERSION"),
                threads: context.threads,
            };
            Some(statistics(&job, &work, &context.device, printer)?.store)
        }
        _ => None,
    };
    let start = Instant::now();
    let layers = checkpoint.config().layers;
    printer.start("sensitivity", (layers * sites.len()) as u64);
    for layer in 0..layers {
        let missing: Vec<Site> = sites
            .iter()
            .copied()
            .filter(|s| !unfinished.has(layer, *s))
            .collect();
        printer.advance((sites.len() - missing.len()) as u64);
        if missing.is_empty() {
            continue;
        }
        let perturbed = perturbation.layer(&checkpoint, store.as_ref(), layer, &context.device)?;
        for site in missing {
            let made = perturbed.site(site)?;
            let divergence = probe.divergence(layer, &made.block)?;
            let mut found = SiteSensitivity::new(
                (layer, site.name()),
                (made.scalars, made.saved),
                &divergence,
            );
            found.predicted_loss = made.predicted_loss;
            found.error = made.error;
            printer.note(&format!(
                "layer {layer}, {}: {:.5} nats",
                site.name(),
                found.kl.mean
            ));
            unfinished.add(found, start.elapsed().as_secs_f64())?;
            printer.advance(1);
        }
    }
    printer.finish();
    let perturbed = Perturbed {
        kind: args.perturb.name().into(),
        keep: factor_keep(&args),
        calibration: text.as_ref().map(calibrated_on),
    };
    let mut result = Sensitivity::new(probe.identity(), perturbed);
    result.device = context.device_name.clone();
    result.command = command_line();
    result.seconds = unfinished.seconds();
    result.sites = unfinished.sites();
    write_result(&args.out, &result)?;
    unfinished.remove()?;
    let value: Value = serde_json::to_value(&result)?;
    printer.result(&value, &text_of(&result, &args.out))?;
    Ok(ExitCode::SUCCESS)
}

/// The keep ratio, where there is one.
fn factor_keep(args: &Args) -> Option<f64> {
    (!matches!(args.perturb, How::Rounded(_))).then_some(args.keep)
}

fn recipe(context: &Context, args: &Args) -> Result<Recipe> {
    let calibration = args.calibration.as_deref();
    match &args.recipe {
        Some(path) => read_recipe(context, path, None, calibration),
        None => {
            let mut recipe = Recipe::parse(CALIBRATION, Path::new("recipes/frontier.toml"), None)?;
            recipe.override_calibration(calibration, context.seed);
            Ok(recipe)
        }
    }
}

/// # Errors
/// [`Usage`] for a name that no site has.
fn sites(names: &[String]) -> Result<Vec<Site>, Usage> {
    if let Some(other) = names
        .iter()
        .find(|n| Site::ALL.iter().all(|s| s.name() != **n))
    {
        return Err(Usage::new(
            format!("there is no site `{other}`"),
            "the sites are qkv, o, gate_up and down",
        ));
    }
    let named = |site: &Site| names.iter().any(|n| n == site.name());
    Ok(Site::ALL.into_iter().filter(named).collect())
}

fn calibrated_on(text: &CalibrationText) -> CalibratedOn {
    CalibratedOn {
        corpus: text.corpus.0.clone(),
        corpus_sha256: text.corpus.1.clone(),
        tokens_sha256: text.windows.sha256.clone(),
        windows: text.windows.ids.len() as u64,
        window: text.windows.ids[0].len() as u64,
    }
}

/// Rows that the table has from either end of the ranking.
const ROWS: usize = 20;

fn text_of(result: &Sensitivity, out: &Path) -> String {
    let mut table = table(&[
        "rank",
        "layer",
        "site",
        "KL",
        "KL per million saved",
        "saved",
        "same top",
        "predicted",
    ]);
    let ranked = result.ranked();
    for (rank, site) in ranked.iter().enumerate() {
        if ranked.len() > 2 * ROWS && (ROWS..ranked.len() - ROWS).contains(&rank) {
            if rank == ROWS {
                table.add_row(["…"]);
            }
            continue;
        }
        table.add_row([
            (rank + 1).to_string(),
            site.layer.to_string(),
            site.site.clone(),
            format!("{:.5} ± {:.5}", site.kl.mean, site.kl.stderr),
            site.kl_per_scalar
                .map_or("–".into(), |kl| format!("{:.5}", 1e6 * kl)),
            count(site.scalars_saved),
            format!("{:.2} %", 100.0 * site.top1_agreement),
            site.predicted_loss
                .map_or("–".into(), |loss| format!("{loss:.5}")),
        ]);
    }
    format!("{table}\n\nwrote `{}`", out.display())
}
