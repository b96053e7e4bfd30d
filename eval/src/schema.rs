//! The published JSON schema of result files, generated from the types that are written.

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use crate::comparison::{ComparedPerplexities, ComparedTasks};
use crate::divergence::DivergenceResult;
use crate::result::EvalResult;
use crate::rolling::RollingResult;
use crate::search::SearchResult;
use crate::sensitivity::Sensitivity;
use crate::speculation::SpeculationResult;
use crate::tasks::{DocumentScores, TasksResult};

/// What `eval/result.schema.json` holds: a result is one of `oneOf`; a line of the file that `--documents` writes is a
/// `DocumentScores`.
pub fn result_schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let one_of = [
        generator.subschema_for::<EvalResult>(),
        generator.subschema_for::<TasksResult>(),
        generator.subschema_for::<RollingResult>(),
        generator.subschema_for::<DivergenceResult>(),
        generator.subschema_for::<ComparedPerplexities>(),
        generator.subschema_for::<ComparedTasks>(),
        generator.subschema_for::<Sensitivity>(),
        generator.subschema_for::<SearchResult>(),
        generator.subschema_for::<SpeculationResult>(),
    ];
    generator.subschema_for::<DocumentScores>();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Cinder result",
        "description": "A result of `cinder eval` (`ppl`, `tasks`, `rolling` or `kl`), `compare`, `sensitivity` or `search`, or what `cinder bench --out` writes of speculative decoding. Layouts grow by keys: readers pass over those they do not know.",
        "oneOf": one_of,
        "$defs": generator.definitions(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The committed file is the schema of what this version writes; that real results keep to it is for the end-to-end tests.
    /// `UPDATE_SCHEMA=1` writes it anew.
    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("result.schema.json");
        let schema = format!("{:#}\n", result_schema());
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(&path, &schema).expect("writes");
        }
        let committed = std::fs::read_to_string(&path).expect("reads");
        assert!(committed == schema, "`{}` is out of date", path.display());
        let schema = result_schema();
        let kinds = schema["oneOf"].as_array().expect("a list");
        let named = kinds.iter().filter_map(|kind| kind["$ref"].as_str());
        let named: Vec<&str> = named.filter_map(|r| r.strip_prefix("#/$defs/")).collect();
        assert_eq!(named.len(), kinds.len());
        for name in named.into_iter().chain(["DocumentScores"]) {
            assert!(schema["$defs"][name].is_object(), "{name}");
        }
    }
}
