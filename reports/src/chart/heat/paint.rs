//! Draws a heat map whose measurements are taken.

use plotters::style::RGBColor;

use super::Quantity;
use super::frame::{Bar, COLUMNS, Frame, Panel, Placed, ROWS, SMALL};
use crate::chart::canvas::{self, Anchor, Canvas, Type};
use crate::chart::frame::{SUBTITLE, TEXT, TITLE};
use crate::chart::palette::{GRID, INK, MUTED, PAPER};
use crate::compression::{Cell, Compressed};
use crate::error::ReportError;

/// From the middle of letters down to their baseline, as a share of the text size.
const MIDDLE: f64 = 0.36;

const PLAIN: Type = Type {
    size: TEXT,
    bold: false,
    colour: MUTED,
};

/// The heat map as an SVG in fixed colours.
pub(super) fn paint(
    models: &[&Compressed<'_>],
    quantity: Quantity,
    frame: &Frame,
) -> Result<String, ReportError> {
    canvas::draw(
        frame.size,
        quantity.title(),
        &quantity.description(models),
        |canvas| {
            canvas.rectangle((0.0, 0.0), frame.size, PAPER, 1.0)?;
            words(canvas, frame)?;
            bar(canvas, &frame.bar)?;
            for (model, panel) in models.iter().zip(&frame.panels) {
                axes(canvas, frame, panel)?;
                for cell in model.cells() {
                    draw_cell(canvas, frame, panel, quantity, &cell)?;
                }
            }
            Ok(())
        },
    )
}

/// Title, name of the colour bar, letters of the kinds, note.
fn words(canvas: &mut Canvas<'_>, frame: &Frame) -> Result<(), ReportError> {
    let title = Type {
        size: TITLE,
        bold: true,
        colour: INK,
    };
    let letters = Type {
        colour: INK,
        ..PLAIN
    };
    let note = Type {
        size: TEXT - 1.0,
        ..PLAIN
    };
    let groups: [(&[Placed], Type); 4] = [
        (frame.title.as_slice(), title),
        (&frame.bar_title, PLAIN),
        (&frame.letters, letters),
        (&frame.note, note),
    ];
    for (texts, set) in groups {
        for (text, at) in texts {
            canvas.text(text, *at, Anchor::Start, set)?;
        }
    }
    Ok(())
}

fn bar(canvas: &mut Canvas<'_>, bar: &Bar) -> Result<(), ReportError> {
    let bottom = bar.top + 12.0;
    if let Some(ramp) = &bar.ramp {
        for step in 0..ramp.steps() {
            let left = bar.left + bar.step * step as f64;
            let (colour, _) = ramp.step(step);
            canvas.rectangle((left, bar.top), (left + bar.step, bottom), colour, 1.0)?;
        }
        for (place, label) in ramp.ticks() {
            let x = bar.left + bar.step * place;
            canvas.line(&[(x, bottom), (x, bottom + 4.0)], MUTED, 1.0)?;
            canvas.text(label, (x, bottom + 17.0), Anchor::Middle, PLAIN)?;
        }
    }
    if let Some((corner, (text, at))) = &bar.blank {
        blank(canvas, *corner, (corner.0 + 14.0, corner.1 + 14.0))?;
        canvas.text(text, *at, Anchor::Start, PLAIN)?;
    }
    Ok(())
}

/// What the panel shows, the rows' names and the layers' numbers.
fn axes(canvas: &mut Canvas<'_>, frame: &Frame, panel: &Panel) -> Result<(), ReportError> {
    let (across, down) = frame.cell;
    let title = Type {
        size: SUBTITLE,
        bold: true,
        colour: INK,
    };
    canvas.text(&panel.title.0, panel.title.1, Anchor::Start, title)?;
    canvas.text(ROWS, panel.rows_title, Anchor::Start, PLAIN)?;
    let right = frame.left - 8.0;
    for (row, name) in frame.rows.iter().enumerate() {
        let middle = panel.top + down * (row as f64 + 0.5);
        canvas.text(name, (right, middle + TEXT * MIDDLE), Anchor::End, PLAIN)?;
    }
    let y = panel.top + down * frame.rows.len() as f64 + 15.0;
    canvas.text(COLUMNS, (right, y), Anchor::End, PLAIN)?;
    for layer in (0..panel.layers).step_by(frame.every) {
        let x = frame.left + across * (layer as f64 + 0.5);
        canvas.text(&layer.to_string(), (x, y), Anchor::Middle, PLAIN)?;
    }
    Ok(())
}

fn draw_cell(
    canvas: &mut Canvas<'_>,
    frame: &Frame,
    panel: &Panel,
    quantity: Quantity,
    cell: &Cell<'_>,
) -> Result<(), ReportError> {
    let record = &cell.site.record;
    let Some(row) = frame
        .rows
        .iter()
        .position(|name| *name == record.projection)
    else {
        return Ok(());
    };
    let (across, down) = frame.cell;
    // Paper between cells keeps neighbours of one colour apart; thin cells would be all paper.
    let gap = if across >= 6.0 { 1.0 } else { 0.25 };
    let left = frame.left + across * record.layer as f64;
    let top = panel.top + down * row as f64;
    let (from, to) = ((left, top), (left + across - gap, top + down - 1.0));
    let value = quantity.of(cell);
    let ramp = frame.bar.ramp.as_ref();
    let ramp = ramp.filter(|_| quantity == Quantity::Kept || value > 0.0);
    let Some((colour, strong)) = ramp.map(|ramp| ramp.colour(value)) else {
        return blank(canvas, from, to);
    };
    canvas.rectangle(from, to, colour, 1.0)?;
    if !frame.with_letters {
        return Ok(());
    }
    let set = Type {
        size: SMALL,
        bold: false,
        colour: if strong { PAPER } else { INK },
    };
    let x = f64::midpoint(from.0, to.0);
    let middle = f64::midpoint(from.1, to.1);
    let lines = [
        Some(cell.letter().to_owned()),
        record
            .rank
            .filter(|_| frame.with_ranks)
            .map(|rank| rank.to_string()),
    ];
    let lines: Vec<String> = lines.into_iter().flatten().collect();
    let first = middle - 5.0 * (lines.len() - 1) as f64 + SMALL * MIDDLE;
    for (index, line) in lines.iter().enumerate() {
        let y = first + 10.5 * index as f64;
        canvas.text(line, (x, y), Anchor::Middle, set)?;
    }
    Ok(())
}

/// A rim around nothing.
fn blank(canvas: &mut Canvas<'_>, from: (f64, f64), to: (f64, f64)) -> Result<(), ReportError> {
    // As wide as the cell allows: a rim must not fill a thin one.
    let rim = if to.0 - from.0 >= 5.0 { 1.0 } else { 0.25 };
    let mut fill = |from, to, colour: RGBColor| canvas.rectangle(from, to, colour, 1.0);
    fill(from, to, GRID)?;
    fill(
        (from.0 + rim, from.1 + rim),
        (to.0 - rim, to.1 - rim),
        PAPER,
    )
}
