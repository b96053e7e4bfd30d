//! Two results of tasks, document by document.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cinder::eval::tasks::{DocumentScores, TaskResult, TasksResult};
use cinder::eval::{ComparedModel, ComparedTask, ComparedTasks, Paired, SCHEMA};
use cinder::models::checkpoint::sha256;

use super::{NoResult, different};
use crate::cli::context::{Context, command_line};
use crate::cli::format::table;

pub fn run(
    context: &Context,
    (a, first): (&Path, TasksResult),
    (b, second): (&Path, TasksResult),
) -> Result<()> {
    let names = |result: &TasksResult| result.tasks.keys().cloned().collect::<Vec<_>>();
    if names(&first) != names(&second) {
        let (a, b) = (names(&first).join(", "), names(&second).join(", "));
        return Err(different("documents", format!("tasks: {a} and {b}")).into());
    }
    for (name, one) in &first.tasks {
        check(name, one, &second.tasks[name])?;
    }
    let (of_a, of_b) = (documents(a, &first)?, documents(b, &second)?);
    let seed = context.seed.unwrap_or(0);
    let mut compared = BTreeMap::new();
    for (name, one) in &first.tasks {
        let of = |all: &[DocumentScores]| -> Vec<DocumentScores> {
            all.iter().filter(|d| d.task == *name).cloned().collect()
        };
        let (one_by_one, other) = (of(&of_a), of(&of_b));
        let n = one.n as usize;
        for (path, found) in [(a, &one_by_one), (b, &other)] {
            if found.len() != n {
                let why = format!(
                    "its documents file has {} scores of `{name}`, not {n}",
                    found.len()
                );
                return Err(NoResult::new(path, why).into());
            }
        }
        let paired = |value: &dyn Fn(&DocumentScores) -> f64| {
            let values = |all: &[DocumentScores]| all.iter().map(value).collect::<Vec<f64>>();
            Paired::of(&values(&one_by_one), &values(&other), seed)
        };
        let hit = |right: bool| f64::from(u8::from(right));
        let normed = one_by_one
            .iter()
            .chain(&other)
            .all(|d| d.is_right_norm().is_some());
        let entry = ComparedTask {
            first: one.metrics.acc,
            second: second.tasks[name].metrics.acc,
            acc: paired(&|d| hit(d.is_right())),
            acc_norm: normed.then(|| paired(&|d| hit(d.is_right_norm() == Some(true)))),
            gold_log_likelihood: paired(&|d| d.gold_log_likelihood().unwrap_or(0.0)),
        };
        compared.insert(name.clone(), entry);
    }
    let mut rows = table(&[
        "task",
        "n",
        "first",
        "second",
        "difference",
        "p",
        "only first right",
        "only second right",
    ]);
    for (name, entry) in &compared {
        let paired = &entry.acc;
        rows.add_row([
            name.clone(),
            paired.pairs.to_string(),
            format!("{:.4}", entry.first),
            format!("{:.4}", entry.second),
            format!(
                "{:+.4} ± {:.4}",
                paired.difference.mean, paired.difference.stderr
            ),
            format!("{:.2e}", paired.p_value),
            paired.smaller.to_string(),
            paired.larger.to_string(),
        ]);
    }
    let text = format!(
        "first: {}\nsecond: {}\n{rows}",
        first.model.name, second.model.name
    );
    let result = ComparedTasks {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        first: ComparedModel { model: first.model },
        second: ComparedModel {
            model: second.model,
        },
        tasks: compared,
        command: command_line(),
    };
    context
        .printer
        .result(&serde_json::to_value(&result)?, &text)?;
    Ok(())
}

/// Only the same documents, asked in the same way, make pairs.
fn check(name: &str, one: &TaskResult, other: &TaskResult) -> Result<()> {
    let hashes = |task: &TaskResult| {
        task.files
            .iter()
            .map(|f| f.sha256.clone())
            .collect::<Vec<_>>()
    };
    let what = match () {
        () if hashes(one) != hashes(other) => "files",
        () if one.version != other.version => "versions of the task",
        () if one.shots != other.shots => "shots",
        () if one.n != other.n => "numbers of documents",
        () => return Ok(()),
    };
    Err(different("documents", format!("{what} of `{name}`")).into())
}

/// The scores of a result's documents, from its side file: where it was written, or beside the result.
fn documents(path: &Path, result: &TasksResult) -> Result<Vec<DocumentScores>> {
    let Some(file) = &result.documents_file else {
        let why = "it names no file with the scores of each document".to_owned();
        return Err(NoResult::new(path, why).into());
    };
    let given = PathBuf::from(&file.path);
    let beside = path
        .parent()
        .zip(given.file_name())
        .map(|(folder, name)| folder.join(name));
    let found = [Some(given.clone()), beside]
        .into_iter()
        .flatten()
        .find(|p| p.is_file());
    let found = found.ok_or_else(|| {
        NoResult::new(
            path,
            format!("its documents file `{}` is gone", given.display()),
        )
    })?;
    let bytes = fs_err::read(&found)?;
    if sha256(&bytes) != file.sha256 {
        let why = format!(
            "`{}` is not the documents file that was written with it",
            found.display()
        );
        return Err(NoResult::new(path, why).into());
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().enumerate().map(|(index, line)| {
        serde_json::from_str(line).map_err(|error| {
            let why = format!("`{}`, line {}: {error}", found.display(), index + 1);
            NoResult::new(path, why).into()
        })
    });
    lines.collect()
}
