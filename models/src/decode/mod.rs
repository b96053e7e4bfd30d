//! Text generation: sampling, one token after another.

mod autoregressive;
mod sampling;

pub use autoregressive::{Generation, generate};
pub use sampling::{Sampler, SamplingSettings};
