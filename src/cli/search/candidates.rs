//! The recipes that a search tries: those it is given, each as it is and with one thing changed.

use std::path::PathBuf;

use anyhow::Result;
use cinder::compress::recipe::Recipe;
use toml::{Table, Value};

use crate::cli::context::{Context, Usage};

/// The shipped recipes that make weights smaller.
const SHIPPED: [(&str, &str); 3] = [
    (
        "recipes/frontier.toml",
        include_str!("../../../recipes/frontier.toml"),
    ),
    (
        "recipes/skipcat.toml",
        include_str!("../../../recipes/skipcat.toml"),
    ),
    (
        "recipes/low-rank.toml",
        include_str!("../../../recipes/low-rank.toml"),
    ),
];

/// A setting of a variation: a path into the recipe's table, and what it is set to.
type Change = (&'static [&'static str], Value);

/// A recipe that is tried.
#[derive(Clone)]
pub struct Candidate {
    pub name: String,
    table: Table,
    /// The file that it comes from, for messages.
    path: PathBuf,
}

impl Candidate {
    /// The recipe at a keep ratio.
    pub fn recipe(&self, keep: f64) -> Result<Recipe> {
        Ok(Recipe::parse(
            &self.table.to_string(),
            &self.path,
            Some(keep),
        )?)
    }

    /// The recipe's file at a keep ratio.
    pub fn toml(&self, keep: f64) -> String {
        let mut table = self.table.clone();
        let passes = table.get_mut("passes").and_then(Value::as_array_mut);
        for pass in passes.into_iter().flatten().filter_map(Value::as_table_mut) {
            if pass.contains_key("keep") {
                pass.insert("keep".into(), Value::Float(keep));
            }
        }
        format!("# Found by `cinder search`.\n{table}")
    }

    fn with(&self, suffix: &str, changes: &[Change]) -> Self {
        let mut changed = self.clone();
        changed.name = format!("{}+{suffix}", self.name);
        changed
            .table
            .insert("name".into(), changed.name.clone().into());
        for (path, value) in changes {
            changed.set(path, value.clone());
        }
        changed
    }

    /// Sets what is at a path; the first step `pass` is the first pass.
    fn set(&mut self, path: &[&str], value: Value) {
        let (Some((last, steps)), mut place) = (path.split_last(), &mut self.table) else {
            return;
        };
        for step in steps {
            let next = match *step {
                "pass" => place
                    .get_mut("passes")
                    .and_then(|passes| passes.as_array_mut()?.first_mut()?.as_table_mut()),
                step => place
                    .entry(step)
                    .or_insert_with(|| Value::Table(Table::new()))
                    .as_table_mut(),
            };
            let Some(next) = next else { return };
            place = next;
        }
        place.insert((*last).into(), value);
    }

    /// The same with one thing changed at a time.
    fn variations(&self) -> Vec<Self> {
        let pass = |name: &str| {
            self.passes()
                .any(|p| p.get("pass").and_then(Value::as_str) == Some(name))
        };
        let mut all = Vec::new();
        if pass("frontier") {
            all.push(self.with("ridge-0.05", &[(&["pass", "output_ridge"], 0.05.into())]));
            all.push(self.with("ridge-0.2", &[(&["pass", "output_ridge"], 0.2.into())]));
            let neurons = |name: &'static str| -> Change {
                (
                    if name == "pruned" {
                        &["pass", "structures", "pruned"]
                    } else {
                        &["pass", "structures", "hybrid"]
                    },
                    false.into(),
                )
            };
            all.push(self.with("all-neurons", &[neurons("pruned"), neurons("hybrid")]));
            all.push(self.with(
                "separate",
                &[(&["pass", "structures", "shared"], false.into())],
            ));
        }
        if pass("low_rank") {
            let identity: Change = (&["pass", "identity"], true.into());
            all.push(self.with("identity", std::slice::from_ref(&identity)));
            all.push(self.with(
                "identity-loss",
                &[identity, (&["pass", "allocation"], "loss".into())],
            ));
        }
        let calibration = self.table.get("calibration").and_then(Value::as_table);
        if let Some(calibration) = calibration.filter(|_| pass("frontier") || pass("skipcat")) {
            let now = calibration
                .get("propagate")
                .and_then(Value::as_str)
                .unwrap_or("none");
            for propagate in ["none", "inputs", "block"]
                .into_iter()
                .filter(|p| *p != now)
            {
                let change: Change = (&["calibration", "propagate"], propagate.into());
                all.push(self.with(propagate, &[change]));
            }
        }
        all
    }

    fn passes(&self) -> impl Iterator<Item = &Table> {
        let passes = self.table.get("passes").and_then(Value::as_array);
        passes.into_iter().flatten().filter_map(Value::as_table)
    }
}

/// The candidates: the recipes of `files`, or the shipped ones where there are none, and their variations.
///
/// # Errors
/// [`Usage`] when two have the same name; those of reading a recipe.
pub fn candidates(
    context: &Context,
    files: &[PathBuf],
    calibration: Option<&str>,
    vary: bool,
) -> Result<Vec<Candidate>> {
    let shipped = || {
        SHIPPED
            .iter()
            .map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))
    };
    let texts: Vec<(PathBuf, String)> = match files {
        [] => shipped().collect(),
        files => {
            let read = |path: &PathBuf| {
                // Says what is wrong with it, by line.
                Recipe::read(path, None)?;
                Ok((path.clone(), fs_err::read_to_string(path)?))
            };
            files.iter().map(read).collect::<Result<_>>()?
        }
    };
    let mut all: Vec<Candidate> = Vec::new();
    for (path, text) in texts {
        let base = base(context, path, &text, calibration)?;
        let variations = if vary { base.variations() } else { Vec::new() };
        for candidate in std::iter::once(base).chain(variations) {
            if all.iter().any(|other| other.name == candidate.name) {
                let what = format!("two recipes are named `{}`", candidate.name);
                return Err(Usage::new(what, "give each a `name` of its own").into());
            }
            all.push(candidate);
        }
    }
    Ok(all)
}

/// A recipe as it is, but for what the command line replaces.
fn base(
    context: &Context,
    path: PathBuf,
    text: &str,
    calibration: Option<&str>,
) -> Result<Candidate> {
    let recipe = Recipe::parse(text, &path, None)?;
    if !recipe.has_keep() {
        return Err(Usage::new(
            format!(
                "no pass of `{}` has a keep ratio to search with",
                path.display()
            ),
            "take another recipe",
        )
        .into());
    }
    let mut candidate = Candidate {
        name: recipe.name,
        table: text.parse()?,
        path,
    };
    if recipe.calibration.is_some() {
        if let Some(corpus) = calibration {
            candidate.set(&["calibration", "corpus"], corpus.into());
        }
        if let Some(seed) = context.seed {
            candidate.set(&["calibration", "seed"], Value::Integer(seed as i64));
        }
    }
    Ok(candidate)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_variation_of_every_shipped_recipe_is_a_recipe_and_another_one() {
        let mut names = Vec::new();
        for (path, text) in SHIPPED {
            let base = Candidate {
                name: Recipe::parse(text, Path::new(path), None).expect(path).name,
                table: text.parse().expect("TOML"),
                path: path.into(),
            };
            let plain = base.recipe(0.7).expect(path).resolved();
            for variation in base.variations() {
                let recipe = variation
                    .recipe(0.7)
                    .unwrap_or_else(|e| panic!("{}: {e}", variation.name));
                assert_eq!(recipe.name, variation.name);
                let mut other = recipe.resolved();
                other["name"] = plain["name"].clone();
                assert_ne!(other, plain, "{}", variation.name);
                // The written file says the same.
                let written =
                    Recipe::parse(&variation.toml(0.7), Path::new(path), None).expect(path);
                assert_eq!(written.resolved(), recipe.resolved());
                names.push(variation.name);
            }
        }
        assert_eq!(names.len(), 10, "{names:?}");
    }
}
