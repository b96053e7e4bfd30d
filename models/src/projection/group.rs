//! Projections that read the same input.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::{Basis, Projection};

/// The projections of one site: they read the same input, so a pass may treat them together.
#[derive(Module, Debug)]
pub struct ProjectionGroup {
    /// A basis that all members share: they then map its latent, `[rank]` to `[out]`, instead of the site's input.
    pub basis: Option<Basis>,
    /// In the order of the site's name: `q k v`, or `gate up`.
    pub members: Vec<Projection>,
}

impl ProjectionGroup {
    /// Projections that each read the site's input.
    pub fn new(members: Vec<Projection>) -> Self {
        ProjectionGroup {
            basis: None,
            members,
        }
    }

    /// Projections that read the latent of one basis. They are its expansions, `[rank]` to `[out]`, with the biases of
    /// the dense maps.
    ///
    /// # Panics
    /// When a member does not take as many inputs as the basis has latent values.
    pub fn shared(basis: Basis, members: Vec<Projection>) -> Self {
        for member in &members {
            assert_eq!(member.shape().1, basis.rank(), "a member's input");
        }
        ProjectionGroup {
            basis: Some(basis),
            members,
        }
    }

    /// Applies every member to the same `[..., in]` input; outputs are in the members' order.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Vec<Tensor<D>> {
        self.expand(self.latents(input))
    }

    /// What the members read of the site's input: the latent `[..., rank]` of the basis they share, else the input itself.
    pub fn latents<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        match &self.basis {
            Some(basis) => basis.forward(input),
            None => input,
        }
    }

    /// Applies every member to what [`ProjectionGroup::latents`] gave.
    pub fn expand<const D: usize>(&self, latents: Tensor<D>) -> Vec<Tensor<D>> {
        let members = self.members.iter();
        members
            .map(|member| member.forward(latents.clone()))
            .collect()
    }

    /// Stored scalars of all members and of the basis they share; biases and pivots not counted.
    pub fn scalars(&self) -> u64 {
        let members: u64 = self.members.iter().map(Projection::scalars).sum();
        members + self.basis.as_ref().map_or(0, Basis::scalars)
    }

    /// Each member as one dense [`Linear`] of the site's input, of weight `[in, out]`; in f32 where there are factors to
    /// multiply.
    pub fn to_dense(&self) -> Vec<Linear> {
        let members = self.members.iter().map(Projection::to_dense);
        let Some(basis) = &self.basis else {
            return members.collect();
        };
        let basis = basis.to_dense().weight.val();
        members
            .map(|member| Linear {
                weight: Param::from_tensor(
                    basis.clone().matmul(member.weight.val().cast(DType::F32)),
                ),
                bias: member.bias,
            })
            .collect()
    }
}
