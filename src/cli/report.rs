//! `cinder report`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cinder::reports::{Options, read, write};

use super::context::{Context, command_line};

/// Draw charts and tables from evaluation results
///
/// Reads what `cinder eval ppl`, `eval tasks`, `eval kl`, `compare` and `bench` write or print with `--json`, or directories of
/// such files, and writes charts (SVG and PNG), their data (CSV), Markdown tables and one self-contained HTML page. Manifests
/// (`cinder.json`), what `cinder compress --json` printed and the spectra it wrote, found in the same directories, add how each
/// model was compressed, layer by layer, and a model card for each.
#[derive(clap::Args)]
pub struct Args {
    /// Result files, manifests, or directories of them
    #[arg(required = true, value_name = "DIR|FILE")]
    results: Vec<PathBuf>,
    /// The directory to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Heading of the page
    #[arg(long)]
    title: Option<String>,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let mut options = args.title.map_or_else(Options::default, Options::titled);
    options.command = Some(command_line());
    let report = write(&read(&args.results)?, &args.out, &options)?;
    let text = report.html.display().to_string();
    context
        .printer
        .result(&serde_json::to_value(&report)?, &text)?;
    Ok(ExitCode::SUCCESS)
}
