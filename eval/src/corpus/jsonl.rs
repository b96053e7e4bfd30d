//! One JSON object a line.

use std::path::Path;

use serde_json::{Map, Value};

use super::Fields;
use crate::error::{Error, Result};

/// The text of each line of `text`; `path` is for messages only. Blank lines are passed over.
pub(super) fn read(path: &Path, text: &str, fields: Fields<'_>) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let document = document(line, fields).map_err(|why| Error::Jsonl {
            path: path.into(),
            line: index + 1,
            why,
        })?;
        documents.push(document);
    }
    Ok(documents)
}

fn document(line: &str, fields: Fields<'_>) -> Result<String, String> {
    let object: Map<String, Value> = serde_json::from_str(line)
        .map_err(|e| format!("not a JSON object: {}", without_line(&e)))?;
    let there = |way: &&&[&str]| way.iter().all(|field| object.contains_key(*field));
    let Some(way) = fields.iter().find(there) else {
        let wanted: Vec<String> = fields.iter().map(|way| quoted(way, " and ")).collect();
        let found: Vec<&str> = object.keys().map(String::as_str).collect();
        return Err(format!(
            "no field {}; it has {}",
            wanted.join(", nor "),
            if found.is_empty() {
                "none".into()
            } else {
                quoted(&found, ", ")
            }
        ));
    };
    let mut document = String::new();
    for field in *way {
        match object.get(*field) {
            Some(Value::String(part)) => document.push_str(part),
            _ => return Err(format!("field `{field}` is not a string")),
        }
    }
    Ok(document)
}

/// `serde_json` counts lines within what it was given, which here is always "line 1".
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&end) {
        Some(what) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

/// `names` in backticks, with `between` in between.
pub(super) fn quoted(names: &[&str], between: &str) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(between)
}
