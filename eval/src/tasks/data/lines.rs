//! Files of text: one JSON object a line, a list of objects, or OLMES's gzipped requests.

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use super::{Record, wrong};
use crate::error::Result;
use crate::tasks::expression::Fields;

/// No file of requests comes near this size unpacked (bytes).
const UNPACKED_MAX: u64 = 512 << 20;
/// OLMES numbers requests without a context, which calibrate a metric of its own, from here.
const WITHOUT_CONTEXT: u64 = 1_000_000;

/// The lines of a file that are not blank, with their numbers from 1.
fn lines<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(usize, &'a str)>> {
    let mut lines = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let text = std::str::from_utf8(line).map_err(|e| {
            let why = format!("not UTF-8 text: bad byte at column {}", e.valid_up_to() + 1);
            wrong(path, place(index + 1), why)
        })?;
        if !text.trim().is_empty() {
            lines.push((index + 1, text));
        }
    }
    Ok(lines)
}

fn place(line: usize) -> String {
    format!("line {line}")
}

/// One text a line.
pub(super) fn texts(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let lines = lines(path, bytes)?.into_iter();
    Ok(lines.map(|(_, line)| line.trim().to_owned()).collect())
}

/// One object a line.
pub(super) fn objects(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let record = |(number, line): (usize, &str)| {
        let fields = object(line).map_err(|why| wrong(path, place(number), why))?;
        Ok(Record {
            place: place(number),
            fields,
        })
    };
    lines(path, bytes)?.into_iter().map(record).collect()
}

/// A list of objects; one object a line is read too.
pub(super) fn list(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    if bytes.trim_ascii_start().first() != Some(&b'[') {
        return objects(path, bytes);
    }
    // For the line of a bad byte.
    lines(path, bytes)?;
    let items: Vec<Value> = serde_json::from_slice(bytes).map_err(|e| {
        wrong(
            path,
            place(e.line()),
            format!("not JSON: {}", without_place(&e)),
        )
    })?;
    let record = |(index, item): (usize, Value)| match item {
        Value::Object(fields) => Ok(Record {
            place: format!("item {}", index + 1),
            fields,
        }),
        _ => Err(wrong(
            path,
            format!("item {}", index + 1),
            "not a JSON object",
        )),
    };
    items.into_iter().enumerate().map(record).collect()
}

/// Gzipped requests, several for each document: the document of the first is taken.
pub(super) fn requests(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(UNPACKED_MAX)
        .read_to_end(&mut unpacked)
        .map_err(|e| wrong(path, place(1), format!("it can not be unpacked: {e}")))?;
    let mut records: Vec<Record> = Vec::new();
    let mut next = 0;
    for record in objects(path, &unpacked)? {
        let number = record.fields.get("doc_id").and_then(Value::as_u64);
        let Some(number) = number else {
            return Err(wrong(path, record.place, "no number in the field `doc_id`"));
        };
        if number < next || number >= WITHOUT_CONTEXT {
            continue;
        }
        next = number + 1;
        match record.fields.get("doc") {
            Some(Value::Object(fields)) => records.push(Record {
                fields: fields.clone(),
                place: record.place,
            }),
            _ => return Err(wrong(path, record.place, "no object in the field `doc`")),
        }
    }
    Ok(records)
}

fn object(line: &str) -> Result<Fields, String> {
    serde_json::from_str(line).map_err(|e| {
        let why = without_place(&e);
        format!("not a JSON object: {why} at column {}", e.column())
    })
}

/// What an error of `serde_json` says, without the place that it says too.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&end).unwrap_or(&text).to_owned()
}
