//! Parts of a report besides trade-offs and layers: each a heading, figures with their numbers, and a table.

mod costs;
mod divergence;
mod positions;
mod spectra;
mod speculation;
mod table;
mod tasks;

use crate::chart::{Place, bars, lines};
use crate::compression::Compressed;
use crate::error::ReportError;
use crate::group::Group;
use crate::input::Results;
pub(crate) use table::{Table, Value};

/// A part of the report.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// Its anchor in the page.
    pub id: String,
    pub heading: String,
    pub introduction: String,
    pub figures: Vec<Drawn>,
    /// Tables with what they are of.
    pub tables: Vec<(String, Table)>,
    /// The command lines that made what is shown, and the files it was read from.
    pub commands: Vec<String>,
    pub files: Vec<String>,
}

/// A figure, drawn.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    pub title: String,
    pub subtitle: String,
    /// Base name of its files.
    pub stem: String,
    /// The standalone SVG.
    pub drawing: String,
    /// For the page, and for the page on a narrow screen.
    pub wide: String,
    pub narrow: String,
    /// Its numbers.
    pub csv: String,
}

impl Drawn {
    fn bars(stem: &str, bars: &bars::Bars, data: &Table) -> Result<Self, ReportError> {
        Self::new(stem, &bars.words, data, |place| bars::svg(bars, place))
    }

    fn lines(stem: &str, lines: &lines::Lines, data: &Table) -> Result<Self, ReportError> {
        Self::new(stem, &lines.words, data, |place| lines::svg(lines, place))
    }

    fn new(
        stem: &str,
        words: &crate::chart::Words,
        data: &Table,
        draw: impl Fn(Place) -> Result<String, ReportError>,
    ) -> Result<Self, ReportError> {
        Ok(Self {
            title: words.title.clone(),
            subtitle: words.subtitle.clone(),
            stem: stem.to_owned(),
            drawing: draw(Place::Figure)?,
            wide: draw(Place::Page)?,
            narrow: draw(Place::Phone)?,
            csv: data.csv(),
        })
    }
}

/// Every part that the results have something for.
///
/// # Errors
/// [`ReportError::NotFinite`] for numbers no chart can show; [`ReportError::Draw`].
pub(crate) fn sections(
    results: &Results,
    groups: &[Group<'_>],
    models: &[Compressed<'_>],
) -> Result<Vec<Section>, ReportError> {
    let mut all = Vec::new();
    all.extend(tasks::section(&results.tasks)?);
    all.extend(divergence::section(&results.divergences)?);
    all.extend(divergence::comparisons(&results.comparisons)?);
    all.extend(positions::sections(groups)?);
    all.extend(speculation::sections(&results.speculations)?);
    all.extend(spectra::sections(&results.spectra)?);
    all.extend(costs::section(models)?);
    Ok(all)
}

/// Rejects a number that no chart can show.
fn finite(file: &std::path::Path, field: &str, value: f64) -> Result<(), ReportError> {
    match value.is_finite() {
        true => Ok(()),
        false => Err(ReportError::NotFinite {
            file: file.to_path_buf(),
            field: field.to_owned(),
            value,
        }),
    }
}

/// Names made different by what else is known of their owners, then by a number.
fn distinct(names: &[(String, String)]) -> Vec<String> {
    let twice = |name: &str, all: &[String]| all.iter().filter(|n| *n == name).count() > 1;
    let bare: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
    let longer = names.iter().map(|(name, more)| match twice(name, &bare) {
        true => format!("{name}, {more}"),
        false => name.clone(),
    });
    let longer: Vec<String> = longer.collect();
    let mut seen: Vec<&String> = Vec::new();
    let mut all = Vec::new();
    for name in &longer {
        seen.push(name);
        let before = seen.iter().filter(|n| **n == name).count();
        all.push(match before {
            1 => name.clone(),
            _ => format!("{name} ({before})"),
        });
    }
    all
}
