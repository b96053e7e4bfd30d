//! The part of a report that shows which sites matter: one heat map a measurement, with its numbers.

use std::fmt::Write;
use std::path::PathBuf;

use cinder_eval::{Estimate, Sensitivity};
use maud::{Markup, PreEscaped, html};

use crate::chart::{self, Place};
use crate::error::ReportError;
use crate::number;
use crate::sections::{Table, Value};

/// Sites that a ranking shows.
const MOST_RANKED: usize = 12;

/// A measurement and the file it came from.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// As the report should show it.
    pub file: PathBuf,
    /// What was measured.
    pub result: Sensitivity,
}

/// A measurement, drawn.
pub(crate) struct SensitivityFigure<'a> {
    measurement: &'a Measurement,
    pub svg: String,
    pub png: String,
    pub csv: String,
    /// The standalone SVG.
    pub drawing: String,
    /// Its numbers.
    pub table: String,
}

impl<'a> SensitivityFigure<'a> {
    /// One figure a measurement, in file order; what is given twice counts once.
    pub fn all(measurements: &'a [Measurement]) -> Result<Vec<Self>, ReportError> {
        let mut sorted: Vec<&Measurement> = measurements.iter().collect();
        sorted.sort_by(|a, b| a.file.cmp(&b.file));
        sorted.dedup_by(|a, b| a.result == b.result);
        let figure = |(index, measurement): (usize, &'a Measurement)| {
            let stem = match index {
                0 => "sensitivity-by-layer".to_owned(),
                _ => format!("sensitivity-by-layer-{}", index + 1),
            };
            Ok(SensitivityFigure {
                svg: format!("{stem}.svg"),
                png: format!("{stem}.png"),
                csv: format!("{stem}.csv"),
                drawing: chart::sites_svg(&measurement.result, Place::Figure)?,
                table: table(&measurement.result),
                measurement,
            })
        };
        sorted.into_iter().enumerate().map(figure).collect()
    }

    /// What it is of.
    pub fn heading(&self) -> String {
        format!("Sensitivity of {}", self.measurement.result.model.name)
    }

    /// What was done, and what it was measured on.
    pub fn introduction(&self) -> String {
        let result = &self.measurement.result;
        let how = match result.perturbation.keep {
            Some(keep) => format!("{} at a keep ratio of {keep}", result.perturbation.kind),
            None => format!("rounded to {}", result.perturbation.kind),
        };
        format!(
            "Each site alone was compressed ({how}), all others stayed dense. Measured on {} windows of {} tokens of {}.",
            number::count(result.window_indices.len() as u64),
            number::count(result.window),
            result.corpus.name
        )
    }

    /// The sites that lose most for each scalar saved, and a sentence about the others, if there are any.
    pub fn ranking(&self) -> (Table, Option<String>) {
        let mut table = Table::new(&[
            ("site", "site", ""),
            ("layer", "layer", "#"),
            ("kl", "KL divergence", "nats per token"),
            (
                "kl_per_million_scalars",
                "KL per million scalars saved",
                "nats",
            ),
            ("scalars_saved", "scalars saved", "#"),
            ("top1_agreement", "same most likely token", "%"),
            ("perplexity_ratio", "perplexity", "× dense"),
        ]);
        let all = self.measurement.result.ranked();
        for site in all.iter().take(MOST_RANKED) {
            let estimate =
                |e: Estimate| Value::Number(e.mean, number::with_error(e.mean, Some(e.stderr)));
            table.rows.push(vec![
                Value::Text(site.site.clone()),
                Value::count(site.layer),
                estimate(site.kl),
                Value::optional(
                    site.kl_per_scalar.map(|each| 1e6 * each),
                    number::significant,
                ),
                Value::count(site.scalars_saved),
                Value::Number(
                    100.0 * site.top1_agreement,
                    number::fixed(100.0 * site.top1_agreement, 1),
                ),
                estimate(site.perplexity_ratio),
            ]);
        }
        let rest = all.len() - table.rows.len();
        let rest = (rest > 0).then(|| {
            format!(
                "The {MOST_RANKED} sites that lose most for each scalar saved; {} more are in the data.",
                number::count(rest as u64)
            )
        });
        (table, rest)
    }

    /// The file it was read from, and the command line that made it.
    pub fn origin(&self) -> (String, String) {
        let file = self.measurement.file.display().to_string();
        (file, self.measurement.result.command.clone())
    }

    /// Its section of the page.
    pub fn section(&self) -> Result<Markup, ReportError> {
        let result = &self.measurement.result;
        let (wide, narrow) = (
            chart::sites_svg(result, Place::Page)?,
            chart::sites_svg(result, Place::Phone)?,
        );
        let (ranking, rest) = self.ranking();
        Ok(html! {
            section {
                h2 { (self.heading()) }
                p { (self.introduction()) }
                figure {
                    // Our own drawing: its texts were escaped when it was drawn.
                    div.wide { (PreEscaped(wide)) }
                    div.narrow { (PreEscaped(narrow)) }
                    figcaption { strong { (chart::SITES_TITLE) "." } }
                }
                p.downloads {
                    (crate::html::download(&self.csv, "text/csv", &self.table, "Data (CSV)"))
                    (crate::html::download(&self.svg, "image/svg+xml", &self.drawing, "Chart (SVG)"))
                }
                (crate::html::table(&ranking, &self.heading()))
                @if let Some(rest) = &rest { p.muted { (rest) } }
                p.source-file.muted {
                    "From " code { (self.measurement.file.display().to_string()) } ": " code { (result.command) } "."
                }
            }
        })
    }
}

fn table(result: &Sensitivity) -> String {
    let mut text = String::from(
        "layer,site,scalars,scalars_saved,kl,kl_stderr,kl_per_scalar,top1_agreement,perplexity_ratio,predicted_loss,error\n",
    );
    let optional = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
    for s in &result.sites {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{},{},{}",
            s.layer,
            s.site,
            s.scalars,
            s.scalars_saved,
            s.kl.mean,
            s.kl.stderr,
            optional(s.kl_per_scalar),
            s.top1_agreement,
            s.perplexity_ratio.mean,
            optional(s.predicted_loss),
            optional(s.error)
        );
    }
    text
}
