//! `cinder eval`

mod kl;
mod rolling;
mod tasks;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cinder::eval::{Corpus, EvalResult, SCHEMA, WindowChoice, perplexity, result_schema};
use cinder::models::Precision;
use cinder::models::checkpoint::Checkpoint;
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::context::{Cache, Cached, Context, Usage, Weights, command_line, identity};
use super::memory::Length;

#[derive(Subcommand)]
pub enum Kind {
    Ppl(PplArgs),
    Tasks(tasks::Args),
    Rolling(rolling::Args),
    Kl(kl::Args),
}

/// Perplexity of a text in non-overlapping windows, as compression papers report it
///
/// The text is tokenised once and cut into windows; `window - 1` tokens are scored in each, the tail is dropped, and the
/// result is the exponential of the mean of the windows' mean losses. With `--json`, `by_position` has the losses by how far into
/// its window a token is: how much a long context helps.
#[derive(clap::Args)]
pub struct PplArgs {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    #[arg(required_unless_present = "print_schema")]
    model: Option<String>,
    /// A text file (`.raw` is read as WikiText rows, `.jsonl`, `.arrow` and `.parquet` by document), or `boolq:evaluation`; may be
    /// given several times
    #[arg(long, value_name = "FILE", required_unless_present = "print_schema")]
    text: Vec<String>,
    /// Tokens in a window
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = parse_window)]
    window: usize,
    /// How many windows from the start (`20`), or which (`0,10,20`) [default: all]
    #[arg(long, value_parser = parse_windows, value_name = "N|I,J,K")]
    windows: Option<WindowChoice>,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: Cache,
    /// Name of the model in reports
    #[arg(long)]
    name: Option<String>,
    /// Also write the full result here, for `cinder report`; of several texts, `RESULT.json` becomes `RESULT-TEXT.json` for each
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the JSON schema of result files and stop
    #[arg(long, exclusive = true)]
    print_schema: bool,
}

/// Tokens in a window.
pub fn parse_window(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(window) if window >= 2 => Ok(window),
        _ => Err("a window is a whole number of at least 2 tokens".into()),
    }
}

/// How many windows, or which.
pub fn parse_windows(text: &str) -> Result<WindowChoice, String> {
    let number = |t: &str| t.trim().parse::<usize>().map_err(|e| format!("`{t}`: {e}"));
    if !text.contains(',') {
        return match number(text)? {
            0 => Err("at least one window must be scored".into()),
            count => Ok(WindowChoice::First(count)),
        };
    }
    let parts = text.split(',').filter(|t| !t.trim().is_empty());
    let indices: Vec<usize> = parts.map(number).collect::<Result<_, _>>()?;
    let distinct: BTreeSet<&usize> = indices.iter().collect();
    match !indices.is_empty() && distinct.len() == indices.len() {
        true => Ok(WindowChoice::Indices(indices)),
        false => Err("give each window once, and at least one".into()),
    }
}

/// What to measure, and how to call it.
pub struct Question<'a> {
    pub corpus: &'a Corpus,
    pub window: usize,
    pub windows: WindowChoice,
    /// The model as the user named it, and its name in reports.
    pub model: String,
    pub name: Option<String>,
    /// The command that does the same.
    pub command: String,
}

pub fn run(context: &Context, kind: Kind) -> Result<ExitCode> {
    match kind {
        Kind::Ppl(args) => ppl(context, args),
        Kind::Tasks(args) => tasks::run(context, args),
        Kind::Rolling(args) => rolling::run(context, args),
        Kind::Kl(args) => kl::run(context, args),
    }
}

fn ppl(context: &Context, args: PplArgs) -> Result<ExitCode> {
    let Some(model) = args.model else {
        let schema = result_schema();
        context.printer.result(&schema, &format!("{schema:#}"))?;
        return Ok(ExitCode::SUCCESS);
    };
    let corpora = corpora(context, &args.text)?;
    let checkpoint = context.open(&model)?;
    let cached = args.cache.of(&checkpoint)?;
    let questions: Vec<Question<'_>> = corpora
        .iter()
        .map(|corpus| Question {
            corpus,
            window: args.window,
            windows: args.windows.clone().unwrap_or(WindowChoice::All),
            model: model.clone(),
            name: args.name.clone(),
            command: command_line(),
        })
        .collect();
    let precision = args.weights.weights;
    let results = measure_all(context, &checkpoint, precision, cached, &questions)?;
    let line = |result: &EvalResult| {
        let p = &result.perplexity;
        format!(
            "perplexity {:.4} ± {:.4}  ({} windows of {}, {} tokens scored, {:.0} tokens/s)",
            p.perplexity, p.stderr, p.windows, p.window, p.tokens_scored, p.tokens_per_second
        )
    };
    let (value, text) = match &results[..] {
        [one] => (serde_json::to_value(one)?, line(one)),
        several => {
            let lines = several
                .iter()
                .map(|r| format!("{}: {}", r.corpus.name, line(r)));
            let lines: Vec<String> = lines.collect();
            (json!({ "results": several }), lines.join("\n"))
        }
    };
    context.printer.result(&value, &text)?;
    if let Some(out) = &args.out {
        for result in &results {
            let path = match results.len() {
                1 => out.clone(),
                _ => beside(out, &result.corpus.name),
            };
            write_result(&path, result)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads texts that results can be named after.
///
/// # Errors
/// [`Usage`] when two have the same name; those of reading.
pub fn corpora(context: &Context, texts: &[String]) -> Result<Vec<Corpus>> {
    let corpora: Vec<Corpus> = texts
        .iter()
        .map(|t| context.corpus(t))
        .collect::<Result<_>>()?;
    let mut names: Vec<&str> = corpora.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Usage::new(
            format!("two texts are named `{}`", pair[0]),
            "results are named after the texts: give them different file names",
        )
        .into()),
        None => Ok(corpora),
    }
}

/// `folder/name.json` for a text: `folder/name-text.json`.
fn beside(out: &Path, text: &str) -> PathBuf {
    let stem = out
        .file_stem()
        .map_or(String::new(), |s| s.to_string_lossy().into_owned());
    let extension = out
        .extension()
        .map_or("json".into(), |e| e.to_string_lossy());
    out.with_file_name(format!(
        "{stem}-{}.{extension}",
        text.replace(['/', ':'], "-")
    ))
}

/// Measures the perplexity of a model, through such a cache, and says everything about how.
pub fn measure(
    context: &Context,
    checkpoint: &Checkpoint,
    precision: Precision,
    cached: Cached,
    question: &Question<'_>,
) -> Result<EvalResult> {
    let question = std::slice::from_ref(question);
    let mut results = measure_all(context, checkpoint, precision, cached, question)?;
    Ok(results.remove(0))
}

/// [`measure`] of several texts; the model is loaded once.
fn measure_all(
    context: &Context,
    checkpoint: &Checkpoint,
    precision: Precision,
    cached: Cached,
    questions: &[Question<'_>],
) -> Result<Vec<EvalResult>> {
    // Before the weights are there: tokenising a whole corpus takes more memory than evaluating it.
    let tokenizer = checkpoint.tokenizer()?;
    let tokens = questions.iter().map(|q| tokenizer.encode(&q.corpus.text()));
    let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_, _>>()?;
    let length = Length {
        held: 0,
        at_once: questions.iter().map(|q| q.window).max().unwrap_or(0),
    };
    let decoder = context.decoder(checkpoint, precision, cached, length)?;
    let result = |(question, tokens): (&Question<'_>, &Vec<u32>)| {
        let start = Instant::now();
        let (window, windows) = (question.window, &question.windows);
        let bos = tokenizer.bos_ids();
        let perplexity = perplexity(&decoder, tokens, window, windows, bos, &context.printer)?;
        let seconds = start.elapsed().as_secs_f64();
        let name = question.name.clone();
        Ok(EvalResult {
            schema: SCHEMA,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            model: identity(checkpoint, precision, &question.model, name)?,
            corpus: question.corpus.identity(tokens.len() as u64),
            perplexity,
            device: context.device_name.clone(),
            dtype: precision.name().into(),
            cache: Some(cached.format),
            kv_bytes_per_token: Some(checkpoint.kv_bytes_per_token(cached.format)),
            residual_window: cached.residual_window,
            residual_window_bytes: cached.window_bytes(checkpoint),
            command: question.command.clone(),
            seconds,
        })
    };
    questions.iter().zip(&tokens).map(result).collect()
}

/// Writes a result beside its final name and renames it into place; folders above it are created.
pub fn write_result(path: &Path, result: &impl Serialize) -> Result<()> {
    write(path, &(serde_json::to_string_pretty(result)? + "\n"))
}

/// As [`write_result`], one item a line.
pub fn write_lines(path: &Path, items: &[impl Serialize]) -> Result<()> {
    let lines = items
        .iter()
        .map(|item| Ok(serde_json::to_string(item)? + "\n"));
    write(path, &lines.collect::<Result<String>>()?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let mut file = fs_err::File::create(PathBuf::from(&partial))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(fs_err::rename(partial, path)?)
}
