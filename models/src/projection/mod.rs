//! Linear maps of the decoder: dense or compressed, one file a kind, all with the shapes of `nn::Linear`.

mod basis;
mod expansions;
mod folded;
mod group;
mod group_head;
mod identity;
mod low_rank;
mod matrix;
mod quantized;
#[cfg(test)]
mod tests;

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use crate::ops;

pub use basis::Basis;
pub use group::ProjectionGroup;
pub use group_head::GroupHeads;
pub use identity::IdentityBasis;
pub use low_rank::LowRank;
pub use matrix::Matrix;
pub use quantized::BlockLinear;
pub(crate) use quantized::Parts;

/// One linear map `y = W x (+ b)` of the decoder, in whichever form a pass left it.
///
/// Every kind maps `[..., in]` to `[..., out]` and can be turned back into one dense
/// [`Linear`] with [`Projection::to_dense`].
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a layer has seven, and the matrices dwarf them"
)]
pub enum Projection {
    /// The matrix itself.
    Dense(Linear),
    /// `W ≈ B A`, with an identity block in A or without: see [`LowRank`].
    LowRank(LowRank),
    /// 2 to 8 bits a weight: see [`BlockLinear`].
    Quantized(BlockLinear),
}

impl Projection {
    /// Applies the map: `[..., in]` to `[..., out]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Projection::Dense(linear) => linear_forward(linear, input),
            Projection::LowRank(low_rank) => low_rank.forward(input),
            Projection::Quantized(blocks) => blocks.forward(input),
        }
    }

    /// The same map as one dense [`Linear`] (weight `[in, out]`); factors are multiplied out, codes turned to values.
    pub fn to_dense(&self) -> Linear {
        match self {
            Projection::Dense(linear) => linear.clone(),
            Projection::LowRank(low_rank) => low_rank.to_dense(),
            Projection::Quantized(blocks) => blocks.to_dense(),
        }
    }

    /// `(out, in)` of the map.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Projection::Dense(linear) => {
                let shape = linear.weight.lazy_shape();
                (shape[1], shape[0])
            }
            Projection::LowRank(l) => (l.expansion.shape().0, l.basis.input()),
            Projection::Quantized(blocks) => blocks.shape(),
        }
    }

    /// Rank of the factorization; none when dense.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Projection::Dense(_) | Projection::Quantized(_) => None,
            Projection::LowRank(l) => Some(l.rank()),
        }
    }

    /// Name of the kind, as manifests and tables print it.
    pub fn kind(&self) -> &'static str {
        match self {
            Projection::Dense(_) => "dense",
            Projection::LowRank(low_rank) => match low_rank.basis {
                Basis::Dense(_) => "low-rank",
                Basis::Identity(_) => "identity-block",
            },
            Projection::Quantized(_) => "quantized",
        }
    }

    /// Stored scalars of the map, bias not counted.
    pub fn scalars(&self) -> u64 {
        let count = |(out, input): (usize, usize)| (out * input) as u64;
        match self {
            Projection::LowRank(l) => l.basis.scalars() + count(l.expansion.shape()),
            _ => count(self.shape()),
        }
    }
}

impl From<Matrix> for Projection {
    fn from(matrix: Matrix) -> Self {
        match matrix {
            Matrix::Float(linear) => Projection::Dense(linear),
            Matrix::Blocks(blocks) => Projection::Quantized(blocks),
        }
    }
}

impl From<Linear> for Projection {
    fn from(linear: Linear) -> Self {
        Projection::Dense(linear)
    }
}

/// `x W + b`: `[..., in]` to `[..., out]`.
pub(crate) fn linear_forward<const D: usize>(linear: &Linear, input: Tensor<D>) -> Tensor<D> {
    flattened(input, |x| {
        let y = ops::linear(x, linear.weight.val());
        match &linear.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    })
}

/// Applies a map of rows, `[rows, in]` to `[rows, out]`, to the last dimension of `[..., in]`.
pub(crate) fn flattened<const D: usize>(
    input: Tensor<D>,
    map: impl FnOnce(Tensor<2>) -> Tensor<2>,
) -> Tensor<D> {
    let mut dims = input.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let output = map(input.reshape([rows, dims[D - 1]]));
    dims[D - 1] = output.dims()[1];
    output.reshape(dims)
}
