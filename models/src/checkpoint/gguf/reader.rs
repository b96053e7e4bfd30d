//! Reads the header of a GGUF file and believes nothing in it.
//!
//! Every count is compared with the bytes that are left before anything is allocated for it, so a small file can
//! not ask for a large buffer; what a header may take altogether is capped too. GGUF parsers have a history of
//! overflows in exactly these sums, hence checked arithmetic throughout.

use std::collections::HashSet;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::dequant::{self, Format};
use super::metadata::{Array, Metadata, Value};
use crate::error::{Error, Result};

const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensor data starts, and each tensor in it, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// The largest vocabularies in use make headers of about 20 MB.
const MAX_HEADER_BYTES: u64 = 128 << 20;
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;
const MAX_NAME_BYTES: u64 = 1 << 16;
const MAX_STRING_BYTES: u64 = 16 << 20;
const MAX_ARRAY_ELEMENTS: u64 = 1 << 24;
const MAX_DIMENSIONS: u32 = 4;
/// Least bytes of a key (length, one letter, type, one-byte value) and of a tensor entry (length, one letter,
/// dimension count, one dimension, type, offset).
const LEAST_KEY_BYTES: u64 = 14;
const LEAST_TENSOR_BYTES: u64 = 33;

/// Where one tensor lies and how it is stored.
#[derive(Debug, Clone)]
pub(super) struct TensorEntry {
    pub name: String,
    /// GGUF's order: the fastest-varying dimension first, the reverse of a Hugging Face shape.
    pub dims: Vec<usize>,
    pub format: &'static Format,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

impl TensorEntry {
    /// Number of scalars; the reader has checked that it does not overflow.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// Everything before the tensor data.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: Metadata,
    pub tensors: Vec<TensorEntry>,
}

/// Reads a header of `length` bytes of file from its first byte. Errors name `path`, the place and the byte.
pub(super) fn read_header(path: &Path, file: impl Read, length: u64) -> Result<Header> {
    let mut cursor = Cursor {
        input: BufReader::new(file),
        path: path.to_owned(),
        position: 0,
        length,
        context: "the header".into(),
    };
    check_magic(&mut cursor)?;
    check_version(&mut cursor)?;
    let tensor_count = cursor.u64("tensor count")?;
    let key_count = cursor.u64("key count")?;
    cursor.check_count("tensors", tensor_count, MAX_TENSORS, LEAST_TENSOR_BYTES)?;
    cursor.check_count("keys", key_count, MAX_KEYS, LEAST_KEY_BYTES)?;

    let mut metadata = Metadata::new(path);
    for index in 0..key_count {
        cursor.context = format!("key {index}");
        let key = cursor.string("name", MAX_NAME_BYTES)?;
        cursor.context = format!("key `{key}`");
        let value = cursor.value()?;
        if !metadata.insert(key, value) {
            return Err(cursor.corrupt(format!("{} appears twice", cursor.context)));
        }
    }

    cursor.context = "key `general.alignment`".into();
    let alignment = metadata
        .unsigned("general.alignment")?
        .unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(cursor.corrupt(format!(
            "general.alignment = {alignment} is not a power of two up to {MAX_ALIGNMENT}"
        )));
    }

    let mut names = HashSet::new();
    let mut tensors = Vec::new();
    for index in 0..tensor_count {
        cursor.context = format!("tensor {index}");
        let tensor = cursor.tensor(alignment)?;
        if !names.insert(tensor.name.clone()) {
            return Err(cursor.corrupt(format!("{} appears twice", cursor.context)));
        }
        tensors.push(tensor);
    }

    // Offsets count from the first aligned byte after the header, which is only known now.
    let data = cursor.position.next_multiple_of(alignment);
    for tensor in &mut tensors {
        let relative = tensor.offset;
        let start = data.checked_add(relative);
        let end = start.and_then(|start| start.checked_add(tensor.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= length => tensor.offset = start,
            _ => {
                return Err(cursor.corrupt(format!(
                    "tensor `{}` (offset {relative}, {} bytes) ends past the end of the file ({length} bytes)",
                    tensor.name, tensor.bytes
                )));
            }
        }
    }
    Ok(Header { metadata, tensors })
}

fn check_magic<R: Read>(cursor: &mut Cursor<R>) -> Result<()> {
    let magic = if cursor.length < 4 {
        [0; 4]
    } else {
        cursor.bytes::<4>("magic")?
    };
    if magic == MAGIC {
        return Ok(());
    }
    let (why, hint) = if magic == *b"vers" {
        (
            "this is a Git LFS pointer, not the file it stands for",
            "fetch the file itself with `git lfs pull`",
        )
    } else {
        (
            "it does not start with `GGUF`",
            "give a `.gguf` file or a Hugging Face directory",
        )
    };
    Err(Error::NotAModel {
        path: cursor.path.clone(),
        why: why.into(),
        hint: hint.into(),
    })
}

fn check_version<R: Read>(cursor: &mut Cursor<R>) -> Result<()> {
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => Ok(()),
        // The low half of a small number is zero only if its bytes are the other way round.
        _ if version != 0 && version & 0xffff == 0 => Err(cursor.unsupported(
            "it is a big-endian GGUF file",
            "convert it to little endian with llama.cpp's gguf_convert_endian.py",
        )),
        _ => Err(cursor.unsupported(
            &format!("GGUF version {version}"),
            "Cinder reads versions 2 and 3: convert the model again with a current llama.cpp",
        )),
    }
}

struct Cursor<R> {
    input: BufReader<R>,
    path: PathBuf,
    position: u64,
    /// Bytes of the whole file.
    length: u64,
    /// What is being read, for messages.
    context: String,
}

impl<R: Read> Cursor<R> {
    fn corrupt(&self, why: String) -> Error {
        Error::Corrupt {
            path: self.path.clone(),
            why,
        }
    }

    fn unsupported(&self, what: &str, hint: &str) -> Error {
        Error::Unsupported {
            path: self.path.clone(),
            what: what.into(),
            hint: hint.into(),
        }
    }

    /// Refuses a read past the end of the file or of what a header may take.
    fn check_bytes(&self, what: &str, bytes: u64) -> Result<()> {
        let left = self.length.saturating_sub(self.position);
        if bytes > left {
            return Err(self.corrupt(format!(
                "{} ends early: {what} at byte {} takes {bytes} bytes, {left} are left",
                self.context, self.position
            )));
        }
        if self.position.saturating_add(bytes) > MAX_HEADER_BYTES {
            return Err(self.corrupt(format!(
                "{}: the header is longer than {MAX_HEADER_BYTES} bytes",
                self.context
            )));
        }
        Ok(())
    }

    /// Refuses a count above its cap or that the rest of the file has no room for.
    fn check_count(&self, what: &str, count: u64, cap: u64, least_bytes: u64) -> Result<()> {
        if count > cap {
            return Err(self.corrupt(format!(
                "{} claims {count} {what}; at most {cap} are read",
                self.context
            )));
        }
        // Both factors are capped above, so the product can not overflow; saturating says so to the reader.
        self.check_bytes(
            &format!("{count} {what}"),
            count.saturating_mul(least_bytes),
        )
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.check_bytes(what, N as u64)?;
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input.read_exact(buffer)?;
        self.position = self.position.saturating_add(buffer.len() as u64);
        Ok(())
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    fn bool(&mut self) -> Result<bool> {
        match self.bytes::<1>("boolean")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.corrupt(format!(
                "{} holds boolean {other}, not 0 or 1",
                self.context
            ))),
        }
    }

    fn string(&mut self, what: &str, cap: u64) -> Result<String> {
        let length = self.u64("string length")?;
        self.check_count("string bytes", length, cap, 1)?;
        let start = self.position;
        let mut buffer = vec![0; self.size(length)?];
        self.fill(&mut buffer)?;
        String::from_utf8(buffer).map_err(|_| {
            self.corrupt(format!(
                "{} has a {what} at byte {start} that is not UTF-8",
                self.context
            ))
        })
    }

    fn size(&self, value: u64) -> Result<usize> {
        usize::try_from(value)
            .map_err(|_| self.corrupt(format!("{}: {value} is too large", self.context)))
    }

    fn value(&mut self) -> Result<Value> {
        Ok(match self.u32("type")? {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.bytes("value")?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.bytes("value")?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.bytes("value")?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.bytes("value")?))),
            4 => Value::Unsigned(u64::from(u32::from_le_bytes(self.bytes("value")?))),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.bytes("value")?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.bytes("value")?))),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string("value", MAX_STRING_BYTES)?),
            9 => Value::Array(self.array()?),
            10 => Value::Unsigned(u64::from_le_bytes(self.bytes("value")?)),
            11 => Value::Signed(i64::from_le_bytes(self.bytes("value")?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes("value")?)),
            other => {
                return Err(self.corrupt(format!("{} has unknown type {other}", self.context)));
            }
        })
    }

    fn array(&mut self) -> Result<Array> {
        let kind = self.u32("element type")?;
        let count = self.u64("element count")?;
        Ok(match kind {
            0 | 1 => {
                self.check_count("elements", count, MAX_ARRAY_ELEMENTS, 1)?;
                let mut bytes = vec![0; self.size(count)?];
                self.fill(&mut bytes)?;
                Array::Bytes(bytes)
            }
            2 => Array::Unsigned(self.scalars(count, |b| u64::from(u16::from_le_bytes(b)))?),
            3 => Array::Signed(self.scalars(count, |b| i64::from(i16::from_le_bytes(b)))?),
            4 => Array::Unsigned(self.scalars(count, |b| u64::from(u32::from_le_bytes(b)))?),
            5 => Array::Signed(self.scalars(count, |b| i64::from(i32::from_le_bytes(b)))?),
            6 => Array::Float(self.scalars(count, f32::from_le_bytes)?),
            7 => Array::Bool(self.elements(count, 1, Self::bool)?),
            8 => Array::String(
                self.elements(count, 8, |cursor| cursor.string("string", MAX_STRING_BYTES))?,
            ),
            9 => {
                return Err(self.unsupported(
                    &format!("{} is an array of arrays", self.context),
                    "Cinder reads flat metadata arrays only",
                ));
            }
            10 => Array::Unsigned(self.scalars(count, u64::from_le_bytes)?),
            11 => Array::Signed(self.scalars(count, i64::from_le_bytes)?),
            12 => Array::Double(self.scalars(count, f64::from_le_bytes)?),
            other => {
                return Err(self.corrupt(format!(
                    "{} is an array of unknown type {other}",
                    self.context
                )));
            }
        })
    }

    fn scalars<T, const N: usize>(
        &mut self,
        count: u64,
        convert: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        self.elements(count, N as u64, |cursor| {
            Ok(convert(cursor.bytes("element")?))
        })
    }

    fn elements<T>(
        &mut self,
        count: u64,
        least_bytes: u64,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.check_count("elements", count, MAX_ARRAY_ELEMENTS, least_bytes)?;
        let mut values = Vec::with_capacity(self.size(count)?);
        for _ in 0..count {
            values.push(read(self)?);
        }
        Ok(values)
    }

    /// One tensor entry; its offset is still relative to the tensor data.
    fn tensor(&mut self, alignment: u64) -> Result<TensorEntry> {
        let name = self.string("name", MAX_NAME_BYTES)?;
        self.context = format!("tensor `{name}`");
        let dimensions = self.u32("dimension count")?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(self.corrupt(format!(
                "{} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}",
                self.context
            )));
        }
        let mut dims = Vec::new();
        let mut elements: u64 = 1;
        for _ in 0..dimensions {
            let dim = self.u64("dimension")?;
            // A limit on signed 64 bits of f32 keeps every later product and slice length representable.
            elements = elements
                .checked_mul(dim)
                .filter(|elements| *elements > 0 && *elements <= (i64::MAX as u64) / 4)
                .ok_or_else(|| {
                    self.corrupt(format!("{} has an empty or absurd shape", self.context))
                })?;
            dims.push(self.size(dim)?);
        }
        let kind = self.u32("type")?;
        let offset = self.u64("offset")?;
        let Some(format) = dequant::format(kind) else {
            return Err(self.unsupported(
                &format!("{} has type {}", self.context, dequant::type_name(kind)),
                &format!("Cinder reads {}", dequant::supported_names()),
            ));
        };
        let block = format.block_length as u64;
        let row = dims.first().map_or(0, |dim| *dim as u64);
        if !row.is_multiple_of(block) {
            return Err(self.corrupt(format!(
                "{}: rows of {row} do not divide into {} blocks of {block}",
                self.context, format.name
            )));
        }
        let bytes = (elements / block)
            .checked_mul(format.block_bytes as u64)
            .ok_or_else(|| {
                self.corrupt(format!("{} has an empty or absurd shape", self.context))
            })?;
        if !offset.is_multiple_of(alignment) {
            return Err(self.corrupt(format!(
                "{}: offset {offset} is not a multiple of the alignment {alignment}",
                self.context
            )));
        }
        Ok(TensorEntry {
            name,
            dims,
            format,
            offset,
            bytes,
        })
    }
}
