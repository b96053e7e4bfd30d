//! The kernels against plain Burn, against themselves alone, and on every instruction set.

use burn::tensor::{Bool, DType, Device, Distribution, Tensor, TensorData, Tolerance};
use proptest::prelude::*;

use super::*;
use crate::projection::BlockLinear;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

fn close<const D: usize>(ours: Tensor<D>, plain: Tensor<D>, relative: f32) {
    let scale = values(plain.clone().abs().max().reshape([1]))[0];
    let tolerance = Tolerance::relative(relative).set_absolute(relative * scale.max(1e-3));
    ours.into_data()
        .assert_approx_eq::<f32>(&plain.into_data(), tolerance);
}

/// Every row computed with the others equals the row computed alone, bit for bit.
fn same_alone(x: &Tensor<2>, f: impl Fn(Tensor<2>) -> Tensor<2>) {
    let together = f(x.clone());
    for row in 0..x.dims()[0] {
        let alone = values(f(x.clone().narrow(0, row, 1)));
        assert_eq!(
            values(together.clone().narrow(0, row, 1)),
            alone,
            "row {row}"
        );
    }
}

fn dtypes() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::F16, DType::BF16])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn linear_is_plain_and_each_row_its_own(
        rows in 1usize..20, input in 1usize..150, out in 1usize..40, dtype in dtypes(), as_stored: bool,
    ) {
        let x = random([rows, input]);
        let weight = match as_stored {
            true => random([out, input]).cast(dtype).transpose(),
            false => random([input, out]).cast(dtype),
        };
        close(linear(x.clone(), weight.clone()), plain::linear(x.clone(), weight.clone()), 1e-5);
        same_alone(&x, |x| linear(x, weight.clone()));
        prop_assert_eq!(values(by_output(weight.clone()).cast(DType::F32)), values(weight.cast(DType::F32)));
    }

    #[test]
    fn block_linear_is_plain_and_each_row_its_own(
        rows in 1usize..20, input in 1usize..300, out in 1usize..40,
        format in prop::sample::select(crate::test_data::block_formats()),
    ) {
        let x = random([rows, input]);
        let device = Device::flex();
        let dense = values(random([out, input]));
        let blocks = Blocks::quantize(&dense, out, input, format);
        let expected = blocks.dequantize();
        let weight = BlockLinear::new(blocks, None, &device).tensors();
        prop_assert_eq!(values(dequantize(weight.clone())), expected.clone());
        close(block_linear(x.clone(), weight.clone()), plain::block_linear(x.clone(), weight.clone()), 2e-5);
        same_alone(&x, |x| block_linear(x, weight.clone()));
        let ids: Vec<u32> = (0..5).map(|i| (i * 7 % out) as u32).collect();
        let rows: Vec<f32> = ids.iter().flat_map(|id| expected[*id as usize * input..][..input].to_vec()).collect();
        prop_assert_eq!(values(block_rows(weight, &ids)), rows);
    }

    #[test]
    fn an_identity_block_is_plain_and_each_row_its_own(
        rows in 1usize..20, rank in 1usize..60, rest in 1usize..90, dtype in dtypes(),
        format in prop::sample::select(crate::test_data::block_formats()),
    ) {
        let (device, input) = (Device::flex(), rank + rest);
        let x = random([rows, input]);
        let indices = |values: Vec<i32>| {
            let shape = [values.len()];
            Tensor::<1, Int>::from_data(TensorData::new(values, shape), (&device, DType::I32))
        };
        // Any split of the inputs will do for the kernel; this one mixes them.
        let mut order: Vec<i32> = (0..input as i32).collect();
        order.sort_by_key(|i| (i * 37 % 101, *i));
        let (pivots, others) = (indices(order[..rank].to_vec()), indices(order[rank..].to_vec()));
        let weight = random([rank, rest]).cast(dtype).transpose();
        let ours = |x| identity(x, pivots.clone(), others.clone(), weight.clone());
        let expected = plain::identity(x.clone(), pivots.clone(), others.clone(), |x| plain::linear(x, weight.clone()));
        close(ours(x.clone()), expected, 1e-5);
        same_alone(&x, ours);
        let blocks = Blocks::quantize(&values(random([rank, rest])), rank, rest, format);
        let weight = BlockLinear::new(blocks, None, &device).tensors();
        let ours = |x| block_identity(x, pivots.clone(), others.clone(), weight.clone());
        let expected = plain::identity(x.clone(), pivots.clone(), others.clone(), |x| plain::block_linear(x, weight.clone()));
        close(ours(x.clone()), expected, 2e-5);
        same_alone(&x, ours);
    }

    #[test]
    fn norm_rotary_and_swiglu_are_plain(batch in 1usize..3, tokens in 1usize..9, heads in 1usize..4, half in 1usize..40) {
        let (rows, width) = (batch * tokens, heads * 2 * half);
        let (x, y) = (random([rows, width]), random([rows, width]));
        let gamma = random([width]);
        close(rms_norm(x.clone(), gamma.clone(), 1e-5), plain::rms_norm(x.clone(), gamma.clone(), 1e-5), 1e-5);
        same_alone(&x, |x| rms_norm(x, gamma.clone(), 1e-5));
        // Wide, so that both tails of the sigmoid are met.
        let wide = x.clone() * 120.0;
        close(swiglu(wide.clone(), y.clone()), plain::swiglu(wide, y.clone()), 1e-5);
        let (cos, sin) = (random([tokens, half]), random([tokens, half]));
        let whole = x.clone().reshape([batch, tokens, heads, 2 * half]);
        let rotated = rotate(whole.clone(), cos.clone(), sin.clone());
        close(rotated, plain::rotate(whole.clone(), cos.clone(), sin.clone()), 1e-5);
        // What somebody else still holds is not written over.
        prop_assert_eq!(values(whole), values(x));
    }

    #[test]
    fn attention_is_plain_and_each_query_its_own(
        batch in 1usize..3, tokens in 1usize..40, past in prop::sample::select(vec![0usize, 1, 63, 64, 200, 255, 300, 700]),
        kv_heads in 1usize..3, group in 1usize..4,
        d in prop::sample::select(vec![2usize, 8, 16, 24, 64, 80]), spare in 0usize..70, tree: bool, drafted in 0usize..80,
    ) {
        let keys = past + tokens;
        let span = tokens + drafted.min(past);
        let q = random([batch, tokens, kv_heads * group, d]) * 4.0;
        let k = random([batch, kv_heads, keys + spare, d]);
        let v = random([batch, kv_heads, keys + spare, d]);
        let mask = tree.then(|| {
            // Each token sees itself and, of those before it, every other one.
            let seen: Vec<bool> = (0..tokens * span).map(|i| {
                let (row, column) = (i / span + span - tokens, i % span);
                column == row || (column < row && (row + column) % 2 == 0)
            }).collect();
            Tensor::<2, Bool>::from_data(TensorData::new(seen, [tokens, span]), &Device::flex())
        });
        let ours = attention(q.clone(), k.clone(), v.clone(), keys, mask.clone());
        let expected = plain::attention(q.clone(), k.clone(), v.clone(), keys, mask.clone());
        close(ours.clone(), expected, 2e-5);
        if mask.is_none() {
            for token in [0, tokens / 2, tokens - 1] {
                let alone = attention(q.clone().narrow(1, token, 1), k.clone(), v.clone(), past + token + 1, None);
                prop_assert_eq!(values(ours.clone().narrow(1, token, 1)), values(alone));
            }
        }
        if mask.is_some() {
            // The very bits of the same query behind nothing but what it sees.
            for token in [0, tokens / 2, tokens - 1] {
                let row = token + span - tokens;
                let seen = (0..keys - span).chain((0..=row).filter(|c| (row + c) % 2 == 0).map(|c| keys - span + c));
                let seen: Vec<i32> = seen.map(|key| key as i32).collect();
                let count = seen.len();
                let seen = Tensor::<1, Int>::from_data(TensorData::new(seen, [count]), &Device::flex());
                let of = |x: &Tensor<4>| x.clone().select(2, seen.clone());
                let alone = attention(q.clone().narrow(1, token, 1), of(&k), of(&v), count, None);
                prop_assert_eq!(values(ours.clone().narrow(1, token, 1)), values(alone));
            }
        }
        // The same from memory in another order: heads and keys exchanged.
        let turned = |x: Tensor<4>| x.swap_dims(1, 2).reshape([batch, keys + spare, kv_heads * d])
            .reshape([batch, keys + spare, kv_heads, d]).swap_dims(1, 2);
        prop_assert_eq!(values(attention(q.clone(), turned(k.clone()), turned(v.clone()), keys, mask.clone())), values(ours));
        // Halves are read as the f32 they stand for.
        let halves = |x: Tensor<4>| x.cast(DType::F16);
        let rounded = |x: Tensor<4>| halves(x).cast(DType::F32);
        let of_rounded = attention(q.clone(), rounded(k.clone()), rounded(v.clone()), keys, mask.clone());
        let of_halves = attention(q.clone(), halves(k.clone()), halves(v.clone()), keys, mask.clone());
        prop_assert_eq!(values(of_halves.clone()), values(of_rounded));
        close(of_halves, plain::attention(q, halves(k), halves(v), keys, mask), 2e-5);
    }

    #[test]
    fn gradients_of_norm_rotary_and_swiglu_are_plain(rows in 1usize..9, heads in 1usize..4, half in 1usize..40) {
        let width = heads * 2 * half;
        let (x, y, g) = (random([rows, width]), random([rows, width]), random([rows, width]));
        let gamma = random([width]);
        let ours = rms_norm_backward(x.clone(), gamma.clone(), 1e-3, g.clone());
        let norm = |x, g| plain::backward::rms_norm_backward(x, gamma.clone(), 1e-3, g);
        close(ours, norm(x.clone(), g.clone()), 2e-5);
        let whole = |x: &Tensor<2>| x.clone().reshape([1, rows, heads, 2 * half]);
        let per_head = rms_norm_backward(whole(&x), gamma.clone().narrow(0, 0, 2 * half), 1e-3, whole(&g));
        let plain_head = plain::backward::rms_norm_backward(whole(&x), gamma.clone().narrow(0, 0, 2 * half), 1e-3, whole(&g));
        close(per_head, plain_head, 2e-5);
        // Wide, so that both tails of the sigmoid are met.
        let wide = x.clone() * 120.0;
        let ours = swiglu_backward(wide.clone(), y.clone(), g.clone());
        let expected = plain::backward::swiglu_backward(wide.clone(), y.clone(), g.clone());
        close(ours.0, expected.0, 1e-5);
        close(ours.1, expected.1, 1e-5);
        // The gradient of a rotation: <rotate x, g> = <x, rotate_backward g>.
        let (cos, sin) = (random([rows, half]), random([rows, half]));
        let product = |a: Tensor<4>, b: Tensor<4>| values((a * b).sum().reshape([1]))[0];
        let there = product(rotate(whole(&x), cos.clone(), sin.clone()), whole(&g));
        let back = product(whole(&x), rotate_backward(whole(&g), cos, sin));
        prop_assert!((there - back).abs() < 1e-3, "{there} and {back}");
        // What somebody else still holds is not written over.
        prop_assert_eq!(values(wide), values(x * 120.0));
    }

    #[test]
    fn gradients_of_attention_are_plain(
        batch in 1usize..3, tokens in prop::sample::select(vec![1usize, 2, 17, 63, 64, 65, 130, 200]),
        kv_heads in 1usize..3, group in 1usize..4, d in prop::sample::select(vec![2usize, 8, 16, 24, 64, 80]),
    ) {
        let heads = kv_heads * group;
        let q = random([batch, tokens, heads, d]) * 4.0;
        let (k, v) = (random([batch, kv_heads, tokens, d]), random([batch, kv_heads, tokens, d]));
        let g = random([batch, tokens, heads, d]);
        let ours = attention_backward(q.clone(), k.clone(), v.clone(), g.clone());
        let expected = plain::backward::attention_backward(q.clone(), k.clone(), v.clone(), g.clone());
        close(ours.0.clone(), expected.0, 5e-5);
        close(ours.1, expected.1, 5e-5);
        close(ours.2, expected.2, 5e-5);
        // The same from memory in another order: heads and keys exchanged.
        let turned = |x: Tensor<4>| x.swap_dims(1, 2).reshape([batch, tokens, kv_heads * d])
            .reshape([batch, tokens, kv_heads, d]).swap_dims(1, 2);
        let again = attention_backward(q, turned(k), turned(v), g);
        prop_assert_eq!(values(again.0), values(ours.0));
    }

    #[test]
    fn cross_entropy_is_plain(rows in 1usize..6, vocab in prop::sample::select(vec![1usize, 7, 16, 50, 1024, 3001]), drawn: bool) {
        let logits = random([rows, vocab]) * 6.0;
        let targets: Vec<Target> = (0..rows).map(|i| match drawn {
            true => Target::Draw((i as f64 * 0.37 + 0.11).fract()),
            false => Target::Token((i * 7 % vocab) as u32),
        }).collect();
        let (gradient, losses) = cross_entropy(logits.clone(), &targets);
        let expected = plain::backward::cross_entropy(logits, &targets);
        close(gradient, expected.0, 1e-5);
        // A loss is a difference of numbers of the logits' size, and is rounded as they are.
        close(losses + 6.0, expected.1 + 6.0, 1e-6);
    }

    #[test]
    fn log_sum_exp_is_exact(x in prop::collection::vec(-80f32..80.0, 1..3000)) {
        let top = f64::from(x.iter().copied().fold(f32::MIN, f32::max));
        let exact = top + x.iter().map(|v| (f64::from(*v) - top).exp()).sum::<f64>().ln();
        prop_assert!((log_sum_exp(&x) - exact).abs() < 2e-6, "{} for {exact}", log_sum_exp(&x));
    }
}

#[test]
fn log_sum_exp_does_not_overflow_and_does_not_hide() {
    assert!((log_sum_exp(&[1e4, 1e4]) - (1e4 + 2f64.ln())).abs() < 1e-6);
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 20, 39] {
            let mut x = [1.0; 40];
            x[at] = bad;
            assert!(!log_sum_exp(&x).is_finite());
        }
    }
}

#[test]
fn tiny_values_and_zeros_stay_small() {
    let device = Device::flex();
    for value in [0.0, 1e-44, 1e-36, 1e-31, 1e-29] {
        let x = Tensor::<2>::full([2, 64], value, &device);
        for format in [BlockFormat::Q8, BlockFormat::Q4, BlockFormat::Q4Min] {
            let blocks = Blocks::quantize(&vec![0.3; 20 * 64], 20, 64, format);
            let weight = BlockLinear::new(blocks, None, &device).tensors();
            let y = values(block_linear(x.clone(), weight.clone()));
            assert!(
                y.iter().all(|y| y.abs() <= 64.0 * value),
                "{value} {format:?}"
            );
            close(
                block_linear(x.clone(), weight.clone()),
                plain::block_linear(x.clone(), weight),
                1e-5,
            );
        }
    }
    let nothing = linear(
        Tensor::zeros([2, 0], &device),
        Tensor::zeros([0, 5], &device),
    );
    assert_eq!(values(nothing), [0.0; 10]);
}

#[test]
fn a_key_that_is_no_number_is_not_lost() {
    let device = Device::flex();
    for keys in [2, 64, 257] {
        let q = random([1, 1, 1, 16]);
        let bad = Tensor::<4>::full([1, 1, 1, 16], f32::NAN, &device);
        let k = Tensor::cat(
            vec![random([1, 1, keys, 16]).narrow(2, 0, keys - 1), bad],
            2,
        );
        let y = values(attention(q, k, random([1, 1, keys, 16]), keys, None));
        assert!(y.iter().all(|v| v.is_nan()), "{keys}");
    }
}

#[test]
fn a_gradient_that_is_no_number_is_not_lost() {
    let (device, tokens) = (Device::flex(), 70);
    let x = || random([1, tokens, 1, 16]);
    for at in [1, 65] {
        let bad = Tensor::<4>::full([1, 1, 1, 16], f32::NAN, &device);
        let (before, behind) = (x().narrow(1, 0, at), x().narrow(1, at, tokens - at - 1));
        let g = Tensor::cat(vec![before, bad, behind], 1);
        let (q, k, v) = attention_backward(x(), x().swap_dims(1, 2), x().swap_dims(1, 2), g);
        assert!(values(q.narrow(1, at, 1)).iter().all(|v| v.is_nan()));
        for of_keys in [k, v] {
            // The keys that the query has seen.
            assert!(
                values(of_keys.narrow(2, 0, at + 1))
                    .iter()
                    .all(|v| v.is_nan())
            );
        }
    }
    let (gradient, losses) = cross_entropy(
        Tensor::cat(
            vec![random([1, 40]), Tensor::full([1, 40], f32::NAN, &device)],
            0,
        ),
        &[Target::Token(3), Target::Draw(0.5)],
    );
    assert!(
        values(gradient.narrow(0, 0, 1))
            .iter()
            .all(|v| v.is_finite())
    );
    assert!(values(losses)[1].is_nan());
}

#[test]
fn what_is_not_finite_stays_so() {
    let device = Device::flex();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut data = vec![0.5; 64];
        data[40] = bad;
        let x = Tensor::<2>::from_data(TensorData::new(data, [1, 64]), &device);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let y = values(linear(x.clone(), random([20, 64]).cast(dtype).transpose()));
            assert!(y.iter().all(|v| !v.is_finite()), "{dtype:?}");
        }
        for format in [BlockFormat::Q8, BlockFormat::Q4, BlockFormat::Q4Min] {
            let blocks = Blocks::quantize(&vec![0.3; 20 * 64], 20, 64, format);
            let y = values(block_linear(
                x.clone(),
                BlockLinear::new(blocks, None, &device).tensors(),
            ));
            assert!(y.iter().all(|v| !v.is_finite()), "{format:?}");
        }
        let y = values(rms_norm(x.clone(), Tensor::ones([64], &device), 1e-5));
        assert!(y.iter().any(|v| v.is_nan()));
    }
}

#[test]
fn large_products_use_several_pieces_blocks_and_threads_and_stay_the_same() {
    let x = random([200, 5000]);
    let weight = random([70, 5000]).transpose();
    close(
        linear(x.clone(), weight.clone()),
        plain::linear(x.clone(), weight.clone()),
        1e-4,
    );
    same_alone(&x.clone().narrow(0, 120, 20), |x| linear(x, weight.clone()));
    let together = linear(x.clone(), weight.clone());
    for row in [0, 127, 128, 199] {
        let alone = linear(x.clone().narrow(0, row, 1), weight.clone());
        assert_eq!(values(together.clone().narrow(0, row, 1)), values(alone));
    }
}

#[test]
fn only_f32_on_the_cpu_is_ours() {
    assert!(ours(&random([2, 2])));
    assert!(!ours(&random([2, 2]).cast(DType::F64)));
}
