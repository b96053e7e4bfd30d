//! A text column of an Arrow IPC stream, the format Hugging Face `datasets` keeps its data in.

use std::path::Path;

use arrow_ipc::reader::StreamReader;

use super::column;
use crate::error::{Error, Result};

/// The texts of the first of `columns` that the stream has; `path` is for messages only.
pub(super) fn read(path: &Path, stream: &[u8], columns: &[&str]) -> Result<Vec<String>> {
    let damaged = |why: String| Error::Arrow {
        path: path.into(),
        why,
    };
    let reader = StreamReader::try_new(stream, None).map_err(|e| damaged(e.to_string()))?;
    let schema = reader.schema();
    let found: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let index = column::position(path, columns, &found)?;
    column::texts(reader, (index, found[index]), damaged)
}
