//! `cinder sweep`

mod make;
mod measure;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use cinder::compress::calibration::OWN_TEXT;
use cinder::compress::pipeline::{
    check, check_identity, check_places, read_identity, require_same,
};
use cinder::compress::recipe::Recipe;
use cinder::eval::{Corpus, WindowChoice};
use cinder::models::cache::CacheFormat;
use cinder::models::checkpoint::{Checkpoint, OutputDirectory, SWEEP_FILE};
use cinder::models::ops;
use cinder::reports::{Options, Results, read, write};
use fs_err as fs;
use serde_json::{Value, json};

use super::compress::{nothing_to_resume, parse_keep, read_recipe};
use super::context::{Context, Usage, Weights, command_line};
use super::eval::{corpora, parse_window, parse_windows};
use measure::{DENSE, points_table};

pub use make::Maker;

/// Compress at several keep ratios, measure each, and draw what it costs
///
/// Every recipe is run at every keep ratio, from the same statistics where the calibration is the same. Each model and the
/// dense one are then measured on every text, through every cache format that is asked for. The directory gets `models`, `compress` (what each compression reports),
/// `results`, `report` and, last, `sweep.json`. A sweep that was interrupted goes on with `--resume`.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, or a fetched name (`smollm2`)
    model: String,
    /// A recipe, such as recipes/frontier.toml; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    recipe: Vec<PathBuf>,
    /// Keep ratios to compress to
    #[arg(long, value_delimiter = ',', required = true, value_name = "RATIO,...", value_parser = parse_keep)]
    keep: Vec<f64>,
    /// Texts to measure perplexity on, as `cinder eval ppl` takes them; may be given several times
    #[arg(long, value_name = "FILE")]
    text: Vec<String>,
    /// Tokens in a window of those texts
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = parse_window)]
    window: usize,
    /// How many windows from the start (`20`), or which (`0,10,20`) [default: all]
    #[arg(long, value_parser = parse_windows, value_name = "N|I,J,K")]
    windows: Option<WindowChoice>,
    /// Replaces the recipes' calibration text: a file, `boolq:calibration`, or `self`
    #[arg(long, value_name = "FILE")]
    calibration: Option<String>,
    #[command(flatten)]
    weights: Weights,
    /// Measure each model through KV caches of these formats, as far as it can have them [default: what each declares]
    ///
    /// `f32` and `f16` are for every model; `q8`, `q4`, `q3` and `q2` for those that cache latents. Where a model can have none
    /// of them, it is measured through what it declares.
    #[arg(long, value_delimiter = ',', value_name = "FORMAT,...")]
    cache: Vec<CacheFormat>,
    /// The directory to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Keep statistics in this directory, and use what is there
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Delete each model once it is measured
    #[arg(long)]
    discard_models: bool,
    /// Go on with a sweep that was interrupted
    #[arg(long)]
    resume: bool,
    /// Replace the directory if it exists
    #[arg(long)]
    overwrite: bool,
}

/// One recipe at one keep ratio.
struct Point {
    name: String,
    recipe: Recipe,
}

impl Point {
    /// What decides the point's model besides the model it is made from.
    fn identity(&self, context: &Context) -> Result<Value> {
        let corpus = self.recipe.used_calibration().map(|c| &c.corpus);
        let text = match corpus.filter(|c| *c != OWN_TEXT) {
            Some(corpus) => Some(context.corpus(corpus)?.sha256()),
            None => None,
        };
        Ok(json!({"recipe": self.recipe.resolved(), "corpus_sha256": text}))
    }
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let points = points(context, &args)?;
    let checkpoint = context.open(&args.model)?;
    let interrupted = OutputDirectory::interrupted(&args.out, SWEEP_FILE);
    let earlier = interrupted.clone().or_else(|| {
        let ended = args.out.join(SWEEP_FILE);
        ended.is_file().then_some(ended)
    });
    let earlier = match (args.resume, earlier) {
        (true, None) => return Err(nothing_to_resume("sweep", &args.out).into()),
        (true, earlier) => earlier,
        (false, _) => None,
    };
    if !(args.resume && interrupted.is_none()) {
        OutputDirectory::check(&args.out, args.overwrite)?;
    }
    check_places(&checkpoint, &args.out, args.work.as_deref())?;
    for point in &points {
        check(&checkpoint, &point.recipe)?;
    }
    let texts = corpora(context, &args.text)?;
    let identity = identity(context, &args, &checkpoint, &points, &texts)?;
    if let Some(earlier) = &earlier {
        let found = read_identity(earlier)?;
        if interrupted.is_none() {
            require_same(&args.out, &found["made_from"], &identity)?;
            OutputDirectory::clear(&args.out)?;
            context.printer.say("this sweep is finished already");
            return print(context, &found);
        }
        require_same(&args.out, &found, &identity)?;
    }
    let mut output = match args.resume {
        true => OutputDirectory::resume(&args.out, args.overwrite)?
            .ok_or_else(|| nothing_to_resume("sweep", &args.out))?,
        false => OutputDirectory::create(&args.out, args.overwrite)?,
    };
    let folder = output.path().to_owned();
    let own = output.work().to_owned();
    for folder in [
        folder.join("models"),
        folder.join("compress"),
        folder.join("results"),
        own.clone(),
    ] {
        fs::create_dir_all(folder)?;
    }
    check_identity(&own.join(SWEEP_FILE), &identity)?;
    // What is done took long: an error in one point must not cost the others.
    output.keep();
    let mut sweep = Sweep {
        context,
        args: &args,
        texts: &texts,
        checkpoint: &checkpoint,
        maker: Maker::new(context, &checkpoint, args.work.clone().unwrap_or(own)),
        folder: &folder,
    };
    let mut rows = vec![sweep.measured(DENSE, None, || context.open(&args.model))?];
    for point in &points {
        rows.push(sweep.point(point)?);
    }
    sweep.tidy(&points)?;
    let report = match texts.is_empty() {
        true => None,
        false => Some(sweep.report(&points)?),
    };
    let summary = json!({
        "model": args.model,
        "points": rows,
        "report": report,
        "path": args.out,
        "made_from": identity,
    });
    output.write(SWEEP_FILE, format!("{summary:#}\n").as_bytes())?;
    output.commit()?;
    print(context, &summary)
}

/// Prints what `sweep.json` holds.
fn print(context: &Context, summary: &Value) -> Result<ExitCode> {
    let rows = summary["points"].as_array();
    let mut text = points_table(rows.map_or(&[], Vec::as_slice));
    if let Some(report) = summary["report"].as_str() {
        text += &format!("\n\nreport: {report}");
    }
    context.printer.result(summary, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that decides what a sweep finds.
fn identity(
    context: &Context,
    args: &Args,
    checkpoint: &Checkpoint,
    points: &[Point],
    texts: &[Corpus],
) -> Result<Value> {
    let recipes: serde_json::Map<String, Value> = points
        .iter()
        .map(|p| Ok((p.name.clone(), p.identity(context)?)))
        .collect::<Result<_>>()?;
    let measured: serde_json::Map<String, Value> = texts
        .iter()
        .map(|t| (t.name.clone(), json!(t.sha256())))
        .collect();
    let windows = args.windows.as_ref();
    Ok(json!({
        "tool_version": env!("CARGO_PKG_VERSION"),
        "model": checkpoint.sha256()?,
        "points": recipes,
        "texts": measured,
        "window": args.window,
        "windows": windows.map(|w| format!("{w:?}")),
        "weights": args.weights.weights.name(),
        "caches": args.cache,
        "discard_models": args.discard_models,
        "device": context.device_name,
        "instructions": ops::instructions(),
    }))
}

/// Every recipe at every keep ratio, from the largest.
fn points(context: &Context, args: &Args) -> Result<Vec<Point>> {
    let mut keeps = args.keep.clone();
    keeps.sort_by(|a, b| b.total_cmp(a));
    if keeps.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Usage::new("`--keep` names a ratio twice", "give each keep ratio once").into());
    }
    let mut points: Vec<Point> = Vec::new();
    for path in &args.recipe {
        for keep in &keeps {
            let recipe = read_recipe(context, path, Some(*keep), args.calibration.as_deref())?;
            let name = format!("{}-{keep}", recipe.name);
            if points.iter().any(|p| p.name == name) {
                return Err(Usage::new(
                    format!("two recipes are named `{}`", recipe.name),
                    "give each a `name` of its own",
                )
                .into());
            }
            points.push(Point { name, recipe });
        }
    }
    Ok(points)
}

struct Sweep<'a> {
    context: &'a Context,
    args: &'a Args,
    texts: &'a [Corpus],
    checkpoint: &'a Checkpoint,
    maker: Maker<'a>,
    /// Where the sweep is being written.
    folder: &'a Path,
}

impl Sweep<'_> {
    /// Makes and measures one point, as far as an interrupted sweep has not.
    fn point(&mut self, point: &Point) -> Result<Value> {
        let name = &point.name;
        let model = self.folder.join("models").join(name);
        let record = self.record(name);
        if !record.is_file() || !(model.is_dir() || self.results(name)?.iter().all(|r| r.is_file()))
        {
            let shown = self.args.out.join("models").join(name);
            let folders = (model.as_path(), shown.as_path());
            self.maker.make(name, &point.recipe, folders, &record)?;
        }
        let compressed: Value = serde_json::from_str(&fs::read_to_string(&record)?)?;
        let mut row = self.measured(name, Some(&compressed), || Ok(Checkpoint::open(&model)?))?;
        row["recipe"] = json!(point.recipe.name);
        if self.args.discard_models && model.is_dir() {
            fs::remove_dir_all(&model)?;
        }
        Ok(row)
    }

    /// What compressing a point reported.
    fn record(&self, name: &str) -> PathBuf {
        self.folder.join("compress").join(format!("{name}.json"))
    }

    /// The singular values that a recipe's analyses found: the same at every keep ratio.
    fn spectra(&self, recipe: &Recipe) -> PathBuf {
        make::spectra_beside(&self.record(&recipe.name), recipe)
    }

    /// Removes what killed runs began and nobody has finished.
    fn tidy(&self, points: &[Point]) -> Result<()> {
        let names = || points.iter().map(|p| p.name.as_str());
        let folder = |name: &str| self.folder.join(name);
        let mut wanted: Vec<PathBuf> = self.results(DENSE)?;
        for name in names() {
            wanted.extend(self.results(name)?);
            wanted.push(self.record(name));
            wanted.push(folder("models").join(name));
        }
        for place in ["models", "compress", "results"] {
            for entry in fs::read_dir(folder(place))? {
                let path = entry?.path();
                match () {
                    () if wanted.contains(&path) => {}
                    () if path.is_dir() => fs::remove_dir_all(path)?,
                    () => fs::remove_file(path)?,
                }
            }
        }
        match folder("report").exists() {
            true => Ok(fs::remove_dir_all(folder("report"))?),
            false => Ok(()),
        }
    }

    fn report(&self, points: &[Point]) -> Result<PathBuf> {
        let mut files = self.results(DENSE)?;
        for point in points {
            files.extend(self.results(&point.name)?);
            files.push(self.record(&point.name));
            let spectra = self.spectra(&point.recipe);
            if spectra.is_file() && !files.contains(&spectra) {
                files.push(spectra);
            }
        }
        let mut results: Results = read(&files)?;
        results.relocate(self.folder, &self.args.out);
        let mut options =
            Options::titled(format!("What compressing {} costs", self.checkpoint.name()));
        options.command = Some(command_line());
        write(&results, &self.folder.join("report"), &options)?;
        Ok(self.args.out.join("report").join("report.html"))
    }
}
