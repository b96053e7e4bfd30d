//! Keys (after the rotary embedding) and values in full.

use burn::tensor::Tensor;

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

    /// The layers' caches, first layer first.
    pub fn layers_mut(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }
}

impl LayerCache {
    /// Adds keys and values of new tokens and returns all of them.
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
