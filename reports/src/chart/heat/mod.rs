//! Heat maps: one quantity of every projection of every layer, one panel a model.

mod frame;
mod paint;
mod ramp;
mod sites;

use super::{Place, palette};
use crate::compression::{Cell, Compressed};
use crate::error::ReportError;
pub(crate) use sites::{SITES_TITLE, sites_svg};

/// What the colours show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantity {
    /// Stored scalars, after / before, with the kind as a letter and the rank where it fits.
    Kept,
    /// Relative error of the output; no error is blank.
    Error,
}

impl Quantity {
    pub(crate) fn of(self, cell: &Cell<'_>) -> f64 {
        match self {
            Self::Kept => cell.kept,
            Self::Error => cell.site.record.error,
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Kept => "What each projection keeps, layer by layer",
            Self::Error => "Output error of each projection, layer by layer",
        }
    }

    /// What the colour bar shows, with its unit.
    fn bar(self) -> &'static str {
        match self {
            Self::Kept => "kept share (stored scalars, after / before)",
            Self::Error => "relative output error ‖(W − Ŵ)X‖ / ‖WX‖ (log scale)",
        }
    }

    /// What the colours need said that neither bar nor axis can.
    fn notes(self, models: &[&Compressed<'_>], left_out: Option<&str>) -> String {
        let mut notes: Vec<&str> = Vec::new();
        match self {
            Self::Kept => {
                let kinds = models.iter().flat_map(|model| model.kinds());
                if kinds
                    .into_iter()
                    .any(|(kind, _)| kind.starts_with("shared"))
                {
                    notes.push("A shared basis is spread over the projections of its site.");
                }
            }
            Self::Error => notes.push("Measured on the calibration inputs."),
        }
        notes.extend(left_out);
        notes.join(" ")
    }

    /// The figure in words, for readers who cannot see it.
    fn description(self, models: &[&Compressed<'_>]) -> String {
        let model = |model: &&Compressed<'_>| {
            let parts = model.summaries().into_iter().map(|summary| match self {
                Self::Kept => format!("{} {:.3}", summary.projection, summary.kept),
                Self::Error => format!("{} up to {:.3}", summary.projection, summary.error.1),
            });
            format!("{}: {}", model.label, parts.collect::<Vec<_>>().join(", "))
        };
        let models: Vec<String> = models.iter().map(model).collect();
        let what = match self {
            Self::Kept => "Mean kept share over the layers",
            Self::Error => "Relative output error over the layers",
        };
        format!("{what}. {}.", models.join("; "))
    }
}

/// Draws the `models` as an SVG document (or element, in the page).
pub(crate) fn svg(
    models: &[&Compressed<'_>],
    quantity: Quantity,
    left_out: Option<&str>,
    place: Place,
) -> Result<String, ReportError> {
    let frame = frame::Frame::new(models, quantity, left_out, place);
    let drawn = paint::paint(models, quantity, &frame)?;
    Ok(if place == Place::Figure {
        drawn
    } else {
        palette::themed(&drawn)
    })
}
