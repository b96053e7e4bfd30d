//! Second moments of activations and of gradients.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef};

use super::parallelism;

/// Rows widened to f64 at a time; bounds the scratch memory.
const ROWS_AT_ONCE: usize = 1024;

/// The second moment `Σ x xᵀ` of vectors of width n, `n × n`, summed in f64.
///
/// f32 sums turn indefinite once one direction dominates, and widening only the sums of f32 products
/// does not cure it; so the products are f64 too.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    /// Lower triangle of the sum.
    sum: Mat<f64>,
    rows: u64,
}

impl Gram {
    /// An empty sum for vectors of width `n`.
    pub fn new(n: usize) -> Self {
        Gram {
            sum: Mat::zeros(n, n),
            rows: 0,
        }
    }

    /// Width n of the vectors.
    pub fn width(&self) -> usize {
        self.sum.nrows()
    }

    /// Vectors (tokens) summed so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds vectors `[rows, n]`, row-major; a trailing part of a row is ignored.
    pub fn add(&mut self, vectors: &[f32]) {
        let n = self.width();
        for block in vectors.chunks(ROWS_AT_ONCE * n) {
            let wide: Vec<f64> = block.iter().map(|v| f64::from(*v)).collect();
            let rows = wide.len() / n;
            let x = MatRef::from_row_major_slice(&wide[..rows * n], rows, n);
            triangular::matmul(
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

    /// The moment of some of the entries, in the order given.
    pub fn subset(&self, keep: &[usize]) -> Self {
        let at = |i: usize, j: usize| self.sum[(i.max(j), i.min(j))];
        Gram {
            sum: Mat::from_fn(keep.len(), keep.len(), |i, j| match i >= j {
                true => at(keep[i], keep[j]),
                false => 0.0,
            }),
            rows: self.rows,
        }
    }

    /// The moment with some of the entries, in the order given: what [`Cross`] would have collected.
    pub fn columns(&self, keep: &[usize]) -> Cross {
        let at = |i: usize, j: usize| self.sum[(i.max(j), i.min(j))];
        Cross {
            sum: Mat::from_fn(self.width(), keep.len(), |i, j| at(i, keep[j])),
            rows: self.rows,
        }
    }

    /// Mean square of all entries: the mean diagonal of the moment.
    pub fn mean_square(&self) -> f64 {
        let sum: f64 = (0..self.width()).map(|i| self.sum[(i, i)]).sum();
        sum / (self.rows.max(1) as f64 * self.width().max(1) as f64)
    }

    /// Root mean square of each entry.
    pub fn rms(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        (0..self.width())
            .map(|i| (self.sum[(i, i)] / rows).sqrt())
            .collect()
    }

    /// The lower triangle of the sum, column by column, and the count: what [`Gram::from_parts`] takes.
    pub fn parts(&self) -> (Vec<f64>, u64) {
        let n = self.width();
        let mut values = Vec::with_capacity(n * (n + 1) / 2);
        for j in 0..n {
            values.extend(self.sum.col(j).subrows(j, n - j).iter());
        }
        (values, self.rows)
    }

    /// A sum from [`Gram::parts`]; none when the values are no triangle.
    pub fn from_parts(values: &[f64], rows: u64) -> Option<Self> {
        let n = (0..=values.len())
            .find(|n| n * (n + 1) / 2 >= values.len())
            .filter(|n| n * (n + 1) / 2 == values.len())?;
        let mut sum = Mat::zeros(n, n);
        let mut rest = values;
        for j in 0..n {
            let (column, after) = rest.split_at(n - j);
            let below = sum.col_mut(j).subrows_mut(j, n - j);
            below
                .iter_mut()
                .zip(column)
                .for_each(|(to, from)| *to = *from);
            rest = after;
        }
        Some(Gram { sum, rows })
    }

    /// The mean `E[x xᵀ]`, both triangles.
    pub(super) fn mean(&self) -> Mat<f64> {
        let scale = 1.0 / (self.rows.max(1) as f64);
        Mat::from_fn(self.width(), self.width(), |i, j| {
            scale * self.sum[(i.max(j), i.min(j))]
        })
    }
}

/// The moment `Σ t xᵀ` between two kinds of vectors of the same tokens, summed in f64.
#[derive(Debug, Clone)]
pub struct Cross {
    sum: Mat<f64>,
    rows: u64,
}

impl Cross {
    /// An empty sum for targets of width `targets` and inputs of width `inputs`.
    pub fn new(targets: usize, inputs: usize) -> Self {
        Cross {
            sum: Mat::zeros(targets, inputs),
            rows: 0,
        }
    }

    /// Adds targets `[rows, targets]` with the inputs `[rows, inputs]` of the same tokens, row-major.
    ///
    /// # Panics
    /// When the two are not of as many tokens.
    pub fn add(&mut self, targets: &[f32], inputs: &[f32]) {
        let (m, n) = (self.sum.nrows(), self.sum.ncols());
        assert_eq!(targets.len() / m, inputs.len() / n, "tokens of both kinds");
        let blocks = targets
            .chunks(ROWS_AT_ONCE * m)
            .zip(inputs.chunks(ROWS_AT_ONCE * n));
        for (t, x) in blocks {
            let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|v| f64::from(*v)).collect() };
            let (t, x) = (wide(t), wide(x));
            let rows = x.len() / n;
            let t = MatRef::from_row_major_slice(&t, rows, m);
            let x = MatRef::from_row_major_slice(&x, rows, n);
            matmul(
                self.sum.as_mut(),
                Accum::Add,
                t.transpose(),
                x,
                1.0,
                parallelism(),
            );
            self.rows += rows as u64;
        }
    }

    /// The mean `E[t xᵀ]`.
    pub(super) fn mean(&self) -> Mat<f64> {
        let scale = 1.0 / (self.rows.max(1) as f64);
        Mat::from_fn(self.sum.nrows(), self.sum.ncols(), |i, j| {
            scale * self.sum[(i, j)]
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

        #[test]
        fn parts_and_subsets_are_those_of_the_whole(n in 1usize..9, seed: u64) {
            let value = |i: usize| ((seed.wrapping_mul(i as u64 + 7) >> 40) as f32) / 1e6 - 8.0;
            let x: Vec<f32> = (0..5 * n).map(value).collect();
            let mut gram = Gram::new(n);
            gram.add(&x);
            let (values, rows) = gram.parts();
            let back = Gram::from_parts(&values, rows).expect("a triangle");
            prop_assert_eq!(&back, &gram);
            let keep: Vec<usize> = (0..n).rev().step_by(2).collect();
            let picked: Vec<f32> = x.chunks(n).flat_map(|r| keep.iter().map(|i| r[*i]).collect::<Vec<_>>()).collect();
            let mut expected = Gram::new(keep.len());
            expected.add(&picked);
            let mut cross = Cross::new(n, keep.len());
            cross.add(&x, &picked);
            let (mean, columns, cross) = (gram.subset(&keep).mean(), gram.columns(&keep).mean(), cross.mean());
            for i in 0..keep.len() {
                for j in 0..keep.len() {
                    prop_assert!((mean[(i, j)] - expected.mean()[(i, j)]).abs() <= 1e-9 * (1.0 + mean[(i, j)].abs()));
                    prop_assert!((columns[(keep[i], j)] - mean[(i, j)]).abs() <= 1e-12 * (1.0 + mean[(i, j)].abs()));
                    prop_assert!((cross[(keep[i], j)] - mean[(i, j)]).abs() <= 1e-9 * (1.0 + mean[(i, j)].abs()));
                }
            }
        }
    }

    #[test]
    fn values_that_are_no_triangle_are_refused() {
        assert!(Gram::from_parts(&[1.0, 2.0], 1).is_none());
    }
}
