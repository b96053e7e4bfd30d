//! Hugging Face directories: `config.json` and one safetensors file, or shards with their index.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use burn::tensor::{Bytes, DType};
use serde::Deserialize;

use super::safetensors_file::SafetensorsFile;
use super::source::{TensorInfo, TensorSource};
use crate::error::{Error, Result};

/// The name of a checkpoint in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The tensors of a Hugging Face directory.
pub(crate) struct HuggingFaceSource {
    directory: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Tensor name to the file it is in.
    location: BTreeMap<String, usize>,
    paths: Vec<PathBuf>,
}

impl HuggingFaceSource {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names; no other
    /// file of the directory is looked at.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let index = directory.join(INDEX_FILE);
        let single = directory.join(SINGLE_FILE);
        if single.is_file() {
            let file = SafetensorsFile::open(&single)?;
            let location = file.names().map(|n| (n.clone(), 0)).collect();
            return Ok(HuggingFaceSource {
                directory: directory.into(),
                files: vec![file],
                location,
                paths: vec![single],
            });
        }
        if !index.is_file() {
            return Err(no_weights(directory));
        }
        Self::open_shards(directory, &index)
    }

    fn open_shards(directory: &Path, index: &Path) -> Result<Self> {
        let corrupt = |why: String| Error::Corrupt {
            path: index.into(),
            why,
        };
        let parsed: Index = serde_json::from_str(&fs_err::read_to_string(index)?)
            .map_err(|e| corrupt(format!("not a safetensors index: {e}")))?;
        let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut files, mut paths, mut location) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (name, shard) in &parsed.weight_map {
            // An index may only name files beside itself.
            let inside = Path::new(shard)
                .components()
                .all(|c| matches!(c, Component::Normal(_)));
            if !inside {
                return Err(corrupt(format!("shard `{shard}` is outside the directory")));
            }
            let at = match shards.get(shard.as_str()) {
                Some(at) => *at,
                None => {
                    let path = directory.join(shard);
                    if !path.is_file() {
                        return Err(corrupt(format!(
                            "it names shard `{shard}`, which is missing"
                        )));
                    }
                    files.push(SafetensorsFile::open(&path)?);
                    paths.push(path);
                    shards.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if files[at].info(name).is_none() {
                return Err(corrupt(format!(
                    "tensor `{name}` is not in shard `{shard}`"
                )));
            }
            location.insert(name.clone(), at);
        }
        paths.push(index.into());
        Ok(HuggingFaceSource {
            directory: directory.into(),
            files,
            location,
            paths,
        })
    }

    /// The files the tensors come from, the index included.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    fn file(&self, name: &str) -> Result<&SafetensorsFile> {
        match self.location.get(name) {
            Some(at) => Ok(&self.files[*at]),
            None => Err(Error::Tensor {
                path: self.directory.clone(),
                name: name.into(),
                why: "is missing".into(),
            }),
        }
    }
}

impl TensorSource for HuggingFaceSource {
    fn names(&self) -> Vec<String> {
        self.location.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.file(name).ok()?.info(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.file(name)?.read_f32(name)
    }

    fn read_i32(&self, name: &str) -> Result<Vec<i32>> {
        self.file(name)?.read_i32(name)
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.file(name)?.read_bytes(name)
    }

    fn mapped(&self, name: &str, dtype: DType) -> Option<Bytes> {
        self.file(name).ok()?.mapped(name, dtype)
    }
}

fn no_weights(directory: &Path) -> Error {
    let pickle = fs_err::read_dir(directory)
        .ok()
        .and_then(|entries| entries.flatten().map(|e| e.path()).find(|p| is_pickle(p)));
    match pickle {
        Some(path) => super::refuse_pickle(&path),
        None => Error::NotAModel {
            path: directory.into(),
            why: format!("it has neither `{SINGLE_FILE}` nor `{INDEX_FILE}`"),
            hint: "give a Hugging Face directory with safetensors weights, or a `.gguf` file"
                .into(),
        },
    }
}

/// Whether the name is that of a PyTorch pickle.
pub(crate) fn is_pickle(path: &Path) -> bool {
    path.extension().is_some_and(|e| {
        ["bin", "pt", "pth", "pkl"]
            .iter()
            .any(|p| e.eq_ignore_ascii_case(p))
    })
}
