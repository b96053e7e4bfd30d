//! Each model family against the PyTorch reference library: a tiny random model, saved by transformers.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use cinder::models::Precision;
use cinder::models::cache::CacheFormat;
use cinder::models::decode::{SamplingSettings, generate};
use cinder::models::progress::Silent;
use cinder::models::{Checkpoint, Decoder};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    ids: Vec<u32>,
    /// The tokens whose logits were kept.
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

fn goldens() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens"))
}

fn load(model: PathBuf) -> Decoder {
    Checkpoint::open(&model)
        .and_then(|c| c.load(Precision::F32, &Device::flex(), &Silent))
        .unwrap_or_else(|e| panic!("{e}"))
}

fn golden(family: &str) -> Golden {
    let path = goldens().join("families").join(family).join("golden.json");
    serde_json::from_slice(&std::fs::read(path).expect("golden")).expect("golden")
}

/// Logits of every kept position within 1e-4, and the greedy continuation token for token.
fn agrees(mut decoder: Decoder, golden: &Golden) {
    let hidden = decoder
        .hidden(std::slice::from_ref(&golden.ids), None)
        .expect("runs");
    let [_, tokens, width] = hidden.dims();
    let hidden: Tensor<2> = hidden.reshape([tokens, width]);
    for (position, expected) in golden.positions.iter().zip(&golden.logits) {
        let logits = decoder.logits(hidden.clone().narrow(0, *position, 1));
        let logits = logits.into_data().try_into_vec::<f32>().expect("f32");
        assert_eq!(logits.len(), expected.len());
        for (token, (ours, theirs)) in logits.iter().zip(expected).enumerate() {
            assert!(
                (ours - theirs).abs() < 1e-4,
                "position {position}, token {token}: {ours} but the reference says {theirs}"
            );
        }
    }
    let settings = SamplingSettings::GREEDY;
    let generation = generate(
        &mut decoder,
        &golden.ids[..8],
        golden.greedy.len(),
        &[],
        settings,
        &mut |_| Ok(()),
    );
    assert_eq!(generation.expect("runs").ids, golden.greedy);
}

macro_rules! families {
    ($($name:ident: $folder:literal),* $(,)?) => {
        $(#[test]
        fn $name() {
            agrees(load(goldens().join("families").join($folder)), &golden($folder));
        })*
    };
}

families! {
    llama2_is_multi_head_and_untied: "llama2",
    llama3_scales_its_rotary_frequencies_and_is_bf16: "llama3",
    llama_with_linear_rotary_scaling: "llama_linear",
    smollm2_is_tied_and_sharded: "smollm2",
    mistral_has_its_own_head_width_and_is_f16: "mistral",
    qwen2_has_biases_on_query_key_and_value: "qwen2",
    qwen3_normalises_queries_and_keys: "qwen3",
}

#[test]
fn gguf_files_give_the_same_logits() {
    for (file, family) in [
        ("tiny-llama.gguf", "llama2"),
        ("tiny-qwen2.gguf", "qwen2"),
        ("tiny-qwen3.gguf", "qwen3"),
    ] {
        agrees(load(goldens().join("gguf").join(file)), &golden(family));
    }
}

/// `config_v4.json` is the same configuration in the words transformers used before version 5.
#[test]
fn older_configurations_mean_the_same() {
    for family in ["llama3", "llama_linear"] {
        let source = goldens().join("families").join(family);
        let folder = tempfile::tempdir().expect("temp");
        std::fs::copy(
            source.join("config_v4.json"),
            folder.path().join("config.json"),
        )
        .expect("copies");
        std::fs::copy(
            source.join("model.safetensors"),
            folder.path().join("model.safetensors"),
        )
        .expect("copies");
        agrees(load(folder.path().into()), &golden(family));
    }
}

/// At every precision a token's hidden state is the same, bit for bit, whether it comes alone or among others.
#[test]
fn decoding_is_prefilling_bit_for_bit() {
    for family in ["llama2", "qwen2", "qwen3", "smollm2"] {
        let checkpoint = Checkpoint::open(&goldens().join("families").join(family)).expect("opens");
        let ids = golden(family).ids;
        let mut exact = Vec::new();
        for precision in Precision::ALL {
            let mut decoder = checkpoint
                .load(precision, &Device::flex(), &Silent)
                .expect("loads");
            if precision == Precision::F16 {
                // What a cache rounds, a pass without one rounds too.
                decoder.set_cache_format(CacheFormat::F16).expect("dense");
            }
            let values = |t: Tensor<3>| {
                decoder
                    .logits(t)
                    .into_data()
                    .try_into_vec::<f32>()
                    .expect("f32")
            };
            let whole = values(
                decoder
                    .hidden(std::slice::from_ref(&ids), None)
                    .expect("runs"),
            );
            assert!(whole.iter().all(|v| v.is_finite()));
            for size in [1, 5] {
                let mut cache = decoder.new_cache(0);
                let parts = ids.chunks(size).map(|part| {
                    let part = [part.to_vec()];
                    decoder.hidden(&part, Some(&mut cache)).expect("runs")
                });
                let parts = values(Tensor::cat(parts.collect(), 1));
                assert_eq!(parts, whole, "{family} {precision} {size}");
            }
            if precision == Precision::F32 {
                exact = whole;
                continue;
            }
            // Narrower weights stay near the exact ones: the tiny models' logits are of the order of 1.
            let pairs = || exact.iter().zip(&whole);
            let size = exact.iter().map(|v| v * v).sum::<f32>().sqrt();
            let off = pairs().map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt() / size;
            let allowed = match precision {
                Precision::F16 => 2e-3,
                Precision::Bf16 | Precision::Q8 => 3e-2,
                _ => 0.4,
            };
            assert!(off < allowed, "{family} {precision}: {off}");
        }
    }
}

/// Continuing from a cache several tokens at a time, and in a batch, is the same as one pass over the whole.
#[test]
fn a_cache_continues_where_it_stopped() {
    for family in ["llama3", "mistral", "qwen3"] {
        let decoder = load(goldens().join("families").join(family));
        let rows = [
            golden(family).ids,
            golden(family).ids.into_iter().rev().collect::<Vec<u32>>(),
        ];
        let values = |t: Tensor<3>| t.into_data().try_into_vec::<f32>().expect("f32");
        let whole = values(decoder.hidden(&rows, None).expect("runs"));
        let mut cache = decoder.new_cache(0);
        let mut parts = Vec::new();
        for (start, end) in [(0, 7), (7, 8), (8, 19), (19, 24)] {
            let part: Vec<Vec<u32>> = rows.iter().map(|row| row[start..end].to_vec()).collect();
            parts.push(decoder.hidden(&part, Some(&mut cache)).expect("runs"));
        }
        assert_eq!(cache.length(), 24);
        let joined = values(Tensor::cat(parts, 1));
        assert_eq!(whole.len(), joined.len());
        for (a, b) in whole.iter().zip(&joined) {
            assert!((a - b).abs() < 1e-4, "{family}: {a} {b}");
        }
        // A cache of another batch, or of another model, is refused.
        assert!(decoder.hidden(&rows[..1], Some(&mut cache)).is_err());
        let mut other =
            cinder::models::cache::KvCache::new(vec![decoder.layers[0].attention.new_cache(0)]);
        assert!(decoder.hidden(&rows, Some(&mut other)).is_err());
    }
}
