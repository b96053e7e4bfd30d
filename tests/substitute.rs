//! Low-bit codes on disk, end to end on tiny models.

mod common;

use common::{Run, arg, cinder, goldens};
use serde_json::Value;
use tempfile::TempDir;

const FAMILIES: [&str; 3] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3"];

fn family(name: &str) -> String {
    arg(&goldens("gguf").join(format!("{name}.gguf"))).to_owned()
}

struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Bench(tempfile::tempdir().expect("temp"));
        let line = |i: usize| format!("line {i} of {}: the quick brown fox\n", i * 37 % 91);
        let text: String = (0..400).map(line).collect();
        std::fs::write(bench.path("text.txt"), text).expect("writes");
        bench
    }

    fn path(&self, name: &str) -> String {
        arg(&self.0.path().join(name)).to_owned()
    }

    fn recipe(&self, name: &str, settings: &str) -> String {
        let path = self.path(&format!("{name}.toml"));
        let text = format!("name = '{name}'\n[[passes]]\n{settings}\n");
        std::fs::write(&path, text).expect("writes");
        path
    }

    fn compress(&self, model: &str, recipe: &str, more: &[&str]) -> Run {
        let mut arguments = vec!["compress", model, "--recipe", recipe];
        arguments.extend(["--quiet", "--threads", "2", "--json"]);
        arguments.extend(more);
        cinder(&arguments)
    }

    /// Perplexity's windows; the whole result goes to `results/NAME.json` too.
    fn nll(&self, model: &str, name: &str) -> Vec<f64> {
        let (text, out) = (
            self.path("text.txt"),
            self.path(&format!("results/{name}.json")),
        );
        let run = cinder(&[
            "eval",
            "ppl",
            model,
            "--text",
            &text,
            "--window",
            "48",
            "--windows",
            "4",
            "--quiet",
            "--json",
            "--out",
            &out,
        ]);
        serde_json::from_value(run.json()["window_nll"].clone()).expect("numbers")
    }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// What is planned is what is written, counted to the byte; what is read back computes what its dequantised weights do.
#[test]
fn codes_are_written_counted_read_and_exported() {
    let bench = Bench::new();
    let settings = "pass = 'substitute'\nbits = 3\ngroup = 32\n[passes.overrides]\ndown = { bits = 8, group = 64 }";
    let mixed = bench.recipe("mixed", settings);
    for name in FAMILIES {
        let model = family(name);
        let dense = bench.nll(&model, name);
        let mut distances = Vec::new();
        for (recipe, variant) in [
            (mixed.as_str(), "mixed"),
            ("recipes/substitute-4bit.toml", "4bit"),
        ] {
            let out = bench.path(&format!("{name}-{variant}"));
            let planned = bench.compress(&model, recipe, &["--dry-run"]).json();
            let run = bench.compress(&model, recipe, &["--out", &out]).json();
            assert_eq!(
                planned["bytes_after"], run["bytes_after"],
                "{name} {variant}"
            );
            assert_eq!(run["keep_ratio"], 1.0);
            for site in run["sites"].as_array().expect("sites") {
                assert_eq!(site["kind"], "quantized", "{site}");
                let (bits, most) = match (variant, site["projection"].as_str()) {
                    ("4bit", _) => (4.5, 0.2),
                    (_, Some("down")) => (8.5, 0.02),
                    _ => (4.0, 0.35),
                };
                // Tiny matrices are padded, and the padding is counted.
                assert!(
                    (bits..3.0 * bits).contains(&number(&site["bits_per_weight"])),
                    "{site}"
                );
                assert!((1e-4..most).contains(&number(&site["error"])), "{site}");
            }
            let verified = cinder(&["verify", &out, "--quiet"]);
            assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
            let before = cinder(&["inspect", &model, "--json"]).json();
            let after = cinder(&["inspect", &out, "--json"]).json();
            assert_eq!(before["parameters"], after["parameters"]);
            assert_eq!(after["bytes_on_disk"], run["bytes_after"]);
            // All the rest is f32 in both.
            assert_eq!(after["bytes"], after["bytes_on_disk"]);
            for site in after["sites"].as_array().expect("sites") {
                assert_eq!(site["kind"], "quantized");
                let bits = 8.0 * number(&site["bytes"]) / number(&site["scalars"]);
                assert_eq!(number(&site["bits_per_weight"]), bits);
            }
            let exported = bench.path(&format!("{name}-{variant}-dense"));
            let export = cinder(&["export", &out, "--dense", "--out", &exported, "--quiet"]);
            assert_eq!(export.code, 0, "{}", export.stderr);
            let packed = bench.nll(&out, &format!("{name}-{variant}"));
            // Activations are rounded to 16 bits before they meet codes.
            let spelled_out = bench.nll(&exported, &format!("{name}-{variant}-dense"));
            for (a, b) in packed.iter().zip(&spelled_out) {
                assert!((a - b).abs() < 2e-3, "{name} {variant}: {a} {b}");
            }
            let off = dense.iter().zip(&packed).map(|(a, b)| (a - b).abs());
            distances.push(off.fold(0.0, f64::max));
        }
        assert!(distances.iter().all(|d| *d < 0.5), "{name}: {distances:?}");
    }
    let report = bench.path("report");
    let result = |name: &str| bench.path(&format!("results/{name}.json"));
    let (dense, packed) = (result("tiny-llama"), result("tiny-llama-4bit"));
    let model = bench.path("tiny-llama-4bit");
    let run = cinder(&["report", &dense, &packed, &model, "--out", &report]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let text = std::fs::read_to_string(format!("{report}/report.md")).expect("is there");
    assert!(text.contains("quantized"), "{text}");
}

/// The same bytes again, from a run that is gone on with too; and what is damaged is found.
#[test]
fn codes_are_the_same_bytes_again_and_damage_is_found() {
    let bench = Bench::new();
    let model = family("tiny-llama");
    let recipe = bench.recipe(
        "two",
        "pass = 'substitute'\nbits = 2\ngroup = 128\nmethod = 'round'",
    );
    let (first, second) = (bench.path("first"), bench.path("second"));
    for out in [&first, &second] {
        bench.compress(&model, &recipe, &["--out", out]).json();
    }
    let manifest = |out: &str| std::fs::read(format!("{out}/cinder.json")).expect("reads");
    assert_eq!(manifest(&first), manifest(&second));
    let again = bench.compress(&first, &recipe, &["--out", &bench.path("again")]);
    assert_eq!(again.code, 1);
    assert!(
        again.stderr.contains("is quantized already"),
        "{}",
        again.stderr
    );

    let shard = std::fs::read_dir(&first)
        .expect("lists")
        .map(|e| e.expect("entry").path());
    let mut shards: Vec<_> = shard
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    shards.sort();
    let whole = std::fs::read(&shards[1]).expect("reads");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("eight")) as usize;
    let text = String::from_utf8(whole[8..header].to_vec()).expect("JSON");
    // A name that nothing reads, with as many letters: the codes' scales are missing then.
    let renamed = text.replacen("q_proj.scales", "q_proj.weight", 1);
    assert_ne!(text, renamed);
    let mut damaged = whole.clone();
    damaged[8..header].copy_from_slice(renamed.as_bytes());
    std::fs::write(&shards[1], &damaged).expect("writes");
    let run = cinder(&["logits", &first, "--text", "a"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    let mut changed = whole;
    *changed.last_mut().expect("bytes") ^= 1;
    std::fs::write(&shards[1], &changed).expect("writes");
    let run = cinder(&["verify", &first, "--quiet"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stdout.contains("SHA-256"), "{}", run.stdout);
}

/// What can not be done is said before anything is written.
#[test]
fn wrong_settings_and_factored_models_are_refused() {
    let bench = Bench::new();
    let model = family("tiny-llama");
    for (settings, why) in [
        ("bits = 5", "5 bits in groups of 64"),
        ("group = 48", "groups 32, 64 or 128"),
        ("method = 'gptq'", "unknown variant"),
        (
            "overrides = { embed = { bits = 8 } }",
            "`overrides` names `embed`",
        ),
        ("overrides = { down = { bits = 7 } }", "codes of `down`"),
        ("sites = []", "`sites` is empty"),
        ("head_bits = 8", "unknown field"),
    ] {
        let recipe = bench.recipe("wrong", &format!("pass = 'substitute'\n{settings}"));
        let run = bench.compress(&model, &recipe, &["--out", &bench.path("out")]);
        assert_eq!(run.code, 1, "{settings}: {}", run.stderr);
        assert!(run.stderr.contains(why), "{settings}: {}", run.stderr);
    }
    let text = bench.path("text.txt");
    let low_rank = format!(
        "pass = 'low_rank'\nkeep = 0.7\n[calibration]\ncorpus = '{text}'\nwindows = 4\nwindow = 48"
    );
    let recipe = bench.recipe("low-rank", &low_rank);
    let factored = bench.path("factored");
    bench
        .compress(&model, &recipe, &["--out", &factored])
        .json();
    let out = bench.path("out");
    let run = bench.compress(&factored, "recipes/substitute-4bit.toml", &["--out", &out]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains("is low-rank already"), "{}", run.stderr);
    assert!(!std::path::Path::new(&out).exists());
}
