//! Recipes: a TOML file that says what to calibrate on and which passes to run.

use std::path::Path;

use cinder_models::checkpoint::StoredDtype;
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::calibration::{Draw, GradientSettings, LabelSource, OWN_TEXT};
use crate::error::{Error, Result};
use crate::passes::{Needs, Pass, REGISTRY, share_out};

/// A recipe as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    name: String,
    calibration: Option<Calibration>,
    #[serde(default)]
    output: Output,
    passes: Vec<toml::Table>,
}

/// Which tokens the statistics are collected on, and how.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// `boolq:calibration` (from `cinder fetch eval-tasks`), a text file, or `self`: text that the model writes, which
    /// needs memory for all of it.
    pub corpus: String,
    /// How many windows.
    #[schemars(range(min = 1))]
    pub windows: usize,
    /// Tokens in each.
    #[schemars(range(min = 2))]
    pub window: usize,
    /// `documents` (default): each window from other documents; `text`: windows of the joined text, drawn; `even`: at
    /// even distances. `self` has a document for each window.
    #[serde(default)]
    pub draw: Draw,
    /// Decides which windows of the corpus are taken, what the model writes, and labels that are sampled.
    #[serde(default)]
    pub seed: u64,
    /// What later blocks see of the compressed ones before them.
    #[serde(default)]
    pub propagate: Propagate,
    /// How gradient moments are collected, where a pass needs them.
    #[serde(default)]
    pub gradients: GradientSettings,
}

/// What a block is compressed for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Propagate {
    /// The inputs of the dense model.
    #[default]
    None,
    /// The inputs that the compressed blocks before it give.
    Inputs,
    /// Those, and within a block `o` and `down` are fitted to what the dense block would have put out on them.
    Block,
}

/// How the result is stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// `f32` (default), `f16` or `bf16`.
    #[serde(default)]
    #[schemars(with = "String", extend("enum" = ["f32", "f16", "bf16"]))]
    pub dtype: StoredDtype,
}

/// A recipe whose passes are built and checked.
pub struct Recipe {
    /// Names it in manifests and reports, and a sweep's files.
    pub name: String,
    /// None where no pass needs any text.
    pub calibration: Option<Calibration>,
    /// How the result is stored.
    pub output: Output,
    /// In the order in which they are planned; they touch different sites.
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
        // Sweeps name files after it.
        let plain = |c: char| c.is_alphanumeric() || " ._+-".contains(c);
        if file.name.is_empty() || file.name.starts_with('.') || !file.name.chars().all(plain) {
            return Err(wrong(format!(
                "`name` is {:?}; it must be letters, digits, spaces and `._+-`, and begin with no dot",
                file.name
            )));
        }
        if file.passes.is_empty() {
            return Err(wrong("it has no `[[passes]]`".into()));
        }
        let mut passes: Vec<Box<dyn Pass>> = file
            .passes
            .into_iter()
            .map(|table| build(table, keep))
            .collect::<std::result::Result<_, _>>()
            .map_err(wrong)?;
        share_out(&mut passes).map_err(|e| wrong(e.to_string()))?;
        match &file.calibration {
            Some(calibration) => calibration.check().map_err(wrong)?,
            None if passes.iter().any(|p| p.needs() > Needs::Nothing) => {
                return Err(wrong("its passes need a `[calibration]`".into()));
            }
            None => {}
        }
        Ok(Recipe {
            name: file.name,
            calibration: file.calibration,
            output: file.output,
            passes,
        })
    }

    /// Whether any pass has a keep ratio.
    pub fn has_keep(&self) -> bool {
        self.passes
            .iter()
            .any(|p| p.settings().get("keep").is_some())
    }

    /// The calibration, where a pass needs its text.
    pub fn used_calibration(&self) -> Option<&Calibration> {
        let needed = self.needs() > Needs::Nothing;
        self.calibration.as_ref().filter(|_| needed)
    }

    /// Whether anything is decided by the calibration's seed.
    pub fn uses_seed(&self) -> bool {
        let sampled = |c: &Calibration| {
            self.needs() == Needs::Gradients && c.gradients.labels == LabelSource::Sampled
        };
        self.used_calibration()
            .is_some_and(|c| c.corpus == OWN_TEXT || c.draw != Draw::Even || sampled(c))
    }

    /// Replaces the calibration's corpus and seed, where they are given and it has one.
    pub fn override_calibration(&mut self, corpus: Option<&str>, seed: Option<u64>) {
        if let Some(calibration) = &mut self.calibration {
            if let Some(corpus) = corpus {
                calibration.corpus = corpus.into();
            }
            calibration.seed = seed.unwrap_or(calibration.seed);
        }
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

    /// What the passes have to know of the calibration text, together.
    pub fn needs(&self) -> Needs {
        let needs = self.passes.iter().map(|p| p.needs());
        needs.max().unwrap_or(Needs::Nothing)
    }

    /// The JSON schema of a recipe file, generated from the settings of all passes.
    pub fn schema() -> Value {
        let mut generator = SchemaGenerator::default();
        let passes: Vec<Value> = REGISTRY
            .iter()
            .map(|entry| {
                let mut schema = json!((entry.schema)(&mut generator));
                // A reference stands for the settings; the pass's name belongs beside them.
                let name = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next());
                let settings = name.and_then(|n| generator.definitions().get(n)).cloned();
                schema = settings.unwrap_or(schema);
                schema["title"] = json!(entry.name);
                schema["description"] = json!(entry.summary);
                schema["properties"]["pass"] = json!({"const": entry.name});
                let required = schema["required"].as_array().cloned().unwrap_or_default();
                schema["required"] = std::iter::once(json!("pass")).chain(required).collect();
                schema
            })
            .collect();
        let calibration = generator.subschema_for::<Calibration>();
        let output = generator.subschema_for::<Output>();
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Cinder recipe",
            "type": "object",
            "additionalProperties": false,
            "required": ["name", "passes"],
            "properties": {
                "name": {
                    "type": "string",
                    "description": "Names the recipe in manifests and reports.",
                    "pattern": "^[\\p{Alphabetic}\\p{N} _+-][\\p{Alphabetic}\\p{N} ._+-]*$",
                },
                "calibration": calibration,
                "output": output,
                "passes": {"type": "array", "minItems": 1, "items": {"oneOf": passes}},
            },
            "$defs": generator.definitions(),
        })
    }
}

impl Calibration {
    fn check(&self) -> std::result::Result<(), String> {
        let gradients = &self.gradients;
        if self.window < 2 || self.windows < 1 {
            return Err(
                "`calibration` needs windows of at least 2 tokens, and at least one".into(),
            );
        }
        if gradients.windows < 1 {
            return Err("`calibration.gradients.windows` is 0; it must be at least 1".into());
        }
        if !(0.0..0.5).contains(&gradients.trim) {
            return Err(format!(
                "`calibration.gradients.trim` is {}; it must be at least 0 and below 0.5",
                gradients.trim
            ));
        }
        match gradients.clip {
            Some([least, most]) if !(least >= 0.0 && most >= least && most.is_finite()) => {
                Err(format!(
                    "`calibration.gradients.clip` is [{least}, {most}]; it must be two numbers, the first not above the second"
                ))
            }
            _ => Ok(()),
        }
    }
}

fn build(mut table: toml::Table, keep: Option<f64>) -> std::result::Result<Box<dyn Pass>, String> {
    let name = match table.remove("pass") {
        Some(toml::Value::String(name)) => name,
        _ => return Err("every `[[passes]]` needs `pass = \"name\"`".into()),
    };
    let Some(entry) = REGISTRY.iter().find(|entry| entry.name == name) else {
        let known: Vec<_> = REGISTRY.iter().map(|entry| entry.name).collect();
        return Err(format!(
            "there is no pass `{name}`; the passes are: {}",
            known.join(", ")
        ));
    };
    if let Some(keep) = keep.filter(|_| entry.has_keep) {
        table.insert("keep".into(), toml::Value::Float(keep));
    }
    (entry.build)(table).map_err(|why| format!("pass `{name}`: {why}"))
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
        assert_eq!(value["calibration"]["draw"], "documents");
        assert_eq!(parse(GOOD, None).expect("valid")["passes"][0]["keep"], 0.5);
    }

    /// What a manifest records is a recipe again, but for what TOML has no word for: model cards print it.
    #[test]
    fn what_is_recorded_of_a_shipped_recipe_is_that_recipe() {
        fn without_nulls(value: &mut Value) {
            match value {
                Value::Object(map) => {
                    map.retain(|_, value| !value.is_null());
                    map.values_mut().for_each(without_nulls);
                }
                Value::Array(list) => list.iter_mut().for_each(without_nulls),
                _ => {}
            }
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
        let files = fs_err::read_dir(folder).expect("lists");
        let files = files.map(|entry| entry.expect("an entry").path());
        let mut count = 0;
        for path in files.filter(|path| path.extension().is_some_and(|e| e == "toml")) {
            let recorded = Recipe::read(&path, None).expect("is one").resolved();
            let mut written = recorded.clone();
            without_nulls(&mut written);
            let written = toml::Table::try_from(written).expect("is a table");
            assert_eq!(parse(&written.to_string(), None), Ok(recorded));
            count += 1;
        }
        assert!(count > 5, "{count}");
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, expected) in [
            ("keep = 0.5", "keep = 1.5", "`keep` is 1.5"),
            ("keep = 0.5", "kep = 0.5", "unknown field `kep`"),
            (
                "low_rank",
                "skipdog",
                "there is no pass `skipdog`; the passes are: frontier, skipcat, low_rank",
            ),
            (
                "[calibration]\ncorpus = 'c'\nwindows = 2\nwindow = 8\n",
                "",
                "its passes need a `[calibration]`",
            ),
            (
                "windows = 2",
                "windows = 2\ngradients = { clip = [2.0, 1.0] }",
                "`calibration.gradients.clip`",
            ),
            ("keep = 0.5", "keep = 0.5\nsites = ['q']", "a site is `q`"),
            (
                "keep = 0.5\n",
                "keep = 0.5\n[[passes]]\npass = 'frontier'\nkeep = 0.5\n",
                "factoring `q` twice",
            ),
            (
                "pass = 'low_rank'\nkeep = 0.5",
                "pass = 'identity_block'\ngrowth = inf",
                "`growth` is inf",
            ),
            ("window = 8", "window = 1", "at least 2 tokens"),
            ("windows = 2", "windows = 'two'", "line 4:"),
            (
                "windows = 2",
                "windows = 2\ndraw = 'odd'",
                "expected one of `documents`, `text`, `even`",
            ),
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
