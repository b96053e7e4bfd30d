//! The text column of a table, however its file stores it.

use std::fmt::Display;
use std::path::Path;

use arrow_array::{Array, GenericStringArray, OffsetSizeTrait, RecordBatch};

use super::jsonl::quoted;
use crate::error::{Error, Result};

/// Where the first of `columns` that is among `found` stands in `found`; `path` is for messages only.
///
/// # Errors
/// [`Error::MissingColumn`] naming those that are there.
pub(super) fn position(path: &Path, columns: &[&str], found: &[&str]) -> Result<usize> {
    let position = |column: &&str| found.iter().position(|f| f == column);
    columns
        .iter()
        .find_map(position)
        .ok_or_else(|| Error::MissingColumn {
            path: path.into(),
            wanted: quoted(columns, " or "),
            found: quoted(found, ", "),
        })
}

/// The texts of the `index`-th column of every batch; `name` is for messages only.
///
/// # Errors
/// What `damaged` makes of a batch that can not be read, of a column that holds no text, and of a null.
pub(super) fn texts<E: Display>(
    batches: impl Iterator<Item = Result<RecordBatch, E>>,
    (index, name): (usize, &str),
    damaged: impl Fn(String) -> Error,
) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for batch in batches {
        let batch = batch.map_err(|e| damaged(e.to_string()))?;
        let column = batch.column(index).as_any();
        let complete = if let Some(strings) = column.downcast_ref::<GenericStringArray<i32>>() {
            push_all(&mut texts, strings)
        } else if let Some(strings) = column.downcast_ref::<GenericStringArray<i64>>() {
            push_all(&mut texts, strings)
        } else {
            let held = batch.column(index).data_type();
            return Err(damaged(format!("column `{name}` holds {held}, not text")));
        };
        if !complete {
            let row = texts.len();
            return Err(damaged(format!("row {row} of column `{name}` is null")));
        }
    }
    Ok(texts)
}

/// False at the first null: then `texts` has as many rows as come before it.
fn push_all<O: OffsetSizeTrait>(texts: &mut Vec<String>, strings: &GenericStringArray<O>) -> bool {
    for text in strings {
        match text {
            Some(text) => texts.push(text.to_owned()),
            None => return false,
        }
    }
    true
}
