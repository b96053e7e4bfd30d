//! What the end-to-end tests share: running the program, and finding real data.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

pub mod schema;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// One run of `cinder`, readable in a snapshot.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    fn new(output: Output) -> Self {
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }

    /// The result of a run with `--json` that must have succeeded.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).expect("stdout is one JSON object")
    }

    pub fn snapshot(&self) -> String {
        format!(
            "exit code: {}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

/// Runs `cinder` with `arguments` in the repository's root.
pub fn cinder(arguments: &[&str]) -> Run {
    cinder_with(arguments, &[])
}

/// [`cinder`] with environment variables set.
pub fn cinder_with(arguments: &[&str], environment: &[(&str, &str)]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_cinder"))
        .args(arguments)
        .envs(environment.iter().copied())
        // Help is wrapped to it.
        .env_remove("COLUMNS")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cinder runs");
    Run::new(output)
}

/// A committed reference file or folder.
pub fn goldens(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens")
        .join(path)
}

/// A file that developers and CI have beside the repository. Where it is absent the test says so and passes.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared")
        .join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not here", path.display());
    None
}

/// The default model, fetched once.
pub fn smollm2() -> &'static str {
    fetched("smollm2")
}

/// Fetches an item through the command line; it stays in the cache outside the repository.
pub fn fetched(item: &'static str) -> &'static str {
    let run = cinder(&["fetch", item, "--json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    item
}

/// `path` as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
