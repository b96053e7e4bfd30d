//! How a model is made again: the recipe that its manifest records, as the file that a recipe is, and the command around it.

use serde_json::Value;

use crate::compression::Compressed;
use crate::markdown::{code, escape};

/// What a pass notes of a file that it read: no setting.
const NOTED: &str = "sensitivity_sha256";

/// The command, and what a reader has to know of it.
pub(super) struct Again {
    pub command: String,
    /// Sentences below the commands.
    pub about: String,
    /// The recipe's file, where it is known.
    pub recipe: Option<String>,
}

/// Of a model that was made from `base`: the path it was opened by, where one is known.
pub(super) fn again(model: &Compressed<'_>, base: Option<&str>) -> Again {
    let (record, details) = (&model.record, &model.record.details);
    let recipe = details.recipe.as_ref().and_then(file);
    let name = record.recipe.as_deref();
    let path = match (&recipe, name) {
        (Some(_), Some(name)) => format!("{name}.toml"),
        _ => "RECIPE.toml".to_owned(),
    };
    let base = base.unwrap_or("MODEL");
    let mut command = format!("cinder compress {} --recipe {}", word(base), word(&path));
    let mut about = match &recipe {
        Some(_) => format!(
            "{} is the recipe below, saved under that name. It is the one that the model's manifest records: every default and \
             what the command line replaced are filled in, the keep ratio too.",
            code(&path)
        ),
        None => {
            command += &format!(" --keep {:.4}", record.keep_ratio);
            let which = name.map_or_else(String::new, |name| format!(" {}", code(name)));
            format!(
                "{} stands for the recipe{which}, whose text was not among the records of this card. The model's directory has \
                 it, under `recipe` in `cinder.json`; with that directory `cinder report` writes it here. `--keep` is the ratio \
                 that was reached; the one asked for may differ by less than a rank.",
                code(&path)
            )
        }
    };
    command += &format!(" --out {}", word(&record.path.display().to_string()));
    for (file, hash) in details.recipe.as_ref().map(sensitivities).iter().flatten() {
        about += &format!(
            " It reads {}, which `cinder sensitivity` wrote (sha256 {}).",
            escape(file),
            code(hash)
        );
    }
    Again {
        command,
        about,
        recipe,
    }
}

/// A recipe with every default filled in, as TOML; none where it is no recipe.
fn file(recipe: &Value) -> Option<String> {
    let mut recipe = recipe.clone();
    let passes = recipe.get_mut("passes").and_then(Value::as_array_mut);
    for pass in passes.into_iter().flatten() {
        pass.as_object_mut()?.shift_remove(NOTED);
    }
    let table = toml::Table::try_from(without_nulls(recipe)).ok()?;
    let is_recipe = table.contains_key("name") && table.contains_key("passes");
    is_recipe.then(|| table.to_string())
}

/// TOML has no word for nothing: what is not set is not there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let set = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                set.map(|(key, value)| (key, without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// The files of measured sensitivities that the passes read, and their hashes.
fn sensitivities(recipe: &Value) -> Vec<(&str, &str)> {
    let passes = recipe["passes"].as_array().into_iter().flatten();
    passes
        .filter_map(|pass| Some((pass["sensitivity"].as_str()?, pass[NOTED].as_str()?)))
        .collect()
}

/// One word of a shell's command line.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./+:~".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manifests_recipe_becomes_a_file() {
        let recipe = json!({
            "name": "my own", "calibration": {"corpus": "notes.txt", "seed": 3, "gradients": {"clip": null, "windows": 4}},
            "output": {"dtype": "f32"},
            "passes": [{"pass": "frontier", "keep": 0.7, "ridge": 1e-6, "sensitivity": "s.json", "sensitivity_sha256": "ab"}],
        });
        let text = file(&recipe).expect("is a recipe");
        let back: toml::Table = text.parse().expect("is TOML");
        assert_eq!(back["name"].as_str(), Some("my own"));
        assert_eq!(
            back["calibration"]["gradients"]["windows"].as_integer(),
            Some(4)
        );
        assert!(back["calibration"]["gradients"].get("clip").is_none());
        let pass = &back["passes"][0];
        assert_eq!(
            (pass["keep"].as_float(), pass["ridge"].as_float()),
            (Some(0.7), Some(1e-6))
        );
        assert!(pass.get(NOTED).is_none());
        assert_eq!(sensitivities(&recipe), [("s.json", "ab")]);
        assert_eq!(file(&json!({"name": "x"})), None);
        assert_eq!(file(&json!("x")), None);
    }

    #[test]
    fn a_word_stays_one() {
        assert_eq!(word("runs/a+b-0.7.toml"), "runs/a+b-0.7.toml");
        assert_eq!(word("my own; it's"), r"'my own; it'\''s'");
    }
}
