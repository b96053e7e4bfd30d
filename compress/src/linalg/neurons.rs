//! Spectra of weights whose rows are removed one after the other.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat};

use super::decompose::times_lower;
use super::{Gram, Moment, Weight, Whitening, parallelism};

/// `MᵀM` for growing sets of a weight's rows, each from the one before.
///
/// With the rows in the order in which they would be removed last, a larger set only adds: `W_KᵀG_KK W_K` grows by the
/// new rows' products with all rows so far.
pub struct NeuronSpectra<'a> {
    /// Rows of W, the last to be removed first.
    rows: Mat<f64>,
    /// The gradient's second moment in the same order.
    gradient: Mat<f64>,
    input: &'a Whitening,
    ridge: f64,
    /// `W_KᵀG_KK W_K` and `W_KᵀW_K`.
    weighted: Mat<f64>,
    plain: Mat<f64>,
    count: usize,
}

impl<'a> NeuronSpectra<'a> {
    /// For a weight whose outputs are removed in `order`; `gradient` is their gradients' moment, or none for the identity.
    pub fn new(
        weight: &Weight,
        gradient: Option<&Gram>,
        ridge: f64,
        order: &[usize],
        input: &'a Whitening,
    ) -> Self {
        let last_first: Vec<usize> = order.iter().rev().copied().collect();
        let n = weight.m.ncols();
        NeuronSpectra {
            rows: weight.rows(&last_first).m,
            gradient: match gradient {
                Some(gram) => gram.subset(&last_first).mean(),
                None => Mat::identity(order.len(), order.len()),
            },
            input,
            ridge: if gradient.is_some() { ridge } else { 0.0 },
            weighted: Mat::zeros(n, n),
            plain: Mat::zeros(n, n),
            count: 0,
        }
    }

    /// The moment of the `count` rows that are removed last; counts may only grow.
    pub fn grow(&mut self, count: usize) -> Moment {
        let (from, more) = (self.count, count - self.count);
        let new = self.rows.subrows(from, more);
        let before = self.rows.subrows(0, from);
        let across = self.gradient.submatrix(from, 0, more, from) * before;
        let mixed = new.transpose() * across;
        self.weighted += &mixed;
        self.weighted += mixed.transpose();
        let own = self.gradient.submatrix(from, from, more, more) * new;
        self.weighted += new.transpose() * own;
        self.plain += new.transpose() * new;
        self.count = count;

        let diagonal = (0..count).map(|i| self.gradient[(i, i)]).sum::<f64>() / count as f64;
        let mut sum = self.weighted.clone();
        if self.ridge > 0.0 {
            sum += faer::Scale(self.ridge * diagonal) * &self.plain;
        }
        let right = times_lower(&sum, &self.input.l);
        let mut moment = Mat::zeros(right.ncols(), right.ncols());
        // Symmetric: the eigenvalues are read from the lower triangle.
        triangular::matmul(
            moment.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Replace,
            self.input.l.transpose(),
            BlockStructure::TriangularUpper,
            &right,
            BlockStructure::Rectangular,
            1.0,
            parallelism(),
        );
        Moment::from_parts(moment)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_data::{gram, values, whitening};
    use super::super::{Moment, whiten};
    use super::*;

    #[test]
    fn each_set_has_the_spectrum_of_its_rows() {
        let (m, n) = (9, 5);
        let w = Weight::new(&values(m * n, 1), m, n);
        let (input, gradient) = (whitening(n, 2), gram(m, 3));
        let order = [3, 1, 4, 0, 5, 8, 2, 6, 7];
        let mut spectra = NeuronSpectra::new(&w, Some(&gradient), 0.1, &order, &input);
        for count in [5, 6, 9] {
            let kept: Vec<usize> = order[m - count..].to_vec();
            let output = whiten(&gradient.subset(&kept), 0.1).expect("definite");
            let direct = Moment::of(&w.rows(&kept), &input, &[&output]).spectrum();
            let grown = spectra.grow(count).spectrum().expect("converges");
            for (a, b) in grown.iter().zip(direct.expect("converges")) {
                assert!((a - b).abs() < 1e-9 * (1.0 + b), "{count}: {a} {b}");
            }
        }
    }
}
