//! Trade-off charts, perplexity over size or speed; heat maps of what was done to each projection; bars and lines for the rest.

pub(crate) mod bars;
mod canvas;
mod font;
mod frame;
mod heat;
mod labels;
pub(crate) mod lines;
mod paint;
mod palette;
mod raster;
mod scale;
mod sketch;

use crate::error::ReportError;
use crate::group::Group;
pub(crate) use heat::{Quantity, SITES_TITLE, sites_svg, svg as heat_map};
pub(crate) use raster::png;
pub(crate) use scale::Scale;
pub(crate) use sketch::Words;

/// Where a chart is shown, which decides its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file of its own, with title and subtitle, on white.
    Figure,
    /// In the page, which has the title and decides the colours.
    Page,
    /// In the page on a narrow screen: text of the same size on a smaller chart.
    Phone,
}

/// Draws `group` as an SVG document (or element, in the page).
pub(crate) fn svg(group: &Group<'_>, place: Place) -> Result<String, ReportError> {
    let frame = frame::Frame::new(group, place);
    let drawn = paint::paint(group, &frame)?;
    Ok(if place == Place::Figure {
        drawn
    } else {
        palette::themed(&drawn)
    })
}
