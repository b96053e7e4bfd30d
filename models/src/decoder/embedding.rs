//! The table of token embeddings, which may also be the output head.

use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::error::{Error, Result};
use crate::ops;
use crate::projection::BlockLinear;

/// Token embeddings `[vocab, hidden]`.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a model has one")]
pub enum TokenEmbedding {
    /// f32, f16 or bf16, as the weight's element type says.
    Float(Embedding),
    /// Codes in blocks.
    Blocks(BlockLinear),
}

impl TokenEmbedding {
    /// Rows for `ids` `[batch][tokens]`, in f32: `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// [`Error::Request`] for no tokens, rows of different lengths, or an id outside the vocabulary.
    pub fn embed(&self, ids: &[Vec<u32>]) -> Result<Tensor<3>> {
        let vocab = self.vocab();
        let tokens = ids.first().map_or(0, Vec::len);
        if tokens == 0 || ids.iter().any(|row| row.len() != tokens) {
            return Err(Error::Request(
                "a batch needs at least one token, and rows of equal length".into(),
            ));
        }
        if let Some(id) = ids.iter().flatten().find(|id| **id as usize >= vocab) {
            return Err(Error::Request(format!(
                "token id {id} is outside the vocabulary of {vocab}"
            )));
        }
        let flat = ids.concat();
        let rows = match self {
            TokenEmbedding::Float(embedding) => {
                let flat: Vec<i32> = flat.iter().map(|id| *id as i32).collect();
                let weight = embedding.weight.val();
                let count = flat.len();
                let ids =
                    Tensor::<1, Int>::from_data(TensorData::new(flat, [count]), &weight.device());
                weight.select(0, ids).cast(DType::F32)
            }
            TokenEmbedding::Blocks(blocks) => blocks.rows(&flat),
        };
        Ok(rows.reshape([ids.len() as i32, tokens as i32, -1]))
    }

    /// Next-token logits `[rows, vocab]` of hidden states `[rows, hidden]`, where the table is the head too.
    pub(crate) fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        match self {
            TokenEmbedding::Float(embedding) => {
                ops::linear(hidden, embedding.weight.val().transpose())
            }
            TokenEmbedding::Blocks(blocks) => blocks.forward(hidden),
        }
    }

    /// Tokens it knows.
    pub fn vocab(&self) -> usize {
        match self {
            TokenEmbedding::Float(embedding) => embedding.weight.lazy_shape()[0],
            TokenEmbedding::Blocks(blocks) => blocks.shape().0,
        }
    }
}
