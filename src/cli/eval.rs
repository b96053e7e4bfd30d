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
use cinder::eval::{EvalResult, SCHEMA, WindowChoice, perplexity};
use cinder::models::Precision;
use cinder::models::checkpoint::Checkpoint;
use clap::Subcommand;
use serde::Serialize;

use super::context::{Cache, Cached, Context, Weights, command_line, identity};
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
/// result is the exponential of the mean of the windows' mean losses.
#[derive(clap::Args)]
pub struct PplArgs {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    /// A text file (`.raw` is read as WikiText rows, `.jsonl`, `.arrow` and `.parquet` by document), or `boolq:evaluation`
    #[arg(long, value_name = "FILE")]
    text: String,
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
    /// Also write the full result here, for `cinder report`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
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
    pub corpus: &'a cinder::eval::Corpus,
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
    let corpus = context.corpus(&args.text)?;
    let checkpoint = context.open(&args.model)?;
    let question = Question {
        corpus: &corpus,
        window: args.window,
        windows: args.windows.unwrap_or(WindowChoice::All),
        model: args.model,
        name: args.name,
        command: command_line(),
    };
    let cached = args.cache.of(&checkpoint)?;
    let result = measure(
        context,
        &checkpoint,
        args.weights.weights,
        cached,
        &question,
    )?;
    let value = serde_json::to_value(&result)?;
    let p = &result.perplexity;
    let text = format!(
        "perplexity {:.4} ± {:.4}  ({} windows of {}, {} tokens scored, {:.0} tokens/s)",
        p.perplexity, p.stderr, p.windows, p.window, p.tokens_scored, p.tokens_per_second
    );
    context.printer.result(&value, &text)?;
    if let Some(out) = &args.out {
        write_result(out, &result)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures the perplexity of a model, through such a cache, and says everything about how.
pub fn measure(
    context: &Context,
    checkpoint: &Checkpoint,
    precision: Precision,
    cached: Cached,
    question: &Question<'_>,
) -> Result<EvalResult> {
    let Question {
        corpus,
        window,
        windows,
        ..
    } = question;
    // Before the weights are there: tokenising a whole corpus takes more memory than evaluating it.
    let tokenizer = checkpoint.tokenizer()?;
    let tokens = tokenizer.encode(&corpus.text())?;
    let length = Length {
        held: 0,
        at_once: *window,
    };
    let decoder = context.decoder(checkpoint, precision, cached, length)?;
    let start = Instant::now();
    let perplexity = perplexity(
        &decoder,
        &tokens,
        *window,
        windows,
        tokenizer.bos_ids(),
        &context.printer,
    )?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(EvalResult {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: identity(
            checkpoint,
            precision,
            &question.model,
            question.name.clone(),
        )?,
        corpus: corpus.identity(tokens.len() as u64),
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
