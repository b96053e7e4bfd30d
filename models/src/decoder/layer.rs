//! One pre-norm decoder layer.

use burn::module::Module;
use burn::nn::RmsNorm;
use burn::tensor::Tensor;

use super::{Attention, FeedForward, Observer, RotaryTable, Site, norm};
use crate::cache::LayerCache;
use crate::projection::Projection;

/// `h = x + attention(norm x)`, then `h + feed_forward(norm h)`.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    pub input_norm: RmsNorm,
    pub attention: Attention,
    pub post_attention_norm: RmsNorm,
    pub feed_forward: FeedForward,
}

impl DecoderLayer {
    /// `[batch, tokens, hidden]` to the same; `observe` sees the input of each site.
    pub fn forward(
        &self,
        input: Tensor<3>,
        rotary: &RotaryTable,
        cache: Option<&mut LayerCache>,
        observe: Observer,
    ) -> Tensor<3> {
        let normed = norm(&self.input_norm, input.clone());
        let hidden = self.attention.forward(normed, rotary, cache, observe) + input;
        let normed = norm(&self.post_attention_norm, hidden.clone());
        self.feed_forward.forward(normed, observe) + hidden
    }

    /// The projections of one site, in the order of [`Site::projections`].
    pub fn site(&self, site: Site) -> Vec<&Projection> {
        match site {
            Site::Qkv => self.attention.qkv.members.iter().collect(),
            Site::O => vec![&self.attention.output],
            Site::GateUp => self.feed_forward.gate_up.members.iter().collect(),
            Site::Down => vec![&self.feed_forward.down],
        }
    }

    /// The projections of one site, to be replaced by a pass.
    pub fn site_mut(&mut self, site: Site) -> Vec<&mut Projection> {
        match site {
            Site::Qkv => self.attention.qkv.members.iter_mut().collect(),
            Site::O => vec![&mut self.attention.output],
            Site::GateUp => self.feed_forward.gate_up.members.iter_mut().collect(),
            Site::Down => vec![&mut self.feed_forward.down],
        }
    }
}
