//! The latents of keys and values.

use burn::tensor::{DType, Tensor};

use super::CacheFormat;

/// The cache of one layer whose keys and values are rebuilt from latents.
#[derive(Debug, Clone)]
pub struct LatentCache {
    /// Ranks of the slices that share a scale.
    ranks: Vec<usize>,
    format: CacheFormat,
    capacity: usize,
    /// `[batch, tokens, rank]`.
    kept: Option<Tensor<3>>,
}

impl LatentCache {
    /// An empty cache for latents in slices of the given ranks, with room for `capacity` tokens.
    pub fn new(ranks: &[usize], format: CacheFormat, capacity: usize) -> Self {
        LatentCache {
            ranks: ranks.to_vec(),
            format,
            capacity,
            kept: None,
        }
    }

    /// Tokens held.
    pub fn length(&self) -> usize {
        self.kept.as_ref().map_or(0, |k| k.dims()[1])
    }

    /// Sequences held side by side; none while it is empty.
    pub fn batch(&self) -> Option<usize> {
        self.kept.as_ref().map(|k| k.dims()[0])
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        let held = self.kept.as_ref();
        held.map_or(0, |k| (k.shape().num_elements() * size_of::<f32>()) as u64)
    }

    /// Forgets all tokens after the first `length`.
    pub fn truncate(&mut self, length: usize) {
        let kept = self.kept.take();
        self.kept = kept.map(|k| {
            let tokens = k.dims()[1].min(length);
            k.narrow(1, 0, tokens)
        });
    }

    /// Adds the latents `[batch, tokens, rank]` of new tokens.
    pub fn append(&mut self, latents: Tensor<3>) {
        let latents = latents.cast(DType::F32);
        self.kept = Some(match self.kept.take() {
            Some(kept) => Tensor::cat(vec![kept, latents], 1),
            None => latents,
        });
    }

    /// What the codes stand for: `[batch, tokens, rank]` in f32.
    pub fn values(&self) -> Option<Tensor<3>> {
        self.kept.clone()
    }
}
