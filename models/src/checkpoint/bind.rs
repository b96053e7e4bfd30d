//! Binding lazily read tensors to modules, through burn-store.
//!
//! burn-store is what burn-import's loaders became: it walks a module, transposes linear weights from
//! `[out, in]` to Burn's `[in, out]`, and reports what was missing, left over or of the wrong shape.

use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::module::Module;
use burn::nn::{Embedding, Linear, LinearConfig, RmsNorm};
use burn::store::bridge::deferred;
use burn::store::burn_pack::{Error as PackError, Tensor as PackTensor};
use burn::store::{ApplyError, ModuleSnapshot, PyTorchToBurnAdapter};
use burn::tensor::{DType, Device, Shape, TensorData};

use super::source::TensorSource;
use super::structure::projection_info;
use crate::config::ModelConfig;
use crate::decoder::{
    Attention, DecoderLayer, FeedForward, Site, embedding_skeleton, norm_skeleton,
};
use crate::error::{Error, Result};
use crate::projection::{LowRank, Projection, ProjectionGroup};

/// What stands around the layers.
#[derive(Module, Debug)]
pub struct Frame {
    pub embedding: Embedding,
    pub norm: RmsNorm,
    pub lm_head: Option<Linear>,
}

/// Carries an error out of burn-store, which would turn it into text.
#[derive(Clone, Default)]
pub(crate) struct ErrorSlot(Arc<Mutex<Option<Error>>>);

impl ErrorSlot {
    pub(crate) fn put(&self, error: Error) -> PackError {
        let text = error.to_string();
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
        PackError::ValidationError(text)
    }

    pub(crate) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

/// A tensor that is read when burn-store asks for it. `name` is its path in the module.
pub(crate) fn lazy(
    source: &Arc<dyn TensorSource>,
    stored_name: &str,
    name: String,
    slot: &ErrorSlot,
) -> PackTensor {
    let shape = source
        .info(stored_name)
        .map(|i| i.shape)
        .unwrap_or_default();
    let (source, slot) = (source.clone(), slot.clone());
    let (stored_name, dims) = (stored_name.to_owned(), shape.clone());
    deferred(name, DType::F32, Shape::from(shape), None, move || {
        let values = source.read_f32(&stored_name).map_err(|e| slot.put(e))?;
        Ok(TensorData::new(values, dims.clone()))
    })
}

/// Fills `module` with `tensors`; `hugging_face_name` turns a path in the module into the name messages use.
pub(crate) fn bind<M: Module>(
    mut module: M,
    tensors: Vec<PackTensor>,
    slot: &ErrorSlot,
    path: &Path,
    hugging_face_name: &dyn Fn(&str) -> Option<String>,
) -> Result<M> {
    let result = module.apply(tensors, None, Some(Box::new(PyTorchToBurnAdapter)), true);
    if let Some(error) = slot.take() {
        return Err(error);
    }
    let wrong = |module_path: &str, why: String| Error::Tensor {
        path: path.into(),
        name: hugging_face_name(module_path).unwrap_or_else(|| module_path.into()),
        why,
    };
    if let Some(error) = result.errors.first() {
        return Err(match error {
            ApplyError::ShapeMismatch {
                path,
                expected,
                found,
            } => {
                let (expected, found) = (expected.to_vec(), found.to_vec());
                wrong(
                    path,
                    format!(
                        "has shape {found:?}, but the configuration asks for {expected:?} (in Burn's axis order)"
                    ),
                )
            }
            ApplyError::DTypeMismatch { path, .. } => wrong(path, "is not a float tensor".into()),
            ApplyError::AdapterError { path, message }
            | ApplyError::LoadError { path, message } => {
                wrong(path, format!("could not be read: {message}"))
            }
        });
    }
    if let Some((name, _)) = result.missing.first() {
        return Err(wrong(name, "is missing".into()));
    }
    if let Some(name) = result.unused.first() {
        return Err(wrong(name, "has no place in this architecture".into()));
    }
    Ok(module)
}

/// A layer of the right shapes, without values.
pub(crate) fn layer_skeleton(
    source: &dyn TensorSource,
    config: &ModelConfig,
    layer: usize,
    device: &Device,
) -> DecoderLayer {
    let projection = |site: Site, name: &'static str| {
        let info = projection_info(source, config, layer, site, name);
        let linear = |input, out, bias| LinearConfig::new(input, out).with_bias(bias).init(device);
        let bias = config.projection_bias(name);
        match info.rank {
            None => Projection::Dense(linear(info.input, info.out, bias)),
            Some(rank) => Projection::LowRank(LowRank {
                basis: linear(info.input, rank, false),
                expansion: linear(rank, info.out, bias),
            }),
        }
    };
    let group = |site: Site| ProjectionGroup {
        members: site
            .projections()
            .iter()
            .map(|p| projection(site, p))
            .collect(),
    };
    let norm = |width| norm_skeleton(width, config.rms_norm_eps, device);
    DecoderLayer {
        input_norm: norm(config.hidden_size),
        attention: Attention {
            qkv: group(Site::Qkv),
            output: projection(Site::O, "o"),
            q_norm: config.qk_norm.then(|| norm(config.head_dim)),
            k_norm: config.qk_norm.then(|| norm(config.head_dim)),
            head_dim: config.head_dim,
        },
        post_attention_norm: norm(config.hidden_size),
        feed_forward: FeedForward {
            gate_up: group(Site::GateUp),
            down: projection(Site::Down, "down"),
        },
    }
}

/// The frame of the right shapes, without values.
pub(crate) fn frame_skeleton(config: &ModelConfig, device: &Device) -> Frame {
    let head = LinearConfig::new(config.hidden_size, config.vocab_size).with_bias(false);
    Frame {
        embedding: embedding_skeleton(config, device),
        norm: norm_skeleton(config.hidden_size, config.rms_norm_eps, device),
        lm_head: (!config.tied_embeddings).then(|| head.init(device)),
    }
}
