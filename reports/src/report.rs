//! Ties the parts together: check, group, draw, write.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::card;
use crate::chart::{self, Place, Quantity};
use crate::compression::{self, Compressed};
use crate::csv::{self, csv};
use crate::error::ReportError;
use crate::group::{self, Axis, Group};
use crate::html;
use crate::input::Results;
use crate::markdown::markdown;
use crate::output::Staged;
use crate::sections;
use crate::sensitivity::SensitivityFigure;

/// Base name of a chart's files.
fn chart_stem(axis: Axis) -> &'static str {
    match axis {
        Axis::KeepRatio => "perplexity-vs-keep-ratio",
        Axis::CacheBytes => "kv-cache-bytes-vs-perplexity",
        Axis::WeightBytes => "perplexity-vs-weight-bytes",
        Axis::Scoring => "perplexity-vs-scoring-speed",
        Axis::Decoding => "perplexity-vs-decoding-speed",
    }
}
/// Base names of the heat maps' files.
const HEAT_MAPS: [(Quantity, &str); 2] = [
    (Quantity::Kept, "kept-share-by-layer"),
    (Quantity::Error, "output-error-by-layer"),
];
/// The heat maps' numbers: one line has both.
const LAYERS_CSV: &str = "compression-by-layer.csv";

/// What can be chosen about a report.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Heading of the page and the Markdown.
    pub title: String,
    /// The command line that makes the report, which it shows.
    pub command: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            title: "What compression costs".to_owned(),
            command: None,
        }
    }
}

impl Options {
    /// Options with this heading.
    #[must_use]
    pub fn titled(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
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
    /// Each figure as SVG, then as PNG: charts first, then heat maps.
    pub figures: Vec<PathBuf>,
    /// Each chart's numbers as CSV, then those of the heat maps.
    pub data: Vec<PathBuf>,
    /// A model card for each compressed model.
    pub model_cards: Vec<PathBuf>,
}

/// File names and contents of one chart of a group.
pub(crate) struct Figure<'a> {
    /// The measurements as the chart shows them.
    pub group: Group<'a>,
    pub svg: String,
    pub png: String,
    pub csv: String,
    /// The standalone SVG.
    pub drawing: String,
    /// The chart's numbers.
    pub table: String,
}

impl<'a> Figure<'a> {
    fn new(index: usize, group: Group<'a>) -> Result<Self, ReportError> {
        let stem = match index {
            0 => chart_stem(group.axis).to_owned(),
            _ => format!("{}-{}", chart_stem(group.axis), index + 1),
        };
        Ok(Self {
            svg: format!("{stem}.svg"),
            png: format!("{stem}.png"),
            csv: format!("{stem}.csv"),
            drawing: chart::svg(&group, Place::Figure)?,
            table: csv(&group),
            group,
        })
    }

    /// The charts of one group: against keep ratio, and against the cache's bytes where these differ.
    fn all(index: usize, group: &Group<'a>) -> Result<Vec<Self>, ReportError> {
        let views = std::iter::once(group.clone()).chain(group.views());
        views.map(|view| Self::new(index, view)).collect()
    }
}

/// A heat map, drawn.
pub(crate) struct HeatMap {
    pub title: &'static str,
    pub svg: String,
    pub png: String,
    /// The standalone SVG.
    pub drawing: String,
    /// For the page, and for the page on a narrow screen.
    pub wide: String,
    pub narrow: String,
}

/// The figures that show models layer by layer.
pub(crate) struct LayerFigures {
    /// Indices of the models that are drawn and tabled.
    pub shown: Vec<usize>,
    /// Said where that is not all of them.
    pub left_out: Option<String>,
    pub figures: Vec<HeatMap>,
    pub csv: String,
    /// The numbers of all models.
    pub table: String,
}

impl LayerFigures {
    /// None where no model's compression is known.
    fn new(models: &[Compressed<'_>]) -> Result<Option<Self>, ReportError> {
        if models.is_empty() {
            return Ok(None);
        }
        let shown = compression::most_different(models, compression::wording::MOST_SHOWN);
        let left_out = compression::wording::left_out(shown.len(), models.len());
        let drawn: Vec<&Compressed<'_>> = shown.iter().map(|&index| &models[index]).collect();
        let draw = |quantity, place| chart::heat_map(&drawn, quantity, left_out.as_deref(), place);
        let mut figures = Vec::new();
        for (quantity, stem) in HEAT_MAPS {
            figures.push(HeatMap {
                title: quantity.title(),
                svg: format!("{stem}.svg"),
                png: format!("{stem}.png"),
                drawing: draw(quantity, Place::Figure)?,
                wide: draw(quantity, Place::Page)?,
                narrow: draw(quantity, Place::Phone)?,
            });
        }
        Ok(Some(Self {
            figures,
            csv: LAYERS_CSV.to_owned(),
            table: csv::sites(models),
            shown,
            left_out,
        }))
    }
}

/// Writes `report.html`, `report.md` and figures with their numbers into `out`, which is created when missing. Files of
/// the same names are replaced, and only when all are complete.
///
/// - For every set of comparable evaluations a chart as `.svg` and `.png` and its numbers as `.csv`. The first chart is
///   `perplexity-vs-keep-ratio`, further ones carry a number; where caches differ in bytes, `kv-cache-bytes-vs-perplexity`
///   stands beside it, and where they differ in size or speed, `perplexity-vs-weight-bytes`, `perplexity-vs-scoring-speed`
///   and, with benchmarks, `perplexity-vs-decoding-speed`. Evaluations are comparable when they scored the same windows
///   of the same tokens of the same text.
/// - With compressions, the heat maps `kept-share-by-layer` and `output-error-by-layer` of at most twelve models, and
///   `compression-by-layer.csv` of all.
/// - With sensitivities, the heat map `sensitivity-by-layer` of each.
///
/// - With results of other kinds, a section with figures for each.
/// - With compressions, a model card for each: `model-card.md`, or `model-card-NAME.md` where there are several.
///
/// The order of `results` does not matter, and what is given twice counts once.
///
/// # Errors
/// [`ReportError::NoResults`] without any; [`ReportError::NotFinite`], [`ReportError::Contradiction`] and
/// [`ReportError::Conflict`] for numbers that cannot be right; [`ReportError::Draw`] and [`ReportError::Io`] when a file
/// cannot be made. After an error `out` holds none of the new files under their final names, unless renaming itself failed.
pub fn write(results: &Results, out: &Path, options: &Options) -> Result<Report, ReportError> {
    let mut groups = group::group(&results.evaluations)?;
    for group in &mut groups {
        group.take_benches(&results.benches);
    }
    let groups = groups;
    let models = compression::join(&results.compressions, &results.evaluations)?;
    let sensitivities = SensitivityFigure::all(&results.sensitivities)?;
    let sections = sections::sections(results, &groups, &models)?;
    let nothing = groups.is_empty() && models.is_empty() && sections.is_empty();
    if nothing && sensitivities.is_empty() {
        return Err(ReportError::NoResults);
    }
    let figures = groups
        .iter()
        .enumerate()
        .map(|(index, group)| Figure::all(index, group));
    let figures = figures.collect::<Result<Vec<_>, _>>()?;
    let layers = LayerFigures::new(&models)?;
    let layers = layers.as_ref();
    let parts = sensitivities.iter().map(SensitivityFigure::section);
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let page = html::page(
        options, &groups, &figures, &models, layers, &parts, &sections,
    )?;
    let text = markdown(
        &options.title,
        &groups,
        &figures,
        &models,
        layers,
        &sections,
        &sensitivities,
        options.command.as_deref(),
    );
    let cards = card::cards(&models, &groups, results);

    let mut staged = Staged::new(out)?;
    let (mut images, mut data) = (Vec::new(), Vec::new());
    let charts = figures
        .iter()
        .flatten()
        .map(|f| (&f.svg, &f.png, &f.drawing));
    let maps = layers.map_or(&[][..], |layers| &layers.figures);
    let maps = maps.iter().map(|f| (&f.svg, &f.png, &f.drawing));
    let sites = sensitivities.iter().map(|f| (&f.svg, &f.png, &f.drawing));
    for (svg, png, drawing) in charts.chain(maps).chain(sites) {
        images.push(staged.add(svg, drawing.as_bytes())?);
        images.push(staged.add(png, &chart::png(drawing)?)?);
    }
    let tables = figures.iter().flatten().map(|f| (&f.csv, &f.table));
    for figure in sections.iter().flat_map(|section| &section.figures) {
        images.push(staged.add(&format!("{}.svg", figure.stem), figure.drawing.as_bytes())?);
        images.push(staged.add(
            &format!("{}.png", figure.stem),
            &chart::png(&figure.drawing)?,
        )?);
    }
    let sites = sensitivities.iter().map(|f| (&f.csv, &f.table));
    let layers = layers.map(|layers| (&layers.csv, &layers.table));
    for (name, table) in tables.chain(layers).chain(sites) {
        data.push(staged.add(name, table.as_bytes())?);
    }
    for figure in sections.iter().flat_map(|section| &section.figures) {
        data.push(staged.add(&format!("{}.csv", figure.stem), figure.csv.as_bytes())?);
    }
    let mut model_cards = Vec::new();
    for card in &cards {
        model_cards.push(staged.add(&card.name, card.text.as_bytes())?);
    }
    let markdown = staged.add("report.md", text.as_bytes())?;
    let html = staged.add("report.html", page.as_bytes())?;
    staged.commit()?;
    Ok(Report {
        html,
        markdown,
        figures: images,
        data,
        model_cards,
    })
}
