//! `cinder search`

mod budget;
mod candidates;
mod halving;
mod measure;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cinder::compress::calibration::OWN_TEXT;
use cinder::compress::pipeline::{
    check, check_identity, check_places, read_identity, require_same,
};
use cinder::eval::Corpus;
use cinder::eval::search::{SEARCH_SCHEMA, SearchBudget, SearchResult};
use cinder::models::checkpoint::{Checkpoint, OutputDirectory, SEARCH_FILE};
use cinder::models::ops;
use fs_err as fs;
use serde_json::{Value, json};

use self::budget::{Budget, parse_increase};
use self::candidates::{Candidate, candidates};
pub use self::halving::NothingWithin;
use self::halving::Search;
use super::compress::{nothing_to_resume, parse_keep};
use super::context::Context;
use super::eval::parse_window;
use super::sweep::Maker;

/// Find the best recipe within a budget
///
/// Candidates are the shipped recipes (or those of `--recipe`) and variations of them in one setting each: ridges, structures,
/// and what later blocks see of compressed ones. All are compressed to the budget and measured on a few windows of the text;
/// the better third is measured on three times as many, and so on (successive halving, arXiv 1502.07943), until one is left.
/// Windows that a candidate was measured on are not measured again.
/// Candidates that are calibrated alike share statistics.
///
/// `--max-ppl-increase` asks for the smallest model instead: candidates are compared at a keep ratio of 0.8, and the winner's
/// keep ratio is then halved in on. The directory gets `recipe.toml`, `models`, `compress`, `results` and, last, `search.json`
/// with every rung.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("budget").required(true))]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, or a fetched name (`smollm2`)
    model: String,
    /// The most bytes that all weights may take as a recipe stores them
    #[arg(long, value_name = "N", group = "budget")]
    bytes: Option<u64>,
    /// The keep ratio: scalars of the decoder projections, after / before
    #[arg(long, value_name = "RATIO", value_parser = parse_keep, group = "budget")]
    keep: Option<f64>,
    /// The smallest model whose perplexity is at most this much above the dense model's
    #[arg(long, value_name = "X%", value_parser = parse_increase, group = "budget")]
    max_ppl_increase: Option<f64>,
    /// The text to measure perplexity on, as `cinder eval ppl` takes it; not the calibration text
    #[arg(long, value_name = "FILE")]
    text: String,
    /// Tokens in a window
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = parse_window)]
    window: usize,
    /// Windows of the last rung; each rung before it has a third as many
    #[arg(long, default_value_t = 18, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    windows: u64,
    /// A recipe to try in place of the shipped ones; may be given several times
    #[arg(long, value_name = "FILE")]
    recipe: Vec<PathBuf>,
    /// Try recipes only as they are
    #[arg(long)]
    no_variations: bool,
    /// Steps in which `--max-ppl-increase` halves in on a keep ratio
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Replaces the recipes' calibration text: a file, `boolq:calibration`, or `self`
    #[arg(long, value_name = "FILE")]
    calibration: Option<String>,
    /// The directory to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Keep statistics in this directory, and use what is there
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Go on with a search that was interrupted
    #[arg(long)]
    resume: bool,
    /// Replace the directory if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Where candidates are compared when the budget is one of quality.
const NOMINAL: f64 = 0.8;

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let checkpoint = context.open(&args.model)?;
    let calibration = args.calibration.as_deref();
    let all = candidates(context, &args.recipe, calibration, !args.no_variations)?;
    let budget = match (args.keep, args.bytes, args.max_ppl_increase) {
        (Some(keep), ..) => Budget::Keep(keep),
        (_, Some(bytes), _) => Budget::Bytes(bytes),
        (.., ratio) => Budget::Ratio(ratio.unwrap_or(1.0)),
    };
    let interrupted = OutputDirectory::interrupted(&args.out, SEARCH_FILE);
    if args.resume && interrupted.is_none() {
        return Err(nothing_to_resume("search", &args.out).into());
    }
    if !args.resume {
        OutputDirectory::check(&args.out, args.overwrite)?;
    }
    check_places(&checkpoint, &args.out, args.work.as_deref())?;
    let mut tried = Vec::new();
    for candidate in all {
        let plain = candidate.recipe(NOMINAL)?;
        let keep = budget.keep(&checkpoint, &plain, NOMINAL)?;
        check(&checkpoint, &candidate.recipe(keep)?)?;
        tried.push((candidate, keep));
    }
    let corpus = context.corpus(&args.text)?;
    let identity = identity(context, &args, &checkpoint, &tried, &corpus)?;
    if let Some(earlier) = &interrupted
        && args.resume
    {
        require_same(&args.out, &read_identity(earlier)?, &identity)?;
    }
    let mut output = match args.resume {
        true => OutputDirectory::resume(&args.out, args.overwrite)?
            .ok_or_else(|| nothing_to_resume("search", &args.out))?,
        false => OutputDirectory::create(&args.out, args.overwrite)?,
    };
    let (folder, own) = (output.path().to_owned(), output.work().to_owned());
    let folders = ["models", "compress", "results"].map(|name| folder.join(name));
    for folder in folders.iter().chain([&own]) {
        fs::create_dir_all(folder)?;
    }
    check_identity(&own.join(SEARCH_FILE), &identity)?;
    // What is done took long: an error in one candidate must not cost the others.
    output.keep();
    let mut search = Search {
        context,
        args: &args,
        corpus: &corpus,
        checkpoint: &checkpoint,
        maker: Maker::new(context, &checkpoint, args.work.clone().unwrap_or(own)),
        folder: &folder,
    };
    let dense = search.measured("dense", None, args.windows as usize)?;
    let (rungs, (winner, mut best)) = search.halve(tried)?;
    let mut bisection = Vec::new();
    if let Budget::Ratio(most) = budget {
        (bisection, best) = search.smallest(&winner, best, &dense, most)?;
    }
    if let Budget::Bytes(most) = budget
        && best
            .candidate
            .as_ref()
            .is_some_and(|c| c.bytes_after > most)
    {
        anyhow::bail!("the winner takes more bytes than asked for, which should not be: {best:?}");
    }
    let keep = best.candidate.as_ref().map_or(NOMINAL, |c| c.asked_keep);
    output.write("recipe.toml", winner.toml(keep).as_bytes())?;
    let result = SearchResult {
        schema: SEARCH_SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: args.model.clone(),
        budget: SearchBudget {
            keep: args.keep,
            bytes: args.bytes,
            max_ppl_ratio: args.max_ppl_increase,
        },
        dense,
        rungs,
        bisection,
        winner: best,
        recipe: args.out.join("recipe.toml").display().to_string(),
        path: args.out.display().to_string(),
        made_from: identity,
    };
    let summary = serde_json::to_value(&result)?;
    output.write(SEARCH_FILE, format!("{summary:#}\n").as_bytes())?;
    output.commit()?;
    context.printer.result(&summary, &table::text(&result))?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that decides what a search finds.
fn identity(
    context: &Context,
    args: &Args,
    checkpoint: &Checkpoint,
    tried: &[(Candidate, f64)],
    corpus: &Corpus,
) -> Result<Value> {
    let mut recipes = serde_json::Map::new();
    for (candidate, keep) in tried {
        let recipe = candidate.recipe(*keep)?;
        let name = recipe.used_calibration().map(|c| c.corpus.clone());
        let text = match name.filter(|c| c != OWN_TEXT) {
            Some(name) => Some(context.corpus(&name)?.sha256()),
            None => None,
        };
        let value = json!({"recipe": recipe.resolved(), "corpus_sha256": text});
        recipes.insert(candidate.name.clone(), value);
    }
    Ok(json!({
        "tool_version": env!("CARGO_PKG_VERSION"),
        "model": checkpoint.sha256()?,
        "candidates": recipes,
        "text": corpus.sha256(),
        "window": args.window,
        "windows": args.windows,
        "steps": args.steps,
        "max_ppl_ratio": args.max_ppl_increase,
        "device": context.device_name,
        "instructions": ops::instructions(),
    }))
}
