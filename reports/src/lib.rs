//! Trade-off reports: what a smaller model costs in quality, as charts, Markdown and one self-contained HTML page.
//!
//! Reads only the serialized [`EvalResult`](cinder_eval::EvalResult) files that an evaluation leaves behind, and the
//! manifests and results of the compressions, so every number in a report can be traced to the file, the command and the
//! hashes it came from.
//!
//! ```no_run
//! # fn main() -> Result<(), cinder_reports::ReportError> {
//! let results = cinder_reports::read(&["results".into()])?;
//! let report = cinder_reports::write(&results, "report".as_ref(), &cinder_reports::Options::default())?;
//! println!("{}", report.html.display());
//! # Ok(())
//! # }
//! ```
//!
//! - Same evaluations, same bytes: nothing in a report depends on the clock, the machine or its fonts.
//! - Only measurements made the same way share a chart: same text, same tokens, same windows.
//! - Files are written to temporary siblings and renamed when all of them are complete.

mod card;
mod chart;
mod check;
mod compression;
mod csv;
mod error;
mod findings;
mod group;
mod html;
mod input;
mod markdown;
mod number;
mod output;
mod records;
mod report;
mod sections;
mod sensitivity;
mod wording;

pub use cinder_eval::SCHEMA;
pub use compression::{CompressedSite, Compression, Details};
pub use error::ReportError;
pub use input::{Evaluation, Results, Sourced, read};
pub use records::{
    BenchResult, ComparedModel, ComparisonResult, DivergenceResult, PositionLoss, ReferenceModel,
};
pub use report::{Options, Report, write};
pub use sensitivity::Measurement;
