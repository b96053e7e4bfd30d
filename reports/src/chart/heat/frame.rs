//! A heat map's measurements: what goes where, before anything is drawn.

use std::collections::BTreeSet;

use super::Quantity;
use super::ramp::Ramp;
use crate::chart::Place;
use crate::chart::font;
use crate::chart::frame::{SUBTITLE, TEXT, TITLE};
use crate::compression::{Compressed, KINDS, position};
use crate::number;

/// Size of the texts within cells.
pub(super) const SMALL: f64 = 9.0;
/// Height of a cell with a letter, and of one with a letter and a rank.
const LOW: f64 = 16.0;
const HIGH: f64 = 26.0;
/// No cell is wider: a model of one layer should look like one.
const WIDEST: f64 = 44.0;
/// With more models than this, ranks would make the figure longer than a page.
const MODELS_WITH_RANKS: usize = 3;
const LINE: f64 = 16.0;
/// Name of the rows, of the columns.
pub(super) const ROWS: &str = "projection";
pub(super) const COLUMNS: &str = "layer";

/// A text and the left end of its baseline.
pub(super) type Placed = (String, (f64, f64));

/// The colour bar.
#[derive(Debug)]
pub(super) struct Bar {
    pub ramp: Option<Ramp>,
    pub left: f64,
    pub top: f64,
    /// Width of a step.
    pub step: f64,
    /// Upper left corner of the blank cell and its text.
    pub blank: Option<((f64, f64), Placed)>,
}

/// The cells of one model.
#[derive(Debug)]
pub(super) struct Panel {
    pub title: Placed,
    /// Where the rows are named.
    pub rows_title: (f64, f64),
    /// Top of the first row.
    pub top: f64,
    pub layers: usize,
}

/// All measurements of one heat map, in pixels.
#[derive(Debug)]
pub(super) struct Frame {
    pub size: (f64, f64),
    pub title: Option<Placed>,
    pub bar_title: Vec<Placed>,
    pub bar: Bar,
    pub letters: Vec<Placed>,
    pub panels: Vec<Panel>,
    pub note: Vec<Placed>,
    /// Projections from top to bottom.
    pub rows: Vec<String>,
    /// Left edge of layer 0.
    pub left: f64,
    /// Width and height of a cell, its gap included.
    pub cell: (f64, f64),
    /// Whether a cell has room for its kind's letter, and for its rank below.
    pub with_letters: bool,
    pub with_ranks: bool,
    /// Layers between two ticks.
    pub every: usize,
}

impl Frame {
    pub fn new(
        models: &[&Compressed<'_>],
        quantity: Quantity,
        left_out: Option<&str>,
        place: Place,
    ) -> Self {
        let (width, margin) = match place {
            Place::Figure => (880.0, 32.0),
            Place::Page => (880.0, 6.0),
            Place::Phone => (344.0, 2.0),
        };
        let phone = place == Place::Phone;
        let inner = width - 2.0 * margin;
        let mut cursor = margin;
        let mut title = None;
        if place == Place::Figure {
            cursor += 14.0;
            let text = font::fit(quantity.title(), TITLE, true, inner);
            title = Some((text, (margin, cursor)));
            cursor += 14.0;
        }

        let rows = rows(models);
        let beside = if phone { &rows[..] } else { &[ROWS.to_owned()] };
        let names = beside.iter().map(String::as_str).chain([COLUMNS]);
        let widest = |texts: &mut dyn Iterator<Item = &str>| {
            texts
                .map(|text| font::width(text, TEXT, false))
                .fold(0.0, f64::max)
        };
        let left = margin + widest(&mut names.into_iter()) + 8.0;
        let most = models.iter().map(|model| layers(model)).max().unwrap_or(0);
        let across = ((width - margin - left) / most.max(1) as f64).min(WIDEST);
        let kept = quantity == Quantity::Kept;
        let with_letters = kept && across >= font::width("D", SMALL, false) + 2.0;
        let with_ranks = kept
            && !phone
            && models.len() <= MODELS_WITH_RANKS
            && across >= widest_rank(models) + 4.0;
        let down = if with_ranks { HIGH } else { LOW };

        let lines = |text: &str, size: f64, cursor: &mut f64| -> Vec<Placed> {
            let line = |line: String| {
                *cursor += LINE;
                (line, (margin, *cursor))
            };
            font::wrap(text, size, inner)
                .into_iter()
                .map(line)
                .collect()
        };
        let bar_title = lines(quantity.bar(), TEXT, &mut cursor);
        cursor += 8.0;
        let (bar, after) = bar(models, quantity, margin, inner, cursor);
        cursor = after;
        let mut letters = Vec::new();
        if with_letters {
            (letters, cursor) = legend(models, with_ranks, margin, inner, cursor + 10.0);
        }

        let mut panels = Vec::new();
        for model in models {
            cursor += 34.0;
            let start = if phone { margin } else { left };
            let title = font::fit(&panel_title(model), SUBTITLE, true, width - margin - start);
            let title = (title, (start, cursor));
            cursor += if phone { LINE } else { 0.0 };
            panels.push(Panel {
                title,
                rows_title: (margin, cursor),
                top: cursor + 8.0,
                layers: layers(model),
            });
            // The layers' numbers stand below.
            cursor += 8.0 + down * rows.len() as f64 + 15.0;
        }
        cursor += 10.0;
        let notes = quantity.notes(models, left_out);
        let note = lines(&notes, TEXT - 1.0, &mut cursor);

        let number = font::width(&most.to_string(), TEXT, false) + 8.0;
        let every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000];
        let every = every.into_iter().find(|&n| n as f64 * across >= number);
        Self {
            size: (width, (cursor + margin + 4.0).ceil()),
            title,
            bar_title,
            bar,
            letters,
            panels,
            note,
            rows,
            left,
            cell: (across, down),
            with_letters,
            with_ranks,
            every: every.unwrap_or(5000),
        }
    }
}

/// All projections of all models, in their order.
fn rows(models: &[&Compressed<'_>]) -> Vec<String> {
    let sites = models.iter().flat_map(|model| &model.record.sites);
    let names: BTreeSet<(usize, &String)> = sites
        .map(|site| (position(&site.record.projection), &site.record.projection))
        .collect();
    // A name is a letter or two; what is longer comes from a damaged file.
    let short = |name: &String| font::fit(name, TEXT, false, 80.0);
    names.into_iter().map(|(_, name)| short(name)).collect()
}

/// Layers from 0 to the last one recorded.
fn layers(model: &Compressed<'_>) -> usize {
    let sites = &model.record.sites;
    sites
        .iter()
        .map(|site| site.record.layer + 1)
        .max()
        .unwrap_or(0)
}

/// Digits are equally wide.
fn widest_rank(models: &[&Compressed<'_>]) -> f64 {
    let sites = models.iter().flat_map(|model| &model.record.sites);
    let longest = sites.filter_map(|site| site.record.rank).max();
    let digits = longest.map_or(0, |rank| rank.to_string().len());
    font::width("0", SMALL, false) * digits as f64
}

/// `low-rank 0.8: keeps 0.800`, and its perplexity where exactly one was measured.
fn panel_title(model: &Compressed<'_>) -> String {
    let kept = number::fixed(model.record.keep_ratio, 3);
    let start = format!("{}: keeps {kept}", model.label);
    match model.evaluations.as_slice() {
        [one] => format!(
            "{start}, perplexity {}",
            number::significant(one.result.perplexity.perplexity)
        ),
        _ => start,
    }
}

/// The colour bar and what its blank cell means; returns where they end.
fn bar(
    models: &[&Compressed<'_>],
    quantity: Quantity,
    margin: f64,
    inner: f64,
    top: f64,
) -> (Bar, f64) {
    let cells = models.iter().flat_map(|model| model.cells());
    let cells: Vec<f64> = cells.map(|cell| quantity.of(&cell)).collect();
    let ramp = match quantity {
        Quantity::Kept => Some(Ramp::kept(&cells)),
        Quantity::Error => Ramp::error(&cells),
    };
    let has_blank = quantity == Quantity::Error && cells.contains(&0.0);
    let steps = ramp.as_ref().map_or(0, Ramp::steps);
    // Texts of ticks stand half a text over the ends of the bar.
    let left = margin + if ramp.is_some() { 8.0 } else { 0.0 };
    let step = 33.0_f64.min((inner - 16.0) / steps.max(1) as f64);
    let below = ramp.as_ref().map_or(0.0, |_| 19.0);
    let mut bottom = top + 12.0 + below;
    let text = "no error (dense)";
    let blank = has_blank.then(|| {
        let beside = left + step * steps as f64 + if ramp.is_some() { 28.0 } else { 0.0 };
        let fits = beside + 20.0 + font::width(text, TEXT, false) <= margin + inner;
        let corner = if fits {
            (beside, top - 1.0)
        } else {
            bottom += 24.0;
            (margin, bottom - 14.0)
        };
        (
            corner,
            (text.to_owned(), (corner.0 + 20.0, corner.1 + 11.0)),
        )
    });
    let bar = Bar {
        ramp,
        left,
        top,
        step,
        blank,
    };
    (bar, bottom)
}

/// `D dense  L low-rank`, as far as they occur, in rows as wide as the figure; returns the last baseline.
fn legend(
    models: &[&Compressed<'_>],
    with_ranks: bool,
    margin: f64,
    inner: f64,
    top: f64,
) -> (Vec<Placed>, f64) {
    let cells = models.iter().flat_map(|model| model.cells());
    let present: BTreeSet<&str> = cells.map(|cell| cell.letter()).collect();
    let known = KINDS.iter().filter(|(_, letter)| present.contains(letter));
    let mut texts: Vec<String> = known
        .map(|(kind, letter)| format!("{letter} {}", kind.replace('-', " ")))
        .collect();
    if present.contains("?") {
        texts.push("? another kind".to_owned());
    }
    if with_ranks {
        texts.push("number: rank".to_owned());
    }
    let (mut x, mut y) = (margin, top + TEXT);
    let mut placed = Vec::new();
    for text in texts {
        let wide = font::width(&text, TEXT, false);
        if x > margin && x + wide > margin + inner {
            (x, y) = (margin, y + LINE);
        }
        placed.push((text, (x, y)));
        x += wide + 20.0;
    }
    (placed, y)
}
