//! Text to token ids and back, from a Hugging Face `tokenizer.json` or a GGUF file's vocabulary.
//!
//! Nothing here truncates or pads: a corpus is one text, however long.

mod check;
mod gguf;
mod sentencepiece;
mod stream;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use stream::StreamDecoder;

use crate::checkpoint::gguf::Metadata;
use crate::error::{Error, Result};

/// The largest `tokenizer.json` files in use take about 35 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// A model's tokenizer, with what it puts around a text and what ends a generation.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos_ids: Vec<u32>,
    suffix_ids: Vec<u32>,
    eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`. That file does not say which ids end a text: see
    /// [`with_eos_ids`](Self::with_eos_ids).
    ///
    /// # Errors
    /// [`Error::Io`] if it can not be read, [`Error::Tokenizer`] if it is no sound tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let length = fs_err::metadata(path)?.len();
        if length > MAX_FILE_BYTES {
            return Err(error(
                path,
                format!("the file is {length} bytes long, more than {MAX_FILE_BYTES}"),
            ));
        }
        let bytes = fs_err::read(path)?;
        let mut value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|cause| error(path, format!("it is not JSON: {cause}")))?;
        check::check(&value).map_err(|why| error(path, why))?;
        let bytes = if check::remove_dropout(&mut value) {
            value.to_string().into_bytes()
        } else {
            bytes
        };
        drop(value);
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|cause| error(path, cause.to_string()))?;
        Self::new(inner, path)
    }

    /// Builds the tokenizer that a GGUF file describes; `path` is for messages.
    /// Ids that end a text are the file's `eos` and, if given, `eot` ids.
    ///
    /// # Errors
    /// [`Error::Config`] if a metadata key is missing or of the wrong type, [`Error::Tokenizer`] if the vocabulary
    /// contradicts itself, [`Error::Unsupported`] naming a kind of tokenizer or pre-tokenizer that Cinder does not
    /// know: guessing one would give other ids than the model was trained with.
    pub fn from_gguf(metadata: &Metadata, path: &Path) -> Result<Self> {
        let inner = gguf::build(metadata, path)?;
        let eos = crate::checkpoint::gguf::end_ids(metadata)?;
        Ok(Self::new(inner, path)?.with_eos_ids(eos))
    }

    fn new(mut inner: tokenizers::Tokenizer, path: &Path) -> Result<Self> {
        let failed = |cause: tokenizers::Error| error(path, cause.to_string());
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        // What a post-processor adds is marked in the mask, unlike special tokens found in the text.
        let probe = inner.encode_fast("a", true).map_err(failed)?;
        let mask = probe.get_special_tokens_mask();
        let added = |positions: &mut dyn Iterator<Item = &u32>| {
            positions.take_while(|special| **special == 1).count()
        };
        let before = added(&mut mask.iter());
        let after = if before == mask.len() {
            0
        } else {
            added(&mut mask.iter().rev())
        };
        let ids = probe.get_ids();
        let bos_ids = ids.iter().take(before).copied().collect();
        let suffix_ids = ids
            .iter()
            .skip(ids.len().saturating_sub(after))
            .copied()
            .collect();
        Ok(Tokenizer {
            inner,
            path: path.to_owned(),
            bos_ids,
            suffix_ids,
            eos_ids: Vec::new(),
        })
    }

    /// Sets the ids that end a text or a turn, from `generation_config.json` or `config.json`.
    #[must_use]
    pub fn with_eos_ids(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        self.eos_ids = ids.into_iter().collect();
        self.eos_ids.sort_unstable();
        self.eos_ids.dedup();
        self
    }

    /// Ids of a text with what the tokenizer itself adds: [`bos_ids`](Self::bos_ids) before it and
    /// [`suffix_ids`](Self::suffix_ids) after it. Text that spells a special token becomes that token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary can not express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, true)
    }

    /// Ids of a text and nothing added. Text that spells a special token becomes that token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary can not express the text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    /// Ids of a text that is to be continued: as [`encode`](Self::encode) without what ends it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary can not express the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.bos_ids.clone();
        ids.extend(self.encode_plain(text)?);
        Ok(ids)
    }

    fn ids(&self, text: &str, add: bool) -> Result<Vec<u32>> {
        // The fast variant leaves out character offsets, which take longer than the ids.
        let encoding = self
            .inner
            .encode_fast(text, add)
            .map_err(|cause| error(&self.path, cause.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|cause| error(&self.path, cause.to_string()))
    }

    /// A decoder that is given ids one by one and returns text as soon as it is certain.
    /// `context` are the ids before the first, usually the prompt: what a token reads as depends on them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the decoder fails on `context`.
    pub fn stream(&self, context: &[u32], skip_special: bool) -> Result<StreamDecoder<'_>> {
        StreamDecoder::new(self, context, skip_special)
    }

    /// What the tokenizer puts in front of every text by itself; empty for most byte-level tokenizers.
    pub fn bos_ids(&self) -> &[u32] {
        &self.bos_ids
    }

    /// What the tokenizer puts after every text by itself. Empty for all but a few language models; a tokenizer that
    /// has one should be given prompts through [`encode_prompt`](Self::encode_prompt).
    pub fn suffix_ids(&self) -> &[u32] {
        &self.suffix_ids
    }

    /// Ids that end a text or a turn, sorted; empty if nothing said so.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Ids of special tokens, sorted: they begin, end or pad texts and mark turns, and are no text themselves.
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special);
        let mut ids: Vec<u32> = special.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Number of ids the tokenizer knows, added tokens included. A model may have more embeddings, never fewer.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token given as the vocabulary spells it, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether every token has the same id in both.
    pub fn same_vocabulary(&self, other: &Tokenizer) -> bool {
        self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    /// The file this came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of a `tokenizer.json` that transformers and this crate read back with the same ids.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it can not be serialized.
    pub fn to_json(&self) -> Result<String> {
        self.inner
            .to_string(false)
            .map_err(|cause| error(&self.path, cause.to_string()))
    }
}

fn error(path: &Path, why: String) -> Error {
    Error::Tokenizer {
        path: path.to_owned(),
        why,
    }
}
