//! One pre-norm decoder layer.

use burn::module::Module;
use burn::nn::RmsNorm;
use burn::tensor::Tensor;

use super::{Attention, FeedForward, Observer, RotaryTable, Site, norm};
use crate::cache::LayerCache;
use crate::projection::{Projection, ProjectionGroup};

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
        let normed = self.attention_input(input.clone());
        let hidden = self.attention.forward(normed, rotary, cache, observe) + input;
        let normed = self.feed_forward_input(hidden.clone());
        self.feed_forward.forward(normed, observe) + hidden
    }

    /// What q, k and v read of the stream, of the same shape.
    pub fn attention_input<const D: usize>(&self, stream: Tensor<D>) -> Tensor<D> {
        norm(&self.input_norm, stream)
    }

    /// What gate and up read of the stream behind the attention, of the same shape.
    pub fn feed_forward_input<const D: usize>(&self, stream: Tensor<D>) -> Tensor<D> {
        norm(&self.post_attention_norm, stream)
    }

    /// The projections of one site, in the order of [`Site::projections`]. Where the site's group has a shared basis these
    /// are its expansions, and map the latent: see [`DecoderLayer::group`].
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

    /// The group of a site of several projections; none for `o` and `down`.
    pub fn group(&self, site: Site) -> Option<&ProjectionGroup> {
        match site {
            Site::Qkv => Some(&self.attention.qkv),
            Site::GateUp => Some(&self.feed_forward.gate_up),
            Site::O | Site::Down => None,
        }
    }

    /// The group of a site, to be replaced by a pass.
    pub fn group_mut(&mut self, site: Site) -> Option<&mut ProjectionGroup> {
        match site {
            Site::Qkv => Some(&mut self.attention.qkv),
            Site::GateUp => Some(&mut self.feed_forward.gate_up),
            Site::O | Site::Down => None,
        }
    }
}
