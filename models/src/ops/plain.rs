//! The operations of this folder composed of plain Burn operations: for devices without kernels of our own, for autodiff,
//! and as what the kernels are tested against.

pub(super) mod backward;

use burn::tensor::activation::silu;
use burn::tensor::module::attention as scaled;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use super::BlockTensors;
use super::blocks::{BLOCK, PANEL};
use super::quantized::{MOST, SMALLEST};

/// See [`super::linear`].
pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    match weight.dtype() {
        DType::BF16 => x
            .cast(DType::BF16)
            .cast(DType::F32)
            .matmul(weight.cast(DType::F32)),
        DType::F16 => x.matmul(weight.cast(DType::F32)),
        _ => x.matmul(weight),
    }
}

/// See [`super::block_linear`].
pub(super) fn block_linear(x: Tensor<2>, weight: BlockTensors) -> Tensor<2> {
    let [rows, input] = x.dims();
    let filled = input.next_multiple_of(BLOCK);
    let blocks = match filled - input {
        0 => x,
        more => {
            let device = x.device();
            Tensor::cat(vec![x, Tensor::zeros([rows, more], &device)], 1)
        }
    }
    .reshape([rows, filled / BLOCK, BLOCK]);
    let largest = blocks.clone().abs().max_dim(2);
    let small = largest.clone().lower_elem(SMALLEST);
    let scale = (largest / MOST).mask_fill(small, 1.0);
    let rounded = (blocks / scale.clone()).round() * scale;
    let rounded = rounded.reshape([rows, filled]).narrow(1, 0, input);
    rounded.matmul(dequantize(weight).transpose())
}

/// See [`super::identity`] and [`super::block_identity`]; `product` is that with the weight.
pub(super) fn identity(
    x: Tensor<2>,
    pivots: Tensor<1, Int>,
    others: Tensor<1, Int>,
    product: impl FnOnce(Tensor<2>) -> Tensor<2>,
) -> Tensor<2> {
    product(x.clone().select(1, others)) + x.select(1, pivots)
}

/// See [`super::block_rows`].
pub(super) fn block_rows(weight: BlockTensors, ids: &[u32]) -> Tensor<2> {
    assert!(
        ids.iter().all(|id| (*id as usize) < weight.out),
        "a row outside the matrix"
    );
    let device = weight.scales.device();
    let index = |values: Vec<i32>| {
        let n = values.len();
        Tensor::<1, Int>::from_data(TensorData::new(values, [n]), &device)
    };
    // Only the panels that have the rows are unpacked.
    let panels: Vec<i32> = ids.iter().map(|id| (*id as usize / PANEL) as i32).collect();
    let rows = ids
        .iter()
        .enumerate()
        .map(|(i, id)| (i * PANEL + *id as usize % PANEL) as i32);
    let rows = index(rows.collect());
    let panels = index(panels);
    let picked = BlockTensors {
        format: weight.format,
        out: ids.len() * PANEL,
        input: weight.input,
        codes: weight.codes.select(0, panels.clone()),
        scales: weight.scales.select(0, panels.clone()),
        minimums: weight.minimums.map(|m| m.select(0, panels)),
    };
    dequantize(picked).select(0, rows)
}

/// The values `[out, in]` that the codes stand for, in f32.
pub(super) fn dequantize(weight: BlockTensors) -> Tensor<2> {
    let [panels, blocks, _] = weight.codes.dims();
    let codes = weight.codes.cast(DType::I32);
    // The quads that lie in the same bytes, one behind the other: codes of `bits` from the lowest bits up.
    let spread = |bytes: Tensor<3, Int>, bits: usize| {
        let lines = bytes.dims()[2] / 64;
        let bytes = bytes.reshape([panels, blocks, lines, 1, PANEL * 4]);
        let parts = (0..8 / bits).map(|i| {
            let shifted = bytes.clone().bitwise_right_shift_scalar((i * bits) as i32);
            shifted.bitwise_and_scalar((1 << bits) - 1)
        });
        Tensor::cat(parts.collect(), 3).reshape([panels, blocks, BLOCK / 4, PANEL, 4])
    };
    // [panels, blocks, quads of inputs, rows, inputs of a quad]
    let codes = match weight.format.bits() {
        3 => {
            let pairs = PANEL * BLOCK / 4;
            let low = spread(codes.clone().narrow(2, 0, pairs), 2);
            let high = spread(codes.narrow(2, pairs, PANEL * 4), 1);
            low + high * 4
        }
        bits => spread(codes, bits),
    };
    // [panels, rows, blocks, inputs of a block]
    let codes = codes
        .permute([0, 3, 1, 2, 4])
        .reshape([panels, PANEL, blocks, BLOCK])
        .float()
        .cast(DType::F32);
    let (groups, share) = (weight.scales.dims()[1], weight.format.group() / BLOCK);
    let of_row = |t: Tensor<3>| {
        let groups_of_row = t.cast(DType::F32).permute([0, 2, 1]).unsqueeze_dim::<4>(3);
        let each = groups_of_row.repeat_dim(3, share);
        let each = each.reshape([panels, PANEL, groups * share]);
        each.narrow(2, 0, blocks).unsqueeze_dim::<4>(3)
    };
    let zero = f32::from(weight.format.zero());
    let mut values = (codes - zero) * of_row(weight.scales);
    if let Some(minimums) = weight.minimums {
        values = values + of_row(minimums);
    }
    values
        .reshape([panels * PANEL, blocks * BLOCK])
        .slice([0..weight.out, 0..weight.input])
}

/// See [`super::rms_norm`].
pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let rms = (x.clone().square().mean_dim(D - 1) + epsilon).sqrt();
    x / rms * gamma.unsqueeze()
}

/// See [`super::rotate`].
pub(super) fn rotate(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let parts = x.split(half, 3);
    let (a, b) = (parts[0].clone(), parts[1].clone());
    let each_head = |table: Tensor<2>| table.unsqueeze_dim::<3>(1).unsqueeze::<4>();
    let (cos, sin) = (each_head(cos), each_head(sin));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos + a * sin;
    Tensor::cat(vec![first, second], 3)
}

/// See [`super::swiglu`].
pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    silu(gate) * up
}

/// See [`super::attention`].
pub(super) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    keys: usize,
    mask: Option<Tensor<2, Bool>>,
) -> Tensor<4> {
    let [batch, tokens, heads, d] = q.dims();
    let kv_heads = k.dims()[1];
    let (device, dtype) = (q.device(), q.dtype());
    // Not every backend understands fewer key heads than query heads; some read out of bounds.
    let every_head = |x: Tensor<4>| {
        x.narrow(2, 0, keys)
            .cast(dtype)
            .unsqueeze_dim::<5>(2)
            .expand([batch, kv_heads, heads / kv_heads, keys, d])
            .reshape([batch, heads, keys, d])
    };
    let (q, k, v) = (q.swap_dims(1, 2), every_head(k), every_head(v));
    let past = keys - tokens;
    let options = |is_causal| AttentionModuleOptions {
        is_causal,
        ..Default::default()
    };
    if mask.is_none() && past == 0 {
        return scaled(q, k, v, None, None, options(true)).swap_dims(1, 2);
    }
    // Where the diagonal starts differs between backends once there is a past: say it with a mask.
    let seen: Tensor<2, Bool> = match mask {
        None => causal(past, tokens, &device),
        Some(mask) if mask.dims()[1] == keys => mask,
        Some(mask) => {
            let past = keys - mask.dims()[1];
            let before = Tensor::<2, Int>::ones([tokens, past], &device).bool();
            Tensor::cat(vec![before, mask], 1)
        }
    };
    let hidden = seen
        .bool_not()
        .unsqueeze::<4>()
        .expand([batch, heads, tokens, keys]);
    scaled(q, k, v, Some(hidden), None, options(false)).swap_dims(1, 2)
}

/// Which of the `past + tokens` keys each of the last `tokens` sees: those up to its own.
fn causal(past: usize, tokens: usize, device: &Device) -> Tensor<2, Bool> {
    let keys = past + tokens;
    let row = Tensor::<1, Int>::arange(past as i64..keys as i64, device);
    let column = Tensor::<1, Int>::arange(0..keys as i64, device);
    column
        .unsqueeze_dim::<2>(0)
        .repeat_dim(0, tokens)
        .lower_equal(row.unsqueeze_dim::<2>(1).repeat_dim(1, keys))
}
