//! Keys and values multiplied out of their latents.

use std::path::PathBuf;
use std::sync::Arc;

use burn::store::bridge::deferred;
use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::{DType, Device, Shape, TensorData};

use super::{product, read, wrong};
use crate::checkpoint::latent::{LatentInfo, group_prefix};
use crate::checkpoint::lazy::ErrorSlot;
use crate::checkpoint::names::projection_prefix;
use crate::checkpoint::open::Checkpoint;
use crate::checkpoint::source::TensorSource;
use crate::error::Result;

/// The key or value projection of one layer.
#[derive(Clone)]
struct Heads {
    source: Arc<dyn TensorSource>,
    path: PathBuf,
    prefix: String,
    projection: &'static str,
    latent: LatentInfo,
    input: usize,
    device: Device,
}

/// Weight, and bias where the model has one, of every key and value projection that is rebuilt from latents.
pub(super) fn dense_heads(
    checkpoint: &Checkpoint,
    device: &Device,
    slot: &ErrorSlot,
) -> Vec<PackTensor> {
    let mut tensors = Vec::new();
    for info in checkpoint.projections() {
        let Some(latent) = info.latent else { continue };
        let heads = Heads {
            source: checkpoint.source().clone(),
            path: checkpoint.path().to_owned(),
            prefix: projection_prefix(info.layer, info.projection),
            projection: info.projection,
            latent,
            input: info.input,
            device: device.clone(),
        };
        let mut add = |leaf: &str, shape: Vec<usize>, values: fn(&Heads) -> Result<Vec<f32>>| {
            let name = format!("{}.{leaf}", heads.prefix);
            let (heads, slot, dims) = (heads.clone(), slot.clone(), shape.clone());
            let make = move || {
                let values = values(&heads).map_err(|e| slot.put(e))?;
                Ok(TensorData::new(values, dims.clone()))
            };
            tensors.push(deferred(name, DType::F32, Shape::from(shape), None, make));
        };
        add("weight", vec![info.out, info.input], Heads::weight);
        if checkpoint.config().projection_bias(info.projection) {
            add("bias", vec![info.out], Heads::bias);
        }
    }
    tensors
}

impl Heads {
    /// `[out, in]`: the groups' heads one below the other.
    fn weight(&self) -> Result<Vec<f32>> {
        let name = format!("{}.weight", self.latent.prefix);
        let basis = self.read(&name, self.latent.rank * self.input)?;
        let mut start = self.latent.start_of(self.projection);
        let mut weight = Vec::new();
        for (group, (out, rank)) in self.groups() {
            let name = format!("{group}.weight");
            let expansion = self.read(&name, out * rank)?;
            let rows = basis[start * self.input..][..rank * self.input].to_vec();
            let values = product((expansion, out), (rows, self.input), rank, &self.device);
            weight.extend(
                values.ok_or_else(|| {
                    wrong(&self.path, &name, "could not be multiplied out".into())
                })?,
            );
            start += rank;
        }
        Ok(weight)
    }

    fn bias(&self) -> Result<Vec<f32>> {
        let mut bias = Vec::new();
        for (group, (out, _)) in self.groups() {
            bias.extend(self.read(&format!("{group}.bias"), out)?);
        }
        Ok(bias)
    }

    /// The prefix of each group, and its `(out, rank)`.
    fn groups(&self) -> impl Iterator<Item = (String, (usize, usize))> {
        let groups = self.latent.groups(self.projection).iter().enumerate();
        groups.map(|(index, shape)| (group_prefix(&self.prefix, index), *shape))
    }

    fn read(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        read(&*self.source, &self.path, name, length)
    }
}
