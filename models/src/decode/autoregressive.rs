//! One token after another, with a KV cache.

use std::time::Instant;

use burn::tensor::Tensor;

use super::{LanguageModel, Sampler, SamplingSettings, TreeSlice};
use crate::cache::KvCache;
use crate::decoder::Decoder;
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
    decoder: &Decoder,
    prompt: &[u32],
    max_new_tokens: usize,
    eos_ids: &[u32],
    settings: SamplingSettings,
    emit: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<Generation> {
    let mut model = Shared(decoder);
    generate_with(&mut model, prompt, max_new_tokens, eos_ids, settings, emit)
}

/// [`generate`] with any model, such as one whose blocks are streamed.
///
/// # Errors
/// As [`generate`], and those of the model.
pub fn generate_with<M: LanguageModel + ?Sized>(
    decoder: &mut M,
    prompt: &[u32],
    max_new_tokens: usize,
    eos_ids: &[u32],
    settings: SamplingSettings,
    emit: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<Generation> {
    if prompt.is_empty() {
        return Err(Error::Request("the prompt has no tokens".into()));
    }
    if prompt.len().saturating_add(max_new_tokens) > decoder.max_context() {
        return Err(Error::Request(format!(
            "a prompt of {} tokens and {max_new_tokens} new ones exceed the model's context of {}",
            prompt.len(),
            decoder.max_context()
        )));
    }
    let mut sampler = Sampler::new(settings)?;
    let mut cache = decoder.new_cache(prompt.len() + max_new_tokens);
    let start = Instant::now();
    let (mut ids, mut prefill_seconds, mut ended) = (Vec::new(), 0.0, false);
    let mut input = prompt.to_vec();
    while ids.len() < max_new_tokens && !ended {
        let hidden = decoder.hidden(&input, None, &mut cache)?;
        let tokens = hidden.dims()[0];
        let last = hidden.narrow(0, tokens - 1, 1);
        let logits = to_f32(decoder.logits(last))?;
        let id = sampler.sample(&logits)?;
        if ids.is_empty() {
            prefill_seconds = start.elapsed().as_secs_f64();
        }
        ids.push(id);
        emit(id)?;
        ended = eos_ids.contains(&id);
        input = vec![id];
    }
    Ok(Generation {
        ids,
        prefill_seconds,
        decode_seconds: start.elapsed().as_secs_f64() - prefill_seconds,
        ended,
    })
}

/// A decoder that others read too.
struct Shared<'a>(&'a Decoder);

impl LanguageModel for Shared<'_> {
    fn max_context(&self) -> usize {
        self.0.max_context()
    }

    fn new_cache(&self, capacity: usize) -> KvCache {
        self.0.new_cache(capacity)
    }

    fn hidden(
        &mut self,
        ids: &[u32],
        tree: Option<TreeSlice<'_>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>> {
        let hidden = self.0.hidden_of(&[ids.to_vec()], tree, Some(cache))?;
        Ok(hidden.flatten(0, 1))
    }

    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.0.logits(hidden)
    }
}

fn to_f32(tensor: Tensor<2>) -> Result<Vec<f32>> {
    tensor
        .into_data()
        .try_into_vec::<f32>()
        .map_err(|e| Error::Request(format!("logits could not be read: {e:?}")))
}
