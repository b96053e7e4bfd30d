//! Every operation of the decoder against plain Burn, at the default model's sizes.
//!
//! `cargo bench` prints both; `ours` over `stock` is what the kernels bring on this machine. Sizes are those of
//! SmolLM2-135M: hidden 576, 9 query heads and 3 key heads of 64, feed-forward 1536.

use std::hint::black_box;
use std::time::Duration;

use burn::module::Param;
use burn::nn::{Linear, RmsNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Distribution, Tensor};
use cinder::models::ops::{self, BlockFormat, LowBit};
use cinder::models::projection::{BlockLinear, LowRank, Projection};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const HIDDEN: usize = 576;
const NEURONS: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

/// One, some and many rows: decoding, verifying, prefilling.
const ROWS: [usize; 3] = [1, 16, 512];

fn linear(c: &mut Criterion) {
    for (name, input, out) in [("up", HIDDEN, NEURONS), ("down", NEURONS, HIDDEN)] {
        let mut group = c.benchmark_group(format!("linear {name} {input}x{out}"));
        let weight = random([out, input]).transpose();
        let stock = random([input, out]);
        let dense = Linear {
            weight: Param::from_tensor(weight.clone()),
            bias: None,
        };
        for rows in ROWS {
            let x = random([rows, input]);
            group.throughput(Throughput::ElementsAndBytes {
                elements: (2 * rows * input * out) as u64,
                bytes: (4 * input * out) as u64,
            });
            group.bench_with_input(BenchmarkId::new("stock f32", rows), &x, |b, x| {
                b.iter(|| black_box(x.clone().matmul(stock.clone())));
            });
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let weight = weight.clone().transpose().cast(dtype).transpose();
                group.bench_with_input(
                    BenchmarkId::new(format!("ours {dtype:?}"), rows),
                    &x,
                    |b, x| {
                        b.iter(|| black_box(ops::linear(x.clone(), weight.clone())));
                    },
                );
            }
            let low = |bits, group| LowBit::new(bits, group).map(BlockFormat::Low);
            let low = [low(2, 32), low(3, 64), low(4, 64), low(4, 128), low(8, 64)];
            let own = [BlockFormat::Q8, BlockFormat::Q4, BlockFormat::Q4Min];
            for format in own.into_iter().chain(low.into_iter().flatten()) {
                let blocks = BlockLinear::quantize(&dense, format).expect("f32");
                let blocks = Projection::Quantized(blocks);
                let name = match format {
                    BlockFormat::Low(low) => format!("ours {low}"),
                    own => format!("ours {own:?}"),
                };
                group.bench_with_input(BenchmarkId::new(name, rows), &x, |b, x| {
                    b.iter(|| black_box(blocks.forward(x.clone())));
                });
            }
        }
    }
}

/// Rank of the factors at a keep ratio of 0.6 or so; like most ranks it is no multiple of a vector.
const RANK: usize = 230;

/// A projection in its compressed forms beside the dense one. Throughput is that of the multiplications each form has, so
/// that a form is as good as the dense one when it reaches the same.
fn factors(c: &mut Criterion) {
    for (name, input, out) in [("q", HIDDEN, HIDDEN), ("up", HIDDEN, NEURONS)] {
        let mut group = c.benchmark_group(format!("factors {name} {input}x{RANK}x{out}"));
        let dense = Projection::from(Linear {
            weight: Param::from_tensor(random([out, input]).transpose()),
            bias: None,
        });
        let low_rank = LowRank::new(random([input, RANK]), random([RANK, out]), None);
        let pivots: Vec<usize> = (0..RANK).map(|i| i * input / RANK).collect();
        let weight = random([input - RANK, RANK]);
        let expansion = random([RANK, out]);
        let identity = LowRank::with_identity(&pivots, input, weight, expansion, None);
        for rows in ROWS {
            let x = random([rows, input]);
            for projection in [
                &dense,
                &Projection::LowRank(low_rank.clone()),
                &Projection::LowRank(identity.clone()),
            ] {
                group.throughput(Throughput::Elements(2 * rows as u64 * projection.scalars()));
                let id = BenchmarkId::new(projection.kind(), rows);
                group.bench_with_input(id, &x, |b, x| {
                    b.iter(|| black_box(projection.forward(x.clone())));
                });
            }
        }
    }
}

/// Keys after which 512 tokens, and one token, are attended.
fn attend(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for (tokens, keys) in [(1, 128), (1, 1024), (16, 1024), (512, 512), (2048, 2048)] {
        let q = random([1, tokens, HEADS, HEAD_DIM]);
        let (k, v) = (
            random([1, KV_HEADS, keys, HEAD_DIM]),
            random([1, KV_HEADS, keys, HEAD_DIM]),
        );
        let name = format!("{tokens} over {keys}");
        group.bench_function(BenchmarkId::new("ours", &name), |b| {
            b.iter(|| black_box(ops::attention(q.clone(), k.clone(), v.clone(), keys, None)));
        });
        // Burn's own needs no mask for one query, or for as many queries as keys.
        if tokens != 1 && tokens != keys {
            continue;
        }
        let options = AttentionModuleOptions {
            is_causal: tokens > 1,
            ..Default::default()
        };
        group.bench_function(BenchmarkId::new("stock", &name), |b| {
            b.iter(|| {
                let q = q.clone().swap_dims(1, 2);
                black_box(attention(q, k.clone(), v.clone(), None, None, options))
            });
        });
    }
}

fn elementwise(c: &mut Criterion) {
    for rows in [1, 512] {
        let mut group = c.benchmark_group(format!("{rows} rows"));
        let x = random([rows, HIDDEN]);
        let norm = RmsNormConfig::new(HIDDEN).init(&Device::flex());
        group.bench_function("rms_norm stock", |b| {
            b.iter(|| black_box(norm.forward(x.clone())))
        });
        group.bench_function("rms_norm ours", |b| {
            b.iter(|| black_box(ops::rms_norm(x.clone(), norm.gamma.val(), norm.epsilon)));
        });
        let (gate, up) = (random([rows, NEURONS]), random([rows, NEURONS]));
        group.bench_function("swiglu stock", |b| {
            b.iter(|| black_box(silu(gate.clone()) * up.clone()))
        });
        group.bench_function("swiglu ours", |b| {
            b.iter(|| black_box(ops::swiglu(gate.clone(), up.clone())));
        });
        let heads = x.reshape([1, rows, HEADS, HEAD_DIM]);
        let (cos, sin) = (random([rows, HEAD_DIM / 2]), random([rows, HEAD_DIM / 2]));
        group.bench_function("rotary stock", |b| {
            b.iter(|| {
                let parts = heads.clone().split(HEAD_DIM / 2, 3);
                let (first, second) = (parts[0].clone(), parts[1].clone());
                let each = |t: &Tensor<2>| t.clone().unsqueeze_dim::<3>(1).unsqueeze::<4>();
                let turned = first.clone() * each(&cos) - second.clone() * each(&sin);
                black_box(Tensor::cat(
                    vec![turned, second * each(&cos) + first * each(&sin)],
                    3,
                ))
            });
        });
        group.bench_function("rotary ours", |b| {
            b.iter(|| black_box(ops::rotate(heads.clone(), cos.clone(), sin.clone())));
        });
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
}

criterion_group! { name = decoder; config = settings(); targets = linear, factors, attend, elementwise }
criterion_main!(decoder);
