//! Checkpoints in and out.

mod source;

pub use source::{TensorInfo, TensorSource};
