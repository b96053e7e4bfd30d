//! Low-bit codes on disk, end to end on tiny models.

mod common;

use burn::tensor::{Device, Tensor};
use cinder::models::progress::Silent;
use cinder::models::{Checkpoint, Decoder, Precision};
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

const IDS: [u32; 9] = [3, 14, 15, 9, 26, 5, 35, 8, 9];

fn open(path: &str) -> Checkpoint {
    Checkpoint::open(path.as_ref()).unwrap_or_else(|e| panic!("{e}"))
}

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    let values: Vec<f32> = tensor.into_data().try_into_vec().expect("f32");
    values.into_iter().map(f32::to_bits).collect()
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

/// A head of codes is written with the rest, counted and read back bit for bit; the embedding stays what it was.
#[test]
fn a_low_bit_head_is_written_counted_and_read() {
    let bench = Bench::new();
    let settings = "pass = 'substitute'\ngroup = 32\nhead_bits = 8";
    let recipe = bench.recipe("head", settings);
    for name in FAMILIES {
        let (model, out) = (family(name), bench.path(name));
        let planned = bench.compress(&model, &recipe, &["--dry-run"]).json();
        let run = bench.compress(&model, &recipe, &["--out", &out]).json();
        assert_eq!(planned["bytes_after"], run["bytes_after"], "{name}");
        assert_eq!(planned["head"]["bits"], 8);
        let head = &run["head"];
        assert_eq!((&head["bits"], &head["group"]), (&8.into(), &32.into()));
        assert!((1e-4..0.02).contains(&number(&head["error"])), "{head}");
        assert!(
            (9.0..27.0).contains(&number(&head["bits_per_weight"])),
            "{head}"
        );
        let verified = cinder(&["verify", &out, "--quiet"]);
        assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
        let before = cinder(&["inspect", &model, "--json"]).json();
        let after = cinder(&["inspect", &out, "--json"]).json();
        assert_eq!(before["parameters"], after["parameters"], "{name}");
        assert_eq!(before["tied_embeddings"], after["tied_embeddings"]);
        assert_eq!(after["bytes_on_disk"], run["bytes_after"]);
        assert_eq!(after["bytes"], after["bytes_on_disk"]);
        for key in ["bytes", "bits_per_weight"] {
            assert_eq!(after["head"][key], head[key]);
        }
        let text = cinder(&["inspect", &out]).stdout;
        assert!(text.contains("output head, as low-bit codes"), "{text}");

        let (dense, stored) = (open(&model), open(&out));
        let settings = "hqq:4:32,head=8".parse().expect("settings");
        let (device, silent) = (Device::flex(), Silent);
        let made = dense.load_substitute(&settings, Precision::F32, &device, &silent);
        let (made, loaded) = (
            made.expect("is made"),
            stored.load(Precision::F32, &device, &silent),
        );
        let loaded = loaded.expect("loads");
        let memory = dense.substitute_bytes(&settings, Precision::F32);
        assert_eq!(memory, stored.memory_bytes(Precision::F32), "{name}");
        let whole = |decoder: &Decoder| {
            let embedded = decoder.embedding.embed(&[IDS.to_vec()]).expect("embeds");
            let hidden = decoder.hidden(&[IDS.to_vec()], None).expect("runs");
            assert_eq!(
                decoder.lm_head.as_ref().map(|head| head.kind()),
                Some("quantized")
            );
            [embedded, decoder.logits(hidden)].map(bits)
        };
        assert_eq!(whole(&made), whole(&loaded), "{name}");
        let original = dense.load(Precision::F32, &device, &silent).expect("loads");
        let embedded = original.embedding.embed(&[IDS.to_vec()]).expect("embeds");
        assert_eq!(bits(embedded), whole(&loaded)[0], "{name}");

        // Spelled out, the head is no longer the embedding.
        let exported = bench.path(&format!("{name}-dense"));
        let export = cinder(&["export", &out, "--dense", "--out", &exported, "--quiet"]);
        assert_eq!(export.code, 0, "{}", export.stderr);
        let dense = cinder(&["inspect", &exported, "--json"]).json();
        assert_eq!(dense["tied_embeddings"], false, "{name}");
        let packed = bench.nll(&out, name);
        let spelled_out = bench.nll(&exported, &format!("{name}-dense"));
        for (a, b) in packed.iter().zip(&spelled_out) {
            assert!((a - b).abs() < 2e-3, "{name}: {a} {b}");
        }

        let generate = |more: &[&str]| {
            let mut arguments = vec!["generate", &model, "--prompt", "the quick", "--quiet"];
            arguments.extend(["--max-new-tokens", "24", "--json"]);
            arguments.extend(more);
            cinder(&arguments).json()
        };
        let drafted = generate(&["--draft", &out, "--draft-depth", "3"]);
        assert_eq!(generate(&[])["ids"], drafted["ids"], "{name}");
    }
}

/// What was made of a model with such a head keeps it, and a head that is not whole is refused.
#[test]
fn a_low_bit_head_is_kept_and_not_read_in_part() {
    let bench = Bench::new();
    let model = family("tiny-qwen2");
    let text = bench.path("text.txt");
    let both = format!(
        "pass = 'substitute'\nsites = ['down']\nhead_bits = 4\n[[passes]]\npass = 'low_rank'\nkeep = 0.7\n\
         sites = ['qkv', 'o', 'gate_up']\n[calibration]\ncorpus = '{text}'\nwindows = 4\nwindow = 48"
    );
    let both = bench.recipe("both", &both);
    let (first, second) = (bench.path("first"), bench.path("second"));
    let made = bench.compress(&model, &both, &["--out", &first]).json();
    let identity = bench.recipe("identity", "pass = 'identity_block'");
    let kept = bench
        .compress(&first, &identity, &["--out", &second])
        .json();
    assert!(made["head"].is_object());
    assert_eq!(made["head"], kept["head"]);
    let verified = cinder(&["verify", &second, "--quiet"]);
    assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
    let head = |out: &str| {
        let decoder = open(out).load(Precision::F32, &Device::flex(), &Silent);
        let head = decoder.expect("loads").lm_head.expect("a head");
        bits(head.to_dense().weight.val())
    };
    assert_eq!(head(&first), head(&second));

    let twice = bench.recipe(
        "twice",
        "pass = 'substitute'\nsites = ['o']\nhead_bits = 8\n[[passes]]\npass = 'substitute'\nsites = ['down']\nhead_bits = 4",
    );
    let run = bench.compress(&model, &twice, &["--dry-run"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains("`head_bits`"), "{}", run.stderr);

    // The frame is the first shard. A scale that is not there must not make it the model with the embedding as its head.
    let shard = std::fs::read_dir(&second).expect("lists");
    let shard = shard.map(|e| e.expect("entry").path());
    let shard = shard.filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    let shard = shard.min().expect("is there");
    let mut damaged = std::fs::read(&shard).expect("reads");
    let header = 8 + u64::from_le_bytes(damaged[..8].try_into().expect("eight")) as usize;
    let text = String::from_utf8(damaged[8..header].to_vec()).expect("JSON");
    let renamed = text.replacen("lm_head.scales", "lm_head.weight", 1);
    assert_ne!(text, renamed);
    damaged[8..header].copy_from_slice(renamed.as_bytes());
    std::fs::write(&shard, &damaged).expect("writes");
    let run = cinder(&["logits", &second, "--text", "a"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains("lm_head"), "{}", run.stderr);
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
        ("head = 8", "unknown field"),
        ("head_bits = 5", "codes of the head are 5 bits"),
        ("head_group = 32", "`head_group` is for `head_bits`"),
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
