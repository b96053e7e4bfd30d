//! Checkpoints in and out.

pub mod gguf;
mod source;

pub use source::{TensorInfo, TensorSource};
