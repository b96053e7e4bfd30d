//! The standalone SVG as a PNG.

use resvg::{tiny_skia, usvg};

use super::font;
use crate::error::ReportError;

/// Pixels of the PNG for each pixel of the chart: sharp on dense screens and in print.
const SCALE: f32 = 2.0;

/// Rasterises `svg` with the embedded fonts only, at twice its nominal size.
pub(crate) fn png(svg: &str) -> Result<Vec<u8>, ReportError> {
    let tree = usvg::Tree::from_str(svg, &font::options())
        .map_err(|error| ReportError::Draw(error.to_string()))?;
    let size = tree.size();
    let (width, height) = (
        (size.width() * SCALE).ceil() as u32,
        (size.height() * SCALE).ceil() as u32,
    );
    let mut pixels = tiny_skia::Pixmap::new(width, height)
        .ok_or_else(|| ReportError::Draw(format!("no image of {width} × {height} pixels")))?;
    resvg::render(
        &tree,
        tiny_skia::Transform::from_scale(SCALE, SCALE),
        &mut pixels.as_mut(),
    );
    pixels
        .encode_png()
        .map_err(|error| ReportError::Draw(error.to_string()))
}
