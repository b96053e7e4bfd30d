//! Decoding behind a long context.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Distribution, Tensor};
use cinder::models::Decoder;
use cinder::models::cache::{KvCache, LayerCache};
use cinder::models::ops;
use cinder::models::progress::Progress;
use comfy_table::Table;
use serde_json::{Value, json};

use super::{median, milliseconds};
use crate::cli::context::Context;
use crate::cli::format::{bytes, count, table as plain_table};
use crate::cli::memory::resident_bytes;

/// Tokens that are put into a cache at a time.
const CHUNK: usize = 1024;

/// One line of the result.
pub struct AtContext {
    /// Tokens before those that were decoded.
    length: usize,
    /// Median of the runs.
    milliseconds: f64,
    /// By kind of operation, per token.
    profile: Vec<(&'static str, f64)>,
    cache_bytes: u64,
    rotary_bytes: u64,
    resident_bytes: Option<u64>,
}

impl AtContext {
    /// Milliseconds a token in attention, what rebuilds keys and values included.
    fn attention(&self) -> f64 {
        let parts = self
            .profile
            .iter()
            .filter(|(op, _)| op.contains("attention"));
        parts.map(|(_, ms)| ms).sum()
    }
}

/// Decodes `tokens` behind a cache that random numbers fill to `length`: running a prompt of that length through the model
/// would take minutes, and the work of a token does not depend on what the numbers are.
pub fn measure(
    context: &Context,
    decoder: &Decoder,
    kv_heads: usize,
    length: usize,
    tokens: usize,
    runs: usize,
) -> Result<AtContext> {
    let mut cache = decoder.new_cache(length + tokens);
    fill(decoder, kv_heads, &mut cache, length, &context.device);
    let id = decoder.embedding.vocab() as u32 / 2;
    let mut once = || -> Result<f64> {
        cache.truncate(length);
        let start = Instant::now();
        for _ in 0..tokens {
            let hidden = decoder.hidden(&[vec![id]], Some(&mut cache))?;
            drop(decoder.logits(hidden).into_data());
        }
        context.printer.advance(1);
        Ok(1e3 * start.elapsed().as_secs_f64() / tokens as f64)
    };
    let (first, profile) = ops::profile(&mut once);
    first?;
    let runs = (0..runs).map(|_| once()).collect::<Result<_>>()?;
    Ok(AtContext {
        length,
        milliseconds: median(runs),
        profile: milliseconds(profile, tokens),
        cache_bytes: cache.bytes(),
        rotary_bytes: cache.rotary_bytes(),
        resident_bytes: resident_bytes(),
    })
}

fn fill(
    decoder: &Decoder,
    kv_heads: usize,
    cache: &mut KvCache,
    length: usize,
    device: &burn::tensor::Device,
) {
    let spread = Distribution::Uniform(-1.0, 1.0);
    for (layer, cache) in decoder.layers.iter().zip(cache.layers_mut()) {
        let attention = &layer.attention;
        for start in (0..length).step_by(CHUNK) {
            let tokens = CHUNK.min(length - start);
            match (&mut *cache, &attention.latent) {
                (LayerCache::Dense(cache), _) => {
                    let shape = [1, kv_heads, tokens, attention.head_dim];
                    let numbers = || Tensor::random(shape, spread, device);
                    cache.append(numbers(), numbers());
                }
                (LayerCache::Latent(cache), latent) => {
                    let rank = latent.as_ref().map_or(0, |latent| latent.rank());
                    cache.append(Tensor::random([1, tokens, rank], spread, device));
                }
            }
        }
    }
}

pub fn json(measured: &[AtContext]) -> Vec<Value> {
    let line = |m: &AtContext| {
        let profile = m
            .profile
            .iter()
            .map(|(op, ms)| ((*op).to_owned(), json!(ms)));
        json!({
            "tokens": m.length,
            "milliseconds_per_token": m.milliseconds,
            "attention_milliseconds_per_token": m.attention(),
            "milliseconds": profile.collect::<serde_json::Map<_, _>>(),
            "cache_bytes": m.cache_bytes,
            "rotary_bytes": m.rotary_bytes,
            "resident_bytes": m.resident_bytes,
            "filled_with": "random numbers",
        })
    };
    measured.iter().map(line).collect()
}

/// One line a length; none where no length was asked for.
pub fn table(measured: &[AtContext]) -> Option<Table> {
    if measured.is_empty() {
        return None;
    }
    let mut out = plain_table(&[
        "context (random numbers)",
        "ms/token",
        "of it attention",
        "cache",
        "rotary table",
        "resident",
    ]);
    for m in measured {
        out.add_row(vec![
            count(m.length as u64),
            format!("{:.2}", m.milliseconds),
            format!("{:.2}", m.attention()),
            bytes(m.cache_bytes),
            bytes(m.rotary_bytes),
            m.resident_bytes.map_or("unknown".into(), bytes),
        ]);
    }
    Some(out)
}
