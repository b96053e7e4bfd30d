//! Sound files give the values that gguf-py and transformers have.

mod malformed;

use std::io::Write;

use serde_json::{Value as Json, json};
use tempfile::NamedTempFile;

use super::writer::{Writer, tiny_llama};
use super::*;
use crate::config::RopeScaling;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(bytes: &[u8]) -> Result<GgufSource> {
    GgufSource::open(file(bytes).path())
}

/// A sound file, opened, with the file that has to live as long.
fn opened(writer: &Writer) -> GgufSource {
    GgufSource::open(file(&writer.bytes()).path()).unwrap()
}

fn golden(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens")).join(path)
}

fn golden_json(path: &str) -> Json {
    serde_json::from_slice(&fs_err::read(golden(path)).unwrap()).unwrap()
}

#[test]
fn layers_that_differ_are_refused() {
    let tiny = |counts: &[i32]| {
        let mut writer = arch_without_kv();
        writer = writer.i32s("llama.attention.head_count_kv", counts);
        open(&writer.bytes())
    };
    assert_eq!(tiny(&[1, 1]).unwrap().config().kv_heads, 1);
    assert!(
        tiny(&[1, 2])
            .unwrap_err()
            .to_string()
            .contains("differs between layers")
    );
    assert!(
        tiny(&[])
            .unwrap_err()
            .to_string()
            .contains("empty or negative")
    );
    assert_eq!(opened(&arch_without_kv()).config().kv_heads, 2);
}

fn arch_without_kv() -> Writer {
    Writer::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 16)
        .u32("llama.attention.head_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .floats("token_embd.weight", &[8, 3], &[0.0; 24])
}

#[test]
fn tiny_llama_reads_as_hugging_face() {
    let source = opened(&tiny_llama().floats("output.weight", &[8, 3], &[1.0; 24]));
    let config = source.config();
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (2, 1, 4));
    assert!(!config.tied_embeddings && !config.qkv_bias && !config.qk_norm);
    assert_eq!(config.rms_norm_eps, 1e-5);
    assert_eq!(config.source["model_type"], "llama");
    assert_eq!(config.source["rms_norm_eps"], json!(1e-5));
    let name = "model.layers.0.self_attn.k_proj.weight";
    assert_eq!(source.info(name).unwrap().shape, [4, 8]);
    assert_eq!(source.names().len(), 12);
    // Rows 0..4 of the file are pairs (0, 1), (2, 3); Hugging Face has first halves first.
    let firsts: Vec<f32> = source
        .read_f32(name)
        .unwrap()
        .chunks(8)
        .map(|row| row[0])
        .collect();
    assert_eq!(firsts, [0.0, 16.0, 8.0, 24.0]);
    let q = source
        .read_f32("model.layers.0.self_attn.q_proj.weight")
        .unwrap();
    let firsts: Vec<f32> = q.chunks(8).map(|row| row[0] / 8.0).collect();
    assert_eq!(firsts, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let v = source
        .read_f32("model.layers.0.self_attn.v_proj.weight")
        .unwrap();
    assert_eq!(v, (0..32).map(|i| i as f32).collect::<Vec<_>>());
    assert!(source.read_f32("nothing").is_err());
}

#[test]
fn biases_are_reordered_like_their_weights() {
    let mut writer = tiny_llama();
    for (name, length) in [("q", 8), ("k", 4), ("v", 4), ("output", 8)] {
        let values: Vec<f32> = (0..length).map(|i| i as f32).collect();
        writer = writer.floats(&format!("blk.0.attn_{name}.bias"), &[length], &values);
    }
    let source = opened(&writer);
    assert!(source.config().qkv_bias && source.config().output_bias);
    let read = |name: &str| {
        source
            .read_f32(&format!("model.layers.0.self_attn.{name}_proj.bias"))
            .unwrap()
    };
    assert_eq!(read("q"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(read("k"), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(read("v"), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(read("o"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn rotary_divisors_become_a_rule_when_they_follow_one() {
    // Llama 3.1's published rule for 64 frequencies of base 500000, as llama.cpp's converter writes it.
    let divisors: Vec<f32> = (0..64)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * 500_000f64.powf(f64::from(i) / 64.0);
            let divisor = if wavelength < 8192.0 / 4.0 {
                1.0
            } else if wavelength > 8192.0 {
                8.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / 8.0 + smooth)
            };
            divisor as f32
        })
        .collect();
    let config = |divisors: &[f32]| {
        let writer = Writer::new()
            .string("general.architecture", "llama")
            .u32("llama.block_count", 1)
            .u32("llama.context_length", 131_072)
            .u32("llama.embedding_length", 128)
            .u32("llama.feed_forward_length", 16)
            .u32("llama.attention.head_count", 1)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .f32("llama.rope.freq_base", 500_000.0)
            .floats("rope_freqs.weight", &[64], divisors)
            .floats("token_embd.weight", &[128, 1], &[0.0; 128]);
        opened(&writer).config().clone()
    };
    let llama = config(&divisors);
    assert_eq!(
        llama.rope_scaling,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0
        }
    );
    assert_eq!(
        llama.source["rope_scaling"],
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192})
    );
    let mut other = divisors.clone();
    other[40] *= 1.1;
    let other_config = config(&other);
    assert_eq!(other_config.rope_scaling, RopeScaling::Divisors(other));
    assert_eq!(other_config.source["rope_scaling"]["rope_type"], "divisors");
    assert_eq!(config(&[1.0; 64]).rope_scaling, RopeScaling::None);
}

#[test]
fn linear_scaling_is_read() {
    let writer = tiny_llama()
        .string("llama.rope.scaling.type", "linear")
        .f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(
        opened(&writer).config().rope_scaling,
        RopeScaling::Linear { factor: 4.0 }
    );
}

#[test]
fn blocks_decode_as_in_gguf_py() {
    let cases = golden_json("gguf/dequant.json");
    for case in cases.as_array().unwrap() {
        let kind = case["type_id"].as_u64().unwrap() as u32;
        let format = dequant::format(kind).unwrap();
        assert_eq!(format.name, case["type"]);
        let hex = case["raw"].as_str().unwrap();
        let raw: Vec<u8> = (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let values: Vec<f32> = case["values"]
            .as_array()
            .unwrap()
            .iter()
            // Decimal text is converted once, to f32: through f64 it could round twice.
            .map(|value| value.to_string().parse().unwrap())
            .collect();
        let row = case["shape"][1].as_u64().unwrap() as usize;
        let mut decoded = vec![f32::NAN; values.len()];
        dequant::decode_rows(format, &raw, row, &mut decoded, |row| row);
        for (index, (ours, theirs)) in decoded.iter().zip(&values).enumerate() {
            assert_eq!(
                ours.to_bits(),
                theirs.to_bits(),
                "{} weight {index}: {ours} for {theirs}",
                format.name
            );
        }
    }
    assert_eq!(cases.as_array().unwrap().len(), 13);
}

#[test]
fn gguf_files_hold_the_family_they_were_made_from() {
    for (stem, family) in [
        ("tiny-llama", "llama2"),
        ("tiny-qwen2", "qwen2"),
        ("tiny-qwen3", "qwen3"),
    ] {
        let source = GgufSource::open(golden(&format!("gguf/{stem}.gguf"))).unwrap();
        let bytes = fs_err::read(golden(&format!("families/{family}/model.safetensors"))).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let names: std::collections::BTreeSet<String> =
            tensors.names().into_iter().map(str::to_owned).collect();
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            source.names(),
            "{stem}"
        );
        for name in source.names() {
            let view = tensors.tensor(&name).unwrap();
            assert_eq!(view.shape(), source.info(&name).unwrap().shape, "{name}");
            let expected: Vec<f32> = match view.dtype() {
                safetensors::Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                safetensors::Dtype::F16 => view
                    .data()
                    .chunks_exact(2)
                    .map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32())
                    .collect(),
                safetensors::Dtype::BF16 => view
                    .data()
                    .chunks_exact(2)
                    .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
                    .collect(),
                other => panic!("{other:?}"),
            };
            assert_eq!(source.read_f32(&name).unwrap(), expected, "{stem} {name}");
        }
        let wanted = golden_json(&format!("families/{family}/config.json"));
        for key in [
            "architectures",
            "model_type",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
            "rms_norm_eps",
            "tie_word_embeddings",
        ] {
            assert_eq!(source.config().source[key], wanted[key], "{stem} {key}");
        }
        let theta = wanted
            .get("rope_theta")
            .unwrap_or_else(|| &wanted["rope_parameters"]["rope_theta"]);
        assert_eq!(&source.config().source["rope_theta"], theta, "{stem}");
    }
}

#[test]
fn the_real_smollm2_reads() {
    let Some(path) = crate::test_data::smollm2() else {
        return;
    };
    let start = std::time::Instant::now();
    let source = GgufSource::open(&path).unwrap();
    let config = source.config();
    assert_eq!(
        (
            config.layers,
            config.hidden_size,
            config.heads,
            config.kv_heads
        ),
        (30, 576, 9, 3)
    );
    assert!(config.tied_embeddings);
    assert_eq!(config.rope_theta, 100_000.0);
    let mut weights = 0;
    for name in source.names() {
        let values = source.read_f32(&name).unwrap();
        let shape = source.info(&name).unwrap().shape;
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        assert!(values.iter().all(|value| value.is_finite()), "{name}");
        weights += values.len();
    }
    assert_eq!(weights, 134_515_008);
    println!("SmolLM2 read in {:.2} s", start.elapsed().as_secs_f64());
}
