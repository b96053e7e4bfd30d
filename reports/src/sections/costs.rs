//! What compressing itself took: time by stage, and memory.

use super::table::Head;
use super::{Drawn, Section, Table, Value, finite};
use crate::chart::Words;
use crate::chart::bars::{Bar, Bars, Panel};
use crate::compression::{Compressed, most_different, wording as say};
use crate::error::ReportError;
use crate::number;

/// None where no record has timings.
pub(super) fn section(models: &[Compressed<'_>]) -> Result<Option<Section>, ReportError> {
    let timed: Vec<&Compressed<'_>> = models
        .iter()
        .filter(|model| model.record.details.stages.iter().any(|(_, s)| *s > 0.0))
        .collect();
    if timed.is_empty() {
        return Ok(None);
    }
    let mut stages: Vec<&str> = Vec::new();
    for model in &timed {
        for (name, seconds) in &model.record.details.stages {
            finite(
                &model.record.file,
                &format!("stage_seconds.{name}"),
                *seconds,
            )?;
            if !stages.contains(&name.as_str()) {
                stages.push(name);
            }
        }
    }
    let of = |model: &Compressed<'_>, stage: &str| -> f64 {
        let stages = model.record.details.stages.iter();
        stages
            .filter(|(name, _)| name == stage)
            .map(|(_, s)| s)
            .sum()
    };
    // The data of the chart has a line for each stage; what is read has one for each model.
    let mut read = Table::new(&[("model", "model", "")]);
    read.heads.extend(stages.iter().map(|stage| Head {
        key: "seconds",
        name: (*stage).to_owned(),
        unit: "s",
        number: true,
    }));
    let rest = Table::new(&[
        ("total_seconds", "whole run", "s"),
        ("peak_rss_bytes", "peak memory", "MB"),
        ("bytes_before", "weights before", "MB"),
        ("bytes_after", "weights after", "MB"),
    ]);
    read.heads.extend(rest.heads);
    let mut table = Table::new(&[
        ("model", "model", ""),
        ("stage", "stage", ""),
        ("seconds", "time", "s"),
        ("total_seconds", "whole run", "s"),
        ("peak_rss_bytes", "peak memory", "MB"),
        ("bytes_before", "weights before", "MB"),
        ("bytes_after", "weights after", "MB"),
    ]);
    let megabytes = |bytes: Option<u64>| {
        let show = |bytes: f64| number::significant(bytes / 1e6);
        Value::optional(bytes.map(|bytes| bytes as f64), show)
    };
    let shown = most_different(models, say::MOST_SHOWN);
    let mut bars = Vec::new();
    for (index, model) in models.iter().enumerate() {
        let details = &model.record.details;
        if !timed.iter().any(|other| std::ptr::eq(*other, model)) {
            continue;
        }
        let values: Vec<f64> = stages.iter().map(|stage| of(model, stage)).collect();
        let label = || Value::Text(model.label.clone());
        let seconds = |seconds: &f64| Value::Number(*seconds, number::fixed(*seconds, 1));
        let rest = [
            Value::optional(model.record.seconds, |s| number::fixed(s, 1)),
            megabytes(details.peak_rss_bytes),
            megabytes(details.bytes.map(|bytes| bytes.0)),
            megabytes(details.bytes.map(|bytes| bytes.1)),
        ];
        for (stage, value) in stages.iter().zip(&values) {
            let stage = Value::Text((*stage).to_owned());
            let mut row = vec![label(), stage, seconds(value)];
            row.extend(rest.clone());
            table.rows.push(row);
        }
        let mut row = vec![label()];
        row.extend(values.iter().map(seconds));
        row.extend(rest);
        read.rows.push(row);
        if shown.contains(&index) {
            bars.push(Bar {
                label: model.label.clone(),
                error: None,
                shown: format!("{} s", number::fixed(values.iter().sum(), 1)),
                values,
                series: 0,
            });
        }
    }
    let described = bars
        .iter()
        .map(|bar| format!("{} {}", bar.label, bar.shown));
    let chart = Bars {
        words: Words {
            title: "Time of the compression by stage".into(),
            subtitle: "Wall time; statistics that were there already took none".into(),
            note: String::new(),
            description: described.collect::<Vec<_>>().join("; "),
        },
        axis: "wall time (s)".into(),
        segments: stages.iter().map(|stage| (*stage).to_owned()).collect(),
        panels: vec![Panel {
            title: String::new(),
            reference: None,
            bars,
        }],
        shared: true,
        reference: None,
    };
    Ok(Some(Section {
        id: "costs".into(),
        heading: "What the compression took".into(),
        introduction: "No training: statistics of a calibration text, then linear algebra block by block. Models of one recipe share \
                       their statistics, so the first pays for all."
            .into(),
        figures: vec![Drawn::bars("compression-time", &chart, &table)?],
        tables: vec![(String::new(), read)],
        commands: Vec::new(),
        files: timed.iter().map(|m| m.record.file.display().to_string()).collect(),
    }))
}
