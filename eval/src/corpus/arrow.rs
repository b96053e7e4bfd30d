//! A text column of an Arrow IPC stream, the format Hugging Face `datasets` keeps its data in.

use std::path::Path;

use arrow_array::{Array, GenericStringArray, OffsetSizeTrait};
use arrow_ipc::reader::StreamReader;

use super::jsonl::quoted;
use crate::error::{Error, Result};

/// The texts of the first of `columns` that the stream has; `path` is for messages only.
pub(super) fn read(path: &Path, stream: &[u8], columns: &[&str]) -> Result<Vec<String>> {
    let damaged = |why: String| Error::Arrow {
        path: path.into(),
        why,
    };
    let reader = StreamReader::try_new(stream, None).map_err(|e| damaged(e.to_string()))?;
    let schema = reader.schema();
    let position = |column: &&str| schema.index_of(column).ok();
    let Some(index) = columns.iter().find_map(position) else {
        let found: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        return Err(Error::ArrowColumn {
            path: path.into(),
            wanted: quoted(columns, " or "),
            found: quoted(&found, ", "),
        });
    };
    let name = schema.field(index).name();
    let mut texts = Vec::new();
    for batch in reader {
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
