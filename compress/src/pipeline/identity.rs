//! What decides a run's bytes, and whether files of an earlier run belong to this one.

use std::path::Path;

use serde_json::Value;

use crate::calibration::{read_json, write_whole};
use crate::error::{Error, Result};

/// Writes `identity` to `path`, or compares it with what an earlier run wrote there.
///
/// # Errors
/// [`Error::Drift`] naming what differs; [`Error::Work`] when the file can not be read; I/O errors.
pub fn check_identity(path: &Path, identity: &Value) -> Result<()> {
    if !path.exists() {
        return write_whole(path, format!("{identity:#}\n").as_bytes());
    }
    require_same(
        path.parent().unwrap_or(path),
        &read_identity(path)?,
        identity,
    )
}

/// What [`check_identity`] wrote.
///
/// # Errors
/// [`Error::Work`] when the file can not be read; I/O errors.
pub fn read_identity(path: &Path) -> Result<Value> {
    read_json(path)
}

/// Compares what an earlier run went by with what is asked for `now`; `place` is where the earlier one left its files.
///
/// # Errors
/// [`Error::Drift`] naming what differs.
pub fn require_same(place: &Path, before: &Value, now: &Value) -> Result<()> {
    // As it would be read back: numbers have one way to be written.
    let read_back =
        |v: &Value| -> Value { serde_json::from_str(&v.to_string()).unwrap_or_default() };
    let mut changes = Vec::new();
    differences("", &read_back(before), &read_back(now), &mut changes);
    match changes.is_empty() {
        true => Ok(()),
        false => Err(Error::Drift {
            path: place.into(),
            changes: changes.join(", "),
        }),
    }
}

/// Lists the leaves at which two values differ, as `name before (now after)`.
fn differences(name: &str, before: &Value, now: &Value, into: &mut Vec<String>) {
    match (before, now) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            for key in keys {
                let inner = match name {
                    "" => key.clone(),
                    _ => format!("{name}.{key}"),
                };
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or_default()
                };
                differences(&inner, &of(a), &of(b), into);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{name}[{i}]"), a, b, into);
            }
        }
        _ if before == now => {}
        _ => into.push(format!("{name} {} (now {})", short(before), short(now))),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_named() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("identity.json");
        let first = json!({"threads": 2, "recipe": {"passes": [{"keep": 0.8}]}});
        check_identity(&path, &first).expect("is new");
        check_identity(&path, &first).expect("is the same");
        let second = json!({"threads": 2, "recipe": {"passes": [{"keep": 0.7}], "name": "x"}});
        let error = check_identity(&path, &second)
            .expect_err("differs")
            .to_string();
        assert!(
            error.contains("recipe.passes[0].keep 0.8 (now 0.7)"),
            "{error}"
        );
        assert!(error.contains("recipe.name null (now \"x\")"), "{error}");
    }
}
