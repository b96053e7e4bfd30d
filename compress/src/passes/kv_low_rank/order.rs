//! Heads that are alike become neighbours, so that a group's latent is theirs.
//!
//! ReCalKV, arXiv 2505.24357, §3.2: heads by the similarity (CKA) of what they put out. Its keys and values have groups of their
//! own; here both have the same, so that the new order is one of whole heads: the model that is compressed computes what the
//! given one does, with its heads in other places.

use burn::module::Param;
use burn::tensor::{Device, Int, Tensor, TensorData};
use cinder_models::projection::Projection;
use cinder_models::{DecoderLayer, Site};

use crate::error::{Error, Result};
use crate::linalg::{Weight, Whitening, similarity};

/// The KV heads in an order in which groups of `size` consecutive ones are alike.
///
/// Groups are made one after another: the two heads that are most alike among those left, then whoever is most like those in
/// the group. Every head's likeness is that of its keys and of its values added up. Of equals the first is taken.
pub(super) fn order(
    weights: &[Weight; 2],
    input: &Whitening,
    head_dim: usize,
    size: usize,
) -> Vec<usize> {
    let heads = weights[0].shape().0 / head_dim.max(1);
    let alike: Vec<Vec<Vec<f64>>> = weights
        .iter()
        .map(|weight| similarity(weight, input, head_dim))
        .collect();
    let like = |a: usize, b: usize| alike.iter().map(|of| of[a][b]).sum::<f64>();
    let mut left: Vec<usize> = (0..heads).collect();
    let mut order = Vec::with_capacity(heads);
    while !left.is_empty() {
        let mut group: Vec<usize> = Vec::new();
        while group.len() < size && !left.is_empty() {
            let worth = |head: usize| match group.is_empty() {
                // Who begins is one of the two that are most alike.
                true => {
                    let others = left.iter().filter(|other| **other != head);
                    others.map(|other| like(head, *other)).fold(0.0, f64::max)
                }
                false => group.iter().map(|other| like(head, *other)).sum(),
            };
            let mut best = 0;
            for i in 1..left.len() {
                if worth(left[i]) > worth(left[best]) {
                    best = i;
                }
            }
            group.push(left.remove(best));
        }
        group.sort_unstable();
        order.extend(group);
    }
    order
}

/// The rows of heads in this order.
pub(super) fn rows(order: &[usize], width: usize) -> Vec<usize> {
    let rows = order
        .iter()
        .flat_map(|head| head * width..(head + 1) * width);
    rows.collect()
}

/// Moves the query heads with their KV heads: rows of `q`, and the columns of `o` that read them.
///
/// # Errors
/// [`Error::NotDense`] when either is factored.
pub(super) fn move_queries(layer: usize, block: &mut DecoderLayer, order: &[usize]) -> Result<()> {
    let device = block.input_norm.gamma.val().device();
    let not_dense = |projection: &str, found: &Projection| Error::NotDense {
        layer,
        projection: projection.into(),
        kind: found.kind().into(),
    };
    let heads = order.len() * block.attention.head_dim;
    let q = &mut block.attention.qkv.members[0];
    let Projection::Dense(linear) = q else {
        return Err(not_dense(Site::Qkv.projections()[0], q));
    };
    // As many query heads as KV heads read one of them.
    let width = linear.weight.val().dims()[1] / (heads / block.attention.head_dim).max(1);
    let moved = indices(&rows(order, width), &device);
    linear.weight = Param::from_tensor(linear.weight.val().select(1, moved.clone()));
    if let Some(bias) = &linear.bias {
        linear.bias = Some(Param::from_tensor(bias.val().select(0, moved.clone())));
    }
    let o = &mut block.attention.output;
    let Projection::Dense(linear) = o else {
        return Err(not_dense(Site::O.projections()[0], o));
    };
    linear.weight = Param::from_tensor(linear.weight.val().select(0, moved));
    Ok(())
}

/// Biases of heads in this order.
pub(super) fn moved_bias(bias: Tensor<1>, rows: &[usize]) -> Tensor<1> {
    let device = bias.device();
    bias.select(0, indices(rows, &device))
}

fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}
