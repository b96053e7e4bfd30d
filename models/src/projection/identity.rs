//! A basis with an identity block: some inputs pass through as they are.

use burn::module::{Module, Param, ParamId};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{Matrix, flattened};
use crate::ops;

/// `h = x_J + A' x_N`: the latent of r pivot inputs J and the other inputs N, both in ascending order.
///
/// Any `W ≈ B A` of rank r whose columns `A_J` can be inverted has this form, with `A' = A_J⁻¹ A_N` and the expansion
/// `B A_J`: the same product, with r² scalars fewer to store and to multiply. Columns come out exact; what is lost is lost
/// to the rank alone (the "Skip" of SkipCat, arXiv 2512.13494; an interpolative decomposition).
#[derive(Module, Debug)]
pub struct IdentityBasis {
    /// J: `[rank]`, i32.
    pivots: Param<Tensor<1, Int>>,
    /// N: `[in - rank]`, i32; none when every input is a pivot. Follows from the pivots and is not stored in files.
    others: Option<Param<Tensor<1, Int>>>,
    /// A': `[in - rank]` to `[rank]`; none when every input is a pivot.
    weight: Option<Matrix>,
}

impl IdentityBasis {
    /// A basis of the pivots among `input` inputs and `weight`, `[in - r, r]` in Burn's layout.
    ///
    /// # Panics
    /// When there are no pivots, they do not ascend or reach past the inputs, or the weight has another shape.
    pub fn new(pivots: &[usize], input: usize, weight: Tensor<2>) -> Self {
        let device = weight.device();
        let rest = input.saturating_sub(pivots.len());
        assert_eq!(
            weight.dims(),
            [rest, pivots.len()],
            "the weight of {} pivots among {input} inputs",
            pivots.len()
        );
        let linear = |weight| Linear {
            weight: Param::from_tensor(ops::by_output(weight)),
            bias: None,
        };
        let matrix = (rest > 0).then(|| linear(weight).into());
        Self::of_matrix(pivots, input, matrix, &device)
    }

    /// As [`IdentityBasis::new`], of A' in whichever precision; none when every input is a pivot.
    ///
    /// # Panics
    /// As [`IdentityBasis::new`].
    pub fn of_matrix(
        pivots: &[usize],
        input: usize,
        weight: Option<Matrix>,
        device: &Device,
    ) -> Self {
        let others = others(pivots, input);
        let shape = weight.as_ref().map(Matrix::shape);
        let wanted = (!others.is_empty()).then_some((pivots.len(), others.len()));
        assert_eq!(shape, wanted, "the weight's (rank, other inputs)");
        let indices = |values: &[usize]| {
            let shape = [values.len()];
            let values: Vec<i32> = values.iter().map(|i| *i as i32).collect();
            let tensor = Tensor::from_data(TensorData::new(values, shape), (device, DType::I32));
            Param::initialized(ParamId::new(), tensor)
        };
        IdentityBasis {
            pivots: indices(pivots),
            others: (!others.is_empty()).then(|| indices(&others)),
            weight,
        }
    }

    /// The same basis with A' in another form.
    ///
    /// # Panics
    /// When its shape is another.
    pub(crate) fn with_weight(&self, weight: Matrix) -> Self {
        let shape = self.weight.as_ref().map(Matrix::shape);
        assert_eq!(
            shape,
            Some(weight.shape()),
            "the weight's (rank, other inputs)"
        );
        IdentityBasis {
            weight: Some(weight),
            ..self.clone()
        }
    }

    /// Applies the map: `[..., in]` to `[..., rank]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        flattened(input, |x| match (&self.others, &self.weight) {
            (Some(others), Some(Matrix::Float(linear))) => {
                ops::identity(x, self.pivots.val(), others.val(), linear.weight.val())
            }
            (Some(others), Some(Matrix::Blocks(blocks))) => {
                ops::block_identity(x, self.pivots.val(), others.val(), blocks.tensors())
            }
            // Every input is a pivot, in order.
            _ => x,
        })
    }

    /// The number of latent values, and of pivots.
    pub fn rank(&self) -> usize {
        self.pivots.lazy_shape()[0]
    }

    /// The number of inputs.
    pub fn input(&self) -> usize {
        self.rank() + self.weight.as_ref().map_or(0, |weight| weight.shape().1)
    }

    /// The pivot inputs J, `[rank]`, ascending.
    pub fn pivots(&self) -> Tensor<1, Int> {
        self.pivots.val()
    }

    /// A': `[in - rank]` to `[rank]`; none when every input is a pivot.
    pub fn weight(&self) -> Option<&Matrix> {
        self.weight.as_ref()
    }

    /// The same map as a [`Linear`] of weight `[in, rank]`, in f32: ones and zeros in the pivots' rows.
    pub fn to_dense(&self) -> Linear {
        let pivots = self.pivots.val();
        let ones = Tensor::<2>::eye(self.rank(), &pivots.device()).cast(DType::F32);
        let weight = match (&self.others, &self.weight) {
            (Some(others), Some(weight)) => {
                let rest = weight.to_dense().weight.val().cast(DType::F32);
                // Where each input's row is among the pivots' and the others'.
                let place = Tensor::cat(vec![pivots, others.val()], 0).argsort(0);
                Tensor::cat(vec![ones, rest], 0).select(0, place)
            }
            _ => ones,
        };
        Linear {
            weight: Param::from_tensor(weight),
            bias: None,
        }
    }
}

/// The inputs that are no pivots, ascending.
fn others(pivots: &[usize], input: usize) -> Vec<usize> {
    assert!(!pivots.is_empty(), "an identity block of no pivots");
    assert!(
        pivots.windows(2).all(|pair| pair[0] < pair[1]) && pivots.iter().all(|i| *i < input),
        "pivots ascend, below {input}"
    );
    let mut is_pivot = vec![false; input];
    for pivot in pivots {
        is_pivot[*pivot] = true;
    }
    (0..input).filter(|i| !is_pivot[*i]).collect()
}
