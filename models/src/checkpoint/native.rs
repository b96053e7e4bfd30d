//! Writing a compressed directory block by block: one shard per decoder layer, the frame's shard, then the index,
//! the configuration and, last, the manifest.

use std::path::Path;

use burn::store::{BurnToPyTorchAdapter, ModuleSnapshot};
use serde_json::{Map, Value, json};

use super::export::config_json;
use super::huggingface::INDEX_FILE;
use super::lazy::{ErrorSlot, lazy};
use super::manifest::{FileRecord, MANIFEST_FILE, Manifest, TensorRecord};
use super::names::layer_name;
use super::open::Checkpoint;
use super::output::OutputDirectory;
use super::writer::{StoredDtype, write_safetensors};
use crate::decoder::DecoderLayer;
use crate::error::{Error, Result};

/// A compressed directory in the making. Dropped before [`CompressedWriter::finish`], it leaves nothing.
pub struct CompressedWriter {
    output: OutputDirectory,
    dtype: StoredDtype,
    shards: usize,
    files: Vec<FileRecord>,
    tensors: Vec<TensorRecord>,
    weight_map: Map<String, Value>,
}

impl CompressedWriter {
    /// Prepares `<out>.partial` for a model of `layers` layers.
    ///
    /// # Errors
    /// [`Error::Output`] when `out` exists and `overwrite` is false.
    pub fn create(out: &Path, layers: usize, dtype: StoredDtype, overwrite: bool) -> Result<Self> {
        Ok(CompressedWriter {
            output: OutputDirectory::create(out, overwrite)?,
            dtype,
            shards: layers + 1,
            files: Vec::new(),
            tensors: Vec::new(),
            weight_map: Map::new(),
        })
    }

    /// Writes one layer's shard.
    pub fn write_layer(&mut self, index: usize, layer: &DecoderLayer) -> Result<()> {
        let mut tensors = layer.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true);
        for tensor in &mut tensors {
            tensor.name = layer_name(index, &tensor.name).ok_or_else(|| Error::Tensor {
                path: self.output.path().into(),
                name: tensor.name.clone(),
                why: "has no Hugging Face name".into(),
            })?;
        }
        self.write_shard(index + 2, tensors, &ErrorSlot::default())
    }

    /// Copies the tensors around the layers from the source, one at a time.
    pub fn write_frame(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let slot = ErrorSlot::default();
        let tensors = checkpoint
            .tensors()
            .into_iter()
            .filter(|(name, _)| !name.starts_with("model.layers."))
            .map(|(name, _)| lazy(checkpoint.source(), &name, name.clone(), &slot))
            .collect();
        self.write_shard(1, tensors, &slot)
    }

    fn write_shard(
        &mut self,
        number: usize,
        tensors: Vec<burn::store::burn_pack::Tensor>,
        slot: &ErrorSlot,
    ) -> Result<()> {
        let name = format!("model-{number:05}-of-{:05}.safetensors", self.shards);
        let written = write_safetensors(self.output.path(), &name, tensors, self.dtype, &mut || {});
        let (file, tensors) = match slot.take() {
            Some(error) => return Err(error),
            None => written?,
        };
        for tensor in &tensors {
            self.weight_map.insert(tensor.name.clone(), json!(name));
        }
        self.files.push(file);
        self.tensors.extend(tensors);
        Ok(())
    }

    /// Bytes of all tensors written so far.
    pub fn tensor_bytes(&self) -> u64 {
        let scalars = |t: &TensorRecord| t.shape.iter().product::<usize>() as u64;
        self.tensors.iter().map(scalars).sum::<u64>() * self.dtype.bytes()
    }

    /// Writes everything but the weights and puts the directory in its place. `manifest` receives the
    /// records of files and tensors, and is returned with the bytes of the whole directory.
    pub fn finish(
        mut self,
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
        let config = config_json(checkpoint, self.dtype);
        self.files
            .push(self.output.write("config.json", config.as_bytes())?);
        let index = json!({
            "metadata": {"total_size": self.tensor_bytes()},
            "weight_map": self.weight_map,
        });
        let index = format!("{index:#}\n");
        self.files
            .push(self.output.write(INDEX_FILE, index.as_bytes())?);

        manifest.files = self.files;
        manifest.tensors = self.tensors;
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
