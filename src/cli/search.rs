//! `cinder search`

mod budget;
mod candidates;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use cinder::compress::calibration::OWN_TEXT;
use cinder::compress::pipeline::{
    check, check_identity, check_places, read_identity, require_same,
};
use cinder::eval::{Corpus, EvalResult, WindowChoice};
use cinder::models::checkpoint::{Checkpoint, OutputDirectory, SEARCH_FILE};
use cinder::models::{Precision, ops};
use fs_err as fs;
use serde_json::{Value, json};

use self::budget::{Budget, middle, parse_increase};
use self::candidates::{Candidate, candidates};
use super::compress::{nothing_to_resume, parse_keep};
use super::context::{Cached, Context};
use super::eval::{Question, measure, parse_window, write_result};
use super::format::{bytes, table};
use super::sweep::Maker;

/// Find the best recipe within a budget
///
/// Candidates are the shipped recipes (or those of `--recipe`) and variations of them in one setting each: ridges, structures,
/// and what later blocks see of compressed ones. All are compressed to the budget and measured on a few windows of the text;
/// the better third is measured on three times as many, and so on (successive halving, arXiv 1502.07943), until one is left.
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

/// One candidate of `ETA` is kept from rung to rung, and each rung has as many times the windows.
const ETA: usize = 3;
/// Where candidates are compared when the budget is one of quality, and the least keep ratio that is tried then.
const NOMINAL: f64 = 0.8;
const LEAST: f64 = 0.2;

/// A search that found nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "no size that was tried stays within the perplexity: the largest, a keep ratio of {keep}, is at {ratio:.4} of the dense model's"
)]
pub struct NothingWithin {
    keep: f64,
    ratio: f64,
}

impl cinder::models::Hint for NothingWithin {
    fn hint(&self) -> Option<String> {
        Some("allow a larger `--max-ppl-increase`, or more `--steps`".into())
    }
}

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
        && best["bytes_after"]
            .as_u64()
            .is_some_and(|bytes| bytes > most)
    {
        anyhow::bail!("the winner takes more bytes than asked for, which should not be: {best}");
    }
    let keep = best["asked_keep"].as_f64().unwrap_or(NOMINAL);
    output.write("recipe.toml", winner.toml(keep).as_bytes())?;
    let summary = json!({
        "schema": 1,
        "tool_version": env!("CARGO_PKG_VERSION"),
        "model": args.model,
        "budget": { "keep": args.keep, "bytes": args.bytes, "max_ppl_ratio": args.max_ppl_increase },
        "dense": dense,
        "rungs": rungs,
        "bisection": bisection,
        "winner": best,
        "recipe": args.out.join("recipe.toml"),
        "path": args.out,
        "made_from": identity,
    });
    output.write(SEARCH_FILE, format!("{summary:#}\n").as_bytes())?;
    output.commit()?;
    context.printer.result(&summary, &text(&summary))?;
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

struct Search<'a> {
    context: &'a Context,
    args: &'a Args,
    corpus: &'a Corpus,
    checkpoint: &'a Checkpoint,
    maker: Maker<'a>,
    /// Where the search is being written.
    folder: &'a Path,
}

impl Search<'_> {
    /// Successive halving: every rung, and what is left with its last measurement.
    fn halve(&mut self, tried: Vec<(Candidate, f64)>) -> Result<(Vec<Value>, (Candidate, Value))> {
        let sizes = rungs(tried.len());
        let mut left: Vec<(Candidate, f64, Value)> = tried
            .into_iter()
            .map(|(candidate, keep)| (candidate, keep, Value::Null))
            .collect();
        let mut all = Vec::new();
        for (rung, size) in sizes.iter().enumerate() {
            left.truncate(*size);
            let fewer = ETA.pow((sizes.len() - 1 - rung) as u32);
            let windows = (self.args.windows as usize / fewer).max(1);
            self.context.printer.say(&format!(
                "rung {} of {}: {size} candidates on {windows} windows",
                rung + 1,
                sizes.len()
            ));
            for (candidate, keep, measured) in &mut left {
                *measured = self.tried(candidate, *keep, windows)?;
            }
            left.sort_by(|a, b| loss(&a.2).total_cmp(&loss(&b.2)));
            let rows: Vec<&Value> = left.iter().map(|(.., measured)| measured).collect();
            all.push(json!({"windows": windows, "candidates": rows}));
        }
        let (candidate, _, measured) = left.remove(0);
        Ok((all, (candidate, measured)))
    }

    /// Halves in on the least keep ratio of a recipe within a ratio of perplexities: every step, and the best.
    fn smallest(
        &mut self,
        winner: &Candidate,
        first: Value,
        dense: &Value,
        most: f64,
    ) -> Result<(Vec<Value>, Value)> {
        let ratio = |measured: &Value| loss(measured) / loss(dense);
        let (mut low, mut high) = (LEAST, 1.0);
        let (mut best, mut largest) = (None, first.clone());
        let (mut all, mut next) = (Vec::new(), first);
        for step in 0..=self.args.steps {
            let keep = next["asked_keep"].as_f64().unwrap_or(NOMINAL);
            next["perplexity_ratio"] = json!(ratio(&next));
            all.push(next.clone());
            match ratio(&next) <= most {
                true => {
                    high = keep;
                    best = Some(next.clone());
                }
                false => low = keep,
            }
            if keep > largest["asked_keep"].as_f64().unwrap_or(0.0) {
                largest = next.clone();
            }
            let keep = middle(low, high);
            if step == self.args.steps || keep <= low || keep >= high {
                break;
            }
            self.context.printer.say(&format!(
                "step {} of {}: a keep ratio of {keep:.4}",
                step + 1,
                self.args.steps
            ));
            next = self.tried(winner, keep, self.args.windows as usize)?;
        }
        let best = best.ok_or_else(|| NothingWithin {
            keep: largest["asked_keep"].as_f64().unwrap_or(0.0),
            ratio: ratio(&largest),
        })?;
        Ok((all, best))
    }

    /// Makes and measures a candidate, as far as an interrupted search has not.
    fn tried(&mut self, candidate: &Candidate, keep: f64, windows: usize) -> Result<Value> {
        let name = format!("{}-{keep:.4}", candidate.name);
        let model = self.folder.join("models").join(&name);
        let record = self.folder.join("compress").join(format!("{name}.json"));
        if !record.is_file() || !model.is_dir() {
            let shown = self.args.out.join("models").join(&name);
            let recipe = candidate.recipe(keep)?;
            self.maker.make(&name, &recipe, (&model, &shown), &record)?;
        }
        let compressed: Value = serde_json::from_str(&fs::read_to_string(&record)?)?;
        let mut row = self.measured(&name, Some(&model), windows)?;
        row["recipe"] = json!(candidate.name);
        row["asked_keep"] = json!(keep);
        for key in ["keep_ratio", "bytes_after", "seconds"] {
            row[key] = compressed[key].clone();
        }
        Ok(row)
    }

    /// Measures a model on the first windows of the text, as far as that is not done; none is the dense one.
    fn measured(&self, name: &str, model: Option<&Path>, windows: usize) -> Result<Value> {
        let path = self
            .folder
            .join("results")
            .join(format!("{name}-{windows}.json"));
        if !path.is_file() {
            let shown = match model {
                Some(_) => self
                    .args
                    .out
                    .join("models")
                    .join(name)
                    .display()
                    .to_string(),
                None => self.args.model.clone(),
            };
            let question = Question {
                corpus: self.corpus,
                window: self.args.window,
                windows: WindowChoice::First(windows),
                command: format!(
                    "cinder eval ppl {shown} --text {} --window {} --windows {windows}",
                    self.args.text, self.args.window
                ),
                model: shown,
                name: None,
            };
            let opened = model.map(Checkpoint::open).transpose()?;
            let checkpoint = opened.as_ref().unwrap_or(self.checkpoint);
            let cached = Cached::declared(checkpoint);
            let result = measure(self.context, checkpoint, Precision::F32, cached, &question)?;
            write_result(&path, &result)?;
        }
        let result: EvalResult = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let p = &result.perplexity;
        self.context.printer.say(&format!(
            "{name}: perplexity {:.2} ± {:.2} on {windows} windows",
            p.perplexity, p.stderr
        ));
        Ok(
            json!({"name": name, "perplexity": p.perplexity, "stderr": p.stderr, "windows": windows}),
        )
    }
}

/// The perplexity that was measured.
fn loss(measured: &Value) -> f64 {
    measured["perplexity"].as_f64().unwrap_or(f64::INFINITY)
}

/// How many candidates each rung has, of so many: a third from each to the next, while there is anything to decide.
fn rungs(candidates: usize) -> Vec<usize> {
    let mut sizes = vec![candidates];
    let mut left = candidates.div_ceil(ETA);
    while left > 1 {
        sizes.push(left);
        left = left.div_ceil(ETA);
    }
    sizes
}

fn text(summary: &Value) -> String {
    let mut out = table(&[
        "rung",
        "candidate",
        "keep",
        "bytes",
        "windows",
        "perplexity",
    ]);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut add = |label: String, row: &Value| {
        out.add_row([
            label,
            row["recipe"].as_str().unwrap_or("dense").to_owned(),
            row["keep_ratio"]
                .as_f64()
                .map_or("1".into(), |k| format!("{k:.4}")),
            row["bytes_after"].as_u64().map_or(String::new(), bytes),
            row["windows"].to_string(),
            format!(
                "{:.3} ± {:.3}",
                loss(row),
                row["stderr"].as_f64().unwrap_or(f64::NAN)
            ),
        ]);
    };
    add(String::new(), &summary["dense"]);
    for (index, rung) in list(&summary["rungs"]).iter().enumerate() {
        for row in list(&rung["candidates"]) {
            add((index + 1).to_string(), &row);
        }
    }
    for row in list(&summary["bisection"]).iter().skip(1) {
        add("size".into(), row);
    }
    let best = &summary["winner"];
    format!(
        "{out}\n\nbest: {} at a keep ratio of {:.4}, perplexity {:.3}\nwrote {}",
        best["recipe"].as_str().unwrap_or_default(),
        best["keep_ratio"].as_f64().unwrap_or(1.0),
        loss(best),
        summary["recipe"].as_str().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_end_with_a_choice_of_few() {
        assert_eq!(rungs(13), [13, 5, 2]);
        assert_eq!(rungs(9), [9, 3]);
        assert_eq!(rungs(3), [3]);
        assert_eq!(rungs(1), [1]);
    }
}
