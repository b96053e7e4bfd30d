//! One token after another, with a KV cache.

use std::time::Instant;

use super::{LanguageModel, Sampler, SamplingSettings, rows_of};
use crate::cache::KvCache;
use crate::error::{Error, Result};

/// What a generation produced, and how fast.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The new tokens, an end-of-text token included if one was drawn.
    pub ids: Vec<u32>,
    /// Seconds from the start to the first new token.
    pub prefill_seconds: f64,
    /// Seconds for the tokens after the first.
    pub decode_seconds: f64,
    /// Whether an end-of-text token ended it.
    pub ended: bool,
}

impl Generation {
    /// Decoding speed: tokens after the first, per second; none when there was only one.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let later = self.ids.len().checked_sub(1).filter(|n| *n > 0)?;
        Some(later as f64 / self.decode_seconds)
    }
}

/// Continues `prompt` by at most `max_new_tokens`, calling `emit` with each token as it is drawn;
/// stops after a token of `eos_ids`.
///
/// # Errors
/// [`Error::Request`] for an empty prompt or when prompt and new tokens exceed the context;
/// [`Error::NonFinite`] when the model overflows.
pub fn generate(
    model: &mut dyn LanguageModel,
    prompt: &[u32],
    max_new_tokens: usize,
    eos_ids: &[u32],
    settings: SamplingSettings,
    emit: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<Generation> {
    check_request(model, prompt, max_new_tokens)?;
    let sampler = Sampler::new(settings)?;
    let mut cache = model.new_cache(prompt.len() + max_new_tokens);
    let start = Instant::now();
    let (mut ids, mut prefill_seconds, mut ended) = (Vec::new(), 0.0, false);
    while ids.len() < max_new_tokens && !ended {
        let input = ids.last().map_or(prompt, std::slice::from_ref);
        let logits = prefill(model, input, None, &mut cache)?;
        let id = sampler.sample(&logits, prompt.len() + ids.len())?;
        if ids.is_empty() {
            prefill_seconds = start.elapsed().as_secs_f64();
        }
        ids.push(id);
        emit(id)?;
        ended = eos_ids.contains(&id);
    }
    Ok(Generation {
        ids,
        prefill_seconds,
        decode_seconds: start.elapsed().as_secs_f64() - prefill_seconds,
        ended,
    })
}

/// # Errors
/// [`Error::Request`] for an empty prompt or when prompt and new tokens exceed the context.
pub(super) fn check_request(
    model: &dyn LanguageModel,
    prompt: &[u32],
    max_new_tokens: usize,
) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::Request("the prompt has no tokens".into()));
    }
    if prompt.len().saturating_add(max_new_tokens) > model.max_context() {
        return Err(Error::Request(format!(
            "a prompt of {} tokens and {max_new_tokens} new ones exceed the model's context of {}",
            prompt.len(),
            model.max_context()
        )));
    }
    Ok(())
}

/// Logits behind the last of `ids`, which are added to the cache, `chunk` at a time.
pub(super) fn prefill(
    model: &mut dyn LanguageModel,
    ids: &[u32],
    chunk: Option<usize>,
    cache: &mut KvCache,
) -> Result<Vec<f32>> {
    let mut last = None;
    for chunk in ids.chunks(chunk.unwrap_or(ids.len()).max(1)) {
        let hidden = model.hidden(chunk, None, cache)?;
        last = Some(hidden.narrow(0, chunk.len() - 1, 1));
    }
    let last = last.ok_or_else(|| Error::Request("there are no tokens".into()))?;
    Ok(rows_of(model.logits(last))?.swap_remove(0))
}
