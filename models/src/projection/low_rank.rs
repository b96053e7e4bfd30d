//! `W ≈ B A`: two thin matrices in place of one.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::{Basis, IdentityBasis, Matrix};
use crate::ops;

/// A factorization `W ≈ B A` of rank r, applied as `B (A x) + b`.
///
/// Stores `r (in + out)` scalars, or `r (in + out - r)` with an identity block in the basis, and costs as many
/// multiplications a token.
#[derive(Module, Debug)]
pub struct LowRank {
    /// The basis A: `[in]` to `[rank]`, without bias.
    pub basis: Basis,
    /// The expansion B: `[rank]` to `[out]`, with the bias of the dense map.
    pub expansion: Matrix,
}

impl LowRank {
    /// Factors in Burn's layout: `basis` is `[in, r]`, `expansion` is `[r, out]`, `bias` is `[out]`.
    pub fn new(basis: Tensor<2>, expansion: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        LowRank {
            basis: Matrix::from(linear(basis, None)).into(),
            expansion: linear(expansion, bias).into(),
        }
    }

    /// An identity block's factors in Burn's layout: `weight` is `[in - r, r]` (see [`IdentityBasis::new`]), `expansion` is
    /// `[r, out]`, `bias` is `[out]`.
    ///
    /// # Panics
    /// As [`IdentityBasis::new`].
    pub fn with_identity(
        pivots: &[usize],
        input: usize,
        weight: Tensor<2>,
        expansion: Tensor<2>,
        bias: Option<Tensor<1>>,
    ) -> Self {
        LowRank {
            basis: IdentityBasis::new(pivots, input, weight).into(),
            expansion: linear(expansion, bias).into(),
        }
    }

    /// Applies the map: `[..., in]` to `[..., out]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.expansion.forward(self.basis.forward(input))
    }

    /// The number of latent values between the two factors.
    pub fn rank(&self) -> usize {
        self.basis.rank()
    }

    /// The product as one dense [`Linear`] of weight `[in, out]`, in f32.
    pub fn to_dense(&self) -> Linear {
        let (basis, expansion) = (self.basis.to_dense(), self.expansion.to_dense());
        let f32 = |weight: &Param<Tensor<2>>| weight.val().cast(DType::F32);
        Linear {
            weight: Param::from_tensor(f32(&basis.weight).matmul(f32(&expansion.weight))),
            bias: expansion.bias,
        }
    }
}

fn linear(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Linear {
    Linear {
        weight: Param::from_tensor(ops::by_output(weight)),
        bias: bias.map(Param::from_tensor),
    }
}
