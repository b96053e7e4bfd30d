//! Keys (after the rotary embedding) and values in full.

use burn::tensor::Tensor;

use crate::error::{Error, Result};

/// The cache of a whole decoder.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// The cache of one layer: keys and values `[batch, kv_heads, tokens, head_dim]`.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    kept: Option<(Tensor<4>, Tensor<4>)>,
}

impl KvCache {
    /// An empty cache for `layers` layers.
    pub fn new(layers: usize) -> Self {
        KvCache {
            layers: vec![LayerCache::default(); layers],
        }
    }

    /// Tokens held.
    pub fn length(&self) -> usize {
        self.layers
            .first()
            .and_then(|l| l.kept.as_ref())
            .map_or(0, |(k, _)| k.dims()[2])
    }

    /// # Errors
    /// [`Error::Request`] when the cache was made for another number of layers, or holds another batch.
    pub(crate) fn check(&self, layers: usize, batch: usize) -> Result<()> {
        let held = self.layers.first().and_then(|l| l.kept.as_ref());
        let held = held.map_or(batch, |(k, _)| k.dims()[0]);
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
    /// Adds keys and values of new tokens and returns all of them.
    ///
    /// # Panics
    /// When batch, heads or head width differ from those already held.
    pub fn append(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let (k, v) = match self.kept.take() {
            None => (k, v),
            Some((past_k, past_v)) => (
                Tensor::cat(vec![past_k, k], 2),
                Tensor::cat(vec![past_v, v], 2),
            ),
        };
        self.kept = Some((k.clone(), v.clone()));
        (k, v)
    }
}
