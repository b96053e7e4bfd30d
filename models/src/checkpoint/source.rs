//! Lazy access to the tensors of a checkpoint, whatever file they are in.

use burn::tensor::{Bytes, DType};

use crate::error::Result;

/// What a checkpoint says of one tensor, without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Shape as Hugging Face stores it: a linear map is `[out, in]`.
    pub shape: Vec<usize>,
    /// The stored type in the format's own words (`F32`, `BF16`, `Q4_1`, ...).
    pub dtype: String,
    /// Bytes it takes on disk.
    pub bytes: u64,
}

/// A checkpoint that is read one tensor at a time. Names are Hugging Face's
/// (`model.layers.0.self_attn.q_proj.weight`), whatever the file calls them.
pub trait TensorSource: Send + Sync {
    /// Every tensor, sorted by name.
    fn names(&self) -> Vec<String>;
    /// Shape and stored type of one tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;
    /// The values of one tensor in f32, row-major. Allocates that tensor and at most its stored bytes.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>>;
    /// The values of one tensor of 32-bit whole numbers.
    fn read_i32(&self, name: &str) -> Result<Vec<i32>>;
    /// The stored bytes of one tensor, little-endian.
    fn read_bytes(&self, name: &str) -> Result<Vec<u8>>;
    /// The values of one tensor where they lie in the file, if it stores them as `dtype` and can be mapped.
    fn mapped(&self, name: &str, dtype: DType) -> Option<Bytes>;
}
