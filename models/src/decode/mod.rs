//! Text generation: sampling, one token after another.

mod autoregressive;
mod model;
pub mod offload;
mod sampling;

pub use autoregressive::{Generation, generate, generate_with};
pub use model::{LanguageModel, TreeSlice};
pub use sampling::{Sampler, SamplingSettings};
