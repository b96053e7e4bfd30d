//! Lines, shapes and text in pixels on plotters' SVG backend.

use std::fmt::Display;

use plotters::backend::DrawingBackend;
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, RGBColor, ShapeStyle, TextStyle};

use super::font;
use super::palette::PAPER;
use crate::error::ReportError;

/// The backend knows whole numbers only; a quarter of a pixel is as fine as anyone sees.
const UNITS: f64 = 4.0;
/// What the backend divides font sizes by.
const BACKEND_FONT_FACTOR: f64 = 1.24;

/// A point in pixels, y downwards.
pub(crate) type Point = (f64, f64);

/// How a text is set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Type {
    pub size: f64,
    pub bold: bool,
    pub colour: RGBColor,
}

/// Which end of a text its point is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A marker's shape, told apart without colour.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Nabla,
}

impl Marker {
    /// Another shape for each series; five shapes and six colours repeat together only after thirty.
    pub fn of(series: usize) -> Self {
        [
            Self::Circle,
            Self::Square,
            Self::Triangle,
            Self::Diamond,
            Self::Nabla,
        ][series % 5]
    }

    /// Corners around the origin for a marker of radius 1; none for a circle. Scaled to look equally large.
    fn corners(self) -> &'static [Point] {
        match self {
            Self::Circle => &[],
            Self::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Self::Triangle => &[(0.0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
            Self::Diamond => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
            Self::Nabla => &[(0.0, 1.2), (1.15, -0.85), (-1.15, -0.85)],
        }
    }
}

/// An SVG being drawn.
pub(crate) struct Canvas<'a> {
    backend: SVGBackend<'a>,
}

/// Draws an SVG of `width × height` pixels with a title and a description for those who cannot see it.
pub(crate) fn draw(
    (width, height): (f64, f64),
    title: &str,
    description: &str,
    paint: impl FnOnce(&mut Canvas<'_>) -> Result<(), ReportError>,
) -> Result<String, ReportError> {
    let mut text = String::new();
    let size = (
        (width * UNITS).round() as u32,
        (height * UNITS).round() as u32,
    );
    let mut canvas = Canvas {
        backend: SVGBackend::with_string(&mut text, size),
    };
    paint(&mut canvas)?;
    canvas.backend.present().map_err(draw_error)?;
    drop(canvas);

    // The backend's own root element says units where pixels are meant, and has neither name nor description.
    let body = text.split_once('>').map_or("", |(_, body)| body);
    // The baseline is placed in pixels; the backend's shift in `ex` would differ between renderers.
    let body = body
        .replace(" dy=\"-0.5ex\"", "")
        .replace(" opacity=\"1\"", "")
        .replace(" stroke=\"none\"", "")
        // Said once at the root: a heat map has thousands of texts.
        .replace(&format!(" font-family=\"{}\"", font::FAMILY), "");
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {} {}\" \
         role=\"img\" font-family=\"{}\" stroke-linejoin=\"round\">\n<title>{}</title>\n<desc>{}</desc>{body}",
        size.0,
        size.1,
        font::FAMILY,
        font::escape(title),
        font::escape(description),
    ))
}

impl Canvas<'_> {
    /// A line through `points`.
    pub fn line(
        &mut self,
        points: &[Point],
        colour: RGBColor,
        width: f64,
    ) -> Result<(), ReportError> {
        self.backend
            .draw_path(points.iter().map(units), &stroke(colour, width))
            .map_err(draw_error)
    }

    /// A horizontal dashed line.
    pub fn dashes(
        &mut self,
        (from, to): (f64, f64),
        y: f64,
        colour: RGBColor,
        width: f64,
    ) -> Result<(), ReportError> {
        const DASH: f64 = 6.0;
        const GAP: f64 = 4.0;
        let mut x = from;
        while x < to {
            self.line(&[(x, y), ((x + DASH).min(to), y)], colour, width)?;
            x += DASH + GAP;
        }
        Ok(())
    }

    /// A filled rectangle from its upper left to its lower right corner.
    pub fn rectangle(
        &mut self,
        from: Point,
        to: Point,
        colour: RGBColor,
        opacity: f64,
    ) -> Result<(), ReportError> {
        let style = ShapeStyle {
            color: colour.mix(opacity),
            filled: true,
            stroke_width: 0,
        };
        self.backend
            .draw_rect(units(&from), units(&to), &style, true)
            .map_err(draw_error)
    }

    /// A marker with a rim of paper, which parts it from lines and other markers.
    pub fn marker(
        &mut self,
        at: Point,
        marker: Marker,
        colour: RGBColor,
        radius: f64,
    ) -> Result<(), ReportError> {
        for (colour, radius) in [(PAPER, radius + 1.75), (colour, radius)] {
            let style = ShapeStyle {
                color: colour.to_rgba(),
                filled: true,
                stroke_width: 0,
            };
            let corners = marker.corners();
            let drawn = if corners.is_empty() {
                self.backend
                    .draw_circle(units(&at), (radius * UNITS).round() as u32, &style, true)
            } else {
                let corner = |(x, y): &Point| units(&(at.0 + x * radius, at.1 + y * radius));
                self.backend
                    .fill_polygon(corners.iter().map(corner), &style)
            };
            drawn.map_err(draw_error)?;
        }
        Ok(())
    }

    /// A circle around a point, filled with paper.
    pub fn ring(&mut self, at: Point, colour: RGBColor, radius: f64) -> Result<(), ReportError> {
        for (colour, radius) in [(colour, radius), (PAPER, radius - 1.5)] {
            let style = ShapeStyle {
                color: colour.to_rgba(),
                filled: true,
                stroke_width: 0,
            };
            self.backend
                .draw_circle(units(&at), (radius * UNITS).round() as u32, &style, true)
                .map_err(draw_error)?;
        }
        Ok(())
    }

    /// `text` with its baseline at `at`.
    pub fn text(
        &mut self,
        text: &str,
        at: Point,
        anchor: Anchor,
        set: Type,
    ) -> Result<(), ReportError> {
        let horizontal = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let weight = if set.bold {
            FontStyle::Bold
        } else {
            FontStyle::Normal
        };
        let font = FontDesc::new(
            FontFamily::Name(font::FAMILY),
            set.size * UNITS * BACKEND_FONT_FACTOR,
            weight,
        );
        let style = TextStyle::from(font)
            .color(&set.colour)
            .pos(Pos::new(horizontal, VPos::Bottom));
        self.backend
            .draw_text(&font::clean(text), &style, units(&at))
            .map_err(draw_error)
    }
}

fn stroke(colour: RGBColor, width: f64) -> ShapeStyle {
    ShapeStyle {
        color: colour.to_rgba(),
        filled: false,
        stroke_width: (width * UNITS).round() as u32,
    }
}

fn units(point: &Point) -> (i32, i32) {
    (
        (point.0 * UNITS).round() as i32,
        (point.1 * UNITS).round() as i32,
    )
}

fn draw_error(error: impl Display) -> ReportError {
    ReportError::Draw(error.to_string())
}
