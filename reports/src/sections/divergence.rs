//! How far models' predictions are from a reference's, and paired comparisons of perplexities.

use super::{Drawn, Section, Table, Value, distinct, finite};
use crate::chart::bars::{Bar, Bars, Panel};
use crate::chart::lines::{Hue, Line, Lines, Multiple};
use crate::chart::{Scale, Words};
use crate::error::ReportError;
use crate::input::Sourced;
use crate::number;
use crate::records::{ComparisonResult, DivergenceResult};

/// None without results.
pub(super) fn section(
    results: &[Sourced<DivergenceResult>],
) -> Result<Option<Section>, ReportError> {
    if results.is_empty() {
        return Ok(None);
    }
    let mut results: Vec<&Sourced<DivergenceResult>> = results.iter().collect();
    results.sort_by(|a, b| {
        let key = |e: &Sourced<DivergenceResult>| e.result.reference.corpus.name.clone();
        let (left, right) = (&a.result.model, &b.result.model);
        key(a)
            .cmp(&key(b))
            .then(left.recipe.cmp(&right.recipe))
            .then(right.keep_ratio.total_cmp(&left.keep_ratio))
            .then_with(|| a.file.cmp(&b.file))
    });
    results.dedup_by(|a, b| a.result == b.result);
    for each in &results {
        let d = &each.result.divergence;
        finite(&each.file, "kl", d.kl.mean + d.kl.stderr)?;
        finite(&each.file, "perplexity_ratio", d.perplexity_ratio.mean)?;
    }
    let names = results.iter().map(|each| {
        let more = format!(
            "{} {}",
            each.result.dtype, each.result.reference.corpus.name
        );
        (each.result.model.name.clone(), more)
    });
    let labels = distinct(&names.collect::<Vec<_>>());
    let table = table(&results, &labels);
    let mut figures = vec![Drawn::bars(
        "kl-divergence",
        &bars(&results, &labels),
        &table,
    )?];
    if let Some((lines, data)) = by_position(&results, &labels) {
        figures.push(Drawn::lines("kl-divergence-by-position", &lines, &data)?);
    }
    let commands = results.iter().map(|each| each.result.command.clone());
    let files = results.iter().map(|each| each.file.display().to_string());
    Ok(Some(Section {
        id: "divergence".into(),
        heading: "Distance from the reference model".into(),
        introduction: "Perplexity can stay while answers change. The Kullback–Leibler divergence of the next-token distributions \
                       says how far a model's predictions moved from the reference's on the same text; 0 is none."
            .into(),
        figures,
        tables: vec![(String::new(), table)],
        commands: commands.filter(|command| !command.is_empty()).collect(),
        files: files.collect(),
    }))
}

fn bars(results: &[&Sourced<DivergenceResult>], labels: &[String]) -> Bars {
    let mut panels: Vec<Panel> = Vec::new();
    for (each, label) in results.iter().zip(labels) {
        let (result, kl) = (&each.result, each.result.divergence.kl);
        let title = format!(
            "{}, against {}",
            result.reference.corpus.name, result.reference.model.name
        );
        let bar = Bar {
            label: label.clone(),
            values: vec![kl.mean],
            error: Some(kl.stderr),
            shown: number::significant(kl.mean),
            series: 1,
        };
        match panels.last_mut() {
            Some(panel) if panel.title == title => panel.bars.push(bar),
            _ => panels.push(Panel {
                title,
                reference: None,
                bars: vec![bar],
            }),
        }
    }
    let all = panels.iter().flat_map(|panel| &panel.bars);
    let all = all.map(|bar| format!("{} {}", bar.label, bar.shown));
    Bars {
        words: Words {
            title: "Divergence from the reference model".into(),
            subtitle: "Mean Kullback–Leibler divergence of the next-token distributions".into(),
            note: "Bars at the ends: ± 1 standard error over the windows.".into(),
            description: format!(
                "Nats per token, lower is better: {}.",
                all.collect::<Vec<_>>().join("; ")
            ),
        },
        axis: "KL divergence (nats per token, lower is better)".into(),
        segments: Vec::new(),
        panels,
        shared: false,
        reference: None,
    }
}

fn by_position(
    results: &[&Sourced<DivergenceResult>],
    labels: &[String],
) -> Option<(Lines, Table)> {
    const MOST: usize = 6;
    let mut data = Table::new(&[
        ("model", "model", ""),
        ("first", "tokens before, first", "#"),
        ("last", "tokens before, last", "#"),
        ("kl", "KL", "nats/token"),
        ("nll", "loss", "nats/token"),
        ("reference_nll", "reference's loss", "nats/token"),
    ]);
    let mut lines = Vec::new();
    for (index, (each, label)) in results.iter().zip(labels).enumerate() {
        let positions = &each.result.divergence.by_position;
        for at in positions {
            let show = number::significant;
            data.rows.push(vec![
                Value::Text(label.clone()),
                Value::count(at.first),
                Value::count(at.last),
                Value::Number(at.kl, show(at.kl)),
                Value::Number(at.nll, show(at.nll)),
                Value::Number(at.reference_nll, show(at.reference_nll)),
            ]);
        }
        let points: Vec<(f64, f64)> = positions
            .iter()
            .filter(|at| at.kl.is_finite())
            .map(|at| {
                (
                    f64::midpoint(at.first as f64, at.last as f64).max(1.0),
                    at.kl,
                )
            })
            .collect();
        if index < MOST && !points.is_empty() {
            lines.push(Line {
                hue: Hue::Series(index),
                errors: vec![None; points.len()],
                points,
                joined: true,
            });
        }
    }
    let all = || lines.iter().flat_map(|line| &line.points);
    let across: Vec<f64> = all().map(|p| p.0).collect();
    let high = all().map(|p| p.1).fold(0.0, f64::max);
    if across.len() < 2 || high <= 0.0 {
        return None;
    }
    let note = match labels.len() > MOST {
        true => format!(
            "The first {MOST} of {} models; the data has all.",
            labels.len()
        ),
        false => String::new(),
    };
    Some((
        Lines {
            words: Words {
                title: "Divergence by position in the window".into(),
                subtitle: "Mean over the positions of all windows; each point stands in the middle of its range".into(),
                note,
                description: "KL divergence by the number of tokens before; the data file has the numbers.".into(),
            },
            x_axis: "tokens before, in the same window (log scale)".into(),
            y_axis: "KL divergence (nats per token)".into(),
            x: Scale::positive(&[1.0, 1e6], &across),
            y: Scale::exactly(0.0, high * 1.1, false),
            legend: labels.iter().take(MOST).cloned().collect(),
            ramp: None,
            diagonal: None,
            panels: vec![Multiple { title: String::new(), lines }],
        },
        data,
    ))
}

fn table(results: &[&Sourced<DivergenceResult>], labels: &[String]) -> Table {
    let mut table = Table::new(&[
        ("model", "model", ""),
        ("corpus", "text", ""),
        ("keep_ratio", "keep ratio", "#"),
        ("kl", "KL", "nats/token"),
        ("kl_stderr", "± KL", "nats/token"),
        ("kl_p99", "KL, 99 % below", "nats/token"),
        ("top1_agreement", "same first choice", "%"),
        ("top1_agreement_stderr", "± same first choice", "%"),
        ("delta_p_rms", "Δp, root mean square", "%"),
        ("perplexity_ratio", "× reference's perplexity", "#"),
        ("perplexity_ratio_stderr", "± ×", "#"),
        ("tokens_scored", "tokens", "#"),
    ]);
    let percent = |value: f64| Value::Number(value, number::fixed(100.0 * value, 2));
    let real = |value: f64| Value::Number(value, number::significant(value));
    for (each, label) in results.iter().zip(labels) {
        let (result, d) = (&each.result, &each.result.divergence);
        let keep = result.model.keep_ratio;
        table.rows.push(vec![
            Value::Text(label.clone()),
            Value::Text(result.reference.corpus.name.clone()),
            Value::Number(keep, crate::wording::keep_ratio(keep)),
            real(d.kl.mean),
            real(d.kl.stderr),
            real(d.kl_p99),
            percent(d.top1_agreement.mean),
            percent(d.top1_agreement.stderr),
            percent(d.delta_p_rms),
            real(d.perplexity_ratio.mean),
            real(d.perplexity_ratio.stderr),
            Value::count(d.tokens_scored),
        ]);
    }
    table
}

/// None without any.
pub(super) fn comparisons(
    results: &[Sourced<ComparisonResult>],
) -> Result<Option<Section>, ReportError> {
    if results.is_empty() {
        return Ok(None);
    }
    let mut table = Table::new(&[
        ("first", "first", ""),
        ("second", "second", ""),
        ("corpus", "text", ""),
        ("first_perplexity", "its perplexity", "#"),
        ("second_perplexity", "the second's", "#"),
        ("ratio", "second / first", "#"),
        ("ratio_stderr", "± ratio", "#"),
        ("p_value", "p-value", "#"),
        ("pairs", "windows", "#"),
        ("larger", "second higher in", "windows"),
    ]);
    let mut results: Vec<&Sourced<ComparisonResult>> = results.iter().collect();
    results.sort_by(|a, b| a.file.cmp(&b.file));
    let real = |value: f64| Value::Number(value, number::significant(value));
    for each in &results {
        let r = &each.result;
        finite(&each.file, "perplexity_ratio", r.perplexity_ratio.mean)?;
        finite(&each.file, "p_value", r.nll.p_value)?;
        table.rows.push(vec![
            Value::Text(r.first.model.name.clone()),
            Value::Text(r.second.model.name.clone()),
            Value::Text(r.corpus.name.clone()),
            real(r.first.perplexity),
            real(r.second.perplexity),
            real(r.perplexity_ratio.mean),
            real(r.perplexity_ratio.stderr),
            Value::Number(r.nll.p_value, format!("{:.1e}", r.nll.p_value)),
            Value::count(r.nll.pairs),
            Value::count(r.nll.larger),
        ]);
    }
    Ok(Some(Section {
        id: "comparisons".into(),
        heading: "Paired comparisons".into(),
        introduction: "Perplexities of two models on the same windows. The p-value is that of a sign-flip test over the windows: \
                       how often chance alone would make a difference this large."
            .into(),
        figures: Vec::new(),
        tables: vec![(String::new(), table)],
        commands: Vec::new(),
        files: results.iter().map(|each| each.file.display().to_string()).collect(),
    }))
}
