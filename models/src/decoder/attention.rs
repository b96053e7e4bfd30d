//! Causal grouped-query attention.

use burn::module::Module;
use burn::nn::RmsNorm;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Int, Tensor};

use super::{Observer, RotaryTable, Site};
use crate::cache::LayerCache;
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
        let flat = input.reshape([batch * tokens, hidden]);
        observe(Site::Qkv, &flat);
        let mut qkv = self.qkv.forward(flat).into_iter();
        let mut heads = |norm: &Option<RmsNorm>| {
            let x = qkv.next().expect("the qkv site has three members");
            let count = x.dims()[1] / self.head_dim;
            let x = x.reshape([batch, tokens, count, self.head_dim]);
            let x = match norm {
                Some(norm) => norm.forward(x),
                None => x,
            };
            x.swap_dims(1, 2)
        };
        let q = rotary.rotate(heads(&self.q_norm));
        let k = rotary.rotate(heads(&self.k_norm));
        let v = heads(&None);
        let (k, v) = match cache {
            Some(cache) => cache.append(k, v),
            None => (k, v),
        };
        let mixed = causal_attention(q, k, v);
        let [_, count, _, _] = mixed.dims();
        let mixed = mixed
            .swap_dims(1, 2)
            .reshape([batch * tokens, count * self.head_dim]);
        observe(Site::O, &mixed);
        self.output
            .forward(mixed)
            .reshape([batch as i32, tokens as i32, -1])
    }
}

/// Attention of `q` `[batch, heads, tokens, d]` over `k`, `v` `[batch, kv_heads, past + tokens, d]`;
/// query i sees the keys up to `past + i`.
fn causal_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let [batch, heads, tokens, d] = q.dims();
    let [_, kv_heads, total, _] = k.dims();
    let options = |is_causal| AttentionModuleOptions {
        is_causal,
        ..Default::default()
    };
    if tokens == 1 {
        // The queries of a group become rows over one shared key head: no key is copied.
        let q = q.reshape([batch, kv_heads, heads / kv_heads, d]);
        return attention(q, k, v, None, None, options(false)).reshape([batch, heads, 1, d]);
    }
    // Not every backend understands fewer key heads than query heads; some read out of bounds.
    let (k, v) = (
        repeat_heads(k, heads / kv_heads),
        repeat_heads(v, heads / kv_heads),
    );
    if tokens == total {
        return attention(q, k, v, None, None, options(true));
    }
    // Where the diagonal starts differs between backends once there is a past: say it with a mask.
    let device = q.device();
    let row = Tensor::<1, Int>::arange((total - tokens) as i64..total as i64, &device);
    let column = Tensor::<1, Int>::arange(0..total as i64, &device);
    let hidden: Tensor<2, Bool> = column
        .unsqueeze_dim::<2>(0)
        .repeat_dim(0, tokens)
        .greater(row.unsqueeze_dim::<2>(1).repeat_dim(1, total));
    let mask = hidden
        .unsqueeze::<4>()
        .expand([batch, heads, tokens, total]);
    attention(q, k, v, Some(mask), None, options(false))
}

fn repeat_heads(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times == 1 {
        return x;
    }
    let [batch, heads, tokens, d] = x.dims();
    x.unsqueeze_dim::<5>(2)
        .expand([batch, heads, times, tokens, d])
        .reshape([batch, heads * times, tokens, d])
}
