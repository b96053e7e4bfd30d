//! Text of ids that arrive one by one.

use super::Tokenizer;
use crate::error::Result;

/// How many ids before the first one can matter for how it reads: a few bytes of an unfinished character.
const CONTEXT: usize = 8;

/// Turns a stream of ids into text, never splitting a character that is spelled by several tokens.
///
/// One id may read differently after another (SentencePiece drops a space at the start, bytes join into a
/// character), so each step decodes the ids since the last text together with those that made that text, and
/// returns what is new.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Ids that made the last text, then those whose text is not out yet.
    ids: Vec<u32>,
    /// How many of `ids` are of the first kind.
    done: usize,
    /// Text of the first kind.
    done_text: String,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        context: &[u32],
        skip_special: bool,
    ) -> Result<Self> {
        let ids: Vec<u32> = context
            .iter()
            .skip(context.len().saturating_sub(CONTEXT))
            .copied()
            .collect();
        Ok(StreamDecoder {
            tokenizer,
            skip_special,
            done: ids.len(),
            done_text: tokenizer.decode(&ids, skip_special)?,
            ids,
        })
    }

    /// Takes the next id; the text that is now certain, if any.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the decoder fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        // A replacement character at the end may be the start of a character whose other bytes are still to come.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        self.emit(&text)
    }

    /// The text of ids that are still held back because they end in the middle of a character.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the decoder fails.
    pub fn finish(mut self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        self.emit(&text)
    }

    fn emit(&mut self, text: &str) -> Result<Option<String>> {
        let pending = self.ids.split_off(self.done.min(self.ids.len()));
        let alone = self.tokenizer.decode(&pending, self.skip_special)?;
        // Broken bytes can change how those before them read, which is out already: then the new ids stand alone.
        let new = text
            .strip_prefix(self.done_text.as_str())
            .map_or_else(|| alone.clone(), str::to_owned);
        if !new.is_empty() {
            self.ids = pending;
            self.done_text = alone;
        } else {
            // Nothing to show (a skipped special token): keep what came before it as context.
            self.ids.extend(pending);
            let extra = self.ids.len().saturating_sub(CONTEXT);
            self.ids.drain(..extra);
            self.done_text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        }
        self.done = self.ids.len();
        Ok(Some(new).filter(|new| !new.is_empty()))
    }
}
