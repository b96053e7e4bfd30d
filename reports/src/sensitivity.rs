//! The part of a report that shows which sites matter: one heat map a measurement, with its numbers.

use std::fmt::Write;
use std::path::PathBuf;

use cinder_eval::Sensitivity;
use maud::{Markup, PreEscaped, html};

use crate::chart::{self, Place};
use crate::error::ReportError;

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

    /// Its section of the page.
    pub fn section(&self) -> Result<Markup, ReportError> {
        let result = &self.measurement.result;
        let (wide, narrow) = (
            chart::sites_svg(result, Place::Page)?,
            chart::sites_svg(result, Place::Phone)?,
        );
        let how = match result.perturbation.keep {
            Some(keep) => format!("{} at a keep ratio of {keep}", result.perturbation.kind),
            None => format!("rounded to {}", result.perturbation.kind),
        };
        Ok(html! {
            section {
                h2 { "Sensitivity of " (result.model.name) }
                p {
                    "Each site alone was compressed (" (how) "), all others stayed dense. Measured on "
                    (result.window_indices.len()) " windows of " (result.window) " tokens of " (result.corpus.name) "."
                }
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
