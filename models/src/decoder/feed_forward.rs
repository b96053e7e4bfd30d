//! The gated feed-forward (SwiGLU; Shazeer 2020, arXiv 2002.05202).

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Observer, Site};
use crate::ops;
use crate::projection::{Projection, ProjectionGroup};

/// `down(silu(gate x) * up x)`, of the configuration's neurons or fewer.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// Gate and up.
    pub gate_up: ProjectionGroup,
    pub down: Projection,
}

impl FeedForward {
    /// `[batch, tokens, hidden]` to the same.
    pub fn forward(&self, input: Tensor<3>, observe: Observer) -> Tensor<3> {
        let [batch, tokens, hidden] = input.dims();
        let flat = input.reshape([batch * tokens, hidden]);
        observe(Site::GateUp, &flat);
        let neurons = self.neurons(flat);
        observe(Site::Down, &neurons);
        self.down
            .forward(neurons)
            .reshape([batch as i32, tokens as i32, -1])
    }

    /// The first stage of [`FeedForward::forward`]: from the normalised `[tokens, hidden]` to the input of the down
    /// projection, `[tokens, neurons]`.
    pub fn neurons(&self, normed: Tensor<2>) -> Tensor<2> {
        let mut gate_up = self.gate_up.forward(normed).into_iter();
        let mut next = || gate_up.next().expect("the gate_up site has two members");
        ops::swiglu(next(), next())
    }
}
