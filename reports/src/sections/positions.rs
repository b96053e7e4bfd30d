//! The loss by how far into the window a token is.

use super::{Drawn, Section, Table, Value, finite};
use crate::chart::lines::{Hue, Line, Lines, Multiple};
use crate::chart::{Scale, Words};
use crate::error::ReportError;
use crate::group::Group;
use crate::number;
use crate::wording;

/// Lines that can be told apart.
const MOST: usize = 6;

/// One part a group whose results say it.
pub(super) fn sections(groups: &[Group<'_>]) -> Result<Vec<Section>, ReportError> {
    let sections = groups
        .iter()
        .enumerate()
        .map(|(index, g)| section(index, g));
    Ok(sections
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

fn section(index: usize, group: &Group<'_>) -> Result<Option<Section>, ReportError> {
    let rows: Vec<_> = group
        .rows
        .iter()
        .filter(|row| !row.by_position.is_empty())
        .collect();
    let mut data = Table::new(&[
        ("model", "model", ""),
        ("from", "tokens before, first", "#"),
        ("to", "tokens before, last", "#"),
        ("mean_nll", "loss", "nats/token"),
        ("stderr", "± loss", "nats/token"),
        ("perplexity", "perplexity", "#"),
    ]);
    let (mut lines, mut legend) = (Vec::new(), Vec::new());
    for (place, row) in rows.iter().enumerate() {
        let (mut points, mut errors) = (Vec::new(), Vec::new());
        for at in row.by_position {
            finite(
                row.file,
                "by_position.mean_nll",
                at.mean_nll + at.stderr.unwrap_or(0.0),
            )?;
            let perplexity = at.mean_nll.exp();
            let show = number::significant;
            data.rows.push(vec![
                Value::Text(row.result.model.name.clone()),
                Value::count(at.from),
                Value::count(at.to),
                Value::Number(at.mean_nll, show(at.mean_nll)),
                Value::optional(at.stderr, show),
                Value::Number(perplexity, show(perplexity)),
            ]);
            let middle = f64::midpoint(at.from as f64, at.to as f64).max(1.0);
            points.push((middle, at.mean_nll));
            errors.push(at.stderr);
        }
        if place < MOST {
            legend.push(row.result.model.name.clone());
            let hue = Hue::Series(place);
            lines.push(Line {
                hue,
                points,
                errors,
                joined: true,
            });
        }
    }
    let across: Vec<f64> = lines.iter().flat_map(|l| &l.points).map(|p| p.0).collect();
    if across.len() < 2 {
        return Ok(None);
    }
    let ends = lines.iter().flat_map(|l| l.points.iter().zip(&l.errors));
    let ends = ends.flat_map(|(p, e)| [p.1 - e.unwrap_or(0.0), p.1 + e.unwrap_or(0.0)]);
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), end| {
        (low.min(end), high.max(end))
    });
    let note = match rows.len() > MOST {
        true => format!(
            " The first {MOST} of {} models; the data has all.",
            rows.len()
        ),
        false => String::new(),
    };
    let chart = Lines {
        words: Words {
            title: "Loss by position in the window".into(),
            subtitle: wording::protocol_line(group),
            note: format!("Bars: ± 1 standard error; each point stands in the middle of its range.{note}"),
            description: "Mean negative log-likelihood by the number of tokens before; the data file has the numbers.".into(),
        },
        x_axis: "tokens before, in the same window (log scale)".into(),
        y_axis: "mean negative log-likelihood (nats per token, lower is better)".into(),
        x: Scale::positive(&[1.0, 1e6], &across),
        y: Scale::linear(low, high, 0.08),
        legend,
        ramp: None,
        diagonal: None,
        panels: vec![Multiple { title: String::new(), lines }],
    };
    let stem = match index {
        0 => "loss-by-position".to_owned(),
        _ => format!("loss-by-position-{}", index + 1),
    };
    Ok(Some(Section {
        id: format!("positions-{}", index + 1),
        heading: format!("Loss by position: {}", wording::heading(group)),
        introduction: "A model that loses the thread in long contexts shows it here: the loss should go on falling as more tokens \
                       stand before."
            .into(),
        figures: vec![Drawn::lines(&stem, &chart, &data)?],
        tables: Vec::new(),
        commands: rows.iter().map(|row| row.result.command.clone()).collect(),
        files: rows.iter().map(|row| row.file.display().to_string()).collect(),
    }))
}
