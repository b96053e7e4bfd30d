//! Writing safetensors files tensor by tensor: saving needs the memory of one tensor, in f32 and as stored.
//!
//! The `safetensors` crate's own file writer is not used: version 0.8.0 leaves files only their owner can
//! read (its issue 782) and does not sync them.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::str::FromStr;

use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::DType;
use fs_err::File;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::hash::{Hashing, sha256};
use super::manifest::{FileRecord, TensorRecord};
use crate::error::{Error, Result};

/// The type weights are stored in on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum StoredDtype {
    #[default]
    F32,
    F16,
    Bf16,
}

impl StoredDtype {
    /// Bytes of one scalar.
    pub fn bytes(self) -> u64 {
        match self {
            StoredDtype::F32 => 4,
            StoredDtype::F16 | StoredDtype::Bf16 => 2,
        }
    }

    /// The name safetensors uses.
    pub fn name(self) -> &'static str {
        match self {
            StoredDtype::F32 => "F32",
            StoredDtype::F16 => "F16",
            StoredDtype::Bf16 => "BF16",
        }
    }

    /// The name `config.json` uses.
    pub fn torch_name(self) -> &'static str {
        match self {
            StoredDtype::F32 => "float32",
            StoredDtype::F16 => "float16",
            StoredDtype::Bf16 => "bfloat16",
        }
    }
}

impl FromStr for StoredDtype {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "f32" => Ok(StoredDtype::F32),
            "f16" => Ok(StoredDtype::F16),
            "bf16" => Ok(StoredDtype::Bf16),
            _ => Err("expected f32, f16 or bf16".into()),
        }
    }
}

/// How a tensor is stored: what its name in safetensors is, and the bytes of one element. Indices are I32, and codes with
/// their scales U8 and F16, whatever the weights are.
fn stored_as(tensor: &PackTensor, dtype: StoredDtype) -> (&'static str, u64) {
    match tensor.dtype {
        DType::U8 => ("U8", 1),
        DType::F16 => ("F16", 2),
        other if other.is_int() => ("I32", 4),
        _ => (dtype.name(), dtype.bytes()),
    }
}

/// Bytes that a tensor takes in a file.
pub(crate) fn stored_bytes(tensor: &PackTensor, dtype: StoredDtype) -> u64 {
    tensor.shape.iter().product::<usize>() as u64 * stored_as(tensor, dtype).1
}

/// Writes `tensors` (f32, drawn one at a time) to `directory/name`, stored as `dtype`, and those of i32, u8 and f16 as they
/// are; calls `step` after each.
///
/// # Errors
/// [`Error::Tensor`] for whole numbers of another width.
/// [`Error::NonFinite`] when a value is not finite, before or after narrowing; the error of a
/// tensor's own source; I/O errors.
pub fn write_safetensors(
    directory: &Path,
    name: &str,
    tensors: Vec<PackTensor>,
    dtype: StoredDtype,
    step: &mut dyn FnMut(),
) -> Result<(FileRecord, Vec<TensorRecord>)> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in &tensors {
        let shape: Vec<usize> = tensor.shape.to_vec();
        let length = stored_bytes(tensor, dtype);
        let entry = json!({"dtype": stored_as(tensor, dtype).0, "shape": shape, "data_offsets": [offset, offset + length]});
        header.insert(tensor.name.clone(), entry);
        offset += length;
    }
    // The header is padded with spaces so that the data starts at a multiple of eight bytes.
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');

    let file = File::create(directory.join(name))?;
    let mut out = Hashing::new(BufWriter::with_capacity(1 << 20, file));
    out.write_all(&(json.len() as u64).to_le_bytes())?;
    out.write_all(&json)?;

    let mut records = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let (tensor_name, shape) = (tensor.name.clone(), tensor.shape.to_vec());
        let (type_name, drawn) = (stored_as(&tensor, dtype).0, tensor.dtype);
        let wrong = |why: String| Error::Tensor {
            path: directory.join(name),
            name: tensor_name.clone(),
            why,
        };
        let bytes = tensor.into_bytes().map_err(|e| wrong(e.to_string()))?;
        let stored = match drawn {
            DType::I32 | DType::U8 => bytes.to_vec(),
            DType::F16 => finite_halves(&bytes).ok_or_else(|| Error::NonFinite {
                what: format!("tensor `{tensor_name}`"),
            })?,
            other if other.is_int() => return Err(wrong(format!("is of {other:?}, not i32"))),
            _ => narrow(&bytes, dtype).ok_or_else(|| Error::NonFinite {
                what: format!("tensor `{tensor_name}` as {}", dtype.name()),
            })?,
        };
        out.write_all(&stored)?;
        records.push(TensorRecord {
            name: tensor_name,
            shape,
            dtype: type_name.into(),
            sha256: sha256(&stored),
        });
        step();
    }
    out.flush()?;
    let record = FileRecord {
        name: name.into(),
        bytes: out.bytes,
        sha256: out.sha256(),
    };
    out.inner
        .into_inner()
        .map_err(|e| Error::Io(e.into_error()))?
        .sync_all()?;
    Ok((record, records))
}

/// f16 bytes as they are; none when a value is not finite.
fn finite_halves(bytes: &[u8]) -> Option<Vec<u8>> {
    let (values, _) = bytes.as_chunks::<2>();
    let finite = |v: &[u8; 2]| f16::from_le_bytes(*v).is_finite();
    values.iter().all(finite).then(|| bytes.to_vec())
}

/// f32 bytes as `dtype`; none when a value is not finite, before or after.
fn narrow(bytes: &[u8], dtype: StoredDtype) -> Option<Vec<u8>> {
    let (values, _) = bytes.as_chunks::<4>();
    let mut out = Vec::with_capacity(values.len() * dtype.bytes() as usize);
    for value in values {
        let value = f32::from_le_bytes(*value);
        let finite = match dtype {
            StoredDtype::F32 => {
                out.extend(value.to_le_bytes());
                value.is_finite()
            }
            StoredDtype::F16 => {
                let narrow = f16::from_f32(value);
                out.extend(narrow.to_le_bytes());
                narrow.is_finite()
            }
            StoredDtype::Bf16 => {
                let narrow = bf16::from_f32(value);
                out.extend(narrow.to_le_bytes());
                narrow.is_finite()
            }
        };
        if !finite {
            return None;
        }
    }
    Some(out)
}
