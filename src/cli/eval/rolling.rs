//! `cinder eval rolling`

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cinder::eval::SCHEMA;
use cinder::eval::rolling::{
    Detokenizer, Rolling, RollingDocument, RollingResult, rolling, wikitext_pages,
};

use super::parse_window;
use crate::cli::context::{Cache, Context, Usage, Weights, command_line, identity};
use crate::cli::format::count;
use crate::cli::memory::Length;

/// Perplexity per word and per byte, document by document, as lm-evaluation-harness reports it
///
/// Each document stands alone and every token of it is scored once (`loglikelihood_rolling`). A `.raw` file is cut into WikiText's
/// pages, and its separated punctuation is joined as the harness' `wikitext` task does. Words and bytes are those of the
/// document itself, so models with other tokenizers can be compared.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    /// A text file (`.raw` is read as WikiText's pages, `.jsonl`, `.arrow` and `.parquet` by document), or `boolq:evaluation`
    #[arg(long, value_name = "FILE")]
    text: String,
    /// Tokens that a window predicts at most; the harness takes the model's whole context
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = parse_window)]
    window: usize,
    /// How many documents from the start [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: Cache,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let corpus = context.corpus(&args.text)?;
    let is_raw = Path::new(&args.text)
        .extension()
        .is_some_and(|e| e == "raw");
    let (mut texts, detokenizer) = match is_raw {
        true => {
            let text = fs_err::read_to_string(&args.text)?;
            (wikitext_pages(&text), Detokenizer::Wikitext)
        }
        false => (corpus.articles(), Detokenizer::None),
    };
    texts.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
    let checkpoint = context.open(&args.model)?;
    let cached = args.cache.of(&checkpoint)?;
    let tokenizer = checkpoint.tokenizer()?;
    let prefix = checkpoint.prefix_id(&tokenizer)?.ok_or_else(|| {
        Usage::new(
            "the model names no token that begins or ends a text, and the first token of a document needs one before it",
            "use `cinder eval ppl`, which scores no first token",
        )
    })?;
    let documents = texts.into_iter().map(|text| {
        let ids = tokenizer.encode(&detokenizer.apply(&text))?;
        Ok(RollingDocument { text, ids })
    });
    let documents: Vec<RollingDocument> = documents.collect::<Result<_>>()?;
    let length = Length {
        held: 0,
        at_once: args.window + 1,
    };
    let decoder = context.decoder(&checkpoint, args.weights.weights, cached, length)?;
    let start = Instant::now();
    let printer = &context.printer;
    let rolling = rolling(
        &decoder,
        &documents,
        args.window,
        prefix,
        detokenizer,
        printer,
    )?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens = documents.iter().map(|d| d.ids.len() as u64).sum();
    let result = RollingResult {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: identity(&checkpoint, args.weights.weights, &args.model, None)?,
        corpus: corpus.identity(tokens),
        dtype: args.weights.weights.name().into(),
        cache: cached.format,
        residual_window: cached.residual_window,
        rolling,
        device: context.device_name.clone(),
        command: command_line(),
        seconds,
    };
    let (value, text) = (serde_json::to_value(&result)?, text(&result.rolling));
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(r: &Rolling) -> String {
    format!(
        "perplexity per word {:.4}, per byte {:.5}; {:.5} ± {:.5} bits per byte  ({} documents, {} words, {} bytes, {} tokens scored)",
        r.word_perplexity,
        r.byte_perplexity,
        r.bits_per_byte.mean,
        r.bits_per_byte.stderr,
        count(r.documents),
        count(r.words),
        count(r.bytes),
        count(r.tokens_scored),
    )
}
