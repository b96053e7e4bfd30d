//! More ranks where the loss is more sensitive to the weights.

use super::fill::fill;
use super::{Alternative, Choice, first_alternatives, single};

/// Keep ratios in proportion to `scores`, one for each ladder of each site's first alternative, capped at dense, so that
/// the whole keeps `keep` (Palu, arXiv 2407.21118, §3.3, where a score is the root of the mean squared gradient of the
/// matrix's weights).
pub fn fisher(sites: &[Vec<Alternative>], scores: &[f64], keep: f64) -> Vec<Choice> {
    let (ladders, ranges) = single(sites);
    let total: u64 = ladders.iter().map(|l| l.dense).sum();
    let budget = (keep * total as f64).floor() as u64;
    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    let ratio = |i: usize, level: f64| match mean > 0.0 {
        true => (scores[i] / mean * level).min(1.0),
        false => level.min(1.0),
    };
    let size = |level: f64| -> f64 {
        let sizes = (0..ladders.len()).map(|i| ratio(i, level) * ladders[i].dense as f64);
        sizes.sum()
    };
    let (mut low, mut high) = (0.0, 1.0);
    // Scores of zero never reach dense, so no level may suffice.
    while size(high) < budget as f64 && high < 1e18 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        match size(middle) <= budget as f64 {
            true => low = middle,
            false => high = middle,
        }
    }
    let mut rungs: Vec<usize> = (0..ladders.len())
        .map(|i| ladders[i].below(ratio(i, low) * ladders[i].dense as f64))
        .collect();
    fill(&ladders, &mut rungs, budget, |i| scores[i]);
    first_alternatives(&rungs, &ranges)
}

#[cfg(test)]
mod tests {
    use super::super::{Ladder, Matrix, Ranks};
    use super::*;

    #[test]
    fn ratios_follow_the_scores_up_to_dense() {
        let matrix = Matrix {
            out: 100,
            input: 100,
            identity: false,
        };
        let site = |()| {
            vec![Alternative {
                ladders: vec![Ladder::of_ranks(matrix, Ranks::ALL, &[])],
                scalars: 0,
                loss: 0.0,
            }]
        };
        let sites: Vec<_> = [(), (), ()].into_iter().map(site).collect();
        let choices = fisher(&sites, &[1.0, 2.0, 30.0], 0.55);
        let sizes: Vec<_> = choices
            .iter()
            .zip(&sites)
            .map(|(c, s)| s[0].ladders[0].rungs[c.rungs[0]].size)
            .collect();
        // 0.65 of one matrix is left for the first two, one part to two.
        assert_eq!(sizes[2], None);
        assert_eq!((sizes[0], sizes[1]), (Some(10), Some(22)));
    }

    /// low-rank.md §1.3's test vector, whose published rule rounds capped shares over all alike; here they stay in
    /// proportion, and the budget is met exactly.
    #[test]
    fn latents_of_known_scores() {
        for (keep, total, expected) in [
            (0.5, 1536, [152, 76, 38, 512, 455, 303]),
            (0.7, 2150, [351, 175, 88, 512, 512, 512]),
        ] {
            let ladder = Ladder::of_latents(512, 4096, Ranks::ALL, &[]);
            let sites = [1.0, 0.5, 0.25, 4.0, 3.0, 2.0].map(|_| {
                vec![Alternative {
                    ladders: vec![ladder.clone()],
                    scalars: 0,
                    loss: 0.0,
                }]
            });
            let choices = fisher(&sites, &[1.0, 0.5, 0.25, 4.0, 3.0, 2.0], keep);
            let ranks = choices.iter().filter_map(|c| ladder.rungs[c.rungs[0]].size);
            let ranks: Vec<usize> = ranks.collect();
            assert_eq!(ranks.iter().sum::<usize>(), total);
            let near = |(a, b): (&usize, usize)| a.abs_diff(b) <= 2;
            assert!(ranks.iter().zip(expected).all(near), "{ranks:?}");
        }
    }
}
