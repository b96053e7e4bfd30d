//! `cinder eval tasks`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cinder::eval::SCHEMA;
use cinder::eval::tasks::{DocumentScores, FileIdentity, Questions, Task, TasksResult, read};
use cinder::models::checkpoint::sha256_file;

use super::{write_lines, write_result};
use crate::cli::context::{
    Cache, Context, Usage, Weights, command_line, evaluation_data, identity,
};
use crate::cli::format::{count, table};
use crate::cli::memory::Length;

/// Zero-shot accuracy on multiple-choice tasks, with the requests and metrics of lm-evaluation-harness
///
/// `acc` is the share of documents whose right choice has the highest log-likelihood, `acc_norm` that by log-likelihood per
/// character. For `lambada_openai` it is the share of last words that the model would have said, and their perplexity.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    #[arg(
        long,
        required = true,
        value_name = "TASK,TASK",
        value_delimiter = ',',
        help = format!("Which tasks: {}", Task::names().join(", "))
    )]
    tasks: Vec<String>,
    /// Folder of the tasks' files: JSONL as published, or Arrow or Parquet as from Hugging Face [default: what `cinder fetch
    /// eval-tasks` brought]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Score only the first N documents of each task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Show N documents with their answers before each: the first others of the evaluated file, a blank line between two
    #[arg(long, default_value_t = 0, value_name = "N")]
    shots: usize,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: Cache,
    /// Name of the model in reports
    #[arg(long)]
    name: Option<String>,
    /// Also write the full result here
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write the scores of each document here, one JSON object a line: `cinder compare` pairs them
    #[arg(long, value_name = "FILE")]
    documents: Option<PathBuf>,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let tasks = tasks(&args.tasks)?;
    if args.limit == Some(0) {
        return Err(Usage::new("`--limit` is 0", "score at least one document").into());
    }
    let checkpoint = context.open(&args.model)?;
    let cached = args.cache.of(&checkpoint)?;
    let precision = args.weights.weights;
    let folder = match &args.data {
        Some(folder) => folder.clone(),
        None => evaluation_data("without `--data`, tasks are")?,
    };
    // Before the weights are there: bad data is found at once.
    let tokenizer = checkpoint.tokenizer()?;
    let max_context = checkpoint.config().max_context;
    let mut all = Vec::new();
    for task in tasks {
        let data = read(&task, &folder)?;
        let questions =
            Questions::new(task, data, args.limit, args.shots, &tokenizer, max_context)?;
        all.push(questions);
    }
    let most = |size: fn(&Questions) -> usize| all.iter().map(size).max().unwrap_or(0);
    let length = Length {
        held: most(|questions| questions.plan().held()),
        at_once: most(|questions| questions.plan().at_once()),
    };
    let decoder = context.decoder(&checkpoint, precision, cached, length)?;
    let start = Instant::now();
    let mut results = BTreeMap::new();
    let mut documents: Vec<DocumentScores> = Vec::new();
    for questions in &all {
        let (result, scores) = questions.ask(&decoder, &context.printer)?;
        if result.truncated > 0 {
            context.printer.warn(&format!(
                "{}: {} requests are longer than the model's context and lost their beginning",
                questions.name(),
                result.truncated
            ));
        }
        results.insert(questions.name().to_owned(), result);
        documents.extend(scores);
    }
    if let Some(path) = &args.documents {
        write_lines(path, &documents)?;
    }
    let documents_file = args.documents.as_ref().map(|path| {
        Ok::<_, anyhow::Error>(FileIdentity {
            path: path.display().to_string(),
            sha256: sha256_file(path)?,
        })
    });
    let result = TasksResult {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: identity(&checkpoint, precision, &args.model, args.name)?,
        tasks: results,
        device: context.device_name.clone(),
        dtype: precision.name().into(),
        cache: cached.format,
        kv_bytes_per_token: checkpoint.kv_bytes_per_token(cached.format),
        residual_window: cached.residual_window,
        bos_ids: tokenizer.bos_ids().to_vec(),
        documents_file: documents_file.transpose()?,
        command: command_line(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if let Some(path) = &args.out {
        write_result(path, &result)?;
    }
    let value = serde_json::to_value(&result)?;
    context
        .printer
        .result(&value, &text(&result, &args.tasks))?;
    Ok(ExitCode::SUCCESS)
}

/// The tasks of these names.
///
/// # Errors
/// [`Usage`] for a name that no task has, or one given twice.
fn tasks(names: &[String]) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = Vec::new();
    for name in names {
        let name = name.trim();
        let Some(task) = Task::find(name) else {
            let known = Task::names().join(", ");
            let hint = format!("the tasks are {known}");
            return Err(Usage::new(format!("there is no task `{name}`"), hint).into());
        };
        if tasks.iter().any(|other| other.name == task.name) {
            let what = format!("the task `{name}` is given twice");
            return Err(Usage::new(what, "give each task once").into());
        }
        tasks.push(task);
    }
    Ok(tasks)
}

fn text(result: &TasksResult, order: &[String]) -> String {
    let mut table = table(&["task", "n", "shots", "acc", "acc_norm", "perplexity"]);
    let share = |value: f64, stderr: f64| format!("{value:.4} ± {stderr:.4}");
    for name in order {
        let Some(task) = result.tasks.get(name.trim()) else {
            continue;
        };
        let m = &task.metrics;
        let optional = |value: Option<f64>, stderr: Option<f64>| {
            value
                .zip(stderr)
                .map_or("–".into(), |(value, stderr)| share(value, stderr))
        };
        table.add_row([
            name.trim().to_owned(),
            count(task.n),
            task.shots.to_string(),
            share(m.acc, m.acc_stderr),
            optional(m.acc_norm, m.acc_norm_stderr),
            optional(m.perplexity, m.perplexity_stderr),
        ]);
    }
    table.trim_fmt()
}
