//! Zero-shot tasks: requests as lm-evaluation-harness renders them, scores as PyTorch gives them, and what bad data says.

mod common;

use std::path::Path;

use cinder::eval::tasks::{Document, Task, read};
use common::{Run, arg, cinder, cinder_with, goldens, schema, shared, smollm2};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The tasks whose original files and references are in the shared data.
const TASKS: [&str; 6] = [
    "piqa",
    "hellaswag",
    "arc_easy",
    "arc_challenge",
    "winogrande",
    "lambada_openai",
];

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("reads");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn requests_are_rendered_byte_for_byte() {
    let Some(data) = shared("data/zero-shot") else {
        return;
    };
    for name in TASKS {
        let task = Task::find(name).expect("known");
        let documents = read(&task, &data).expect(name).documents;
        let rendered = lines(&data.join(format!("rendered/{name}.first300.jsonl")));
        assert_eq!(rendered.len(), 300);
        for (ours, golden) in documents.iter().zip(&rendered) {
            assert_eq!(as_rendered(ours, &golden["doc_id"]), *golden, "{name}");
        }
    }
}

/// What `cinder fetch eval-tasks` brings has all documents, and those of the original files where nothing was lost.
#[test]
fn fetched_files_hold_the_published_documents() {
    let fetched = cinder(&["fetch", "eval-tasks", "--json"]).json();
    let fetched = Path::new(fetched["path"].as_str().expect("a path"));
    let original = shared("data/zero-shot");
    for (name, count) in [
        ("arc_challenge", 1172),
        ("arc_easy", 2376),
        ("boolq", 3270),
        ("hellaswag", 10042),
        ("lambada_openai", 5153),
        ("openbookqa", 500),
        ("piqa", 1838),
        ("sciq", 1000),
        ("winogrande", 1267),
    ] {
        let task = Task::find(name).expect("known");
        let documents = read(&task, fetched).expect(name).documents;
        assert_eq!(documents.len(), count, "{name}");
        // That file of LAMBADA has other white space.
        let Some(data) = original.as_ref().filter(|_| name != "lambada_openai") else {
            continue;
        };
        if TASKS.contains(&name) {
            let original = read(&task, data).expect(name).documents;
            for (ours, published) in documents.iter().zip(&original) {
                assert_eq!(ours.requests, published.requests, "{name}");
                assert_eq!(ours.gold, published.gold, "{name}");
            }
        }
    }
}

fn as_rendered(document: &Document, id: &Value) -> Value {
    let requests = &document.requests;
    let context: Vec<&str> = requests.iter().map(|r| r.context.as_str()).collect();
    let continuation: Vec<&str> = requests.iter().map(|r| r.continuation.as_str()).collect();
    let choices = document.gold.map(|_| &document.choices);
    json!({"doc_id": id, "ctx": context, "cont": continuation, "choices": choices, "gold": document.gold})
}

/// The first documents of each task: log-likelihoods within 1e-3, and as many right, as PyTorch has.
#[test]
fn scores_are_pytorchs() {
    let (Some(data), Some(reference)) =
        (shared("data/zero-shot"), shared("reference/smollm2.json"))
    else {
        return;
    };
    let reference = std::fs::read_to_string(reference).expect("reads");
    let reference: Value = serde_json::from_str(&reference).expect("JSON");
    smollm2();
    let folder = tempfile::tempdir().expect("temp");
    let documents = folder.path().join("documents.jsonl");
    let arguments = [
        "eval",
        "tasks",
        "smollm2",
        "--tasks",
        &TASKS.join(","),
        "--data",
        arg(&data),
        "--limit",
        "50",
        "--documents",
        arg(&documents),
        "--json",
        "--quiet",
    ];
    let result = cinder(&arguments).json();
    println!("{} s", result["seconds"]);
    let documents = lines(&documents);
    for name in TASKS {
        let (ours, golden) = (&result["tasks"][name], &reference[name]);
        assert_eq!(ours["n"], golden["n"]);
        assert_eq!(ours["acc"], golden["acc"], "{name}");
        if ours.get("acc_norm").is_some() {
            assert_eq!(ours["acc_norm"], golden["acc_norm"], "{name}");
        }
        if let Some(perplexity) = ours["perplexity"].as_f64() {
            let ratio = perplexity / golden["ppl"].as_f64().expect("a number");
            assert!((ratio - 1.0).abs() < 1e-4, "{name}: {ratio}");
        }
        let scored = documents
            .iter()
            .filter(|document| document["task"] == *name);
        let golden = golden["loglikelihoods"].as_array().expect("a list");
        let mut worst: f64 = 0.0;
        for (ours, golden) in scored.zip(golden) {
            let numbers = |value: &Value| -> Vec<f64> {
                let items = value.as_array().expect("a list").iter();
                items.map(|item| item.as_f64().expect("a number")).collect()
            };
            let (ours, golden) = (numbers(&ours["log_likelihoods"]), numbers(golden));
            assert_eq!(ours.len(), golden.len());
            let apart = ours.iter().zip(&golden).map(|(a, b)| (a - b).abs());
            worst = apart.fold(worst, f64::max);
        }
        println!("{name}: {worst:.1e}");
        assert!(worst < 1e-3, "{name}: {worst}");
    }
}

/// A folder of task files, and the tiny model.
struct Data {
    folder: TempDir,
    model: String,
}

impl Data {
    fn new() -> Self {
        Data {
            folder: tempfile::tempdir().expect("temp"),
            model: arg(&goldens("gguf/tiny-llama.gguf")).to_owned(),
        }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.folder.path().join(name), content).expect("writes");
    }

    fn path(&self, name: &str) -> String {
        arg(&self.folder.path().join(name)).to_owned()
    }

    fn eval(&self, tasks: &str, more: &[&str]) -> Run {
        let data = self.path("");
        let mut arguments = vec!["eval", "tasks", &self.model, "--tasks", tasks];
        arguments.extend(["--data", &data, "--quiet", "--threads", "2"]);
        arguments.extend(more);
        cinder(&arguments)
    }

    fn snapshot(&self, name: &str, run: &Run) {
        let mut settings = insta::Settings::clone_current();
        let escape = |path: &Path| arg(path).replace('.', r"\.");
        settings.add_filter(&escape(self.folder.path()), "[folder]");
        settings.add_filter(&escape(&goldens("")), "[goldens]/");
        settings.add_filter(r#""command":"[^"]*""#, r#""command":"[command]""#);
        settings.add_filter(r#""seconds":[\d.e-]+"#, r#""seconds":[N]"#);
        // The last digits depend on the processor's kernels.
        settings.add_filter(r#"("perplexity[a-z_]*":)[\d.]+"#, "$1[N]");
        settings.add_filter(r"\d+\.\d+ ± \d+\.\d+\n", "[N] ± [N]\n");
        settings.bind(|| insta::assert_snapshot!(name.to_owned(), run.snapshot()));
    }

    fn fails(&self, name: &str, tasks: &str, more: &[&str], code: i32) {
        let run = self.eval(tasks, more);
        assert_eq!(run.code, code, "{}", run.stderr);
        self.snapshot(name, &run);
    }
}

const PIQA: &str = r#"{"goal":"open a jar","sol1":"turn the lid","sol2":"turn the jar and the lid","label":0}
{"goal":"boil water","sol1":"freeze it","sol2":"heat it","label":1}
{"goal":"fly","sol1":"jump ","sol2":"take a plane","label":"1"}
"#;
const WINOGRANDE: &str = r#"{"sentence":"Ann met Bo and _ left.","option1":"Ann","option2":"Bo","answer":"2"}
"#;
const LAMBADA: &str = r#"{"text":"The quick brown fox jumps over the lazy dog"}
{"text":"The dog does not mind at all"}
"#;

#[test]
fn what_is_printed_and_written() {
    let data = Data::new();
    data.write("piqa.jsonl", PIQA);
    data.write("winogrande.jsonl", WINOGRANDE);
    data.write("lambada_openai.jsonl", LAMBADA);
    let tasks = "piqa,winogrande,lambada_openai";
    data.snapshot("tasks", &data.eval(tasks, &[]));
    let (out, documents) = (data.path("new/out.json"), data.path("documents.jsonl"));
    let files = ["--out", &out, "--documents", &documents, "--json"];
    let run = data.eval("piqa,lambada_openai", &files);
    data.snapshot("tasks-json", &run);
    let printed = run.json();
    let written = std::fs::read_to_string(out).expect("reads");
    assert_eq!(
        serde_json::from_str::<Value>(&written).expect("JSON"),
        printed
    );
    let documents = lines(Path::new(&documents));
    assert_eq!(documents.len(), 5);
    schema::holds("TasksResult", &printed);
    for scores in &documents {
        schema::holds("DocumentScores", scores);
    }
    assert_eq!(documents[2]["gold"], 1);
    let sums = documents[2]["log_likelihoods"].as_array().expect("a list");
    let best = u64::from(sums[1].as_f64() > sums[0].as_f64());
    assert_eq!(documents[2]["pick"], best);
    // With limits and shots; a document is not shown before itself.
    let shown = data
        .eval("piqa", &["--limit", "2", "--shots", "2", "--json"])
        .json();
    let piqa = &shown["tasks"]["piqa"];
    assert_eq!(
        (&piqa["n"], &piqa["documents"], &piqa["shots"]),
        (&json!(2), &json!(3), &json!(2))
    );
    assert!(piqa["tokens"].as_u64() > printed["tasks"]["piqa"]["tokens"].as_u64());
}

/// Two results of the same documents, document by document.
#[test]
fn pairs_of_results() {
    let data = Data::new();
    data.write("piqa.jsonl", PIQA);
    data.write("lambada_openai.jsonl", LAMBADA);
    let result = |name: &str, more: &[&str]| {
        let out = data.path(&format!("{name}.json"));
        let documents = data.path(&format!("{name}.jsonl"));
        let files = ["--out", &out, "--documents", &documents];
        let run = data.eval("piqa,lambada_openai", &[&files[..], more].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        out
    };
    let (a, b) = (result("a", &[]), result("b", &["--cache", "f16"]));
    let compared = cinder(&["compare", &a, &b, "--json"]).json();
    schema::holds("ComparedTasks", &compared);
    let piqa = &compared["tasks"]["piqa"];
    assert_eq!(piqa["acc"]["pairs"], 3);
    assert!(piqa["acc_norm"].is_object());
    assert!(
        compared["tasks"]["lambada_openai"]
            .get("acc_norm")
            .is_none()
    );
    let difference = piqa["gold_log_likelihood"]["difference"]["mean"].as_f64();
    let difference = difference.expect("a number");
    assert!(difference != 0.0 && difference.abs() < 0.05, "{difference}");
    data.snapshot("compare-tasks", &cinder(&["compare", &a, &a]));
    // What makes no pairs.
    let shown = result("shown", &["--shots", "1"]);
    data.snapshot("compare-other-shots", &cinder(&["compare", &a, &shown]));
    let record = std::fs::read_to_string(&shown).expect("reads");
    assert!(record.contains("first_n"), "{record}");
    data.write("b.jsonl", "{}\n");
    data.snapshot("compare-other-documents", &cinder(&["compare", &a, &b]));
    let alone = data.path("alone.json");
    assert_eq!(data.eval("piqa,lambada_openai", &["--out", &alone]).code, 0);
    data.snapshot("compare-no-documents", &cinder(&["compare", &a, &alone]));
}

/// Through 16 bits the scores differ, but little.
#[test]
fn the_cache_is_part_of_the_model() {
    let data = Data::new();
    data.write("piqa.jsonl", PIQA);
    let scores = |format: &str| -> Vec<f64> {
        let path = data.path(format);
        let run = data.eval("piqa", &["--cache", format, "--documents", &path, "--json"]);
        assert_eq!(run.json()["cache"], format);
        let sums = lines(Path::new(&path)).into_iter();
        let sums = sums.map(|line| line["log_likelihoods"][0].as_f64().expect("a number"));
        sums.collect()
    };
    let (exact, rounded) = (scores("f32"), scores("f16"));
    assert_ne!(exact, rounded);
    let apart = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs());
    assert!(apart.fold(0.0, f64::max) < 0.05, "{exact:?} {rounded:?}");
}

#[test]
fn bad_data_says_the_file_and_the_line() {
    let data = Data::new();
    data.fails("tasks-missing-file", "piqa", &[], 1);
    let with = |name: &str, lines: &[u8]| {
        data.write("piqa.jsonl", lines);
        data.fails(name, "piqa", &[], 1);
    };
    let (first, rest) = PIQA.split_once('\n').expect("lines");
    with("tasks-empty", b"\n\n");
    with(
        "tasks-not-json",
        format!("{first}\n\n{{\"goal\": \n").as_bytes(),
    );
    with(
        "tasks-missing-field",
        PIQA.replace("sol2\":\"heat", "sol3\":\"heat").as_bytes(),
    );
    with(
        "tasks-wrong-type",
        PIQA.replace("\"boil water\"", "[1]").as_bytes(),
    );
    with(
        "tasks-wrong-label",
        PIQA.replace("\"label\":1", "\"label\":2").as_bytes(),
    );
    with(
        "tasks-empty-choice",
        PIQA.replace("freeze it", "").as_bytes(),
    );
    with(
        "tasks-duplicate",
        format!("{first}\n{rest}{first}\n").as_bytes(),
    );
    with(
        "tasks-not-utf8",
        &[PIQA.as_bytes(), b"{\"goal\":\"caf\xe9\"}\n"].concat(),
    );
    let two = [
        r#"{"id":"a","question":{"stem":"Q","choices":[{"text":"x","label":"A"},{"text":"y","label":"B"}]},"answerKey":"A"}"#,
        r#"{"id":"b","question":"Q","choices":{"text":["x","y"],"label":["A","B"]},"answerKey":"A"}"#,
    ];
    data.write("arc_easy.jsonl", two.join("\n"));
    data.fails("tasks-mixed-schema", "arc_easy", &[], 1);
    data.write("arc_easy.arrow", "no arrow");
    std::fs::remove_file(data.path("arc_easy.jsonl")).expect("removes");
    data.fails("tasks-damaged-arrow", "arc_easy", &[], 1);
}

#[test]
fn wrong_usage() {
    let data = Data::new();
    data.write("piqa.jsonl", PIQA);
    data.fails("tasks-unknown", "piqa,squad", &[], 2);
    data.fails("tasks-twice", "piqa,piqa", &[], 2);
    data.fails("tasks-limit", "piqa", &["--limit", "0"], 2);
    data.fails("tasks-shots", "piqa", &["--shots", "3"], 1);
    let nowhere = data.path("nowhere");
    let arguments = ["eval", "tasks", &data.model, "--tasks", "piqa"];
    let run = cinder_with(&arguments, &[("CINDER_CACHE", &nowhere)]);
    assert_eq!(run.code, 1);
    data.snapshot("tasks-not-fetched", &run);
}
