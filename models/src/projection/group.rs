//! Projections that read the same input.

use burn::module::Module;
use burn::tensor::Tensor;

use super::Projection;

/// The projections of one site: they read the same input, so a pass may treat them together.
#[derive(Module, Debug)]
pub struct ProjectionGroup {
    /// In the order of the site's name: `q k v`, or `gate up`.
    pub members: Vec<Projection>,
}

impl ProjectionGroup {
    /// Applies every member to the same `[..., in]` input; outputs are in the members' order.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Vec<Tensor<D>> {
        self.members
            .iter()
            .map(|member| member.forward(input.clone()))
            .collect()
    }
}
