//! `cinder eval kl`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cinder::eval::divergence::{Divergence, DivergenceResult, Reference, ReferenceQuestion};
use cinder::eval::{Corpus, Estimate, SCHEMA, WindowChoice};
use cinder::models::checkpoint::Checkpoint;
use cinder::models::{Decoder, Precision};
use comfy_table::Table;
use serde_json::json;

use super::{parse_window, parse_windows};
use crate::cli::context::{Cache, Cached, Context, Usage, Weights, command_line, identity};
use crate::cli::format::{count, table as plain_table};
use crate::cli::memory::Length;

/// How far a model's predictions are from a reference model's on the same text
///
/// Reports the Kullback–Leibler divergence of the next-token distributions (nats per token), how often both find the same token
/// most likely, how the probability of the text's own tokens changed, and the ratio of perplexities, each with its standard
/// error. Errors are those of the paired differences, so that small changes show.
///
/// The reference is a model, or a file that `--save` made of one: only its `--top-k` most likely tokens are kept at each
/// position, the others count as one.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`); none to save the reference
    /// alone
    #[arg(required_unless_present = "save")]
    model: Option<String>,
    /// The model to compare with, or a file that `--save` made
    #[arg(long, value_name = "MODEL|FILE")]
    reference: String,
    /// A text file (`.raw` is read as WikiText rows, `.jsonl`, `.arrow` and `.parquet` by document), or `boolq:evaluation`
    #[arg(long, value_name = "FILE")]
    text: String,
    /// Tokens in a window [default: 2048, or what the reference file has]
    #[arg(long, value_name = "N", value_parser = parse_window)]
    window: Option<usize>,
    /// How many windows from the start (`20`), or which (`0,10,20`) [default: all, or what the reference file has]
    #[arg(long, value_parser = parse_windows, value_name = "N|I,J,K")]
    windows: Option<WindowChoice>,
    /// Tokens of the reference to keep at each position
    #[arg(long, default_value_t = 64, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: u32,
    /// Write what the reference predicts here: 8 bytes for each kept token
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: Cache,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let corpus = context.corpus(&args.text)?;
    let reference = match reference_file(&args.reference)? {
        Some(reference) => {
            check_options(&args)?;
            reference
        }
        None => collect(context, &args, &corpus)?,
    };
    if let Some(path) = &args.save {
        reference.write(path)?;
        context.printer.say(&format!("wrote `{}`", path.display()));
    }
    let Some(model) = &args.model else {
        let value = json!({ "reference": reference.identity, "path": args.save });
        let path = args.save.iter().map(|path| path.display().to_string());
        context.printer.result(&value, &path.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    };
    let checkpoint = context.open(model)?;
    let cached = args.cache.of(&checkpoint)?;
    let weights = args.weights.weights;
    let window = reference.identity.window as usize;
    let (decoder, tokens) = load(context, &checkpoint, weights, cached, window, &corpus)?;
    let start = Instant::now();
    let divergence = Divergence::measure(&decoder, &tokens, &reference, &context.printer)?;
    let seconds = start.elapsed().as_secs_f64();
    let result = DivergenceResult {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: identity(&checkpoint, weights, model, None)?,
        dtype: weights.name().into(),
        cache: cached.format,
        residual_window: cached.residual_window,
        reference: reference.identity,
        divergence,
        device: context.device_name.clone(),
        command: command_line(),
        seconds,
    };
    let (value, text) = (serde_json::to_value(&result)?, text(&result.divergence));
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// The reference, when it is a file of predictions rather than a model.
fn reference_file(given: &str) -> Result<Option<Reference>> {
    let path = Path::new(given);
    let is_model = path.extension().is_some_and(|e| e == "gguf");
    match path.is_file() && !is_model {
        true => Ok(Some(Reference::read(path)?)),
        false => Ok(None),
    }
}

/// A reference file brings its own windows.
fn check_options(args: &Args) -> Result<(), Usage> {
    let given = [
        ("--window", args.window.is_some()),
        ("--windows", args.windows.is_some()),
        ("--save", args.save.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Usage::new(
            format!("`{option}` has no use with a reference file, which has its own windows"),
            "leave it out, or give the reference as a model",
        )),
        None => Ok(()),
    }
}

fn load(
    context: &Context,
    checkpoint: &Checkpoint,
    weights: Precision,
    cached: Cached,
    window: usize,
    corpus: &Corpus,
) -> Result<(Decoder, Vec<u32>)> {
    let tokens = checkpoint.tokenizer()?.encode(&corpus.text())?;
    let length = Length {
        held: 0,
        at_once: window,
    };
    Ok((
        context.decoder(checkpoint, weights, cached, length)?,
        tokens,
    ))
}

/// Runs the reference model.
fn collect(context: &Context, args: &Args, corpus: &Corpus) -> Result<Reference> {
    let window = args.window.unwrap_or(2048);
    let checkpoint = context.open(&args.reference)?;
    // The reference is what is true: its own cache, its weights in full.
    let (weights, cached) = (Precision::F32, Cached::declared(&checkpoint));
    let (decoder, tokens) = load(context, &checkpoint, weights, cached, window, corpus)?;
    let question = ReferenceQuestion {
        model: identity(&checkpoint, weights, &args.reference, None)?,
        corpus: corpus.identity(tokens.len() as u64),
        dtype: weights.name().into(),
        cache: cached.format,
        top_k: args.top_k as usize,
        tool_version: env!("CARGO_PKG_VERSION").into(),
    };
    let windows = args.windows.clone().unwrap_or(WindowChoice::All);
    let printer = &context.printer;
    Ok(Reference::collect(
        &decoder, &tokens, window, &windows, question, printer,
    )?)
}

fn text(d: &Divergence) -> String {
    let mut table = plain_table(&["against the reference", ""]);
    let estimate =
        |e: &Estimate, digits: usize| format!("{:.digits$} ± {:.digits$}", e.mean, e.stderr);
    let percent = |e: &Estimate| format!("{:.2} ± {:.2} %", 100.0 * e.mean, 100.0 * e.stderr);
    let tail = format!(
        "{:.4} / {:.4} / {:.4} / {:.4}",
        d.kl_median, d.kl_p90, d.kl_p99, d.kl_max
    );
    let perplexity = format!("{:.4} ({:.4})", d.perplexity, d.reference_perplexity);
    for (what, value) in [
        ("KL divergence (nats per token)", estimate(&d.kl, 5)),
        ("  median / 90 % / 99 % / largest", tail),
        ("same most likely token", percent(&d.top1_agreement)),
        (
            "change of the next token's probability",
            percent(&d.delta_p),
        ),
        (
            "  root mean square",
            format!("{:.2} %", 100.0 * d.delta_p_rms),
        ),
        ("perplexity (the reference's)", perplexity),
        (
            "perplexity over the reference's",
            estimate(&d.perplexity_ratio, 5),
        ),
        ("tokens scored", count(d.tokens_scored)),
        (
            "probability of the tokens kept",
            format!("{:.2} %", 100.0 * d.covered),
        ),
    ] {
        table.add_row(vec![what.to_owned(), value]);
    }
    format!("{table}\n\n{}", positions(d))
}

fn positions(d: &Divergence) -> Table {
    let mut table = plain_table(&["tokens before", "KL", "loss", "the reference's"]);
    for at in &d.by_position {
        table.add_row(vec![
            format!("{}–{}", at.first, at.last),
            format!("{:.5}", at.kl),
            format!("{:.4}", at.nll),
            format!("{:.4}", at.reference_nll),
        ]);
    }
    table
}
