//! The data file of a task: finding it, reading it, and holding every record of it to what the task needs.

mod lines;
mod table;

use std::collections::HashMap;
use std::path::Path;

use cinder_models::checkpoint::sha256;
use serde::{Deserialize, Serialize};

use super::document::Document;
use super::expression::Fields;
use super::task::{FileEntry, Layout, Task};
use crate::error::{Error, Result};

/// The documents of a task.
#[derive(Debug, Clone)]
pub struct TaskData {
    /// All of them, in the order of the file.
    pub documents: Vec<Document>,
    /// The files they are from.
    pub files: Vec<FileIdentity>,
}

/// A file, and what was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FileIdentity {
    pub path: String,
    /// SHA-256 of its bytes, in lower-case hexadecimal.
    pub sha256: String,
}

/// An object of a file, and where it stood.
struct Record {
    /// Such as `line 3`.
    place: String,
    fields: Fields,
}

/// Reads the documents of `task` from the folder `dir`: from the first of the task's files that is there, else from
/// `TASK.jsonl`, `.json`, `.arrow` or `.parquet`.
///
/// Each record is looked at, however few are scored later.
///
/// # Errors
/// [`Error::MissingTask`] when no file is there, [`Error::NoDocuments`] when it has none, [`Error::TaskData`] naming the file and
/// the line (or row) of what is malformed, lacks a field, has no right choice, or is there twice.
pub fn read(task: &Task, dir: &Path) -> Result<TaskData> {
    let entry = find(task, dir)?;
    let path = dir.join(&entry.path);
    let bytes = fs_err::read(&path)?;
    let mut files = vec![identity(&path, &bytes)];
    let mut records = records(&path, &bytes, task)?;
    if records.is_empty() {
        return Err(Error::NoDocuments { path });
    }
    if let Some(labels) = &entry.labels {
        let labels = dir.join(labels);
        let bytes = fs_err::read(&labels)?;
        files.push(identity(&labels, &bytes));
        add_labels(&mut records, &path, &labels, &bytes)?;
    }
    let documents = documents(task, &path, &records)?;
    check_repeats(task, &path, &documents, &records)?;
    Ok(TaskData { documents, files })
}

fn find(task: &Task, dir: &Path) -> Result<FileEntry> {
    let plain = ["jsonl", "json", "arrow", "parquet"].map(|extension| FileEntry {
        path: format!("{}.{extension}", task.name),
        labels: None,
    });
    let entries: Vec<&FileEntry> = task.files.iter().chain(&plain).collect();
    let found = entries.iter().find(|entry| dir.join(&entry.path).is_file());
    found
        .map(|entry| (*entry).clone())
        .ok_or_else(|| Error::MissingTask {
            task: task.name.clone(),
            dir: dir.into(),
            places: entries.iter().map(|entry| entry.path.clone()).collect(),
        })
}

fn identity(path: &Path, bytes: &[u8]) -> FileIdentity {
    FileIdentity {
        path: path.display().to_string(),
        sha256: sha256(bytes),
    }
}

fn records(path: &Path, bytes: &[u8], task: &Task) -> Result<Vec<Record>> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    // Other columns of a table may be of types that no task needs.
    let wanted = |column: &str| {
        let mut expressions = task.layouts.iter().flat_map(Layout::values);
        expressions.any(|expression| expression.root() == column)
    };
    match name.rsplit('.').next() {
        Some("gz") => lines::requests(path, bytes),
        Some("json") => lines::list(path, bytes),
        Some("arrow") => table::arrow(path, bytes, &wanted),
        Some("parquet") => table::parquet(path, &wanted),
        _ => lines::objects(path, bytes),
    }
}

/// Puts each line of a label file into the record beside it.
fn add_labels(records: &mut [Record], path: &Path, labels: &Path, bytes: &[u8]) -> Result<()> {
    let lines = lines::texts(labels, bytes)?;
    if lines.len() != records.len() {
        let place = format!("line {}", lines.len().min(records.len()) + 1);
        let (labels_found, wanted) = (lines.len(), records.len());
        let why = format!(
            "there are {labels_found} labels for the {wanted} documents of `{}`",
            path.display()
        );
        return Err(wrong(labels, place, why));
    }
    for (record, label) in records.iter_mut().zip(lines) {
        record.fields.insert("label".into(), label.into());
    }
    Ok(())
}

/// The document of each record. All have to have the fields of the same layout.
fn documents(task: &Task, path: &Path, records: &[Record]) -> Result<Vec<Document>> {
    let layout = match records.first() {
        Some(first) => layout(task, first).map_err(|why| wrong(path, first.place.clone(), why))?,
        None => return Ok(Vec::new()),
    };
    let document = |record: &Record| {
        let fields = task.fields(layout, &record.fields).map_err(|why| {
            let mut others = task.layouts.iter();
            match others.any(|other| task.fields(other, &record.fields).is_ok()) {
                true => format!("its fields are not those of {}: {why}", records[0].place),
                false => why,
            }
        });
        let document = fields.and_then(|fields| task.document(&fields));
        document.map_err(|why| wrong(path, record.place.clone(), why))
    };
    records.iter().map(document).collect()
}

/// The layout that a record has; when it has none, what the first of them misses.
fn layout<'a>(task: &'a Task, record: &Record) -> Result<&'a Layout, String> {
    let mut missing = None;
    for layout in &task.layouts {
        match task.fields(layout, &record.fields) {
            Ok(_) => return Ok(layout),
            Err(why) => missing = missing.or(Some(why)),
        }
    }
    Err(missing.unwrap_or_default())
}

/// Documents that are there twice count twice: a file that was put together wrongly is worth an error.
fn check_repeats(
    task: &Task,
    path: &Path,
    documents: &[Document],
    records: &[Record],
) -> Result<()> {
    let mut seen = HashMap::new();
    let mut repeats = 0;
    for (document, record) in documents.iter().zip(records) {
        let content = (&document.requests, document.gold);
        let Some(first) = seen.insert(content, &record.place) else {
            continue;
        };
        repeats += 1;
        if repeats > task.repeats {
            let why = format!("the same document as {first}");
            return Err(wrong(path, record.place.clone(), why));
        }
    }
    Ok(())
}

/// An error at one place of a file.
fn wrong(path: &Path, place: String, why: impl Into<String>) -> Error {
    Error::TaskData {
        path: path.into(),
        place,
        why: why.into(),
    }
}

#[cfg(test)]
mod tests;
