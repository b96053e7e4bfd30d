//! Runs that were killed, or are asked for something that can not be.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Bench, PASSES, family, files, kv_low_rank};

/// Killed at any moment and resumed, a run ends in the same bytes.
#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let bench = Bench::new();
    let model = family("tiny-qwen3");
    // The head's codes are written with the frame.
    let passes = format!(
        "{}\nsites = ['qkv', 'gate_up', 'down']\n[[passes]]\n{}\n[[passes]]\npass = 'substitute'\nsites = ['o']\nhead_bits = 8",
        PASSES[6].1,
        kv_low_rank(0.5, "")
    );
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
