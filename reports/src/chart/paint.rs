//! Draws a chart whose measurements are taken.

use plotters::style::RGBColor;

use super::canvas::{self, Anchor, Canvas, Marker, Point, Type};
use super::font;
use super::frame::{Frame, LABEL, SUBTITLE, SWATCH, TEXT, TITLE};
use super::labels::{Area, Obstacles};
use super::palette::{AXIS, GRID, INK, MUTED, PAPER, SERIES};
use crate::error::ReportError;
use crate::group::{Group, Row};
use crate::number;
use crate::wording;

const RADIUS: f64 = 5.0;
/// Radius of the ring around a point of the front, and width of the line that joins them.
const RING: f64 = 8.5;
const FRONT_LINE: f64 = 5.0;
/// Half the width of an error bar's caps.
const CAP: f64 = 5.0;
/// From the middle of digits down to their baseline, as a share of the text size.
const MIDDLE: f64 = 0.36;

const PLAIN: Type = Type {
    size: TEXT,
    bold: false,
    colour: MUTED,
};

/// The chart as an SVG in fixed colours.
pub(crate) fn paint(group: &Group<'_>, frame: &Frame) -> Result<String, ReportError> {
    canvas::draw(
        frame.size,
        &wording::chart_title(group),
        &wording::chart_description(group),
        |canvas| {
            canvas.rectangle((0.0, 0.0), frame.size, PAPER, 1.0)?;
            words(canvas, frame, group.series().len())?;
            axes(canvas, frame)?;
            dense(canvas, group, frame)?;
            front(canvas, group, frame)?;
            series(canvas, group, frame)?;
            values(canvas, group, frame)
        },
    )
}

/// Title, subtitle, legend, axis names, note.
fn words(canvas: &mut Canvas<'_>, frame: &Frame, series: usize) -> Result<(), ReportError> {
    let left = frame.margin;
    if let Some((title, y)) = &frame.title {
        canvas.text(
            title,
            (left, *y),
            Anchor::Start,
            Type {
                size: TITLE,
                bold: true,
                colour: INK,
            },
        )?;
    }
    for (line, y) in &frame.subtitle {
        canvas.text(
            line,
            (left, *y),
            Anchor::Start,
            Type {
                size: SUBTITLE,
                ..PLAIN
            },
        )?;
    }
    for (index, entry) in frame.legend.iter().enumerate() {
        let y = entry.y - TEXT * MIDDLE;
        if index == series {
            let middle = entry.left + (SWATCH - 8.0) / 2.0;
            let ends = [(entry.left, y), (entry.left + SWATCH - 8.0, y)];
            canvas.line(&ends, AXIS, FRONT_LINE)?;
            canvas.ring((middle, y), INK, RING)?;
            canvas.text(
                &entry.name,
                (entry.left + SWATCH, entry.y),
                Anchor::Start,
                Type {
                    colour: INK,
                    ..PLAIN
                },
            )?;
            continue;
        }
        canvas.line(
            &[(entry.left, y), (entry.left + SWATCH - 8.0, y)],
            colour(index),
            2.0,
        )?;
        canvas.marker(
            (entry.left + (SWATCH - 8.0) / 2.0, y),
            Marker::of(index),
            colour(index),
            RADIUS - 0.5,
        )?;
        canvas.text(
            &entry.name,
            (entry.left + SWATCH, entry.y),
            Anchor::Start,
            Type {
                colour: INK,
                ..PLAIN
            },
        )?;
    }
    canvas.text(
        &frame.y_label.0,
        (left, frame.y_label.1),
        Anchor::Start,
        PLAIN,
    )?;
    let middle = f64::midpoint(frame.x.pixels.0, frame.x.pixels.1);
    for (line, y) in &frame.x_label {
        // Centred under the plot, unless that would push a long line over the edge.
        let half = font::width(line, TEXT, false) / 2.0;
        let centre = middle
            .min(frame.size.0 - frame.margin - half)
            .max(frame.margin + half);
        canvas.text(line, (centre, *y), Anchor::Middle, PLAIN)?;
    }
    for (line, y) in &frame.note {
        canvas.text(
            line,
            (left, *y),
            Anchor::Start,
            Type {
                size: TEXT - 1.0,
                ..PLAIN
            },
        )?;
    }
    Ok(())
}

fn axes(canvas: &mut Canvas<'_>, frame: &Frame) -> Result<(), ReportError> {
    let (left, right) = frame.x.pixels;
    let bottom = frame.y.pixels.0;
    for tick in frame.y.ticks(frame.y_ticks) {
        let y = frame.y.at(tick.value);
        canvas.line(&[(left, y), (right, y)], GRID, 1.0)?;
        canvas.text(
            &tick.label,
            (left - 8.0, y + TEXT * MIDDLE),
            Anchor::End,
            PLAIN,
        )?;
    }
    canvas.line(&[(left, bottom), (right, bottom)], AXIS, 1.0)?;
    for tick in frame.x.ticks(frame.x_ticks) {
        let x = frame.x.at(tick.value);
        canvas.line(&[(x, bottom), (x, bottom + 5.0)], AXIS, 1.0)?;
        canvas.text(&tick.label, (x, bottom + 19.0), Anchor::Middle, PLAIN)?;
    }
    Ok(())
}

/// The dense model: a dashed line across, a band for its standard error, its value beside the plot.
fn dense(canvas: &mut Canvas<'_>, group: &Group<'_>, frame: &Frame) -> Result<(), ReportError> {
    let Some(row) = group.dense() else {
        return Ok(());
    };
    let (left, right) = frame.x.pixels;
    let value = row.result.perplexity.perplexity;
    if let Some(error) = row.stderr() {
        let (top, bottom) = (frame.y.at(value + error), frame.y.at(value - error));
        canvas.rectangle((left, top), (right, bottom), INK, 0.07)?;
    }
    let y = frame.y.at(value);
    canvas.dashes((left, right), y, INK, 1.5)?;
    let first = y + LABEL * MIDDLE - (frame.dense.len().saturating_sub(1) as f64) * 7.0;
    for (index, line) in frame.dense.iter().enumerate() {
        let at = (right + 8.0, first + 14.0 * index as f64);
        canvas.text(
            line,
            at,
            Anchor::Start,
            Type {
                size: LABEL,
                bold: true,
                colour: INK,
            },
        )?;
    }
    Ok(())
}

/// A broad grey line that joins the points of the Pareto front, and a ring around each.
fn front(canvas: &mut Canvas<'_>, group: &Group<'_>, frame: &Frame) -> Result<(), ReportError> {
    if !group.has_front() {
        return Ok(());
    }
    let points = group.front_points();
    let points: Vec<Point> = points.iter().map(|row| point(group, row, frame)).collect();
    if points.len() > 1 {
        canvas.line(&points, AXIS, FRONT_LINE)?;
    }
    points.iter().try_for_each(|at| canvas.ring(*at, INK, RING))
}

fn series(canvas: &mut Canvas<'_>, group: &Group<'_>, frame: &Frame) -> Result<(), ReportError> {
    for (index, (_, rows)) in group.series().into_iter().enumerate() {
        for row in &rows {
            if let Some((top, bottom)) = error_bar(group, row, frame) {
                let x = top.0;
                canvas.line(&[top, bottom], colour(index), 1.5)?;
                for end in [top, bottom] {
                    canvas.line(&[(x - CAP, end.1), (x + CAP, end.1)], colour(index), 1.5)?;
                }
            }
        }
        let points: Vec<Point> = rows.iter().map(|row| point(group, row, frame)).collect();
        if points.len() > 1 {
            canvas.line(&points, colour(index), 2.0)?;
        }
    }
    // All markers after all lines: a point is data, the line only joins it to the next.
    for (index, (_, rows)) in group.series().into_iter().enumerate() {
        for row in rows {
            canvas.marker(
                point(group, row, frame),
                Marker::of(index),
                colour(index),
                RADIUS,
            )?;
        }
    }
    Ok(())
}

/// The value beside each point that has room for it.
fn values(canvas: &mut Canvas<'_>, group: &Group<'_>, frame: &Frame) -> Result<(), ReportError> {
    let ((left, right), (bottom, top)) = (frame.x.pixels, frame.y.pixels);
    let mut obstacles = Obstacles {
        inside: Area {
            left,
            top: top - 4.0,
            right,
            bottom,
        },
        areas: Vec::new(),
        markers: Vec::new(),
        lines: Vec::new(),
    };
    if let Some(row) = group.dense() {
        let y = frame.y.at(row.result.perplexity.perplexity);
        obstacles.lines.push(((left, y), (right, y)));
    }
    for (_, rows) in group.series() {
        let points: Vec<Point> = rows.iter().map(|row| point(group, row, frame)).collect();
        obstacles
            .lines
            .extend(points.windows(2).map(|pair| (pair[0], pair[1])));
        obstacles
            .areas
            .extend(points.iter().map(|&at| Area::around(at, RADIUS * 1.3)));
        obstacles.markers.extend(&points);
        let bars = rows.iter().filter_map(|row| error_bar(group, row, frame));
        obstacles.areas.extend(bars.map(|(high, low)| Area {
            left: high.0 - CAP,
            top: high.1,
            right: high.0 + CAP,
            bottom: low.1,
        }));
    }
    for row in group.points() {
        let value = number::significant(row.result.perplexity.perplexity);
        let wide = font::width(&value, LABEL, false);
        if let Some(area) = obstacles.place(point(group, row, frame), wide, LABEL) {
            // Grid lines pause behind a value.
            canvas.rectangle(
                (area.left - 2.0, area.top),
                (area.right + 2.0, area.bottom),
                PAPER,
                0.9,
            )?;
            let baseline = f64::midpoint(area.top, area.bottom) + LABEL * MIDDLE;
            let set = Type {
                size: LABEL,
                bold: false,
                colour: INK,
            };
            canvas.text(
                &value,
                (f64::midpoint(area.left, area.right), baseline),
                Anchor::Middle,
                set,
            )?;
        }
    }
    Ok(())
}

fn point(group: &Group<'_>, row: &Row<'_>, frame: &Frame) -> Point {
    (
        frame.x.at(group.x(row)),
        frame.y.at(row.result.perplexity.perplexity),
    )
}

/// Upper and lower end; none where the marker would hide the whole bar.
fn error_bar(group: &Group<'_>, row: &Row<'_>, frame: &Frame) -> Option<(Point, Point)> {
    let (value, error) = (row.result.perplexity.perplexity, row.stderr()?);
    let x = frame.x.at(group.x(row));
    let (top, bottom) = (frame.y.at(value + error), frame.y.at(value - error));
    (bottom - top > 2.0 * RADIUS).then_some(((x, top), (x, bottom)))
}

fn colour(series: usize) -> RGBColor {
    SERIES[series % SERIES.len()]
}
