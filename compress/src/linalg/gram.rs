//! Second moments of activations.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef};

use super::parallelism;

/// Rows widened to f64 at a time; bounds the scratch memory.
const ROWS_AT_ONCE: usize = 1024;

/// The input Gram `Σ x xᵀ` of a site, `n × n`, summed in f64.
///
/// f32 sums turn indefinite once one direction dominates, and widening only the sums of f32 products
/// does not cure it; so the products are f64 too.
#[derive(Debug, Clone)]
pub struct Gram {
    /// Lower triangle of the sum.
    sum: Mat<f64>,
    rows: u64,
}

impl Gram {
    /// An empty sum for inputs of width `n`.
    pub fn new(n: usize) -> Self {
        Gram {
            sum: Mat::zeros(n, n),
            rows: 0,
        }
    }

    /// Width n of the inputs.
    pub fn width(&self) -> usize {
        self.sum.nrows()
    }

    /// Inputs (tokens) summed so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds inputs `[rows, n]`, row-major; a trailing part of a row is ignored.
    pub fn add(&mut self, inputs: &[f32]) {
        let n = self.width();
        for block in inputs.chunks(ROWS_AT_ONCE * n) {
            let wide: Vec<f64> = block.iter().map(|v| f64::from(*v)).collect();
            let rows = wide.len() / n;
            let x = MatRef::from_row_major_slice(&wide[..rows * n], rows, n);
            matmul(
                self.sum.as_mut(),
                BlockStructure::TriangularLower,
                Accum::Add,
                x.transpose(),
                BlockStructure::Rectangular,
                x,
                BlockStructure::Rectangular,
                1.0,
                parallelism(),
            );
            self.rows += rows as u64;
        }
    }

    /// The mean `E[x xᵀ]`, both triangles.
    pub(super) fn mean(&self) -> Mat<f64> {
        let scale = 1.0 / (self.rows.max(1) as f64);
        Mat::from_fn(self.width(), self.width(), |i, j| {
            scale * self.sum[(i.max(j), i.min(j))]
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_the_sum_of_outer_products(n in 1usize..9, rows in 0usize..40, seed: u64) {
            let value = |i: usize| ((seed.wrapping_mul(i as u64 + 7) >> 40) as f32) / 1e6 - 8.0;
            let x: Vec<f32> = (0..rows * n).map(value).collect();
            let mut gram = Gram::new(n);
            let (first, second) = x.split_at(rows / 2 * n);
            gram.add(first);
            gram.add(second);
            prop_assert_eq!(gram.rows(), rows as u64);
            let mean = gram.mean();
            for i in 0..n {
                for j in 0..n {
                    let expected: f64 = x.chunks(n).map(|r| f64::from(r[i]) * f64::from(r[j])).sum::<f64>()
                        / rows.max(1) as f64;
                    prop_assert!((mean[(i, j)] - expected).abs() <= 1e-9 * (1.0 + expected.abs()));
                }
            }
        }
    }
}
