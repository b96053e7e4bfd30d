//! The passes end to end on tiny models: budgets, exactness, resuming, sweeps.

mod budgets;
#[path = "../common/mod.rs"]
mod common;
mod latents;
mod recipes;
mod resuming;
mod sweep;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::{Run, arg, cinder, goldens};
use tempfile::TempDir;

const FAMILIES: [&str; 3] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3"];

/// Passes by name, with settings that make the most of tiny matrices.
const PASSES: [(&str, &str); 7] = [
    ("low-rank", "pass = 'low_rank'\nkeep = 0.7"),
    (
        "energy",
        "pass = 'low_rank'\nkeep = 0.7\nallocation = 'energy'\nidentity = true",
    ),
    (
        "fisher",
        "pass = 'low_rank'\nkeep = 0.7\nallocation = 'fisher'",
    ),
    ("loss", "pass = 'skipcat'\nkeep = 0.7\nallocation = 'loss'"),
    ("skipcat", "pass = 'skipcat'\nkeep = 0.7"),
    ("shared", "pass = 'skipcat'\nkeep = 0.7\nidentity = false"),
    (
        "frontier",
        "pass = 'frontier'\nkeep = 0.7\nneuron_step = 2\nneuron_sizes = 6",
    ),
];

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let text: String = (0..1500)
            .map(|i| {
                format!(
                    "line {} of {}: the quick brown fox number {}\n",
                    i,
                    i * 37 % 91,
                    i * i % 1013
                )
            })
            .collect();
        std::fs::write(folder.path().join("text.txt"), text).expect("writes");
        Bench { folder }
    }

    fn path(&self, name: &str) -> String {
        arg(&self.folder.path().join(name)).to_owned()
    }

    fn recipe(&self, name: &str, pass: &str, calibration: &str) -> String {
        let path = self.path(&format!("{name}.toml"));
        let text = format!(
            "name = '{name}'\n[calibration]\ncorpus = '{}'\nwindows = 12\nwindow = 48\n{calibration}\n[calibration.gradients]\nwindows = 8\n[[passes]]\n{pass}\n",
            self.path("text.txt")
        );
        std::fs::write(&path, text).expect("writes");
        path
    }

    fn compress(&self, model: &str, recipe: &str, out: &str, more: &[&str]) -> Run {
        let out = self.path(out);
        let mut arguments = vec!["compress", model, "--recipe", recipe, "--out", &out];
        arguments.extend(["--quiet", "--threads", "2", "--json"]);
        arguments.extend(more);
        cinder(&arguments)
    }

    fn nll(&self, model: &str) -> Vec<f64> {
        let text = self.path("text.txt");
        let run = cinder(&[
            "eval",
            "ppl",
            model,
            "--text",
            &text,
            "--window",
            "48",
            "--windows",
            "6",
            "--quiet",
            "--json",
        ]);
        let windows = run.json()["window_nll"].clone();
        serde_json::from_value(windows).expect("numbers")
    }
}

fn family(name: &str) -> String {
    arg(&goldens("gguf").join(format!("{name}.gguf"))).to_owned()
}

fn close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < tolerance, "{what}: {a} {b}");
    }
}

/// Every file of a directory with its content.
fn files(directory: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("lists");
    entries
        .map(|e| e.expect("entry").path())
        .map(|path| {
            (
                PathBuf::from(path.file_name().expect("name")),
                std::fs::read(&path).expect("reads"),
            )
        })
        .collect()
}

fn kv_low_rank(keep: f64, settings: &str) -> String {
    format!("pass = 'kv_low_rank'\nkeep = {keep}\nrank_floor = 1\nrank_step = 1\n{settings}")
}
