//! A drawing whose height is known only when everything has its place: what is to be drawn, in order.

use plotters::style::RGBColor;

use super::Place;
use super::canvas::{self, Anchor, Canvas, Marker, Point, Type};
use super::font;
use super::palette::{self, INK, MUTED, PAPER};
use crate::error::ReportError;

/// Text sizes in pixels.
const TITLE: f64 = 18.0;
const SUBTITLE: f64 = 13.0;
pub(super) const TEXT: f64 = 12.0;
const NOTE: f64 = 11.0;
/// From one line of text to the next.
const LINE: f64 = 16.0;
const LEGEND_ROW: f64 = 20.0;
/// Width of a legend's mark with the space behind it, and the space after an entry.
const SWATCH: f64 = 28.0;
const ENTRY_GAP: f64 = 22.0;
/// From the middle of digits down to their baseline, as a share of the text size.
pub(super) const MIDDLE: f64 = 0.36;

/// Text in the muted colour of axes.
pub(super) const PLAIN: Type = Type {
    size: TEXT,
    bold: false,
    colour: MUTED,
};
/// Text in the colour of names and values.
pub(super) const STRONG: Type = Type {
    size: TEXT,
    bold: false,
    colour: INK,
};

/// The words around a chart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words {
    pub title: String,
    /// What was measured, in a line.
    pub subtitle: String,
    /// What the marks mean that no axis explains.
    pub note: String,
    /// The chart in words, for readers who cannot see it.
    pub description: String,
}

/// A legend's mark.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark {
    /// A piece of line with a series' marker.
    Line(usize, RGBColor),
    /// A filled square.
    Box(RGBColor),
    /// A dashed line.
    Dashes(RGBColor),
}

#[derive(Debug)]
enum Op {
    Rectangle(Point, Point, RGBColor, f64),
    Line(Vec<Point>, RGBColor, f64),
    Dashed(Point, Point, RGBColor, f64),
    Marker(Point, Marker, RGBColor, f64),
    Text(String, Point, Anchor, Type),
}

/// The drawing so far.
#[derive(Debug)]
pub(super) struct Sketch {
    pub width: f64,
    pub margin: f64,
    /// Where the next thing goes.
    pub cursor: f64,
    pub place: Place,
    ops: Vec<Op>,
}

impl Sketch {
    /// An empty drawing as wide as `place` has it, or less: with title and subtitle where the place has none of its own.
    pub fn new(words: &Words, place: Place) -> Self {
        let (width, margin) = match place {
            Place::Figure => (880.0, 32.0),
            Place::Page => (880.0, 6.0),
            Place::Phone => (344.0, 2.0),
        };
        let mut sketch = Self {
            width,
            margin,
            cursor: margin,
            place,
            ops: Vec::new(),
        };
        if place == Place::Figure {
            sketch.cursor += 14.0;
            let set = Type {
                size: TITLE,
                bold: true,
                colour: INK,
            };
            let title = font::fit(&words.title, TITLE, true, sketch.inner());
            sketch.text(&title, (margin, sketch.cursor), Anchor::Start, set);
            sketch.cursor += 8.0;
            let subtitle = Type {
                size: SUBTITLE,
                ..PLAIN
            };
            sketch.paragraph(&words.subtitle, subtitle);
            sketch.cursor += 12.0;
        }
        sketch
    }

    pub fn phone(&self) -> bool {
        self.place == Place::Phone
    }

    /// Width between the margins.
    pub fn inner(&self) -> f64 {
        self.width - 2.0 * self.margin
    }

    pub fn rectangle(&mut self, from: Point, to: Point, colour: RGBColor, opacity: f64) {
        self.ops.push(Op::Rectangle(from, to, colour, opacity));
    }

    pub fn line(&mut self, points: &[Point], colour: RGBColor, width: f64) {
        self.ops.push(Op::Line(points.to_vec(), colour, width));
    }

    /// A dashed line in any direction.
    pub fn dashed(&mut self, from: Point, to: Point, colour: RGBColor, width: f64) {
        self.ops.push(Op::Dashed(from, to, colour, width));
    }

    pub fn marker(&mut self, at: Point, marker: Marker, colour: RGBColor, radius: f64) {
        self.ops.push(Op::Marker(at, marker, colour, radius));
    }

    pub fn text(&mut self, text: &str, at: Point, anchor: Anchor, set: Type) {
        self.ops.push(Op::Text(text.to_owned(), at, anchor, set));
    }

    /// `text` in as many lines as it needs, below the cursor.
    pub fn paragraph(&mut self, text: &str, set: Type) {
        for line in font::wrap(text, set.size, self.inner()) {
            self.cursor += LINE;
            self.text(&line, (self.margin, self.cursor), Anchor::Start, set);
        }
    }

    /// A text in lines that are centred on `middle` as far as the margins let them.
    pub fn centred(&mut self, text: &str, middle: f64, limit: f64) {
        for line in font::wrap(text, TEXT, limit) {
            self.cursor += LINE;
            let half = font::width(&line, TEXT, false) / 2.0;
            let centre = middle
                .min(self.width - self.margin - half)
                .max(self.margin + half);
            self.text(&line, (centre, self.cursor), Anchor::Middle, PLAIN);
        }
    }

    /// Entries in rows as wide as the drawing, below the cursor.
    pub fn legend(&mut self, entries: &[(String, Mark)]) {
        let mut left = self.margin;
        for (index, (name, mark)) in entries.iter().enumerate() {
            let name = font::fit(name, TEXT, false, self.inner() - SWATCH);
            let wide = SWATCH + font::width(&name, TEXT, false);
            if index == 0 {
                self.cursor += LEGEND_ROW - 4.0;
            } else if left + wide > self.margin + self.inner() {
                left = self.margin;
                self.cursor += LEGEND_ROW;
            }
            let y = self.cursor - TEXT * MIDDLE;
            let (from, to) = (left, left + SWATCH - 8.0);
            match *mark {
                Mark::Line(series, colour) => {
                    self.line(&[(from, y), (to, y)], colour, 2.0);
                    let middle = f64::midpoint(from, to);
                    self.marker((middle, y), Marker::of(series), colour, 4.5);
                }
                Mark::Box(colour) => {
                    self.rectangle((to - 12.0, y - 6.0), (to, y + 6.0), colour, 1.0);
                }
                Mark::Dashes(colour) => self.dashed((from, y), (to, y), colour, 1.5),
            }
            self.text(&name, (left + SWATCH, self.cursor), Anchor::Start, STRONG);
            left += wide + ENTRY_GAP;
        }
        if !entries.is_empty() {
            self.cursor += 8.0;
        }
    }

    /// Ends the drawing with the note, and draws it.
    pub fn finish(mut self, words: &Words) -> Result<String, ReportError> {
        let set = Type {
            size: NOTE,
            ..PLAIN
        };
        self.cursor += 6.0;
        self.paragraph(&words.note, set);
        let size = (self.width, (self.cursor + self.margin + 4.0).ceil());
        let drawn = canvas::draw(size, &words.title, &words.description, |canvas| {
            canvas.rectangle((0.0, 0.0), size, PAPER, 1.0)?;
            self.ops.iter().try_for_each(|op| draw(canvas, op))
        })?;
        Ok(match self.place {
            Place::Figure => drawn,
            Place::Page | Place::Phone => palette::themed(&drawn),
        })
    }
}

fn draw(canvas: &mut Canvas<'_>, op: &Op) -> Result<(), ReportError> {
    match op {
        Op::Rectangle(from, to, colour, opacity) => canvas.rectangle(*from, *to, *colour, *opacity),
        Op::Line(points, colour, width) => canvas.line(points, *colour, *width),
        Op::Dashed(from, to, colour, width) => dashes(canvas, *from, *to, *colour, *width),
        Op::Marker(at, marker, colour, radius) => canvas.marker(*at, *marker, *colour, *radius),
        Op::Text(text, at, anchor, set) => canvas.text(text, *at, *anchor, *set),
    }
}

fn dashes(
    canvas: &mut Canvas<'_>,
    from: Point,
    to: Point,
    colour: RGBColor,
    width: f64,
) -> Result<(), ReportError> {
    const DASH: f64 = 6.0;
    const GAP: f64 = 4.0;
    let length = (to.0 - from.0).hypot(to.1 - from.1);
    let at = |along: f64| {
        let share = along / length;
        (
            from.0 + share * (to.0 - from.0),
            from.1 + share * (to.1 - from.1),
        )
    };
    let mut along = 0.0;
    while along < length {
        canvas.line(&[at(along), at((along + DASH).min(length))], colour, width)?;
        along += DASH + GAP;
    }
    Ok(())
}
