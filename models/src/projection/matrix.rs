//! One stored matrix, in whichever precision it is kept.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::{BlockLinear, linear_forward};

/// A factor of a factorization: floating-point numbers or codes.
#[derive(Module, Debug)]
pub enum Matrix {
    /// f32, f16 or bf16, as the weight's element type says.
    Float(Linear),
    /// Codes in blocks.
    Blocks(BlockLinear),
}

impl Matrix {
    /// Applies the map: `[..., in]` to `[..., out]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Matrix::Float(linear) => linear_forward(linear, input),
            Matrix::Blocks(blocks) => blocks.forward(input),
        }
    }

    /// The same map as a [`Linear`] of weight `[in, out]`.
    pub fn to_dense(&self) -> Linear {
        match self {
            Matrix::Float(linear) => linear.clone(),
            Matrix::Blocks(blocks) => blocks.to_dense(),
        }
    }

    /// `(out, in)` of the map.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Matrix::Float(linear) => {
                let shape = linear.weight.lazy_shape();
                (shape[1], shape[0])
            }
            Matrix::Blocks(blocks) => blocks.shape(),
        }
    }
}

impl From<Linear> for Matrix {
    fn from(linear: Linear) -> Self {
        Matrix::Float(linear)
    }
}
