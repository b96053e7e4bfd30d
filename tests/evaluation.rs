//! Evaluation beside a reference, per byte and in pairs, on tiny models.

mod common;

use std::path::Path;

use common::{Run, arg, cinder, goldens, schema};
use tempfile::TempDir;

const TEXT: &str =
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. ";
const RECIPE: &str = "name = 'tiny'\n[calibration]\ncorpus = 'self'\nwindows = 8\nwindow = 32\n\
                      [[passes]]\npass = 'low_rank'\nkeep = 0.7\n";

/// A text, the tiny GGUF model, and a compressed one.
struct Bench {
    folder: TempDir,
    dense: String,
    text: String,
    compressed: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let path = |name: &str| arg(&folder.path().join(name)).to_owned();
        let (recipe, text, compressed) = (path("recipe.toml"), path("text.txt"), path("small"));
        std::fs::write(&recipe, RECIPE).expect("writes");
        std::fs::write(&text, TEXT.repeat(40)).expect("writes");
        let dense = arg(&goldens("gguf/tiny-llama.gguf")).to_owned();
        let compress = [
            "compress",
            &dense,
            "--recipe",
            &recipe,
            "--out",
            &compressed,
            "--quiet",
        ];
        assert_eq!(cinder(&compress).code, 0);
        Bench {
            folder,
            dense,
            text,
            compressed,
        }
    }

    fn path(&self, name: &str) -> String {
        arg(&self.folder.path().join(name)).to_owned()
    }

    fn kl(&self, more: &[&str]) -> Run {
        let arguments = [
            "eval",
            "kl",
            "--text",
            &self.text,
            "--quiet",
            "--threads",
            "2",
        ];
        cinder(&[&arguments[..], more].concat())
    }

    fn snapshot(&self, name: &str, run: &Run) {
        let mut settings = insta::Settings::clone_current();
        let escape = |path: &Path| arg(path).replace('.', r"\.");
        settings.add_filter(&escape(self.folder.path()), "[folder]");
        settings.add_filter(&escape(&goldens("")), "[goldens]/");
        // The last digits depend on the processor's kernels; unit tests check values.
        settings.add_filter(r"-?\d+\.\d+(e-?\d+)?", "[N]");
        settings.add_filter(r" +(\[N\])", " $1");
        settings.bind(|| insta::assert_snapshot!(name.to_owned(), run.snapshot()));
    }
}

#[test]
fn a_model_beside_its_reference() {
    let bench = Bench::new();
    let windows = ["--window", "64", "--windows", "6"];
    let saved = bench.path("dense.reference");
    let first = [
        &["--reference", &bench.dense, "--save", &saved],
        &windows[..],
    ]
    .concat();
    let with = |model: &str| -> Vec<String> {
        [&first[..], &[model]]
            .concat()
            .iter()
            .map(|s| s.to_string())
            .collect()
    };
    let arguments = with(&bench.compressed);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    bench.snapshot("kl", &bench.kl(&arguments));
    // From the file, with the numbers of the run that made it.
    let direct = bench.kl(&[&arguments[..], &["--json"]].concat()).json();
    let from_file = bench
        .kl(&[&bench.compressed, "--reference", &saved, "--json"])
        .json();
    for key in [
        "kl",
        "top1_agreement",
        "delta_p",
        "perplexity_ratio",
        "window_kl",
        "by_position",
    ] {
        assert_eq!(direct[key], from_file[key], "{key}");
    }
    assert!(
        direct["kl"]["mean"].as_f64() > Some(1e-4),
        "{}",
        direct["kl"]
    );
    assert_eq!(direct["tokens_scored"], 6 * 63);
    // A model beside itself, all tokens kept or few.
    let same = bench
        .kl(&[&bench.dense, "--reference", &saved, "--json"])
        .json();
    assert!(same["kl"]["mean"].as_f64() < Some(1e-6), "{}", same["kl"]);
    assert_eq!(same["top1_agreement"]["mean"], 1.0);
    let ratio = same["perplexity_ratio"]["mean"].as_f64().expect("a number");
    assert!((ratio - 1.0).abs() < 1e-6);
    schema::holds("DivergenceResult", &direct);
    schema::holds("DivergenceResult", &same);
    // The perplexities are those of `eval ppl`.
    let arguments = [
        "eval",
        "ppl",
        &bench.compressed,
        "--text",
        &bench.text,
        "--json",
        "--quiet",
    ];
    let ppl = cinder(&[&arguments[..], &windows].concat()).json();
    schema::holds("EvalResult", &ppl);
    let (a, b) = (ppl["perplexity"].as_f64(), direct["perplexity"].as_f64());
    let (a, b) = (a.expect("a number"), b.expect("a number"));
    assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
    // The reference alone.
    let alone = bench.path("alone.reference");
    let run = bench.kl(&[
        "--reference",
        &bench.dense,
        "--save",
        &alone,
        "--windows",
        "1",
        "--window",
        "64",
    ]);
    assert_eq!(
        (run.code, run.stdout.trim()),
        (0, alone.as_str()),
        "{}",
        run.stderr
    );
}

#[test]
fn a_reference_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let saved = bench.path("dense.reference");
    let make = [
        "--reference",
        &bench.dense,
        "--save",
        &saved,
        "--window",
        "64",
        "--windows",
        "2",
    ];
    assert_eq!(bench.kl(&make).code, 0);
    bench.snapshot(
        "kl-windows-of-a-file",
        &bench.kl(&[&bench.dense, "--reference", &saved, "--windows", "1"]),
    );
    let other = bench.path("other.txt");
    std::fs::write(&other, "Something else altogether. ".repeat(60)).expect("writes");
    let run = cinder(&[
        "eval",
        "kl",
        &bench.dense,
        "--reference",
        &saved,
        "--text",
        &other,
        "--quiet",
    ]);
    bench.snapshot("kl-other-text", &run);
    std::fs::write(&saved, "not a reference").expect("writes");
    bench.snapshot(
        "kl-no-reference",
        &bench.kl(&[&bench.dense, "--reference", &saved]),
    );
    bench.snapshot(
        "kl-nothing-to-do",
        &bench.kl(&["--reference", &bench.dense]),
    );
}

#[test]
fn per_word_and_per_byte() {
    let bench = Bench::new();
    let rolling = |model: &str, window: &str, more: &[&str]| {
        let arguments = [
            "eval",
            "rolling",
            model,
            "--text",
            &bench.text,
            "--window",
            window,
            "--quiet",
        ];
        cinder(&[&arguments[..], more].concat())
    };
    bench.snapshot("rolling", &rolling(&bench.dense, "64", &[]));
    let result = rolling(&bench.dense, "64", &["--json"]).json();
    assert_eq!(result["bytes"], TEXT.len() * 40);
    // The text ends with a space, behind which there is one more, empty, piece.
    assert_eq!(result["words"], 17 * 40 + 1);
    assert_eq!(result["prefix_id"], 1);
    schema::holds("RollingResult", &result);
    let number = |key: &str| result[key].as_f64().expect("a number");
    let per_byte = number("nll") / number("bytes");
    assert!((number("byte_perplexity") - per_byte.exp()).abs() < 1e-9);
    // Cutting elsewhere scores the same tokens.
    let other = rolling(&bench.dense, "100", &["--json"]).json();
    assert_eq!(result["tokens_scored"], other["tokens_scored"]);
}

#[test]
fn several_texts_in_one_run() {
    let bench = Bench::new();
    let other = bench.path("other.txt");
    std::fs::write(&other, "Something else altogether. ".repeat(60)).expect("writes");
    let ppl = |texts: &[&str], more: &[&str]| {
        let arguments = [
            "eval",
            "ppl",
            &bench.dense,
            "--window",
            "200",
            "--windows",
            "2",
            "--quiet",
            "--threads",
            "2",
        ];
        let texts: Vec<&str> = texts.iter().flat_map(|text| ["--text", *text]).collect();
        cinder(&[&arguments[..], &texts, more].concat())
    };
    let out = bench.path("results/dense.json");
    let both = ppl(&[&bench.text, &other], &["--out", &out, "--json"]).json();
    for (index, name) in ["text", "other"].into_iter().enumerate() {
        let path = bench.path(&format!("results/dense-{name}.txt.json"));
        let written = std::fs::read_to_string(path).expect("reads");
        let written: serde_json::Value = serde_json::from_str(&written).expect("JSON");
        assert_eq!(written, both["results"][index]);
        schema::holds("EvalResult", &written);
    }
    // Each as it is alone, and by position: 1 to 64, 65 to 128 and 129 to 199 tokens before.
    let alone = ppl(&[&other], &["--json"]).json();
    assert_eq!(alone["window_nll"], both["results"][1]["window_nll"]);
    let at = alone["by_position"].as_array().expect("a list");
    let bounds: Vec<_> = at.iter().map(|a| (&a["from"], &a["to"])).collect();
    assert_eq!(format!("{bounds:?}").matches("Number").count(), 6);
    let weighed = at.iter().map(|a| {
        let number = |key: &str| a[key].as_f64().expect("a number");
        (number("to") - number("from") + 1.0) * number("mean_nll")
    });
    let mean = weighed.sum::<f64>() / 199.0;
    let perplexity = alone["perplexity"].as_f64().expect("a number");
    assert!((mean.exp() / perplexity - 1.0).abs() < 1e-9);
    bench.snapshot("ppl-same-names", &ppl(&[&other, &other], &[]));
    let printed = cinder(&["eval", "ppl", "--print-schema"]);
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/result.schema.json");
    assert_eq!(
        printed.stdout,
        std::fs::read_to_string(committed).expect("reads")
    );
}

#[test]
fn pairs_of_results() {
    let bench = Bench::new();
    let result = |name: &str, model: &str, windows: &str| {
        let out = bench.path(name);
        let run = cinder(&[
            "eval",
            "ppl",
            model,
            "--text",
            &bench.text,
            "--window",
            "64",
            "--windows",
            windows,
            "--out",
            &out,
            "--quiet",
        ]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        out
    };
    let (a, b) = (
        result("a.json", &bench.dense, "6"),
        result("b.json", &bench.compressed, "6"),
    );
    bench.snapshot("compare", &cinder(&["compare", &a, &b]));
    let same = cinder(&["compare", &a, &a, "--json"]).json();
    schema::holds("ComparedPerplexities", &same);
    assert_eq!(same["nll"]["p_value"], 1.0);
    assert_eq!(same["perplexity_ratio"]["mean"], 1.0);
    let fewer = result("c.json", &bench.dense, "5");
    bench.snapshot("compare-other-windows", &cinder(&["compare", &a, &fewer]));
    bench.snapshot("compare-no-result", &cinder(&["compare", &a, &bench.text]));
}
