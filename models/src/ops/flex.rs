//! The kernels as operations of the flex backend: shapes and memory on this side, arithmetic on the other.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, Flex, backend_extension};
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use half::{bf16, f16};

use super::attention::{self, Strided};
use super::blocks::{BlockFormat, BlocksView};
use super::cross_entropy::{self, Target};
use super::elementwise;
use super::gather;
use super::linear::{self, Bf16, F16, F32, Sizes};
use super::quantized;

/// Operations that flex has kernels of ours for. The functions of [`super`] say what they do.
#[backend_extension(Flex)]
pub(super) trait DecoderOps: Backend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn by_output(weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn block_linear(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        minimums: FloatTensor<Self>,
        format: BlockFormat,
        out: usize,
    ) -> FloatTensor<Self>;
    fn identity(
        x: FloatTensor<Self>,
        pivots: IntTensor<Self>,
        others: IntTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    #[allow(clippy::too_many_arguments, reason = "a matrix in blocks is five")]
    fn block_identity(
        x: FloatTensor<Self>,
        pivots: IntTensor<Self>,
        others: IntTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        minimums: FloatTensor<Self>,
        format: BlockFormat,
        out: usize,
    ) -> FloatTensor<Self>;
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        keys: usize,
    ) -> FloatTensor<Self>;
    fn attend_masked(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        keys: usize,
    ) -> FloatTensor<Self>;
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    fn attend_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: Vec<Target>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// A tensor whose values lie in order, without gaps.
fn packed(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() {
        x
    } else {
        x.to_contiguous()
    }
}

/// The values of a tensor without gaps, in the order they lie: [`packed`], or a weight that [`lies_by_output`].
fn values<E: burn::tensor::Element + bytemuck::Pod>(x: &FlexTensor) -> &[E] {
    let start = x.layout().start_offset();
    &x.storage::<E>()[start..start + x.layout().num_elements()]
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    let layout = Layout::contiguous(shape.into());
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// The values of a tensor that nobody else holds, in order and for changing; a copy when somebody does.
fn owned(x: FlexTensor) -> FlexTensor {
    let whole = x.is_contiguous()
        && x.layout().start_offset() == 0
        && x.bytes().len() == x.layout().num_elements() * size_of::<f32>();
    match whole && x.is_unique() {
        true => x,
        false => tensor(
            values::<f32>(&packed(x.clone())).to_vec(),
            x.layout().shape().clone(),
        ),
    }
}

/// Whether each column of `[in, out]` lies together, the columns one behind the other.
fn lies_by_output(weight: &FlexTensor) -> bool {
    let input = weight.layout().shape()[0] as isize;
    let strides = weight.layout().strides();
    strides[0] == 1 && strides[1] == input
}

impl DecoderOps for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let (x, weight) = (packed(x), Self::by_output(weight));
        let sizes = Sizes {
            rows: x.layout().shape()[0],
            width: x.layout().shape()[1],
            out: weight.layout().shape()[1],
        };
        let mut y = vec![0.0; sizes.rows * sizes.out];
        let rows = values::<f32>(&x);
        match weight.dtype() {
            DType::F32 => linear::linear::<F32>(sizes, rows, values::<f32>(&weight), &mut y),
            DType::F16 => {
                let w = bytemuck::cast_slice(values::<f16>(&weight));
                linear::linear::<F16>(sizes, rows, w, &mut y);
            }
            DType::BF16 => {
                let w = bytemuck::cast_slice(values::<bf16>(&weight));
                linear::linear::<Bf16>(sizes, &elementwise::to_bf16(rows), w, &mut y);
            }
            other => panic!("a weight of {other:?}: f32, f16 and bf16 are multiplied"),
        }
        tensor(y, [sizes.rows, sizes.out])
    }

    fn by_output(weight: FlexTensor) -> FlexTensor {
        match lies_by_output(&weight) {
            true => weight,
            false => weight.transpose(0, 1).to_contiguous().transpose(0, 1),
        }
    }

    fn block_linear(
        x: FlexTensor,
        codes: FlexTensor,
        scales: FlexTensor,
        minimums: FlexTensor,
        format: BlockFormat,
        out: usize,
    ) -> FlexTensor {
        let (x, codes, scales, minimums) =
            (packed(x), packed(codes), packed(scales), packed(minimums));
        let (rows, input) = (x.layout().shape()[0], x.layout().shape()[1]);
        let view = BlocksView {
            format,
            out,
            input,
            codes: values::<u8>(&codes),
            scales: values::<f16>(&scales),
            minimums: values::<f16>(&minimums),
        };
        let mut y = vec![0.0; rows * out];
        quantized::linear(rows, values(&x), view, &mut y);
        tensor(y, [rows, out])
    }

    fn identity(
        x: FlexTensor,
        pivots: FlexTensor,
        others: FlexTensor,
        weight: FlexTensor,
    ) -> FlexTensor {
        let x = packed(x);
        add_picked(Self::linear(pick(&x, others), weight), &x, pivots)
    }

    fn block_identity(
        x: FlexTensor,
        pivots: FlexTensor,
        others: FlexTensor,
        codes: FlexTensor,
        scales: FlexTensor,
        minimums: FlexTensor,
        format: BlockFormat,
        out: usize,
    ) -> FlexTensor {
        let x = packed(x);
        let rest = pick(&x, others);
        let y = Self::block_linear(rest, codes, scales, minimums, format, out);
        add_picked(y, &x, pivots)
    }

    fn rms_norm(x: FlexTensor, gamma: FlexTensor, epsilon: f32) -> FlexTensor {
        let (x, gamma) = (packed(x), packed(gamma));
        let mut y = vec![0.0; x.layout().num_elements()];
        elementwise::rms_norm(values(&x), values(&gamma), epsilon, &mut y);
        tensor(y, x.layout().shape().clone())
    }

    fn rotate(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        let (mut x, cos, sin) = (owned(x), packed(cos), packed(sin));
        let shape = x.layout().shape();
        let sizes = [shape[1], shape[2], shape[3]];
        elementwise::rotate(x.storage_mut::<f32>(), values(&cos), values(&sin), sizes);
        x
    }

    fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let (mut gate, up) = (owned(gate), packed(up));
        elementwise::swiglu(gate.storage_mut::<f32>(), values(&up));
        gate
    }

    fn attend(q: FlexTensor, k: FlexTensor, v: FlexTensor, keys: usize) -> FlexTensor {
        attend(q, k, v, None, keys)
    }

    fn attend_masked(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: FlexTensor,
        keys: usize,
    ) -> FlexTensor {
        attend(q, k, v, Some(packed(mask)), keys)
    }

    fn rms_norm_backward(
        x: FlexTensor,
        gamma: FlexTensor,
        gradient: FlexTensor,
        epsilon: f32,
    ) -> FlexTensor {
        let (x, gamma, gradient) = (packed(x), packed(gamma), packed(gradient));
        let mut out = vec![0.0; x.layout().num_elements()];
        elementwise::backward::rms_norm_backward(
            values(&x),
            values(&gamma),
            epsilon,
            values(&gradient),
            &mut out,
        );
        tensor(out, x.layout().shape().clone())
    }

    fn swiglu_backward(
        gate: FlexTensor,
        up: FlexTensor,
        gradient: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (mut gate, mut up, gradient) = (owned(gate), owned(up), packed(gradient));
        elementwise::backward::swiglu_backward(
            gate.storage_mut::<f32>(),
            up.storage_mut::<f32>(),
            values(&gradient),
        );
        (gate, up)
    }

    fn attend_backward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        gradient: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (q, k, v, gradient) = (packed(q), readable(k), readable(v), packed(gradient));
        let sizes = attention_sizes(&q, &k, &v, q.layout().shape()[1]);
        let keys = sizes.batch * sizes.tokens * sizes.kv_heads * sizes.head_dim;
        let mut of_q = vec![0.0; q.layout().num_elements()];
        let (mut of_k, mut of_v) = (vec![0.0; keys], vec![0.0; keys]);
        attention::backward::attention_backward(
            sizes,
            values(&q),
            strided(&k),
            strided(&v),
            values(&gradient),
            attention::backward::Gradients {
                q: &mut of_q,
                k: &mut of_k,
                v: &mut of_v,
            },
        );
        let by_token = [sizes.batch, sizes.tokens, sizes.kv_heads, sizes.head_dim];
        let by_head = |x: Vec<f32>| tensor(x, by_token).transpose(1, 2);
        (
            tensor(of_q, q.layout().shape().clone()),
            by_head(of_k),
            by_head(of_v),
        )
    }

    fn cross_entropy(logits: FlexTensor, targets: Vec<Target>) -> (FlexTensor, FlexTensor) {
        let mut logits = owned(logits);
        let mut losses = vec![0.0; targets.len()];
        cross_entropy::cross_entropy(logits.storage_mut::<f32>(), &targets, &mut losses);
        let rows = targets.len();
        (logits, tensor(losses, [rows]))
    }
}

/// The columns of a packed `x` at `indices`, of i32.
fn pick(x: &FlexTensor, indices: FlexTensor) -> FlexTensor {
    let indices = packed(indices);
    let (rows, width) = (x.layout().shape()[0], x.layout().shape()[1]);
    let picked = gather::pick(values(x), width, values(&indices));
    tensor(picked, [rows, indices.layout().num_elements()])
}

/// `y`, fresh from a product, and the columns of a packed `x` at `indices`, of i32.
fn add_picked(y: FlexTensor, x: &FlexTensor, indices: FlexTensor) -> FlexTensor {
    let (mut y, indices) = (owned(y), packed(indices));
    let width = x.layout().shape()[1];
    gather::add_picked(values(x), width, values(&indices), y.storage_mut::<f32>());
    y
}

fn attend(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    mask: Option<FlexTensor>,
    keys: usize,
) -> FlexTensor {
    let (q, k, v) = (packed(q), readable(k), readable(v));
    let sizes = attention_sizes(&q, &k, &v, keys);
    let mut out = vec![0.0; q.layout().num_elements()];
    let mask = mask.as_ref().map(|m| {
        assert_eq!(m.dtype().size(), 1, "a mask of bytes");
        let start = m.layout().start_offset();
        &m.bytes()[start..start + m.layout().num_elements()]
    });
    let queries = values(&q);
    match k.dtype() {
        DType::F16 => {
            let (k, v) = (strided::<f16>(&k), strided(&v));
            attention::attention(sizes, queries, k, v, mask, &mut out);
        }
        _ => {
            let (k, v) = (strided::<f32>(&k), strided(&v));
            attention::attention(sizes, queries, k, v, mask, &mut out);
        }
    }
    tensor(out, q.layout().shape().clone())
}

/// The sizes of `q` `[batch, tokens, heads, head_dim]` over `keys` of `k` and `v`
/// `[batch, kv_heads, capacity, head_dim]`.
fn attention_sizes(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
    keys: usize,
) -> attention::Sizes {
    let shape = q.layout().shape();
    let sizes = attention::Sizes {
        batch: shape[0],
        tokens: shape[1],
        heads: shape[2],
        head_dim: shape[3],
        kv_heads: k.layout().shape()[1],
        keys,
    };
    let (k_shape, v_shape) = (k.layout().shape(), v.layout().shape());
    assert!(
        k_shape == v_shape
            && k_shape[0] == sizes.batch
            && k_shape[2] >= keys
            && k_shape[3] == sizes.head_dim,
        "queries {shape:?}, keys {k_shape:?}, values {v_shape:?}, {keys} of them"
    );
    sizes
}

/// Keys or values that the kernel can read where they lie: each key's numbers together.
fn readable(x: FlexTensor) -> FlexTensor {
    let strides = x.layout().strides();
    match strides[3] == 1 && strides.iter().all(|s| *s >= 0) {
        true => x,
        false => x.to_contiguous(),
    }
}

fn strided<E: burn::tensor::Element + bytemuck::Pod>(x: &FlexTensor) -> Strided<'_, E> {
    let strides = x.layout().strides();
    Strided {
        values: &x.storage::<E>()[x.layout().start_offset()..],
        batch: strides[0] as usize,
        head: strides[1] as usize,
        key: strides[2] as usize,
    }
}
