//! The best low-rank approximation of a weight, measured where it is used.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Accum, Mat, MatRef, Side};

use super::weight::row_major;
use super::{Gram, Weight, Whitening, parallelism};

/// Which singular vectors are kept: those of the narrower side are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Right,
    Left,
}

/// The singular values of `M = L_Gᵀ W L_C` and the singular vectors of its narrower side, where `L_C L_Cᵀ` is the
/// input's and `L_G L_Gᵀ` the output gradient's damped second moment.
///
/// Cutting M at rank r loses `Σ_{i>r} σᵢ²`, the second-order estimate of what the loss gains, and no other matrix of
/// that rank loses less. Without output moments it is SVD-LLM's criterion (arXiv 2403.07378, §3.1), with them that of
/// K-FAC (frontier.md §1). The vectors are those of `MᵀM` or `M Mᵀ`, which squares the condition: harmless for the
/// part that is kept (low-rank.md §2.6).
pub struct Decomposition {
    kept: Kept,
    /// Columns, by falling singular value.
    vectors: Mat<f64>,
}

/// `W ≈ B A`.
#[derive(Debug, Clone)]
pub struct Factors {
    /// B, `out × rank`.
    pub(super) expansion: Mat<f64>,
    /// A, `rank × in`.
    pub(super) basis: Mat<f64>,
}

/// `L_Gᵀ W L_C`; `output` has one moment for each of the weights stacked in `weight`, or none for the identity.
fn whitened(weight: &Weight, input: &Whitening, output: &[&Whitening]) -> Mat<f64> {
    match output {
        [] => times_lower(&weight.m, &input.l),
        parts => times_lower(&outer(parts, &weight.m, lower_transposed_times), &input.l),
    }
}

/// `Lᵀ Y` for lower triangular L.
pub(super) fn lower_transposed_times(l: &Mat<f64>, y: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(l.ncols(), y.ncols());
    triangular::matmul(
        out.as_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        l.transpose(),
        BlockStructure::TriangularUpper,
        y,
        BlockStructure::Rectangular,
        1.0,
        parallelism(),
    );
    out
}

/// `Y L` for lower triangular L.
pub(super) fn times_lower(y: &Mat<f64>, l: &Mat<f64>) -> Mat<f64> {
    let mut out = Mat::zeros(y.nrows(), l.ncols());
    triangular::matmul(
        out.as_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        y.as_ref(),
        BlockStructure::Rectangular,
        l.as_ref(),
        BlockStructure::TriangularLower,
        1.0,
        parallelism(),
    );
    out
}

/// Applies `map` to the rows of each part.
pub(super) fn outer(
    parts: &[&Whitening],
    m: &Mat<f64>,
    map: impl Fn(&Mat<f64>, MatRef<'_, f64>) -> Mat<f64>,
) -> Mat<f64> {
    let mut out = Mat::zeros(m.nrows(), m.ncols());
    let mut row = 0;
    for part in parts {
        let rows = part.width();
        out.subrows_mut(row, rows)
            .copy_from(map(&part.l, m.subrows(row, rows)));
        row += rows;
    }
    out
}

/// `M = L_Gᵀ W L_C` of one weight.
#[derive(Debug, Clone)]
pub struct Whitened {
    m: Mat<f64>,
}

impl Whitened {
    /// As [`Moment::of`].
    pub fn of(weight: &Weight, input: &Whitening, output: &[&Whitening]) -> Self {
        Whitened {
            m: whitened(weight, input, output),
        }
    }

    /// The smaller of its two moments.
    pub fn moment(&self) -> Moment {
        let m = &self.m;
        match m.ncols() <= m.nrows() {
            true => Moment {
                kept: Kept::Right,
                m: m.transpose() * m,
            },
            false => Moment {
                kept: Kept::Left,
                m: m * m.transpose(),
            },
        }
    }
}

/// `MᵀM` or `M Mᵀ`, whichever is smaller, for `M = L_Gᵀ W L_C`: all that a spectrum needs.
#[derive(Debug, Clone)]
pub struct Moment {
    kept: Kept,
    pub(super) m: Mat<f64>,
}

impl Moment {
    /// The moment of a weight; `output` has one second moment for each of the weights stacked in it, or none for the
    /// identity.
    pub fn of(weight: &Weight, input: &Whitening, output: &[&Whitening]) -> Self {
        Whitened::of(weight, input, output).moment()
    }

    /// The moment of weights that read the same input, stacked: `Σ MᵀM`.
    pub fn of_stack(parts: &[&Whitened]) -> Self {
        let inputs = parts.first().map_or(0, |p| p.m.ncols());
        let outputs = parts.iter().map(|p| p.m.nrows()).sum::<usize>();
        if inputs > outputs {
            let mut m = Mat::zeros(outputs, inputs);
            let mut row = 0;
            for part in parts {
                m.subrows_mut(row, part.m.nrows()).copy_from(&part.m);
                row += part.m.nrows();
            }
            return Whitened { m }.moment();
        }
        let mut sum = Mat::zeros(inputs, inputs);
        for part in parts {
            matmul(
                sum.as_mut(),
                Accum::Add,
                part.m.transpose(),
                &part.m,
                1.0,
                parallelism(),
            );
        }
        Moment {
            kept: Kept::Right,
            m: sum,
        }
    }

    /// A moment that was put together from parts.
    pub(super) fn from_parts(m: Mat<f64>) -> Self {
        Moment {
            kept: Kept::Right,
            m,
        }
    }

    /// The squared singular values of M, largest first; those that rounding made negative are zero.
    ///
    /// # Errors
    /// A sentence when the iteration does not converge or a value is not finite.
    pub fn spectrum(&self) -> Result<Vec<f64>, String> {
        let values = self
            .m
            .self_adjoint_eigenvalues(Side::Lower)
            .map_err(|e| format!("the eigenvalues did not converge: {e:?}"))?;
        match values.iter().all(|v| v.is_finite()) {
            true => Ok(values.into_iter().rev().map(|v| v.max(0.0)).collect()),
            false => Err("the singular values are not finite".into()),
        }
    }
}

impl Decomposition {
    /// Decomposes a weight; `output` has one moment for each of the weights stacked in it, or none for the identity.
    ///
    /// # Errors
    /// A sentence when the iteration does not converge.
    pub fn of(weight: &Weight, input: &Whitening, output: &[&Whitening]) -> Result<Self, String> {
        let Moment { kept, m: moment } = Moment::of(weight, input, output);
        let eigen = moment
            .self_adjoint_eigen(Side::Lower)
            .map_err(|e| format!("the eigenvectors did not converge: {e:?}"))?;
        let n = moment.nrows();
        let vectors = Mat::from_fn(n, n, |i, j| eigen.U()[(i, n - 1 - j)]);
        if !eigen.S().column_vector().iter().all(|v| v.is_finite()) {
            return Err("the singular values are not finite".into());
        }
        Ok(Decomposition { kept, vectors })
    }

    /// The factors of the best approximation of rank `rank` of the weight that was decomposed, with the same moments:
    /// `B = W L_C V_r, A = V_rᵀ L_C⁻¹`, or `B = L_G⁻ᵀ U_r, A = U_rᵀ L_Gᵀ W`. Inverses are triangular solves.
    pub fn factors(
        &self,
        weight: &Weight,
        input: &Whitening,
        output: &[&Whitening],
        rank: usize,
    ) -> Factors {
        let vectors = self.vectors.subcols(0, rank.min(self.vectors.ncols()));
        match self.kept {
            Kept::Right => {
                let expansion = &weight.m * (&input.l * vectors);
                // A L = Vᵀ, solved in its transposed form Lᵀ Aᵀ = V.
                let mut a_t = vectors.to_owned();
                solve_upper_triangular_in_place(input.l.transpose(), a_t.as_mut(), parallelism());
                Factors {
                    expansion,
                    basis: a_t.transpose().to_owned(),
                }
            }
            Kept::Left if output.is_empty() => Factors {
                expansion: vectors.to_owned(),
                basis: vectors.transpose() * &weight.m,
            },
            Kept::Left => {
                let owned = vectors.to_owned();
                let expansion = outer(output, &owned, |l, rows| {
                    let mut x = rows.to_owned();
                    solve_upper_triangular_in_place(l.transpose(), x.as_mut(), parallelism());
                    x
                });
                let lifted = outer(output, &owned, |l, rows| l * rows);
                Factors {
                    expansion,
                    basis: lifted.transpose() * &weight.m,
                }
            }
        }
    }
}

impl Factors {
    /// Factors from their values: `expansion` `[out, rank]`, `basis` `[rank, in]`, row-major.
    ///
    /// # Panics
    /// When the values are not as many as the sizes say.
    pub fn new(expansion: &[f32], basis: &[f32], out: usize, input: usize, rank: usize) -> Self {
        Factors {
            expansion: Weight::new(expansion, out, rank).m,
            basis: Weight::new(basis, rank, input).m,
        }
    }

    /// Rows of A.
    pub fn rank(&self) -> usize {
        self.basis.nrows()
    }

    /// Rows of B.
    pub fn outputs(&self) -> usize {
        self.expansion.nrows()
    }

    /// `B A`.
    pub fn product(&self) -> Weight {
        Weight {
            m: &self.expansion * &self.basis,
        }
    }

    /// The values of B `[out, rank]`, row-major, as they are stored.
    pub fn expansion_values(&self) -> Vec<f32> {
        row_major(&self.expansion)
    }

    /// The values of A `[rank, in]`, row-major, as they are stored.
    pub fn basis_values(&self) -> Vec<f32> {
        row_major(&self.basis)
    }

    /// The same product with factors of like size: `B R, R⁻¹ A` with A's rows orthonormal. Low precision then rounds
    /// both evenly, whatever whitening did to their scales.
    #[must_use]
    pub fn balanced(self) -> Self {
        let qr = self.basis.transpose().qr();
        // Aᵀ = Q R, so B A = (B Rᵀ) Qᵀ.
        Factors {
            expansion: &self.expansion * qr.thin_R().transpose(),
            basis: qr.compute_thin_Q().transpose().to_owned(),
        }
    }
}

/// Solves `X L Lᵀ = Y` for X, with L lower triangular.
pub(super) fn divide_by_square(y: Mat<f64>, l: &Mat<f64>) -> Mat<f64> {
    let mut x_t = y.transpose().to_owned();
    solve_lower_triangular_in_place(l.as_ref(), x_t.as_mut(), parallelism());
    solve_upper_triangular_in_place(l.transpose(), x_t.as_mut(), parallelism());
    x_t.transpose().to_owned()
}

/// `tr(M G Mᵀ)`.
pub(super) fn energy(m: &Mat<f64>, gram: &Mat<f64>) -> f64 {
    dot(&(m * gram), m)
}

/// `Σᵢⱼ aᵢⱼ bᵢⱼ`.
pub(super) fn dot(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    (0..a.ncols())
        .flat_map(|j| (0..a.nrows()).map(move |i| (i, j)))
        .map(|(i, j)| a[(i, j)] * b[(i, j)])
        .sum()
}

impl Gram {
    /// Energy of a weight's outputs on these inputs, `tr(W E[xxᵀ] Wᵀ)`.
    pub fn output_energy(&self, weight: &Weight) -> f64 {
        energy(&weight.m, &self.mean())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_data::{values, whitening};
    use super::*;

    /// `‖L_Gᵀ (W - Ŵ) L_C‖²`.
    fn lost(w: &Weight, approximation: &Weight, input: &Whitening, output: &[&Whitening]) -> f64 {
        let difference = Weight {
            m: &w.m - &approximation.m,
        };
        let m = whitened(&difference, input, output);
        dot(&m, &m)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        // low-rank.md §1.2 and §2.6, invariant 4: the check that any port must satisfy.
        #[test]
        fn the_loss_is_the_energy_of_the_dropped_singular_values(
            first in 1usize..9, second in 0usize..9, n in 1usize..14, two_sided: bool, seed: u64, part in 0.0f64..1.0,
        ) {
            let m = first + second;
            let w = Weight::new(&values(m * n, seed ^ 0xabcdef), m, n);
            let input = whitening(n, seed);
            let moments: Vec<Whitening> = [first, second].iter().filter(|s| **s > 0)
                .map(|s| whitening(*s, seed ^ *s as u64 ^ 77)).collect();
            let output: Vec<&Whitening> = moments.iter().filter(|_| two_sided).collect();
            let sigma2 = Moment::of(&w, &input, &output).spectrum().expect("converges");
            let rank = (part * sigma2.len() as f64) as usize;
            let parts: Vec<Weight> = [0..first, first..m].into_iter().filter(|r| !r.is_empty())
                .map(|r| w.rows(&r.collect::<Vec<_>>())).collect();
            let whitened: Vec<Whitened> = parts.iter().enumerate().map(|(i, part)| {
                Whitened::of(part, &input, &output.get(i).copied().into_iter().collect::<Vec<_>>())
            }).collect();
            let stacked = Moment::of_stack(&whitened.iter().collect::<Vec<_>>()).spectrum().expect("converges");
            for (a, b) in stacked.iter().zip(&sigma2) {
                prop_assert!((a - b).abs() < 1e-9 * sigma2[0], "{a} {b}");
            }
            let decomposition = Decomposition::of(&w, &input, &output).expect("converges");
            let factors = decomposition.factors(&w, &input, &output, rank);
            let total: f64 = sigma2.iter().sum();
            let tail: f64 = sigma2[rank..].iter().sum();
            for factors in [factors.clone(), factors.balanced()] {
                prop_assert_eq!(factors.rank(), rank);
                let lost = lost(&w, &factors.product(), &input, &output);
                prop_assert!((lost - tail).abs() < 1e-8 * total, "{lost} {tail}");
            }
        }

        #[test]
        fn full_rank_gives_the_weight_back(m in 1usize..10, n in 1usize..10, seed: u64) {
            let w = Weight::new(&values(m * n, seed), m, n);
            let input = whitening(n, seed ^ 5);
            let factors = Decomposition::of(&w, &input, &[]).expect("converges").factors(&w, &input, &[], m.min(n));
            let product = factors.product();
            for (a, b) in w.values().iter().zip(product.values()) {
                prop_assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
        }
    }
}
