//! `verify`: is this model whole, and is it what its manifest says?

use burn::tensor::Device;
use serde::Serialize;

use super::hash::sha256_file;
use super::manifest::Manifest;
use super::names::is_pivots;
use super::open::Checkpoint;
use super::quantized::is_codes;
use crate::error::Result;
use crate::precision::Precision;
use crate::progress::Progress;

/// What a check found.
#[derive(Debug, Serialize)]
pub struct Verification {
    pub ok: bool,
    /// One line each; empty when all is well.
    pub problems: Vec<String>,
    /// Tensors whose values were read.
    pub tensors: usize,
    /// Files whose hash was compared with the manifest's.
    pub files: usize,
}

/// Loads the model part by part, checks that every value is finite, and, for a compressed directory, compares the files'
/// hashes and the tensors' names and shapes with the manifest.
///
/// # Errors
/// Only those of reading; what is wrong with the content is listed in the result.
pub fn verify(
    checkpoint: &Checkpoint,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Verification> {
    let tensors = checkpoint.tensors();
    let mut problems = Vec::new();
    let mut files = 0;
    if let Some(manifest) = checkpoint.manifest() {
        files = manifest.files.len();
        check_files(checkpoint, manifest, &mut problems)?;
        check_records(checkpoint, manifest, &mut problems);
    }
    check_loads(checkpoint, device, &mut problems);
    progress.start("checking tensors", tensors.len() as u64);
    for (name, _) in &tensors {
        // Loading has looked at pivots already: whole numbers are finite, but may be no indices. Any byte is a code.
        if is_pivots(name) || is_codes(name) {
            progress.advance(1);
            continue;
        }
        match checkpoint.source().read_f32(name) {
            Ok(values) => {
                let wrong = values.iter().filter(|v| !v.is_finite()).count();
                if wrong > 0 {
                    problems.push(format!("`{name}` has {wrong} values that are not finite"));
                }
            }
            Err(error) => problems.push(error.to_string()),
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(Verification {
        ok: problems.is_empty(),
        problems,
        tensors: tensors.len(),
        files,
    })
}

fn check_files(
    checkpoint: &Checkpoint,
    manifest: &Manifest,
    problems: &mut Vec<String>,
) -> Result<()> {
    for record in &manifest.files {
        let path = checkpoint.path().join(&record.name);
        if record.name.contains(['/', '\\']) {
            problems.push(format!(
                "the manifest names `{}`, outside the directory",
                record.name
            ));
        } else if !path.is_file() {
            problems.push(format!("`{}` is missing", record.name));
        } else if sha256_file(&path)? != record.sha256 {
            problems.push(format!(
                "`{}` has another SHA-256 than the manifest says",
                record.name
            ));
        }
    }
    Ok(())
}

fn check_records(checkpoint: &Checkpoint, manifest: &Manifest, problems: &mut Vec<String>) {
    let present = checkpoint.tensors();
    for record in &manifest.tensors {
        match present.iter().find(|(name, _)| *name == record.name) {
            None => problems.push(format!("tensor `{}` is missing", record.name)),
            Some((_, info)) if info.shape != record.shape => problems.push(format!(
                "tensor `{}` has shape {:?}; the manifest says {:?}",
                record.name, info.shape, record.shape
            )),
            Some(_) => {}
        }
    }
    for (name, _) in &present {
        if !manifest.tensors.iter().any(|record| record.name == *name) {
            problems.push(format!("tensor `{name}` is not in the manifest"));
        }
    }
    let (stored, recorded) = (
        checkpoint.head_codes().map_or(0, |codes| codes.bytes),
        manifest.head.as_ref().map_or(0, |head| head.bytes),
    );
    if stored != recorded {
        problems.push(format!(
            "the output head has {stored} bytes of codes; the manifest says {recorded}"
        ));
    }
    let scalars: u64 = checkpoint.projections().iter().map(|p| p.scalars).sum();
    if scalars != manifest.projection_scalars_after {
        problems.push(format!(
            "the projections hold {scalars} scalars; the manifest says {}",
            manifest.projection_scalars_after
        ));
    }
}

/// Loads one part after the other: shapes, missing and misplaced tensors show here.
fn check_loads(checkpoint: &Checkpoint, device: &Device, problems: &mut Vec<String>) {
    let layers = (0..checkpoint.config().layers).map(|layer| {
        checkpoint
            .load_layer(layer, Precision::F32, device)
            .map(drop)
            .err()
    });
    let frame = checkpoint
        .load_frame(Precision::F32, device)
        .map(drop)
        .err();
    let errors = std::iter::once(frame).chain(layers).flatten();
    problems.extend(errors.map(|e| e.to_string()));
}
