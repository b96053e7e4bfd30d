//! The same keep ratio everywhere.

use super::fill::fill;
use super::{Alternative, Choice, first_alternatives, single};

/// Keeps `keep` of the scalars of every matrix, of each site's first alternative.
///
/// The budget is `floor(keep · Σ out·in)` scalars. Each matrix first gets the largest rank within its own share, or its
/// smallest; what the roundings leave over buys single steps, the matrices nearest to their next rank first, until no
/// step fits. The total exceeds the budget only when the smallest sizes do.
pub fn uniform(sites: &[Vec<Alternative>], keep: f64) -> Vec<Choice> {
    let (ladders, ranges) = single(sites);
    let total: u64 = ladders.iter().map(|l| l.dense).sum();
    let budget = (keep * total as f64).floor() as u64;
    let share = |i: usize| keep * ladders[i].dense as f64;
    let mut rungs: Vec<usize> = (0..ladders.len())
        .map(|i| ladders[i].below(share(i)))
        .collect();
    let missing: Vec<f64> = (0..ladders.len())
        .map(|i| share(i) - ladders[i].rungs[rungs[i]].scalars as f64)
        .collect();
    let step = |i: usize| ladders[i].dense as f64 / ladders[i].rungs.len() as f64;
    fill(&ladders, &mut rungs, budget, |i| missing[i] / step(i));
    first_alternatives(&rungs, &ranges)
}

#[cfg(test)]
mod tests {
    use super::super::{Ladder, Matrix, Ranks};
    use super::*;

    fn sizes(out: usize, input: usize, count: usize, keep: f64) -> Vec<Option<usize>> {
        let matrix = Matrix {
            out,
            input,
            identity: false,
        };
        let ladder = Ladder::of_ranks(matrix, Ranks::ALL, &[]);
        let site = vec![Alternative {
            ladders: vec![ladder.clone(); count],
            scalars: 0,
            loss: 0.0,
        }];
        let choice = uniform(&[site], keep).remove(0);
        choice.rungs.iter().map(|r| ladder.rungs[*r].size).collect()
    }

    #[test]
    fn keeping_everything_is_dense() {
        assert_eq!(sizes(8, 8, 1, 1.0), [None]);
    }

    #[test]
    fn known_ranks() {
        // floor(0.8 · 576² / 1152) = 230.4 → 230, and the remainders of five such matrices (0.4 each) buy two more.
        let ranks: Vec<usize> = sizes(576, 576, 5, 0.8).into_iter().flatten().collect();
        assert_eq!(ranks, [231, 231, 230, 230, 230]);
    }
}
