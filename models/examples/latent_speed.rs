//! Milliseconds of attention for new tokens, over a dense cache and over latents.
//!
//! `latent_speed [CONTEXT] [LAYERS] [ROUNDS] [TOKENS] [KIND] [WINDOW]`: attention of SmolLM2-135M's shape (9 heads, 3 KV heads of
//! 64), TOKENS new tokens (1) over CONTEXT, their own included. LAYERS caches of each kind are walked one after another, as a
//! model does, so that they come from memory; the kinds take turns within a round, and the fastest of ROUNDS counts: what is
//! compared was measured together. With KIND, of latents only those whose name has it. With WINDOW, packed latents have a
//! residual window of so many tokens.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, Tensor};
use cinder_models::cache::{CacheFormat, DenseCache, LatentCache};
use cinder_models::decoder::{Rotary, RotaryTable};
use cinder_models::projection::{GroupHeads, Matrix};
use cinder_models::{ModelConfig, ops};

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "hidden_act": "silu"}"#;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// Keys and values of `groups` slices each, of these ranks; joint slices of both ranks together.
fn parts(groups: usize, rank: usize, joint: bool) -> GroupHeads {
    let linear = |input: usize, out: usize| {
        Matrix::Float(Linear {
            weight: Param::from_tensor(random([input, out])),
            bias: None,
        })
    };
    let expansions = || (0..groups).map(|_| linear(rank, KV_HEADS / groups * HEAD_DIM));
    let total = rank * groups * if joint { 1 } else { 2 };
    GroupHeads::new(
        linear(1, total),
        expansions().collect(),
        expansions().collect(),
        joint,
    )
}

/// One kind of cache: a name, bytes of a token, and what attends with a layer's cache.
struct Kind {
    name: String,
    bytes_per_token: u64,
    attend: Box<dyn Fn(usize)>,
    best: f64,
}

fn latent(
    name: &str,
    parts: &GroupHeads,
    format: CacheFormat,
    [context, tokens, layers, window]: [usize; 4],
    table: &RotaryTable,
) -> Kind {
    let latents = random([1, context, parts.rank()]);
    let window = if format.is_packed() { window } else { 0 };
    let cache = LatentCache::new(&parts.ranks(), format, context);
    let mut cache = cache.with_residual_window(window);
    if tokens < context {
        cache.append(latents.clone().narrow(1, 0, context - tokens));
    }
    cache.append(latents.narrow(1, context - tokens, tokens));
    let caches: Vec<LatentCache> = vec![cache; layers];
    // A clone of its own, so that only the forms of this format are prepared.
    let (parts, table) = (parts.clone(), table.clone());
    let q = random([1, tokens, HEADS, HEAD_DIM]);
    Kind {
        name: format!("{name} {format}"),
        bytes_per_token: format.latent_bytes(&parts.ranks()),
        attend: Box::new(move |layer| {
            std::hint::black_box(parts.attend(q.clone(), &caches[layer], None, &table));
        }),
        best: f64::INFINITY,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (context, layers, rounds) = (number(8192)?, number(8)?, number(7)?);
    let tokens = number(1)?;
    let config = ModelConfig::from_json(CONFIG, Path::new("config.json"))?;
    let table = Rotary::new(&config).table(context - tokens, tokens, &Device::flex());

    let q = random([1, tokens, HEADS, HEAD_DIM]);
    let dense = |format: CacheFormat| {
        let filled = |_| {
            let shape = [1, KV_HEADS, context, HEAD_DIM];
            let mut cache = DenseCache::new(context, format);
            cache.append(random(shape), random(shape))
        };
        let caches: Vec<_> = (0..layers).map(filled).collect();
        let q = q.clone();
        Kind {
            name: format!("dense {format}"),
            bytes_per_token: (2 * KV_HEADS * HEAD_DIM * format.bits() / 8) as u64,
            attend: Box::new(move |layer| {
                let (k, v, keys) = caches[layer].clone();
                std::hint::black_box(ops::attention(q.clone(), k, v, keys, None));
            }),
            best: f64::INFINITY,
        }
    };
    let mut kinds = vec![dense(CacheFormat::F32), dense(CacheFormat::F16)];
    let wanted = std::env::args().nth(5).unwrap_or_default();
    let window = std::env::args().nth(6);
    let window = window.map_or(Ok(0), |text| text.parse())?;
    for removed in [30, 50, 70] {
        // Latent values of all keys, a multiple of 24 that leaves what is kept of 192.
        let kept = (KV_HEADS * HEAD_DIM * (100 - removed) / 100 + 12) / 24 * 24;
        let schemes = [
            (
                format!("M  -{removed} %"),
                parts(KV_HEADS, kept / KV_HEADS, false),
            ),
            (format!("J  -{removed} %"), parts(1, kept, false)),
            (format!("KV -{removed} %"), parts(1, 2 * kept, true)),
        ];
        for (name, parts) in schemes {
            let formats = CacheFormat::ALL.into_iter();
            for format in formats.filter(|format| format!("{name} {format}").contains(&wanted)) {
                kinds.push(latent(
                    &name,
                    &parts,
                    format,
                    [context, tokens, layers, window],
                    &table,
                ));
            }
        }
    }
    for _ in 0..rounds {
        for kind in &mut kinds {
            let start = Instant::now();
            for layer in 0..layers {
                (kind.attend)(layer);
            }
            kind.best = kind.best.min(start.elapsed().as_secs_f64() / layers as f64);
        }
    }
    println!(
        "{tokens} new of {context} tokens, {layers} layers; milliseconds of one layer's attention, and how many times faster than dense f32"
    );
    let dense = kinds[0].best;
    for kind in &kinds {
        println!(
            "{:14} {:5} bytes/token  {:7.3} ms  {:5.2} x",
            kind.name,
            kind.bytes_per_token,
            kind.best * 1e3,
            dense / kind.best
        );
    }
    Ok(())
}
