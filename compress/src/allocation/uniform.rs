//! The same keep ratio everywhere.

use super::Matrix;

/// Ranks that keep `keep` of the scalars of every matrix; none means dense.
///
/// The budget is `floor(keep · Σ out·in)` scalars. Each matrix first gets the largest rank within its own
/// share; what the roundings leave over buys single ranks, the matrices nearest to their next rank first, until
/// the rest is less than the cheapest rank. The total is never over the budget. A keep ratio of 1 leaves
/// everything dense, and so does a rank that would cost as much as the dense matrix.
pub fn uniform(matrices: &[Matrix], keep: f64) -> Vec<Option<usize>> {
    if keep >= 1.0 {
        return vec![None; matrices.len()];
    }
    let share = |m: &Matrix| keep * m.dense() as f64;
    let total: u64 = matrices.iter().map(|m| m.dense()).sum();
    let budget = (keep * total as f64).floor() as u64;
    let mut ranks: Vec<usize> = matrices
        .iter()
        .map(|m| ((share(m) / m.rank_cost() as f64) as usize).max(1))
        .collect();
    let spent = |ranks: &[usize]| -> u64 {
        ranks
            .iter()
            .zip(matrices)
            .map(|(r, m)| *r as u64 * m.rank_cost())
            .sum()
    };
    let mut left = budget.saturating_sub(spent(&ranks));
    let mut order: Vec<usize> = (0..matrices.len()).collect();
    let missing = |i: usize| {
        let exact = share(&matrices[i]) / matrices[i].rank_cost() as f64;
        exact - exact.floor()
    };
    order.sort_by(|a, b| missing(*b).total_cmp(&missing(*a)).then(a.cmp(b)));
    loop {
        let mut bought = false;
        for &i in &order {
            let m = matrices[i];
            let room = (ranks[i] as u64 + 1) * m.rank_cost() < m.dense();
            if room && m.rank_cost() <= left {
                ranks[i] += 1;
                left -= m.rank_cost();
                bought = true;
            }
        }
        if !bought {
            break;
        }
    }
    ranks
        .into_iter()
        .zip(matrices)
        .map(|(rank, m)| (rank as u64 * m.rank_cost() < m.dense()).then_some(rank))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scalars(matrices: &[Matrix], ranks: &[Option<usize>]) -> u64 {
        matrices
            .iter()
            .zip(ranks)
            .map(|(m, r)| r.map_or(m.dense(), |r| r as u64 * m.rank_cost()))
            .sum()
    }

    proptest! {
        #[test]
        fn the_budget_is_met_within_one_rank(
            sizes in prop::collection::vec((24usize..400, 24usize..400), 1..30),
            keep in 0.2f64..0.999,
        ) {
            let matrices: Vec<Matrix> = sizes.iter().map(|(out, input)| Matrix { out: *out, input: *input }).collect();
            let budget = (keep * matrices.iter().map(|m| m.dense()).sum::<u64>() as f64).floor() as u64;
            let ranks = uniform(&matrices, keep);
            let used = scalars(&matrices, &ranks);
            prop_assert!(used <= budget, "{used} > {budget}");
            // Another rank fits nowhere, unless every matrix is at its largest useful rank.
            let cheapest = matrices.iter().zip(&ranks)
                .filter(|(m, r)| r.is_some_and(|r| (r as u64 + 1) * m.rank_cost() < m.dense()))
                .map(|(m, _)| m.rank_cost())
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
