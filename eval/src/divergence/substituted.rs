//! A model beside itself with one block replaced. What enters each layer is kept, so that only the layers from the replaced one
//! on are run again.

use burn::tensor::Tensor;
use cinder_models::progress::Progress;
use cinder_models::{Decoder, DecoderLayer};

use super::reference::{self, Reference, ReferenceIdentity, ReferenceQuestion};
use super::{Divergence, Row};
use crate::error::Result;
use crate::perplexity::{WindowChoice, each_position_of, finite};

/// A model's own predictions on some windows, and what enters each of its layers on them: `layers · windows · window · hidden`
/// numbers of 4 bytes.
pub struct Probe<'a> {
    decoder: &'a Decoder,
    reference: Reference,
    /// Window by window.
    ids: Vec<Vec<u32>>,
    /// Window by window, what enters each layer.
    entering: Vec<Vec<Tensor<3>>>,
}

impl<'a> Probe<'a> {
    /// Runs the model over the chosen windows of `tokens`.
    ///
    /// # Errors
    /// As [`Reference::collect`].
    pub fn new(
        decoder: &'a Decoder,
        tokens: &[u32],
        window: usize,
        choice: &WindowChoice,
        question: ReferenceQuestion,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let reference = Reference::collect(decoder, tokens, window, choice, question, progress)?;
        let (_, windows) = reference::windows(tokens, window, choice)?;
        let ids: Vec<Vec<u32>> = windows.into_iter().map(<[u32]>::to_vec).collect();
        let entering = ids
            .iter()
            .map(|ids| Ok(decoder.layer_inputs(std::slice::from_ref(ids))?))
            .collect::<Result<_>>()?;
        Ok(Probe {
            decoder,
            reference,
            ids,
            entering,
        })
    }

    /// What the model was run on.
    pub fn identity(&self) -> &ReferenceIdentity {
        &self.reference.identity
    }

    /// How far the model's predictions move when `block` stands in the place of its layer `index`.
    ///
    /// # Errors
    /// [`cinder_models::Error::NonFinite`] for a loss that is no number.
    pub fn divergence(&self, index: usize, block: &DecoderLayer) -> Result<Divergence> {
        let per_window = self.reference.identity.window as usize - 1;
        let mut rows: Vec<Row> = Vec::with_capacity(self.ids.len() * per_window);
        for (at, (ids, entering)) in self.ids.iter().zip(&self.entering).enumerate() {
            let hidden = self
                .decoder
                .hidden_with(index, block, entering[index].clone());
            let scored = each_position_of(self.decoder, hidden, ids, 0, |position, logits, id| {
                self.reference.row(at * per_window + position, logits, id)
            })?;
            finite(scored.iter().map(|row| row.nll).collect())?;
            rows.extend(scored);
        }
        Ok(Divergence::of(&rows, per_window))
    }
}
