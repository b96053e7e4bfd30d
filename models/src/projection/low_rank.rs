//! `W ≈ B A`: two thin matrices in place of one.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::Matrix;
use crate::ops;

/// A factorization `W ≈ B A` of rank r, applied as `B (A x) + b`.
///
/// Stores `r (in + out)` scalars, and costs as many multiplications a token.
#[derive(Module, Debug)]
pub struct LowRank {
    /// The basis A: `[in]` to `[rank]`, without bias.
    pub basis: Matrix,
    /// The expansion B: `[rank]` to `[out]`, with the bias of the dense map.
    pub expansion: Matrix,
}

impl LowRank {
    /// Factors in Burn's layout: `basis` is `[in, r]`, `expansion` is `[r, out]`, `bias` is `[out]`.
    pub fn new(basis: Tensor<2>, expansion: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        let linear = |weight, bias: Option<Tensor<1>>| Linear {
            weight: Param::from_tensor(ops::by_output(weight)),
            bias: bias.map(Param::from_tensor),
        };
        LowRank {
            basis: linear(basis, None).into(),
            expansion: linear(expansion, bias).into(),
        }
    }

    /// Applies the map: `[..., in]` to `[..., out]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.expansion.forward(self.basis.forward(input))
    }

    /// The number of latent values between the two factors.
    pub fn rank(&self) -> usize {
        self.basis.shape().0
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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::projection::Projection;

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn forward_equals_the_dense_form(m in 1usize..24, n in 1usize..24, r in 1usize..12, bias: bool) {
            let low_rank = LowRank::new(random([n, r]), random([r, m]), bias.then(|| random([m])));
            let projection = Projection::LowRank(low_rank);
            let x = random([2, 3, n]);
            let dense = Projection::from(projection.to_dense());
            prop_assert_eq!(projection.shape(), (m, n));
            prop_assert_eq!(dense.shape(), (m, n));
            prop_assert_eq!(projection.scalars(), (r * (m + n)) as u64);
            projection.forward(x.clone()).into_data().assert_approx_eq::<f32>(
                &dense.forward(x).into_data(),
                Tolerance::relative(1e-4).set_absolute(1e-5),
            );
        }
    }
}
