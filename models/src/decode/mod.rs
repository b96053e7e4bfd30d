//! Text generation: sampling, one token after another.

mod autoregressive;
mod model;
mod sampling;

pub use autoregressive::{Generation, generate};
pub use model::{LanguageModel, TreeSlice};
pub use sampling::{Sampler, SamplingSettings};
