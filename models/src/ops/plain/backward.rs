//! The gradients that the kernels compute, of plain Burn operations.

use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::{Tensor, TensorData};

use crate::ops::cross_entropy::{Target, pick};

/// See [`crate::ops::rms_norm_backward`].
pub(in crate::ops) fn rms_norm_backward<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    epsilon: f64,
    gradient: Tensor<D>,
) -> Tensor<D> {
    let square = x.clone().square().mean_dim(D - 1) + epsilon;
    let scaled = gradient * gamma.unsqueeze();
    let along = (scaled.clone() * x.clone()).mean_dim(D - 1) / square.clone();
    (scaled - x * along) / square.sqrt()
}

/// See [`crate::ops::swiglu_backward`].
pub(in crate::ops) fn swiglu_backward(
    gate: Tensor<2>,
    up: Tensor<2>,
    gradient: Tensor<2>,
) -> (Tensor<2>, Tensor<2>) {
    let open = sigmoid(gate.clone());
    let silu = gate * open.clone();
    let slope = open.clone() + silu.clone() * (open.neg() + 1.0);
    (gradient.clone() * up * slope, gradient * silu)
}

/// See [`crate::ops::attention_backward`].
pub(in crate::ops) fn attention_backward(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    gradient: Tensor<4>,
) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
    let [batch, tokens, heads, d] = q.dims();
    let kv_heads = k.dims()[1];
    let group = heads / kv_heads;
    let every_head = |x: Tensor<4>| {
        x.unsqueeze_dim::<5>(2)
            .expand([batch, kv_heads, group, tokens, d])
            .reshape([batch, heads, tokens, d])
    };
    let each_group = |x: Tensor<4>| {
        x.reshape([batch, kv_heads, group, tokens, d])
            .sum_dim(2)
            .reshape([batch, kv_heads, tokens, d])
    };
    let scale = 1.0 / (d as f64).sqrt();
    let (q, gradient) = (q.swap_dims(1, 2) * scale, gradient.swap_dims(1, 2));
    let (k, v) = (every_head(k), every_head(v));
    let hidden = super::causal(0, tokens, &q.device())
        .bool_not()
        .unsqueeze::<4>()
        .expand([batch, heads, tokens, tokens]);
    let scores = q.clone().matmul(k.clone().transpose());
    let weights = softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3);
    let of_weights = gradient.clone().matmul(v.transpose());
    let along = (weights.clone() * of_weights.clone()).sum_dim(3);
    let of_scores = weights.clone() * (of_weights - along);
    (
        (of_scores.clone().matmul(k) * scale).swap_dims(1, 2),
        each_group(of_scores.transpose().matmul(q)),
        each_group(weights.transpose().matmul(gradient)),
    )
}

/// See [`crate::ops::cross_entropy`].
pub(in crate::ops) fn cross_entropy(
    logits: Tensor<2>,
    targets: &[Target],
) -> (Tensor<2>, Tensor<1>) {
    let [rows, vocab] = logits.dims();
    let device = logits.device();
    let logs = log_softmax(logits, 1);
    let probabilities = logs.clone().exp();
    // Which token a draw falls on is read off on the host: this path is for tests and for devices without kernels.
    let host: Vec<f32> = probabilities.clone().into_data().iter::<f32>().collect();
    let mut marks = vec![0.0f32; rows * vocab];
    for (row, target) in targets.iter().enumerate() {
        let at = row * vocab;
        let token = match *target {
            Target::Token(token) => token as usize,
            Target::Draw(place) => pick(&host[at..at + vocab], place),
        };
        marks[at + token] = 1.0;
    }
    let marks = Tensor::<2>::from_data(TensorData::new(marks, [rows, vocab]), &device);
    let losses = (logs * marks.clone()).sum_dim(1).neg().reshape([rows]);
    (probabilities - marks, losses)
}
