//! `cinder eval`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cinder::eval::{EvalResult, WindowChoice, perplexity};
use cinder::models::Decoder;
use cinder::models::checkpoint::Checkpoint;
use cinder::models::tokenizer::Tokenizer;
use clap::Subcommand;

use super::context::{Context, command_line, identity};

#[derive(Subcommand)]
pub enum Kind {
    Ppl(PplArgs),
}

/// Perplexity of a text in non-overlapping windows, as compression papers report it
///
/// The text is tokenised once and cut into windows; `window - 1` tokens are scored in each, the tail is dropped, and the
/// result is the exponential of the mean of the windows' mean losses.
#[derive(clap::Args)]
pub struct PplArgs {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    /// A text file (`.raw` is read as WikiText rows, `.jsonl` and `.arrow` by document), or `boolq:evaluation`
    #[arg(long, value_name = "FILE")]
    text: String,
    /// Tokens in a window
    #[arg(long, default_value_t = 2048, value_name = "N")]
    window: usize,
    /// How many windows from the start (`20`), or which (`0,10,20`) [default: all]
    #[arg(long, value_parser = parse_windows, value_name = "N|I,J,K")]
    windows: Option<WindowChoice>,
    /// Name of the model in reports
    #[arg(long)]
    name: Option<String>,
    /// Also write the full result here, for `cinder report`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn parse_windows(text: &str) -> Result<WindowChoice, String> {
    let number = |t: &str| t.trim().parse::<usize>().map_err(|e| format!("`{t}`: {e}"));
    if !text.contains(',') {
        return Ok(WindowChoice::First(number(text)?));
    }
    let parts = text.split(',').filter(|t| !t.trim().is_empty());
    Ok(WindowChoice::Indices(
        parts.map(number).collect::<Result<_, _>>()?,
    ))
}

/// A model that is loaded and ready to be measured.
pub struct Loaded {
    pub checkpoint: Checkpoint,
    pub tokenizer: Tokenizer,
    pub decoder: Decoder,
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
    let Kind::Ppl(args) = kind;
    let corpus = context.corpus(&args.text)?;
    let (checkpoint, tokenizer, decoder) = context.load(&args.model)?;
    let loaded = Loaded {
        checkpoint,
        tokenizer,
        decoder,
    };
    let question = Question {
        corpus: &corpus,
        window: args.window,
        windows: args.windows.unwrap_or(WindowChoice::All),
        model: args.model,
        name: args.name,
        command: command_line(),
    };
    let result = measure(context, &loaded, &question)?;
    let value = serde_json::to_value(&result)?;
    if let Some(out) = &args.out {
        write_result(out, &result)?;
    }
    let p = &result.perplexity;
    let text = format!(
        "perplexity {:.4} ± {:.4}  ({} windows of {}, {} tokens scored, {:.0} tokens/s)",
        p.perplexity, p.stderr, p.windows, p.window, p.tokens_scored, p.tokens_per_second
    );
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Measures the perplexity of a loaded model and says everything about how.
pub fn measure(context: &Context, loaded: &Loaded, question: &Question<'_>) -> Result<EvalResult> {
    let Question {
        corpus,
        window,
        windows,
        ..
    } = question;
    let tokens = loaded.tokenizer.encode(&corpus.text())?;
    let start = Instant::now();
    let perplexity = perplexity(
        &loaded.decoder,
        &tokens,
        *window,
        windows,
        loaded.tokenizer.bos_ids(),
        &context.printer,
    )?;
    Ok(EvalResult {
        schema: 1,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: identity(&loaded.checkpoint, &question.model, question.name.clone())?,
        corpus: corpus.identity(tokens.len() as u64),
        perplexity,
        device: context.device_name.clone(),
        dtype: "f32".into(),
        command: question.command.clone(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Writes a result beside its final name and renames it into place.
pub fn write_result(path: &std::path::Path, result: &EvalResult) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(std::path::Path::new(".")))?;
    serde_json::to_writer_pretty(&mut file, result)?;
    file.persist(path)?;
    Ok(())
}
