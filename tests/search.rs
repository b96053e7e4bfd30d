//! Which sites matter, and which recipe is best: `cinder sensitivity` and `cinder search` on the tiny model.

mod common;

use std::path::Path;

use common::{Run, arg, cinder, cinder_with, goldens, schema};
use serde_json::Value;
use tempfile::TempDir;

const TEXT: &str =
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. ";
const OTHER_TEXT: &str =
    "All the dogs jump, and none of them minds the quick lazy fox over there. ";
const RECIPE: &str = "name = 'NAME'\n[calibration]\ncorpus = 'none'\nwindows = 8\nwindow = 32\ngradients = { windows = 4 }\n\
                      [[passes]]\npass = 'PASS'\nkeep = 0.7\n";

struct Bench {
    folder: TempDir,
    model: String,
}

impl Bench {
    fn new() -> Self {
        let bench = Bench {
            folder: tempfile::tempdir().expect("temp"),
            model: arg(&goldens("gguf/tiny-llama.gguf")).to_owned(),
        };
        bench.write("calibration.txt", &TEXT.repeat(40));
        bench.write("text.txt", &OTHER_TEXT.repeat(20));
        for (name, pass) in [("frontier", "frontier"), ("plain", "low_rank")] {
            let recipe = RECIPE.replace("NAME", name).replace("PASS", pass);
            bench.write(&format!("{name}.toml"), &recipe);
        }
        bench
    }

    fn path(&self, name: &str) -> String {
        arg(&self.folder.path().join(name)).to_owned()
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.folder.path().join(name), content).expect("writes");
    }

    fn read(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.path(name)).expect("reads");
        serde_json::from_str(&text).expect("JSON")
    }

    fn verb(&self, verb: &str, out: &str, more: &[&str], environment: &[(&str, &str)]) -> Run {
        let (text, calibration, out) = (
            self.path("text.txt"),
            self.path("calibration.txt"),
            self.path(out),
        );
        let arguments = [
            verb,
            &self.model,
            "--text",
            &text,
            "--calibration",
            &calibration,
            "--out",
            &out,
            "--window",
            "64",
            "--quiet",
            "--threads",
            "2",
        ];
        cinder_with(&[&arguments[..], more].concat(), environment)
    }

    fn sensitivity(&self, out: &str, more: &[&str]) -> Run {
        let recipe = self.path("frontier.toml");
        let own = ["--recipe", &recipe, "--windows", "2"];
        self.verb("sensitivity", out, &[&own[..], more].concat(), &[])
    }

    fn compress(&self, recipe: &str, model: &str, out: &str) -> Run {
        let (recipe, calibration, out) = (
            self.path(recipe),
            self.path("calibration.txt"),
            self.path(out),
        );
        cinder(&[
            "compress",
            model,
            "--recipe",
            &recipe,
            "--calibration",
            &calibration,
            "--out",
            &out,
            "--quiet",
            "--threads",
            "2",
        ])
    }

    fn snapshot(&self, name: &str, run: &Run) {
        let mut settings = insta::Settings::clone_current();
        let escape = |path: &Path| arg(path).replace('.', r"\.");
        settings.add_filter(&escape(self.folder.path()), "[folder]");
        settings.add_filter(&escape(&goldens("")), "[goldens]/");
        settings.bind(|| insta::assert_snapshot!(name.to_owned(), run.snapshot()));
    }

    /// A snapshot of a table whose numbers, and so the order of its rows, depend on the processor's last digits: only the head.
    fn head(&self, name: &str, run: &Run) {
        assert_eq!(run.code, 0, "{}", run.stderr);
        let head = run.stdout.lines().next().unwrap_or_default();
        insta::assert_snapshot!(
            name.to_owned(),
            head.split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
}

fn sites(result: &Value) -> Vec<Value> {
    result["sites"].as_array().expect("a list").clone()
}

fn sum(result: &Value) -> f64 {
    let kl = |site: Value| site["kl"]["mean"].as_f64().expect("a number");
    sites(result).into_iter().map(kl).sum()
}

#[test]
fn every_site_is_measured_alone() {
    let bench = Bench::new();
    bench.head("sensitivity-head", &bench.sensitivity("s.json", &[]));
    let result = bench.read("s.json");
    schema::holds("Sensitivity", &result);
    let names: Vec<String> = sites(&result)
        .iter()
        .map(|s| format!("{} {}", s["layer"], s["site"].as_str().expect("a name")))
        .collect();
    assert_eq!(names[..4], ["0 qkv", "0 o", "0 gate_up", "0 down"]);
    for site in sites(&result) {
        let number = |key: &str| site[key].as_f64().expect("a number");
        assert!(number("scalars_saved") >= 0.5 * number("scalars"), "{site}");
        assert!(
            number("kl_per_scalar") > 0.0 && number("predicted_loss") > 0.0,
            "{site}"
        );
        assert!(number("error") > 0.0 && number("error") < 1.0, "{site}");
    }
    assert!(!Path::new(&bench.path("s.json.unfinished")).exists());
    let (file, report) = (bench.path("s.json"), bench.path("report"));
    assert_eq!(cinder(&["report", &file, "--out", &report]).code, 0);
    let text = std::fs::read_to_string(Path::new(&report).join("report.md")).expect("reads");
    let most = result["sites"].as_array().into_iter().flatten();
    let most = most.max_by(|a, b| {
        let each = |site: &Value| site["kl_per_scalar"].as_f64().unwrap_or(0.0);
        each(a).total_cmp(&each(b))
    });
    let most = most.expect("some site");
    let site = most["site"].as_str().expect("a name").replace('_', "\\_");
    let first = text
        .lines()
        .find(|line| line.starts_with("| ") && !line.starts_with("| site"));
    let start = format!("| {site} | {} | ", most["layer"]);
    assert!(first.is_some_and(|line| line.starts_with(&start)), "{text}");
    assert!(
        text.contains("## Sensitivity of") && text.contains("cinder sensitivity"),
        "{text}"
    );
    for name in ["svg", "png", "csv"] {
        assert!(
            Path::new(&report)
                .join(format!("sensitivity-by-layer.{name}"))
                .is_file()
        );
    }
    // Rounding to fewer bits moves the predictions more; what is not asked for is not measured.
    let rounded = |how: &str| {
        let run = bench.sensitivity(
            "r.json",
            &[
                "--perturb",
                how,
                "--sites",
                "qkv,down",
                "--overwrite",
                "--json",
            ],
        );
        let result = run.json();
        schema::holds("Sensitivity", &result);
        assert_eq!(sites(&result).len(), names.len() / 2);
        assert!(result["perturbation"].get("keep").is_none());
        sum(&result)
    };
    let (fine, coarse) = (rounded("q8"), rounded("q4"));
    assert!(coarse > 5.0 * fine, "{fine} {coarse}");
    bench.snapshot("sensitivity-exists", &bench.sensitivity("s.json", &[]));
    bench.snapshot(
        "sensitivity-site",
        &bench.sensitivity("t.json", &["--sites", "qkv,head"]),
    );
    bench.snapshot(
        "sensitivity-perturb",
        &bench.sensitivity("t.json", &["--perturb", "q5"]),
    );
    bench.snapshot(
        "sensitivity-resume",
        &bench.sensitivity("t.json", &["--resume"]),
    );
}

/// The divergence is that of `eval kl` for a model in which only that site is compressed.
#[test]
fn a_site_is_what_a_recipe_makes_of_it_alone() {
    let bench = Bench::new();
    let arguments = [
        "--perturb",
        "low-rank",
        "--keep",
        "0.6",
        "--sites",
        "down",
        "--top-k",
        "64",
        "--json",
    ];
    let result = bench.sensitivity("s.json", &arguments).json();
    let recipe = RECIPE
        .replace("NAME", "alone")
        .replace("PASS", "low_rank")
        .replace("0.7", "0.6");
    bench.write("alone.toml", &(recipe + "sites = ['down']\n"));
    assert_eq!(bench.compress("alone.toml", &bench.model, "alone").code, 0);
    let (alone, text) = (bench.path("alone"), bench.path("text.txt"));
    let kl = cinder(&[
        "eval",
        "kl",
        &alone,
        "--reference",
        &bench.model,
        "--text",
        &text,
        "--window",
        "64",
        "--windows",
        "2",
        "--top-k",
        "64",
        "--json",
        "--quiet",
        "--threads",
        "2",
    ]);
    // All layers at once are beyond the sum of each only by what they do to each other.
    let (together, apart) = (
        kl.json()["kl"]["mean"].as_f64().expect("a number"),
        sum(&result),
    );
    assert!(
        together > 0.3 * apart && together < 3.0 * apart,
        "{together} {apart}"
    );
}

#[test]
fn an_interrupted_measurement_goes_on() {
    let bench = Bench::new();
    let recipe = bench.path("frontier.toml");
    let own = ["--recipe", recipe.as_str(), "--windows", "2"];
    let run = bench.verb(
        "sensitivity",
        "s.json",
        &own,
        &[("CINDER_MEMORY_LIMIT", "1000")],
    );
    assert_eq!(run.code, 1, "{}", run.stderr);
    // As if it had measured one site by then.
    let whole = bench.sensitivity("whole.json", &["--json"]).json();
    let mut line = whole["sites"][0].clone();
    line["kl"]["mean"] = 123.0.into();
    line["seconds"] = 5.0.into();
    let cut = "{\"layer\": 0, \"si";
    bench.write("s.json.unfinished/sites.jsonl", &format!("{line}\n{cut}"));
    let other = [&own[..], &["--resume", "--keep", "0.4"]].concat();
    bench.snapshot(
        "sensitivity-drift",
        &bench.verb("sensitivity", "s.json", &other, &[]),
    );
    let resume = [&own[..], &["--resume", "--json"]].concat();
    let result = bench.verb("sensitivity", "s.json", &resume, &[]).json();
    assert_eq!(result["sites"][0]["kl"]["mean"], 123.0);
    assert!(result["seconds"].as_f64() > Some(5.0));
    assert_eq!(sites(&result)[1..], sites(&whole)[1..]);
}

#[test]
fn what_was_measured_drives_the_allocator() {
    let bench = Bench::new();
    assert_eq!(bench.sensitivity("s.json", &[]).code, 0);
    let driven = |file: &str| {
        let recipe = RECIPE.replace("NAME", "driven").replace("PASS", "frontier");
        bench.write(
            "driven.toml",
            &format!("{recipe}sensitivity = '{}'\n", bench.path(file)),
        );
    };
    // One site made to matter most: it gets more than without the file.
    let mut file = bench.read("s.json");
    let site = &mut file["sites"][3];
    let kl = site["kl"]["mean"].as_f64().expect("a number");
    site["kl"]["mean"] = (1e3 * kl).into();
    bench.write("more.json", &file.to_string());
    driven("more.json");
    for (recipe, out) in [("driven.toml", "driven"), ("frontier.toml", "plain")] {
        let run = bench.compress(recipe, &bench.model, out);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    let (driven_to, plain) = (
        bench.read("driven/cinder.json"),
        bench.read("plain/cinder.json"),
    );
    let hash = driven_to["recipe"]["passes"][0]["sensitivity_sha256"].as_str();
    assert_eq!(hash.map(str::len), Some(64));
    let kept = |manifest: &Value| {
        let down = sites(manifest)
            .into_iter()
            .filter(|s| s["layer"] == 0 && s["site"] == "down");
        down.map(|s| s["scalars"].as_u64().expect("a number"))
            .sum::<u64>()
    };
    assert!(
        kept(&driven_to) > kept(&plain),
        "{} {}",
        kept(&driven_to),
        kept(&plain)
    );
    assert!(driven_to["projection_scalars_after"].as_u64() <= Some((0.7 * 4352.0) as u64));
    // Files that can not be gone by.
    let other = goldens("families/llama2");
    bench.snapshot(
        "sensitivity-other-model",
        &bench.compress("driven.toml", arg(&other), "no"),
    );
    driven("nowhere.json");
    bench.snapshot(
        "sensitivity-missing",
        &bench.compress("driven.toml", &bench.model, "no"),
    );
    assert_eq!(
        bench
            .sensitivity("q4.json", &["--perturb", "q4", "--sites", "o"])
            .code,
        0
    );
    driven("q4.json");
    bench.snapshot(
        "sensitivity-not-predicted",
        &bench.compress("driven.toml", &bench.model, "no"),
    );
    let plain = RECIPE.replace("NAME", "plain").replace("PASS", "low_rank");
    bench.write(
        "driven.toml",
        &format!("{plain}sensitivity = '{}'\n", bench.path("s.json")),
    );
    bench.snapshot(
        "sensitivity-uniform",
        &bench.compress("driven.toml", &bench.model, "no"),
    );
}

#[test]
fn the_best_of_some_recipes_is_found() {
    let bench = Bench::new();
    let (frontier, plain) = (bench.path("frontier.toml"), bench.path("plain.toml"));
    let work = bench.path("work");
    let search = |out: &str, more: &[&str]| {
        let own = [
            "--recipe",
            &plain,
            "--recipe",
            &frontier,
            "--windows",
            "3",
            "--work",
            &work,
        ];
        bench.verb("search", out, &[&own[..], more].concat(), &[])
    };
    bench.head(
        "search-head",
        &search("kept", &["--keep", "0.6", "--no-variations"]),
    );
    let found = bench.read("kept/search.json");
    schema::holds("SearchResult", &found);
    let rung = found["rungs"][0]["candidates"]
        .as_array()
        .expect("a list")
        .clone();
    assert_eq!(rung.len(), 2);
    let perplexity = |row: &Value| row["perplexity"].as_f64().expect("a number");
    assert!(perplexity(&rung[0]) <= perplexity(&rung[1]));
    assert_eq!(found["winner"]["name"], rung[0]["name"]);
    // The recipe that was written makes the model that won.
    let recipe = "kept/recipe.toml";
    assert_eq!(bench.compress(recipe, &bench.model, "again").code, 0);
    let again = bench.read("again/cinder.json");
    assert_eq!(again["keep_ratio"], found["winner"]["keep_ratio"]);
    assert_eq!(again["recipe"]["name"], found["winner"]["recipe"]);

    // Variations, within bytes: several rungs with more windows each.
    let most = 52_000u64;
    let found = search("bytes", &["--bytes", "52000", "--json"]).json();
    let rungs = found["rungs"].as_array().expect("a list").clone();
    let shape: Vec<(usize, u64)> = rungs
        .iter()
        .map(|r| {
            (
                r["candidates"].as_array().expect("a list").len(),
                r["windows"].as_u64().expect("a number"),
            )
        })
        .collect();
    assert_eq!(shape, [(10, 1), (4, 1), (2, 3)]);
    for row in rungs
        .iter()
        .flat_map(|r| r["candidates"].as_array().expect("a list"))
    {
        assert!(row["bytes_after"].as_u64() <= Some(most), "{row}");
    }
    schema::holds("SearchResult", &found);
    every_result_is_of_all_its_windows(&bench, "bytes", &rungs);
    // What was measured before is not measured again: the number that is put there is found again.
    let name = found["winner"]["name"].as_str().expect("a name");
    let first = |bench: &Bench| {
        let result = bench.read(&format!("bytes/results/{name}-3.json"));
        let nll = |at: usize| result["window_nll"][at].as_f64().expect("a number");
        [nll(0), nll(1), nll(2)]
    };
    let measured = first(&bench);
    interrupt(&bench, "bytes", &found, name);
    let run = search("bytes", &["--bytes", "52000", "--resume"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let resumed = first(&bench);
    assert_eq!(resumed, [3.25, measured[1], measured[2]]);
    // The smallest within a perplexity.
    let steps = [
        "--max-ppl-increase",
        "20%",
        "--no-variations",
        "--steps",
        "3",
        "--json",
    ];
    let found = search("least", &steps).json();
    let tried = found["bisection"].as_array().expect("a list").clone();
    assert!(tried.len() >= 2 && tried.len() <= 4, "{}", tried.len());
    schema::holds("SearchResult", &found);
    assert!(found["winner"]["perplexity_ratio"].as_f64() <= Some(1.2));
    let smaller = tried
        .iter()
        .filter(|t| t["asked_keep"].as_f64() < found["winner"]["asked_keep"].as_f64());
    assert!(
        smaller
            .into_iter()
            .all(|t| t["perplexity_ratio"].as_f64() > Some(1.2))
    );

    bench.snapshot(
        "search-resume",
        &search("none", &["--keep", "0.6", "--resume"]),
    );
    bench.snapshot("search-exists", &search("kept", &["--keep", "0.6"]));
    bench.snapshot(
        "search-too-few-bytes",
        &search("none", &["--bytes", "1000"]),
    );
    bench.snapshot(
        "search-too-many-bytes",
        &search("none", &["--bytes", "1000000000"]),
    );
    bench.snapshot("search-no-budget", &search("none", &[]));
    bench.snapshot(
        "search-two-budgets",
        &search("none", &["--keep", "0.5", "--bytes", "5"]),
    );
    bench.snapshot(
        "search-increase",
        &search("none", &["--max-ppl-increase", "0%"]),
    );
    assert!(!Path::new(&bench.path("none")).exists());
}

/// What rungs measured piece by piece is what measuring all windows at once gives, in the file and by the command that it names.
fn every_result_is_of_all_its_windows(bench: &Bench, out: &str, rungs: &[Value]) {
    let last = rungs.last().expect("some rung");
    let row = &last["candidates"][0];
    let name = row["name"].as_str().expect("a name");
    let written = bench.read(&format!("{out}/results/{name}-3.json"));
    schema::holds("EvalResult", &written);
    assert_eq!(written["window_indices"], serde_json::json!([0, 1, 2]));
    // The rung before had a file of its own, of its own windows.
    let before = bench.read(&format!("{out}/results/{name}-1.json"));
    assert_eq!(before["window_indices"], serde_json::json!([0]));
    assert_eq!(before["window_nll"][0], written["window_nll"][0]);
    let command = written["command"].as_str().expect("a command");
    let mut arguments: Vec<&str> = command.split(' ').skip(1).collect();
    arguments.extend(["--json", "--quiet", "--threads", "2"]);
    let at_once = cinder(&arguments).json();
    assert_eq!(written["window_nll"], at_once["window_nll"]);
    let close = |a: &Value, b: &Value, what: &str| {
        let (x, y) = (a.as_f64().expect("a number"), b.as_f64().expect("a number"));
        assert!((x / y - 1.0).abs() < 1e-12, "{what}: {a} {b}");
    };
    for key in ["perplexity", "stderr"] {
        close(&written[key], &at_once[key], key);
        close(&row[key], &at_once[key], key);
    }
    let at = |result: &Value| result["by_position"].as_array().expect("a list").clone();
    assert_eq!(at(&written).len(), at(&at_once).len());
    for (a, b) in at(&written).iter().zip(&at(&at_once)) {
        for key in ["mean_nll", "stderr"] {
            close(&a[key], &b[key], key);
        }
    }
}

/// Makes a finished search one that was interrupted in its last rung, with another number where a window was measured before.
fn interrupt(bench: &Bench, out: &str, found: &Value, name: &str) {
    let path = |within: &str| bench.path(&format!("{out}.partial/{within}"));
    std::fs::create_dir_all(path("work")).expect("makes");
    std::fs::rename(bench.path(out), path("new")).expect("renames");
    std::fs::remove_file(path("new/search.json")).expect("removes");
    std::fs::remove_file(path(&format!("new/results/{name}-3.json"))).expect("removes");
    bench.write(&format!("{out}.partial/cinder.lock"), "");
    let identity = found["made_from"].to_string();
    bench.write(&format!("{out}.partial/work/search.json"), &identity);
    let first = format!("{out}.partial/new/results/{name}-1.json");
    let mut measured = bench.read(&first);
    measured["window_nll"][0] = 3.25.into();
    bench.write(&first, &measured.to_string());
}
