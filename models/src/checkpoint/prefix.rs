//! The token that stands before a text which has nothing before it.

use serde_json::Value;

use super::Checkpoint;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

impl Checkpoint {
    /// The beginning of a text, else its end: what lm-evaluation-harness predicts a document's first token from, whether or
    /// not the tokenizer adds it of its own accord. None where the model names neither.
    ///
    /// It is the `bos_token` or else the `eos_token` of `tokenizer_config.json`, and without that file the `bos_token_id` of the
    /// configuration (or GGUF metadata) or else the first id that ends a text.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Tokenizer`] when `tokenizer_config.json` can not be read, or is not JSON.
    pub fn prefix_id(&self, tokenizer: &Tokenizer) -> Result<Option<u32>> {
        let file = self.path().join("tokenizer_config.json");
        if file.is_file() {
            let text = fs_err::read_to_string(&file)?;
            let config: Value = serde_json::from_str(&text).map_err(|error| Error::Tokenizer {
                path: file,
                why: format!("it is not JSON: {error}"),
            })?;
            let id = |name: &str| {
                let token = &config[name];
                // A string, or an object that also says how the token is matched.
                let text = token.as_str().or_else(|| token["content"].as_str())?;
                tokenizer.token_id(text)
            };
            if let Some(id) = id("bos_token").or_else(|| id("eos_token")) {
                return Ok(Some(id));
            }
        }
        let configured = self
            .config()
            .source
            .get("bos_token_id")
            .and_then(Value::as_u64);
        let configured = configured.and_then(|id| u32::try_from(id).ok());
        Ok(configured.or_else(|| tokenizer.eos_ids().first().copied()))
    }
}
