//! Results in, from files and directories: evaluations, and the records of how models were compressed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cinder_eval::speculation::SpeculationResult;
use cinder_eval::tasks::TasksResult;
use cinder_eval::{EvalResult, SCHEMA};
use cinder_models::checkpoint::{MANIFEST_FILE, SPECTRA_KIND, SPECTRA_SCHEMA, Spectra};
use fs_err as fs;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::compression::Compression;
use crate::error::ReportError;
use crate::records::{BenchResult, ComparisonResult, DivergenceResult, PositionLoss};
use crate::sensitivity::Measurement;

/// How deep below a given directory results are looked for: `sweep/point/result.json` and some room.
const MAX_DEPTH: usize = 6;

/// One evaluation and the file it came from, which the report names as its source.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Path of the result, as the report should show it.
    pub file: PathBuf,
    /// What was measured.
    pub result: EvalResult,
    /// The loss by how far into the window a token is, where the result says so.
    pub by_position: Vec<PositionLoss>,
}

/// A result of another kind and the file it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sourced<T> {
    /// Path of the result, as the report should show it.
    pub file: PathBuf,
    /// What it says.
    pub result: T,
}

/// Everything a report is made from.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// Measured quality, one entry a result file.
    pub evaluations: Vec<Evaluation>,
    /// How models were compressed, one entry a manifest or compression result.
    pub compressions: Vec<Compression>,
    /// How much each site of a model matters, as `cinder sensitivity` measures it.
    pub sensitivities: Vec<Measurement>,
    /// Accuracies on tasks, as `cinder eval tasks` writes them.
    pub tasks: Vec<Sourced<TasksResult>>,
    /// Distances from a reference model, as `cinder eval kl --json` prints them.
    pub divergences: Vec<Sourced<DivergenceResult>>,
    /// Paired comparisons, as `cinder compare --json` prints them.
    pub comparisons: Vec<Sourced<ComparisonResult>>,
    /// Speeds, as `cinder bench --json` prints them.
    pub benches: Vec<Sourced<BenchResult>>,
    /// Speculative decoding, as `cinder bench --draft` measures it.
    pub speculations: Vec<Sourced<SpeculationResult>>,
    /// Singular values of projections, as `cinder compress --spectra` writes them.
    pub spectra: Vec<Sourced<Spectra>>,
}

impl Results {
    /// Names files under `to` that were read under `from`: where they will be, not where they are being written.
    pub fn relocate(&mut self, from: &Path, to: &Path) {
        let evaluated = self.evaluations.iter_mut().map(|each| &mut each.file);
        let compressed = self.compressions.iter_mut();
        let compressed = compressed.flat_map(|each| [&mut each.file, &mut each.path]);
        let spectra = self.spectra.iter_mut().map(|each| &mut each.file);
        let tasks = self.tasks.iter_mut().map(|each| &mut each.file);
        for path in evaluated.chain(compressed).chain(spectra).chain(tasks) {
            if let Ok(inside) = path.strip_prefix(from) {
                *path = to.join(inside);
            }
        }
    }

    fn len(&self) -> usize {
        self.evaluations.len()
            + self.compressions.len()
            + self.sensitivities.len()
            + self.tasks.len()
            + self.divergences.len()
            + self.comparisons.len()
            + self.benches.len()
            + self.speculations.len()
            + self.spectra.len()
    }
}

impl From<Vec<Evaluation>> for Results {
    fn from(evaluations: Vec<Evaluation>) -> Self {
        Self {
            evaluations,
            ..Self::default()
        }
    }
}

/// Reads evaluation results of every kind, benchmarks, spectra, manifests (`cinder.json`) and compression results (what
/// `cinder compress --json` prints). A file must be one of them; a directory is searched for `.json` files that look like one, in name order and without
/// following links, so that the configurations and tokenizers of models may lie beside them.
///
/// # Errors
/// [`ReportError::Json`] names file and line of what is not a result; [`ReportError::EmptyDirectory`] a directory
/// without any; [`ReportError::Schema`] a result of another version; [`ReportError::Manifest`] a manifest that cannot be
/// read.
pub fn read(paths: &[PathBuf]) -> Result<Results, ReportError> {
    let mut results = Results::default();
    for path in paths {
        if path.is_dir() {
            let before = results.len();
            read_directory(path, MAX_DEPTH, &mut results)?;
            if results.len() == before {
                return Err(ReportError::EmptyDirectory(path.clone()));
            }
        } else if !read_file(path, &mut results)? {
            // Says what it lacks as an evaluation result.
            let text = fs::read_to_string(path)?;
            results.evaluations.push(parse(path, &text)?);
        }
    }
    Ok(results)
}

fn read_directory(directory: &Path, depth: usize, into: &mut Results) -> Result<(), ReportError> {
    let mut entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && depth > 0 {
            read_directory(&path, depth - 1, into)?;
        } else if kind.is_file()
            && path
                .extension()
                .is_some_and(|extension| extension == "json")
        {
            read_file(&path, into)?;
        }
    }
    Ok(())
}

/// Reads a file that looks like something a report shows; false when it does not.
fn read_file(path: &Path, into: &mut Results) -> Result<bool, ReportError> {
    if path.file_name().is_some_and(|name| name == MANIFEST_FILE) {
        let directory = path.parent().unwrap_or(Path::new(""));
        let found = Compression::from_manifest(directory)?;
        let any = found.is_some();
        into.compressions.extend(found);
        return Ok(any);
    }
    let text = fs::read_to_string(path)?;
    // Only the keys: a tokenizer's file is large, and nothing of it is wanted.
    let keys = match serde_json::from_str::<HashMap<String, IgnoredAny>>(&text) {
        Ok(keys) => keys,
        Err(error) if error.is_data() => return Ok(false),
        Err(error) => return Err(json_error(path, &error)),
    };
    let has = |wanted: &[&str]| wanted.iter().all(|key| keys.contains_key(*key));
    if has(&["schema", "model", "corpus", "perplexity"]) {
        into.evaluations.push(parse(path, &text)?);
        return Ok(true);
    }
    if has(&["schema", "perturbation", "sites", "top_k"]) {
        into.sensitivities.push(Measurement {
            file: path.to_path_buf(),
            result: serde_json::from_str(&text).map_err(|error| json_error(path, &error))?,
        });
        return Ok(true);
    }
    if has(&["keep_ratio", "sites", "seconds", "path"]) {
        let compression = Compression::from_printed(path, &text);
        into.compressions
            .push(compression.map_err(|error| json_error(path, &error))?);
        return Ok(true);
    }
    if has(&["schema", "model", "tasks"]) {
        let found: Sourced<TasksResult> = sourced(path, &text)?;
        known(path, found.result.schema, SCHEMA)?;
        into.tasks.push(found);
    } else if has(&["kind", "baselines", "runs"]) {
        let found: Sourced<SpeculationResult> = sourced(path, &text)?;
        known(path, found.result.schema, SCHEMA)?;
        into.speculations.push(found);
    } else if has(&["kind", "spectra"]) && kind(&text).as_deref() == Some(SPECTRA_KIND) {
        let found: Sourced<Spectra> = sourced(path, &text)?;
        known(path, found.result.schema, SPECTRA_SCHEMA)?;
        into.spectra.push(found);
    } else if has(&["kl", "top1_agreement", "reference", "model"]) {
        into.divergences.push(sourced(path, &text)?);
    } else if has(&["first", "second", "nll", "perplexity_ratio"]) {
        into.comparisons.push(sourced(path, &text)?);
    } else if has(&["model", "weights", "prefill", "decode"]) {
        into.benches.push(sourced(path, &text)?);
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn sourced<T: DeserializeOwned>(path: &Path, text: &str) -> Result<Sourced<T>, ReportError> {
    let result = serde_json::from_str(text).map_err(|error| json_error(path, &error))?;
    Ok(Sourced {
        file: path.to_path_buf(),
        result,
    })
}

/// What a file says it is.
fn kind(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    let kind: Kind = serde_json::from_str(text).ok()?;
    Some(kind.kind)
}

fn known(file: &Path, found: u32, known: u32) -> Result<(), ReportError> {
    match found == known {
        true => Ok(()),
        false => Err(ReportError::Schema {
            file: file.to_path_buf(),
            found,
            known,
        }),
    }
}

/// What newer results say besides.
#[derive(Deserialize)]
struct Besides {
    #[serde(default)]
    by_position: Vec<PositionLoss>,
}

fn parse(file: &Path, text: &str) -> Result<Evaluation, ReportError> {
    // From the text and not from a `Value`, so that the error carries a line.
    let result: EvalResult =
        serde_json::from_str(text).map_err(|error| json_error(file, &error))?;
    known(file, result.schema, SCHEMA)?;
    let besides: Besides = serde_json::from_str(text).map_err(|error| json_error(file, &error))?;
    Ok(Evaluation {
        file: file.to_path_buf(),
        result,
        by_position: besides.by_position,
    })
}

fn json_error(file: &Path, error: &serde_json::Error) -> ReportError {
    let (line, column) = (error.line(), error.column());
    let full = error.to_string();
    let bare = full
        .strip_suffix(&format!(" at line {line} column {column}"))
        .unwrap_or(&full);
    // JSON has no NaN: serde writes a number that was not finite as null.
    let hint = if bare.contains("null, expected f64") {
        " (a number that is not finite is stored as null)"
    } else {
        ""
    };
    ReportError::Json {
        file: file.to_path_buf(),
        line,
        column,
        message: format!("{bare}{hint}"),
    }
}
