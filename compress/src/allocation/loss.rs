//! The least loss for the budget: structure and rank of every site together.

use super::lagrangian::lagrangian;
use super::{Alternative, Choice};

/// Picks the alternatives and rungs of least total loss within `budget` scalars, when losses are in one unit: the
/// second-order estimate of what the training loss gains (frontier.md §10).
///
/// At one multiplier λ each site takes the alternative and ranks of least `loss + λ · scalars`; λ is the smallest that
/// meets the budget, and single steps of most gain a scalar spend the rest. With an identity block a rank costs
/// `m + n - 2r` more than the one before, which the ladders have as it is.
pub fn loss(sites: &[Vec<Alternative>], budget: u64) -> Vec<Choice> {
    lagrangian(sites, budget)
}
