//! The same keep ratio everywhere.

use super::Matrix;

/// Ranks that keep `keep` of the scalars of every matrix; none means dense.
///
/// The budget is `floor(keep · Σ out·in)` scalars. Each matrix first gets the largest rank within its own share, at least
/// one; what the roundings leave over buys single steps, the matrices nearest to their next rank first, until no step
/// fits. A step is one more rank, or, where that would cost as much as the dense matrix, the dense matrix itself. The
/// total exceeds the budget only when the least there is, rank one (or dense where even that is smaller), does.
pub fn uniform(matrices: &[Matrix], keep: f64) -> Vec<Option<usize>> {
    if keep >= 1.0 {
        return vec![None; matrices.len()];
    }
    let total: u64 = matrices.iter().map(|m| m.dense()).sum();
    let budget = (keep * total as f64).floor() as u64;
    let exact = |m: &Matrix| keep * m.dense() as f64 / m.rank_cost() as f64;
    let mut ranks: Vec<Option<usize>> = matrices
        .iter()
        .map(|m| Some((exact(m) as usize).max(1)).filter(|rank| m.stored(Some(*rank)) < m.dense()))
        .collect();
    let mut spent: u64 = matrices.iter().zip(&ranks).map(|(m, r)| m.stored(*r)).sum();
    // Small matrices that can not do with less than one rank take it from the largest ranks.
    while spent > budget {
        let largest = (0..ranks.len()).max_by_key(|i| ranks[*i]);
        let Some((i, rank)) = largest
            .and_then(|i| ranks[i].map(|r| (i, r)))
            .filter(|(_, r)| *r > 1)
        else {
            break;
        };
        ranks[i] = Some(rank - 1);
        spent -= matrices[i].rank_cost();
    }
    let mut left = budget.saturating_sub(spent);
    let mut order: Vec<usize> = (0..matrices.len()).collect();
    let missing = |i: usize| exact(&matrices[i]).fract();
    order.sort_by(|a, b| missing(*b).total_cmp(&missing(*a)).then(a.cmp(b)));
    loop {
        let before = left;
        for &i in &order {
            let m = matrices[i];
            let next = m.next(ranks[i]);
            let cost = m.stored(next) - m.stored(ranks[i]);
            if cost <= left {
                ranks[i] = next;
                left -= cost;
            }
        }
        if left == before {
            return ranks;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scalars(matrices: &[Matrix], ranks: &[Option<usize>]) -> u64 {
        matrices.iter().zip(ranks).map(|(m, r)| m.stored(*r)).sum()
    }

    proptest! {
        #[test]
        fn the_budget_is_met_within_one_step(
            sizes in prop::collection::vec((1usize..400, 1usize..400), 1..30),
            keep in 0.01f64..0.9999,
        ) {
            let matrices: Vec<Matrix> = sizes.iter().map(|(out, input)| Matrix { out: *out, input: *input }).collect();
            let budget = (keep * matrices.iter().map(|m| m.dense()).sum::<u64>() as f64).floor() as u64;
            let ranks = uniform(&matrices, keep);
            let used = scalars(&matrices, &ranks);
            if used > budget {
                prop_assert!(ranks.iter().all(|r| r.is_none_or(|r| r == 1)));
                return Ok(());
            }
            let cheapest = matrices.iter().zip(&ranks)
                .map(|(m, r)| m.stored(m.next(*r)) - m.stored(*r))
                .filter(|cost| *cost > 0)
                .min();
            if let Some(cost) = cheapest {
                prop_assert!(budget - used < cost, "{} left of {budget}", budget - used);
            }
        }
    }

    #[test]
    fn keeping_everything_is_dense() {
        assert_eq!(uniform(&[Matrix { out: 8, input: 8 }], 1.0), [None]);
    }

    #[test]
    fn known_ranks() {
        // floor(0.8 · 576² / 1152) = 230.4 → 230, and the remainders of five such matrices (0.4 each) buy two more.
        let m = Matrix {
            out: 576,
            input: 576,
        };
        let ranks: Vec<usize> = uniform(&[m; 5], 0.8).into_iter().flatten().collect();
        assert_eq!(ranks, [231, 231, 230, 230, 230]);
    }
}
