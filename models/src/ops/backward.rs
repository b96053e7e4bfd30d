//! Gradients of the decoder's operations, each from the operation's inputs and the gradient of its output.
//!
//! Nothing is kept from the forward pass: what it made in between is made again, a block at a time. The product
//! `x Wᵀ` has no function here: its gradient is [`super::linear`] with the transposed weight.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::cross_entropy::Target;
use super::flex::DecoderOps;
use super::profile::{Op, timed};
use super::{ours, plain, rotate};

/// The gradient of [`super::rms_norm`] in its `x`, from `gradient` of the same shape.
///
/// # Panics
/// When the shapes differ.
pub fn rms_norm_backward<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    epsilon: f64,
    gradient: Tensor<D>,
) -> Tensor<D> {
    assert_eq!(x.dims(), gradient.dims(), "x and its gradient");
    assert_eq!(
        x.dims()[D - 1],
        gamma.dims()[0],
        "the widths of x and gamma"
    );
    timed(Op::ElementwiseBackward, || {
        if !ours(&x) {
            return plain::backward::rms_norm_backward(x, gamma, epsilon, gradient);
        }
        Tensor::from_dispatch(Dispatch::rms_norm_backward(
            x.into_dispatch(),
            gamma.into_dispatch(),
            gradient.into_dispatch(),
            epsilon as f32,
        ))
    })
}

/// The gradient of [`super::rotate`] in its `x`: a rotation's transpose turns the other way.
pub fn rotate_backward(gradient: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    rotate(gradient, cos, sin.neg())
}

/// The gradients of [`super::swiglu`] in `gate` and `up`, all `[rows, width]`.
///
/// # Panics
/// When the shapes differ.
pub fn swiglu_backward(
    gate: Tensor<2>,
    up: Tensor<2>,
    gradient: Tensor<2>,
) -> (Tensor<2>, Tensor<2>) {
    assert_eq!(gate.dims(), up.dims(), "gate and up");
    assert_eq!(gate.dims(), gradient.dims(), "gate and the gradient");
    timed(Op::ElementwiseBackward, || {
        if !ours(&gate) {
            return plain::backward::swiglu_backward(gate, up, gradient);
        }
        let (gate, up) = Dispatch::swiglu_backward(
            gate.into_dispatch(),
            up.into_dispatch(),
            gradient.into_dispatch(),
        );
        (Tensor::from_dispatch(gate), Tensor::from_dispatch(up))
    })
}

/// The gradients of causal [`super::attention`] without a cache, in `q` and the output's `gradient`
/// `[batch, tokens, heads, head_dim]` and in `k` and `v` `[batch, kv_heads, tokens, head_dim]`; in that order, and of
/// those shapes. A key head's gradient is the sum over the query heads that read it.
///
/// Dao et al. 2022, arXiv 2205.14135, §B.2; weights are made again for 64 queries at a time.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn attention_backward(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    gradient: Tensor<4>,
) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
    assert_eq!(q.dims(), gradient.dims(), "queries and the gradient");
    timed(Op::AttentionBackward, || {
        if !ours(&q) {
            return plain::backward::attention_backward(q, k, v, gradient);
        }
        let (q, k, v) = Dispatch::attend_backward(
            q.into_dispatch(),
            k.into_dispatch(),
            v.into_dispatch(),
            gradient.into_dispatch(),
        );
        (
            Tensor::from_dispatch(q),
            Tensor::from_dispatch(k),
            Tensor::from_dispatch(v),
        )
    })
}

/// The cross-entropy in nats of each row of `logits` `[rows, vocab]` against its target, `[rows]`, and the gradient of
/// their sum `[rows, vocab]`, which comes first: `softmax(logits)` less one at the target.
///
/// # Panics
/// When there are not as many targets as rows, or a token is outside the vocabulary.
pub fn cross_entropy(logits: Tensor<2>, targets: &[Target]) -> (Tensor<2>, Tensor<1>) {
    let [rows, vocab] = logits.dims();
    assert_eq!(rows, targets.len(), "a target for each row");
    assert!(
        targets
            .iter()
            .all(|t| !matches!(t, Target::Token(id) if *id as usize >= vocab)),
        "a target outside the vocabulary of {vocab}"
    );
    timed(Op::CrossEntropy, || {
        if !ours(&logits) {
            return plain::backward::cross_entropy(logits, targets);
        }
        let (gradient, losses) = Dispatch::cross_entropy(logits.into_dispatch(), targets.to_vec());
        (
            Tensor::from_dispatch(gradient),
            Tensor::from_dispatch(losses),
        )
    })
}
