//! `cinder tokenize`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::context::Context;

/// Turn text into the model's token ids
///
/// Tokens the tokenizer adds of its own accord (BOS) are included, as in every other verb.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    /// The text
    #[arg(long)]
    text: String,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let tokenizer = context.open(&args.model)?.tokenizer()?;
    let ids = tokenizer.encode(&args.text)?;
    let words: Vec<String> = ids.iter().map(u32::to_string).collect();
    let value = json!({"ids": ids, "bos_ids": tokenizer.bos_ids()});
    context.printer.result(&value, &words.join(" "))?;
    Ok(ExitCode::SUCCESS)
}
