//! Files that are damaged, hostile or not for us.

use proptest::prelude::*;

use super::super::writer::{Writer, string, tiny_llama};
use super::super::*;
use super::{file, open};
use crate::error::Hint;
use crate::tokenizer::Tokenizer;

/// Header of a file with these counts and then `rest`.
fn header(tensors: u64, keys: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes.extend(rest);
    bytes
}

fn with_value(kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Writer::new().raw("k", kind, value).bytes();
    bytes.resize(bytes.len() + 64, 0);
    bytes
}

fn array(kind: u32, count: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes
}

fn one_tensor(dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    tiny_llama()
        .tensor_at("blk.0.attn_q.bias", dims, kind, offset)
        .bytes()
}

#[test]
fn bad_files_say_what_and_where() {
    let version = |version| tiny_llama().version(version).bytes();
    let alignment = |value| tiny_llama().u32("general.alignment", value).bytes();
    let long = [
        string("k"),
        8u32.to_le_bytes().to_vec(),
        (1u64 << 40).to_le_bytes().to_vec(),
    ]
    .concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "empty",
            vec![],
            "is not a model: it does not start with `GGUF`",
        ),
        (
            "bad magic",
            b"GGML\x03\0\0\0".to_vec(),
            "it does not start with `GGUF`",
        ),
        (
            "git lfs",
            b"version https://git-lfs.github.com/spec/v1".to_vec(),
            "Git LFS pointer",
        ),
        ("version 1", version(1), "GGUF version 1"),
        ("version 0", version(0), "GGUF version 0"),
        ("version 4", version(4), "GGUF version 4"),
        ("big endian", version(3u32.swap_bytes()), "big-endian"),
        (
            "absurd keys",
            header(0, u64::MAX, &[]),
            "claims 18446744073709551615 keys",
        ),
        (
            "absurd tensors",
            header(u64::MAX, 0, &[]),
            "claims 18446744073709551615 tensors",
        ),
        (
            "more keys than bytes",
            header(0, 1000, &[0; 32]),
            "1000 keys at byte 24 takes 14000 bytes, 32 are left",
        ),
        (
            "more tensors than bytes",
            header(1000, 0, &[0; 32]),
            "1000 tensors at byte 24",
        ),
        (
            "long string",
            header(0, 1, &long),
            "key `k` claims 1099511627776 string bytes",
        ),
        (
            "string past the end",
            with_value(8, &1000u64.to_le_bytes()),
            "1000 string bytes",
        ),
        (
            "not UTF-8",
            with_value(8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0x28]),
            "key `k` has a value at byte 45 that is not UTF-8",
        ),
        (
            "duplicate key",
            tiny_llama().u32("llama.block_count", 2).bytes(),
            "key `llama.block_count` appears twice",
        ),
        (
            "unknown type",
            with_value(13, &[]),
            "key `k` has unknown type 13",
        ),
        (
            "unknown array type",
            with_value(9, &array(77, 1)),
            "key `k` is an array of unknown type 77",
        ),
        (
            "nested array",
            with_value(9, &array(9, 1)),
            "key `k` is an array of arrays",
        ),
        (
            "absurd array",
            with_value(9, &array(0, u64::MAX)),
            "key `k` claims 18446744073709551615 elements",
        ),
        (
            "array past the end",
            with_value(9, &array(10, 1000)),
            "1000 elements at byte 49 takes 8000 bytes",
        ),
        (
            "strings past the end",
            with_value(9, &array(8, 1000)),
            "1000 elements at byte 49 takes 8000 bytes",
        ),
        (
            "bad boolean",
            with_value(7, &[2]),
            "key `k` holds boolean 2",
        ),
        ("alignment 0", alignment(0), "general.alignment = 0"),
        ("alignment 3", alignment(3), "general.alignment = 3"),
        (
            "alignment 2 MiB",
            alignment(2 << 20),
            "general.alignment = 2097152",
        ),
        (
            "alignment text",
            tiny_llama().string("general.alignment", "32").bytes(),
            "`general.alignment` is a string",
        ),
        (
            "duplicate tensor",
            tiny_llama()
                .tensor_at("output_norm.weight", &[8], 0, 0)
                .bytes(),
            "tensor `output_norm.weight` appears twice",
        ),
        ("no dimensions", one_tensor(&[], 0, 0), "has 0 dimensions"),
        (
            "five dimensions",
            one_tensor(&[1; 5], 0, 0),
            "has 5 dimensions",
        ),
        (
            "empty dimension",
            one_tensor(&[8, 0], 0, 0),
            "empty or absurd shape",
        ),
        (
            "overflowing shape",
            one_tensor(&[1 << 32, 1 << 32], 0, 0),
            "empty or absurd shape",
        ),
        (
            "overflow to something small",
            one_tensor(&[1 << 62, 4, 1, 2], 0, 0),
            "empty or absurd shape",
        ),
        (
            "huge but countable",
            one_tensor(&[1 << 60], 0, 0),
            "ends past the end of the file",
        ),
        (
            "unknown storage",
            one_tensor(&[8], 99, 0),
            "tensor `blk.0.attn_q.bias` has type number 99",
        ),
        (
            "known, unread storage",
            one_tensor(&[256], 20, 0),
            "has type IQ4_NL",
        ),
        (
            "part of a block",
            one_tensor(&[33, 32], 8, 0),
            "rows of 33 do not divide into Q8_0 blocks of 32",
        ),
        (
            "crooked offset",
            one_tensor(&[8], 0, 33),
            "offset 33 is not a multiple of the alignment 32",
        ),
        (
            "offset past the end",
            one_tensor(&[8], 0, 1 << 20),
            "ends past the end of the file",
        ),
        (
            "offset overflow",
            one_tensor(&[8], 0, u64::MAX - 31),
            "ends past the end of the file",
        ),
        (
            "unknown tensor",
            tiny_llama().floats("blk.0.ssm_a", &[1], &[0.0]).bytes(),
            "tensor `blk.0.ssm_a`",
        ),
        (
            "layer too many",
            tiny_llama()
                .floats("blk.7.ffn_norm.weight", &[8], &[0.0; 8])
                .bytes(),
            "is in layer 7 of a model of 1 layers",
        ),
        (
            "half of the biases",
            tiny_llama()
                .floats("blk.0.attn_q.bias", &[8], &[0.0; 8])
                .bytes(),
            "k_proj.bias` of",
        ),
        (
            "biases that Hugging Face's llama can not have",
            ["q", "k", "v"]
                .iter()
                .zip([8, 4, 4])
                .fold(tiny_llama(), |writer, (name, width)| {
                    let zeros = vec![0.0; width as usize];
                    writer.floats(&format!("blk.0.attn_{name}.bias"), &[width], &zeros)
                })
                .bytes(),
            "combination of biases",
        ),
    ];
    for (case, bytes, expected) in cases {
        let error = open(&bytes).expect_err(case);
        let message = error.to_string();
        assert!(message.contains(expected), "{case}: {message}");
        assert!(!message.contains('\n'), "{case}: {message}");
        if !matches!(error, Error::Config { .. }) {
            assert!(error.hint().is_some(), "{case} has no hint");
        }
    }
}

#[test]
fn bad_metadata_names_the_key() {
    let change = |key: &str, kind: u32, value: &[u8]| {
        // Keys are in the file in the order they were written, so the changed one can not just be added.
        let mut bytes = tiny_llama().bytes();
        let start = bytes
            .windows(key.len())
            .position(|window| window == key.as_bytes())
            .unwrap()
            + key.len();
        bytes.splice(start..start + 8, [&kind.to_le_bytes()[..], value].concat());
        bytes
    };
    let count = |key: &str, value: u32| change(key, 4, &value.to_le_bytes());
    let cases = [
        (
            count("llama.block_count", 0),
            "`llama.block_count` = 0, expected 1 to 4096",
        ),
        (
            count("llama.block_count", u32::MAX),
            "`llama.block_count` = 4294967295",
        ),
        (
            change("llama.embedding_length", 5, &(-8i32).to_le_bytes()),
            "`llama.embedding_length` is a signed integer, expected a non-negative",
        ),
        (
            change("llama.embedding_length", 6, &8f32.to_le_bytes()),
            "`llama.embedding_length` is a float",
        ),
        (
            count("llama.attention.head_count_kv", 3),
            "2 attention heads do not divide among 3",
        ),
        (count("llama.attention.head_count", 3), "heads"),
        (
            change("llama.rope.freq_base", 6, &f32::NAN.to_le_bytes()),
            "rotary base NaN",
        ),
        (
            change(
                "llama.attention.layer_norm_rms_epsilon",
                6,
                &0f32.to_le_bytes(),
            ),
            "epsilon 0",
        ),
        (Writer::new().bytes(), "token_embd.weight"),
        (
            tiny_llama().u32("llama.vocab_size", 4).bytes(),
            "has 3 rows for a vocabulary of 4",
        ),
        (
            tiny_llama().u32("llama.expert_count", 8).bytes(),
            "mixture of experts",
        ),
        (
            tiny_llama().u32("llama.rope.dimension_count", 2).bytes(),
            "`llama.rope.dimension_count` is not the head width 4",
        ),
        (
            tiny_llama()
                .string("llama.rope.scaling.type", "yarn")
                .bytes(),
            "rotary scaling `yarn`",
        ),
        (
            tiny_llama()
                .floats("rope_freqs.weight", &[3], &[1.0; 3])
                .bytes(),
            "has 3 values for 2 rotary",
        ),
        (
            tiny_llama()
                .floats("rope_freqs.weight", &[2], &[1.0, 0.0])
                .bytes(),
            "not positive",
        ),
    ];
    for (bytes, expected) in cases {
        let message = open(&bytes).expect_err(expected).to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let arch = |name: &str| {
        Writer::new().string("general.architecture", name).floats(
            "token_embd.weight",
            &[1, 1],
            &[0.0],
        )
    };
    let error = open(&arch("mamba").bytes()).unwrap_err();
    assert!(
        error.to_string().contains("architecture `mamba`"),
        "{error}"
    );
    let error = open(&arch("llama").bytes()).unwrap_err();
    assert!(
        error.to_string().contains("`llama.block_count` is missing"),
        "{error}"
    );
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = tiny_llama().bytes();
    for length in 0..bytes.len() {
        let error = open(&bytes[..length]).expect_err("a truncated file opened");
        assert!(
            matches!(error, Error::Corrupt { .. } | Error::NotAModel { .. }),
            "{length}: {error}"
        );
    }
    open(&bytes).unwrap();
}

#[test]
fn a_file_that_shrinks_is_corrupt() {
    let bytes = tiny_llama().bytes();
    let file = file(&bytes);
    let source = GgufSource::open(file.path()).unwrap();
    file.as_file().set_len(bytes.len() as u64 - 100).unwrap();
    let error = source
        .read_f32("model.layers.0.mlp.down_proj.weight")
        .unwrap_err();
    assert!(error.to_string().contains("past the end"), "{error}");
}

/// The most address space this process has had, in bytes, where `/proc` says so. Unlike resident memory it counts
/// zeroed buffers that were never touched.
fn peak_address_space() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPeak:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happens to a sound file, opening and reading it ends in values or an error, without ever asking the
    /// system for an absurd amount of memory.
    #[test]
    fn mutated_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        wide in prop::option::of((any::<prop::sample::Index>(), prop::sample::select(vec![
            0u64, 1, 31, 32, 33, 1 << 31, 1 << 32, 1 << 61, 1 << 63, u64::MAX, u64::MAX - 31,
        ]))),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = tiny_llama()
            .string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", "smollm")
            .strings("tokenizer.ggml.merges", &["a b"])
            .bytes();
        // The header is where the danger is: the rest of the file is only numbers.
        let header = bytes.windows(8).rposition(|window| window == b"ffn_down").unwrap() + 40;
        for (index, value) in changes {
            let at = index.index(header);
            bytes[at] = value;
        }
        if let Some((index, value)) = wide {
            let at = index.index(header);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let file = file(&bytes);
        if let Ok(source) = GgufSource::open(file.path()) {
            for name in source.names() {
                let _ = source.read_f32(&name);
            }
            if let Ok(tokenizer) = Tokenizer::from_gguf(source.metadata(), source.path()) {
                let ids = tokenizer.encode("ab ba").unwrap_or_default();
                let _ = tokenizer.decode(&ids, true);
            }
        }
        if let Some(peak) = peak_address_space() {
            prop_assert!(peak < 16 << 30, "{peak} bytes of address space");
        }
    }
}
