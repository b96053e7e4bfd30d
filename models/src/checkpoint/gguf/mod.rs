//! GGUF files of llama.cpp, versions 2 and 3, little endian: metadata, configuration and weights as f32.
//!
//! A [`GgufSource`] reads the header once (see `reader.rs` for what it refuses) and each tensor when asked.

mod config;
mod dequant;
mod metadata;
mod names;
mod reader;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use burn::tensor::{Bytes, DType};
use fs_err::File;

pub(crate) use config::end_ids;
pub use metadata::{Array, Metadata, Value};
use names::{Heads, Meaning};
use reader::TensorEntry;

use super::source::{TensorInfo, TensorSource};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::ops::MappedFile;

/// A GGUF file, open for reading. Tensors have Hugging Face names, shapes and row order.
#[derive(Debug)]
pub struct GgufSource {
    path: PathBuf,
    /// Seek and read belong together, so readers take turns; decoding is outside the lock.
    file: Mutex<File>,
    /// Made when it is first asked for; none where the system can not map.
    map: OnceLock<Option<MappedFile>>,
    metadata: Metadata,
    config: ModelConfig,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor in the file, and the heads to reorder its rows by.
#[derive(Debug)]
struct Stored {
    entry: TensorEntry,
    rotated: Option<Heads>,
}

impl GgufSource {
    /// Opens a file and reads its header; no weights are read but `rope_freqs.weight`.
    ///
    /// # Errors
    /// [`Error::Io`] if it can not be read; [`Error::NotAModel`] if it is no GGUF file; [`Error::Corrupt`] if the
    /// header contradicts itself or the file's length; [`Error::Config`] naming a metadata key that is missing or
    /// wrong; [`Error::Tensor`] if tensors and metadata disagree; [`Error::Unsupported`] for architectures, storage
    /// types or tensors that Cinder does not know.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Before opening: opening a pipe would wait for a writer.
        if !fs_err::metadata(path)?.is_file() {
            return Err(Error::NotAModel {
                path: path.to_owned(),
                why: "it is not a file".into(),
                hint: "give a `.gguf` file or a Hugging Face directory".into(),
            });
        }
        let file = File::open(path)?;
        let header = reader::read_header(path, &file, file.metadata()?.len())?;
        let file = Mutex::new(file);

        let mut divisors = None;
        let mut tensors = BTreeMap::new();
        let mut last_layer = None;
        for entry in header.tensors {
            match names::meaning(&entry.name) {
                Meaning::RopeDivisors => divisors = Some(read_all(path, &file, &entry)?),
                Meaning::Harmless => {}
                Meaning::Unknown => {
                    return Err(Error::Unsupported {
                        path: path.to_owned(),
                        what: format!("tensor `{}`", entry.name),
                        hint: "leaving a tensor out would compute another model: Cinder reads plain Llama, Mistral and Qwen decoders"
                            .into(),
                    });
                }
                Meaning::Weight {
                    name,
                    layer,
                    rotated,
                } => {
                    last_layer = last_layer.max(layer.map(|layer| (layer, entry.name.clone())));
                    tensors.insert(name, Stored { entry, rotated });
                }
            }
        }

        let embedding_rows = tensors
            .get("model.embed_tokens.weight")
            .and_then(|stored| stored.entry.dims.get(1).copied())
            .ok_or_else(|| Error::Tensor {
                path: path.to_owned(),
                name: "token_embd.weight".into(),
                why: "is missing or not a matrix".into(),
            })?;
        let present: HashSet<&str> = tensors.keys().map(String::as_str).collect();
        let config = config::model_config(&header.metadata, &present, embedding_rows, divisors)?;
        if let Some((layer, name)) = last_layer
            && layer >= config.layers
        {
            return Err(Error::Tensor {
                path: path.to_owned(),
                name,
                why: format!("is in layer {layer} of a model of {} layers", config.layers),
            });
        }
        Ok(GgufSource {
            path: path.to_owned(),
            file,
            map: OnceLock::new(),
            metadata: header.metadata,
            config,
            tensors,
        })
    }

    /// The shape of the model, with a `config.json` for transformers in [`ModelConfig::source`].
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every key of the file, such as the vocabulary and `tokenizer.chat_template`.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, name: &str, why: String) -> Error {
        Error::Tensor {
            path: self.path.clone(),
            name: name.into(),
            why,
        }
    }
}

impl GgufSource {
    /// How many heads a tensor's rows belong to, where the file interleaves the halves of each.
    fn interleaved_heads(&self, stored: &Stored) -> Option<usize> {
        let heads = stored.rotated.as_ref()?;
        self.config
            .family
            .gguf_interleaved_rotary
            .then_some(match heads {
                Heads::Query => self.config.heads,
                Heads::KeyValue => self.config.kv_heads,
            })
    }
}

impl TensorSource for GgufSource {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|stored| TensorInfo {
            shape: stored.entry.dims.iter().rev().copied().collect(),
            dtype: stored.entry.format.name.into(),
            bytes: stored.entry.bytes,
        })
    }

    fn mapped(&self, name: &str, dtype: DType) -> Option<Bytes> {
        let stored = self.tensors.get(name)?;
        let same = matches!(
            (stored.entry.format.name, dtype),
            ("F32", DType::F32) | ("F16", DType::F16) | ("BF16", DType::BF16)
        );
        // Rows in another order have to be read.
        if !same || self.interleaved_heads(stored).is_some() {
            return None;
        }
        let map = self.map.get_or_init(|| {
            let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            MappedFile::open(file.file()).ok()
        });
        let start = usize::try_from(stored.entry.offset).ok()?;
        let length = usize::try_from(stored.entry.bytes).ok()?;
        map.as_ref()?.bytes(start, length, dtype.size())
    }

    fn read_i32(&self, name: &str) -> Result<Vec<i32>> {
        Err(self.error(name, "is not of whole numbers".into()))
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        Err(self.error(name, "is not of bytes".into()))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let stored = self
            .tensors
            .get(name)
            .ok_or_else(|| self.error(name, "is not there".into()))?;
        let Some(heads) = self.interleaved_heads(stored) else {
            return read_all(&self.path, &self.file, &stored.entry);
        };

        let rows = stored.entry.dims.iter().skip(1).product::<usize>();
        let order = |rows: usize| {
            RotaryOrder::new(rows, heads).ok_or_else(|| {
                self.error(
                    name,
                    format!("has {rows} rows, which are not pairs for each of {heads} heads"),
                )
            })
        };
        match stored.entry.dims.as_slice() {
            // A bias: one row in the file, whose values stand for the rows of the weight.
            [length] => {
                let order = order(*length)?;
                let bias = read_all(&self.path, &self.file, &stored.entry)?;
                Ok((0..*length)
                    .filter_map(|row| bias.get(order.interleaved(row)).copied())
                    .collect())
            }
            _ => {
                let order = order(rows)?;
                let raw = read_raw(&self.path, &self.file, &stored.entry)?;
                Ok(decode(&stored.entry, &raw, |row| order.interleaved(row)))
            }
        }
    }
}

/// Where a row is when llama.cpp has put the two halves of each head's rotary pairs next to each other.
#[derive(Clone, Copy)]
struct RotaryOrder {
    head_dim: usize,
}

impl RotaryOrder {
    /// `None` unless `rows` are `heads` heads of an even width.
    fn new(rows: usize, heads: usize) -> Option<Self> {
        (rows > 0 && rows.is_multiple_of(heads.checked_mul(2)?)).then(|| RotaryOrder {
            head_dim: rows / heads,
        })
    }

    /// Row `row` of Hugging Face's order, in the file's: of a head's width `w`, Hugging Face pairs rows `i` and
    /// `i + w/2`, which the file has at `2i` and `2i + 1`.
    fn interleaved(self, row: usize) -> usize {
        let (head, within) = (row / self.head_dim, row % self.head_dim);
        let half = self.head_dim / 2;
        head * self.head_dim + 2 * (within % half) + within / half
    }
}

fn read_raw(path: &Path, file: &Mutex<File>, entry: &TensorEntry) -> Result<Vec<u8>> {
    let corrupt = |why: String| Error::Corrupt {
        path: path.to_owned(),
        why,
    };
    let length = usize::try_from(entry.bytes)
        .map_err(|_| corrupt(format!("tensor `{}` is too large", entry.name)))?;
    let mut raw = vec![0; length];
    // A panic elsewhere leaves nothing half done here: the position is set anew for each read.
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    file.seek(SeekFrom::Start(entry.offset))?;
    file.read_exact(&mut raw).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            corrupt(format!(
                "tensor `{}` ends past the end of the file",
                entry.name
            ))
        } else {
            error.into()
        }
    })?;
    Ok(raw)
}

fn read_all(path: &Path, file: &Mutex<File>, entry: &TensorEntry) -> Result<Vec<f32>> {
    let raw = read_raw(path, file, entry)?;
    Ok(decode(entry, &raw, |row| row))
}

fn decode(entry: &TensorEntry, raw: &[u8], source_row: impl Fn(usize) -> usize + Sync) -> Vec<f32> {
    let row_length = entry.dims.first().copied().unwrap_or(1);
    let mut values = vec![0.0; entry.elements()];
    dequant::decode_rows(entry.format, raw, row_length, &mut values, source_row);
    values
}
