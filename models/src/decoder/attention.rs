//! Causal grouped-query attention.

use burn::module::Module;
use burn::nn::RmsNorm;
use burn::tensor::{DType, Tensor};

use super::{Observer, RotaryTable, Site, norm};
use crate::cache::{CacheFormat, DenseCache, LatentCache, LayerCache};
use crate::ops;
use crate::projection::{GroupHeads, Projection, ProjectionGroup};

/// The attention of one layer: `qkv` in, `output` out.
#[derive(Module, Debug)]
pub struct Attention {
    /// Query, key and value; the query alone where keys and values are rebuilt from latents.
    pub qkv: ProjectionGroup,
    /// Keys and values that are cached as latents.
    pub latent: Option<GroupHeads>,
    /// The output projection `o`.
    pub output: Projection,
    /// Per-head norm of queries (Qwen3).
    pub q_norm: Option<RmsNorm>,
    /// Per-head norm of keys (Qwen3).
    pub k_norm: Option<RmsNorm>,
    #[module(skip)]
    pub head_dim: usize,
    /// How the cache stores what it keeps of this layer.
    #[module(skip)]
    pub cache_format: CacheFormat,
    /// Tokens whose latents a packed cache keeps in f16 too; 0 for other caches. See
    /// [`LatentCache::with_residual_window`].
    #[module(skip)]
    pub residual_window: usize,
}

impl Attention {
    /// `[batch, tokens, hidden]` to the same; with a cache, tokens follow those already in it.
    pub fn forward(
        &self,
        input: Tensor<3>,
        rotary: &RotaryTable,
        cache: Option<&mut LayerCache>,
        observe: Observer,
    ) -> Tensor<3> {
        let [batch, tokens, hidden] = input.dims();
        observe(Site::Qkv, &input.clone().reshape([batch * tokens, hidden]));
        let mixed = self.mix(input, rotary, cache);
        observe(Site::O, &mixed);
        self.output
            .forward(mixed)
            .reshape([batch as i32, tokens as i32, -1])
    }

    /// The first stage of [`Attention::forward`]: from the normalised `[batch, tokens, hidden]` to the input of the output
    /// projection, `[batch * tokens, heads * head_dim]` (of weighted latents where they are folded into it).
    pub fn mix(
        &self,
        normed: Tensor<3>,
        rotary: &RotaryTable,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<2> {
        let [batch, tokens, hidden] = normed.dims();
        let flat = normed.reshape([batch * tokens, hidden]);
        // What the projections read; latents of a shared basis can be what the cache keeps.
        let read = self.qkv.latents(flat.clone());
        let mut qkv = self.qkv.expand(read.clone()).into_iter();
        let mut heads = |per_head: &Option<RmsNorm>| {
            let x = qkv
                .next()
                .expect("a query, and key and value without latents");
            let count = x.dims()[1] / self.head_dim;
            let x = x.reshape([batch, tokens, count, self.head_dim]);
            match per_head {
                Some(per_head) => norm(per_head, x),
                None => x,
            }
        };
        let q = rotary.rotate(heads(&self.q_norm));
        match &self.latent {
            None => {
                let k = rotary.rotate(heads(&self.k_norm)).swap_dims(1, 2);
                let v = heads(&None).swap_dims(1, 2);
                let (k, v, keys) = match cache {
                    Some(LayerCache::Dense(cache)) => cache.append(k, v),
                    Some(LayerCache::Latent(_)) => panic!("the cache of a layer with latents"),
                    // As a cache would have rounded them: perplexity is that of decoding.
                    None => {
                        let dtype = self.cache_format.dtype().unwrap_or(k.dtype());
                        (k.cast(dtype), v.cast(dtype), tokens)
                    }
                };
                let mixed = ops::attention(q, k, v, keys, rotary.mask());
                mixed.reshape([(batch * tokens) as i32, -1])
            }
            Some(latent) => {
                // Without a cache, one is made for these tokens alone: whatever it rounds is part of the model.
                let own = &mut self.new_cache(tokens);
                let LayerCache::Latent(cache) = cache.unwrap_or(own) else {
                    panic!("the cache of a layer without latents");
                };
                let latents = latent.latents(flat).unwrap_or(read);
                let rank = latents.dims()[1];
                cache.append(latents.reshape([batch, tokens, rank]));
                latent.narrowed(latent.attend(q, cache, self.k_norm.as_ref(), rotary))
            }
        }
    }

    /// Folds the expansions of the layer's values into its output projection; a layer without latents has none.
    ///
    /// # Errors
    /// Why it can not be done.
    pub(super) fn fold_values(&mut self) -> Result<(), String> {
        if let Some(latent) = &mut self.latent {
            self.output = latent.fold_values(&self.output, self.head_dim)?;
        }
        Ok(())
    }

    /// Whether folding makes decoding faster and no prompt slower, and rounds no more than the weights do.
    pub(super) fn folding_pays(&self) -> bool {
        let weight = match &self.output {
            Projection::Dense(linear) => linear.weight.val(),
            _ => return false,
        };
        let latent = self.latent.as_ref();
        weight.dtype() == DType::F32 && latent.is_some_and(|l| l.folding_pays(self.head_dim))
    }

    /// An empty cache for this layer, with room for `capacity` tokens.
    ///
    /// # Panics
    /// For a packed format where there are no latents, or a residual window where the format is not packed, which
    /// [`Decoder`](crate::Decoder) and checkpoints refuse.
    pub fn new_cache(&self, capacity: usize) -> LayerCache {
        match &self.latent {
            None => LayerCache::Dense(DenseCache::new(capacity, self.cache_format)),
            Some(latent) => {
                let cache = LatentCache::new(&latent.ranks(), self.cache_format, capacity);
                LayerCache::Latent(cache.with_residual_window(self.residual_window))
            }
        }
    }
}
