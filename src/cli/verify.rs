//! `cinder verify`

use std::process::ExitCode;

use anyhow::Result;
use cinder::models::checkpoint::verify;

use super::context::Context;

/// Check that a model is whole
///
/// Reads every tensor: shapes must match the configuration and values must be finite. For a compressed directory the
/// hashes and counts of its manifest are checked too. Exit code 1 when something is wrong.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let checkpoint = context.open(&args.model)?;
    // A tokenizer that can not be built makes the model unusable too.
    let tokenizer = checkpoint.tokenizer().err().map(|e| e.to_string());
    let mut found = verify(&checkpoint, &context.device, &context.printer)?;
    found.problems.extend(tokenizer);
    found.ok = found.problems.is_empty();
    let text = match found.ok {
        true => format!(
            "ok: {} tensors, {} files with hashes",
            found.tensors, found.files
        ),
        false => found.problems.join("\n"),
    };
    context
        .printer
        .result(&serde_json::to_value(&found)?, &text)?;
    Ok(ExitCode::from(u8::from(!found.ok)))
}
