//! `export --dense`: a plain Hugging Face directory that any tool can load.

use std::collections::BTreeMap;
use std::path::Path;

use burn::store::bridge::deferred;
use burn::store::burn_pack::{Error as PackError, Tensor as PackTensor};
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use serde_json::{Value, json};

use super::huggingface::{INDEX_FILE, SINGLE_FILE};
use super::lazy::ErrorSlot;
use super::lazy::lazy;
use super::names::projection_prefix;
use super::open::Checkpoint;
use super::output::OutputDirectory;
use super::structure::ProjectionInfo;
use super::writer::{StoredDtype, write_safetensors};
use crate::error::Result;
use crate::progress::Progress;

/// Shards are closed before they would pass this many bytes, as on the Hugging Face hub.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes the model as a dense Hugging Face directory: factors are multiplied out in f32, one
/// projection at a time, and stored as `dtype`. Returns the bytes written.
///
/// # Errors
/// [`Error::Output`](crate::Error::Output) when `out` exists and `overwrite` is false; otherwise those of reading the model.
pub fn export_dense(
    checkpoint: &Checkpoint,
    out: &Path,
    dtype: StoredDtype,
    overwrite: bool,
    device: &Device,
    progress: &dyn Progress,
) -> Result<u64> {
    let output = OutputDirectory::create(out, overwrite)?;
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
    for (name, content) in companions {
        bytes += output.write(&name, &content)?.bytes;
    }
    bytes += output
        .write("config.json", config_json(checkpoint, dtype).as_bytes())?
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

/// The source's configuration with the type the weights are now stored in.
pub(crate) fn config_json(checkpoint: &Checkpoint, dtype: StoredDtype) -> String {
    let mut config = checkpoint.config().source.clone();
    let key = match config.contains_key("dtype") {
        true => "dtype",
        false => "torch_dtype",
    };
    config.insert(key.into(), Value::from(dtype.torch_name()));
    format!("{:#}\n", Value::Object(config))
}

fn dense_tensors(checkpoint: &Checkpoint, device: &Device, slot: &ErrorSlot) -> Vec<PackTensor> {
    let factored: BTreeMap<String, ProjectionInfo> = checkpoint
        .projections()
        .into_iter()
        .filter(|p| p.rank.is_some())
        .map(|p| (projection_prefix(p.layer, p.projection), p))
        .collect();
    let mut tensors = Vec::new();
    for (name, _) in checkpoint.tensors() {
        if let Some(prefix) = name.strip_suffix(".basis.weight") {
            let info = factored.get(prefix);
            tensors.extend(info.map(|info| product(checkpoint, prefix, info, device, slot)));
        } else if !name.ends_with(".expansion.weight") {
            let dense = name.replace(".expansion.bias", ".bias");
            tensors.push(lazy(checkpoint.source(), &name, dense, slot));
        }
    }
    tensors
}

/// `B A` of one projection, `[out, in]`, multiplied out when it is drawn.
fn product(
    checkpoint: &Checkpoint,
    prefix: &str,
    info: &ProjectionInfo,
    device: &Device,
    slot: &ErrorSlot,
) -> PackTensor {
    let shape = vec![info.out, info.input];
    let rank = info.rank.unwrap_or(0);
    let (source, slot, device) = (checkpoint.source().clone(), slot.clone(), device.clone());
    let (prefix, dims) = (prefix.to_owned(), shape.clone());
    deferred(
        format!("{prefix}.weight"),
        DType::F32,
        Shape::from(shape),
        None,
        move || {
            let read = |name: &str, dims: [usize; 2]| {
                let values = source
                    .read_f32(&format!("{prefix}.{name}.weight"))
                    .map_err(|e| slot.put(e))?;
                let data = TensorData::new(values, dims);
                Ok::<_, PackError>(Tensor::<2>::from_data(data, &device))
            };
            let expansion = read("expansion", [dims[0], rank])?;
            let basis = read("basis", [rank, dims[1]])?;
            Ok(expansion.matmul(basis).into_data())
        },
    )
}

/// Splits tensors into files of at most [`SHARD_BYTES`], in order.
fn shards(tensors: Vec<PackTensor>, dtype: StoredDtype) -> Vec<Vec<PackTensor>> {
    let mut shards: Vec<Vec<PackTensor>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let bytes = tensor.shape.iter().product::<usize>() as u64 * dtype.bytes();
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
