//! Singular values: what each rank leaves out of every projection's output.

use cinder_models::checkpoint::Spectra;

use super::{Drawn, Section, Table, Value, finite};
use crate::chart::lines::{Hue, Line, Lines, Multiple};
use crate::chart::{Scale, Words};
use crate::compression::position;
use crate::error::ReportError;
use crate::input::Sourced;
use crate::number;

/// Shares below this are drawn on the axis: they are rounding.
const LEAST: f64 = 1e-5;

/// One part with a figure a recipe; what is given twice counts once.
pub(super) fn sections(results: &[Sourced<Spectra>]) -> Result<Option<Section>, ReportError> {
    let mut results: Vec<&Sourced<Spectra>> = results.iter().collect();
    results.retain(|each| !each.result.spectra.is_empty());
    results.sort_by(|a, b| (&a.result.recipe, &a.file).cmp(&(&b.result.recipe, &b.file)));
    results.dedup_by(|a, b| a.result.spectra == b.result.spectra);
    if results.is_empty() {
        return Ok(None);
    }
    let mut figures = Vec::new();
    for (index, each) in results.iter().enumerate() {
        let stem = match index {
            0 => "singular-values".to_owned(),
            _ => format!("singular-values-{}", index + 1),
        };
        let (lines, data) = chart(each)?;
        figures.push(Drawn::lines(&stem, &lines, &data)?);
    }
    Ok(Some(Section {
        id: "spectra".into(),
        heading: "Singular values of the projections".into(),
        introduction: "How much of a projection's output a rank leaves out, by layer. A curve that falls at once can be cut far; \
                       one that stays up until the end can not. The output is weighted as the recipe weighs it."
            .into(),
        figures,
        tables: Vec::new(),
        commands: Vec::new(),
        files: results.iter().map(|each| each.file.display().to_string()).collect(),
    }))
}

fn chart(each: &Sourced<Spectra>) -> Result<(Lines, Table), ReportError> {
    let result = &each.result;
    let mut data = Table::new(&[
        ("layer", "layer", "#"),
        ("projection", "projection", ""),
        ("rank", "rank", "#"),
        ("full_rank", "full rank", "#"),
        ("left_out", "left out", "#"),
    ]);
    let mut panels: Vec<Multiple> = Vec::new();
    let mut spectra: Vec<_> = result.spectra.iter().collect();
    spectra.sort_by_key(|s| {
        let first = s.projections.first().map_or("", String::as_str);
        (position(first), s.projections.join(" + "), s.layer)
    });
    let last = spectra.iter().map(|s| s.layer).max().unwrap_or(0);
    for spectrum in spectra {
        if spectrum.ranks.len() != spectrum.left_out.len() {
            return Err(ReportError::Contradiction {
                file: each.file.clone(),
                message: format!(
                    "layer {} has {} ranks but {} shares",
                    spectrum.layer,
                    spectrum.ranks.len(),
                    spectrum.left_out.len()
                ),
            });
        }
        let name = spectrum.projections.join(" + ");
        let full = spectrum.ranks.last().copied().unwrap_or(0).max(1);
        let mut points = Vec::new();
        for (rank, share) in spectrum.ranks.iter().zip(&spectrum.left_out) {
            finite(&each.file, "left_out", *share)?;
            data.rows.push(vec![
                Value::count(spectrum.layer as u64),
                Value::Text(name.clone()),
                Value::count(*rank as u64),
                Value::count(full as u64),
                Value::Number(*share, number::significant(*share)),
            ]);
            if *share >= LEAST {
                points.push((100.0 * *rank as f64 / full as f64, *share));
            }
        }
        let line = Line {
            hue: Hue::Ramp(spectrum.layer as f64 / last.max(1) as f64),
            errors: vec![None; points.len()],
            points,
            joined: true,
        };
        match panels.last_mut() {
            Some(panel) if panel.title == name => panel.lines.push(line),
            _ => panels.push(Multiple {
                title: name,
                lines: vec![line],
            }),
        }
    }
    let lines = Lines {
        words: Words {
            title: format!("Singular values: {}, {}", result.model, result.recipe),
            subtitle: "Share of the weighted output that each rank leaves out, a line a layer"
                .into(),
            note: format!("Shares below {LEAST} are not drawn."),
            description: format!(
                "{} panels: {}. The data file has the numbers.",
                panels.len(),
                panels
                    .iter()
                    .map(|p| p.title.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        },
        x_axis: "rank (% of the full one)".into(),
        y_axis: "share of the output left out (log scale)".into(),
        x: Scale::exactly(0.0, 100.0, false),
        y: Scale::exactly(LEAST, 1.0, true),
        legend: Vec::new(),
        ramp: Some(("layer 0".into(), format!("layer {last}"))),
        diagonal: None,
        panels,
    };
    Ok((lines, data))
}
