//! Every command on a tiny model: what it prints, and that its parts fit together.

mod common;

use std::path::Path;

use common::{Run, arg, cinder, goldens};
use tempfile::TempDir;

const RECIPE: &str = "name = 'tiny'\n[calibration]\ncorpus = 'text.txt'\nwindows = 8\nwindow = 32\n\
                      [[passes]]\npass = 'low_rank'\nkeep = 0.7\n";
const TEXT: &str =
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. ";

/// A folder with a recipe and a text, and the tiny GGUF model.
struct Bench {
    folder: TempDir,
    model: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        std::fs::write(folder.path().join("recipe.toml"), RECIPE).expect("writes");
        std::fs::write(folder.path().join("text.txt"), TEXT.repeat(40)).expect("writes");
        let model = arg(&goldens("gguf/tiny-llama.gguf")).to_owned();
        Bench { folder, model }
    }

    fn path(&self, name: &str) -> String {
        arg(&self.folder.path().join(name)).to_owned()
    }

    fn compress(&self, out: &str, more: &[&str]) -> Run {
        let (recipe, text, out) = (
            self.path("recipe.toml"),
            self.path("text.txt"),
            self.path(out),
        );
        let mut arguments = vec![
            "compress",
            &self.model,
            "--recipe",
            &recipe,
            "--calibration",
            &text,
            "--out",
            &out,
            "--quiet",
            "--threads",
            "2",
        ];
        arguments.extend(more);
        cinder(&arguments)
    }

    fn perplexity(&self, model: &str, more: &[&str]) -> Run {
        let text = self.path("text.txt");
        let mut arguments = vec![
            "eval",
            "ppl",
            model,
            "--text",
            &text,
            "--window",
            "64",
            "--windows",
            "6",
            "--quiet",
            "--threads",
            "2",
        ];
        arguments.extend(more);
        cinder(&arguments)
    }

    /// Snapshots a run with folders and times made the same everywhere.
    fn snapshot(&self, name: &str, run: &Run) {
        let mut settings = insta::Settings::clone_current();
        let escape = |path: &Path| arg(path).replace('.', r"\.");
        settings.add_filter(&escape(self.folder.path()), "[folder]");
        settings.add_filter(&escape(&goldens("")), "[goldens]/");
        settings.add_filter(r"in \d+ s \([^)]*\),", "in [N] s ([stages]),");
        settings.add_filter(r"time: about .* on this", "time: about [N] on this");
        settings.add_filter(r"[\d.]+ tokens/s", "[N] tokens/s");
        // The last digits depend on the processor's kernels; reference.rs checks values.
        settings.add_filter(r"perplexity [\d.]+ ± [\d.]+", "perplexity [N] ± [N]");
        settings.add_filter(r"first after [\d.]+ s", "first after [N] s");
        settings.bind(|| insta::assert_snapshot!(name.to_owned(), run.snapshot()));
    }
}

#[test]
fn inspect_tokenize_logits_generate() {
    let bench = Bench::new();
    let model = bench.model.as_str();
    bench.snapshot("inspect", &cinder(&["inspect", model]));
    bench.snapshot("inspect-json", &cinder(&["inspect", model, "--json"]));
    bench.snapshot(
        "tokenize",
        &cinder(&["tokenize", model, "--text", "The dog"]),
    );
    bench.snapshot(
        "logits",
        &cinder(&[
            "logits", model, "--text", "The dog", "--top", "3", "--quiet",
        ]),
    );
    let generate = [
        "generate",
        model,
        "--prompt",
        "The dog",
        "--max-new-tokens",
        "6",
    ];
    bench.snapshot("generate", &cinder(&generate));
    let sampled = |seed| {
        let mut arguments = generate.to_vec();
        arguments.extend([
            "--temperature",
            "1",
            "--top-k",
            "40",
            "--top-p",
            "0.9",
            "--json",
            "--seed",
            seed,
        ]);
        cinder(&arguments).json()["ids"].clone()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
}

#[test]
fn help_of_every_verb() {
    let bench = Bench::new();
    bench.snapshot("help", &cinder(&["--help"]));
    for verb in [
        "fetch",
        "inspect",
        "tokenize",
        "logits",
        "compress",
        "generate",
        "bench",
        "export",
        "verify",
        "report",
        "demo",
        "sweep",
        "search",
        "sensitivity",
        "compare",
    ] {
        bench.snapshot(&format!("help-{verb}"), &cinder(&[verb, "--help"]));
    }
    bench.snapshot("help-eval-ppl", &cinder(&["eval", "ppl", "--help"]));
    bench.snapshot("help-eval-tasks", &cinder(&["eval", "tasks", "--help"]));
}

#[test]
fn compress_evaluate_export_verify_report() {
    let bench = Bench::new();
    bench.snapshot("compress-dry-run", &bench.compress("small", &["--dry-run"]));
    assert!(!Path::new(&bench.path("small")).exists());
    bench.snapshot("compress", &bench.compress("small", &[]));
    let small = bench.path("small");
    bench.snapshot("verify", &cinder(&["verify", &small, "--quiet"]));
    bench.snapshot("inspect-compressed", &cinder(&["inspect", &small]));
    bench.snapshot("eval-ppl", &bench.perplexity(&small, &[]));

    let dense = bench.path("dense");
    bench.snapshot(
        "export",
        &cinder(&["export", &small, "--dense", "--out", &dense, "--quiet"]),
    );
    let perplexity = |model: &str| {
        bench.perplexity(model, &["--json"]).json()["perplexity"]
            .as_f64()
            .expect("number")
    };
    let (factored, exported) = (perplexity(&small), perplexity(&dense));
    assert!(
        (factored / exported - 1.0).abs() < 1e-4,
        "{factored} {exported}"
    );

    let results = bench.path("results");
    std::fs::create_dir(&results).expect("creates");
    for (name, model) in [("dense", bench.model.as_str()), ("small", &small)] {
        let out = format!("{results}/{name}.json");
        assert_eq!(bench.perplexity(model, &["--out", &out]).code, 0);
    }
    let report = bench.path("report");
    bench.snapshot("report", &cinder(&["report", &results, "--out", &report]));
    for file in [
        "report.html",
        "report.md",
        "perplexity-vs-keep-ratio.svg",
        "perplexity-vs-keep-ratio.png",
    ] {
        assert!(Path::new(&report).join(file).is_file(), "{file}");
    }
}

/// The same inputs, settings, seed and thread count give the same bytes; another seed does not.
#[test]
fn compression_is_reproducible() {
    let bench = Bench::new();
    let run = |out: &str, seed: &str| {
        assert_eq!(bench.compress(out, &["--seed", seed]).code, 0);
        let mut files: Vec<_> = std::fs::read_dir(bench.path(out))
            .expect("lists")
            .map(|e| e.expect("entry").path())
            .collect();
        files.sort();
        files
            .iter()
            .map(|f| std::fs::read(f).expect("reads"))
            .collect::<Vec<_>>()
    };
    let first = run("a", "0");
    assert!(first == run("b", "0"));
    assert!(first != run("c", "5"));
}

#[test]
fn a_full_keep_ratio_changes_nothing() {
    let bench = Bench::new();
    let run = bench.compress("whole", &["--keep", "1", "--json"]);
    assert_eq!(run.json()["keep_ratio"], 1.0);
    let value = |model: &str| bench.perplexity(model, &["--json"]).json()["window_nll"].clone();
    assert_eq!(value(&bench.model), value(&bench.path("whole")));
}

#[test]
fn verify_finds_what_was_changed() {
    let bench = Bench::new();
    assert_eq!(bench.compress("small", &[]).code, 0);
    let small = bench.path("small");
    let shard = format!("{small}/model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).expect("reads");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).expect("writes");
    let run = cinder(&["verify", &small, "--json", "--quiet"]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("has another SHA-256"), "{}", run.stdout);
}

/// Biases and head norms survive a factorization: factored and multiplied-out forms agree.
#[test]
fn compressed_biases_and_norms() {
    for name in ["tiny-qwen2", "tiny-qwen3"] {
        let mut bench = Bench::new();
        bench.model = arg(&goldens(&format!("gguf/{name}.gguf"))).to_owned();
        let (small, dense) = (bench.path("small"), bench.path("dense"));
        assert_eq!(bench.compress("small", &[]).code, 0);
        assert_eq!(
            cinder(&["export", &small, "--dense", "--out", &dense, "--quiet"]).code,
            0
        );
        let value = |model: &str| {
            bench.perplexity(model, &["--json"]).json()["perplexity"]
                .as_f64()
                .expect("number")
        };
        let (factored, exported) = (value(&small), value(&dense));
        assert!(
            (factored / exported - 1.0).abs() < 1e-4,
            "{name}: {factored} {exported}"
        );
        assert_ne!(factored, value(&bench.model));
        assert_eq!(cinder(&["verify", &small, "--quiet"]).code, 0);
    }
}

/// From GGUF to a Hugging Face directory and back in: the same model, bit for bit.
#[test]
fn an_exported_gguf_is_the_same_model() {
    for name in ["tiny-llama", "tiny-qwen2", "tiny-qwen3"] {
        let bench = Bench::new();
        let gguf = arg(&goldens(&format!("gguf/{name}.gguf"))).to_owned();
        let out = bench.path("export");
        assert_eq!(
            cinder(&["export", &gguf, "--dense", "--out", &out, "--quiet"]).code,
            0
        );
        let logits = |model: &str| {
            let run = cinder(&[
                "logits",
                model,
                "--text",
                "The dog does not mind",
                "--json",
                "--quiet",
            ]);
            run.json()
        };
        assert_eq!(logits(&gguf), logits(&out), "{name}");
        assert_eq!(cinder(&["verify", &out, "--quiet"]).code, 0);
    }
}

/// Figures differ from run to run; what is there, and what can be counted, does not.
#[test]
fn bench_measures_speed_and_memory() {
    let model = goldens("families/llama2");
    let run = cinder(&[
        "bench",
        arg(&model),
        "--weights",
        "q8",
        "--prefill",
        "8,16",
        "--decode",
        "4",
        "--tokens",
        "4",
        "--runs",
        "2",
        "--json",
        "--quiet",
    ]);
    assert_eq!(run.code, 0);
    let result = run.json();
    let positive =
        |value: &serde_json::Value| assert!(value.as_f64().is_some_and(|v| v > 0.0), "{result}");
    for key in [
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "peak_rss_bytes",
        "load_seconds",
    ] {
        positive(&result[key]);
    }
    assert_eq!(result["prefill"].as_array().expect("a list").len(), 2);
    assert_eq!(result["decode"][0]["tokens"], 4);
    positive(&result["decode"][0]["milliseconds"]["block_linear"]);
    positive(&result["machine"]["read_bytes_per_second"]);
    let counted = cinder(&["inspect", arg(&model), "--weights", "q8", "--json"]).json();
    assert_eq!(result["weight_bytes"], counted["bytes"]);
    assert_eq!(result["kv_bytes_per_token"], counted["kv_bytes_per_token"]);
    let caches = |format: &str| {
        let arguments = [
            "--prefill",
            "4",
            "--decode",
            "4",
            "--runs",
            "1",
            "--tokens",
            "4",
        ];
        let behind = [
            "--context",
            "128,1000",
            "--beyond-context",
            "--cache",
            format,
        ];
        let arguments = [
            &["bench", arg(&model), "--json", "--quiet"],
            &arguments[..],
            &behind,
        ]
        .concat();
        cinder(&arguments).json()
    };
    let (f32, f16) = (caches("f32"), caches("f16"));
    for (format, result) in [("f32", &f32), ("f16", &f16)] {
        assert_eq!(result["cache"], format);
        for length in 0..2 {
            let measured = &result["context"][length];
            for key in [
                "milliseconds_per_token",
                "attention_milliseconds_per_token",
                "resident_bytes",
            ] {
                positive(&measured[key]);
            }
        }
    }
    let (wide, narrow) = (&f32["context"][1], &f16["context"][1]);
    assert_eq!(wide["tokens"], 1000);
    // 1004 tokens, in steps of 64.
    let per_token = f32["kv_bytes_per_token"].as_u64().expect("a number");
    assert_eq!(wide["cache_bytes"], 1024 * per_token);
    assert_eq!(narrow["cache_bytes"], 512 * per_token);
    assert_eq!(f16["kv_bytes_per_token"], per_token / 2);
    let table = cinder(&[
        "bench",
        arg(&model),
        "--context",
        "32",
        "--runs",
        "1",
        "--prefill",
        "4",
        "--decode",
        "4",
        "--quiet",
    ]);
    assert!(table.stdout.contains("of it attention"), "{}", table.stdout);
    assert!(
        table.stdout.contains("of the machine") && table.stdout.contains("GB/s"),
        "{}",
        table.stdout
    );
}

/// A model can be calibrated on what it writes; the seed alone decides what that is.
#[test]
fn calibration_on_the_models_own_text() {
    let bench = Bench::new();
    let calibration = |out: &str, seed: &str, threads: &str| {
        let (recipe, out) = (bench.path("recipe.toml"), bench.path(out));
        let mut arguments = vec!["compress", &bench.model, "--recipe", &recipe, "--out", &out];
        arguments.extend(["--calibration", "self", "--quiet"]);
        arguments.extend(["--seed", seed, "--threads", threads]);
        let run = cinder(&arguments);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let manifest = std::fs::read(format!("{out}/cinder.json")).expect("reads");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("is JSON");
        manifest["calibration"].clone()
    };
    let first = calibration("a", "0", "2");
    assert_eq!(
        (&first["corpus"], &first["draw"]),
        (&"self".into(), &"".into())
    );
    let whole = |i: usize| serde_json::json!([{"document": i, "start": 0, "tokens": 32}]);
    assert_eq!(
        first["windows_from"],
        (0..8).map(whole).collect::<serde_json::Value>()
    );
    assert_eq!(calibration("b", "0", "1"), first);
    assert_ne!(
        calibration("c", "5", "2")["tokens_sha256"],
        first["tokens_sha256"]
    );
}
