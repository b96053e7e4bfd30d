//! `export --dense`: a plain Hugging Face directory that any tool can load.

mod heads;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::store::bridge::deferred;
use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use serde_json::{Value, json};

use super::huggingface::{INDEX_FILE, SINGLE_FILE};
use super::lazy::ErrorSlot;
use super::lazy::lazy;
use super::names::{is_latent, is_pivots, projection_prefix};
use super::open::Checkpoint;
use super::output::OutputDirectory;
use super::pivots::{read_pivots, spread};
use super::quantized::{QuantizedInfo, is_codes, is_packed};
use super::source::TensorSource;
use super::structure::{BasisInfo, ProjectionInfo};
use super::writer::{StoredDtype, stored_bytes, write_safetensors};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Shards are closed before they would pass this many bytes, as on the Hugging Face hub.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes the model as a dense Hugging Face directory: factors are multiplied out in f32, one projection at a time,
/// layers with fewer neurons are filled up with zeros to the configuration's, and all is stored as `dtype`. A head of codes
/// beside a tied embedding is written as one that is not tied to it. Returns the bytes written.
///
/// # Errors
/// [`Error::Output`](crate::Error::Output) when `out` exists and `overwrite` is false, or holds the model itself; otherwise those of reading the model.
pub fn export_dense(
    checkpoint: &Checkpoint,
    out: &Path,
    dtype: StoredDtype,
    overwrite: bool,
    device: &Device,
    progress: &dyn Progress,
) -> Result<u64> {
    OutputDirectory::spare(out, checkpoint.path())?;
    let mut output = OutputDirectory::create(out, overwrite)?;
    // First, because a tokenizer that can not be made should not cost the time of writing weights.
    let companions = checkpoint.companions()?;
    let slot = ErrorSlot::default();
    let shards = shards(dense_tensors(checkpoint, device, &slot), dtype);
    let single = shards.len() == 1;
    progress.start(
        "exporting",
        shards.iter().map(Vec::len).sum::<usize>() as u64,
    );
    let (mut bytes, mut tensor_bytes, mut weight_map) = (0, 0, serde_json::Map::new());
    let count = shards.len();
    for (index, shard) in shards.into_iter().enumerate() {
        let name = match single {
            true => SINGLE_FILE.to_owned(),
            false => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let written = write_safetensors(output.path(), &name, shard, dtype, &mut || {
            progress.advance(1)
        });
        let (file, tensors) = match slot.take() {
            Some(error) => return Err(error),
            None => written?,
        };
        bytes += file.bytes;
        for tensor in tensors {
            tensor_bytes += tensor.shape.iter().product::<usize>() as u64 * dtype.bytes();
            weight_map.insert(tensor.name, json!(name));
        }
    }
    // Codes of the head stand for other values than the embedding's.
    let tied = checkpoint.config().tied_embeddings && checkpoint.head_codes().is_none();
    for (name, content) in companions {
        bytes += output.write(&name, &content)?.bytes;
    }
    bytes += output
        .write(
            "config.json",
            config_json(checkpoint, dtype, tied).as_bytes(),
        )?
        .bytes;
    if !single {
        let index = json!({"metadata": {"total_size": tensor_bytes}, "weight_map": weight_map});
        bytes += output
            .write(INDEX_FILE, format!("{index:#}\n").as_bytes())?
            .bytes;
    }
    output.commit()?;
    progress.finish();
    Ok(bytes)
}

/// The source's configuration with the type the weights are now stored in, and whether the head is the embedding.
pub(crate) fn config_json(checkpoint: &Checkpoint, dtype: StoredDtype, tied: bool) -> String {
    let mut config = checkpoint.config().source.clone();
    if tied != checkpoint.config().tied_embeddings {
        config.insert("tie_word_embeddings".into(), tied.into());
    }
    let key = match config.contains_key("dtype") {
        true => "dtype",
        false => "torch_dtype",
    };
    config.insert(key.into(), Value::from(dtype.torch_name()));
    format!("{:#}\n", Value::Object(config))
}

fn dense_tensors(checkpoint: &Checkpoint, device: &Device, slot: &ErrorSlot) -> Vec<PackTensor> {
    let projections: BTreeMap<String, ProjectionInfo> = checkpoint
        .projections()
        .into_iter()
        .map(|p| (projection_prefix(p.layer, p.projection), p))
        .collect();
    let mut tensors = Vec::new();
    for (name, _) in checkpoint.tensors() {
        // What shares a basis is multiplied out where its expansion stands, so that each product is made once.
        let basis = name.ends_with("basis.weight") || is_pivots(&name);
        // Scales and minimums go with their codes.
        let of_codes = is_packed(&name) && !is_codes(&name);
        if basis || of_codes || is_latent(&name) {
            continue;
        }
        if is_codes(&name) {
            let prefix = name.strip_suffix(".codes").unwrap_or(&name);
            let config = checkpoint.config();
            let (codes, shape) = match projections.get(prefix) {
                Some(info) => (info.quantized.clone(), [info.out, info.input]),
                None => (
                    checkpoint.head_codes(),
                    [config.vocab_size, config.hidden_size],
                ),
            };
            tensors.push(dequantized(checkpoint, codes, shape, prefix, device, slot));
            continue;
        }
        let dense = name.replace(".expansion.", ".");
        let bias = dense.ends_with(".bias");
        let info = dense
            .strip_suffix(if bias { ".bias" } else { ".weight" })
            .and_then(|prefix| projections.get(prefix))
            .filter(|p| p.neurons.is_some() || (p.rank.is_some() && !bias));
        tensors.push(match info {
            None => lazy(checkpoint.source(), &name, dense, slot),
            Some(info) => {
                let (full_out, full_input) = checkpoint.config().projection_shape(info.projection);
                let work = Dense {
                    source: checkpoint.source().clone(),
                    path: checkpoint.path().to_owned(),
                    stored: name,
                    info: info.clone(),
                    bias,
                    device: device.clone(),
                };
                let shape = match bias {
                    true => vec![full_out],
                    false => vec![full_out, full_input],
                };
                let (slot, dims) = (slot.clone(), shape.clone());
                deferred(dense, DType::F32, Shape::from(shape), None, move || {
                    let values = work.values(&dims).map_err(|e| slot.put(e))?;
                    Ok(TensorData::new(values, dims.clone()))
                })
            }
        });
    }
    tensors.extend(heads::dense_heads(checkpoint, device, slot));
    tensors
}

/// The weight that codes stand for.
fn dequantized(
    checkpoint: &Checkpoint,
    codes: Option<QuantizedInfo>,
    shape: [usize; 2],
    prefix: &str,
    device: &Device,
    slot: &ErrorSlot,
) -> PackTensor {
    let (source, path) = (checkpoint.source().clone(), checkpoint.path().to_owned());
    let (device, slot) = (device.clone(), slot.clone());
    let name = format!("{prefix}.weight");
    let stored = name.clone();
    deferred(name, DType::F32, Shape::from(shape), None, move || {
        let missing = || {
            wrong(
                &path,
                &stored,
                "is stored neither as such nor as codes".into(),
            )
        };
        let quantized = codes.as_ref().ok_or_else(missing);
        let loaded =
            quantized.and_then(|codes| codes.load((&*source, &path), shape.into(), None, &device));
        let weight = loaded.map_err(|e| slot.put(e))?.to_dense().weight.val();
        Ok(weight.transpose().into_data())
    })
}

/// A projection's weight or bias that is not stored as a dense model has it.
struct Dense {
    source: Arc<dyn TensorSource>,
    path: PathBuf,
    /// The stored tensor: the bias, the weight or the expansion.
    stored: String,
    info: ProjectionInfo,
    bias: bool,
    device: Device,
}

impl Dense {
    /// The values in the shape of the configuration, multiplied out. Removed neurons stand at the end, as zeros: their
    /// gate and up put out nothing, and their down adds nothing, so the model computes what it did.
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let ProjectionInfo {
            out, input, rank, ..
        } = self.info;
        let length = match (self.bias, rank) {
            (true, _) => out,
            (false, Some(rank)) => out * rank,
            (false, None) => out * input,
        };
        let stored = self.read(&self.stored, length)?;
        let values = match &self.info.basis {
            Some(basis) if !self.bias => {
                let (rank, basis) = (basis.rank, self.basis(basis, input)?);
                product((stored, out), (basis, input), rank, &self.device).ok_or_else(|| {
                    wrong(
                        &self.path,
                        &self.stored,
                        "could not be multiplied out".into(),
                    )
                })?
            }
            _ => stored,
        };
        let (width, full) = match shape {
            [_, full] => (input, *full),
            _ => (1, 1),
        };
        let mut padded = Vec::with_capacity(shape.iter().product());
        for row in values.chunks_exact(width) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + full - width, 0.0);
        }
        padded.resize(shape.iter().product(), 0.0);
        Ok(padded)
    }

    /// The basis `[rank, input]`.
    fn basis(&self, basis: &BasisInfo, input: usize) -> Result<Vec<f32>> {
        let weight = |columns: usize| {
            let name = format!("{}.weight", basis.prefix);
            self.read(&name, basis.rank * columns)
        };
        if !basis.identity {
            return weight(input);
        }
        let name = format!("{}.pivots", basis.prefix);
        let pivots = read_pivots(&*self.source, &self.path, &name, input)?;
        let weight = match input - pivots.len() {
            0 => Vec::new(),
            rest => weight(rest)?,
        };
        Ok(spread(&pivots, input, &weight))
    }

    fn read(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        read(&*self.source, &self.path, name, length)
    }
}

/// A stored tensor of `length` values.
fn read(source: &dyn TensorSource, path: &Path, name: &str, length: usize) -> Result<Vec<f32>> {
    let values = source.read_f32(name)?;
    match values.len() == length {
        true => Ok(values),
        false => Err(wrong(
            path,
            name,
            format!("has {} values, not {length}", values.len()),
        )),
    }
}

/// `[out, rank]` by `[rank, input]`.
fn product(
    (expansion, out): (Vec<f32>, usize),
    (basis, input): (Vec<f32>, usize),
    rank: usize,
    device: &Device,
) -> Option<Vec<f32>> {
    let tensor =
        |values, dims: [usize; 2]| Tensor::<2>::from_data(TensorData::new(values, dims), device);
    let product = tensor(expansion, [out, rank]).matmul(tensor(basis, [rank, input]));
    product.into_data().try_into_vec().ok()
}

fn wrong(path: &Path, name: &str, why: String) -> Error {
    Error::Tensor {
        path: path.into(),
        name: name.into(),
        why,
    }
}

/// Splits tensors into files of at most [`SHARD_BYTES`], in order.
fn shards(tensors: Vec<PackTensor>, dtype: StoredDtype) -> Vec<Vec<PackTensor>> {
    let mut shards: Vec<Vec<PackTensor>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let bytes = stored_bytes(&tensor, dtype);
        if filled > 0 && filled + bytes > SHARD_BYTES {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(tensor);
        }
    }
    shards
}
