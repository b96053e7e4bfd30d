//! Model cards: a `README.md` as Hugging Face shows it, for each compressed model.

mod recipe;

use cinder_eval::tasks::TasksResult;

use crate::compression::{Compressed, wording as say};
use crate::group::{Group, Row};
use crate::input::{Results, Sourced};
use crate::markdown::{code, escape};
use crate::number;
use crate::wording;

/// File name and text of one model's card.
pub(crate) struct Card {
    pub name: String,
    pub text: String,
}

/// One card a compressed model: `model-card.md` where there is one, else `model-card-NAME.md`.
pub(crate) fn cards(
    models: &[Compressed<'_>],
    groups: &[Group<'_>],
    results: &Results,
) -> Vec<Card> {
    let mut cards: Vec<Card> = Vec::new();
    for model in models {
        let mut name = match models.len() {
            1 => "model-card.md".to_owned(),
            _ => format!("model-card-{}.md", slug(&model.label)),
        };
        // Labels differ, but not always in what a file name may hold.
        if cards.iter().any(|card| card.name == name) {
            name = format!("model-card-{}-{}.md", slug(&model.label), cards.len() + 1);
        }
        let text = card(model, groups, &results.tasks);
        cards.push(Card { name, text });
    }
    cards
}

fn slug(label: &str) -> String {
    let plain = label.chars().map(|c| match c {
        c if c.is_ascii_alphanumeric() || c == '.' => c.to_ascii_lowercase(),
        _ => '-',
    });
    let text: String = plain.take(80).collect();
    text.trim_matches(['-', '.']).to_owned()
}

/// A YAML string: JSON's are among them.
fn yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn card(model: &Compressed<'_>, groups: &[Group<'_>], tasks: &[Sourced<TasksResult>]) -> String {
    let (record, details) = (&model.record, &model.record.details);
    let shas: Vec<&str> = model
        .evaluations
        .iter()
        .map(|e| e.result.model.sha256.as_str())
        .collect();
    let rows: Vec<(&Group<'_>, &Row<'_>)> = groups
        .iter()
        .flat_map(|group| group.rows.iter().map(move |row| (group, row)))
        .filter(|(_, row)| shas.contains(&row.result.model.sha256.as_str()))
        .collect();
    let dense = rows
        .iter()
        .find_map(|(group, _)| Some(group.dense()?.result));
    let base = details.source.as_ref().map(|(name, _)| name.as_str());
    let base = base.or(dense.map(|result| result.model.name.as_str()));
    let tasks: Vec<&Sourced<TasksResult>> = tasks
        .iter()
        .filter(|each| {
            let own = &each.result.model;
            let named = own.recipe == record.recipe && own.recipe.is_some();
            shas.contains(&own.sha256.as_str())
                || (named && (own.keep_ratio - record.keep_ratio).abs() < 1e-4)
        })
        .collect();

    let mut text = String::from("---\n");
    if let Some(base) = base {
        text += &format!("base_model: {}\n", yaml(base));
    }
    text += "library_name: cinder\npipeline_tag: text-generation\ntags:\n  - compressed\n  - low-rank\n  - training-free\n";
    text += &index(model, &rows, &tasks);
    text += &format!("---\n\n# {}\n\n", escape(&model.label));
    let of = base.map_or_else(String::new, |base| format!(" of {}", escape(base)));
    let recipe = record.recipe.as_deref().unwrap_or("unknown");
    text += &format!(
        "A smaller version{of}, made by Cinder without any training: recipe {}, keep ratio {} (stored scalars of the decoder \
         projections, after / before).\n\n",
        code(recipe),
        wording::keep_ratio(record.keep_ratio)
    );
    text += &sizes(model, &rows);
    text += &perplexities(&rows);
    text += &accuracies(&tasks);
    text += &format!("## What was done\n\n{}\n\n", escape(&say::summary(model)));
    if let Some((corpus, hash, windows, window)) = &details.calibration {
        text += &format!(
            "Calibrated on {} windows of {} tokens of {} (sha256 {}). No weight was trained.\n\n",
            number::count(*windows as u64),
            number::count(*window as u64),
            escape(corpus),
            code(hash)
        );
    }
    // The path that the same model was opened by says more than its name.
    let opened = dense.filter(|result| {
        let source = details.source.as_ref();
        source.is_none_or(|(_, hash)| *hash == result.model.sha256)
    });
    let base = opened.map(|result| result.model.path.as_str()).or(base);
    text += &reproduce(model, base, &rows, &tasks);
    text += &limits(model);
    text
}

/// Hugging Face's index of evaluation results.
fn index(
    model: &Compressed<'_>,
    rows: &[(&Group<'_>, &Row<'_>)],
    tasks: &[&Sourced<TasksResult>],
) -> String {
    if rows.is_empty() && tasks.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "model-index:\n  - name: {}\n    results:\n",
        yaml(&model.label)
    );
    let mut entry = |kind: &str, data: &str, metric: &str, value: f64| {
        text += &format!(
            "      - task:\n          type: {kind}\n        dataset:\n          name: {0}\n          type: {0}\n        metrics:\n          \
             - type: {metric}\n            value: {value}\n",
            yaml(data)
        );
    };
    for (_, row) in rows {
        let value = row.result.perplexity.perplexity;
        entry(
            "text-generation",
            &row.result.corpus.name,
            "perplexity",
            value,
        );
    }
    for each in tasks {
        for (name, task) in &each.result.tasks {
            entry("text-generation", name, "accuracy", task.metrics.acc);
        }
    }
    text
}

fn sizes(model: &Compressed<'_>, rows: &[(&Group<'_>, &Row<'_>)]) -> String {
    let details = &model.record.details;
    let megabytes = |bytes: u64| format!("{} MB", number::significant(bytes as f64 / 1e6));
    let mut lines = Vec::new();
    if let Some((before, after)) = details.bytes {
        let dtype = details.dtype.as_deref().unwrap_or("the written precision");
        lines.push(format!(
            "weights as {}: {} before, {} after",
            escape(dtype),
            megabytes(before),
            megabytes(after)
        ));
    }
    if let Some(bytes) = details.directory_bytes {
        lines.push(format!("the directory: {}", megabytes(bytes)));
    }
    if let Some((_, row)) = rows.first() {
        let own = row.result;
        lines.push(format!(
            "parameters: {}",
            number::count(own.model.parameters)
        ));
        lines.push(format!(
            "weights in memory as {}: {}",
            escape(&own.dtype),
            megabytes(own.model.bytes)
        ));
        if let Some(bytes) = own.kv_bytes_per_token.filter(|bytes| *bytes > 0) {
            lines.push(format!("KV cache: {} bytes a token", number::count(bytes)));
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = lines.iter().map(|line| format!("- {line}\n")).collect();
    format!("## Sizes\n\n{}\n", lines.concat())
}

fn perplexities(rows: &[(&Group<'_>, &Row<'_>)]) -> String {
    if rows.is_empty() {
        return "## Quality\n\nNo perplexity of this model was among the results.\n\n".into();
    }
    let mut text = String::from(
        "## Perplexity\n\n| text | windows | dense | this model | × dense | computed in |\n|:--|:--|--:|--:|--:|:--|\n",
    );
    for (group, row) in rows {
        let show =
            |row: &Row<'_>| number::with_error(row.result.perplexity.perplexity, row.stderr());
        let times = row.relative.map_or("–".to_owned(), |relative| {
            number::with_error(relative.times, relative.stderr)
        });
        text += &format!(
            "| {} | {} of {} tokens | {} | {} | {times} | {} |\n",
            escape(&row.result.corpus.name),
            number::count(row.result.perplexity.windows),
            number::count(row.result.perplexity.window),
            group.dense().map_or("–".to_owned(), show),
            show(row),
            escape(&row.result.dtype),
        );
    }
    if let Some((group, _)) = rows.first() {
        let protocol = wording::protocol(group).join(" ");
        text += &format!("\n{}\n\n", escape(&protocol));
    }
    text
}

fn accuracies(tasks: &[&Sourced<TasksResult>]) -> String {
    if tasks.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "## Tasks\n\nRequests and scores as lm-evaluation-harness.\n\n| task | documents | shots | acc | acc_norm |\n|:--|--:|--:|--:|--:|\n",
    );
    let share = |value: f64, error: f64| {
        format!(
            "{} ± {} %",
            number::fixed(100.0 * value, 1),
            number::fixed(100.0 * error, 1)
        )
    };
    for each in tasks {
        for (name, task) in &each.result.tasks {
            let m = &task.metrics;
            let norm = m.acc_norm.zip(m.acc_norm_stderr);
            text += &format!(
                "| {} | {} | {} | {} | {} |\n",
                escape(name),
                number::count(task.n),
                task.shots,
                share(m.acc, m.acc_stderr),
                norm.map_or("–".to_owned(), |(value, error)| share(value, error))
            );
        }
    }
    text + "\n"
}

fn reproduce(
    model: &Compressed<'_>,
    base: Option<&str>,
    rows: &[(&Group<'_>, &Row<'_>)],
    tasks: &[&Sourced<TasksResult>],
) -> String {
    let details = &model.record.details;
    let again = recipe::again(model, base);
    let mut text = String::from("## How to make it again\n\n");
    let mut lines = vec![again.command];
    lines.extend(rows.iter().map(|(_, row)| row.result.command.clone()));
    lines.extend(tasks.iter().map(|each| each.result.command.clone()));
    // Indented, so that no line can end the block.
    for line in lines {
        let line: String = line
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        text += &format!("    {line}\n");
    }
    text += &format!("\n{}", again.about);
    if let Some((name, hash)) = &details.source {
        text += &format!(" Made from {} (sha256 {}).", escape(name), code(hash));
    }
    if let Some(version) = &details.tool_version {
        text += &format!(" Cinder {}.", escape(version));
    }
    text += "\n\n";
    if let Some(recipe) = &again.recipe {
        for line in recipe.lines() {
            text += &format!("    {line}\n");
        }
        text.push('\n');
    }
    text
}

fn limits(model: &Compressed<'_>) -> String {
    let mut lines = vec![
        "Quality was measured on the texts and tasks above and nothing else: other languages, domains and long contexts can \
         have lost more."
            .to_owned(),
        "Compression can change what a model refuses and what it is biased to; the base model's own limits still hold, and so \
         does its licence."
            .to_owned(),
        "The factored weights load in Cinder; `cinder export --dense` writes a directory that other tools load, of the base \
         model's size."
            .to_owned(),
    ];
    if let Some((corpus, ..)) = &model.record.details.calibration {
        lines.push(format!(
            "What is kept was decided by the calibration text, {}: text unlike it is served worse.",
            escape(corpus)
        ));
    }
    let lines: Vec<String> = lines.iter().map(|line| format!("- {line}\n")).collect();
    format!("## Limits\n\n{}", lines.concat())
}
