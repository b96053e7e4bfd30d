//! From the inputs of a site to a latent: the first half of a factorization.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::{IdentityBasis, Matrix};

/// The basis A of `W ≈ B A`, as it is stored: `[in]` to `[rank]`, without bias.
#[derive(Module, Debug)]
pub enum Basis {
    /// Every entry: `r n` scalars for rank r of n inputs.
    Dense(Matrix),
    /// r inputs pass through as they are: `r (n - r)` scalars. See [`IdentityBasis`].
    Identity(IdentityBasis),
}

impl Basis {
    /// Applies the map: `[..., in]` to `[..., rank]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Basis::Dense(matrix) => matrix.forward(input),
            Basis::Identity(identity) => identity.forward(input),
        }
    }

    /// The number of latent values.
    pub fn rank(&self) -> usize {
        match self {
            Basis::Dense(matrix) => matrix.shape().0,
            Basis::Identity(identity) => identity.rank(),
        }
    }

    /// The number of inputs.
    pub fn input(&self) -> usize {
        match self {
            Basis::Dense(matrix) => matrix.shape().1,
            Basis::Identity(identity) => identity.input(),
        }
    }

    /// Stored scalars: `r n`, or `r (n - r)` with an identity block. Pivots are indices and not counted.
    pub fn scalars(&self) -> u64 {
        match self {
            Basis::Dense(_) => (self.rank() * self.input()) as u64,
            Basis::Identity(_) => (self.rank() * (self.input() - self.rank())) as u64,
        }
    }

    /// The same map as a [`Linear`] of weight `[in, rank]`, in f32.
    pub fn to_dense(&self) -> Linear {
        match self {
            Basis::Dense(matrix) => Linear {
                weight: Param::from_tensor(matrix.to_dense().weight.val().cast(DType::F32)),
                bias: None,
            },
            Basis::Identity(identity) => identity.to_dense(),
        }
    }
}

impl From<Matrix> for Basis {
    fn from(matrix: Matrix) -> Self {
        Basis::Dense(matrix)
    }
}

impl From<IdentityBasis> for Basis {
    fn from(identity: IdentityBasis) -> Self {
        Basis::Identity(identity)
    }
}
