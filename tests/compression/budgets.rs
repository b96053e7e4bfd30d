//! What each pass of a recipe keeps, and how exact it is.

use serde_json::Value;

use super::common::cinder;
use super::{Bench, FAMILIES, PASSES, close, family};

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
