//! The README's main job on the real model, with one keep ratio to keep it short.

mod common;

use std::path::Path;

use common::{arg, cinder};
use serde_json::Value;

#[test]
fn the_demo_leaves_models_results_and_a_report() {
    let folder = tempfile::tempdir().expect("temp");
    let out = folder.path().join("demo");
    let run = cinder(&["demo", "--out", arg(&out), "--keep", "0.9", "--json"]);
    let summary = run.json();
    assert!(
        run.stderr.contains("smollm2: perplexity"),
        "no progress was shown: {}",
        run.stderr
    );
    for file in [
        "report/report.html",
        "report/report.md",
        "report/perplexity-vs-keep-ratio.svg",
        "report/perplexity-vs-keep-ratio.png",
        "report/perplexity-vs-keep-ratio.csv",
        "models/frontier-0.9/cinder.json",
    ] {
        assert!(out.join(file).is_file(), "{file}");
    }
    let page = std::fs::read_to_string(out.join("report/report.html")).expect("reads");
    assert!(!page.contains(".partial"));
    assert_eq!(summary["report"], arg(&out.join("report/report.html")));
    let result = |name: &str| -> Value {
        let text = std::fs::read(out.join("results").join(name)).expect("reads");
        serde_json::from_slice(&text).expect("JSON")
    };
    let (dense, small) = (result("smollm2.json"), result("frontier-0.9.json"));
    let value = |r: &Value| r["perplexity"].as_f64().expect("number");
    assert!(value(&dense) < value(&small) && value(&small) < 1.5 * value(&dense));
    assert!(small["model"]["keep_ratio"].as_f64().expect("number") <= 0.9);
    assert!(!Path::new(&format!("{}.partial", arg(&out))).exists());

    let model = out.join("models/frontier-0.9");
    let verified = cinder(&["verify", arg(&model), "--json", "--quiet"]).json();
    assert_eq!(verified["ok"], true);
}
