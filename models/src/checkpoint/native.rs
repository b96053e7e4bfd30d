//! Writing a compressed directory block by block: one shard per decoder layer, the frame's shard, then the index,
//! the configuration and, last, the manifest.

use std::path::Path;

use burn::store::{BurnToPyTorchAdapter, ModuleSnapshot};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::export::config_json;
use super::hash::sha256_file;
use super::huggingface::INDEX_FILE;
use super::lazy::{ErrorSlot, lazy};
use super::load::{HEAD, HEAD_PREFIX};
use super::manifest::{FileRecord, MANIFEST_FILE, Manifest, TensorRecord};
use super::names::{is_implied, layer_name, projection_prefix};
use super::open::{Checkpoint, is_packed_head};
use super::output::OutputDirectory;
use super::writer::{StoredDtype, stored_bytes, write_safetensors};
use crate::decoder::{DecoderLayer, Site};
use crate::error::{Error, Result};
use crate::projection::BlockLinear;

/// One shard that is written: what a run has to remember of it to go on after it was interrupted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShardRecord {
    pub file: FileRecord,
    pub tensors: Vec<TensorRecord>,
    /// Bytes of the tensors.
    pub tensor_bytes: u64,
}

/// A compressed directory in the making. Dropped before [`CompressedWriter::finish`], it leaves nothing, unless it is
/// [kept](CompressedWriter::keep).
pub struct CompressedWriter {
    output: OutputDirectory,
    dtype: StoredDtype,
    shards: usize,
    files: Vec<FileRecord>,
    tensors: Vec<TensorRecord>,
    tensor_bytes: u64,
    weight_map: Map<String, Value>,
}

impl CompressedWriter {
    /// Prepares `<out>.partial` for a model of `layers` layers.
    ///
    /// # Errors
    /// [`Error::Output`] when `out` exists and `overwrite` is false.
    pub fn create(out: &Path, layers: usize, dtype: StoredDtype, overwrite: bool) -> Result<Self> {
        let output = OutputDirectory::create(out, overwrite)?;
        Ok(Self::of(output, layers, dtype))
    }

    /// Goes on with what an interrupted run left in `<out>.partial`; none when there is nothing. Its shards have to be
    /// [adopted](CompressedWriter::adopt), or written again.
    ///
    /// # Errors
    /// As [`CompressedWriter::create`].
    pub fn resume(
        out: &Path,
        layers: usize,
        dtype: StoredDtype,
        overwrite: bool,
    ) -> Result<Option<Self>> {
        let output = OutputDirectory::resume(out, overwrite)?;
        Ok(output.map(|output| Self::of(output, layers, dtype)))
    }

    fn of(output: OutputDirectory, layers: usize, dtype: StoredDtype) -> Self {
        CompressedWriter {
            output,
            dtype,
            shards: layers + 1,
            files: Vec::new(),
            tensors: Vec::new(),
            tensor_bytes: 0,
            weight_map: Map::new(),
        }
    }

    /// A folder for what a later run can go on with, gone when the directory is finished. It may have to be created.
    pub fn work(&self) -> &Path {
        self.output.work()
    }

    /// Leaves what is written when this is dropped, to be resumed.
    pub fn keep(&mut self) {
        self.output.keep();
    }

    /// Removes what is written when this is dropped, even if it was resumed.
    pub fn discard(&mut self) {
        self.output.discard();
    }

    /// Whether the shard that an interrupted run has written is what the record says.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn holds(&self, shard: &ShardRecord) -> Result<bool> {
        let path = self.output.path().join(&shard.file.name);
        Ok(path.is_file() && sha256_file(&path)? == shard.file.sha256)
    }

    /// Takes a shard that is [there](CompressedWriter::holds) already.
    pub fn adopt(&mut self, shard: ShardRecord) {
        self.add(shard);
    }

    /// Writes one layer's shard.
    pub fn write_layer(&mut self, index: usize, layer: &DecoderLayer) -> Result<ShardRecord> {
        let mut tensors = layer.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true);
        let shared: Vec<String> = Site::ALL
            .into_iter()
            .filter(|site| layer.group(*site).is_some_and(|g| g.basis.is_some()))
            .flat_map(|site| site.projections())
            .map(|projection| projection_prefix(index, projection))
            .collect();
        tensors.retain(|tensor| !is_implied(&tensor.name));
        for tensor in &mut tensors {
            let wrong = |why: &str| Error::Tensor {
                path: self.output.path().into(),
                name: tensor.name.clone(),
                why: why.into(),
            };
            let name =
                layer_name(index, &tensor.name).ok_or_else(|| wrong("has no Hugging Face name"))?;
            tensor.name = match shared.iter().find_map(|prefix| name.strip_prefix(prefix)) {
                None => name,
                // A member of a shared basis is its expansion.
                Some(".weight" | ".bias") => name
                    .replace(".weight", ".expansion.weight")
                    .replace(".bias", ".expansion.bias"),
                Some(_) => return Err(wrong("is a factor under a basis that is shared already")),
            };
        }
        self.write_shard(index + 2, tensors, &ErrorSlot::default())
    }

    /// Copies the tensors around the layers from the source, one at a time. A `head` `[hidden] -> [vocab]` of codes comes in
    /// the place of the source's own, or, where that is the embedding, beside it.
    ///
    /// # Errors
    /// As those of reading and writing tensors; [`Error::NonFinite`] naming one.
    pub fn write_frame(
        &mut self,
        checkpoint: &Checkpoint,
        head: Option<&BlockLinear>,
    ) -> Result<ShardRecord> {
        let slot = ErrorSlot::default();
        let replaced = |name: &str| head.is_some() && (name == HEAD || is_packed_head(name));
        let mut tensors: Vec<_> = checkpoint
            .tensors()
            .into_iter()
            .filter(|(name, _)| !name.starts_with("model.layers.") && !replaced(name))
            .map(|(name, _)| lazy(checkpoint.source(), &name, name.clone(), &slot))
            .collect();
        if let Some(head) = head {
            let mut codes = head.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true);
            for tensor in &mut codes {
                tensor.name = format!("{HEAD_PREFIX}.{}", tensor.name);
            }
            tensors.extend(codes);
        }
        self.write_shard(1, tensors, &slot)
    }

    fn write_shard(
        &mut self,
        number: usize,
        tensors: Vec<burn::store::burn_pack::Tensor>,
        slot: &ErrorSlot,
    ) -> Result<ShardRecord> {
        let name = format!("model-{number:05}-of-{:05}.safetensors", self.shards);
        let bytes: u64 = tensors.iter().map(|t| stored_bytes(t, self.dtype)).sum();
        let written = write_safetensors(self.output.path(), &name, tensors, self.dtype, &mut || {});
        let (file, tensors) = match slot.take() {
            Some(error) => return Err(error),
            None => written?,
        };
        let shard = ShardRecord {
            file,
            tensors,
            tensor_bytes: bytes,
        };
        self.add(shard.clone());
        Ok(shard)
    }

    fn add(&mut self, shard: ShardRecord) {
        for tensor in &shard.tensors {
            let file = json!(shard.file.name);
            self.weight_map.insert(tensor.name.clone(), file);
        }
        self.files.push(shard.file);
        self.tensors.extend(shard.tensors);
        self.tensor_bytes += shard.tensor_bytes;
    }

    /// Bytes of all tensors written so far.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensor_bytes
    }

    /// Writes everything but the weights and puts the directory in its place. `manifest` receives the
    /// records of files and tensors, and is returned with the bytes of the whole directory. Nothing can be written after
    /// that.
    ///
    /// # Errors
    /// [`Error::Request`] when shards are missing; [`Error::Output`] when something has come in the way; I/O errors.
    pub fn finish(
        &mut self,
        checkpoint: &Checkpoint,
        mut manifest: Manifest,
    ) -> Result<(Manifest, u64)> {
        if self.files.len() != self.shards {
            return Err(Error::Request(format!(
                "{} of {} shards were written: the directory is not complete",
                self.files.len(),
                self.shards
            )));
        }
        for (name, content) in checkpoint.companions()? {
            self.files.push(self.output.write(&name, &content)?);
        }
        let tied = checkpoint.config().tied_embeddings;
        let config = config_json(checkpoint, self.dtype, tied);
        self.files
            .push(self.output.write("config.json", config.as_bytes())?);
        let index = json!({
            "metadata": {"total_size": self.tensor_bytes()},
            "weight_map": self.weight_map,
        });
        let index = format!("{index:#}\n");
        self.files
            .push(self.output.write(INDEX_FILE, index.as_bytes())?);

        manifest.files = self.files.clone();
        manifest.tensors = self.tensors.clone();
        let mut bytes: u64 = manifest.files.iter().map(|f| f.bytes).sum();
        let json = serde_json::to_string_pretty(&manifest).map_err(std::io::Error::from)?;
        bytes += self
            .output
            .write(MANIFEST_FILE, format!("{json}\n").as_bytes())?
            .bytes;
        self.output.commit()?;
        Ok((manifest, bytes))
    }
}
