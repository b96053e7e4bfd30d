//! A pass that begins in the middle, with another block in the place of a layer: what one compressed layer does to the whole
//! model, without running the layers before it again.

use burn::tensor::Tensor;

use super::{Decoder, DecoderLayer, norm};
use crate::error::{Error, Result};

impl Decoder {
    /// What enters each layer, `[batch, tokens, hidden]`, in a pass over `ids` `[batch][tokens]` without a cache.
    ///
    /// # Errors
    /// [`Error::Request`] when a token id is outside the vocabulary or the context would be exceeded.
    pub fn layer_inputs(&self, ids: &[Vec<u32>]) -> Result<Vec<Tensor<3>>> {
        let mut hidden = self.embedding.embed(ids)?;
        let tokens = hidden.dims()[1];
        if tokens > self.max_context {
            return Err(Error::Request(format!(
                "{tokens} tokens do not fit the model's context of {}",
                self.max_context
            )));
        }
        let table = self.rotary.table(0, tokens, &hidden.device());
        let mut inputs = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            inputs.push(hidden.clone());
            hidden = layer.forward(hidden, &table, None, &mut |_, _| {});
        }
        Ok(inputs)
    }

    /// Final hidden states `[batch, tokens, hidden]`, after the last norm, of a pass in which `block` stands in the place of
    /// layer `index`; `entering` is what enters that layer ([`Decoder::layer_inputs`]).
    pub fn hidden_with(
        &self,
        index: usize,
        block: &DecoderLayer,
        entering: Tensor<3>,
    ) -> Tensor<3> {
        let table = self.rotary.table(0, entering.dims()[1], &entering.device());
        let mut hidden = block.forward(entering, &table, None, &mut |_, _| {});
        for layer in self.layers.iter().skip(index + 1) {
            hidden = layer.forward(hidden, &table, None, &mut |_, _| {});
        }
        norm(&self.norm, hidden)
    }
}
