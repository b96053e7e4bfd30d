//! What attention remembers of earlier tokens, one file a kind.

mod dense;
mod format;
mod latent;
pub(crate) mod panels;
mod store;
pub(crate) mod window;

use crate::decoder::KeyRotary;
use crate::error::{Error, Result};

pub use dense::DenseCache;
pub use format::CacheFormat;
pub use latent::LatentCache;
pub(crate) use store::Latents;

/// The cache of a whole decoder: made by [`Decoder::new_cache`](crate::Decoder::new_cache).
///
/// Memory for the asked capacity is taken when the first tokens are added; a cache that runs full grows, which copies it.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// Rotations of the positions so far, which rebuilt keys need; shared by the layers.
    pub(crate) rotary: KeyRotary,
}

/// The cache of one layer.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one for each layer")]
pub enum LayerCache {
    /// Keys and values in full.
    Dense(DenseCache),
    /// The latents that keys and values are rebuilt from.
    Latent(LatentCache),
}

impl KvCache {
    /// A cache of these layers' caches.
    pub fn new(layers: Vec<LayerCache>) -> Self {
        KvCache {
            layers,
            rotary: KeyRotary::default(),
        }
    }

    /// Tokens held.
    pub fn length(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::length)
    }

    /// Bytes that the layers take, their room for tokens to come included.
    pub fn bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| match layer {
            LayerCache::Dense(cache) => cache.bytes(),
            LayerCache::Latent(cache) => cache.bytes(),
        });
        layers.sum()
    }

    /// Bytes of the rotations that rebuilt keys need: `4 * head_dim` a position, whatever the number of layers.
    pub fn rotary_bytes(&self) -> u64 {
        self.rotary.bytes()
    }

    /// Forgets all tokens after the first `length`; memory is kept. Below the length before the last tokens were added, a
    /// residual window is refilled from codes: see [`LatentCache::truncate`].
    pub fn truncate(&mut self, length: usize) {
        for layer in &mut self.layers {
            match layer {
                LayerCache::Dense(cache) => cache.truncate(length),
                LayerCache::Latent(cache) => cache.truncate(length),
            }
        }
    }

    /// Of the tokens from `start` on, keeps those at the given offsets, which must rise, and forgets the others.
    ///
    /// # Errors
    /// [`Error::Request`] for an offset that is not held or does not rise, and for latents unless the first ones are kept.
    pub fn compact(&mut self, start: usize, keep: &[usize]) -> Result<()> {
        let held = self.length();
        let rising = keep.windows(2).all(|pair| pair[0] < pair[1]);
        if start > held || !rising || keep.last().is_some_and(|last| start + last >= held) {
            return Err(Error::Request(format!(
                "tokens {keep:?} behind {start} are not in a cache of {held}"
            )));
        }
        if keep.last().is_none_or(|last| last + 1 == keep.len()) {
            self.truncate(start + keep.len());
            return Ok(());
        }
        for layer in &mut self.layers {
            match layer {
                LayerCache::Dense(cache) => cache.compact(start, keep),
                LayerCache::Latent(_) => {
                    return Err(Error::Request(
                        "a cache of latents keeps the first of its tokens only".into(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether a layer keeps latents.
    pub(crate) fn has_latents(&self) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| matches!(layer, LayerCache::Latent(_)))
    }

    /// # Errors
    /// [`Error::Request`] when the cache was made for another number of layers, or holds another batch.
    pub(crate) fn check(&self, layers: usize, batch: usize) -> Result<()> {
        let held = self.layers.first().and_then(LayerCache::batch);
        let held = held.unwrap_or(batch);
        if self.layers.len() == layers && held == batch {
            return Ok(());
        }
        Err(Error::Request(format!(
            "a KV cache of {} layers and batch {held} was given to a model of {layers} layers and batch {batch}",
            self.layers.len()
        )))
    }

    /// The layers' caches, first layer first.
    pub fn layers_mut(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }
}

impl LayerCache {
    /// Tokens held.
    pub fn length(&self) -> usize {
        match self {
            LayerCache::Dense(cache) => cache.length(),
            LayerCache::Latent(cache) => cache.length(),
        }
    }

    /// Sequences held side by side; none while it is empty.
    fn batch(&self) -> Option<usize> {
        match self {
            LayerCache::Dense(cache) => cache.batch(),
            LayerCache::Latent(cache) => cache.batch(),
        }
    }
}
