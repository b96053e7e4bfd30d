//! The passes end to end on tiny models: budgets, exactness, resuming, sweeps.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Run, arg, cinder, goldens};
use serde_json::Value;
use tempfile::TempDir;

const FAMILIES: [&str; 3] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3"];

/// Passes by name, with settings that make the most of tiny matrices.
const PASSES: [(&str, &str); 7] = [
    ("low-rank", "pass = 'low_rank'\nkeep = 0.7"),
    (
        "energy",
        "pass = 'low_rank'\nkeep = 0.7\nallocation = 'energy'\nidentity = true",
    ),
    (
        "fisher",
        "pass = 'low_rank'\nkeep = 0.7\nallocation = 'fisher'",
    ),
    ("loss", "pass = 'skipcat'\nkeep = 0.7\nallocation = 'loss'"),
    ("skipcat", "pass = 'skipcat'\nkeep = 0.7"),
    ("shared", "pass = 'skipcat'\nkeep = 0.7\nidentity = false"),
    (
        "frontier",
        "pass = 'frontier'\nkeep = 0.7\nneuron_step = 2\nneuron_sizes = 6",
    ),
];

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let text: String = (0..1500)
            .map(|i| {
                format!(
                    "line {} of {}: the quick brown fox number {}\n",
                    i,
                    i * 37 % 91,
                    i * i % 1013
                )
            })
            .collect();
        std::fs::write(folder.path().join("text.txt"), text).expect("writes");
        Bench { folder }
    }

    fn path(&self, name: &str) -> String {
        arg(&self.folder.path().join(name)).to_owned()
    }

    fn recipe(&self, name: &str, pass: &str, calibration: &str) -> String {
        let path = self.path(&format!("{name}.toml"));
        let text = format!(
            "name = '{name}'\n[calibration]\ncorpus = '{}'\nwindows = 12\nwindow = 48\n{calibration}\n[calibration.gradients]\nwindows = 8\n[[passes]]\n{pass}\n",
            self.path("text.txt")
        );
        std::fs::write(&path, text).expect("writes");
        path
    }

    fn compress(&self, model: &str, recipe: &str, out: &str, more: &[&str]) -> Run {
        let out = self.path(out);
        let mut arguments = vec!["compress", model, "--recipe", recipe, "--out", &out];
        arguments.extend(["--quiet", "--threads", "2", "--json"]);
        arguments.extend(more);
        cinder(&arguments)
    }

    fn nll(&self, model: &str) -> Vec<f64> {
        let text = self.path("text.txt");
        let run = cinder(&[
            "eval",
            "ppl",
            model,
            "--text",
            &text,
            "--window",
            "48",
            "--windows",
            "6",
            "--quiet",
            "--json",
        ]);
        let windows = run.json()["window_nll"].clone();
        serde_json::from_value(windows).expect("numbers")
    }
}

fn family(name: &str) -> String {
    arg(&goldens("gguf").join(format!("{name}.gguf"))).to_owned()
}

fn close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < tolerance, "{what}: {a} {b}");
    }
}

/// Every file of a directory with its content.
fn files(directory: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("lists");
    entries
        .map(|e| e.expect("entry").path())
        .map(|path| {
            (
                PathBuf::from(path.file_name().expect("name")),
                std::fs::read(&path).expect("reads"),
            )
        })
        .collect()
}

/// Never over the budget, under by less than one rank; whole, and the same map when it is multiplied out.
#[test]
fn every_pass_meets_its_budget_on_every_family() {
    let bench = Bench::new();
    for name in FAMILIES {
        let model = family(name);
        for (pass, settings) in PASSES {
            let out = format!("{name}-{pass}");
            let recipe = bench.recipe(pass, settings, "");
            let run = bench.compress(&model, &recipe, &out, &[]).json();
            let before = run["projection_scalars_before"].as_u64().expect("count");
            let after = run["projection_scalars_after"].as_u64().expect("count");
            let budget = (0.7 * before as f64) as u64;
            assert!(after <= budget, "{out}: {after} of {budget}");
            // The widest matrix's rank is the dearest step there is.
            let step = if pass == "frontier" { 3 * 2 * 64 } else { 192 };
            assert!(budget - after < step, "{out}: {after} of {budget}");
            let sites = run["sites"].as_array().expect("sites");
            let sum: u64 = sites
                .iter()
                .map(|s| s["scalars"].as_u64().expect("count"))
                .sum();
            assert_eq!(sum, after, "{out}");
            assert!(
                sites
                    .iter()
                    .all(|s| s["growth"].as_f64().is_none_or(|g| g <= 2.0 + 1e-9))
            );

            let (small, dense) = (bench.path(&out), bench.path(&format!("{out}-dense")));
            let verified = cinder(&["verify", &small, "--quiet"]);
            assert_eq!(verified.code, 0, "{out}: {}", verified.stdout);
            let export = cinder(&["export", &small, "--dense", "--out", &dense, "--quiet"]);
            assert_eq!(export.code, 0, "{out}: {}", export.stderr);
            close(&bench.nll(&small), &bench.nll(&dense), 1e-4, &out);
        }
    }
}

/// Keeping everything is the model itself, bit for bit, whatever the pass (low-rank.md §2.6, invariant 8).
#[test]
fn keeping_everything_is_the_dense_model() {
    let bench = Bench::new();
    let model = family("tiny-qwen2");
    for (pass, settings) in PASSES {
        for propagate in ["", "propagate = 'inputs'"] {
            let recipe = bench.recipe(pass, settings, propagate);
            let out = format!("whole-{pass}");
            let run = bench.compress(&model, &recipe, &out, &["--keep", "1", "--overwrite"]);
            assert_eq!(run.json()["keep_ratio"], 1.0);
            assert_eq!(bench.nll(&model), bench.nll(&bench.path(&out)), "{pass}");
        }
    }
}

/// Propagation changes what blocks are solved for, not what they store.
#[test]
fn propagated_models_store_as_much() {
    let bench = Bench::new();
    let model = family("tiny-llama");
    let scalars: Vec<Value> = ["none", "inputs", "block"]
        .iter()
        .map(|propagate| {
            let pass = PASSES[6].1;
            let recipe = bench.recipe(propagate, pass, &format!("propagate = '{propagate}'"));
            let run = bench.compress(&model, &recipe, propagate, &[]).json();
            assert_eq!(
                cinder(&["verify", &bench.path(propagate), "--quiet"]).code,
                0
            );
            run["projection_scalars_after"].clone()
        })
        .collect();
    assert!(scalars.iter().all(|s| *s == scalars[0]), "{scalars:?}");
}

/// "Skip" of a model that is low-rank already: the same products, fewer scalars.
#[test]
fn an_identity_block_costs_nothing_but_rounding() {
    let bench = Bench::new();
    for (name, pass) in FAMILIES
        .iter()
        .flat_map(|f| [(f, PASSES[0]), (f, PASSES[5])])
    {
        let recipe = bench.recipe(pass.0, pass.1, "");
        bench
            .compress(&family(name), &recipe, name, &["--overwrite"])
            .json();
        let plain = bench.path(name);
        let out = format!("{name}-identity");
        let run = bench
            .compress(
                &plain,
                "recipes/identity-block.toml",
                &out,
                &["--overwrite"],
            )
            .json();
        let kept = run["keep_ratio"].as_f64().expect("ratio");
        assert!(kept < 0.62, "{name}: {kept}");
        let identity = bench.path(&out);
        assert_eq!(cinder(&["verify", &identity, "--quiet"]).code, 0);
        close(&bench.nll(&plain), &bench.nll(&identity), 1e-5, name);
        let again = bench.compress(&identity, "recipes/identity-block.toml", "again", &[]);
        assert_eq!(again.code, 1, "{}", again.stdout);
        assert!(
            again.stderr.contains("no low-rank projection"),
            "{}",
            again.stderr
        );
    }
}

/// In a window of two tokens only the first is scored, and it attends to itself alone: no loss depends on q and k.
#[test]
fn gradients_that_are_zero_are_a_fallback() {
    let bench = Bench::new();
    let recipe = bench.recipe("frontier", PASSES[6].1, "");
    let text = std::fs::read_to_string(&recipe).expect("reads");
    std::fs::write(&recipe, text.replace("window = 48", "window = 2")).expect("writes");
    let run = bench
        .compress(&family("tiny-llama"), &recipe, "out", &[])
        .json();
    let sites = run["sites"].as_array().expect("sites");
    let fallback = |site: &Value| site["fallback"].as_str().unwrap_or_default().to_owned();
    for site in sites {
        let zero = fallback(site).contains("all gradients are zero");
        assert_eq!(
            zero,
            site["projection"] == "q" || site["projection"] == "k",
            "{site}"
        );
    }
    let counted = sites.iter().filter(|s| !fallback(s).is_empty()).count();
    assert_eq!(run["fallbacks"], counted);
    assert_eq!(cinder(&["verify", &bench.path("out"), "--quiet"]).code, 0);
}

/// What was pruned before stays known as that.
#[test]
fn identity_blocks_of_a_pruned_model_keep_its_shapes() {
    let bench = Bench::new();
    let pass = "pass = 'frontier'\nkeep = 0.4\nneuron_step = 2\nneuron_sizes = 6\nstructures = { identity = false, shared = false }";
    let recipe = bench.recipe("frontier", pass, "");
    let before = bench
        .compress(&family("tiny-llama"), &recipe, "plain", &[])
        .json();
    let after = bench
        .compress(
            &bench.path("plain"),
            "recipes/identity-block.toml",
            "out",
            &[],
        )
        .json();
    let of = |run: &Value| run["sites"].as_array().expect("sites").clone();
    let (before, after) = (of(&before), of(&after));
    assert!(before.iter().any(|site| site["neurons"].is_u64()));
    for (before, after) in before.iter().zip(&after) {
        for key in ["projection", "shape", "neurons", "rank"] {
            assert_eq!(before[key], after[key], "{before} {after}");
        }
        assert_eq!(
            before["kind"] == "pruned",
            after["kind"] == "pruned",
            "{after}"
        );
    }
}

/// Settings of `kv_low_rank`, and whether a latent serves keys and values.
const LATENTS: [(&str, &str, bool); 4] = [
    ("joint", "cache = 'q4'", true),
    (
        "separate",
        "latent = 'separate'\ngroup_heads = 1\nrule = 'fisher_group'",
        false,
    ),
    ("groups", "group_heads = 1\nrule = 'fisher'", true),
    (
        "palu",
        "latent = 'separate'\nrule = 'uniform'\ntwo_sided = false\nrotate = false",
        false,
    ),
];

fn kv_low_rank(keep: f64, settings: &str) -> String {
    format!("pass = 'kv_low_rank'\nkeep = {keep}\nrank_floor = 1\nrank_step = 1\n{settings}")
}

/// Latent values of a token, over all layers.
fn latent_numbers(run: &Value, joint: bool) -> u64 {
    let sites = run["sites"].as_array().expect("sites").iter();
    let own = sites.filter(|s| s["projection"] == "k" || (!joint && s["projection"] == "v"));
    own.map(|s| s["rank"].as_u64().expect("a rank")).sum()
}

/// A share of the cache's numbers is met exactly; everything kept is the model itself but for rounding.
#[test]
fn latents_meet_their_budget_on_every_family() {
    let bench = Bench::new();
    for name in FAMILIES {
        let model = family(name);
        for (kind, settings, joint) in LATENTS {
            let out = format!("{name}-{kind}");
            let recipe = bench.recipe(kind, &kv_low_rank(0.7, settings), "");
            let run = bench.compress(&model, &recipe, &out, &[]).json();
            let sites = run["sites"].as_array().expect("sites");
            let dense: u64 = sites
                .iter()
                .map(|s| s["shape"][0].as_u64().expect("rows"))
                .sum();
            let numbers = latent_numbers(&run, joint);
            // One latent of all heads needs no more values than there are inputs.
            let widths = sites.iter().filter(|s| s["projection"] == "k");
            let inputs: u64 = widths.map(|s| s["shape"][1].as_u64().expect("width")).sum();
            let most = if kind == "joint" { inputs } else { dense };
            assert_eq!(numbers, most.min((0.7 * dense as f64) as u64), "{out}");
            let ratio = run["kv_keep_ratio"].as_f64().expect("ratio");
            assert_eq!(ratio, numbers as f64 / dense as f64, "{out}");
            assert!(sites.iter().all(|s| s["pass"] == "kv_low_rank"));
            let small = bench.path(&out);
            let verified = cinder(&["verify", &small, "--quiet"]);
            assert_eq!(verified.code, 0, "{out}: {}", verified.stdout);

            let whole = kv_low_rank(0.7, &settings.replace("cache = 'q4'", ""));
            let recipe = bench.recipe(kind, &whole, "");
            let more = ["--keep", "1", "--overwrite"];
            bench.compress(&model, &recipe, &out, &more).json();
            close(&bench.nll(&model), &bench.nll(&small), 1e-3, &out);
        }
    }
}

/// Keys and values have one owner; what is left of the site is the other pass's.
#[test]
fn latents_beside_a_pass_for_the_weights() {
    let bench = Bench::new();
    for name in FAMILIES {
        for (propagate, cache, window) in [("", "f16", 0), ("propagate = 'block'", "q4", 40)] {
            let passes = format!(
                "{}\n[[passes]]\n{}",
                PASSES[6].1,
                kv_low_rank(
                    0.5,
                    &format!("cache = '{cache}'\nresidual_window = {window}")
                )
            );
            let recipe = bench.recipe("both", &passes, propagate);
            let more = ["--overwrite"];
            let run = bench.compress(&family(name), &recipe, name, &more).json();
            let sites = run["sites"].as_array().expect("sites");
            let owner = |projection: &str| match projection {
                "k" | "v" => "kv_low_rank",
                _ => "frontier",
            };
            for site in sites {
                let projection = site["projection"].as_str().expect("a name");
                assert_eq!(site["pass"], owner(projection), "{name}, {projection}");
            }
            let sum = |own: bool| -> (u64, u64) {
                let sites = sites.iter().filter(|s| (s["pass"] == "frontier") == own);
                let sizes = sites.map(|s| {
                    let shape = |i: usize| s["shape"][i].as_u64().expect("a width");
                    (s["scalars"].as_u64().expect("count"), shape(0) * shape(1))
                });
                sizes.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
            };
            let (weights, dense) = sum(true);
            assert!(
                weights <= (0.7 * dense as f64) as u64,
                "{weights} of {dense}"
            );
            assert!(
                0.7 * dense as f64 - (weights as f64) < 384.0,
                "{weights} of {dense}"
            );
            assert_eq!(run["projection_scalars_after"], weights + sum(false).0);
            let out = bench.path(name);
            let verified = cinder(&["verify", &out, "--quiet"]);
            assert_eq!(verified.code, 0, "{name}: {}", verified.stdout);
            let manifest = std::fs::read_to_string(Path::new(&out).join("cinder.json"));
            let manifest: Value = serde_json::from_str(&manifest.expect("reads")).expect("JSON");
            assert_eq!(manifest["cache_format"], cache);
            assert_eq!(manifest["residual_window"].as_u64().unwrap_or(0), window);
            let shown = cinder(&["inspect", &out, "--json"]).json();
            assert_eq!(shown["residual_window"], window);
            assert!(bench.nll(&out).iter().all(|nll| nll.is_finite()));
        }
    }
}

/// What has latents already is no model for a pass, and no two passes make them.
#[test]
fn latents_are_made_once() {
    let bench = Bench::new();
    let model = family("tiny-llama");
    let pass = kv_low_rank(0.5, "");
    let recipe = bench.recipe("latents", &pass, "");
    bench.compress(&model, &recipe, "latents", &[]).json();
    let made = bench.path("latents");
    for recipe in [&recipe, "recipes/identity-block.toml"] {
        let again = bench.compress(&made, recipe, "again", &[]);
        assert_eq!(again.code, 1, "{}", again.stdout);
        let line = "`k` of layer 0 is joint-group-head already";
        assert!(again.stderr.contains(line), "{}", again.stderr);
    }
    for other in [pass.as_str(), "pass = 'identity_block'"] {
        let recipe = bench.recipe("twice", &format!("{pass}\n[[passes]]\n{other}"), "");
        let refused = bench.compress(&model, &recipe, "twice", &[]);
        let line = "factoring `k` twice";
        assert!(refused.stderr.contains(line), "{}", refused.stderr);
    }
}

/// The latent of a shared basis in the cache in place of keys and values: the same model, in fewer bytes a token.
#[test]
fn the_latent_of_a_shared_basis_is_cached() {
    let bench = Bench::new();
    for name in FAMILIES {
        let model = family(name);
        let made = |out: &str, more: &str| {
            let recipe = bench.recipe(out, &format!("pass = 'skipcat'\nkeep = 0.6\n{more}"), "");
            let out = format!("{name}-{out}");
            let run = bench.compress(&model, &recipe, &out, &[]).json();
            (run, bench.path(&out))
        };
        let (plain, full) = made("plain", "");
        let (run, small) = made("cached", "cache_latents = 'f32'");
        assert_eq!(
            run["projection_scalars_after"],
            plain["projection_scalars_after"]
        );
        assert_eq!(run["bytes_after"], plain["bytes_after"]);
        close(&bench.nll(&full), &bench.nll(&small), 1e-4, name);
        let inspect = |model: &str, more: &[&str]| {
            cinder(&[&["inspect", model, "--json"], more].concat()).json()
        };
        let (before, after) = (inspect(&full, &[]), inspect(&small, &[]));
        let ranks = run["sites"].as_array().expect("sites").iter();
        let ranks = ranks
            .filter(|s| s["projection"] == "k")
            .map(|s| s["rank"].as_u64());
        let numbers: u64 = ranks.map(|rank| rank.expect("a rank")).sum();
        assert_eq!(after["kv_bytes_per_token"], 4 * numbers, "{name}");
        let dense = before["kv_bytes_per_token"].as_u64().expect("bytes");
        assert_eq!(run["kv_keep_ratio"], 4.0 * numbers as f64 / dense as f64);
        assert_eq!(before["bytes"], after["bytes"]);
        // The kernel has keys and values' part in f32, whatever the weights are.
        let bytes = |model: &str| inspect(model, &["--weights", "f16"])["bytes"].as_u64();
        assert!(bytes(&full) < bytes(&small), "{name}");
        let packed = inspect(&small, &["--cache", "q4"]);
        assert!(packed["kv_bytes_per_token"].as_u64() < Some(4 * numbers));
        for token_by_token in [&["--cache", "f32"], &["--cache", "q8"]] {
            let generate = [
                "generate",
                &small,
                "--prompt",
                "line 7",
                "--max-new-tokens",
                "8",
                "--json",
            ];
            cinder(&[&generate[..], token_by_token].concat()).json();
        }
        assert_eq!(cinder(&["verify", &small, "--quiet"]).code, 0);
        let out = bench.path(&format!("{name}-dense"));
        assert_eq!(
            cinder(&["export", &small, "--dense", "--out", &out, "--quiet"]).code,
            0
        );
        close(&bench.nll(&full), &bench.nll(&out), 1e-3, name);
        let again = bench.compress(&small, "recipes/identity-block.toml", "again", &[]);
        let line = "of layer 0 is shared-identity-block already";
        assert!(again.stderr.contains(line), "{}", again.stderr);
    }
}

/// Codes need a latent everywhere, and a latent needs the pass to make one.
#[test]
fn latents_of_a_shared_basis_that_can_not_be_cached_are_refused() {
    let bench = Bench::new();
    let model = family("tiny-qwen2");
    let refused = |settings: &str, line: &str| {
        let recipe = bench.recipe("no", &format!("pass = 'skipcat'\n{settings}"), "");
        let run = bench.compress(&model, &recipe, "no", &[]);
        assert!(run.code != 0 && run.stderr.contains(line), "{}", run.stderr);
    };
    refused(
        "keep = 1.0\ncache_latents = 'q4'",
        "the shared basis of layer 0 is not smaller",
    );
    refused(
        "keep = 1.0\nshared = false\ncache_latents = 'f16'",
        "needs `shared = true`",
    );
    refused(
        "keep = 1.0\nsites = ['o']\ncache_latents = 'f16'",
        "needs `shared = true`",
    );
    let recipe = bench.recipe(
        "none",
        "pass = 'skipcat'\nkeep = 1.0\ncache_latents = 'f16'",
        "",
    );
    let run = bench.compress(&model, &recipe, "none", &[]).json();
    assert_eq!(run["kv_keep_ratio"], Value::Null);
}

/// Killed at any moment and resumed, a run ends in the same bytes.
#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let bench = Bench::new();
    let model = family("tiny-qwen3");
    let passes = format!("{}\n[[passes]]\n{}", PASSES[6].1, kv_low_rank(0.5, ""));
    let recipe = bench.recipe("frontier", &passes, "propagate = 'block'");
    let start = Instant::now();
    bench.compress(&model, &recipe, "whole", &[]).json();
    let time = start.elapsed();
    let whole = files(&bench.path("whole"));
    let mut interrupted = 0;
    for kill in 0..20u32 {
        let name = format!("killed-{kill}");
        let out = bench.path(&name);
        let mut child = Command::new(env!("CARGO_BIN_EXE_cinder"))
            .args([
                "compress",
                &model,
                "--recipe",
                &recipe,
                "--out",
                &out,
                "--quiet",
                "--threads",
                "2",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        // Spread over the run, at moments that differ from machine to machine.
        std::thread::sleep(
            time.mul_f64(f64::from(kill + 1) / 21.0)
                .max(Duration::from_millis(5)),
        );
        child.kill().expect("is there");
        child.wait().expect("ends");
        if !Path::new(&out).exists() {
            interrupted += 1;
            let resumed = bench.compress(&model, &recipe, &name, &["--resume"]);
            // Killed before there was anything to go on with.
            if resumed.code != 0 {
                assert!(
                    resumed.stderr.contains("no interrupted run"),
                    "{}",
                    resumed.stderr
                );
                bench.compress(&model, &recipe, &name, &[]).json();
            }
        }
        assert!(files(&out) == whole, "killed at step {kill}");
    }
    assert!(
        interrupted > 5,
        "only {interrupted} of 20 runs were interrupted"
    );
}

/// A run is only gone on with by what it was begun with.
#[test]
fn resuming_with_something_else_is_refused() {
    let bench = Bench::new();
    let model = family("tiny-llama");
    let recipe = bench.recipe("frontier", PASSES[6].1, "propagate = 'inputs'");
    let nothing = bench.compress(&model, &recipe, "out", &["--resume"]);
    assert_eq!(nothing.code, 2);
    assert!(
        nothing.stderr.contains("there is no interrupted run"),
        "{}",
        nothing.stderr
    );

    // What a killed run leaves: `run.json` in the unfinished output.
    let partial = PathBuf::from(bench.path("out.partial"));
    let left = partial.join("work");
    for folder in [&left, &partial.join("new")] {
        std::fs::create_dir_all(folder).expect("creates");
    }
    std::fs::write(partial.join("cinder.lock"), "").expect("writes");
    std::fs::write(
        left.join("run.json"),
        "{\"threads\": 2, \"recipe\": {\"name\": \"other\"}}",
    )
    .expect("writes");
    let drifted = bench.compress(&model, &recipe, "out", &["--resume"]);
    assert_eq!(drifted.code, 1);
    assert!(
        drifted
            .stderr
            .contains("recipe.name \"other\" (now \"frontier\")"),
        "{}",
        drifted.stderr
    );
    assert!(
        left.exists(),
        "what could not be resumed is not thrown away"
    );
    let made = bench.compress(&model, &recipe, "out", &[]).json();

    // What is finished is told from what is not, and from what is something else.
    let again = bench.compress(&model, &recipe, "out", &["--resume"]).json();
    assert_eq!(again["sites"][0]["error"], made["sites"][0]["error"]);
    assert_eq!(again["directory_bytes"], made["directory_bytes"]);
    let drifted = bench.compress(&model, &recipe, "out", &["--resume", "--keep", "0.6"]);
    assert_eq!(drifted.code, 1);
    assert!(
        drifted
            .stderr
            .contains("recipe.passes[0].keep 0.7 (now 0.6)"),
        "{}",
        drifted.stderr
    );
    std::fs::write(bench.path("text.txt"), "another text ".repeat(1000)).expect("writes");
    let drifted = bench.compress(&model, &recipe, "out", &["--resume"]);
    assert!(
        drifted.stderr.contains("text.corpus_sha256"),
        "{}",
        drifted.stderr
    );
}

/// Killed as soon as the last block is done, a run in which blocks depend on each other does none of them again.
#[test]
fn a_walk_that_is_done_is_not_done_again() {
    let bench = Bench::new();
    let model = family("tiny-qwen3");
    let recipe = bench.recipe("frontier", PASSES[6].1, "propagate = 'block'");
    // Something in the way when the directory is to be put in its place: the error is one of the disk.
    let out = bench.path("out");
    let partial = PathBuf::from(format!("{out}.partial"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_cinder"))
        .args(["compress", &model, "--recipe", &recipe, "--out", &out])
        .args(["--quiet", "--threads", "2"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    while !partial.join("new").is_dir() {
        assert!(child.try_wait().expect("waits").is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::fs::create_dir(&out).expect("creates");
    let ended = child.wait_with_output().expect("ends");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("what is done is kept: `--resume`"), "{told}");
    std::fs::remove_dir(&out).expect("removes");

    let resumed = bench.compress(&model, &recipe, "out", &["--resume"]).json();
    let sites = resumed["sites"].as_array().expect("sites");
    assert!(sites.iter().all(|site| site["seconds"].is_null()));
    assert!(!partial.exists());
}

/// Two runs do not write to one place; nor does one write over what it reads.
#[test]
fn places_in_each_others_way_are_refused() {
    let bench = Bench::new();
    let model = family("tiny-llama");
    let recipe = bench.recipe("skipcat", PASSES[4].1, "");
    bench.compress(&model, &recipe, "small", &[]).json();
    let own = bench.compress(&bench.path("small"), &recipe, "small", &["--overwrite"]);
    assert_eq!(own.code, 1);
    assert!(
        own.stderr.contains("which the output is made from"),
        "{}",
        own.stderr
    );
    let inside = bench.compress(&model, &recipe, "out", &["--work", &bench.path("out/work")]);
    assert_eq!(inside.code, 1);
    assert!(
        inside.stderr.contains("one inside the other"),
        "{}",
        inside.stderr
    );

    let work = bench.path("work");
    std::fs::create_dir(&work).expect("creates");
    let held = std::fs::File::create(Path::new(&work).join("cinder.lock")).expect("creates");
    held.lock().expect("locks");
    let second = bench.compress(&model, &recipe, "out", &["--work", &work]);
    assert_eq!(second.code, 1);
    assert!(
        second.stderr.contains("by another run"),
        "{}",
        second.stderr
    );
    drop(held);
    bench
        .compress(&model, &recipe, "out", &["--work", &work, "--resume"])
        .json();
}

/// An option that would change nothing is refused.
#[test]
fn options_without_use_are_refused() {
    let bench = Bench::new();
    let even = bench.recipe("even", PASSES[4].1, "draw = 'even'");
    let identity = "recipes/identity-block.toml";
    for (recipe, option, value, why) in [
        (identity, "--keep", "0.5", "no pass of it has a keep ratio"),
        (
            identity,
            "--calibration",
            "x.txt",
            "no pass of it needs a text",
        ),
        (identity, "--seed", "1", "no pass of it needs a text"),
        (even.as_str(), "--seed", "1", "at even distances"),
    ] {
        let run = bench.compress(&family("tiny-llama"), recipe, "out", &[option, value]);
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains(why), "{}", run.stderr);
    }
}

/// Several recipes and keep ratios, one report; an interrupted sweep goes on.
#[test]
fn a_sweep_of_two_recipes() {
    let bench = Bench::new();
    let model = family("tiny-llama");
    let recipes: Vec<String> = [PASSES[4], PASSES[6]]
        .iter()
        .map(|(name, pass)| bench.recipe(name, pass, ""))
        .collect();
    let (out, text) = (bench.path("sweep"), bench.path("text.txt"));
    let sweep = |keep: &str, more: &[&str]| {
        let mut arguments = vec![
            "sweep",
            &model,
            "--recipe",
            &recipes[0],
            "--recipe",
            &recipes[1],
        ];
        arguments.extend([
            "--keep",
            keep,
            "--text",
            &text,
            "--window",
            "48",
            "--windows",
            "6",
        ]);
        arguments.extend(["--out", &out, "--quiet", "--json"]);
        arguments.extend(more);
        cinder(&arguments)
    };
    let done = sweep("0.8,0.6", &["--discard-models"]).json();
    let points = done["points"].as_array().expect("points");
    assert_eq!(points.len(), 5);
    for (point, (name, keep)) in points.iter().zip([
        ("dense", 1.0),
        ("skipcat-0.8", 0.8),
        ("skipcat-0.6", 0.6),
        ("frontier-0.8", 0.8),
        ("frontier-0.6", 0.6),
    ]) {
        assert_eq!(point["name"], name);
        assert!(
            (point["keep_ratio"].as_f64().expect("ratio") - keep).abs() < 0.05,
            "{point}"
        );
        assert!(
            point["texts"]["text.txt"]["perplexity"]
                .as_f64()
                .expect("number")
                > 1.0
        );
    }
    for file in [
        "report/report.html",
        "report/kept-share-by-layer.svg",
        "sweep.json",
    ] {
        assert!(Path::new(&out).join(file).is_file(), "{file}");
    }
    assert!(!Path::new(&out).join("work").exists());
    assert!(
        std::fs::read_dir(Path::new(&out).join("models"))
            .expect("lists")
            .next()
            .is_none()
    );
    let refused = sweep("0.8", &[]);
    assert!(
        refused.stderr.contains("exists already"),
        "{}",
        refused.stderr
    );

    // An unfinished sweep is a `.partial` directory; its points are not made again.
    let partial = format!("{out}.partial");
    let (new, work) = (format!("{partial}/new"), format!("{partial}/work"));
    std::fs::create_dir_all(&work).expect("creates");
    std::fs::rename(&out, &new).expect("renames");
    std::fs::write(format!("{partial}/cinder.lock"), "").expect("writes");
    let identity = done["made_from"].to_string();
    std::fs::write(format!("{work}/sweep.json"), identity).expect("writes");
    // What a killed run leaves besides is no result.
    for leftover in ["models/other.partial", "report"] {
        std::fs::create_dir_all(format!("{new}/{leftover}/x")).expect("creates");
    }
    let stray = std::fs::read(format!("{new}/results/dense.json")).expect("reads");
    std::fs::write(format!("{new}/results/other-0.5.json"), stray).expect("writes");
    let record = Path::new(&new).join("compress/skipcat-0.8.json");
    let before = std::fs::metadata(&record)
        .expect("is there")
        .modified()
        .expect("time");
    let drifted = sweep("0.8,0.6,0.5", &["--discard-models", "--resume"]);
    assert_eq!(drifted.code, 1);
    assert!(
        drifted.stderr.contains("points.skipcat-0.5 null"),
        "{}",
        drifted.stderr
    );
    std::fs::remove_file(format!("{new}/results/frontier-0.6.json")).expect("removes");
    std::fs::remove_file(format!("{new}/compress/frontier-0.6.json")).expect("removes");
    let again = sweep("0.8,0.6", &["--discard-models", "--resume"]).json();
    assert_eq!(again["points"].as_array().expect("points").len(), 5);
    for leftover in ["models/other.partial", "report/x", "results/other-0.5.json"] {
        assert!(!Path::new(&out).join(leftover).exists(), "{leftover}");
    }
    assert_eq!(again["points"][1], done["points"][1]);
    let record = Path::new(&out).join("compress/skipcat-0.8.json");
    assert_eq!(
        std::fs::metadata(&record)
            .expect("is there")
            .modified()
            .expect("time"),
        before
    );
    // Once more is nothing more.
    let finished = sweep("0.8,0.6", &["--discard-models", "--resume"]).json();
    assert_eq!(finished, again);
    let drifted = sweep("0.8", &["--discard-models", "--resume"]);
    assert_eq!(drifted.code, 1, "{}", drifted.stdout);
    std::fs::remove_dir_all(&out).expect("removes");
    assert_eq!(sweep("0.8", &["--resume"]).code, 2);
}

/// The committed schema is the one the settings give, and every shipped recipe is read.
#[test]
fn recipes_and_their_schema() {
    let run = cinder(&["compress", "--print-schema"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/recipe.schema.json");
    if std::env::var_os("INSTA_UPDATE").is_some_and(|v| v == "always") {
        std::fs::write(&committed, &run.stdout).expect("writes");
    }
    let committed = std::fs::read_to_string(committed).expect("is there");
    assert_eq!(
        run.stdout, committed,
        "run the tests with INSTA_UPDATE=always"
    );
    let schema: Value = serde_json::from_str(&committed).expect("is JSON");
    let text = schema.to_string();
    for reference in text.split("#/$defs/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(schema["$defs"][name].is_object(), "{name} is not defined");
    }
    let folder = tempfile::tempdir().expect("temp");
    let weights = ["frontier", "skipcat", "low-rank"].map(|recipe| (recipe, 0.8));
    let latents = [
        ("palu-30", 0.7),
        ("palu-50", 0.5),
        ("palu-50-3bit", 0.5),
        ("skipcat+palu", 0.5),
    ];
    for (recipe, keep) in weights.into_iter().chain(latents) {
        let file = format!("recipes/{recipe}.toml");
        let long = cinder(&[
            "compress",
            &family("tiny-llama"),
            "--recipe",
            &file,
            "--dry-run",
        ]);
        assert_eq!(long.code, 1);
        assert!(long.stderr.contains("context of 256"), "{}", long.stderr);
        let shipped = std::fs::read_to_string(&file).expect("reads");
        let file = format!("{}/{recipe}.toml", arg(folder.path()));
        let short = shipped.replace("window = 512", "window = 256");
        std::fs::write(&file, short).expect("writes");
        let plan = cinder(&[
            "compress",
            &family("tiny-llama"),
            "--recipe",
            &file,
            "--dry-run",
            "--json",
        ])
        .json();
        assert_eq!(plan["recipe"]["name"], recipe);
        let passes = plan["recipe"]["passes"].as_array().expect("passes");
        assert_eq!(passes[passes.len() - 1]["keep"], keep);
        if keep == 0.8 {
            assert!((plan["keep_ratio"].as_f64().expect("ratio") - 0.8).abs() < 0.05);
        }
        assert!(plan["seconds_estimate"].as_f64().expect("seconds") > 0.0);
    }
}
