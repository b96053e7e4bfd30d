//! Arrow streams and Parquet files, the formats of Hugging Face's data sets, as records.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch, types};
use arrow_ipc::reader::StreamReader;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use super::{Record, wrong};
use crate::corpus::check_codec;
use crate::error::{Error, Result};
use crate::tasks::expression::Fields;

/// Whether a column is read.
type Wanted<'a> = &'a dyn Fn(&str) -> bool;

/// Every row of an Arrow IPC stream.
pub(super) fn arrow(path: &Path, stream: &[u8], wanted: Wanted<'_>) -> Result<Vec<Record>> {
    let damaged = |why: String| Error::Arrow {
        path: path.into(),
        why,
    };
    let reader = StreamReader::try_new(stream, None).map_err(|e| damaged(e.to_string()))?;
    rows(path, reader, wanted, &damaged)
}

/// Every row of a Parquet file.
pub(super) fn parquet(path: &Path, wanted: Wanted<'_>) -> Result<Vec<Record>> {
    let damaged = |why: String| Error::Parquet {
        path: path.into(),
        why,
    };
    // The reader panics on some damaged pages. Nothing of it outlives the call.
    let read = AssertUnwindSafe(|| {
        // What a writer noted of its own in-memory types is passed over: text then comes as plain strings.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let (file, _) = fs_err::File::open(path)?.into_parts();
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
            .map_err(|e| damaged(e.to_string()))?;
        let fields = builder.schema().fields().clone();
        let names = fields.iter().map(|field| wanted(field.name()));
        let columns: Vec<usize> = names
            .enumerate()
            .filter(|(_, w)| *w)
            .map(|(i, _)| i)
            .collect();
        for column in &columns {
            check_codec(path, builder.metadata(), *column)?;
        }
        let only = ProjectionMask::roots(builder.parquet_schema(), columns);
        let reader = builder.with_projection(only).build();
        rows(
            path,
            reader.map_err(|e| damaged(e.to_string()))?,
            wanted,
            &damaged,
        )
    });
    catch_unwind(read).unwrap_or_else(|_| Err(damaged("its pages are damaged".into())))
}

fn rows<E: Display>(
    path: &Path,
    batches: impl Iterator<Item = Result<RecordBatch, E>>,
    wanted: Wanted<'_>,
    damaged: &dyn Fn(String) -> Error,
) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for batch in batches {
        let batch = batch.map_err(|e| damaged(e.to_string()))?;
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns());
        let columns: Vec<_> = columns.filter(|(field, _)| wanted(field.name())).collect();
        for row in 0..batch.num_rows() {
            let place = format!("row {}", records.len());
            let mut fields = Fields::new();
            for (field, column) in &columns {
                let value = value(column.as_ref(), row).map_err(|why| {
                    wrong(
                        path,
                        place.clone(),
                        format!("field `{}` {why}", field.name()),
                    )
                })?;
                fields.insert(field.name().clone(), value);
            }
            records.push(Record { place, fields });
        }
    }
    Ok(records)
}

/// An item of an array as JSON has it.
fn value(array: &dyn Array, row: usize) -> Result<Value, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    if let Some(texts) = array.as_string_opt::<i32>() {
        return Ok(texts.value(row).into());
    }
    if let Some(texts) = array.as_string_opt::<i64>() {
        return Ok(texts.value(row).into());
    }
    if let Some(numbers) = array.as_primitive_opt::<types::Int64Type>() {
        return Ok(numbers.value(row).into());
    }
    if let Some(numbers) = array.as_primitive_opt::<types::Int32Type>() {
        return Ok(numbers.value(row).into());
    }
    if let Some(flags) = array.as_boolean_opt() {
        return Ok(flags.value(row).into());
    }
    if let Some(fields) = array.as_struct_opt() {
        let columns = fields.column_names().into_iter().zip(fields.columns());
        let columns =
            columns.map(|(name, column)| Ok((name.to_owned(), value(column.as_ref(), row)?)));
        return columns
            .collect::<Result<Fields, String>>()
            .map(Value::Object);
    }
    let items = match (array.as_list_opt::<i32>(), array.as_list_opt::<i64>()) {
        (Some(lists), _) => lists.value(row),
        (_, Some(lists)) => lists.value(row),
        _ => return Err(format!("holds {}, which no task has", array.data_type())),
    };
    let items = (0..items.len()).map(|item| value(items.as_ref(), item));
    items
        .collect::<Result<Vec<Value>, String>>()
        .map(Value::Array)
}
