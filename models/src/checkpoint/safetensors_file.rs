//! One safetensors file: a header that is checked by the `safetensors` crate, and tensors read one at a time.
//!
//! Tensors are read where another precision is wanted, and mapped where the stored one is.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use burn::tensor::{Bytes, DType};
use fs_err::File;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::source::TensorInfo;
use crate::error::{Error, Result};
use crate::ops::MappedFile;

/// Largest header the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file.
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Made when it is first asked for; none where the system can not map.
    map: OnceLock<Option<MappedFile>>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Clone)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the file.
    start: u64,
    length: usize,
}

impl SafetensorsFile {
    /// Reads and checks the header; no tensor is read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let corrupt = |why: String| Error::Corrupt {
            path: path.into(),
            why,
        };
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut prefix = [0; 8];
        if size < 8 {
            return Err(corrupt(format!(
                "{size} bytes are too few for a safetensors header"
            )));
        }
        file.read_exact(&mut prefix)?;
        let header = u64::from_le_bytes(prefix);
        if header > MAX_HEADER || header > size - 8 {
            return Err(corrupt(format!(
                "the header claims {header} bytes, but {} follow",
                size - 8
            )));
        }
        let mut json = vec![0; header as usize];
        file.read_exact(&mut json)?;
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|e| corrupt(format!("the safetensors header is not valid: {e}")))?;
        let data = 8 + header;
        let described = metadata.data_len() as u64;
        if described != size - data {
            return Err(corrupt(format!(
                "its header describes {described} bytes of tensors, but {} follow it",
                size - data
            )));
        }
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (start, end) = info.data_offsets;
                let entry = Entry {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    start: data + start as u64,
                    length: end - start,
                };
                (name, entry)
            })
            .collect();
        Ok(SafetensorsFile {
            path: path.into(),
            file: Mutex::new(file),
            map: OnceLock::new(),
            tensors,
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    pub(crate) fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|e| TensorInfo {
            shape: e.shape.clone(),
            dtype: format!("{:?}", e.dtype),
            bytes: e.length as u64,
        })
    }

    /// The stored bytes of one tensor, little-endian.
    pub(crate) fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        let mut bytes = vec![0; entry.length];
        // A poisoned lock only means another reader failed; the handle itself is repositioned here.
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(entry.start))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// One tensor in f32, row-major.
    pub(crate) fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        let widen: fn(&[u8]) -> Vec<f32> = match entry.dtype {
            Dtype::F32 => |b| chunks(b, f32::from_le_bytes),
            Dtype::F16 => |b| chunks(b, |v| f16::from_le_bytes(v).to_f32()),
            Dtype::BF16 => |b| chunks(b, |v| bf16::from_le_bytes(v).to_f32()),
            other => {
                return Err(Error::Unsupported {
                    path: self.path.clone(),
                    what: format!("tensor `{name}` of type {other:?}"),
                    hint: "weights must be F32, F16 or BF16".into(),
                });
            }
        };
        Ok(widen(&self.read_bytes(name)?))
    }

    /// One tensor of I32.
    pub(crate) fn read_i32(&self, name: &str) -> Result<Vec<i32>> {
        match self.entry(name)?.dtype {
            Dtype::I32 => Ok(chunks(&self.read_bytes(name)?, i32::from_le_bytes)),
            other => Err(Error::Tensor {
                path: self.path.clone(),
                name: name.into(),
                why: format!("is of type {other:?}, where I32 is wanted"),
            }),
        }
    }

    /// The bytes of one tensor where they lie in the file, if it is stored as `dtype`.
    pub(crate) fn mapped(&self, name: &str, dtype: DType) -> Option<Bytes> {
        let entry = self.tensors.get(name)?;
        let same = matches!(
            (entry.dtype, dtype),
            (Dtype::F32, DType::F32)
                | (Dtype::F16, DType::F16)
                | (Dtype::BF16, DType::BF16)
                | (Dtype::U8, DType::U8)
        );
        let start = usize::try_from(entry.start).ok().filter(|_| same)?;
        let map = self.map.get_or_init(|| {
            let file = self.file.lock().unwrap_or_else(|e| e.into_inner());
            MappedFile::open(file.file()).ok()
        });
        map.as_ref()?.bytes(start, entry.length, dtype.size())
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| Error::Tensor {
            path: self.path.clone(),
            name: name.into(),
            why: "is not in the file".into(),
        })
    }
}

fn chunks<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (whole, _) = bytes.as_chunks::<N>();
    whole.iter().map(|c| convert(*c)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: &[u8] = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/goldens/families/llama3/model.safetensors"
    ));

    /// Opens and reads everything; only errors are allowed, never a panic.
    fn exercise(bytes: &[u8]) {
        let file = tempfile::NamedTempFile::new().expect("temp");
        fs_err::write(file.path(), bytes).expect("writes");
        if let Ok(opened) = SafetensorsFile::open(file.path()) {
            for name in opened.names() {
                let _ = opened.read_f32(name);
                let _ = opened.read_i32(name);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn damaged_files_never_panic(
            cut in 0..WHOLE.len(),
            changes in prop::collection::vec((0usize..4000, any::<u8>()), 0..6),
            truncate: bool,
        ) {
            let mut bytes = WHOLE.to_vec();
            for (at, value) in changes {
                bytes[at] = value;
            }
            if truncate {
                bytes.truncate(cut);
            }
            exercise(&bytes);
        }
    }

    #[test]
    fn the_whole_file_is_read() {
        let file = tempfile::NamedTempFile::new().expect("temp");
        fs_err::write(file.path(), WHOLE).expect("writes");
        let opened = SafetensorsFile::open(file.path()).expect("opens");
        for name in opened.names() {
            let count = opened
                .info(name)
                .expect("listed")
                .shape
                .iter()
                .product::<usize>();
            assert_eq!(opened.read_f32(name).expect("reads").len(), count);
        }
        assert!(opened.read_f32("nothing").is_err());
    }
}
