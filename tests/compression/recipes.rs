//! Recipes as they are shipped, described and recorded.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::common::{arg, cinder};
use super::{Bench, PASSES, family, files};

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

/// A card's recipe and command make the model again, byte for byte, whatever file it was first made from.
#[test]
fn a_model_card_makes_the_model_again() {
    let bench = Bench::new();
    let model = family("tiny-llama");
    let recipe = bench.recipe("my own", PASSES[6].1, "propagate = 'inputs'");
    let more = ["--keep", "0.6", "--seed", "5"];
    bench.compress(&model, &recipe, "first", &more).json();
    let (first, report) = (bench.path("first"), bench.path("report"));
    let eval = |model: &str, out: &str| {
        let text = bench.path("text.txt");
        let windows = ["--window", "48", "--windows", "2"];
        let arguments = [
            "eval", "ppl", model, "--text", &text, "--out", out, "--quiet",
        ];
        let run = cinder(&[&arguments[..], &windows].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
    };
    let (dense, small) = (bench.path("dense.json"), bench.path("small.json"));
    eval(&model, &dense);
    eval(&first, &small);
    let arguments = ["report", &first, &dense, &small, "--out", &report];
    assert_eq!(cinder(&arguments).code, 0);
    let card = Path::new(&report).join("model-card.md");
    let card = std::fs::read_to_string(card).expect("written");
    let (_, again) = card
        .split_once("## How to make it again")
        .expect("is there");
    let (commands, recipe) = again
        .split_once("`my own.toml` is the recipe")
        .expect(&card);
    let indented = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
        lines.map(str::to_owned).collect()
    };
    let (recipe, _) = recipe.split_once("## Limits").expect("is there");
    let saved = bench.path("my own.toml");
    std::fs::write(&saved, indented(recipe).join("\n")).expect("writes");
    // As a shell takes it, but for where it is and what is written.
    let command = indented(commands).remove(0);
    let command = command.replace("'my own.toml'", "\"$RECIPE\"");
    let command = command.replace(&first, &bench.path("again"));
    let command = command.replacen("cinder", "\"$CINDER\"", 1) + " --quiet --threads 2";
    let run = Command::new("sh")
        .args(["-c", &command])
        .env("RECIPE", &saved)
        .env("CINDER", env!("CARGO_BIN_EXE_cinder"))
        .output()
        .expect("runs");
    assert!(run.status.success(), "{command}: {run:?}");
    let again = files(&bench.path("again"));
    assert!(again == files(&first), "{command}");
}
