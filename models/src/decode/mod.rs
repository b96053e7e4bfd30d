//! Text generation: sampling, one token after another or several in a round.

mod autoregressive;
mod chance;
mod distribution;
mod model;
pub mod offload;
mod sampling;
pub mod speculative;

use burn::tensor::Tensor;

use crate::error::{Error, Result};

pub use autoregressive::{Generation, generate};
pub use chance::{Chance, Keyed, Purpose};
pub use distribution::Distribution;
pub use model::{LanguageModel, TreeSlice};
pub use sampling::{Sampler, SamplingSettings};

/// The rows of logits `[rows, vocab]`, on the host.
fn rows_of(logits: Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let [rows, vocab] = logits.dims();
    let values = logits
        .into_data()
        .try_into_vec::<f32>()
        .map_err(|e| Error::Request(format!("logits could not be read: {e:?}")))?;
    Ok(match rows {
        1 => vec![values],
        _ => values.chunks_exact(vocab).map(<[f32]>::to_vec).collect(),
    })
}
