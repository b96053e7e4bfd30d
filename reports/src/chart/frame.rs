//! The chart's measurements: what goes where, before anything is drawn.

use super::Place;
use super::font;
use super::scale::Scale;
use crate::group::{Axis, Group};
use crate::number;
use crate::wording;

/// Text sizes in pixels.
pub(crate) const TITLE: f64 = 18.0;
pub(crate) const SUBTITLE: f64 = 13.0;
pub(crate) const TEXT: f64 = 12.0;
pub(crate) const LABEL: f64 = 12.0;

/// What the x axis shows, in full: a ratio without its two sides is a riddle.
fn x_words(axis: Axis, log: bool) -> &'static str {
    match (axis, log) {
        (Axis::KeepRatio, _) => "keep ratio (stored decoder-projection scalars, after / before)",
        (Axis::WeightBytes, false) => "weights in memory (MB)",
        (Axis::WeightBytes, true) => "weights in memory (MB, log scale)",
        (Axis::Scoring, _) => {
            "scoring speed while perplexity was measured (tokens/s, more is better)"
        }
        (Axis::Decoding, _) => "decoding speed (tokens/s, more is better)",
        (Axis::CacheBytes, false) => {
            "KV cache bytes per token (all layers, scales and minimums counted)"
        }
        (Axis::CacheBytes, true) => {
            "KV cache bytes per token (all layers, scales and minimums counted, log scale)"
        }
    }
}

/// What the legend calls the front.
const FRONT: &str = "Pareto front";

/// Length of the piece of line beside a legend's name, and the space after an entry.
pub(crate) const SWATCH: f64 = 28.0;
const ENTRY_GAP: f64 = 22.0;
const LEGEND_ROW: f64 = 20.0;
const LINE: f64 = 16.0;

/// A legend entry with its place.
#[derive(Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub left: f64,
    /// Baseline.
    pub y: f64,
}

/// All measurements of one chart, in pixels.
#[derive(Debug)]
pub(crate) struct Frame {
    pub size: (f64, f64),
    pub title: Option<(String, f64)>,
    /// Lines and their baselines.
    pub subtitle: Vec<(String, f64)>,
    pub legend: Vec<Entry>,
    pub y_label: (String, f64),
    pub x_label: Vec<(String, f64)>,
    pub note: Vec<(String, f64)>,
    pub x: Scale,
    pub y: Scale,
    /// Text of the dense line, beside the plot.
    pub dense: Vec<String>,
    pub y_ticks: usize,
    pub x_ticks: usize,
    pub margin: f64,
}

impl Frame {
    /// Lays `group` out. The plot keeps its size; what is around it decides the chart's height.
    pub fn new(group: &Group<'_>, place: Place) -> Self {
        let (width, plot_height, margin) = match place {
            Place::Figure => (880.0, 340.0, 32.0),
            Place::Page => (880.0, 340.0, 6.0),
            Place::Phone => (344.0, 280.0, 2.0),
        };
        let phone = place == Place::Phone;
        let inner = width - 2.0 * margin;
        let mut cursor = margin;

        let (mut title, mut subtitle) = (None, Vec::new());
        if place == Place::Figure {
            cursor += 14.0;
            title = Some((
                font::fit(&wording::chart_title(group), TITLE, true, inner),
                cursor,
            ));
            cursor += 8.0;
            for line in font::wrap(&wording::protocol_line(group), SUBTITLE, inner) {
                cursor += LINE;
                subtitle.push((line, cursor));
            }
            cursor += 20.0;
        }
        let (legend, after) = legend(group, margin, inner, cursor);
        cursor = after;

        let (x, y) = scales(group);
        let kind = if y.log {
            "perplexity (lower is better, log scale)"
        } else {
            "perplexity (lower is better)"
        };
        cursor += if legend.is_empty() { 12.0 } else { 28.0 };
        let y_label = (kind.to_owned(), cursor);
        let top = cursor + 10.0;
        let bottom = top + plot_height;

        let y_ticks = if phone { 6 } else { 7 };
        let widest = y
            .ticks(y_ticks)
            .iter()
            .map(|tick| font::width(&tick.label, TEXT, false))
            .fold(0.0, f64::max);
        let left = margin + widest + 10.0;
        let dense = dense_label(group, phone);
        let beside = dense
            .iter()
            .map(|line| font::width(line, LABEL, true))
            .fold(0.0, f64::max);
        // Without a dense line nothing is written beside the plot, but the last tick's text still needs its half.
        let right = width - margin - if dense.is_empty() { 14.0 } else { beside + 8.0 };

        cursor = bottom + 26.0;
        let mut x_label = Vec::new();
        for line in font::wrap(x_words(group.axis, x.log), TEXT, inner) {
            cursor += LINE;
            x_label.push((line, cursor));
        }
        cursor += 6.0;
        let mut note = Vec::new();
        for line in font::wrap(&wording::chart_note(group), TEXT - 1.0, inner) {
            cursor += LINE;
            note.push((line, cursor));
        }
        let height = (cursor + margin + 4.0).ceil();
        Self {
            size: (width, height),
            title,
            subtitle,
            legend,
            y_label,
            x_label,
            note,
            x: x.over(left, right),
            y: y.over(bottom, top),
            dense,
            y_ticks,
            x_ticks: if phone { 5 } else { 8 },
            margin,
        }
    }
}

/// One entry a series, in rows as wide as the chart; returns where the last row ends.
fn legend(group: &Group<'_>, margin: f64, inner: f64, top: f64) -> (Vec<Entry>, f64) {
    let mut entries: Vec<Entry> = Vec::new();
    let (mut left, mut y) = (margin, top);
    let series = group.series();
    let names = series.iter().map(|(name, _)| *name);
    let front = group.has_front().then_some(FRONT);
    for name in names.chain(front) {
        let name = font::fit(name, TEXT, false, inner - SWATCH);
        let wide = SWATCH + font::width(&name, TEXT, false);
        if entries.is_empty() {
            y += 12.0;
        } else if left + wide > margin + inner {
            left = margin;
            y += LEGEND_ROW;
        }
        entries.push(Entry { name, left, y });
        left += wide + ENTRY_GAP;
    }
    (entries, y)
}

fn dense_label(group: &Group<'_>, phone: bool) -> Vec<String> {
    group.dense().map_or_else(Vec::new, |dense| {
        let value = number::significant(dense.result.perplexity.perplexity);
        if phone {
            vec!["dense".to_owned(), value]
        } else {
            vec![format!("dense {value}")]
        }
    })
}

/// Both axes, over no pixels yet.
fn scales(group: &Group<'_>) -> (Scale, Scale) {
    let across: Vec<f64> = group.rows.iter().map(|row| group.x(row)).collect();
    let low = across.iter().copied().fold(f64::INFINITY, f64::min);
    let high = across.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let values: Vec<f64> = group
        .rows
        .iter()
        .map(|row| row.result.perplexity.perplexity)
        .collect();
    let bars = group.rows.iter().flat_map(|row| {
        let (value, error) = (
            row.result.perplexity.perplexity,
            row.stderr().unwrap_or(0.0),
        );
        [value - error, value + error]
    });
    (
        match group.axis {
            Axis::KeepRatio => Scale::linear(low, high, 0.07),
            _ => Scale::positive(&across, &across),
        },
        Scale::positive(&values, &bars.collect::<Vec<_>>()),
    )
}
