//! Commands on a tiny model that caches latents.

mod common;

use std::path::Path;

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use cinder::models::cache::CacheFormat;
use cinder::models::checkpoint::{CompressedWriter, Manifest, StoredDtype};
use cinder::models::projection::{GroupHeads, Matrix, ProjectionGroup};
use cinder::models::{Checkpoint, Precision};
use common::{arg, cinder, goldens};
use tempfile::TempDir;

const RECIPE: &str = "name = 'latents'\n[calibration]\ncorpus = 'self'\nwindows = 8\nwindow = 32\n\
                      [[passes]]\npass = 'low_rank'\nkeep = 1.0\n";

fn linear(weight: Tensor<2>) -> Matrix {
    let weight = Param::from_tensor(weight);
    Linear { weight, bias: None }.into()
}

/// The tiny GGUF model with its keys and values as latents, rebuilt by identities: the same model, cached otherwise.
fn model() -> TempDir {
    let folder = tempfile::tempdir().expect("temp");
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, RECIPE).expect("writes");
    let dense = goldens("gguf/tiny-llama.gguf");
    // For a manifest: a full keep ratio changes nothing.
    let plain = folder.path().join("plain");
    let run = cinder(&[
        "compress",
        arg(&dense),
        "--recipe",
        arg(&recipe),
        "--out",
        arg(&plain),
        "--quiet",
    ]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let mut manifest = Manifest::read(&plain).expect("reads").expect("written");
    let (source, device) = (Checkpoint::open(&dense).expect("opens"), Device::flex());
    let out = folder.path().join("model");
    let mut writer = CompressedWriter::create(&out, 2, StoredDtype::F32, false).expect("creates");
    writer.write_frame(&source, None).expect("writes");
    for index in 0..2 {
        let mut layer = source
            .load_layer(index, Precision::F32, &device)
            .expect("loads");
        let qkv = std::mem::take(&mut layer.attention.qkv.members);
        let weight = |i: usize| qkv[i].to_dense().weight.val();
        let basis = linear(Tensor::cat(vec![weight(1), weight(2)], 1));
        let groups = || (0..2).map(|_| linear(Tensor::eye(8, &device))).collect();
        let latent = GroupHeads::new(basis, groups(), groups(), false);
        manifest.projection_scalars_after += 4 * 8 * 8;
        layer.attention.latent = Some(latent);
        let query = qkv.into_iter().next().expect("three");
        layer.attention.qkv = ProjectionGroup::new(vec![query]);
        writer.write_layer(index, &layer).expect("writes");
    }
    manifest.cache_format = Some(CacheFormat::F16);
    writer.finish(&source, manifest).expect("finishes");
    folder
}

#[test]
fn inspect_evaluate_generate_bench_verify() {
    let folder = model();
    let model = folder.path().join("model");
    let model = arg(&model);
    insta::with_settings!({filters => vec![(r"(?m)^made by[\s\S]*", "[manifest]\n")]}, {
        insta::assert_snapshot!("inspect-latents", cinder(&["inspect", model]).stdout);
    });
    let shown = cinder(&["inspect", model, "--cache", "q4", "--json"]).json();
    assert_eq!(shown["cache"], "q4");
    // In each of two layers four slices of eight codes, a scale and a minimum.
    assert_eq!(shown["kv_bytes_per_token"], 2 * 4 * (4 + 4));
    assert_eq!(shown["latents"]["bytes_per_token"]["q2"], 2 * 4 * (2 + 4));
    assert_eq!(shown["latents"]["ratio"], 1.0);

    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE-MIT");
    let perplexity = |model: &str, more: &[&str]| {
        let arguments = [
            "eval",
            "ppl",
            model,
            "--text",
            arg(&text),
            "--window",
            "64",
            "--windows",
            "4",
        ];
        cinder(&[&arguments[..], more, &["--json", "--quiet"]].concat()).json()
    };
    let dense = goldens("gguf/tiny-llama.gguf");
    let dense = perplexity(arg(&dense), &[]);
    let latents = perplexity(model, &["--cache", "f32"]);
    let value = |result: &serde_json::Value| result["perplexity"].as_f64().expect("a number");
    assert!((value(&dense) / value(&latents) - 1.0).abs() < 1e-5);
    assert_eq!(latents["cache"], "f32");
    for form in ["rebuilt", "summed", "folded"] {
        let same = perplexity(model, &["--cache", "f32", "--values", form]);
        assert!((value(&dense) / value(&same) - 1.0).abs() < 1e-5, "{form}");
    }
    assert_eq!(perplexity(model, &[])["cache"], "f16");
    let packed = perplexity(model, &["--cache", "q8"]);
    assert_eq!(
        (&packed["cache"], &packed["kv_bytes_per_token"]),
        (&"q8".into(), &96.into())
    );

    // What the choices of a document share goes through the latents too, in the format that the model declares.
    let record = r#"{"goal":"a long goal","sol1":"one way","sol2":"another way","label":1}"#;
    std::fs::write(folder.path().join("piqa.jsonl"), record).expect("writes");
    let scores = |model: &str, format: &str| -> Vec<f64> {
        let (data, out) = (arg(folder.path()), folder.path().join("scores.jsonl"));
        let tasks = [
            "eval", "tasks", model, "--tasks", "piqa", "--data", data, "--cache", format,
        ];
        let run = cinder(&[&tasks[..], &["--documents", arg(&out), "--quiet"]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let line = std::fs::read_to_string(&out).expect("reads");
        let line: serde_json::Value = serde_json::from_str(&line).expect("one line");
        let sums = line["log_likelihoods"].as_array().expect("a list").iter();
        sums.map(|sum| sum.as_f64().expect("a number")).collect()
    };
    let apart = |a: &[f64], b: &[f64]| {
        let pairs = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        pairs.fold(0.0, f64::max)
    };
    let whole = scores(arg(&goldens("gguf/tiny-llama.gguf")), "f32");
    let exact = scores(model, "f32");
    assert!(apart(&whole, &exact) < 1e-3, "{whole:?} {exact:?}");
    let packed = scores(model, "q8");
    assert!(
        packed != exact && apart(&packed, &exact) < 1.0,
        "{packed:?} {exact:?}"
    );

    let run = cinder(&[
        "generate",
        model,
        "--prompt",
        "a",
        "--max-new-tokens",
        "4",
        "--cache",
        "q4",
        "--json",
    ]);
    assert_eq!(run.json()["cache"], "q4");
    let bench = cinder(&[
        "bench",
        model,
        "--prefill",
        "4",
        "--decode",
        "4",
        "--context",
        "100",
        "--tokens",
        "4",
        "--runs",
        "1",
        "--json",
    ]);
    let behind = &bench.json()["context"][0];
    assert!(
        behind["cache_bytes"].as_u64() > Some(0)
            && behind["milliseconds_per_token"].as_f64() > Some(0.0)
    );
    // 104 positions in tiles of 64.
    assert_eq!(behind["rotary_bytes"], 128 * 4 * 8);
    let verified = cinder(&["verify", model]);
    assert_eq!(verified.code, 0, "{}", verified.stdout);
}

/// Recent tokens of a packed cache in f16: asked for, declared, counted and refused.
#[test]
fn a_residual_window() {
    let folder = model();
    let model = folder.path().join("model");
    let window = |tokens: &'static str| ["--cache", "q2", "--residual-window", tokens];
    // Four slices of 8 halves in each of two layers, for 100 + 255 tokens in panels of 16; a token of codes is no larger.
    let bytes = 2 * 4 * 8 * 2 * 368;
    let shown = cinder(&[&["inspect", arg(&model), "--json"], &window("100")[..]].concat()).json();
    assert_eq!(shown["residual_window_bytes"], bytes);
    assert_eq!(shown["kv_bytes_per_token"], 2 * 4 * (2 + 4));
    let text = cinder(&[&["inspect", arg(&model)], &window("100")[..]].concat());
    let line = "residual window of 100 tokens (f16)";
    assert!(text.stdout.contains(line), "{}", text.stdout);

    let license = Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE-MIT");
    let perplexity = |more: &[&str]| {
        let arguments = ["eval", "ppl", arg(&model), "--text", arg(&license)];
        let length = ["--window", "64", "--windows", "4", "--json", "--quiet"];
        cinder(&[&arguments[..], &length, more].concat()).json()
    };
    let value = |result: &serde_json::Value| result["perplexity"].as_f64().expect("a number");
    let (halves, codes) = (perplexity(&[]), perplexity(&["--cache", "q2"]));
    // Texts within the window are read in f16 alone.
    let windowed = perplexity(&window("64"));
    assert!((value(&windowed) / value(&halves) - 1.0).abs() < 1e-5);
    assert!((value(&codes) / value(&halves) - 1.0).abs() > 1e-4);
    assert_eq!(
        (&windowed["cache"], &windowed["residual_window"]),
        (&"q2".into(), &64.into())
    );
    assert_eq!(codes["residual_window_bytes"], 0);

    let refused = |more: &[&str]| {
        let run = cinder(&[&["generate", arg(&model), "--prompt", "a"], more].concat());
        assert_eq!(run.code, 2, "{}", run.stderr);
        run.stderr
    };
    let error = refused(&["--residual-window", "8"]);
    let expected = "a residual window of 8 tokens is for packed latents, and the cache is f16";
    assert!(error.contains(expected), "{error}");

    // Declared, it is the default of packed caches.
    let file = model.join("cinder.json");
    let manifest = std::fs::read_to_string(&file).expect("reads");
    let declared = "\"cache_format\": \"q4\",\n  \"residual_window\": 300";
    let manifest = manifest.replacen("\"cache_format\": \"f16\"", declared, 1);
    std::fs::write(&file, manifest).expect("writes");
    let generate = |more: &[&str]| {
        let arguments = ["generate", arg(&model), "--prompt", "a", "--json"];
        cinder(&[&arguments[..], &["--max-new-tokens", "4"], more].concat()).json()
    };
    let kept = |more: &[&str]| generate(more)["residual_window"].as_u64();
    assert_eq!(kept(&[]), Some(300));
    assert_eq!(kept(&["--cache", "q8"]), Some(300));
    assert_eq!(kept(&["--cache", "f16"]), Some(0));
    assert_eq!(kept(&["--residual-window", "0"]), Some(0));
}

/// A sweep measures each model through every cache that it can have, and draws perplexity against their bytes.
#[test]
fn a_sweep_through_several_caches() {
    let folder = tempfile::tempdir().expect("temp");
    let recipe = folder.path().join("latents.toml");
    let pass = "pass = 'kv_low_rank'\nkeep = 0.5\nlatent = 'separate'\ngroup_heads = 1\nrank_floor = 2\nrank_step = 1\n";
    let text = RECIPE.replace("pass = 'low_rank'\nkeep = 1.0\n", pass);
    std::fs::write(&recipe, text).expect("writes");
    let plain = folder.path().join("plain.toml");
    std::fs::write(&plain, RECIPE.replace("latents", "plain")).expect("writes");
    let (out, dense) = (folder.path().join("sweep"), goldens("gguf/tiny-llama.gguf"));
    let license = Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE-MIT");
    let sweep = |caches: &str, more: &[&str]| {
        let arguments = [
            "sweep",
            arg(&dense),
            "--recipe",
            arg(&recipe),
            "--recipe",
            arg(&plain),
            "--keep",
            "0.75,0.5",
            "--text",
            arg(&license),
            "--window",
            "64",
            "--windows",
            "2",
            "--out",
            arg(&out),
            "--discard-models",
            "--quiet",
            "--cache",
            caches,
        ];
        cinder(&[&arguments[..], more].concat())
    };
    let done = sweep("q3,f16", &["--json"]).json();
    let points = done["points"].as_array().expect("points");
    let caches = |point: &serde_json::Value| -> Vec<(String, u64)> {
        let caches = point["caches"].as_array().expect("a list").iter();
        let cache = |cache: &serde_json::Value| {
            let name = cache["cache"].as_str().expect("a name").to_owned();
            let perplexity = cache["texts"]["LICENSE-MIT"]["perplexity"].as_f64();
            assert!(perplexity > Some(1.0));
            (name, cache["kv_bytes_per_token"].as_u64().expect("bytes"))
        };
        caches.map(cache).collect()
    };
    let of = |format: &str, bytes: u64| (format.to_owned(), bytes);
    // Two layers of keys and values in two heads of 8; at 0.75 and 0.5 what four slices a layer keep of them.
    assert_eq!(caches(&points[0]), [of("f16", 2 * 32 * 2)]);
    assert_eq!(
        (&points[1]["name"], caches(&points[1])[0].clone()),
        (&"latents-0.75".into(), of("f16", 96))
    );
    assert_eq!(
        caches(&points[2]),
        [of("f16", 64), of("q3", 2 * 4 * (3 + 4))]
    );
    assert_eq!(caches(&points[3]), [of("f16", 128)], "no latents, no codes");
    assert_eq!(points[2]["texts"], points[2]["caches"][0]["texts"]);
    assert!((points[2]["kv_keep_ratio"].as_f64().expect("a ratio") - 0.5).abs() < 1e-9);
    let results = |name: &str| out.join("results").join(name);
    assert!(results("latents-0.5-q3.json").is_file() && !results("dense-q3.json").exists());
    let figure = out.join("report/kv-cache-bytes-vs-perplexity.svg");
    assert!(figure.is_file(), "{}", figure.display());
    // The same again is finished; other caches are another sweep.
    assert_eq!(sweep("q3,f16", &["--resume", "--json"]).json(), done);
    let table = sweep("q3,f16", &["--resume"]).stdout;
    assert!(
        table.contains("bytes/token") && table.contains("q3"),
        "{table}"
    );
    let drifted = sweep("q3", &["--resume"]);
    assert_eq!(drifted.code, 1, "{}", drifted.stderr);
    assert!(drifted.stderr.contains("caches"), "{}", drifted.stderr);
}
