//! Factors whose latent is stored in few bits: the same product, made for rounding.
//!
//! `B A = (B T)(T⁻¹ A)` for every T, but not every latent loses alike when one grid rounds all of a token's values.

use std::f64::consts::TAU;

use faer::Mat;

use super::Whitening;
use super::decompose::{Factors, lower_transposed_times, outer, times_lower};

impl Factors {
    /// The same product with each latent value and its column of B of like size, both as they are measured by the moments
    /// the factors were made with, and a mean square of one over the latent values of a token.
    ///
    /// A grid over all values has steps in proportion to `√Σ E[hᵢ²]`, and what they cost is `Σ ‖L_Gᵀ bᵢ‖²` times a step's
    /// square. By Cauchy and Schwarz the product of the two sums is least when every `E[hᵢ²]` is in proportion to
    /// `‖L_Gᵀ bᵢ‖²`: both factors take the roots of the singular values. (Palu's code does so on the input's side alone.)
    #[must_use]
    pub fn evened(self, input: &Whitening, output: &[&Whitening]) -> Self {
        let latent = times_lower(&self.basis, &input.l);
        let expansion = match output {
            [] => self.expansion.clone(),
            parts => outer(parts, &self.expansion, lower_transposed_times),
        };
        let rank = self.rank();
        let sizes = |i: usize| (latent.row(i).norm_l2(), expansion.col(i).norm_l2());
        let squares = (0..rank).map(|i| sizes(i).0 * sizes(i).1).sum::<f64>();
        let common = match squares > 0.0 {
            true => (rank as f64 / squares).sqrt(),
            false => 1.0,
        };
        let scales: Vec<f64> = (0..rank)
            .map(|i| match sizes(i) {
                (a, b) if a > 0.0 && b > 0.0 => common * (b / a).sqrt(),
                // Nothing passes through it.
                _ => 1.0,
            })
            .collect();
        Factors {
            expansion: Mat::from_fn(self.outputs(), rank, |i, j| {
                self.expansion[(i, j)] / scales[j]
            }),
            basis: Mat::from_fn(rank, self.basis.ncols(), |i, j| {
                scales[i] * self.basis[(i, j)]
            }),
        }
    }

    /// The same product with the latent turned: `A ← RᵀA`, `B ← B R` (Palu, arXiv 2407.21118, §3.4; low-rank.md §1.4). The
    /// first latent values are the largest; behind R all are of like size, so that one grid fits them all.
    #[must_use]
    pub fn rotated(self) -> Self {
        let rotation = rotation(self.rank());
        Factors {
            expansion: &self.expansion * &rotation,
            basis: rotation.transpose() * &self.basis,
        }
    }
}

/// An orthogonal matrix of any size n whose entries are all small: Hadamard's of the largest power of two that divides n,
/// times (Kronecker) the discrete Hartley transform of the rest.
fn rotation(n: usize) -> Mat<f64> {
    let power = 1 << n.trailing_zeros().min(usize::BITS - 1);
    let rest = (n / power).max(1);
    let scale = 1.0 / (n.max(1) as f64).sqrt();
    Mat::from_fn(n, n, |i, j| {
        let sign = match ((i / rest) & (j / rest)).count_ones() % 2 {
            0 => scale,
            _ => -scale,
        };
        let angle = TAU * ((i % rest) * (j % rest) % rest) as f64 / rest as f64;
        sign * (angle.cos() + angle.sin())
    })
}

#[cfg(test)]
mod tests {
    use faer::prelude::{Reborrow, ReborrowMut};
    use proptest::prelude::*;

    use super::super::decompose::divide_by_square;
    use super::super::test_data::{values, whitening};
    use super::super::{Decomposition, Weight};
    use super::*;

    fn factors(
        m: usize,
        n: usize,
        seed: u64,
        two_sided: bool,
    ) -> (Weight, Whitening, Vec<Whitening>, Factors) {
        let w = Weight::new(&values(m * n, seed), m, n);
        let input = whitening(n, seed ^ 3);
        let output: Vec<Whitening> = two_sided
            .then(|| whitening(m, seed ^ 9))
            .into_iter()
            .collect();
        let parts: Vec<&Whitening> = output.iter().collect();
        let decomposition = Decomposition::of(&w, &input, &parts).expect("converges");
        let rank = 1 + seed as usize % m.min(n);
        let factors = decomposition.factors(&w, &input, &parts, rank);
        (w, input, output, factors)
    }

    #[test]
    fn a_rotation_of_any_size_is_orthogonal_and_has_no_large_entries() {
        for n in 1..=70 {
            let r = rotation(n);
            let square = &r * r.transpose();
            for i in 0..n {
                for j in 0..n {
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((square[(i, j)] - expected).abs() < 1e-12, "{n}");
                    assert!(r[(i, j)].abs() <= (2.0 / n as f64).sqrt() + 1e-12, "{n}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn neither_changes_the_product(m in 1usize..12, n in 1usize..12, seed: u64, two_sided: bool) {
            let (_, input, output, factors) = factors(m, n, seed, two_sided);
            let parts: Vec<&Whitening> = output.iter().collect();
            let product = factors.product();
            let evened = factors.evened(&input, &parts);
            let latent = times_lower(&evened.basis, &input.l);
            let mean = latent.squared_norm_l2() / evened.rank() as f64;
            prop_assert!((mean - 1.0).abs() < 1e-6, "{mean}");
            for same in [evened.clone().product(), evened.rotated().product()] {
                for (a, b) in product.values().iter().zip(same.values()) {
                    prop_assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "{a} {b}");
                }
            }
        }

        /// ReCalKV's re-fit of the values (arXiv 2505.24357), `B = W C Aᵀ (A C Aᵀ)⁻¹`, gives the expansions there are,
        /// whatever the outputs' moment: the best factors are best for each other.
        #[test]
        fn a_refit_of_the_expansion_changes_nothing(m in 1usize..9, n in 1usize..12, seed: u64, two_sided: bool) {
            let (w, input, output, factors) = factors(m, n, seed, two_sided);
            let factors = factors.evened(&input, &output.iter().collect::<Vec<_>>());
            let latent = times_lower(&factors.basis, &input.l);
            let cross = times_lower(&w.m, &input.l) * latent.transpose();
            let square = &latent * latent.transpose();
            let l = square.llt(faer::Side::Lower).expect("definite").L().to_owned();
            let again = divide_by_square(cross, &l);
            let scale = factors.expansion.norm_max();
            for i in 0..m {
                for j in 0..factors.rank() {
                    let (a, b) = (factors.expansion[(i, j)], again[(i, j)]);
                    prop_assert!((a - b).abs() < 1e-5 * scale, "{a} {b}");
                }
            }
        }
    }

    /// What the gauge and the rotation are for: rounding all latent values on one grid loses less.
    #[test]
    fn rounding_loses_least_when_evened_and_rotated() {
        let (m, n) = (24, 30);
        let (_, input, output, _) = factors(m, n, 5, true);
        let w = Weight {
            // A spectrum as steep as those of real keys.
            m: Mat::from_fn(m, n, |i, j| {
                let v = f64::from(values(m * n, 77)[i * n + j]);
                v * (-(i as f64) / 3.0).exp()
            }),
        };
        let parts: Vec<&Whitening> = output.iter().collect();
        let decomposition = Decomposition::of(&w, &input, &parts).expect("converges");
        let plain = decomposition.factors(&w, &input, &parts, 12);
        let loss = |factors: &Factors| {
            let x =
                &input.l * Mat::from_fn(n, 200, |i, j| f64::from(values(n * 200, 8)[i * 200 + j]));
            let mut latents = &factors.basis * &x;
            for mut token in latents.col_iter_mut() {
                let bounds = |(low, high): (f64, f64), v: &f64| (low.min(*v), high.max(*v));
                let (low, high) = token.rb().iter().fold((f64::MAX, f64::MIN), bounds);
                let step = (high - low) / 15.0;
                let error = |v: &mut f64| *v -= low + ((*v - low) / step).round() * step;
                token.rb_mut().iter_mut().for_each(error);
            }
            let wrong = &factors.expansion * latents;
            outer(&parts, &wrong, lower_transposed_times).squared_norm_l2()
        };
        let evened = plain.clone().evened(&input, &parts);
        let (before, between, after) =
            (loss(&plain), loss(&evened), loss(&evened.clone().rotated()));
        assert!(
            after < between && after < 0.5 * before,
            "{before} {between} {after}"
        );
    }
}
