//! The published JSON schema of result files, generated from the types that are written.

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use crate::result::EvalResult;
use crate::sensitivity::Sensitivity;
use crate::tasks::{DocumentScores, TasksResult};

/// What `eval/result.schema.json` holds: a result file is one of the first three; a line of the file that `--documents` writes is
/// a `DocumentScores`.
pub fn result_schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let one_of = [
        generator.subschema_for::<EvalResult>(),
        generator.subschema_for::<TasksResult>(),
        generator.subschema_for::<Sensitivity>(),
    ];
    generator.subschema_for::<DocumentScores>();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Cinder result",
        "description": "A result of `cinder eval ppl`, `cinder eval tasks` or `cinder sensitivity`. Layouts grow by keys: readers pass over those they do not know.",
        "oneOf": one_of,
        "$defs": generator.definitions(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The committed file is the schema of what this version writes. `UPDATE_SCHEMA=1` writes it anew.
    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("result.schema.json");
        let schema = format!("{:#}\n", result_schema());
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(&path, &schema).expect("writes");
        }
        let committed = std::fs::read_to_string(&path).expect("reads");
        assert!(committed == schema, "`{}` is out of date", path.display());
        for name in ["EvalResult", "TasksResult", "Sensitivity", "DocumentScores"] {
            assert!(result_schema()["$defs"][name].is_object(), "{name}");
        }
    }
}
