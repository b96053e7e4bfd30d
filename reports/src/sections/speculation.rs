//! Speculative decoding: speed, acceptance, where the time goes, and whether the cost model knew.

use cinder_eval::speculation::{SpeculationResult, SpeculationRun};

use super::{Drawn, Section, Table, Value, finite};
use crate::chart::bars::{Bar, Bars, Panel};
use crate::chart::lines::{Hue, Line, Lines, Multiple};
use crate::chart::{Scale, Words};
use crate::error::ReportError;
use crate::input::Sourced;
use crate::number;

/// Lines that can be told apart.
const MOST: usize = 6;
const STAGES: [&str; 5] = ["prefill", "draft", "read", "verify", "overhead"];

/// One part a result.
pub(super) fn sections(
    results: &[Sourced<SpeculationResult>],
) -> Result<Vec<Section>, ReportError> {
    let mut results: Vec<&Sourced<SpeculationResult>> = results.iter().collect();
    results.sort_by(|a, b| a.file.cmp(&b.file));
    results.dedup_by(|a, b| a.result == b.result);
    let parts = results.iter().enumerate();
    parts.map(|(index, each)| section(index, each)).collect()
}

fn section(index: usize, each: &Sourced<SpeculationResult>) -> Result<Section, ReportError> {
    let result = &each.result;
    let all: Vec<&SpeculationRun> = result.baselines.iter().chain(&result.runs).collect();
    for run in &all {
        finite(&each.file, "tokens_per_second", run.tokens_per_second)?;
        finite(&each.file, "seconds", times(run).iter().sum())?;
        for share in &run.acceptance_by_depth {
            finite(&each.file, "acceptance_by_depth", *share)?;
        }
        for speedup in [run.predicted_speedup, run.speedup_over_plain]
            .into_iter()
            .flatten()
        {
            finite(&each.file, "speedup", speedup)?;
        }
    }
    let table = table(&all);
    let subtitle = format!(
        "{} with {} as draft, {}",
        result.model, result.draft, result.device
    );
    let stem = |name: &str| match index {
        0 => name.to_owned(),
        _ => format!("{name}-{}", index + 1),
    };
    let mut figures = Vec::new();
    if !all.is_empty() {
        let chart = speed(result, &subtitle);
        figures.push(Drawn::bars(&stem("speculation-speed"), &chart, &table)?);
    }
    if let Some((chart, data)) = acceptance(&result.runs, &subtitle) {
        figures.push(Drawn::lines(
            &stem("speculation-acceptance"),
            &chart,
            &data,
        )?);
    }
    if let Some(chart) = split(&all, &subtitle) {
        figures.push(Drawn::bars(&stem("speculation-time"), &chart, &table)?);
    }
    if let Some((chart, data)) = model(&result.runs, &subtitle) {
        figures.push(Drawn::lines(&stem("speculation-model"), &chart, &data)?);
    }
    Ok(Section {
        id: format!("speculation-{}", index + 1),
        heading: format!("Speculative decoding: {}", result.model),
        introduction: format!(
            "Tokens are drafted by {} and verified by the model, which changes no token. The acceptance length counts the token that \
             the model adds itself (the bonus) where the column says so.",
            result.draft
        ),
        figures,
        tables: vec![(String::new(), table)],
        commands: vec![result.command.clone()],
        files: vec![each.file.display().to_string()],
    })
}

fn times(run: &SpeculationRun) -> [f64; 5] {
    let s = &run.seconds;
    [s.prefill, s.draft, s.read, s.verify, s.overhead]
}

/// `2.5 GB/s`, or that nothing holds the speed back.
fn bandwidth(run: &SpeculationRun) -> String {
    run.bandwidth_bytes_per_second
        .map_or("no limit on reading".into(), |b| {
            format!("blocks read at {} GB/s", number::significant(b / 1e9))
        })
}

fn speed(result: &SpeculationResult, subtitle: &str) -> Bars {
    let mut panels: Vec<Panel> = Vec::new();
    let plain = result.baselines.iter().map(|run| (run, 0));
    for (run, series) in plain.chain(result.runs.iter().map(|run| (run, 1))) {
        let title = bandwidth(run);
        let speed = run.tokens_per_second;
        let times = run.speedup_over_plain;
        let times = times.map_or(String::new(), |t| format!(" (×{})", number::fixed(t, 2)));
        let bar = Bar {
            label: run.label.clone(),
            values: vec![speed],
            error: None,
            shown: format!("{}{times}", number::significant(speed)),
            series,
        };
        let reference = (series == 0).then_some(speed);
        match panels.iter_mut().find(|panel| panel.title == title) {
            Some(panel) => {
                panel.reference = panel.reference.or(reference);
                panel.bars.push(bar);
            }
            None => panels.push(Panel {
                title,
                reference,
                bars: vec![bar],
            }),
        }
    }
    let described = panels.iter().flat_map(|panel| {
        panel
            .bars
            .iter()
            .map(|bar| format!("{}, {}: {}", bar.label, panel.title, bar.shown))
    });
    Bars {
        words: Words {
            title: "Speed of decoding".into(),
            subtitle: subtitle.to_owned(),
            note: "In brackets: times the speed of plain decoding under the same conditions."
                .into(),
            description: described.collect::<Vec<_>>().join("; "),
        },
        axis: "tokens per second (higher is better)".into(),
        segments: Vec::new(),
        panels,
        shared: false,
        reference: Some("plain decoding".into()),
    }
}

fn acceptance(runs: &[SpeculationRun], subtitle: &str) -> Option<(Lines, Table)> {
    let mut data = Table::new(&[
        ("label", "method", ""),
        ("depth", "depth", "#"),
        ("accepted_share", "accepted to this depth", "#"),
    ]);
    let (mut lines, mut legend): (Vec<Line>, Vec<String>) = (Vec::new(), Vec::new());
    for run in runs
        .iter()
        .filter(|run| !run.acceptance_by_depth.is_empty())
    {
        let shares = run.acceptance_by_depth.iter().enumerate();
        let points: Vec<(f64, f64)> = shares.map(|(i, share)| ((i + 1) as f64, *share)).collect();
        // What reading costs does not change what is accepted.
        if lines
            .iter()
            .zip(&legend)
            .any(|(line, name)| line.points == points && *name == run.label)
        {
            continue;
        }
        for (depth, share) in &points {
            data.rows.push(vec![
                Value::Text(run.label.clone()),
                Value::count(*depth as u64),
                Value::Number(*share, number::fixed(*share, 3)),
            ]);
        }
        if lines.len() < MOST {
            legend.push(run.label.clone());
            lines.push(Line {
                hue: Hue::Series(lines.len()),
                errors: vec![None; points.len()],
                points,
                joined: true,
            });
        }
    }
    let deepest = lines.iter().map(|line| line.points.len()).max()?;
    Some((
        Lines {
            words: Words {
                title: "Acceptance by depth of the draft".into(),
                subtitle: subtitle.to_owned(),
                note: format!("At most {MOST} methods are drawn; the data has all."),
                description: "Share of rounds whose draft is accepted to at least each depth."
                    .into(),
            },
            x_axis: "depth (drafted tokens)".into(),
            y_axis: "share of rounds accepted to at least this depth".into(),
            x: Scale::exactly(0.5, deepest as f64 + 0.5, false),
            y: Scale::exactly(0.0, 1.05, false),
            legend,
            ramp: None,
            diagonal: None,
            panels: vec![Multiple {
                title: String::new(),
                lines,
            }],
        },
        data,
    ))
}

fn split(runs: &[&SpeculationRun], subtitle: &str) -> Option<Bars> {
    let mut panels: Vec<Panel> = Vec::new();
    for run in runs.iter().filter(|run| run.tokens > 0) {
        let each: Vec<f64> = times(run)
            .iter()
            .map(|s| 1e3 * s / run.tokens as f64)
            .collect();
        let sum: f64 = each.iter().sum();
        if sum <= 0.0 {
            continue;
        }
        let title = bandwidth(run);
        let bar = Bar {
            label: run.label.clone(),
            values: each,
            error: None,
            shown: number::significant(sum),
            series: 0,
        };
        match panels.iter_mut().find(|panel| panel.title == title) {
            Some(panel) => panel.bars.push(bar),
            None => panels.push(Panel {
                title,
                reference: None,
                bars: vec![bar],
            }),
        }
    }
    (!panels.is_empty()).then(|| Bars {
        words: Words {
            title: "Where the time goes".into(),
            subtitle: subtitle.to_owned(),
            note:
                "Wall time of a run over the tokens that came out; reading is what was waited for."
                    .into(),
            description:
                "Milliseconds a token by what they were spent on; the data file has the numbers."
                    .into(),
        },
        axis: "milliseconds per token (lower is better)".into(),
        segments: STAGES.iter().map(|s| (*s).to_owned()).collect(),
        panels,
        shared: false,
        reference: None,
    })
}

fn model(runs: &[SpeculationRun], subtitle: &str) -> Option<(Lines, Table)> {
    let mut data = Table::new(&[
        ("label", "method", ""),
        ("bandwidth", "reading", ""),
        ("predicted_speedup", "predicted", "×"),
        ("speedup", "measured", "×"),
    ]);
    let mut lines: Vec<Line> = Vec::new();
    let mut legend: Vec<String> = Vec::new();
    for run in runs {
        let Some(pair) = run.predicted_speedup.zip(run.speedup_over_plain) else {
            continue;
        };
        let name = bandwidth(run);
        data.rows.push(vec![
            Value::Text(run.label.clone()),
            Value::Text(name.clone()),
            Value::Number(pair.0, number::fixed(pair.0, 2)),
            Value::Number(pair.1, number::fixed(pair.1, 2)),
        ]);
        match legend.iter().position(|known| *known == name) {
            Some(at) => {
                lines[at].points.push(pair);
                lines[at].errors.push(None);
            }
            None => {
                let hue = Hue::Series(lines.len());
                lines.push(Line {
                    hue,
                    points: vec![pair],
                    errors: vec![None],
                    joined: false,
                });
                legend.push(name);
            }
        }
    }
    let all = || {
        lines
            .iter()
            .flat_map(|line| &line.points)
            .flat_map(|p| [p.0, p.1])
    };
    let high = all().fold(0.0, f64::max);
    let low = all().fold(f64::INFINITY, f64::min);
    (high > 0.0).then(|| {
        let scale = Scale::linear(low, high, 0.08);
        let chart = Lines {
            words: Words {
                title: "The cost model against the measurement".into(),
                subtitle: subtitle.to_owned(),
                note: "Above the line: faster than predicted.".into(),
                description: "Predicted and measured speed-ups over plain decoding; the data file has the numbers.".into(),
            },
            x_axis: "predicted speed-up over plain decoding (×)".into(),
            y_axis: "measured speed-up over plain decoding (×)".into(),
            x: scale,
            y: scale,
            legend,
            ramp: None,
            diagonal: Some("as predicted".into()),
            panels: vec![Multiple { title: String::new(), lines }],
        };
        (chart, data)
    })
}

fn table(runs: &[&SpeculationRun]) -> Table {
    let mut table = Table::new(&[
        ("label", "method", ""),
        ("draft", "draft", ""),
        ("verify", "verification", ""),
        ("depth", "depth", "#"),
        ("width", "width", "#"),
        ("bandwidth_bytes_per_second", "reading", "GB/s"),
        ("resident_blocks", "blocks in memory", "#"),
        ("tokens", "tokens", "#"),
        ("tokens_per_second", "speed", "tokens/s"),
        ("speedup_over_plain", "speed-up", "×"),
        ("predicted_speedup", "predicted", "×"),
        (
            "tokens_per_round_with_bonus",
            "tokens a round, with bonus",
            "#",
        ),
        ("accepted_per_round", "accepted a round", "#"),
        ("bytes_read_per_token", "read a token", "MB"),
        ("prefill_seconds", "prefill", "s"),
        ("draft_seconds", "draft", "s"),
        ("read_seconds", "read", "s"),
        ("verify_seconds", "verify", "s"),
        ("overhead_seconds", "overhead", "s"),
    ]);
    let two = |value: f64| number::fixed(value, 2);
    for run in runs {
        let gigabytes = |b: f64| number::significant(b / 1e9);
        let mut row = vec![
            Value::Text(run.label.clone()),
            Value::Text(run.draft.clone()),
            Value::Text(run.verify.clone()),
            Value::count(run.depth),
            Value::count(run.width),
            Value::optional(run.bandwidth_bytes_per_second, gigabytes),
            Value::count(run.resident_blocks),
            Value::count(run.tokens),
            Value::Number(
                run.tokens_per_second,
                number::significant(run.tokens_per_second),
            ),
            Value::optional(run.speedup_over_plain, two),
            Value::optional(run.predicted_speedup, two),
            Value::optional(run.tokens_per_round_with_bonus, two),
            Value::optional(run.accepted_per_round, two),
            Value::Number(
                run.bytes_read_per_token,
                number::significant(run.bytes_read_per_token / 1e6),
            ),
        ];
        row.extend(times(run).map(|seconds| Value::Number(seconds, two(seconds))));
        table.rows.push(row);
    }
    table
}
