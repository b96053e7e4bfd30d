//! The values' expansions folded into the output projection, which then reads weighted latents.
//!
//! Weighted values are linear in the latents, and so is what the output projection makes of them: for each query head,
//! `W_o,h (B_g Σ p z) = (W_o,h B_g) Σ p z` (Palu, Chang et al. 2024, arXiv 2407.21118, §3.2). Where a group's rank is below the
//! width of a head, the product has fewer inputs than `W_o` had. What values' biases add does not depend on the weights, since
//! these sum to one: it goes to the output's bias.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::expansions::Expansions;
use super::{Basis, GroupHeads, LowRank, Matrix, Projection};
use crate::ops;

impl GroupHeads {
    /// The output projection that reads weighted latents, `[Σ heads × rank]` to `[hidden]`, of one that reads weighted values;
    /// from then on [`GroupHeads::narrowed`] gives its input. What is folded rounds once more, to the type of `output`.
    ///
    /// # Errors
    /// Why it can not be done, with nothing changed: a rank above the width of a head, or an output projection whose inputs are
    /// codes or pass through as they are.
    pub(crate) fn fold_values(
        &mut self,
        output: &Projection,
        head_dim: usize,
    ) -> Result<Projection, String> {
        if self.folded {
            return Ok(output.clone());
        }
        if let Some(rank) = self.value_ranks().find(|rank| *rank > head_dim) {
            return Err(format!(
                "its values have a latent of {rank}, more than the {head_dim} of a head"
            ));
        }
        let (_, input) = output.shape();
        let bias = || {
            let bias = self.weighted_bias(input / head_dim, head_dim)?;
            let through = output.forward(bias.unsqueeze::<2>());
            Some(through.reshape([-1]))
        };
        let fold = |reads: &Linear, bias| Linear {
            weight: Param::from_tensor(self.fold(reads.weight.val(), head_dim)),
            bias,
        };
        let folded = match output {
            Projection::Dense(linear) => {
                let bias = bias().map(Param::from_tensor).or(linear.bias.clone());
                fold(linear, bias).into()
            }
            Projection::LowRank(LowRank {
                basis: Basis::Dense(Matrix::Float(reads)),
                expansion: Matrix::Float(expansion),
            }) => Projection::LowRank(LowRank {
                basis: Matrix::from(fold(reads, None)).into(),
                expansion: Linear {
                    weight: expansion.weight.clone(),
                    bias: bias().map(Param::from_tensor).or(expansion.bias.clone()),
                }
                .into(),
            }),
            other => {
                return Err(format!(
                    "its output projection is stored as {}, which values can not be folded into",
                    other.kind()
                ));
            }
        };
        let device = self.values[0].to_dense().weight.val().device();
        for group in &mut self.values {
            let (out, rank) = group.shape();
            // Ones where a head's first channels are the latent: the kernels know no other form.
            let first = Tensor::<2>::eye(rank, &device);
            let none = Tensor::zeros([rank, head_dim - rank], &device);
            let head = Tensor::cat(vec![first, none], 1);
            let heads = head.repeat_dim(1, out / head_dim);
            *group = Linear {
                weight: Param::from_tensor(ops::by_output(heads)),
                bias: None,
            }
            .into();
        }
        self.prepared = Expansions::default();
        self.folded = true;
        Ok(folded)
    }

    /// Whether folding leaves the output projection half its inputs or fewer. Latents are then summed for prompts too,
    /// so that nothing becomes slower.
    pub(crate) fn folding_pays(&self, head_dim: usize) -> bool {
        !self.folded && self.value_ranks().all(|rank| 2 * rank <= head_dim)
    }

    fn value_ranks(&self) -> impl Iterator<Item = usize> {
        self.values.iter().map(|group| group.shape().1)
    }

    /// What the output projection reads, `[batch * tokens, inputs]`, of attention's `[batch, tokens, heads, head_dim]`.
    pub fn narrowed(&self, mixed: Tensor<4>) -> Tensor<2> {
        let [batch, tokens, heads, head_dim] = mixed.dims();
        let rows = batch * tokens;
        if !self.folded {
            return mixed.reshape([rows, heads * head_dim]);
        }
        let kv_heads: usize = self.values.iter().map(|v| v.shape().0 / head_dim).sum();
        let mut start = 0;
        let parts = self.values.iter().map(|group| {
            let (out, rank) = group.shape();
            let count = out / head_dim * (heads / kv_heads);
            let of_group = mixed.clone().narrow(2, start, count).narrow(3, 0, rank);
            start += count;
            of_group.reshape([rows, count * rank])
        });
        Tensor::cat(parts.collect(), 1)
    }

    /// Rows of `weight` `[heads * head_dim, out]`, which read weighted values, as rows that read weighted latents.
    fn fold(&self, weight: Tensor<2>, head_dim: usize) -> Tensor<2> {
        let dtype = weight.dtype();
        let weight = weight.cast(DType::F32);
        let heads = weight.dims()[0] / head_dim;
        let group = heads / self.value_heads(head_dim).count();
        let rows = self
            .value_heads(head_dim)
            .enumerate()
            .flat_map(|(kv, expansion)| {
                let weight = &weight;
                (kv * group..(kv + 1) * group).map(move |head| {
                    let reads = weight.clone().narrow(0, head * head_dim, head_dim);
                    expansion.clone().matmul(reads)
                })
            });
        ops::by_output(Tensor::cat(rows.collect(), 0).cast(dtype))
    }

    /// Expansions `[rank, head_dim]` of the value heads, in f32.
    fn value_heads(&self, head_dim: usize) -> impl Iterator<Item = Tensor<2>> {
        self.values.iter().flat_map(move |group| {
            let weight = group.to_dense().weight.val().cast(DType::F32);
            let heads = weight.dims()[1] / head_dim;
            (0..heads).map(move |head| weight.clone().narrow(1, head * head_dim, head_dim))
        })
    }

    /// The values' biases as attention's output has them, `[heads * head_dim]`.
    fn weighted_bias(&self, heads: usize, head_dim: usize) -> Option<Tensor<1>> {
        let group = heads / self.value_heads(head_dim).count();
        let biases = self.values.iter().map(|v| Some(v.to_dense().bias?.val()));
        let bias = Tensor::cat(biases.collect::<Option<Vec<_>>>()?, 0);
        let heads = bias.reshape([-1, 1, head_dim as i32]).repeat_dim(1, group);
        Some(heads.reshape([-1]))
    }
}
