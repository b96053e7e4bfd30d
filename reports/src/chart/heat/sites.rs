//! The heat map of a sensitivity measurement: divergence per scalar saved, a row a site and a column a layer.

use cinder_eval::Sensitivity;

use super::ramp::Ramp;
use crate::chart::Place;
use crate::chart::canvas::{self, Anchor, Type};
use crate::chart::font;
use crate::chart::frame::{TEXT, TITLE};
use crate::chart::palette::{self, GRID, INK, MUTED, PAPER};
use crate::error::ReportError;

/// Height of a cell, and the most it is wide.
const DOWN: f64 = 22.0;
const WIDEST: f64 = 44.0;
/// From one line of text to the next.
const LINE: f64 = 16.0;
/// The sites from top to bottom, in the order data flows.
const SITES: [&str; 4] = ["qkv", "o", "gate_up", "down"];

/// What the figure is called.
pub(crate) const SITES_TITLE: &str = "How much each site matters, layer by layer";

/// Draws it as an SVG document (or element, in the page).
pub(crate) fn sites_svg(result: &Sensitivity, place: Place) -> Result<String, ReportError> {
    let (width, margin) = match place {
        Place::Figure => (880.0, 32.0),
        Place::Page => (880.0, 6.0),
        Place::Phone => (344.0, 2.0),
    };
    let plain = Type {
        size: TEXT,
        bold: false,
        colour: MUTED,
    };
    let inner = width - 2.0 * margin;
    let per_million = |kl: f64| 1e6 * kl;
    let values = result.sites.iter().filter_map(|s| s.kl_per_scalar);
    let ramp = Ramp::error(&values.map(per_million).collect::<Vec<f64>>());
    let mut cursor = margin;
    if place == Place::Figure {
        cursor += 28.0;
    }
    let bar_lines = font::wrap(
        "KL from the dense model, nats per token and million scalars saved (log scale)",
        TEXT,
        inner,
    );
    let bar_title = cursor;
    cursor += LINE * bar_lines.len() as f64 + 8.0;
    let bar_top = cursor;
    cursor += 12.0 + 19.0 + 16.0;
    let names = SITES.iter().map(|site| font::width(site, TEXT, false));
    let left = margin + names.fold(font::width("layer", TEXT, false), f64::max) + 8.0;
    let layers = result.sites.iter().map(|s| s.layer + 1).max().unwrap_or(1);
    let across = ((width - margin - left) / layers as f64).min(WIDEST);
    let top = cursor;
    let bottom = top + DOWN * SITES.len() as f64;
    let size = (width, bottom + 15.0 + margin.max(6.0));
    let most = result.ranked();
    let most = most
        .iter()
        .take(3)
        .map(|s| format!("layer {} {}", s.layer, s.site));
    let most: Vec<String> = most.collect();
    let words = format!("{SITES_TITLE}. Most sensitive: {}.", most.join(", "));
    let drawn = canvas::draw(size, SITES_TITLE, &words, |canvas| {
        canvas.rectangle((0.0, 0.0), size, PAPER, 1.0)?;
        if place == Place::Figure {
            let set = Type {
                size: TITLE,
                bold: true,
                colour: INK,
            };
            canvas.text(SITES_TITLE, (margin, margin + 14.0), Anchor::Start, set)?;
        }
        for (index, line) in bar_lines.iter().enumerate() {
            let y = bar_title + LINE * (index + 1) as f64;
            canvas.text(line, (margin, y), Anchor::Start, plain)?;
        }
        let Some(ramp) = &ramp else { return Ok(()) };
        let step = 33.0_f64.min((inner - 16.0) / ramp.steps().max(1) as f64);
        for index in 0..ramp.steps() {
            let x = margin + 8.0 + step * index as f64;
            canvas.rectangle(
                (x, bar_top),
                (x + step, bar_top + 12.0),
                ramp.step(index).0,
                1.0,
            )?;
        }
        for (at, label) in ramp.ticks() {
            let x = margin + 8.0 + step * at;
            canvas.line(&[(x, bar_top + 12.0), (x, bar_top + 16.0)], MUTED, 1.0)?;
            canvas.text(label, (x, bar_top + 29.0), Anchor::Middle, plain)?;
        }
        for (row, site) in SITES.iter().enumerate() {
            let y = top + DOWN * (row as f64 + 0.5) + TEXT * 0.36;
            canvas.text(site, (left - 8.0, y), Anchor::End, plain)?;
        }
        let gap = if across >= 6.0 { 1.0 } else { 0.25 };
        for site in &result.sites {
            let Some(row) = SITES.iter().position(|name| *name == site.site) else {
                continue;
            };
            let x = left + across * site.layer as f64;
            let y = top + DOWN * row as f64;
            let value = site.kl_per_scalar.map(per_million).filter(|v| *v > 0.0);
            let colour = value.map_or(GRID, |v| ramp.colour(v).0);
            canvas.rectangle((x, y), (x + across - gap, y + DOWN - 1.0), colour, 1.0)?;
        }
        canvas.text("layer", (left - 8.0, bottom + 15.0), Anchor::End, plain)?;
        let mut every = [1, 2, 5, 10, 20, 50, 100].into_iter();
        let every = every.find(|e| across * *e as f64 >= 22.0).unwrap_or(200);
        for layer in (0..layers).step_by(every) {
            let x = left + across * (layer as f64 + 0.5);
            canvas.text(
                &layer.to_string(),
                (x, bottom + 15.0),
                Anchor::Middle,
                plain,
            )?;
        }
        Ok(())
    })?;
    Ok(match place {
        Place::Figure => drawn,
        Place::Page | Place::Phone => palette::themed(&drawn),
    })
}
