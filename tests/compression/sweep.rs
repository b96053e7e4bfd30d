//! Several recipes at several keep ratios.

use std::path::Path;

use super::common::cinder;
use super::{Bench, PASSES, family};

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
