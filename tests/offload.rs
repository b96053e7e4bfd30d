//! Generation with streamed blocks: the same text, honest counts, and clear ends.

mod common;

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Run, arg, cinder, cinder_with, goldens};
use serde_json::Value;

fn model() -> String {
    arg(&goldens("gguf/tiny-llama.gguf")).to_owned()
}

fn arguments<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let first = [
        "generate",
        model,
        "--prompt",
        "a b",
        "--max-new-tokens",
        "8",
    ];
    [&first, more].concat()
}

fn generate(more: &[&str]) -> Run {
    cinder(&arguments(&model(), more))
}

/// Snapshots a run that must have ended so; folders that differ between machines are named instead.
fn snapshot(name: &str, code: i32, run: &Run, folder: &Path) {
    assert_eq!(run.code, code, "{}", run.stderr);
    let mut settings = insta::Settings::clone_current();
    let escape = |path: &Path| arg(path).replace('.', r"\.");
    settings.add_filter(&escape(folder), "[folder]");
    settings.add_filter(&escape(&goldens("")), "[goldens]/");
    settings.add_filter(
        r"first after .* tokens/s",
        "first after [N] s, then [N] tokens/s",
    );
    settings.add_filter(r": (direct|buffered) \([^)]*\)", ": [reading]");
    settings.add_filter(r"\d+ % of [\d.]+ s", "[N] % of [N] s");
    settings.bind(|| insta::assert_snapshot!(name.to_owned(), run.snapshot()));
}

#[test]
fn the_text_is_that_of_the_model_in_memory() {
    let folder = tempfile::tempdir().expect("temp");
    let file = folder.path().join("tiny.blocks");
    let expected = generate(&["--json"]).json();
    assert!(expected.get("offload").is_none());
    let check = |found: &Value, source: &str, resident: u64| {
        assert_eq!(found["ids"], expected["ids"]);
        let offload = &found["offload"];
        assert_eq!(offload["source"], source);
        assert_eq!(offload["memory"]["resident_blocks"], resident);
        // The prompt, and each new token but the last.
        assert_eq!(offload["passes"], 8);
        let number = |key: &str| offload[key].as_u64().expect("a number");
        let streamed = number("blocks") - resident;
        assert_eq!(number("bytes_per_pass") > 0, streamed > 0);
        assert!(number("bytes_read") >= 8 * number("bytes_per_pass"));
        assert!(offload["wait_seconds"].as_f64() >= Some(0.0));
    };
    // Made, and used again.
    for _ in 0..2 {
        let found = generate(&["--json", "--offload", arg(&file)]).json();
        check(&found, "file", 0);
        assert_eq!(found["offload"]["path"], arg(&file));
    }
    let found = generate(&["--json", "--offload", "memory", "--link-bandwidth", "0.01"]).json();
    check(&found, "memory", 0);
    assert_eq!(found["offload"]["link"], "simulated link of 0.01 GB/s");
    assert_eq!(found["offload"]["link_bytes_per_second"], 1e7);
    let all = generate(&["--json", "--offload", arg(&file), "--memory", "1GB"]).json();
    check(&all, "file", 2);
    // A cache folder of its own.
    let cache = [("CINDER_CACHE", arg(folder.path()))];
    let model = model();
    let auto = arguments(&model, &["--json", "--offload", "auto"]);
    let found = cinder_with(&auto, &cache).json();
    check(&found, "file", 0);
    let path = found["offload"]["path"].as_str().expect("a path");
    assert!(Path::new(path).is_file() && path.ends_with("-f32.blocks"));
    let run = generate(&["--offload", arg(&file)]);
    snapshot("generate", 0, &run, folder.path());
}

#[test]
fn what_can_not_be_meant_is_refused() {
    let folder = tempfile::tempdir().expect("temp");
    let file = folder.path().join("tiny.blocks");
    let usage: [(&str, &[&str]); 7] = [
        ("memory-without-offload", &["--memory", "1GB"]),
        ("no-size", &["--offload", "memory", "--memory", "much"]),
        ("no-rate", &["--offload", "memory", "--link-bandwidth", "0"]),
        ("codes", &["--offload", "memory", "--weights", "q4"]),
        ("values", &["--offload", "memory", "--values", "folded"]),
        ("no-file", &["--offload", ""]),
        ("rate-without-offload", &["--link-bandwidth", "1"]),
    ];
    for (name, more) in usage {
        snapshot(name, 2, &generate(more), folder.path());
    }
    let run = generate(&["--offload", arg(&file), "--memory", "50kB"]);
    snapshot("too-little-memory", 1, &run, folder.path());
    assert!(!file.exists());
    std::fs::write(&file, "text").expect("writes");
    let run = generate(&["--offload", arg(&file)]);
    snapshot("no-block-file", 1, &run, folder.path());
    std::fs::remove_file(&file).expect("removes");
    let f16 = ["--offload", arg(&file), "--weights", "f16"];
    assert_eq!(generate(&f16).code, 0);
    let run = generate(&["--offload", arg(&file)]);
    snapshot("other-precision", 1, &run, folder.path());
    let nowhere = folder.path().join("no/such/folder.blocks");
    let run = generate(&["--offload", arg(&nowhere)]);
    snapshot("no-folder", 1, &run, folder.path());
}

#[test]
fn a_file_that_vanishes_ends_the_generation() {
    let folder = tempfile::tempdir().expect("temp");
    let file = folder.path().join("tiny.blocks");
    let model = model();
    // About a second a pass: the file goes while a token is made.
    let slow = ["--offload", arg(&file), "--link-bandwidth", "0.00005"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_cinder"))
        .args(arguments(&model, &slow))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut first = [0; 1];
    let stdout = child.stdout.as_mut().expect("a pipe");
    stdout.read_exact(&mut first).expect("the prompt");
    std::fs::remove_file(&file).expect("removes");
    let output = child.wait_with_output().expect("ends");
    let run = Run {
        code: output.status.code().unwrap_or(-1),
        // How far it came is chance.
        stdout: String::new(),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    };
    snapshot("vanished", 1, &run, folder.path());
}
