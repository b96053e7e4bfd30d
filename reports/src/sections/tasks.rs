//! Accuracy on tasks, task by task and model by model.

use std::collections::BTreeSet;

use cinder_eval::tasks::{TaskResult, TasksResult};

use super::{Drawn, Section, Table, Value, distinct, finite};
use crate::chart::Words;
use crate::chart::bars::{Bar, Bars, Panel};
use crate::error::ReportError;
use crate::input::Sourced;
use crate::number;

/// Name of the score, its value and standard error.
type Score = (
    &'static str,
    &'static str,
    &'static str,
    fn(&TaskResult) -> Option<(f64, f64)>,
);

const SCORES: [Score; 2] = [
    (
        "task-accuracy",
        "Accuracy",
        "the right choice has the highest log-likelihood",
        |task| Some((task.metrics.acc, task.metrics.acc_stderr)),
    ),
    (
        "task-accuracy-by-length",
        "Accuracy by length",
        "the right choice has the highest log-likelihood per character (acc_norm)",
        |task| task.metrics.acc_norm.zip(task.metrics.acc_norm_stderr),
    ),
];

/// None without results.
pub(super) fn section(results: &[Sourced<TasksResult>]) -> Result<Option<Section>, ReportError> {
    if results.is_empty() {
        return Ok(None);
    }
    let mut results: Vec<&Sourced<TasksResult>> = results.iter().collect();
    results.sort_by(|a, b| {
        let (left, right) = (&a.result.model, &b.result.model);
        left.recipe
            .cmp(&right.recipe)
            .then(right.keep_ratio.total_cmp(&left.keep_ratio))
            .then_with(|| a.file.cmp(&b.file))
    });
    results.dedup_by(|a, b| a.result.tasks == b.result.tasks && a.result.model == b.result.model);
    for each in &results {
        for (name, task) in &each.result.tasks {
            finite(&each.file, &format!("tasks.{name}.acc"), task.metrics.acc)?;
            for (_, _, _, score) in SCORES {
                if let Some((value, error)) = score(task) {
                    finite(&each.file, &format!("tasks.{name}"), value + error)?;
                }
            }
        }
    }
    let names = results.iter().map(|each| {
        let more = format!("{} {}", each.result.dtype, each.result.cache);
        (each.result.model.name.clone(), more)
    });
    let labels = distinct(&names.collect::<Vec<_>>());
    let table = table(&results, &labels);
    let mut figures = Vec::new();
    for (stem, title, what, score) in SCORES {
        if let Some(bars) = bars(&results, &labels, title, what, score) {
            figures.push(Drawn::bars(stem, &bars, &table)?);
        }
    }
    let commands = results.iter().map(|each| each.result.command.clone());
    let files = results.iter().map(|each| each.file.display().to_string());
    Ok(Some(Section {
        id: "tasks".into(),
        heading: "Accuracy on tasks".into(),
        introduction: "Requests and scores are those of lm-evaluation-harness. ± is one standard error over the documents; \
                       models answer the same documents, so differences between them are surer than the errors say."
            .into(),
        figures,
        tables: vec![(String::new(), table)],
        commands: commands.collect(),
        files: files.collect(),
    }))
}

/// Tasks of any result, in name order.
fn names<'a>(results: &[&'a Sourced<TasksResult>]) -> Vec<&'a str> {
    let names = results.iter().flat_map(|each| each.result.tasks.keys());
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    names.into_iter().collect()
}

fn bars(
    results: &[&Sourced<TasksResult>],
    labels: &[String],
    title: &str,
    what: &str,
    score: fn(&TaskResult) -> Option<(f64, f64)>,
) -> Option<Bars> {
    let mut panels = Vec::new();
    for name in names(results) {
        let mut bars = Vec::new();
        let mut head = name.to_owned();
        let mut dense = None;
        for (index, each) in results.iter().enumerate() {
            let Some((task, (value, error))) = each
                .result
                .tasks
                .get(name)
                .and_then(|task| Some((task, score(task)?)))
            else {
                continue;
            };
            head = format!("{name} ({} documents)", number::count(task.n));
            if each.result.model.recipe.is_none() {
                dense = dense.or(Some(100.0 * value));
            }
            bars.push(Bar {
                label: labels[index].clone(),
                values: vec![100.0 * value],
                error: Some(100.0 * error),
                shown: format!("{} %", number::fixed(100.0 * value, 1)),
                series: series(&each.result),
            });
        }
        if !bars.is_empty() {
            let reference = dense.filter(|_| bars.len() > 1);
            panels.push(Panel {
                title: head,
                reference,
                bars,
            });
        }
    }
    let described = panels.iter().map(|panel| {
        let bars = panel
            .bars
            .iter()
            .map(|b| format!("{} {}", b.label, b.shown));
        format!("{}: {}", panel.title, bars.collect::<Vec<_>>().join(", "))
    });
    let description = format!(
        "{title}, higher is better. {}.",
        described.collect::<Vec<_>>().join("; ")
    );
    (!panels.is_empty()).then(|| Bars {
        words: Words {
            title: format!("{title} on tasks"),
            subtitle: format!("Share of documents where {what}"),
            note: "Bars at the ends: ± 1 standard error over the documents.".into(),
            description,
        },
        axis: "documents answered rightly (%, higher is better)".into(),
        segments: Vec::new(),
        panels,
        shared: true,
        reference: Some("dense".into()),
    })
}

/// The dense model's colour is not that of any compressed one.
fn series(result: &TasksResult) -> usize {
    usize::from(result.model.recipe.is_some())
}

fn table(results: &[&Sourced<TasksResult>], labels: &[String]) -> Table {
    let mut table = Table::new(&[
        ("task", "task", ""),
        ("model", "model", ""),
        ("keep_ratio", "keep ratio", "#"),
        ("shots", "shots", "#"),
        ("documents", "documents", "#"),
        ("acc", "acc", "%"),
        ("acc_stderr", "± acc", "%"),
        ("acc_norm", "acc_norm", "%"),
        ("acc_norm_stderr", "± acc_norm", "%"),
        ("perplexity", "perplexity", "#"),
        ("perplexity_stderr", "± perplexity", "#"),
    ]);
    let percent = |value: f64| number::fixed(100.0 * value, 1);
    for name in names(results) {
        for (each, label) in results.iter().zip(labels) {
            let Some(task) = each.result.tasks.get(name) else {
                continue;
            };
            let m = &task.metrics;
            let keep = each.result.model.keep_ratio;
            table.rows.push(vec![
                Value::Text(name.to_owned()),
                Value::Text(label.clone()),
                Value::Number(keep, crate::wording::keep_ratio(keep)),
                Value::count(task.shots),
                Value::count(task.n),
                Value::Number(m.acc, percent(m.acc)),
                Value::Number(m.acc_stderr, percent(m.acc_stderr)),
                Value::optional(m.acc_norm, percent),
                Value::optional(m.acc_norm_stderr, percent),
                Value::optional(m.perplexity, number::significant),
                Value::optional(m.perplexity_stderr, number::significant),
            ]);
        }
    }
    table
}
