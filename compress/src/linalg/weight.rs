//! A weight in f64.

use faer::{Mat, MatRef};

/// The matrix of a linear map, `out × in`, in f64.
#[derive(Debug, Clone)]
pub struct Weight {
    pub(super) m: Mat<f64>,
}

impl Weight {
    /// A weight from its values `[out, in]`, row-major.
    ///
    /// # Panics
    /// When there are not `out · input` values.
    pub fn new(values: &[f32], out: usize, input: usize) -> Self {
        let values = MatRef::from_row_major_slice(values, out, input);
        Weight {
            m: Mat::from_fn(out, input, |i, j| f64::from(values[(i, j)])),
        }
    }

    /// Weights that read the same input, one above the other.
    ///
    /// # Panics
    /// When their inputs differ in width.
    pub fn stack(parts: &[&Weight]) -> Self {
        let input = parts.first().map_or(0, |p| p.m.ncols());
        let out = parts.iter().map(|p| p.m.nrows()).sum();
        let mut m = Mat::zeros(out, input);
        let mut row = 0;
        for part in parts {
            m.subrows_mut(row, part.m.nrows()).copy_from(&part.m);
            row += part.m.nrows();
        }
        Weight { m }
    }

    /// Some of the rows, in the order given.
    pub fn rows(&self, keep: &[usize]) -> Self {
        Weight {
            m: Mat::from_fn(keep.len(), self.m.ncols(), |i, j| self.m[(keep[i], j)]),
        }
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.m.nrows(), self.m.ncols())
    }

    /// The values `[out, in]`, row-major, rounded to f32.
    pub fn values(&self) -> Vec<f32> {
        row_major(&self.m)
    }
}

/// Row-major f32 values of a matrix.
pub(super) fn row_major(m: &Mat<f64>) -> Vec<f32> {
    let mut values = Vec::with_capacity(m.nrows() * m.ncols());
    for i in 0..m.nrows() {
        values.extend((0..m.ncols()).map(|j| m[(i, j)] as f32));
    }
    values
}
