//! Causal grouped-query attention.

use burn::module::Module;
use burn::nn::RmsNorm;
use burn::tensor::Tensor;

use super::{Observer, RotaryTable, Site, norm};
use crate::cache::LayerCache;
use crate::ops;
use crate::projection::{Projection, ProjectionGroup};

/// The attention of one layer: `qkv` in, `output` out.
#[derive(Module, Debug)]
pub struct Attention {
    /// Query, key and value.
    pub qkv: ProjectionGroup,
    /// The output projection `o`.
    pub output: Projection,
    /// Per-head norm of queries (Qwen3).
    pub q_norm: Option<RmsNorm>,
    /// Per-head norm of keys (Qwen3).
    pub k_norm: Option<RmsNorm>,
    #[module(skip)]
    pub head_dim: usize,
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
    /// projection, `[batch * tokens, heads * head_dim]`.
    pub fn mix(
        &self,
        normed: Tensor<3>,
        rotary: &RotaryTable,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<2> {
        let [batch, tokens, hidden] = normed.dims();
        let flat = normed.reshape([batch * tokens, hidden]);
        let mut qkv = self.qkv.forward(flat).into_iter();
        let mut heads = |per_head: &Option<RmsNorm>| {
            let x = qkv.next().expect("the qkv site has three members");
            let count = x.dims()[1] / self.head_dim;
            let x = x.reshape([batch, tokens, count, self.head_dim]);
            match per_head {
                Some(per_head) => norm(per_head, x),
                None => x,
            }
        };
        let q = rotary.rotate(heads(&self.q_norm));
        let k = rotary.rotate(heads(&self.k_norm)).swap_dims(1, 2);
        let v = heads(&None).swap_dims(1, 2);
        let (k, v, keys) = match cache {
            Some(cache) => cache.append(k, v),
            None => (k, v, tokens),
        };
        ops::attention(q, k, v, keys, None).reshape([(batch * tokens) as i32, -1])
    }
}
