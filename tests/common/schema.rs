//! Holds results to `eval/result.schema.json`: every keyword that the schema uses is checked, and one that is not known here fails.

use std::path::Path;

use serde_json::{Map, Value};

/// Asserts that a result keeps to the definition of this name, has no key that it does not describe, and is one kind of result only.
pub fn holds(definition: &str, value: &Value) {
    let schema = Schema::read();
    let found = schema.problems(&reference(definition), value, true);
    assert!(found.is_empty(), "{definition}: {found:#?}");
    let kinds = schema.0["oneOf"].as_array().expect("a list");
    let is_listed = kinds.iter().any(|kind| *kind == reference(definition));
    let fitting = kinds
        .iter()
        .filter(|kind| schema.problems(kind, value, false).is_empty());
    assert_eq!(fitting.count(), usize::from(is_listed), "{definition}");
}

fn reference(definition: &str) -> Value {
    serde_json::json!({ "$ref": format!("#/$defs/{definition}") })
}

struct Schema(Value);

impl Schema {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/result.schema.json");
        let text = std::fs::read_to_string(path).expect("reads");
        Schema(serde_json::from_str(&text).expect("JSON"))
    }

    /// What is wrong with a value; keys that are not described too, where it is looked at strictly.
    fn problems(&self, schema: &Value, value: &Value, strict: bool) -> Vec<String> {
        let mut found = Vec::new();
        self.check(schema, value, "", strict, &mut found);
        found
    }

    fn check(
        &self,
        schema: &Value,
        value: &Value,
        at: &str,
        strict: bool,
        found: &mut Vec<String>,
    ) {
        let rules = match schema {
            Value::Bool(true) => return,
            Value::Object(rules) => rules,
            other => panic!("no schema: {other}"),
        };
        for (keyword, rule) in rules {
            let holds = match keyword.as_str() {
                "description" | "title" | "default" | "format" => true,
                "required" => list(rule).iter().all(|key| {
                    let there = value.get(key.as_str().expect("a key")).is_some();
                    there || !value.is_object()
                }),
                "type" => match rule {
                    Value::Array(types) => types.iter().any(|each| is(value, each)),
                    one => is(value, one),
                },
                "minimum" => value.as_f64().is_none_or(|v| Some(v) >= rule.as_f64()),
                "maximum" => value.as_f64().is_none_or(|v| Some(v) <= rule.as_f64()),
                "const" => value == rule,
                "enum" => list(rule).contains(value),
                "$ref" => {
                    let path = rule.as_str().and_then(|r| r.strip_prefix('#'));
                    let target = self.0.pointer(path.expect("within")).expect("is there");
                    self.check(target, value, at, strict, found);
                    true
                }
                "anyOf" | "oneOf" => {
                    let fits = |each: &&Value| self.problems(each, value, strict).is_empty();
                    let count = list(rule).iter().filter(fits).count();
                    count == 1 || (count > 1 && keyword == "anyOf")
                }
                "items" => {
                    let items = value.as_array().into_iter().flatten();
                    for (index, item) in items.enumerate() {
                        self.check(rule, item, &format!("{at}/{index}"), strict, found);
                    }
                    true
                }
                "properties" => {
                    self.keys(rules, value, at, strict, found);
                    true
                }
                // With the properties, or alone.
                "additionalProperties" => {
                    if !rules.contains_key("properties") {
                        self.keys(rules, value, at, strict, found);
                    }
                    true
                }
                unknown => panic!("the schema says `{unknown}`, which is not checked"),
            };
            if !holds {
                found.push(format!("{at}: {keyword} {rule}, not {value}"));
            }
        }
    }

    fn keys(
        &self,
        rules: &Map<String, Value>,
        value: &Value,
        at: &str,
        strict: bool,
        found: &mut Vec<String>,
    ) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let described = rules.get("properties").and_then(|all| all.get(key));
            match described.or(rules.get("additionalProperties")) {
                Some(rule) => self.check(rule, value, &format!("{at}/{key}"), strict, found),
                None if strict => found.push(format!("{at}/{key} is not described")),
                None => {}
            }
        }
    }
}

fn list(rule: &Value) -> &Vec<Value> {
    rule.as_array().expect("a list")
}

fn is(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        other => panic!("no type: {other:?}"),
    }
}
