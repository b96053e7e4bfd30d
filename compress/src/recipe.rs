//! Recipes: a TOML file that says what to calibrate on and which passes to run.

use std::path::Path;

use cinder_models::checkpoint::StoredDtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::passes::{Pass, REGISTRY};

/// A recipe as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    name: String,
    calibration: Calibration,
    #[serde(default)]
    output: Output,
    passes: Vec<toml::Table>,
}

/// Which tokens the statistics are collected on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// `boolq:calibration` (from `cinder fetch eval-tasks`), or a text file.
    pub corpus: String,
    /// How many windows.
    pub windows: usize,
    /// Tokens in each.
    pub window: usize,
    /// Decides which windows of the corpus are taken.
    #[serde(default)]
    pub seed: u64,
    /// Whether later blocks see the outputs of the compressed blocks before them, or of the dense ones.
    #[serde(default)]
    pub propagate: bool,
}

/// How the result is stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// `f32` (default), `f16` or `bf16`.
    #[serde(default)]
    pub dtype: StoredDtype,
}

/// A recipe whose passes are built and checked.
pub struct Recipe {
    pub name: String,
    pub calibration: Calibration,
    pub output: Output,
    pub passes: Vec<Box<dyn Pass>>,
}

impl Recipe {
    /// Reads a recipe. `keep`, when given, replaces the keep ratio of every pass.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the file and what is wrong with it.
    pub fn read(path: &Path, keep: Option<f64>) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::Recipe {
                path: path.into(),
                why: "there is no such file".into(),
            });
        }
        Self::parse(&fs_err::read_to_string(path)?, path, keep)
    }

    /// [`Recipe::read`] from text; `path` only serves messages.
    pub fn parse(text: &str, path: &Path, keep: Option<f64>) -> Result<Self> {
        let wrong = |why: String| Error::Recipe {
            path: path.into(),
            why,
        };
        let file: RecipeFile = toml::from_str(text).map_err(|e| {
            let line = e
                .span()
                .map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or(String::new(), |l| format!("line {l}: "));
            wrong(format!("{place}{}", e.message()))
        })?;
        if file.passes.is_empty() {
            return Err(wrong("it has no `[[passes]]`".into()));
        }
        if file.calibration.window < 2 || file.calibration.windows < 1 {
            return Err(wrong(
                "`calibration` needs windows of at least 2 tokens, and at least one".into(),
            ));
        }
        let passes = file
            .passes
            .into_iter()
            .map(|table| build(table, keep))
            .collect::<std::result::Result<_, _>>()
            .map_err(wrong)?;
        Ok(Recipe {
            name: file.name,
            calibration: file.calibration,
            output: file.output,
            passes,
        })
    }

    /// The recipe with every default and override filled in, as it goes into the manifest.
    pub fn resolved(&self) -> Value {
        json!({
            "name": self.name,
            "calibration": self.calibration,
            "output": self.output,
            "passes": self.passes.iter().map(|p| p.settings()).collect::<Vec<_>>(),
        })
    }
}

fn build(mut table: toml::Table, keep: Option<f64>) -> std::result::Result<Box<dyn Pass>, String> {
    let name = match table.remove("pass") {
        Some(toml::Value::String(name)) => name,
        _ => return Err("every `[[passes]]` needs `pass = \"name\"`".into()),
    };
    let Some((_, _, build)) = REGISTRY.iter().find(|(known, _, _)| *known == name) else {
        let known: Vec<_> = REGISTRY.iter().map(|(n, _, _)| *n).collect();
        return Err(format!(
            "there is no pass `{name}`; the passes are: {}",
            known.join(", ")
        ));
    };
    if let Some(keep) = keep {
        table.insert("keep".into(), toml::Value::Float(keep));
    }
    build(table).map_err(|why| format!("pass `{name}`: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = 'x'\n[calibration]\ncorpus = 'c'\nwindows = 2\nwindow = 8\n[[passes]]\npass = 'low_rank'\nkeep = 0.5\n";

    fn parse(text: &str, keep: Option<f64>) -> std::result::Result<Value, String> {
        Recipe::parse(text, Path::new("r.toml"), keep)
            .map(|r| r.resolved())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_and_overrides_are_resolved() {
        let value = parse(GOOD, Some(0.8)).expect("valid");
        assert_eq!(value["passes"][0]["keep"], 0.8);
        assert_eq!(value["passes"][0]["ridge"], 1e-6);
        assert_eq!(value["output"]["dtype"], "f32");
        assert_eq!(parse(GOOD, None).expect("valid")["passes"][0]["keep"], 0.5);
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, expected) in [
            ("keep = 0.5", "keep = 1.5", "`keep` is 1.5"),
            ("keep = 0.5", "kep = 0.5", "unknown field `kep`"),
            (
                "low_rank",
                "skipcat",
                "there is no pass `skipcat`; the passes are: low_rank",
            ),
            ("window = 8", "window = 1", "at least 2 tokens"),
            ("windows = 2", "windows = 'two'", "line 4:"),
            ("windows = 2", "windows = 2\nwindoze = 3", "line 5:"),
            ("pass = 'low_rank'", "", "every `[[passes]]` needs"),
            (
                "name = 'x'",
                "name = 'x'\nmodle = 'y'",
                "unknown field `modle`",
            ),
        ] {
            let error = parse(&GOOD.replace(from, to), None).expect_err(to);
            assert!(error.contains(expected), "{error}");
        }
    }
}
