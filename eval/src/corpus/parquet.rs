//! A text column of a Parquet file, the format Hugging Face's hub hands data sets out in.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;

use super::column;
use crate::error::{Error, Result};

/// The texts of the first of `columns` that `file` has; `path` is for messages only. Other columns are not read.
pub(super) fn read(path: &Path, file: File, columns: &[&str]) -> Result<Vec<String>> {
    // The reader panics on some damaged pages (a test here finds such bytes). Nothing of it outlives the call.
    catch_unwind(AssertUnwindSafe(|| texts(path, file, columns))).unwrap_or_else(|_| {
        Err(Error::Parquet {
            path: path.into(),
            why: "its pages are damaged".into(),
        })
    })
}

fn texts(path: &Path, file: File, columns: &[&str]) -> Result<Vec<String>> {
    let damaged = |why: String| Error::Parquet {
        path: path.into(),
        why,
    };
    // What a writer noted of its own in-memory types is passed over: text then comes as plain strings, whoever wrote it.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
        .map_err(|e| damaged(e.to_string()))?;
    let schema = builder.schema().clone();
    let found: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let index = column::position(path, columns, &found)?;
    check_codec(path, builder.metadata(), index)?;
    let only = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let reader = builder.with_projection(only).build();
    let reader = reader.map_err(|e| damaged(e.to_string()))?;
    column::texts(reader, (0, found[index]), damaged)
}

/// Whether this build can unpack the `index`-th top-level column.
///
/// # Errors
/// [`Error::ParquetCodec`].
pub(crate) fn check_codec(path: &Path, metadata: &ParquetMetaData, index: usize) -> Result<()> {
    unknown_codec(metadata, index).map_or(Ok(()), |codec| {
        Err(Error::ParquetCodec {
            path: path.into(),
            codec,
        })
    })
}

/// The codec of a part of the `index`-th top-level column that this build can not unpack. Asked before reading: the
/// reader's own message names a feature of its crate, of no use to who has the file.
fn unknown_codec(metadata: &ParquetMetaData, index: usize) -> Option<String> {
    let schema = metadata.file_metadata().schema_descr();
    let chunks = metadata.row_groups().iter().flat_map(|g| g.columns());
    let leaves = (0..schema.num_columns()).cycle();
    chunks
        .zip(leaves)
        .filter(|(_, leaf)| schema.get_column_root_idx(*leaf) == index)
        .find_map(|(chunk, _)| match chunk.compression() {
            Compression::UNCOMPRESSED
            | Compression::SNAPPY
            | Compression::GZIP(_)
            | Compression::LZ4
            | Compression::LZ4_RAW => None,
            Compression::ZSTD(_) => Some("zstd".into()),
            Compression::BROTLI(_) => Some("brotli".into()),
            Compression::LZO => Some("lzo".into()),
        })
}
