//! Linear maps of the decoder: dense or compressed, one file a kind, all with the shapes of `nn::Linear`.

mod group;
mod low_rank;

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

pub use group::ProjectionGroup;
pub use low_rank::LowRank;

/// One linear map `y = W x (+ b)` of the decoder, in whichever form a pass left it.
///
/// Every kind maps `[..., in]` to `[..., out]` and can be turned back into one dense
/// [`Linear`] with [`Projection::to_dense`].
#[derive(Module, Debug)]
pub enum Projection {
    /// The matrix itself.
    Dense(Linear),
    /// `W ≈ B A`: see [`LowRank`].
    LowRank(LowRank),
}

impl Projection {
    /// Applies the map: `[..., in]` to `[..., out]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Projection::Dense(linear) => linear_forward(linear, input),
            Projection::LowRank(low_rank) => low_rank.forward(input),
        }
    }

    /// The same map as one dense [`Linear`] (weight `[in, out]`); factors are multiplied out.
    pub fn to_dense(&self) -> Linear {
        match self {
            Projection::Dense(linear) => linear.clone(),
            Projection::LowRank(low_rank) => low_rank.to_dense(),
        }
    }

    /// `(out, in)` of the map.
    pub fn shape(&self) -> (usize, usize) {
        let (input, output) = match self {
            Projection::Dense(linear) => (&linear.weight, &linear.weight),
            Projection::LowRank(l) => (&l.basis.weight, &l.expansion.weight),
        };
        (output.lazy_shape()[1], input.lazy_shape()[0])
    }

    /// Rank of the factorization; none when dense.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Projection::Dense(_) => None,
            Projection::LowRank(l) => Some(l.rank()),
        }
    }

    /// Name of the kind, as manifests and tables print it.
    pub fn kind(&self) -> &'static str {
        match self {
            Projection::Dense(_) => "dense",
            Projection::LowRank(_) => "low-rank",
        }
    }

    /// Stored scalars of the map, bias not counted.
    pub fn scalars(&self) -> u64 {
        let count = |linear: &Linear| linear.weight.lazy_shape().num_elements() as u64;
        match self {
            Projection::Dense(linear) => count(linear),
            Projection::LowRank(l) => count(&l.basis) + count(&l.expansion),
        }
    }
}

impl From<Linear> for Projection {
    fn from(linear: Linear) -> Self {
        Projection::Dense(linear)
    }
}

/// `x W + b` on the flattened input.
///
/// A rank-3 `Linear` reshapes the weight at every call, which on the flex backend copies any
/// weight that is not contiguous; a rank-2 product never does.
pub(crate) fn linear_forward<const D: usize>(linear: &Linear, input: Tensor<D>) -> Tensor<D> {
    let mut dims = input.dims();
    let [d_in, d_out] = linear.weight.val().dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let mut output = input.reshape([rows, d_in]).matmul(linear.weight.val());
    if let Some(bias) = &linear.bias {
        output = output + bias.val().unsqueeze();
    }
    dims[D - 1] = d_out;
    output.reshape(dims)
}
