//! Going on with a run that was interrupted, or finding that it is finished.

use std::path::Path;

use burn::tensor::Device;
use cinder_models::checkpoint::{CompressedWriter, Manifest, OutputDirectory};
use cinder_models::ops;
use serde_json::{Value, json};

use super::identity::{read_identity, require_same};
use super::{Job, Outcome};
use crate::error::{Error, Result};

/// What a run writes first of all into its work folder.
pub(super) const RUN_FILE: &str = "run.json";

/// How far an earlier run for an output has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// There is none that could be gone on with.
    Nothing,
    /// It was interrupted.
    Interrupted,
    /// It has ended.
    Finished,
}

impl Earlier {
    /// Looks at what is there, without asking whether it is of the same run.
    pub fn of(out: &Path) -> Self {
        let interrupted = OutputDirectory::interrupted(out, RUN_FILE).is_some();
        match (interrupted, Manifest::read(out)) {
            (true, _) => Earlier::Interrupted,
            (false, Ok(Some(_))) => Earlier::Finished,
            (false, _) => Earlier::Nothing,
        }
    }
}

/// Checks that `job` can go on with what is there, before anything costly; where [`Job::text`] is not known yet, all but
/// the text.
///
/// # Errors
/// [`Error::NothingToResume`]; [`Error::Drift`] naming what differs; those of reading files.
pub fn check_resume(job: &Job<'_>, device: &Device) -> Result<Earlier> {
    let earlier = Earlier::of(job.out);
    let nothing = || Error::NothingToResume {
        path: job.out.into(),
    };
    let mut before = match earlier {
        Earlier::Nothing => return Err(nothing()),
        Earlier::Finished => identity_of(&Manifest::read(job.out)?.ok_or_else(nothing)?),
        Earlier::Interrupted => {
            let file = OutputDirectory::interrupted(job.out, RUN_FILE).ok_or_else(nothing)?;
            read_identity(&file)?
        }
    };
    let mut now = run_identity(job, device)?;
    if job.text.is_none() {
        for identity in [&mut before, &mut now] {
            identity.as_object_mut().map(|map| map.shift_remove("text"));
        }
    }
    require_same(job.out, &before, &now)?;
    Ok(earlier)
}

/// The outcome of a run that has ended before; what a kill just after its end may have left is removed.
///
/// # Errors
/// Those of reading the manifest.
pub fn finished(out: &Path) -> Result<Outcome> {
    let manifest =
        Manifest::read(out)?.ok_or_else(|| Error::NothingToResume { path: out.into() })?;
    OutputDirectory::clear(out)?;
    let files: u64 = manifest.files.iter().map(|f| f.bytes).sum();
    let own = out.join(cinder_models::checkpoint::MANIFEST_FILE);
    Ok(Outcome {
        directory_bytes: files + fs_err::metadata(own)?.len(),
        out: out.into(),
        seconds: 0.0,
        stages: Vec::new(),
        site_seconds: vec![None; manifest.sites.len()],
        spectra: Vec::new(),
        warnings: super::finish::warnings(&manifest),
        manifest,
    })
}

pub(super) fn writer(job: &Job<'_>) -> Result<CompressedWriter> {
    let (layers, dtype) = (job.checkpoint.config().layers, job.recipe.output.dtype);
    if !job.resume {
        let writer = CompressedWriter::create(job.out, layers, dtype, job.overwrite)?;
        return Ok(writer);
    }
    CompressedWriter::resume(job.out, layers, dtype, job.overwrite)?.ok_or_else(|| {
        Error::NothingToResume {
            path: job.out.into(),
        }
    })
}

/// Everything that decides the bytes of the output.
pub(super) fn run_identity(job: &Job<'_>, device: &Device) -> Result<Value> {
    Ok(json!({
        "tool_version": job.tool_version,
        "model": job.checkpoint.sha256()?,
        "recipe": job.recipe.resolved(),
        "text": job.text.map(|t| json!({
            "corpus": t.corpus.0, "corpus_sha256": t.corpus.1, "tokens_sha256": t.windows.sha256,
        })),
        "threads": job.threads,
        "device": ops::device_name(device),
        "instructions": ops::instructions(),
    }))
}

/// The same, of a run that has ended.
fn identity_of(manifest: &Manifest) -> Value {
    let text = &manifest.calibration;
    json!({
        "tool_version": manifest.tool_version,
        "model": manifest.source.sha256,
        "recipe": manifest.recipe,
        "text": (!text.tokens_sha256.is_empty()).then(|| json!({
            "corpus": text.corpus, "corpus_sha256": text.corpus_sha256, "tokens_sha256": text.tokens_sha256,
        })),
        "threads": manifest.threads,
        "device": manifest.device,
        "instructions": manifest.instructions,
    })
}
