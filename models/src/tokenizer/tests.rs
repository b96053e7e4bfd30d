//! Ids and text as transformers has them, on goldens and on the real vocabulary.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::checkpoint::gguf::GgufSource;
use crate::checkpoint::gguf::writer::{Writer, tiny_llama};

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens");

fn load(writer: Writer) -> Result<Tokenizer> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), writer.bytes()).unwrap();
    let source = GgufSource::open(file.path())?;
    Tokenizer::from_gguf(source.metadata(), source.path())
}

/// The tiny Llama with a byte-level vocabulary `a b ab` and one merge.
fn byte_level(pre: &str) -> Writer {
    tiny_llama()
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.merges", &["a b"])
}

fn open_gguf(path: &Path) -> Tokenizer {
    let source = GgufSource::open(path).unwrap();
    Tokenizer::from_gguf(source.metadata(), path).unwrap()
}

/// The default model's tokenizer, where the model is here.
fn smollm2() -> Option<Tokenizer> {
    crate::test_data::smollm2().map(|path| open_gguf(&path))
}

/// A file of `shared/`, or `None` with a printed reason.
fn shared(path: &str) -> Option<Vec<u8>> {
    let roots = [
        concat!(env!("CARGO_MANIFEST_DIR"), "/../shared"),
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"),
    ];
    let found = roots
        .iter()
        .find_map(|root| fs_err::read(Path::new(root).join(path)).ok());
    if found.is_none() {
        println!("skipped: no `shared/{path}`");
    }
    found
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The same GGUF with another `tokenizer.ggml.pre`.
fn with_pre(path: &Path, pre: &str) -> Tokenizer {
    let mut bytes = fs_err::read(path).unwrap();
    let key = b"tokenizer.ggml.pre";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let replacement = [&(pre.len() as u64).to_le_bytes()[..], pre.as_bytes()].concat();
    let grown = pre.len() - length;
    bytes.splice(at..at + 8 + length, replacement);
    // The tensor data starts at an aligned byte after the header: pad so that it still holds it.
    bytes.resize(bytes.len() + grown + 64, 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), bytes).unwrap();
    open_gguf(file.path())
}

#[test]
fn goldens_agree() {
    let goldens: Value =
        serde_json::from_slice(&fs_err::read(format!("{GOLDENS}/tokenizer/cases.json")).unwrap())
            .unwrap();
    for (name, set) in goldens.as_object().unwrap() {
        let pre = set["pre"].as_str().unwrap();
        let tokenizer = match set["gguf"].as_str() {
            Some(path) if set["model"] == "gpt2" => with_pre(&Path::new(GOLDENS).join(path), pre),
            Some(path) => open_gguf(&Path::new(GOLDENS).join(path)),
            None => match smollm2() {
                Some(tokenizer) => tokenizer,
                None => continue,
            },
        };
        // Every set again through `tokenizer.json`.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs_err::write(&path, tokenizer.to_json().unwrap()).unwrap();
        let saved = Tokenizer::from_file(&path).unwrap();
        assert_eq!(tokenizer.vocab_size(), saved.vocab_size());
        assert_eq!(tokenizer.bos_ids(), saved.bos_ids());
        for tokenizer in [&tokenizer, &saved] {
            for case in set["cases"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let expected = ids(&case["ids"]);
                let ours = tokenizer.encode_plain(text).unwrap();
                assert_eq!(ours, expected, "{name}: {text:?}");
                let decoded = tokenizer.decode(&expected, false).unwrap();
                assert_eq!(decoded, case["decoded"], "{name}: {text:?}");

                let mut streamed = String::new();
                let mut stream = tokenizer.stream(&[], false).unwrap();
                for id in &expected {
                    streamed.extend(stream.push(*id).unwrap());
                }
                streamed.extend(stream.finish().unwrap());
                assert_eq!(streamed, case["decoded"], "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn bos_and_eos_are_known() {
    let llama = open_gguf(&Path::new(GOLDENS).join("gguf/tiny-llama.gguf"));
    assert_eq!(llama.bos_ids(), [1]);
    assert_eq!(llama.suffix_ids(), [0u32; 0]);
    assert_eq!(llama.eos_ids(), [2]);
    assert_eq!(llama.encode("").unwrap(), [1]);
    assert_eq!(llama.encode("a").unwrap()[0], 1);
    assert_eq!(llama.encode_plain("<s></s>").unwrap(), [1, 2]);
    let qwen = open_gguf(&Path::new(GOLDENS).join("gguf/tiny-qwen2.gguf"));
    assert!(qwen.bos_ids().is_empty());
    assert_eq!(qwen.eos_ids(), [315]);
    assert_eq!(qwen.clone().with_eos_ids([7, 3, 7]).eos_ids(), [3, 7]);

    let both = byte_level("gpt-2")
        .bool("tokenizer.ggml.add_bos_token", true)
        .bool("tokenizer.ggml.add_eos_token", true)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 0)
        .u32("tokenizer.ggml.eot_token_id", 2);
    let both = load(both).unwrap();
    assert_eq!((both.bos_ids(), both.suffix_ids()), (&[1][..], &[0][..]));
    assert_eq!(both.eos_ids(), [0, 2]);
    assert_eq!(both.encode("abb").unwrap(), [1, 2, 1, 0]);
    assert_eq!(both.encode_prompt("abb").unwrap(), [1, 2, 1]);
    assert_eq!(both.encode_plain("abb").unwrap(), [2, 1]);
}

#[test]
fn bad_vocabularies_are_named() {
    let typed = |types: &[i32]| byte_level("gpt-2").i32s("tokenizer.ggml.token_type", types);
    let cases = [
        (byte_level("deepseek-llm"), "pre-tokenizer `deepseek-llm`"),
        (
            tiny_llama().string("tokenizer.ggml.model", "bert"),
            "tokenizer kind `bert`",
        ),
        (tiny_llama(), "`tokenizer.ggml.model` is missing"),
        (
            tiny_llama()
                .string("tokenizer.ggml.model", "gpt2")
                .strings("tokenizer.ggml.merges", &[]),
            "without `tokenizer.ggml.pre`",
        ),
        (
            tiny_llama().string("tokenizer.ggml.model", "llama"),
            "`tokenizer.ggml.scores` is missing",
        ),
        (
            tiny_llama()
                .string("tokenizer.ggml.model", "llama")
                .f32s("tokenizer.ggml.scores", &[0.0]),
            "1 scores for 3 tokens",
        ),
        (typed(&[1]), "1 token types for 3 tokens"),
        (
            byte_level("llama-bpe").u32("tokenizer.ggml.bos_token_id", 3),
            "`tokenizer.ggml.bos_token_id` = 3, but there are 3 tokens",
        ),
        (
            byte_level("llama-bpe"),
            "`tokenizer.ggml.bos_token_id` is missing",
        ),
    ];
    for (writer, expected) in cases {
        let message = load(writer).expect_err(expected).to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    for merge in ["a", "a  b", "b a", "ab ab", "a z", ""] {
        let writer = tiny_llama()
            .string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", "gpt-2")
            .strings("tokenizer.ggml.merges", &[merge]);
        let message = load(writer).expect_err(merge).to_string();
        assert!(message.contains("is not made of tokens"), "{message}");
    }
}

#[test]
fn bad_tokenizer_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let sound = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": null,
        "model": {"type": "BPE", "dropout": 0.5, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    });
    let read = |value: &Value| {
        fs_err::write(&path, value.to_string()).unwrap();
        Tokenizer::from_file(&path)
    };
    // Neither truncated, nor padded, nor dropped out.
    assert_eq!(read(&sound).unwrap().encode("abababab").unwrap(), [2; 4]);

    let mut cases = Vec::new();
    for merge in [
        json!("a ab"),
        json!(["ab", "ab"]),
        json!(["a"]),
        json!(7),
        json!("a"),
    ] {
        let mut bad = sound.clone();
        bad["model"]["merges"] = json!([merge]);
        cases.push((bad, "is not made of tokens"));
    }
    let mut prefixed = sound.clone();
    prefixed["model"]["continuing_subword_prefix"] = json!("####");
    cases.push((prefixed, "is not made of tokens"));
    let mut template = sound.clone();
    template["post_processor"] = json!({"type": "Sequence", "processors": [{
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }]});
    cases.push((template, "uses `<s>`"));
    cases.push((json!({}), "tokenizer of"));
    cases.push((json!([1]), "tokenizer of"));
    for (value, expected) in cases {
        let message = read(&value).expect_err(expected).to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    fs_err::write(&path, b"\xff{").unwrap();
    assert!(
        Tokenizer::from_file(&path)
            .unwrap_err()
            .to_string()
            .contains("not JSON")
    );
}

#[test]
fn streams_hold_characters_until_they_are_whole() {
    let llama = open_gguf(&Path::new(GOLDENS).join("gguf/tiny-llama.gguf"));
    let text = "a 🙂é b";
    let ids = llama.encode_plain(text).unwrap();
    assert!(
        ids.len() > text.chars().count(),
        "bytes are spelled one by one"
    );
    let mut stream = llama.stream(&[], true).unwrap();
    let mut pieces = Vec::new();
    for id in &ids {
        pieces.extend(stream.push(*id).unwrap());
    }
    assert_eq!(pieces.concat(), text);
    assert!(pieces.contains(&"🙂".to_owned()), "{pieces:?}");

    // After a prompt the first space is part of the text.
    let prompt = llama.encode("a").unwrap();
    let rest = llama.encode_plain("b").unwrap();
    let mut stream = llama.stream(&prompt, true).unwrap();
    let first: String = rest
        .iter()
        .filter_map(|id| stream.push(*id).unwrap())
        .collect();
    assert_eq!(first, " b");

    // Half of a character comes out at the end only, as what it is.
    let mut stream = llama.stream(&[], true).unwrap();
    let half = &llama.encode_plain("🙂").unwrap();
    let mut out = String::new();
    for id in &half[..half.len() - 1] {
        out.extend(stream.push(*id).unwrap());
    }
    assert!(!out.contains('\u{fffd}'));
    assert!(stream.finish().unwrap().unwrap().contains('\u{fffd}'));

    // Skipped special tokens say nothing and lose nothing.
    let mut stream = llama.stream(&[], true).unwrap();
    let mut out = String::new();
    for id in [1].iter().chain(&rest).chain(&[2]).chain(&rest) {
        out.extend(stream.push(*id).unwrap());
    }
    assert_eq!(out, "b b");
}

#[test]
fn smollm2_agrees_with_the_reference() {
    let (Some(tokenizer), Some(reference)) = (smollm2(), shared("reference/smollm2.json")) else {
        return;
    };
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let logits = &reference["logits"];
    let text = logits["text"].as_str().unwrap();
    assert_eq!(tokenizer.encode(text).unwrap(), ids(&logits["ids"]));
    let real = fs_err::read(format!("{GOLDENS}/smollm2-135m-q4_1.json")).unwrap();
    let real: Value = serde_json::from_slice(&real).unwrap();
    let prompt = real["prompt"].as_str().unwrap();
    assert_eq!(tokenizer.encode(prompt).unwrap(), ids(&real["prompt_ids"]));
    let greedy = tokenizer.decode(&ids(&real["greedy"]), false).unwrap();
    assert_eq!(greedy, real["greedy_text"]);
    assert!(tokenizer.bos_ids().is_empty());
    assert_eq!(tokenizer.eos_ids(), [2]);
    assert_eq!(tokenizer.vocab_size(), 49_152);
}

#[test]
fn wikitext_has_the_published_number_of_tokens() {
    let (Some(tokenizer), Some(text)) = (smollm2(), shared("data/text/wiki.test.raw")) else {
        return;
    };
    let text = String::from_utf8(text).unwrap();
    // Rows as the Hub has them: a blank line is empty, another keeps its line break.
    let rows: Vec<String> = text
        .strip_suffix('\n')
        .unwrap_or(&text)
        .split('\n')
        .map(|line| {
            if line.trim().is_empty() {
                String::new()
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    let joined = rows.join("\n\n");
    for (what, text, expected) in [("join", &joined, 304_978), ("file", &text, 303_415)] {
        let start = Instant::now();
        let ids = tokenizer.encode(text).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        println!("{what}: {} bytes in {seconds:.2} s", text.len());
        assert_eq!(ids.len(), expected, "{what}");
    }
}

#[test]
fn long_texts_do_not_take_quadratic_time() {
    let path = |name: &str| PathBuf::from(format!("{GOLDENS}/gguf/{name}.gguf"));
    let words = "the ember burns low and the 🙂 sits by 1,063 fires ".repeat(24_000);
    let spaces = format!("a{}b", " ".repeat(200_000));
    for name in ["tiny-llama", "tiny-qwen2"] {
        let tokenizer = open_gguf(&path(name));
        for (what, text) in [("words", &words), ("spaces", &spaces)] {
            let start = Instant::now();
            let ids = tokenizer.encode_plain(text).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{name}, {what}: {} bytes, {} ids in {seconds:.2} s",
                text.len(),
                ids.len()
            );
            assert_eq!(
                tokenizer.decode(&ids, false).unwrap(),
                *text,
                "{name}, {what}"
            );
            assert!(seconds < 60.0, "{name}, {what}: {seconds} s");
        }
    }
}
