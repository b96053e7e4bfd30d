//! Ties the parts together: check, group, draw, write.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::chart::{self, Place};
use crate::csv::csv;
use crate::error::ReportError;
use crate::group;
use crate::html;
use crate::input::Evaluation;
use crate::markdown::markdown;
use crate::output::Staged;

/// Base name of a chart's files.
const CHART: &str = "perplexity-vs-keep-ratio";

/// What can be chosen about a report.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Heading of the page and the Markdown.
    pub title: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            title: "What compression costs".to_owned(),
        }
    }
}

impl Options {
    /// Options with this heading.
    #[must_use]
    pub fn titled(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
        }
    }
}

/// The files of a written report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The self-contained page.
    pub html: PathBuf,
    /// The same tables for a pull request.
    pub markdown: PathBuf,
    /// Each chart as SVG, then as PNG.
    pub figures: Vec<PathBuf>,
    /// Each chart's numbers as CSV.
    pub data: Vec<PathBuf>,
}

/// File names and contents of one group's chart.
pub(crate) struct Figure {
    pub svg: String,
    pub png: String,
    pub csv: String,
    /// The standalone SVG.
    pub drawing: String,
    /// The chart's numbers.
    pub table: String,
}

impl Figure {
    fn new(index: usize, group: &group::Group<'_>) -> Result<Self, ReportError> {
        let stem = if index == 0 {
            CHART.to_owned()
        } else {
            format!("{CHART}-{}", index + 1)
        };
        Ok(Self {
            svg: format!("{stem}.svg"),
            png: format!("{stem}.png"),
            csv: format!("{stem}.csv"),
            drawing: chart::svg(group, Place::Figure)?,
            table: csv(group),
        })
    }
}

/// Writes `report.html`, `report.md` and, for every set of comparable measurements, a chart as `.svg` and `.png` and its
/// numbers as `.csv` into `out`, which is created when missing. The first chart is `perplexity-vs-keep-ratio`, further
/// ones carry a number. Files of the same names are replaced, and only when all are complete.
///
/// Measurements are comparable when they scored the same windows of the same tokens of the same text. The order of
/// `evaluations` does not matter, and a measurement given twice counts once.
///
/// # Errors
/// [`ReportError::NoResults`] without evaluations; [`ReportError::NotFinite`], [`ReportError::Contradiction`] and
/// [`ReportError::Conflict`] for numbers that cannot be right; [`ReportError::Draw`] and [`ReportError::Io`] when a file
/// cannot be made. After an error `out` holds none of the new files under their final names, unless renaming itself failed.
pub fn write(
    evaluations: &[Evaluation],
    out: &Path,
    options: &Options,
) -> Result<Report, ReportError> {
    let groups = group::group(evaluations)?;
    let figures = groups
        .iter()
        .enumerate()
        .map(|(index, group)| Figure::new(index, group));
    let figures = figures.collect::<Result<Vec<_>, _>>()?;
    let page = html::page(&options.title, &groups, &figures)?;
    let text = markdown(&options.title, &groups, &figures);

    let mut staged = Staged::new(out)?;
    let (mut images, mut data) = (Vec::new(), Vec::new());
    for figure in &figures {
        images.push(staged.add(&figure.svg, figure.drawing.as_bytes())?);
        images.push(staged.add(&figure.png, &chart::png(&figure.drawing)?)?);
        data.push(staged.add(&figure.csv, figure.table.as_bytes())?);
    }
    let markdown = staged.add("report.md", text.as_bytes())?;
    let html = staged.add("report.html", page.as_bytes())?;
    staged.commit()?;
    Ok(Report {
        html,
        markdown,
        figures: images,
        data,
    })
}
