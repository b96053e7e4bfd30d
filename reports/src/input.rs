//! Evaluation results in, from files and directories.

use std::path::{Path, PathBuf};

use cinder_eval::{EvalResult, SCHEMA};
use fs_err as fs;
use serde_json::Value;

use crate::error::ReportError;

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

/// Reads evaluation results. A file must be one; a directory is searched for `.json` files that look like one, in name
/// order and without following links, so that the manifests and configurations of compressed models may lie beside them.
///
/// # Errors
/// [`ReportError::Json`] names file and line of what is not a result; [`ReportError::EmptyDirectory`] a directory
/// without any; [`ReportError::Schema`] a result of another version.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Evaluation>, ReportError> {
    let mut evaluations = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = evaluations.len();
            read_directory(path, MAX_DEPTH, &mut evaluations)?;
            if evaluations.len() == before {
                return Err(ReportError::EmptyDirectory(path.clone()));
            }
        } else {
            let text = fs::read_to_string(path)?;
            evaluations.push(parse(path, &text)?);
        }
    }
    Ok(evaluations)
}

fn read_directory(
    directory: &Path,
    depth: usize,
    into: &mut Vec<Evaluation>,
) -> Result<(), ReportError> {
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
            let text = fs::read_to_string(&path)?;
            let value: Value =
                serde_json::from_str(&text).map_err(|error| json_error(&path, &error))?;
            if looks_like_a_result(&value) {
                into.push(parse(&path, &text)?);
            }
        }
    }
    Ok(())
}

fn looks_like_a_result(value: &Value) -> bool {
    ["schema", "model", "corpus", "perplexity"]
        .iter()
        .all(|key| value.get(key).is_some())
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
