//! `cinder demo`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use cinder::compress::pipeline::{Job, compress};
use cinder::compress::recipe::Recipe;
use cinder::eval::{Corpus, WindowChoice};
use cinder::fetch::{fetch, find};
use cinder::models::checkpoint::{Checkpoint, DEMO_FILE, OutputDirectory};
use cinder::reports::{Options, read, write};
use serde_json::json;

use super::compress::{calibration_text, parse_keep};
use super::context::{Cached, Context, Usage};
use super::eval::{Question, measure, write_result};
use cinder::models::Precision;

/// The whole line on the default model: fetch, compress, evaluate, report
///
/// Fetches SmolLM2-135M-Instruct and the evaluation data (once), compresses the model at several keep ratios with the recipe
/// `frontier`, measures each result's perplexity on text that calibration did not see (the other half of BoolQ's Wikipedia
/// passages), and leaves the models, the results and a report. About 5 minutes on two cores.
#[derive(clap::Args)]
pub struct Args {
    /// The directory to make; an earlier demo's is replaced
    #[arg(long, default_value = "cinder-demo", value_name = "DIR")]
    out: PathBuf,
    /// Keep ratios to compress to
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.9,0.8,0.7",
        value_name = "RATIO,...",
        value_parser = parse_keep
    )]
    keep: Vec<f64>,
}

/// The demo's recipe: the shipped one with less calibration and blocks solved on the dense model's inputs, to be done in
/// minutes, and 16-bit output so that several models fit a small disk.
const RECIPE: &str = r#"
name = "frontier"
[calibration]
corpus = "boolq:calibration"
windows = 32
window = 512
[calibration.gradients]
windows = 12
[output]
dtype = "f16"
[[passes]]
pass = "frontier"
keep = 0.9
"#;
const MODEL: &str = "smollm2";
const EVALUATION: &str = "boolq:evaluation";
const WINDOW: usize = 512;
const WINDOWS: usize = 12;

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let earlier = args.out.join(DEMO_FILE).is_file();
    if args.out.exists() && !earlier {
        return Err(Usage::new(
            format!(
                "`{}` exists and is not an earlier demo's",
                args.out.display()
            ),
            "give another `--out`",
        )
        .into());
    }
    let mut seen = args.keep.clone();
    seen.sort_by(f64::total_cmp);
    if seen.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Usage::new("`--keep` names a ratio twice", "give each keep ratio once").into());
    }
    let recipes = args
        .keep
        .iter()
        .map(|keep| {
            let mut recipe = Recipe::parse(RECIPE, Path::new("demo"), Some(*keep))?;
            recipe.override_calibration(None, context.seed);
            Ok((*keep, recipe))
        })
        .collect::<Result<Vec<(f64, Recipe)>>>()?;

    for item in [MODEL, "eval-tasks"] {
        fetch(find(item)?, None, &context.printer)?;
    }
    let mut output = OutputDirectory::create(&args.out, earlier)?;
    let folder = output.path().to_owned();
    for name in ["models", "results"] {
        fs_err::create_dir(folder.join(name))?;
    }
    let evaluation = context.corpus(EVALUATION)?;
    let checkpoint = context.open(MODEL)?;

    // The dense model first: if it can not be run, nothing else is worth doing.
    let mut models = vec![(MODEL.to_owned(), PathBuf::from(MODEL))];
    models.extend(recipes.iter().map(|(keep, _)| {
        let name = format!("frontier-{keep}");
        let path = Path::new("models").join(&name);
        (name, path)
    }));
    let evaluate = Evaluation {
        context,
        corpus: &evaluation,
        folder: &folder,
        out: &args.out,
    };
    evaluate.run(&models[0], context.open(MODEL)?)?;

    make_models(context, &checkpoint, recipes, &folder.join("models"))?;
    for model in &models[1..] {
        evaluate.run(model, Checkpoint::open(&folder.join(&model.1))?)?;
    }

    let options = Options::titled("Cinder demo: SmolLM2-135M-Instruct at several keep ratios");
    let mut results = read(&[folder.join("results"), folder.join("models")])?;
    results.relocate(&folder, &args.out);
    write(&results, &folder.join("report"), &options)?;
    let page = args.out.join("report").join("report.html");
    let summary = json!({"report": page, "results": args.out.join("results"), "models": args.out.join("models")});
    output.write(DEMO_FILE, format!("{summary:#}\n").as_bytes())?;
    output.commit()?;
    context.printer.say("open the report in a browser:");
    context
        .printer
        .result(&summary, &page.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// All models are made from the same statistics.
fn make_models(
    context: &Context,
    checkpoint: &Checkpoint,
    recipes: Vec<(f64, Recipe)>,
    folder: &Path,
) -> Result<()> {
    let Some((_, first)) = recipes.first() else {
        return Ok(());
    };
    let text = calibration_text(context, checkpoint, first)?;
    let work = tempfile::tempdir_in(folder)?;
    for (keep, recipe) in &recipes {
        let job = Job {
            checkpoint,
            recipe,
            text: text.as_ref(),
            out: &folder.join(format!("frontier-{keep}")),
            overwrite: false,
            resume: false,
            work: Some(work.path()),
            tool_version: env!("CARGO_PKG_VERSION").into(),
            threads: context.threads,
        };
        let outcome = compress(&job, &context.device, &context.printer)?;
        for warning in &outcome.warnings {
            context.printer.warn(warning);
        }
    }
    Ok(())
}

/// What all evaluations of a demo share.
struct Evaluation<'a> {
    context: &'a Context,
    corpus: &'a Corpus,
    /// Where the demo is being written, and where it will be.
    folder: &'a Path,
    out: &'a Path,
}

impl Evaluation<'_> {
    fn run(&self, (name, path): &(String, PathBuf), checkpoint: Checkpoint) -> Result<()> {
        let context = self.context;
        let model = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                self.out.join(path).display().to_string()
            }
            _ => name.clone(),
        };
        let command = format!(
            "cinder eval ppl {model} --text {EVALUATION} --window {WINDOW} --windows {WINDOWS}"
        );
        let question = Question {
            corpus: self.corpus,
            window: WINDOW,
            windows: WindowChoice::First(WINDOWS),
            model,
            name: None,
            command,
        };
        let cached = Cached::declared(&checkpoint);
        let result = measure(context, &checkpoint, Precision::F32, cached, &question)?;
        let p = &result.perplexity;
        context.printer.say(&format!(
            "{name}: perplexity {:.2} ± {:.2}",
            p.perplexity, p.stderr
        ));
        write_result(
            &self.folder.join("results").join(format!("{name}.json")),
            &result,
        )
    }
}
