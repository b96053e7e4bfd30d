//! The best low-rank approximation of a weight on the inputs it sees.

use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Mat, MatRef};

use super::{Whitening, parallelism};

/// The singular value decomposition of `W L`: singular values measure what dropping a rank costs at the output.
pub struct LowRankSvd {
    u: Mat<f64>,
    v: Mat<f64>,
    sigma: Vec<f64>,
    /// `tr(W E[xxᵀ] Wᵀ)`: the mean energy of the outputs.
    energy: f64,
}

/// Two factors `B A ≈ W` in Burn's layout, row-major f32.
#[derive(Debug, Clone)]
pub struct Factors {
    /// Aᵀ, `[in, rank]`.
    pub basis: Vec<f32>,
    /// Bᵀ, `[rank, out]`.
    pub expansion: Vec<f32>,
    pub rank: usize,
}

impl LowRankSvd {
    /// Decomposes `W L` for a weight `out × in`, given transposed and row-major as Burn stores it
    /// (`[in, out]`).
    ///
    /// # Errors
    /// A sentence when the iteration does not converge or the weight is not finite.
    pub fn of(weight: &[f32], out: usize, whitening: &Whitening) -> Result<Self, String> {
        let w = transposed(weight, out, whitening.l.nrows());
        let product = &w * &whitening.l;
        let svd = product
            .thin_svd()
            .map_err(|e| format!("the singular value decomposition failed: {e:?}"))?;
        let sigma: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        if sigma.iter().any(|s| !s.is_finite()) {
            return Err("the singular values are not finite".into());
        }
        Ok(LowRankSvd {
            u: svd.U().to_owned(),
            v: svd.V().to_owned(),
            sigma,
            energy: energy(&w, &whitening.mean),
        })
    }

    /// The singular values of `W L`, largest first.
    pub fn sigma(&self) -> &[f64] {
        &self.sigma
    }

    /// The factors of the best approximation of rank `rank`: `B = U √Σ`, `A = √Σ Vᵀ L⁻¹`
    /// (Palu, arXiv 2407.21118, §3.2; the inverse is a triangular solve). Their product minimises
    /// `‖(W - B A) X‖_F` over all matrices of that rank.
    pub fn truncate(&self, rank: usize, whitening: &Whitening) -> Factors {
        let rank = rank.min(self.sigma.len());
        let root = |k: usize| self.sigma[k].sqrt();
        let (out, input) = (self.u.nrows(), self.v.nrows());
        // A L = √Σ Vᵀ, solved in its transposed form Lᵀ Aᵀ = V √Σ.
        let mut a_t = Mat::from_fn(input, rank, |j, k| self.v[(j, k)] * root(k));
        solve_upper_triangular_in_place(whitening.l.transpose(), a_t.as_mut(), parallelism());
        Factors {
            basis: row_major(input, rank, |j, k| a_t[(j, k)]),
            expansion: row_major(rank, out, |k, i| self.u[(i, k)] * root(k)),
            rank,
        }
    }

    /// Relative error at the output, `‖(W - B A) X‖_F / ‖W X‖_F`, from the factors as they are stored.
    /// `weight` is the one that was decomposed, `[in, out]` row-major.
    pub fn output_error(&self, weight: &[f32], factors: &Factors, whitening: &Whitening) -> f64 {
        let (out, input) = (self.u.nrows(), self.v.nrows());
        let b = transposed(&factors.expansion, out, factors.rank);
        let a = transposed(&factors.basis, factors.rank, input);
        let difference = transposed(weight, out, input) - &b * &a;
        let lost = energy(&difference, &whitening.mean).max(0.0);
        (lost / self.energy.max(f64::MIN_POSITIVE)).sqrt()
    }
}

/// `tr(M G Mᵀ)`.
fn energy(m: &Mat<f64>, gram: &Mat<f64>) -> f64 {
    let product = m * gram;
    let column = |j| (0..m.nrows()).map(move |i| (i, j));
    (0..m.ncols())
        .flat_map(column)
        .map(|(i, j)| m[(i, j)] * product[(i, j)])
        .sum()
}

/// A `columns × rows` f32 matrix, row-major, as its f64 transpose.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Mat<f64> {
    let m = MatRef::from_row_major_slice(values, columns, rows);
    Mat::from_fn(rows, columns, |i, j| f64::from(m[(j, i)]))
}

fn row_major(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * columns);
    for i in 0..rows {
        out.extend((0..columns).map(|j| value(i, j) as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Gram, whiten};
    use super::*;

    /// Deterministic values in (-1, 1).
    fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn problem(out: usize, input: usize, seed: u64) -> (Vec<f32>, Gram) {
        let mut gram = Gram::new(input);
        gram.add(&values(4 * input * input, seed));
        (values(out * input, seed ^ 0xabcdef), gram)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        // low-rank.md §1.2: the check that any port must satisfy.
        #[test]
        fn the_output_error_is_the_energy_of_the_dropped_singular_values(
            out in 1usize..14, input in 1usize..14, seed: u64, part in 0.0f64..1.0,
        ) {
            let (weight, gram) = problem(out, input, seed);
            let whitening = whiten(&gram, 0.0).expect("random inputs");
            let svd = LowRankSvd::of(&weight, out, &whitening).expect("converges");
            let rank = (part * svd.sigma().len() as f64) as usize;
            let error = svd.output_error(&weight, &svd.truncate(rank, &whitening), &whitening);
            let energy = |s: &[f64]| s.iter().map(|v| v * v).sum::<f64>();
            let expected = (energy(&svd.sigma()[rank..]) / energy(svd.sigma())).sqrt();
            prop_assert!((error - expected).abs() < 1e-5, "{error} {expected}");
        }

        #[test]
        fn full_rank_gives_the_weight_back_and_error_falls_with_rank(
            out in 1usize..10, input in 1usize..10, seed: u64,
        ) {
            let (weight, gram) = problem(out, input, seed);
            let whitening = whiten(&gram, 0.0).expect("random inputs");
            let svd = LowRankSvd::of(&weight, out, &whitening).expect("converges");
            let mut last = f64::INFINITY;
            for rank in 0..=svd.sigma().len() {
                let error = svd.output_error(&weight, &svd.truncate(rank, &whitening), &whitening);
                prop_assert!(error <= last + 1e-6);
                last = error;
            }
            prop_assert!(last < 1e-5, "{last}");
        }
    }
}
