//! Checks on `tokenizer.json` for what the `tokenizers` crate takes on trust: it panics on merges that are longer
//! than every token, and on templates that name a special token it has no ids for.

use serde_json::{Map, Value};

/// Refuses a file that would make `tokenizers` panic; what is merely wrong it reports itself.
pub(super) fn check(tokenizer: &Value) -> Result<(), String> {
    if let Some(model) = tokenizer.get("model") {
        check_merges(model)?;
    }
    tokenizer
        .get("post_processor")
        .map_or(Ok(()), check_post_processor)
}

/// Dropout makes training texts noisy; here the same text must always give the same ids. Whether there was any.
pub(super) fn remove_dropout(tokenizer: &mut Value) -> bool {
    tokenizer
        .get_mut("model")
        .and_then(|model| model.get_mut("dropout"))
        .is_some_and(|dropout| !dropout.take().is_null())
}

fn check_merges(model: &Value) -> Result<(), String> {
    let (Some(merges), Some(vocabulary)) = (
        model.get("merges").and_then(Value::as_array),
        model.get("vocab").and_then(Value::as_object),
    ) else {
        return Ok(());
    };
    let prefix = model
        .get("continuing_subword_prefix")
        .and_then(Value::as_str)
        .unwrap_or("");
    for merge in merges {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => {
                    Some((left.as_str(), right.as_str()))
                }
                _ => None,
            },
            _ => None,
        };
        let known = |token: &str| vocabulary.contains_key(token);
        let sound = pair.is_some_and(|(left, right)| {
            known(left)
                && known(right)
                && right
                    .get(prefix.len()..)
                    .is_some_and(|rest| known(&format!("{left}{rest}")))
        });
        // A `#version` line is a comment in the form that merges had as text.
        let comment = merge
            .as_str()
            .is_some_and(|text| text.starts_with("#version"));
        if !sound && !comment {
            return Err(format!(
                "merge {merge} is not made of tokens of the vocabulary"
            ));
        }
    }
    Ok(())
}

fn check_post_processor(processor: &Value) -> Result<(), String> {
    if let Some(inner) = processor.get("processors").and_then(Value::as_array) {
        return inner.iter().try_for_each(check_post_processor);
    }
    let empty = Map::new();
    let known = processor
        .get("special_tokens")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let pieces = ["single", "pair"]
        .into_iter()
        .filter_map(|template| processor.get(template).and_then(Value::as_array))
        .flatten();
    for piece in pieces {
        let id = piece.get("SpecialToken").and_then(|token| token.get("id"));
        if let Some(id) = id.and_then(Value::as_str)
            && !known.contains_key(id)
        {
            return Err(format!("its template uses `{id}`, which has no ids"));
        }
    }
    Ok(())
}
