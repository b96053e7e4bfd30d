//! Lines in panels: one chart, or small multiples with the same axes.

use plotters::style::RGBColor;

use super::Place;
use super::canvas::{Anchor, Marker, Point, Type};
use super::font;
use super::palette::{AXIS, GRID, INK, KEPT, SERIES};
use super::scale::Scale;
use super::sketch::{MIDDLE, Mark, PLAIN, STRONG, Sketch, TEXT, Words};
use crate::error::ReportError;

/// Lines of one chart.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    pub words: Words,
    pub x_axis: String,
    pub y_axis: String,
    /// Shared by all panels.
    pub x: Scale,
    pub y: Scale,
    /// Names of the series, in the order of their colours; empty where a ramp tells lines apart.
    pub legend: Vec<String>,
    /// What the ramp's light and dark ends are, where lines have its colours.
    pub ramp: Option<(String, String)>,
    /// From one corner to the other: where both axes are equal, and what that means.
    pub diagonal: Option<String>,
    pub panels: Vec<Multiple>,
}

/// One panel.
#[derive(Debug, Clone)]
pub(crate) struct Multiple {
    pub title: String,
    pub lines: Vec<Line>,
}

/// One line, or points alone.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub hue: Hue,
    pub points: Vec<(f64, f64)>,
    /// Half the length of each point's error bar.
    pub errors: Vec<Option<f64>>,
    /// Whether points are joined.
    pub joined: bool,
}

/// How a line is told from others.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hue {
    /// The colour and marker of a series.
    Series(usize),
    /// A place between the ramp's ends, from 0 to 1; no markers.
    Ramp(f64),
}

impl Hue {
    fn colour(self) -> RGBColor {
        match self {
            Self::Series(index) => SERIES[index % SERIES.len()],
            // The lightest steps do not stand out on paper.
            Self::Ramp(share) => {
                let steps = KEPT.len() - 1 - FIRST_STEP;
                KEPT[FIRST_STEP + (share.clamp(0.0, 1.0) * steps as f64).round() as usize]
            }
        }
    }
}

const FIRST_STEP: usize = 2;
const RADIUS: f64 = 4.5;
const CAP: f64 = 4.0;
/// Height of a plot that stands alone, and of one among several.
const ALONE: f64 = 300.0;
const AMONG: f64 = 150.0;
const GUTTER: f64 = 28.0;

/// Draws `lines` as an SVG document (or element, in the page).
pub(crate) fn svg(lines: &Lines, place: Place) -> Result<String, ReportError> {
    let mut sketch = Sketch::new(&lines.words, place);
    let legend = lines.legend.iter().enumerate().map(|(index, name)| {
        let hue = Hue::Series(index);
        (name.clone(), Mark::Line(index, hue.colour()))
    });
    let diagonal = lines.diagonal.iter();
    let diagonal = diagonal.map(|name| (name.clone(), Mark::Dashes(INK)));
    let legend: Vec<(String, Mark)> = legend.chain(diagonal).collect();
    sketch.legend(&legend);
    if let Some((low, high)) = &lines.ramp {
        ramp(&mut sketch, low, high);
    }
    sketch.cursor += 18.0;
    let label = font::fit(&lines.y_axis, TEXT, false, sketch.inner());
    sketch.text(&label, (sketch.margin, sketch.cursor), Anchor::Start, PLAIN);

    let columns = match (place, lines.panels.len()) {
        (_, 0 | 1) => 1,
        (Place::Phone, _) => 2,
        (_, n @ 2..=3) => n,
        _ => 4,
    };
    let several = lines.panels.len() > 1;
    let height = if several { AMONG } else { ALONE };
    let y_ticks = if several { 5 } else { 7 };
    let widest = lines
        .y
        .ticks(y_ticks)
        .iter()
        .map(|tick| font::width(&tick.label, TEXT, false))
        .fold(0.0, f64::max);
    // Only the first column has the axis' numbers; the last tick of x needs half its text.
    let beside = widest + 8.0;
    let wide = (sketch.inner() - beside - 14.0 - GUTTER * (columns - 1) as f64) / columns as f64;
    for row in lines.panels.chunks(columns) {
        let start = sketch.cursor;
        for (column, panel) in row.iter().enumerate() {
            sketch.cursor = start;
            let left = sketch.margin + beside + (wide + GUTTER) * column as f64;
            let first = column == 0;
            let size = (wide, height);
            draw_panel(&mut sketch, lines, panel, (left, size), first, y_ticks);
        }
    }
    let middle = sketch.margin + beside + (sketch.inner() - beside) / 2.0;
    sketch.cursor += 4.0;
    sketch.centred(&lines.x_axis, middle, sketch.inner());
    sketch.finish(&lines.words)
}

fn ramp(sketch: &mut Sketch, low: &str, high: &str) {
    const STEP: f64 = 14.0;
    sketch.cursor += 16.0;
    let (margin, baseline) = (sketch.margin, sketch.cursor);
    sketch.text(low, (margin, baseline), Anchor::Start, STRONG);
    let mut left = margin + font::width(low, TEXT, false) + 8.0;
    for colour in &KEPT[FIRST_STEP..] {
        let corner = (left + STEP, baseline + 1.0);
        sketch.rectangle((left, baseline - 10.0), corner, *colour, 1.0);
        left += STEP;
    }
    sketch.text(high, (left + 8.0, baseline), Anchor::Start, STRONG);
    sketch.cursor += 8.0;
}

fn draw_panel(
    sketch: &mut Sketch,
    all: &Lines,
    panel: &Multiple,
    (left, (wide, height)): (f64, (f64, f64)),
    first: bool,
    y_ticks: usize,
) {
    let mut top = sketch.cursor + 12.0;
    if !panel.title.is_empty() {
        let set = Type {
            bold: true,
            ..STRONG
        };
        top += 16.0;
        let title = font::fit(&panel.title, TEXT, true, wide);
        sketch.text(&title, (left, top - 8.0), Anchor::Start, set);
    }
    let (right, bottom) = (left + wide, top + height);
    let (x, y) = (all.x.over(left, right), all.y.over(bottom, top));
    for tick in y.ticks(y_ticks) {
        let at = y.at(tick.value);
        sketch.line(&[(left, at), (right, at)], GRID, 1.0);
        if first {
            let place = (left - 8.0, at + TEXT * MIDDLE);
            sketch.text(&tick.label, place, Anchor::End, PLAIN);
        }
    }
    sketch.line(&[(left, bottom), (right, bottom)], AXIS, 1.0);
    let mut taken = f64::NEG_INFINITY;
    for tick in x.ticks((wide / 55.0).clamp(2.0, 10.0) as usize) {
        let at = x.at(tick.value);
        sketch.line(&[(at, bottom), (at, bottom + 5.0)], AXIS, 1.0);
        let half = font::width(&tick.label, TEXT, false) / 2.0;
        // A long number gives way to the one before it rather than touch it.
        if at - half > taken + 6.0 {
            let place = (at, bottom + 19.0);
            sketch.text(&tick.label, place, Anchor::Middle, PLAIN);
            taken = at + half;
        }
    }
    if all.diagonal.is_some() {
        let (low, high) = (x.low.max(y.low), x.high.min(y.high));
        let at = |value| (x.at(value), y.at(value));
        sketch.dashed(at(low), at(high), INK, 1.5);
    }
    for line in &panel.lines {
        draw_line(sketch, line, &x, &y, all.ramp.is_some());
    }
    sketch.cursor = bottom + 22.0;
}

fn draw_line(sketch: &mut Sketch, line: &Line, x: &Scale, y: &Scale, thin: bool) {
    let colour = line.hue.colour();
    let points: Vec<Point> = line.points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
    for ((at, value), error) in points.iter().zip(&line.points).zip(&line.errors) {
        let Some(error) = error else { continue };
        let (high, low) = (y.at(value.1 + error), y.at(value.1 - error));
        if low - high > 2.0 * RADIUS {
            sketch.line(&[(at.0, high), (at.0, low)], colour, 1.5);
            for end in [high, low] {
                sketch.line(&[(at.0 - CAP, end), (at.0 + CAP, end)], colour, 1.5);
            }
        }
    }
    if line.joined && points.len() > 1 {
        sketch.line(&points, colour, if thin { 1.25 } else { 2.0 });
    }
    if let Hue::Series(index) = line.hue {
        for at in points {
            sketch.marker(at, Marker::of(index), colour, RADIUS);
        }
    }
}
