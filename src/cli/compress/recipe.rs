//! A recipe with what the command line replaces in it.

use std::path::Path;

use anyhow::Result;
use cinder::compress::recipe::Recipe;

use crate::cli::context::{Context, Usage};

/// Reads a recipe. An option that would change nothing is refused: whoever gives it expects that it does.
pub fn read_recipe(
    context: &Context,
    path: &Path,
    keep: Option<f64>,
    calibration: Option<&str>,
) -> Result<Recipe> {
    let mut recipe = Recipe::read(path, keep)?;
    recipe.override_calibration(calibration, context.seed);
    let unused = |option: &str, why: &str| {
        let what = format!("`{option}` changes nothing in `{}`: {why}", path.display());
        Err(Usage::new(
            what,
            format!("leave `{option}` out, or take another recipe"),
        )
        .into())
    };
    if keep.is_some() && !recipe.has_keep() {
        return unused("--keep", "no pass of it has a keep ratio");
    }
    if calibration.is_some() && recipe.used_calibration().is_none() {
        return unused("--calibration", "no pass of it needs a text");
    }
    match &recipe.used_calibration() {
        _ if context.seed.is_none() || recipe.uses_seed() => Ok(recipe),
        None => unused("--seed", "no pass of it needs a text"),
        Some(_) => unused(
            "--seed",
            "its windows are drawn at even distances and nothing is sampled",
        ),
    }
}
