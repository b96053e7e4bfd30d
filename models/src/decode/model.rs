//! What speculative decoding runs.

use burn::tensor::Tensor;

use crate::cache::KvCache;
use crate::decoder::Decoder;
use crate::error::{Error, Result};

/// Where tokens stand that are not simply the next ones: nodes of a tree of drafted tokens.
#[derive(Debug, Clone, Copy)]
pub struct TreeSlice<'a> {
    /// Position of each new token (siblings share one); `tokens` long.
    pub positions: &'a [usize],
    /// `[tokens, span]`, row-major: which of the last `span` cached tokens (new ones included, in cache order) each new token
    /// sees; it sees all cached tokens before these. What it sees must stand in the cache in the order of their positions.
    pub mask: &'a [bool],
    /// Cached tokens that the mask speaks of, the new ones among them.
    pub span: usize,
}

impl TreeSlice<'_> {
    /// The position behind the last, of `tokens` new ones behind `past` others.
    ///
    /// # Errors
    /// [`Error::Request`] when the sizes do not fit each other.
    pub(crate) fn check(&self, tokens: usize, past: usize) -> Result<usize> {
        let fits = self.positions.len() == tokens
            && (tokens..=past + tokens).contains(&self.span)
            && self.mask.len() == tokens * self.span;
        if !fits {
            return Err(Error::Request(format!(
                "a tree of {} positions, a span of {} and a mask of {} do not fit {tokens} tokens behind {past}",
                self.positions.len(),
                self.span,
                self.mask.len()
            )));
        }
        Ok(self.positions.iter().max().map_or(0, |last| last + 1))
    }
}

/// What speculative decoding runs: a decoder in memory, or one whose blocks are streamed.
pub trait LanguageModel {
    /// The decoder itself, or the one that has all but the blocks.
    fn decoder(&self) -> &Decoder;

    /// The longest sequence, in tokens, the model was made for.
    fn max_context(&self) -> usize {
        self.decoder().max_context()
    }

    /// An empty KV cache with room for `capacity` tokens.
    fn new_cache(&self, capacity: usize) -> KvCache {
        self.decoder().new_cache(capacity)
    }

    /// Hidden states `[tokens, hidden]` after the last norm, of tokens that are appended to the cache.
    ///
    /// # Errors
    /// [`Error::Request`] for ids, a tree or a cache that do not fit the model, and for a tree over a cache of latents.
    fn hidden(
        &mut self,
        ids: &[u32],
        tree: Option<TreeSlice<'_>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>>;

    /// Seconds that any pass takes at least, as far as passes have shown: where blocks are streamed, the mean time they were
    /// waited for.
    fn least_seconds(&self) -> Option<f64> {
        None
    }

    /// Next-token logits `[rows, vocab]`.
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.decoder().logits(hidden)
    }
}

impl LanguageModel for Decoder {
    fn decoder(&self) -> &Decoder {
        self
    }

    fn hidden(
        &mut self,
        ids: &[u32],
        tree: Option<TreeSlice<'_>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>> {
        let hidden = self.hidden_of(&[ids.to_vec()], tree, Some(cache))?;
        Ok(hidden.flatten(0, 1))
    }
}
