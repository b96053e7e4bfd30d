//! The identity block: a basis that passes r of its inputs through (SkipCat's "Skip", arXiv 2512.13494; low-rank.md
//! §2.4).

use faer::Mat;
use faer::linalg::solvers::Solve;

use super::Factors;
use super::weight::row_major;

/// Entries this close to the bound are left: rounding could exchange them forever.
const TIE: f64 = 1.0 + 1e-9;

/// How pivots are chosen.
#[derive(Debug, Clone, Copy)]
pub struct PivotRule<'a> {
    /// The size of each input (its root mean square).
    pub scale: &'a [f64],
    /// The most that any input may weigh in a latent value, against the pivot that passes through: at least 1.
    pub bound: f64,
}

/// `W ≈ B' (x_J + A' x_N)`: the same map as the factors it was made from.
#[derive(Debug, Clone)]
pub struct IdentityFactors {
    /// J: the inputs that pass through, ascending.
    pub pivots: Vec<usize>,
    /// B' = Ŵ[:, J], `out × rank`.
    expansion: Mat<f64>,
    /// A' = A_J⁻¹ A_N, `rank × (in - rank)`; N ascending.
    rest: Mat<f64>,
    /// Largest `|A'ᵢⱼ|` times the size of input Nⱼ over that of Jᵢ.
    pub growth: f64,
}

impl Factors {
    /// Chooses pivots and splits the basis: `r (m + n - r)` scalars instead of `r (m + n)`, and the same product for
    /// any choice; the choice is numerics only.
    ///
    /// Pivots are the first columns of a QR with column pivoting of A's row space, inputs scaled by their size. Where a
    /// scaled entry of A' exceeds the bound, its pivot and its input change places, each of which multiplies
    /// `|det A_J|` by that entry, so it ends (low-rank.md §2.5; Gu and Eisenstat's strong rank-revealing QR for a matrix
    /// of full row rank).
    ///
    /// # Errors
    /// A sentence when the basis has not the rank it says.
    pub fn identity(&self, rule: PivotRule<'_>) -> Result<IdentityFactors, String> {
        let balanced = self.clone().balanced();
        let (rank, input) = (balanced.basis.nrows(), balanced.basis.ncols());
        let floor = rule.scale.iter().copied().fold(0.0, f64::max) * 1e-6;
        let scale: Vec<f64> = rule
            .scale
            .iter()
            .map(|s| s.max(floor).max(f64::MIN_POSITIVE))
            .collect();
        let scaled = Mat::from_fn(rank, input, |i, j| balanced.basis[(i, j)] * scale[j]);
        let qr = scaled.col_piv_qr();
        let order: Vec<usize> = qr.P().arrays().0.to_vec();
        let diagonal = |i: usize| qr.thin_R()[(i, i)].abs();
        if rank > 0 && !(diagonal(0) / diagonal(rank - 1)).is_finite() {
            return Err(format!("a basis of {rank} rows has a smaller rank"));
        }
        let (mut pivots, mut others) = (order[..rank].to_vec(), order[rank..].to_vec());
        let mut a = solve(&scaled, &pivots, &others);
        let mut swaps = 0;
        while let Some((i, j, z)) = largest(&a).filter(|(_, _, z)| z.abs() > rule.bound * TIE) {
            exchange(&mut a, i, j, z);
            std::mem::swap(&mut pivots[i], &mut others[j]);
            swaps += 1;
            // Each exchange grows the determinant by the bound at least; rounding alone could go on.
            if swaps > 8 * input {
                return Err(format!(
                    "{swaps} exchanges of pivots did not meet the bound"
                ));
            }
        }
        pivots.sort_unstable();
        others.sort_unstable();
        let rest = solve(&balanced.basis, &pivots, &others);
        let growth = (0..others.len())
            .flat_map(|j| (0..rank).map(move |i| (i, j)))
            .map(|(i, j)| rest[(i, j)].abs() * scale[others[j]] / scale[pivots[i]])
            .fold(0.0, f64::max);
        let expansion = &balanced.expansion * columns(&balanced.basis, &pivots);
        Ok(IdentityFactors {
            pivots,
            expansion,
            rest,
            growth,
        })
    }
}

impl IdentityFactors {
    /// The values of B' `[out, rank]`, row-major, as they are stored.
    pub fn expansion_values(&self) -> Vec<f32> {
        row_major(&self.expansion)
    }

    /// The values of A' `[rank, in - rank]`, row-major, as they are stored.
    pub fn rest_values(&self) -> Vec<f32> {
        row_major(&self.rest)
    }

    /// The factors `B'`, `[I A']` in the inputs' order.
    pub fn factors(&self) -> Factors {
        let (rank, rest) = (self.rest.nrows(), self.rest.ncols());
        let mut basis = Mat::zeros(rank, rank + rest);
        let others = (0..rank + rest).filter(|i| self.pivots.binary_search(i).is_err());
        for (j, input) in others.enumerate() {
            basis.col_mut(input).copy_from(self.rest.col(j));
        }
        for (i, input) in self.pivots.iter().enumerate() {
            basis[(i, *input)] = 1.0;
        }
        Factors {
            expansion: self.expansion.clone(),
            basis,
        }
    }
}

fn columns(m: &Mat<f64>, keep: &[usize]) -> Mat<f64> {
    Mat::from_fn(m.nrows(), keep.len(), |i, j| m[(i, keep[j])])
}

/// `A_J⁻¹ A_N`.
fn solve(basis: &Mat<f64>, pivots: &[usize], others: &[usize]) -> Mat<f64> {
    columns(basis, pivots)
        .partial_piv_lu()
        .solve(columns(basis, others))
}

/// The entry of largest size.
fn largest(a: &Mat<f64>) -> Option<(usize, usize, f64)> {
    (0..a.ncols())
        .flat_map(|j| (0..a.nrows()).map(move |i| (i, j)))
        .map(|(i, j)| (i, j, a[(i, j)]))
        .max_by(|x, y| x.2.abs().total_cmp(&y.2.abs()))
}

/// What becomes of `A_J⁻¹ A_N` when pivot i and input j change places; z is the entry where they meet.
fn exchange(a: &mut Mat<f64>, i: usize, j: usize, z: f64) {
    let column: Vec<f64> = (0..a.nrows()).map(|k| a[(k, j)]).collect();
    let row: Vec<f64> = (0..a.ncols()).map(|l| a[(i, l)]).collect();
    for l in 0..a.ncols() {
        for k in 0..a.nrows() {
            a[(k, l)] = match (k == i, l == j) {
                (true, true) => 1.0 / z,
                (true, false) => row[l] / z,
                (false, true) => -column[k] / z,
                (false, false) => a[(k, l)] - column[k] * row[l] / z,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Weight;
    use super::super::test_data::values;
    use super::*;

    // low-rank.md §2.6, test vectors.
    const A: [f32; 10] = [2.0, 1.0, 4.0, 0.0, 1.0, 1.0, 3.0, 0.0, 2.0, 5.0];
    const B: [f32; 6] = [1.0, 2.0, 0.0, -1.0, 3.0, 1.0];

    fn basis() -> Mat<f64> {
        Weight::new(&A, 2, 5).m
    }

    fn close(m: &Mat<f64>, expected: &[f64]) {
        let flat = (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| (i, j)));
        for ((i, j), e) in flat.zip(expected) {
            assert!((m[(i, j)] - e).abs() < 1e-12, "{m:?}");
        }
    }

    #[test]
    fn the_first_columns_as_pivots() {
        close(
            &solve(&basis(), &[0, 1], &[2, 3, 4]),
            &[2.4, -0.4, -0.4, -0.8, 0.8, 1.8],
        );
        let b = Weight::new(&B, 3, 2).m;
        close(
            &(&b * columns(&basis(), &[0, 1])),
            &[4.0, 7.0, -1.0, -3.0, 7.0, 6.0],
        );
    }

    #[test]
    fn two_exchanges_lead_to_the_largest_determinant() {
        let (mut pivots, mut others) = (vec![0, 1], vec![2, 3, 4]);
        let mut a = solve(&basis(), &pivots, &others);
        let mut determinants = vec![columns(&basis(), &pivots).determinant().abs()];
        while let Some((i, j, z)) = largest(&a).filter(|(_, _, z)| z.abs() > 1.0) {
            exchange(&mut a, i, j, z);
            std::mem::swap(&mut pivots[i], &mut others[j]);
            determinants.push(columns(&basis(), &pivots).determinant().abs());
        }
        pivots.sort_unstable();
        assert_eq!((pivots, determinants.len()), (vec![2, 4], 3));
        assert!(determinants.windows(2).all(|d| d[0] < d[1]));
        assert!((determinants[2] - 20.0).abs() < 1e-12);
    }

    #[test]
    fn the_test_vector_as_a_whole() {
        let factors = Factors::new(&B, &A, 3, 5, 2);
        let rule = PivotRule {
            scale: &[1.0; 5],
            bound: 1.0,
        };
        let identity = factors.identity(rule).expect("full rank");
        assert_eq!(identity.pivots, [2, 4]);
        assert!((identity.growth - 0.6).abs() < 1e-12);
        for (found, expected) in [
            (
                identity.expansion_values(),
                vec![4.0, 11.0, 0.0, -5.0, 12.0, 8.0],
            ),
            (identity.rest_values(), vec![0.45, 0.1, -0.1, 0.2, 0.6, 0.4]),
        ] {
            assert!(
                found
                    .iter()
                    .zip(&expected)
                    .all(|(a, b): (&f32, &f32)| (a - b).abs() < 1e-6),
                "{found:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        // low-rank.md §2.6, invariants 1, 2, 3 and 6.
        #[test]
        fn the_product_stays_and_growth_is_bounded(
            m in 1usize..12, n in 1usize..16, part in 0.0f64..1.0, bound in 1.0f64..3.0, seed: u64,
        ) {
            let rank = ((part * n as f64) as usize).clamp(1, n);
            let (b, a) = (values(m * rank, seed), values(rank * n, seed ^ 99));
            let scale: Vec<f64> = values(n, seed ^ 7).iter().map(|v| f64::from(v.abs()) * 30.0 + 0.01).collect();
            let rule = PivotRule { scale: &scale, bound };
            let factors = Factors::new(&b, &a, m, n, rank);
            let identity = factors.identity(rule).expect("random rows are independent");
            prop_assert!(identity.pivots.windows(2).all(|p| p[0] < p[1]));
            prop_assert!(identity.growth <= bound * (1.0 + 1e-6), "{}", identity.growth);
            let (before, after) = (factors.product().m, identity.factors().product().m);
            let size = before.norm_max();
            prop_assert!((&before - &after).norm_max() <= 1e-7 * size, "{} of {size}", (&before - &after).norm_max());
            // Another basis of the same rows (its rows exchanged and scaled) gives the same block.
            let mixed: Vec<f32> = (0..rank).rev().flat_map(|i| a[i * n..(i + 1) * n].iter().map(|v| 2.0 * v).collect::<Vec<_>>()).collect();
            let other = Factors::new(&b, &mixed, m, n, rank).identity(rule).expect("independent");
            if other.pivots == identity.pivots {
                prop_assert!((&other.rest - &identity.rest).norm_max() < 1e-6);
            }
        }
    }
}
