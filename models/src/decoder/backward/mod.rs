//! The way back through a decoder, one layer at a time: what calibration learns the outputs' gradients from.
//!
//! Calibration wants the gradient `g = dL/dy` of every projection's output at every token, and no gradient of any weight.
//! Burn's autodiff would keep the whole forward pass of all layers for that. Here the caller keeps the input of each
//! layer, goes forward once, starts at [`BackwardHead::loss_and_gradient`] and walks the layers from last to first with
//! [`BackwardLayer::backward`], which makes one layer's forward pass again. Nothing but the gradient that arrives and
//! that layer needs to be in memory.

mod loss;
#[cfg(test)]
mod tests;

use burn::nn::RmsNorm;
use burn::tensor::{DType, Tensor};

use super::{DecoderLayer, RotaryTable, Site, norm};
use crate::error::{Error, Result};
use crate::ops;
use crate::projection::Projection;

pub use loss::{BackwardHead, Labels};

/// Sees, for one projection, the rows it read `[rows, in]` and the gradient of what it wrote `[rows, out]`. The
/// projection is named by its site and its place in [`Site::projections`].
pub type GradientObserver<'a> = &'a mut dyn FnMut(Site, usize, &Tensor<2>, &Tensor<2>);

/// A dense layer made ready for going back through it: beside each weight, the same weight by input, so that the product
/// of a gradient with it runs at full speed. Takes twice the layer's memory.
#[derive(Debug)]
pub struct BackwardLayer {
    layer: DecoderLayer,
    /// `W` `[out, in]`, each input's weights together in memory.
    qkv: Vec<Tensor<2>>,
    output: Tensor<2>,
    gate_up: Vec<Tensor<2>>,
    down: Tensor<2>,
}

impl BackwardLayer {
    /// Lays the layer's weights out for the way back.
    ///
    /// # Errors
    /// [`Error::Request`] when a projection is not dense f32, or a group has not the site's number of members.
    pub fn new(layer: &DecoderLayer) -> Result<Self> {
        let site = |site: Site| -> Result<Vec<Tensor<2>>> {
            let members = layer.site(site);
            if members.len() != site.projections().len() {
                return Err(Error::Request(format!(
                    "the site {} has {} projections, not {}",
                    site.name(),
                    members.len(),
                    site.projections().len()
                )));
            }
            members
                .into_iter()
                .zip(site.projections())
                .map(|(projection, name)| by_input(projection, name))
                .collect()
        };
        let one = |projection: &Projection, of: Site| by_input(projection, of.name());
        Ok(BackwardLayer {
            qkv: site(Site::Qkv)?,
            output: one(&layer.attention.output, Site::O)?,
            gate_up: site(Site::GateUp)?,
            down: one(&layer.feed_forward.down, Site::Down)?,
            layer: layer.clone(),
        })
    }

    /// The gradient in the layer's `input`, from `gradient`, that of its output; all `[batch, tokens, hidden]`.
    ///
    /// The sequences begin at the first position of `rotary`, and there is no cache. `observe` is called once for each
    /// projection, from `down` back to `q`. Gradients of q, k and v are those of the projection's own output, before the
    /// per-head norm and the rotary embedding; those of k and v are sums over the query heads that share them.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn backward(
        &self,
        input: Tensor<3>,
        gradient: Tensor<3>,
        rotary: &RotaryTable,
        observe: GradientObserver,
    ) -> Tensor<3> {
        let [batch, tokens, hidden] = input.dims();
        let rows = [batch * tokens, hidden];
        let (input, gradient) = (input.reshape(rows), gradient.reshape(rows));
        let attended = self.attend(input.clone(), [batch, tokens], rotary);
        let middle = self.layer.attention.output.forward(attended.mixed.clone()) + input.clone();
        let gradient = self.through_feed_forward(middle, gradient, observe);
        let back = self.through_attention(attended, gradient.clone(), rotary, observe);
        let back = norm_backward(&self.layer.input_norm, input, back) + gradient;
        back.reshape([batch, tokens, hidden])
    }

    /// From the gradient of the layer's output to that of `middle`, the stream between attention and feed-forward.
    fn through_feed_forward(
        &self,
        middle: Tensor<2>,
        gradient: Tensor<2>,
        observe: GradientObserver,
    ) -> Tensor<2> {
        let layer = &self.layer;
        let normed = norm(&layer.post_attention_norm, middle.clone());
        let [gate, up] =
            [0, 1].map(|i| layer.feed_forward.gate_up.members[i].forward(normed.clone()));
        let neurons = ops::swiglu(gate.clone(), up.clone());
        observe(Site::Down, 0, &neurons, &gradient);
        drop(neurons);
        let back = ops::linear(gradient.clone(), self.down.clone());
        let (gate, up) = ops::swiglu_backward(gate, up, back);
        observe(Site::GateUp, 0, &normed, &gate);
        observe(Site::GateUp, 1, &normed, &up);
        let back =
            ops::linear(gate, self.gate_up[0].clone()) + ops::linear(up, self.gate_up[1].clone());
        norm_backward(&layer.post_attention_norm, middle, back) + gradient
    }

    /// The attention's forward pass, with what the way back needs of it.
    fn attend(
        &self,
        input: Tensor<2>,
        [batch, tokens]: [usize; 2],
        rotary: &RotaryTable,
    ) -> Attended {
        let attention = &self.layer.attention;
        let normed = norm(&self.layer.input_norm, input);
        let heads = |i: usize| -> Tensor<4> {
            let x = attention.qkv.members[i].forward(normed.clone());
            let count = x.dims()[1] / attention.head_dim;
            x.reshape([batch, tokens, count, attention.head_dim])
        };
        let ready = |x: Tensor<4>, per_head: &Option<RmsNorm>| match per_head {
            // What the norm was given is needed for its gradient.
            Some(per_head) => (rotary.rotate(norm(per_head, x.clone())), Some(x)),
            None => (rotary.rotate(x), None),
        };
        let (q, raw_q) = ready(heads(0), &attention.q_norm);
        let (k, raw_k) = ready(heads(1), &attention.k_norm);
        let (k, v) = (k.swap_dims(1, 2), heads(2).swap_dims(1, 2));
        let mixed = ops::attention(q.clone(), k.clone(), v.clone(), tokens, None);
        let mixed = mixed.reshape([(batch * tokens) as i32, -1]);
        Attended {
            normed,
            q,
            k,
            v,
            raw_q,
            raw_k,
            mixed,
        }
    }

    /// From the gradient of the attention's output to that of its normalised input.
    fn through_attention(
        &self,
        forward: Attended,
        gradient: Tensor<2>,
        rotary: &RotaryTable,
        observe: GradientObserver,
    ) -> Tensor<2> {
        let attention = &self.layer.attention;
        observe(Site::O, 0, &forward.mixed, &gradient);
        let back = ops::linear(gradient, self.output.clone()).reshape(forward.q.dims());
        let (q, k, v) = ops::attention_backward(forward.q, forward.k, forward.v, back);
        let own = |gradient: Tensor<4>, per_head: &Option<RmsNorm>, raw: Option<Tensor<4>>| {
            let gradient = rotary.rotate_backward(gradient);
            match (per_head, raw) {
                (Some(per_head), Some(raw)) => norm_backward(per_head, raw, gradient),
                _ => gradient,
            }
        };
        let gradients = [
            own(q, &attention.q_norm, forward.raw_q),
            own(k.swap_dims(1, 2), &attention.k_norm, forward.raw_k),
            v.swap_dims(1, 2),
        ];
        let rows = forward.normed.dims()[0] as i32;
        let mut back: Option<Tensor<2>> = None;
        for (i, (gradient, weight)) in gradients.into_iter().zip(&self.qkv).enumerate() {
            let gradient = gradient.reshape([rows, -1]);
            observe(Site::Qkv, i, &forward.normed, &gradient);
            let part = ops::linear(gradient, weight.clone());
            back = Some(match back {
                Some(back) => back + part,
                None => part,
            });
        }
        back.expect("the qkv site has three members")
    }
}

/// What one attention made on the way forward.
struct Attended {
    /// The normalised stream, `[rows, hidden]`.
    normed: Tensor<2>,
    /// Normalised and rotated, `[batch, tokens, heads, head_dim]`.
    q: Tensor<4>,
    /// Normalised and rotated, `[batch, kv_heads, tokens, head_dim]`.
    k: Tensor<4>,
    v: Tensor<4>,
    /// The projections' outputs where a per-head norm follows, `[batch, tokens, heads, head_dim]`.
    raw_q: Option<Tensor<4>>,
    raw_k: Option<Tensor<4>>,
    /// The heads' concatenated values, `[rows, heads × head_dim]`.
    mixed: Tensor<2>,
}

/// The weight `W` `[out, in]` of a dense projection, laid out for `g W`.
///
/// # Errors
/// [`Error::Request`] when it is not dense f32.
fn by_input(projection: &Projection, name: &str) -> Result<Tensor<2>> {
    match projection {
        Projection::Dense(linear) if linear.weight.val().dtype() == DType::F32 => {
            Ok(ops::by_output(linear.weight.val().transpose()))
        }
        other => Err(Error::Request(format!(
            "gradients need dense weights in f32, but `{name}` is {}",
            match other {
                Projection::Dense(linear) => format!("{:?}", linear.weight.val().dtype()),
                other => other.kind().to_owned(),
            }
        ))),
    }
}

/// The gradient in what `norm` was given.
fn norm_backward<const D: usize>(norm: &RmsNorm, x: Tensor<D>, gradient: Tensor<D>) -> Tensor<D> {
    ops::rms_norm_backward(x, norm.gamma.val(), norm.epsilon, gradient)
}
