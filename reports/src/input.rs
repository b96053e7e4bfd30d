//! Results in, from files and directories: evaluations, and the records of how models were compressed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cinder_eval::{EvalResult, SCHEMA};
use cinder_models::checkpoint::MANIFEST_FILE;
use fs_err as fs;
use serde::de::IgnoredAny;

use crate::compression::Compression;
use crate::error::ReportError;
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
}

impl Results {
    /// Names files under `to` that were read under `from`: where they will be, not where they are being written.
    pub fn relocate(&mut self, from: &Path, to: &Path) {
        let evaluated = self.evaluations.iter_mut().map(|each| &mut each.file);
        let compressed = self.compressions.iter_mut();
        let compressed = compressed.flat_map(|each| [&mut each.file, &mut each.path]);
        for path in evaluated.chain(compressed) {
            if let Ok(inside) = path.strip_prefix(from) {
                *path = to.join(inside);
            }
        }
    }

    fn len(&self) -> usize {
        self.evaluations.len() + self.compressions.len() + self.sensitivities.len()
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

/// Reads evaluation results, manifests (`cinder.json`) and compression results (what `cinder compress --json` prints). A
/// file must be one of them; a directory is searched for `.json` files that look like one, in name order and without
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
    Ok(false)
}

fn parse(file: &Path, text: &str) -> Result<Evaluation, ReportError> {
    // From the text and not from a `Value`, so that the error carries a line.
    let result: EvalResult =
        serde_json::from_str(text).map_err(|error| json_error(file, &error))?;
    if result.schema != SCHEMA {
        return Err(ReportError::Schema {
            file: file.to_path_buf(),
            found: result.schema,
            known: SCHEMA,
        });
    }
    Ok(Evaluation {
        file: file.to_path_buf(),
        result,
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
