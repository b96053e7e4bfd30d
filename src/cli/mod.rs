//! The command line: one file a verb.

mod bench;
mod compare;
mod compress;
mod context;
mod demo;
mod draft;
mod eval;
mod export;
mod fetch;
mod format;
mod generate;
mod inspect;
mod logits;
mod memory;
mod offload;
mod report;
mod search;
mod sensitivity;
mod sweep;
mod tokenize;
mod verify;

use std::io::ErrorKind;
use std::process::ExitCode;

use cinder::models::Hint;
use clap::{Parser, Subcommand};

use crate::printer::{Printer, line};
use context::{Context, Usage};

/// Make language models smaller without training, prove what it cost, and run the result.
///
/// MODEL is a Hugging Face directory (config.json and safetensors), a `.gguf` file, a directory made by
/// `cinder compress`, or a fetched name (`smollm2`).
///
/// Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.
#[derive(Parser)]
#[command(
    name = "cinder",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    global: Global,
}

#[derive(clap::Args, Clone)]
struct Global {
    /// Where to compute: `cpu`, or `cuda[:N]` in a build with the `cuda` feature
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Threads to use [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Seed of everything random
    #[arg(long, global = true, value_name = "N")]
    seed: Option<u64>,
    /// Show no progress, only results, warnings and errors
    #[arg(long, global = true)]
    quiet: bool,
    /// Print the result as one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    Fetch(fetch::Args),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Logits(logits::Args),
    Compress(compress::Args),
    /// Measure a model
    #[command(subcommand)]
    Eval(eval::Kind),
    Compare(compare::Args),
    Generate(generate::Args),
    Bench(bench::Args),
    Export(export::Args),
    Verify(verify::Args),
    Sweep(sweep::Args),
    Search(search::Args),
    Sensitivity(sensitivity::Args),
    Report(report::Args),
    Demo(demo::Args),
}

/// Parses the arguments, runs the verb, prints what went wrong.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(cli.global.json, cli.global.quiet);
    let outcome = Context::new(&cli.global, printer).and_then(|context| match cli.verb {
        Verb::Fetch(args) => fetch::run(&context, args),
        Verb::Inspect(args) => inspect::run(&context, args),
        Verb::Tokenize(args) => tokenize::run(&context, args),
        Verb::Logits(args) => logits::run(&context, args),
        Verb::Compress(args) => compress::run(&context, args),
        Verb::Eval(kind) => eval::run(&context, kind),
        Verb::Compare(args) => compare::run(&context, args),
        Verb::Generate(args) => generate::run(&context, args),
        Verb::Bench(args) => bench::run(&context, args),
        Verb::Export(args) => export::run(&context, args),
        Verb::Verify(args) => verify::run(&context, args),
        Verb::Sweep(args) => sweep::run(&context, args),
        Verb::Search(args) => search::run(&context, args),
        Verb::Sensitivity(args) => sensitivity::run(&context, args),
        Verb::Report(args) => report::run(&context, args),
        Verb::Demo(args) => demo::run(&context, args),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    if io_kind(error) == Some(ErrorKind::BrokenPipe) {
        // The reader of our output has gone: nobody is left to tell.
        return ExitCode::from(1);
    }
    line(&format!("error: {error:#}"));
    if let Some(hint) = hint_of(error) {
        line(&format!("hint: {hint}"));
    }
    match error.downcast_ref::<Usage>() {
        Some(_) => ExitCode::from(2),
        None => ExitCode::from(1),
    }
}

/// The kind of an I/O error, our own or one that the models crate passed on.
fn io_kind(error: &anyhow::Error) -> Option<ErrorKind> {
    match error.downcast_ref::<cinder::models::Error>() {
        Some(cinder::models::Error::Io(io)) => Some(io.kind()),
        _ => error
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind),
    }
}

/// The hint of whichever crate's error this is.
fn hint_of(error: &anyhow::Error) -> Option<String> {
    fn of<E: Hint + std::error::Error + Send + Sync + 'static>(
        error: &anyhow::Error,
    ) -> Option<String> {
        error.downcast_ref::<E>().and_then(Hint::hint)
    }
    of::<cinder::models::Error>(error)
        .or_else(|| of::<cinder::compress::Error>(error))
        .or_else(|| of::<cinder::eval::Error>(error))
        .or_else(|| of::<cinder::reports::ReportError>(error))
        .or_else(|| of::<cinder::fetch::Error>(error))
        .or_else(|| of::<Usage>(error))
        .or_else(|| of::<context::NotFetched>(error))
        .or_else(|| of::<compare::NoResult>(error))
        .or_else(|| of::<search::NothingWithin>(error))
        .or_else(|| of::<memory::DoesNotFit>(error))
}
