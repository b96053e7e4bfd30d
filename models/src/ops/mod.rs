//! The operations a decoder spends its time in, as custom operations of Burn's backends.
//!
//! On the CPU (the flex backend) they run kernels of our own: SIMD chosen at run time, all threads, no copies of weights.
//! On any other device, and under autodiff, the same functions are composed of plain Burn operations (`plain.rs`), which
//! the tests hold the kernels to. This is the one place in Cinder with SIMD and `unsafe`.
//!
//! What every kernel promises for finite values: a row's result does not depend on the other rows of the batch, on how many
//! there are, on the number of threads, or on the instruction set. A token verified among others is therefore bit for bit
//! the token decoded alone. (Two exceptions: the BF16 instructions take numbers below 1.2e-38 for zero, their twins do not;
//! and attention over latents sums values in another form, to the same but for rounding, when more than 32 tokens are new.)
#![allow(
    clippy::needless_range_loop,
    reason = "in a kernel an index names a register, and the loops over them are unrolled"
)]

mod attention;
mod backward;
mod blocks;
mod cross_entropy;
mod elementwise;
mod flex;
mod gather;
mod linear;
mod machine;
mod mapped;
mod parallel;
mod plain;
mod profile;
mod quantized;
mod simd;
#[cfg(test)]
mod tests;

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

pub use attention::latent::ValueForm;
pub(crate) use attention::latent::{Expansion, LateExpansion, Recent, Stored, Values, WeightForm};
pub use backward::{
    attention_backward, cross_entropy, rms_norm_backward, rotate_backward, swiglu_backward,
};
pub use blocks::{BLOCK, BlockFormat, Blocks, LowBit, PANEL};
pub(crate) use blocks::{ends, half, nearest_codes};
pub use cross_entropy::Target;
pub use elementwise::log_sum_exp;
pub use machine::{Machine, machine};
pub use mapped::MappedFile;
pub use profile::{Op, profile};
pub use simd::instructions;

use attention::latent::LatentAttention;
use flex::DecoderOps;
use profile::timed;

use crate::cache::Latents;
use crate::decoder::KeyRotary;

/// Whether a tensor is on the plain CPU backend.
fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    !device.is_autodiff() && matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}

/// A device as records name it: `cpu`, or what its backend calls it.
pub fn device_name(device: &Device) -> String {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => "cpu".into(),
        other => format!("{other:?}"),
    }
}

/// Whether a tensor is one that our kernels take: f32 on the plain CPU backend.
fn ours<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && on_cpu(x)
}

/// `x W`: `x` `[rows, in]` in f32 by `weight` `[in, out]` in f32, f16 or bf16, summed in f32.
///
/// The kernels want each output's weights to lie together in memory, as checkpoints store them: see [`by_output`].
/// With bf16 weights, x is rounded to bf16 too.
///
/// # Panics
/// When the widths differ.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    timed(Op::Linear, || {
        assert_eq!(x.dims()[1], weight.dims()[0], "the widths of x and W");
        if !ours(&x) {
            return plain::linear(x, weight);
        }
        Tensor::from_dispatch(Dispatch::linear(x.into_dispatch(), weight.into_dispatch()))
    })
}

/// The same `[in, out]` weight with each output's weights together in memory, which is how [`linear`] reads it
/// fastest. A weight that already lies so is returned as it is.
pub fn by_output(weight: Tensor<2>) -> Tensor<2> {
    if on_cpu(&weight) {
        return Tensor::from_dispatch(Dispatch::by_output(weight.into_dispatch()));
    }
    weight
}

/// Block-quantised weights as tensors, so that a module can hold them: see [`Blocks`] for their layout.
#[derive(Debug, Clone)]
pub struct BlockTensors {
    pub format: BlockFormat,
    pub out: usize,
    pub input: usize,
    /// `[panels, blocks, bytes]`, of u8.
    pub codes: Tensor<3, Int>,
    /// `[panels, groups, 16]`, of f16.
    pub scales: Tensor<3>,
    /// `[panels, groups, 16]`, of f16, where the format has minimums.
    pub minimums: Option<Tensor<3>>,
}

/// `x Wᵀ` for block-quantised W `[out, in]`: `x` is `[rows, in]` in f32 and is rounded to 16 bits in blocks of 32.
///
/// # Panics
/// When the widths differ.
pub fn block_linear(x: Tensor<2>, weight: BlockTensors) -> Tensor<2> {
    timed(Op::BlockLinear, || {
        assert_eq!(x.dims()[1], weight.input, "the widths of x and W");
        if !ours(&x) {
            return plain::block_linear(x, weight);
        }
        let (format, out) = (weight.format, weight.out);
        // An operation takes a fixed number of tensors: the scales stand in for minimums there are none of.
        let minimums = weight.minimums.unwrap_or_else(|| weight.scales.clone());
        Tensor::from_dispatch(Dispatch::block_linear(
            x.into_dispatch(),
            weight.codes.into_dispatch(),
            weight.scales.into_dispatch(),
            minimums.into_dispatch(),
            format,
            out,
        ))
    })
}

/// `x_J + x_N W`: the columns of `x` `[rows, in]` at `pivots` `[r]`, plus those at `others` `[in - r]` times `weight`
/// `[in - r, r]`, as [`linear`].
///
/// # Panics
/// When the widths differ or an index is not below `in`.
pub fn identity(
    x: Tensor<2>,
    pivots: Tensor<1, Int>,
    others: Tensor<1, Int>,
    weight: Tensor<2>,
) -> Tensor<2> {
    timed(Op::Linear, || {
        let shape = [others.dims()[0], pivots.dims()[0]];
        assert_eq!(weight.dims(), shape, "the other inputs and the pivots");
        if !(ours(&x) && i32s(&pivots) && i32s(&others)) {
            return plain::identity(x, pivots, others, |x| plain::linear(x, weight));
        }
        Tensor::from_dispatch(Dispatch::identity(
            x.into_dispatch(),
            pivots.into_dispatch(),
            others.into_dispatch(),
            weight.into_dispatch(),
        ))
    })
}

/// [`identity`] for block-quantised `Wᵀ` `[r, in - r]`, as [`block_linear`].
///
/// # Panics
/// As [`identity`].
pub fn block_identity(
    x: Tensor<2>,
    pivots: Tensor<1, Int>,
    others: Tensor<1, Int>,
    weight: BlockTensors,
) -> Tensor<2> {
    timed(Op::BlockLinear, || {
        let shape = [others.dims()[0], pivots.dims()[0]];
        assert_eq!(
            [weight.input, weight.out],
            shape,
            "the other inputs and the pivots"
        );
        if !(ours(&x) && i32s(&pivots) && i32s(&others)) {
            return plain::identity(x, pivots, others, |x| plain::block_linear(x, weight));
        }
        let (format, out) = (weight.format, weight.out);
        let minimums = weight.minimums.unwrap_or_else(|| weight.scales.clone());
        Tensor::from_dispatch(Dispatch::block_identity(
            x.into_dispatch(),
            pivots.into_dispatch(),
            others.into_dispatch(),
            weight.codes.into_dispatch(),
            weight.scales.into_dispatch(),
            minimums.into_dispatch(),
            format,
            out,
        ))
    })
}

/// Whether indices are of the type our kernels read.
fn i32s(indices: &Tensor<1, Int>) -> bool {
    indices.dtype() == DType::I32
}

/// The values `[out, in]` that the codes stand for, in f32.
pub fn dequantize(weight: BlockTensors) -> Tensor<2> {
    plain::dequantize(weight)
}

/// Rows of a block-quantised `[out, in]` matrix in f32: `[ids, in]`.
///
/// # Panics
/// For an id that is not below `out`.
pub fn block_rows(weight: BlockTensors, ids: &[u32]) -> Tensor<2> {
    plain::block_rows(weight, ids)
}

/// `x / rms(x) * gamma` over the last dimension, `gamma` `[width]` (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4).
///
/// # Panics
/// When the widths differ.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    assert_eq!(
        x.dims()[D - 1],
        gamma.dims()[0],
        "the widths of x and gamma"
    );
    timed(Op::RmsNorm, || {
        if !ours(&x) {
            return plain::rms_norm(x, gamma, epsilon);
        }
        Tensor::from_dispatch(Dispatch::rms_norm(
            x.into_dispatch(),
            gamma.into_dispatch(),
            epsilon as f32,
        ))
    })
}

/// Rotates the halves of each head: `x` `[batch, tokens, heads, head_dim]`, `cos` and `sin` `[tokens, head_dim / 2]`
/// (Su et al. 2021, arXiv 2104.09864, §3.4.2, in the half-rotation form of GPT-NeoX).
pub fn rotate(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    timed(Op::Rotary, || {
        if !ours(&x) {
            return plain::rotate(x, cos, sin);
        }
        Tensor::from_dispatch(Dispatch::rotate(
            x.into_dispatch(),
            cos.into_dispatch(),
            sin.into_dispatch(),
        ))
    })
}

/// `silu(gate) * up` (Shazeer 2020, arXiv 2002.05202).
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    timed(Op::SwiGlu, || {
        if !ours(&gate) {
            return plain::swiglu(gate, up);
        }
        Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch()))
    })
}

/// Attention of `q` `[batch, tokens, heads, head_dim]` over the first `keys` of `k` and `v`
/// `[batch, kv_heads, capacity, head_dim]`; the last `tokens` of the keys are the queries' own.
///
/// A query sees all keys before the new tokens and, of these, those up to its own. Or, with a `mask` `[tokens, span]`, all
/// before the last `span` ≥ `tokens` keys and, of these, those that are true in its row (a tree of drafted tokens); on the
/// CPU it then gets the very bits it would get if the others were not there. Scores are scaled by `1/√head_dim`. Each of the
/// `heads / kv_heads` query heads of a group reads the same keys. `k` and `v` are both f32 or both f16; products and sums
/// are those of f32.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    keys: usize,
    mask: Option<Tensor<2, Bool>>,
) -> Tensor<4> {
    timed(Op::Attention, || {
        if !ours(&q) {
            return plain::attention(q, k, v, keys, mask);
        }
        let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
        Tensor::from_dispatch(match mask {
            None => Dispatch::attend(q, k, v, keys),
            Some(mask) => Dispatch::attend_masked(q, k, v, mask.into_dispatch(), keys),
        })
    })
}

/// What attention over latents reads beside queries and latents.
pub(crate) struct LatentParts<'a> {
    pub latents: Latents<'a>,
    /// The keys' expansions, group by group; their slices are the first.
    pub keys: &'a [Expansion],
    /// The values' expansions; their slices are the keys' where latents are `joint`, else those behind.
    pub values: Values<'a>,
    /// The residual window's latents and expansions.
    pub recent: Option<Recent<'a>>,
    pub joint: bool,
    pub rotary: &'a KeyRotary,
    /// The keys' norm per head: gamma `[head_dim]` and epsilon.
    pub k_norm: Option<(Tensor<1>, f64)>,
}

/// Whether [`latent_attention`] takes these queries.
pub(crate) fn takes_latents(q: &Tensor<4>) -> bool {
    ours(q)
}

/// [`attention`] of rotated `q` `[batch, tokens, heads, head_dim]` in f32 on the CPU, over keys and values that are rebuilt
/// from latents; the last `tokens` that the cache holds are the queries' own.
///
/// # Panics
/// When shapes, slices and groups do not fit each other.
pub(crate) fn latent_attention(
    q: Tensor<4>,
    parts: LatentParts<'_>,
    mask: Option<Tensor<2, Bool>>,
) -> Tensor<4> {
    timed(Op::Attention, || {
        let (shape, device) = (q.dims(), q.device());
        let [batch, tokens, heads, head_dim] = shape;
        let numbers = |data: TensorData| data.try_into_vec::<f32>().expect("f32");
        let q = numbers(q.into_data());
        let gamma = parts.k_norm.map(|(gamma, epsilon)| {
            let gamma = numbers(gamma.cast(DType::F32).into_data());
            (gamma, epsilon as f32)
        });
        let mask: Option<Vec<u8>> =
            mask.map(|mask| mask.into_data().iter::<bool>().map(u8::from).collect());
        let mut out = vec![0.0; q.len()];
        let work = LatentAttention {
            sizes: attention::Sizes {
                batch,
                tokens,
                heads,
                kv_heads: parts.keys.iter().map(|group| group.heads).sum(),
                head_dim,
                keys: parts.latents.length,
            },
            q: &q,
            latents: parts.latents,
            keys: parts.keys,
            values: parts.values,
            recent: parts.recent,
            joint: parts.joint,
            rotary: parts.rotary,
            k_norm: gamma
                .as_ref()
                .map(|(gamma, epsilon)| (&gamma[..], *epsilon)),
            mask: mask.as_deref(),
        };
        work.run(simd::Level::best(), &mut out);
        Tensor::from_data(TensorData::new(out, shape), (&device, DType::F32))
    })
}
