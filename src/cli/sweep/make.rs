//! Compressed models, one after the other, from shared statistics.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cinder::compress::pipeline::{CalibrationText, Earlier, Job, compress};
use cinder::compress::recipe::Recipe;
use cinder::models::checkpoint::Checkpoint;
use fs_err as fs;
use serde_json::{Value, json};

use super::measure::possible;
use crate::cli::compress::{calibration_text, outcome_json, spectra};
use crate::cli::context::Context;
use crate::cli::eval::write_lines;
use crate::cli::memory::{peak_resident_bytes, reset_peak};

/// Where the singular values go that a recipe's analyses found, beside the record of a model: they are the same at every keep
/// ratio.
pub(super) fn spectra_beside(record: &Path, recipe: &Recipe) -> PathBuf {
    record.with_file_name(format!("{}.spectra.json", recipe.name))
}

/// Makes models of one checkpoint.
pub struct Maker<'a> {
    context: &'a Context,
    checkpoint: &'a Checkpoint,
    work: PathBuf,
    /// The last calibration text and the settings it was drawn by: recipes that are calibrated alike share it.
    text: Option<(Value, Option<CalibrationText>)>,
}

impl<'a> Maker<'a> {
    /// Statistics are kept in `work`.
    pub fn new(context: &'a Context, checkpoint: &'a Checkpoint, work: PathBuf) -> Self {
        Maker {
            context,
            checkpoint,
            work,
            text: None,
        }
    }

    /// Makes the model `name`, or goes on making it, in a folder that will lie at another place when all is done; then writes
    /// what was reported to `record`.
    pub fn make(
        &mut self,
        name: &str,
        recipe: &Recipe,
        (folder, shown): (&Path, &Path),
        record: &Path,
    ) -> Result<()> {
        let context = self.context;
        context.printer.say(&format!("{name}: compressing"));
        let settings = json!(recipe.used_calibration());
        if self
            .text
            .as_ref()
            .is_none_or(|(known, _)| *known != settings)
        {
            let text = calibration_text(context, self.checkpoint, recipe)?;
            self.text = Some((settings, text));
        }
        let job = Job {
            checkpoint: self.checkpoint,
            recipe,
            text: self.text.as_ref().and_then(|(_, text)| text.as_ref()),
            out: folder,
            overwrite: true,
            resume: Earlier::of(folder) == Earlier::Interrupted,
            work: Some(&self.work),
            tool_version: env!("CARGO_PKG_VERSION").into(),
            threads: context.threads,
        };
        let counted = reset_peak();
        let outcome = compress(&job, &context.device, &context.printer)?;
        let peak = peak_resident_bytes().filter(|_| counted);
        if let Some(spectra) = spectra(self.checkpoint, &outcome)? {
            write_lines(&spectra_beside(record, recipe), &[spectra])?;
        }
        for warning in &outcome.warnings {
            context.printer.warn(warning);
        }
        let mut value = outcome_json(&outcome);
        value["peak_rss_bytes"] = json!(peak);
        value["path"] = json!(shown);
        value["cache_formats"] = json!(possible(&Checkpoint::open(folder)?));
        let unfinished = record.with_extension("new");
        let mut file = fs::File::create(&unfinished)?;
        writeln!(file, "{value:#}")?;
        file.sync_all()?;
        Ok(fs::rename(unfinished, record)?)
    }
}
