//! The small files a Hugging Face directory has beside its weights, made from a GGUF file's metadata.

use serde_json::{Map, Value};

use super::gguf::Metadata;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`, as `(name, content)`.
pub(crate) fn gguf_companions(
    metadata: &Metadata,
    tokenizer: &Tokenizer,
) -> Result<Vec<(String, Vec<u8>)>> {
    let id = |key: &str| metadata.token_id(&format!("tokenizer.ggml.{key}_token_id"));
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    // transformers would otherwise join punctuation when it decodes.
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    let mut generation = Map::new();
    for (key, name) in [
        ("bos", "bos"),
        ("eos", "eos"),
        ("unknown", "unk"),
        ("padding", "pad"),
    ] {
        let Some(id) = id(key)? else { continue };
        let text = tokenizer.decode(&[id], false)?;
        config.insert(format!("{name}_token"), text.into());
        generation.insert(format!("{name}_token_id"), id.into());
    }
    generation.remove("unk_token_id");
    if !tokenizer.eos_ids().is_empty() {
        generation.insert("eos_token_id".into(), tokenizer.eos_ids().into());
    }
    if let Some(template) = metadata.string("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }
    let json = |map| format!("{:#}\n", Value::Object(map)).into_bytes();
    Ok(vec![
        ("generation_config.json".into(), json(generation)),
        ("tokenizer.json".into(), tokenizer.to_json()?.into_bytes()),
        ("tokenizer_config.json".into(), json(config)),
    ])
}
