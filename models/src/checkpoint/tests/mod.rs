//! A tiny model of every kind of projection, written, read back, exported, and damaged.

mod latents;
mod malformed;

use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, Tensor};
use tempfile::TempDir;

use super::*;
use crate::config::ModelConfig;
use crate::decoder::{Decoder, DecoderLayer};
use crate::precision::Precision;
use crate::progress::Silent;
use crate::projection::{Basis, IdentityBasis, LowRank, Matrix, Projection, ProjectionGroup};

/// Two layers, hidden 32, 32 neurons, 4 heads of 8 (2 for keys and values), biases on query, key and value.
fn qwen2() -> Checkpoint {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/goldens/families/qwen2"
    );
    Checkpoint::open(path.as_ref()).expect("opens")
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-0.3, 0.3), &Device::flex())
}

/// A dense map; with the bias that the original has, if any.
fn dense(input: usize, out: usize, bias: Option<Tensor<1>>) -> Linear {
    Linear {
        weight: Param::from_tensor(random([input, out])),
        bias: bias.map(Param::from_tensor),
    }
}

fn bias(of: &Projection) -> Option<Tensor<1>> {
    of.to_dense().bias.map(|b| b.val())
}

/// Every third input and those after the 20th, as many as asked for.
fn pivots(rank: usize, input: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..input).collect();
    order.sort_by_key(|i| (i % 3 != 1 && *i < 20, *i));
    order.truncate(rank);
    order.sort_unstable();
    order
}

fn identity(rank: usize, input: usize) -> IdentityBasis {
    IdentityBasis::new(&pivots(rank, input), input, random([input - rank, rank]))
}

fn identity_block(rank: usize, input: usize, of: &Projection) -> Projection {
    let out = of.shape().0;
    Projection::LowRank(LowRank {
        basis: identity(rank, input).into(),
        expansion: dense(rank, out, bias(of)).into(),
    })
}

fn low_rank(rank: usize, input: usize, of: &Projection) -> Projection {
    let factors = (random([input, rank]), random([rank, of.shape().0]));
    Projection::LowRank(LowRank::new(factors.0, factors.1, bias(of)))
}

/// The members' expansions of a shared basis, with `out` outputs where they are not the members' own.
fn share(group: &mut ProjectionGroup, basis: Basis, out: Option<usize>) {
    let rank = basis.rank();
    let members = group.members.iter().map(|member| {
        let out = out.unwrap_or(member.shape().0);
        dense(rank, out, bias(member)).into()
    });
    *group = ProjectionGroup::shared(basis, members.collect());
}

/// Turns a layer into one of three mixtures of kinds.
fn mix(layer: &mut DecoderLayer, variant: usize) {
    let qkv = &mut layer.attention.qkv;
    let ff = &mut layer.feed_forward;
    match variant {
        // Identity blocks before attention, and 20 of the neurons.
        0 => {
            share(qkv, identity(12, 32).into(), None);
            layer.attention.output = identity_block(10, 32, &layer.attention.output);
            ff.gate_up.members = vec![dense(32, 20, None).into(), dense(32, 20, None).into()];
            ff.down = dense(20, 32, None).into();
        }
        // Each projection by itself, all inputs pivots in one, and factors of 17 neurons.
        1 => {
            qkv.members[0] = identity_block(32, 32, &qkv.members[0]);
            qkv.members[1] = low_rank(5, 32, &qkv.members[1]);
            layer.attention.output = low_rank(7, 32, &layer.attention.output);
            let basis = Matrix::from(dense(32, 8, None));
            share(&mut ff.gate_up, basis.into(), Some(17));
            ff.down = identity_block(7, 17, &ff.down);
        }
        // Shared bases of both kinds, and factors of 9 neurons in which one has all of them as pivots.
        _ => {
            share(qkv, Matrix::from(dense(32, 9, None)).into(), None);
            share(&mut ff.gate_up, identity(11, 32).into(), Some(9));
            ff.down = identity_block(9, 9, &ff.down);
        }
    }
}

fn manifest(dtype: StoredDtype, scalars: u64, bytes: u64) -> Manifest {
    Manifest {
        schema: MANIFEST_SCHEMA,
        tool_version: "test".into(),
        recipe: serde_json::Value::Null,
        source: SourceRecord {
            name: "qwen2".into(),
            sha256: String::new(),
            stored_as: "F32".into(),
            bytes_on_disk: 0,
        },
        calibration: CalibrationRecord::default(),
        threads: 1,
        device: String::new(),
        instructions: String::new(),
        dtype: dtype.name().into(),
        projection_scalars_before: 0,
        projection_scalars_after: scalars,
        keep_ratio: 1.0,
        bytes_before: 0,
        bytes_after: bytes,
        cache_format: None,
        caches_shared_basis: false,
        residual_window: 0,
        fallbacks: 0,
        sites: Vec::new(),
        head: None,
        files: Vec::new(),
        tensors: Vec::new(),
    }
}

/// The stored scalars as the modules count them.
fn scalars(layer: &DecoderLayer) -> u64 {
    let groups = [&layer.attention.qkv, &layer.feed_forward.gate_up];
    let groups: u64 = groups.iter().map(|group| group.scalars()).sum();
    groups + layer.attention.output.scalars() + layer.feed_forward.down.scalars()
}

/// A compressed directory of the mixtures, and the same model as it was in memory.
fn mixed(variants: [usize; 2], dtype: StoredDtype) -> (TempDir, PathBuf, Decoder) {
    let folder = tempfile::tempdir().expect("temp");
    let path = folder.path().join("model");
    let (source, device) = (qwen2(), Device::flex());
    let mut writer = CompressedWriter::create(&path, 2, dtype, false).expect("creates");
    writer.write_frame(&source, None).expect("writes");
    let mut layers = Vec::new();
    for (index, variant) in variants.into_iter().enumerate() {
        let loaded = source.load_layer(index, Precision::F32, &device);
        let mut layer = loaded.expect("loads");
        mix(&mut layer, variant);
        writer.write_layer(index, &layer).expect("writes");
        layers.push(layer);
    }
    let (total, bytes) = (layers.iter().map(scalars).sum(), writer.tensor_bytes());
    let manifest = manifest(dtype, total, bytes);
    writer.finish(&source, manifest).expect("finishes");
    let frame = source.load_frame(Precision::F32, &device).expect("loads");
    let decoder = Decoder::new(
        source.config(),
        frame.embedding,
        layers,
        frame.norm,
        frame.lm_head,
    );
    (folder, path, decoder)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"))
}

fn load(path: &Path, precision: Precision) -> Decoder {
    let loaded = open(path).load(precision, &Device::flex(), &Silent);
    loaded.unwrap_or_else(|e| panic!("{e}"))
}

/// Logits of 21 tokens, `size` at a time.
fn logits(decoder: &Decoder, size: usize) -> Vec<f32> {
    let ids: Vec<u32> = (0..21).map(|i| i * 13 % 300).collect();
    let mut cache = decoder.new_cache(0);
    let parts = ids.chunks(size).map(|part| {
        let hidden = decoder.hidden(&[part.to_vec()], Some(&mut cache));
        decoder.logits(hidden.expect("runs"))
    });
    let logits = Tensor::cat(parts.collect(), 1).into_data();
    logits.try_into_vec().expect("f32")
}

/// `‖a - b‖ / ‖b‖`.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let off: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (off / b.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

const MIXTURES: [[usize; 2]; 2] = [[0, 1], [2, 0]];

#[test]
fn what_is_written_is_read_back_and_counted() {
    for (variants, kinds) in [
        (
            [0, 1],
            [
                "shared-identity-block shared-identity-block shared-identity-block identity-block pruned pruned pruned",
                "identity-block low-rank dense low-rank shared-basis shared-basis identity-block",
            ],
        ),
        (
            [2, 0],
            [
                "shared-basis shared-basis shared-basis dense shared-identity-block shared-identity-block identity-block",
                "shared-identity-block shared-identity-block shared-identity-block identity-block pruned pruned pruned",
            ],
        ),
    ] {
        for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16] {
            let (_folder, path, memory) = mixed(variants, dtype);
            let checkpoint = open(&path);
            let found = checkpoint.projections();
            let found: Vec<_> = found.iter().map(|p| p.kind).collect();
            assert_eq!(found.join(" "), kinds.join(" "));

            // The manifest's figures are the modules' and the writer's; the files' are counted by what is in them.
            let manifest = checkpoint.manifest().expect("written").clone();
            let total =
                |f: fn(&ProjectionInfo) -> u64| checkpoint.projections().iter().map(f).sum::<u64>();
            assert_eq!(total(|p| p.scalars), manifest.projection_scalars_after);
            let on_disk: u64 = checkpoint.tensors().iter().map(|(_, i)| i.bytes).sum();
            assert_eq!(on_disk, manifest.bytes_after);
            let indices = |t: &&TensorRecord| t.dtype == "I32";
            let pivots: Vec<_> = manifest.tensors.iter().filter(indices).collect();
            assert!(pivots.len() >= 3 && pivots.iter().all(|t| t.name.ends_with("pivots")));
            let pivots: usize = pivots.iter().map(|t| t.shape[0]).sum();
            assert_eq!(
                on_disk,
                checkpoint.parameters() * dtype.bytes() + 4 * pivots as u64
            );

            let outcome = verify(&checkpoint, &Device::flex(), &Silent).expect("reads");
            assert!(outcome.ok, "{:?}", outcome.problems);
            let read = logits(&load(&path, Precision::F32), 21);
            let exact = logits(&memory, 21);
            match dtype {
                StoredDtype::F32 => assert_eq!(read, exact),
                StoredDtype::F16 => assert!(distance(&read, &exact) < 5e-3),
                StoredDtype::Bf16 => assert!(distance(&read, &exact) < 5e-2),
            }
        }
    }
}

#[test]
fn neurons_and_bytes_of_each_projection() {
    let (_folder, path, _) = mixed([0, 1], StoredDtype::F16);
    let checkpoint = open(&path);
    let projections = checkpoint.projections();
    let of = |layer: usize, name: &str| {
        let found = projections
            .iter()
            .find(|p| p.layer == layer && p.projection == name);
        found.expect("there are all")
    };
    assert_eq!(of(0, "q").neurons, None);
    assert_eq!(of(0, "gate").neurons, Some(20));
    assert_eq!((of(0, "up").out, of(0, "down").input), (20, 20));
    assert_eq!((of(1, "up").out, of(1, "down").neurons), (17, Some(17)));
    // The shared basis, 12 of 32, stands with the first of its three.
    assert_eq!(of(0, "q").scalars, 12 * 20 + 12 * 32);
    assert_eq!(of(0, "k").scalars, 12 * 16);
    assert_eq!(of(0, "q").bytes_on_disk, 2 * of(0, "q").scalars + 4 * 12);
    assert_eq!(of(0, "v").bytes_on_disk, 2 * of(0, "v").scalars);
    // In memory there is an index for each input.
    assert_eq!(
        of(0, "q").bytes(Precision::F32),
        4 * of(0, "q").scalars + 4 * 32
    );
    assert_eq!(
        of(0, "o").bytes(Precision::F16),
        2 * of(0, "o").scalars + 4 * 32
    );
    // Every input a pivot: no weight.
    assert_eq!(of(1, "q").scalars, 32 * 32);
    assert_eq!(of(1, "q").bytes(Precision::Bf16), 2 * 32 * 32 + 4 * 32);
    for precision in Precision::ALL {
        let inside: u64 = projections.iter().map(|p| p.bytes(precision)).sum();
        let around = around(checkpoint.config(), precision);
        assert_eq!(
            checkpoint.memory_bytes(precision),
            inside + around,
            "{precision}"
        );
    }
}

/// Bytes of what is no projection: embedding, norms and biases.
fn around(config: &ModelConfig, precision: Precision) -> u64 {
    let head = if config.tied_embeddings { 1 } else { 2 };
    let embedding = precision
        .of_embedding()
        .matrix_bytes(config.vocab_size, config.hidden_size);
    let norms = config.hidden_size * (2 * config.layers + 1);
    let biases = config.layers * (config.heads + 2 * config.kv_heads) * config.head_dim;
    head * embedding + 4 * (norms + biases) as u64
}

#[test]
fn decoding_is_prefilling_bit_for_bit_at_every_precision() {
    for variants in MIXTURES {
        let (_folder, path, memory) = mixed(variants, StoredDtype::F16);
        let exact = logits(&memory, 21);
        for precision in Precision::ALL {
            let decoder = load(&path, precision);
            let whole = logits(&decoder, 21);
            for size in [1, 5] {
                assert_eq!(
                    logits(&decoder, size),
                    whole,
                    "{variants:?} {precision} {size}"
                );
            }
            let allowed = match precision {
                Precision::F32 | Precision::F16 => 5e-3,
                Precision::Bf16 | Precision::Q8 => 6e-2,
                _ => 0.6,
            };
            let off = distance(&whole, &exact);
            assert!(off < allowed, "{variants:?} {precision} is off by {off}");
        }
    }
}

#[test]
fn the_dense_export_computes_the_same() {
    for variants in MIXTURES {
        let (folder, path, memory) = mixed(variants, StoredDtype::F32);
        let out = folder.path().join("dense");
        let device = Device::flex();
        export_dense(
            &open(&path),
            &out,
            StoredDtype::F32,
            false,
            &device,
            &Silent,
        )
        .expect("exports");
        let exported = open(&out);
        assert_eq!(exported.format(), Format::HuggingFace);
        let config = exported.config();
        for p in exported.projections() {
            assert_eq!((p.kind, p.neurons), ("dense", None));
            assert_eq!((p.out, p.input), config.projection_shape(p.projection));
        }
        let off = distance(
            &logits(&load(&out, Precision::F32), 21),
            &logits(&memory, 21),
        );
        assert!(off < 1e-5, "{variants:?} is off by {off}");
    }
}

#[test]
fn the_token_before_a_text_begins_it_or_else_ends_one() {
    let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens");
    let gguf =
        Checkpoint::open(Path::new(&format!("{goldens}/gguf/tiny-llama.gguf"))).expect("opens");
    let tokenizer = gguf.tokenizer().expect("builds");
    assert_eq!(gguf.prefix_id(&tokenizer).expect("reads"), Some(1));
    // A directory names them in `tokenizer_config.json`, as text.
    let folder = tempfile::tempdir().expect("temp");
    for entry in std::fs::read_dir(format!("{goldens}/families/qwen2")).expect("lists") {
        let path = entry.expect("entry").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("name"))).expect("copies");
    }
    let model = Checkpoint::open(folder.path()).expect("opens");
    let of = |config: &str| {
        std::fs::write(folder.path().join("tokenizer_config.json"), config).expect("writes");
        model.prefix_id(&tokenizer)
    };
    let begin_and_end = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#;
    assert_eq!(of(begin_and_end).expect("reads"), Some(1));
    assert_eq!(
        of(r#"{"bos_token": null, "eos_token": "</s>"}"#).expect("reads"),
        Some(2)
    );
    assert!(of("{").is_err());
}
