//! Keys and values rebuilt from latents that the cache stores.

use std::path::Path;

use serde_json::Value;

use super::common::cinder;
use super::{Bench, FAMILIES, PASSES, close, family, kv_low_rank};

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
