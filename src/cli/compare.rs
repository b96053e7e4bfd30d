//! `cinder compare`

mod tasks;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use cinder::eval::tasks::TasksResult;
use cinder::eval::{ComparedPerplexities, ComparedPerplexity, EvalResult, Paired, SCHEMA};
use cinder::models::Hint;
use serde::de::IgnoredAny;

use super::context::{Context, Usage, command_line};

/// Whether two results differ by more than chance
///
/// A and B are results of `cinder eval ppl --out` on the same windows of the same text, or of `cinder eval tasks --out` with
/// `--documents` on the same documents. They are compared window by window or document by document, which shows differences far
/// smaller than the standard error of either. The p-value is that of a sign-flip test: how often a difference at least this
/// large would come about were each pair as likely to favour one as the other.
#[derive(clap::Args)]
pub struct Args {
    /// The result to compare with
    #[arg(value_name = "A")]
    first: PathBuf,
    /// The result that is compared
    #[arg(value_name = "B")]
    second: PathBuf,
}

/// A file that is not the result of an evaluation.
#[derive(Debug, thiserror::Error)]
#[error("`{}` can not be compared: {why}", path.display())]
pub struct NoResult {
    path: PathBuf,
    why: String,
}

impl NoResult {
    fn new(path: &Path, why: String) -> Self {
        NoResult {
            path: path.into(),
            why,
        }
    }
}

impl Hint for NoResult {
    fn hint(&self) -> Option<String> {
        Some(
            "`cinder eval ppl MODEL --text FILE --out RESULT.json` makes a result, and so does `cinder eval tasks MODEL --tasks A \
             --out RESULT.json --documents SCORES.jsonl`"
                .into(),
        )
    }
}

/// What was measured.
enum Measured {
    Perplexity(Box<EvalResult>),
    Tasks(Box<TasksResult>),
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let (first, second) = match (read(&args.first)?, read(&args.second)?) {
        (Measured::Perplexity(first), Measured::Perplexity(second)) => (first, second),
        (Measured::Tasks(first), Measured::Tasks(second)) => {
            tasks::run(context, (&args.first, *first), (&args.second, *second))?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => return Err(different("kind", "one of a text, one of tasks".into()).into()),
    };
    check(&first, &second)?;
    let (a, b) = (&first.perplexity, &second.perplexity);
    let paired = Paired::of(&a.window_nll, &b.window_nll, context.seed.unwrap_or(0));
    let ratio = paired.difference.map(f64::exp, f64::exp);
    let side = |r: &EvalResult| ComparedPerplexity {
        model: r.model.clone(),
        perplexity: r.perplexity.perplexity,
        stderr: r.perplexity.stderr,
    };
    let result = ComparedPerplexities {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        first: side(&first),
        second: side(&second),
        corpus: first.corpus.clone(),
        nll: paired.clone(),
        perplexity_ratio: ratio,
        command: command_line(),
    };
    let line = |r: &EvalResult| {
        format!(
            "{}: perplexity {:.4} ± {:.4}",
            r.model.name, r.perplexity.perplexity, r.perplexity.stderr
        )
    };
    let text = format!(
        "{}\n{}\nratio {:.5} ± {:.5}, p = {:.2e}  (higher in {} of {} windows, lower in {})",
        line(&first),
        line(&second),
        ratio.mean,
        ratio.stderr,
        paired.p_value,
        paired.larger,
        paired.pairs,
        paired.smaller,
    );
    context
        .printer
        .result(&serde_json::to_value(&result)?, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Measured> {
    let text = fs_err::read_to_string(path)?;
    let no_result = |error: serde_json::Error| NoResult::new(path, error.to_string());
    // Only the keys: an error of the whole then names a line.
    let keys: HashMap<String, IgnoredAny> = serde_json::from_str(&text).map_err(no_result)?;
    Ok(match keys.contains_key("tasks") {
        true => Measured::Tasks(serde_json::from_str(&text).map_err(no_result)?),
        false => Measured::Perplexity(serde_json::from_str(&text).map_err(no_result)?),
    })
}

/// The refusal of two results that make no pairs.
fn different(what: &str, how: String) -> Usage {
    Usage::new(
        format!("the two results are of different {what}: {how}"),
        "measure both in the same way, on the same windows or documents",
    )
}

/// # Errors
/// [`Usage`] when the two were not measured on the same windows.
fn check(first: &EvalResult, second: &EvalResult) -> Result<(), Usage> {
    let (a, b) = (&first.perplexity, &second.perplexity);
    let different = |what: String| {
        Err(Usage::new(
            format!("the two results are of different {what}"),
            "measure both on the same windows of the same text",
        ))
    };
    if first.corpus.sha256 != second.corpus.sha256 {
        return different(format!(
            "texts: {} and {}",
            first.corpus.name, second.corpus.name
        ));
    }
    if first.corpus.tokens != second.corpus.tokens {
        let (a, b) = (first.corpus.tokens, second.corpus.tokens);
        return different(format!(
            "tokens: the text has {a} for one model and {b} for the other"
        ));
    }
    match (a.window, &a.window_indices) == (b.window, &b.window_indices) {
        true => Ok(()),
        false => different("windows".into()),
    }
}
