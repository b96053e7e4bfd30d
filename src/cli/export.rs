//! `cinder export`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cinder::models::checkpoint::{StoredDtype, export_dense};
use serde_json::json;

use super::context::{Context, Usage};
use super::format::bytes;

/// Write a model as a plain Hugging Face directory that any tool can load
///
/// Factors are multiplied out, quantised weights dequantised, and llama.cpp's order of rotary rows undone. The result
/// has the dense model's shapes, so it is not smaller; it is for tools that know no factorizations.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    /// Multiply all factors out (the only form there is, so far)
    #[arg(long)]
    dense: bool,
    /// The directory to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the stored weights: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    dtype: StoredDtype,
    /// Replace the directory if it exists
    #[arg(long)]
    overwrite: bool,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    if !args.dense {
        return Err(Usage::new(
            "`export` needs `--dense`",
            "a compressed directory is already in its own form: copy it",
        )
        .into());
    }
    let checkpoint = context.open(&args.model)?;
    let written = export_dense(
        &checkpoint,
        &args.out,
        args.dtype,
        args.overwrite,
        &context.device,
        &context.printer,
    )?;
    let path = args.out.display().to_string();
    let value = json!({"path": path, "bytes": written, "dtype": args.dtype.name()});
    context.printer.say(&format!("{} written", bytes(written)));
    context.printer.result(&value, &path)?;
    Ok(ExitCode::SUCCESS)
}
