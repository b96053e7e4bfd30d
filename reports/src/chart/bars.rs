//! Horizontal bars in panels: one panel a task, a bandwidth or a stage, one bar a model or a method.

use super::Place;
use super::canvas::Anchor;
use super::font;
use super::palette::{AXIS, GRID, INK, PAPER, SERIES};
use super::scale::Scale;
use super::sketch::{MIDDLE, Mark, PLAIN, STRONG, Sketch, TEXT, Words};
use crate::error::ReportError;

/// Bars of one chart.
#[derive(Debug, Clone)]
pub(crate) struct Bars {
    pub words: Words,
    /// What the axis shows, with its unit.
    pub axis: String,
    /// Names of a bar's segments; empty where bars have one.
    pub segments: Vec<String>,
    pub panels: Vec<Panel>,
    /// Whether all panels share one axis, which makes their bars comparable.
    pub shared: bool,
    /// What the dashed line is, where panels have one.
    pub reference: Option<String>,
}

/// Bars that are compared with each other.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    pub title: String,
    /// Where the dashed line stands.
    pub reference: Option<f64>,
    pub bars: Vec<Bar>,
}

/// A bar of one or several segments.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub label: String,
    /// Lengths from left to right.
    pub values: Vec<f64>,
    /// Half the length of the error bar at its end.
    pub error: Option<f64>,
    /// The value as text, written behind it.
    pub shown: String,
    /// Its colour, where it has one segment: the same model has the same in every panel.
    pub series: usize,
}

impl Bar {
    fn end(&self) -> f64 {
        self.values.iter().sum::<f64>() + self.error.unwrap_or(0.0)
    }
}

/// Height of a bar with the space below, on a wide screen and on a phone, where its name stands above it.
const ROW: f64 = 22.0;
const PHONE_ROW: f64 = 34.0;
const THICK: f64 = 13.0;
/// Half the height of an error bar's caps.
const CAP: f64 = 3.5;
/// From one column of panels to the next.
const GUTTER: f64 = 28.0;

/// Draws `bars` as an SVG document (or element, in the page).
pub(crate) fn svg(bars: &Bars, place: Place) -> Result<String, ReportError> {
    let mut sketch = Sketch::new(&bars.words, place);
    let mut legend: Vec<(String, Mark)> = Vec::new();
    for (index, name) in bars.segments.iter().enumerate() {
        legend.push((name.clone(), Mark::Box(SERIES[index % SERIES.len()])));
    }
    if let Some(name) = bars.reference.as_ref().filter(|_| any_reference(bars)) {
        legend.push((name.clone(), Mark::Dashes(INK)));
    }
    sketch.legend(&legend);
    let columns = match (place, bars.panels.len()) {
        (Place::Phone, _) | (_, 0 | 1) => 1,
        _ => 2,
    };
    let wide = (sketch.inner() - GUTTER * (columns - 1) as f64) / columns as f64;
    let labels = bars.panels.iter().flat_map(|panel| &panel.bars);
    let label = labels
        .clone()
        .map(|bar| font::width(&bar.label, TEXT, false))
        .fold(0.0, f64::max)
        .min(wide * 0.42);
    let shown = labels
        .map(|bar| font::width(&bar.shown, TEXT, false))
        .fold(0.0, f64::max);
    let top = bars.panels.iter().map(most);
    let shared = top.fold(0.0, f64::max);
    for row in bars.panels.chunks(columns) {
        let start = sketch.cursor;
        let mut end = start;
        for (column, panel) in row.iter().enumerate() {
            sketch.cursor = start;
            let left = sketch.margin + (wide + GUTTER) * column as f64;
            let bar_left = match sketch.phone() {
                // Half of the axis' first number stands to the left of it.
                true => left + 12.0,
                false => left + label + 8.0,
            };
            let high = if bars.shared { shared } else { most(panel) };
            // The largest value's text stands behind its bar, which ends where the axis does.
            let right = (left + wide - shown - 10.0).max(bar_left + 40.0);
            let scale = Scale::exactly(0.0, high.max(1e-9), false).over(bar_left, right);
            draw_panel(&mut sketch, panel, left, label, &scale);
            end = f64::max(end, sketch.cursor);
        }
        sketch.cursor = end;
    }
    let middle = sketch.width / 2.0;
    sketch.centred(&bars.axis, middle, sketch.inner());
    sketch.finish(&bars.words)
}

fn any_reference(bars: &Bars) -> bool {
    bars.panels.iter().any(|panel| panel.reference.is_some())
}

fn most(panel: &Panel) -> f64 {
    let ends = panel.bars.iter().map(Bar::end).chain(panel.reference);
    ends.fold(0.0, f64::max)
}

fn draw_panel(sketch: &mut Sketch, panel: &Panel, left: f64, label: f64, scale: &Scale) {
    let phone = sketch.phone();
    sketch.cursor += 24.0;
    if !panel.title.is_empty() {
        let set = super::canvas::Type {
            bold: true,
            ..STRONG
        };
        let limit = scale.pixels.1 - left;
        let title = font::fit(&panel.title, TEXT, true, limit);
        sketch.text(&title, (left, sketch.cursor), Anchor::Start, set);
    }
    let row = if phone { PHONE_ROW } else { ROW };
    let top = sketch.cursor + 8.0;
    let bottom = top + row * panel.bars.len() as f64 + 2.0;
    let room = scale.pixels.1 - scale.pixels.0;
    for tick in scale.ticks((room / 60.0).clamp(2.0, 8.0) as usize) {
        let x = scale.at(tick.value);
        sketch.line(&[(x, top), (x, bottom)], GRID, 1.0);
        sketch.text(&tick.label, (x, bottom + 15.0), Anchor::Middle, PLAIN);
    }
    if let Some(value) = panel.reference {
        let x = scale.at(value);
        sketch.dashed((x, top), (x, bottom), INK, 1.25);
    }
    for (index, bar) in panel.bars.iter().enumerate() {
        let y = top + row * index as f64;
        let from = if phone { y + 17.0 } else { y + 4.0 };
        let middle = from + THICK / 2.0;
        if phone {
            let limit = sketch.inner();
            let name = font::fit(&bar.label, TEXT, false, limit);
            let end = left + font::width(&name, TEXT, false) + 2.0;
            sketch.rectangle((left, y + 2.0), (end, y + 16.0), PAPER, 1.0);
            sketch.text(&name, (left, y + 13.0), Anchor::Start, STRONG);
        } else {
            let name = font::fit(&bar.label, TEXT, false, label);
            let at = (scale.pixels.0 - 8.0, middle + TEXT * MIDDLE);
            sketch.text(&name, at, Anchor::End, STRONG);
        }
        let mut value = 0.0;
        for (segment, length) in bar.values.iter().enumerate() {
            let colour = match bar.values.len() {
                1 => SERIES[bar.series % SERIES.len()],
                _ => SERIES[segment % SERIES.len()],
            };
            let (x, end) = (scale.at(value), scale.at(value + length));
            // A hair of paper between segments tells them apart without colour.
            let gap = if segment > 0 && end - x > 2.0 {
                1.0
            } else {
                0.0
            };
            sketch.rectangle((x + gap, from), (end, from + THICK), colour, 1.0);
            value += length;
        }
        if let Some(error) = bar.error.filter(|error| *error > 0.0) {
            let (low, high) = (scale.at(value - error), scale.at(value + error));
            sketch.line(&[(low, middle), (high, middle)], INK, 1.25);
            for x in [low, high] {
                sketch.line(&[(x, middle - CAP), (x, middle + CAP)], INK, 1.25);
            }
        }
        let behind = scale.at(bar.end()) + 6.0;
        // Lines pause behind a value.
        let end = behind + font::width(&bar.shown, TEXT, false);
        let (above, below) = (middle - TEXT / 2.0, middle + TEXT / 2.0);
        sketch.rectangle((behind - 1.0, above), (end + 1.0, below), PAPER, 1.0);
        let at = (behind, middle + TEXT * MIDDLE);
        sketch.text(&bar.shown, at, Anchor::Start, STRONG);
    }
    let axis = [(scale.pixels.0, top), (scale.pixels.0, bottom)];
    sketch.line(&axis, AXIS, 1.0);
    sketch.cursor = bottom + 16.0;
}
