//! Which inputs of a weight can be removed, and what that loses.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, Side};

use super::decompose::times_lower;
use super::{Moment, Weight, Whitening, parallelism};

/// An order in which to remove the inputs of a weight, and the loss at each size.
#[derive(Debug, Clone)]
pub struct Elimination {
    /// Every input, the first removed first, those that were never removed last.
    pub order: Vec<usize>,
    /// How many are kept, falling from all by the step.
    pub kept: Vec<usize>,
    /// The loss with as many, the others refitted: `min ‖L_Gᵀ (W x - W' x_K)‖²`.
    pub loss: Vec<f64>,
    /// `M Mᵀ` of the refitted weight, in the same metric, at each size of the grid that was asked for.
    pub moments: Vec<(usize, Moment)>,
}

/// Removes inputs `step` at a time, always those whose removal costs least when the rest is refitted in closed form
/// (optimal brain surgeon, Hassibi and Stork 1993, on groups; frontier.md §10). `output` is the gradient's moment, or none
/// for the identity.
///
/// What a refitted weight keeps and what it loses are orthogonal in this metric, so a low-rank cut of the refitted weight
/// adds its own loss to that of the removal; `moments` is for such cuts.
///
/// # Errors
/// A sentence when a block of the inverse can not be inverted.
pub fn eliminate(
    weight: &Weight,
    input: &Whitening,
    output: Option<&Whitening>,
    step: usize,
    grid: &[usize],
) -> Result<Elimination, String> {
    let n = weight.m.ncols();
    let mut a = match output {
        Some(output) => output.l.transpose() * &weight.m,
        None => weight.m.clone(),
    };
    let whole = {
        let m = times_lower(&a, &input.l);
        &m * m.transpose()
    };
    let mut inverse = inverse_of_square(&input.l);

    let mut lost = Mat::<f64>::zeros(a.nrows(), a.nrows());
    // Of the inverse only the lower triangle is kept up.
    // Columns of `a` and `inverse` by their input; those in `gone` are removed but not cut out yet.
    let mut alive: Vec<usize> = (0..n).collect();
    let mut gone = vec![false; n];
    let mut result = Elimination {
        order: Vec::with_capacity(n),
        kept: vec![n],
        loss: vec![0.0],
        moments: Vec::new(),
    };
    while n - result.order.len() > step {
        let mut scores: Vec<(f64, usize)> = (0..alive.len())
            .filter(|c| !gone[*c])
            .map(|c| {
                let column = a.col(c);
                (column.squared_norm_l2() / inverse[(c, c)], c)
            })
            .collect();
        scores.sort_by(|x, y| x.0.total_cmp(&y.0).then(x.1.cmp(&y.1)));
        let mut chosen: Vec<usize> = scores[..step].iter().map(|(_, c)| *c).collect();
        result.order.extend(chosen.iter().map(|c| alive[*c]));
        chosen.sort_unstable();

        let block = Mat::from_fn(step, step, |i, j| at(&inverse, chosen[i], chosen[j]));
        let llt = block
            .llt(Side::Lower)
            .map_err(|_| "a block of the inverse Gram is not positive definite".to_owned())?;
        let columns = Mat::from_fn(a.nrows(), step, |i, j| a[(i, chosen[j])]);
        let rows = Mat::from_fn(step, alive.len(), |i, j| at(&inverse, chosen[i], j));
        let solved = llt.solve(&rows);
        lost += &columns * llt.solve(columns.transpose());
        matmul(
            a.as_mut(),
            Accum::Add,
            &columns,
            &solved,
            -1.0,
            parallelism(),
        );
        triangular::matmul(
            inverse.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            rows.transpose(),
            BlockStructure::Rectangular,
            &solved,
            BlockStructure::Rectangular,
            -1.0,
            parallelism(),
        );
        for c in &chosen {
            gone[*c] = true;
            a.col_mut(*c).fill(0.0);
        }
        let kept = n - result.order.len();
        result.kept.push(kept);
        result
            .loss
            .push((0..lost.nrows()).map(|i| lost[(i, i)]).sum());
        if grid.contains(&kept) {
            result
                .moments
                .push((kept, Moment::from_parts(&whole - &lost)));
        }
        // The matrices shrink once a quarter of them is dead.
        if 4 * kept < 3 * alive.len() {
            let stay: Vec<usize> = (0..alive.len()).filter(|c| !gone[*c]).collect();
            a = Mat::from_fn(a.nrows(), stay.len(), |i, j| a[(i, stay[j])]);
            inverse = Mat::from_fn(stay.len(), stay.len(), |i, j| match i >= j {
                true => inverse[(stay[i], stay[j])],
                false => 0.0,
            });
            alive = stay.iter().map(|c| alive[*c]).collect();
            gone = vec![false; alive.len()];
        }
    }
    let left = (0..alive.len()).filter(|c| !gone[*c]).map(|c| alive[c]);
    result.order.extend(left);
    Ok(result)
}

/// `(L Lᵀ)⁻¹`, its lower triangle.
fn inverse_of_square(l: &Mat<f64>) -> Mat<f64> {
    let n = l.nrows();
    let mut inverse = Mat::zeros(n, n);
    let scratch = llt::inverse::inverse_scratch::<f64>(n, parallelism());
    llt::inverse::inverse(
        inverse.as_mut(),
        l.as_ref(),
        parallelism(),
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    inverse
}

/// An entry of a symmetric matrix of which the lower triangle is kept.
fn at(m: &Mat<f64>, i: usize, j: usize) -> f64 {
    m[(i.max(j), i.min(j))]
}

impl Elimination {
    /// The inputs that are left when `count` are kept, ascending.
    pub fn survivors(order: &[usize], count: usize) -> Vec<usize> {
        let mut kept = order[order.len() - count..].to_vec();
        kept.sort_unstable();
        kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_data::{gram, values};
    use super::super::{refit, removal_error, whiten};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn the_loss_is_that_of_the_refitted_weight(m in 1usize..6, n in 4usize..20, step in 1usize..4, seed: u64) {
            let inputs = gram(n, seed);
            let w = Weight::new(&values(m * n, seed ^ 3), m, n);
            let whole = inputs.output_energy(&w);
            let grid: Vec<usize> = (1..n).collect();
            let input = whiten(&inputs, 0.0).expect("definite");
            let e = eliminate(&w, &input, None, step, &grid).expect("definite");
            let mut sorted = e.order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            prop_assert!(e.loss.windows(2).all(|l| l[0] <= l[1] + 1e-12 * whole));
            for (kept, loss) in e.kept.iter().zip(&e.loss) {
                let survivors = Elimination::survivors(&e.order, *kept);
                let (subset, cross) = (inputs.subset(&survivors), inputs.columns(&survivors));
                let input = whiten(&subset, 0.0).expect("definite");
                let less = refit(&w, &cross, &input, &survivors);
                let error = removal_error(&w, &inputs, &less, &cross, &subset);
                prop_assert!((error * error * whole - loss).abs() < 1e-8 * whole, "{error} {loss}");
                if let Some((_, moment)) = e.moments.iter().find(|(k, _)| k == kept) {
                    let direct = Moment::of(&less, &input, &[]).spectrum().expect("converges");
                    for (a, b) in moment.spectrum().expect("converges").iter().zip(direct) {
                        prop_assert!((a - b).abs() < 1e-8 * whole, "{a} {b}");
                    }
                }
            }
        }
    }
}
