//! The factor that turns "small change of the weight" into "small change of the output".

use faer::{Mat, Side};

use super::Gram;

/// Where the ridge starts when the Gram as given is not positive definite, and where growing it tenfold stops.
const FIRST_RIDGE: f64 = 1e-8;
const LARGEST_RIDGE: f64 = 0.1;

/// A square root of a second moment: `L Lᵀ = E[x xᵀ] + ridge · mean(diagonal) · I`, L lower triangular.
#[derive(Debug, Clone)]
pub struct Whitening {
    pub(super) l: Mat<f64>,
    /// What the ridge added to the diagonal.
    pub(super) added: f64,
    /// The ridge that was used, relative to the mean diagonal.
    pub ridge: f64,
    /// Condition number of the damped moment, estimated as `(max Lᵢᵢ / min Lᵢᵢ)²`: a lower bound.
    pub condition: f64,
    /// Whether a larger ridge than asked for had to be taken.
    pub raised: bool,
}

impl Whitening {
    /// Width of the vectors.
    pub fn width(&self) -> usize {
        self.l.nrows()
    }

    /// For vectors of which nothing is known but their mean square: every direction is alike.
    pub fn flat(width: usize, mean_square: f64) -> Self {
        let root = mean_square.sqrt();
        Whitening {
            l: Mat::from_fn(width, width, |i, j| if i == j { root } else { 0.0 }),
            added: 0.0,
            ridge: 0.0,
            condition: 1.0,
            raised: false,
        }
    }
}

/// Factors the Gram with a relative ridge (SVD-LLM, arXiv 2403.07378, §3.1, whose absolute ridge is replaced:
/// see low-rank.md §4.1 item 5). When the matrix is not positive definite the ridge grows tenfold until it is; the result
/// says so.
///
/// # Errors
/// A sentence when the Gram is empty or not finite, or no ridge up to 10 % of the mean diagonal helps.
pub fn whiten(gram: &Gram, ridge: f64) -> Result<Whitening, String> {
    if gram.rows() == 0 {
        return Err("nothing was collected".into());
    }
    let mean = gram.mean();
    let n = gram.width();
    let diagonal = (0..n).map(|i| mean[(i, i)]).sum::<f64>() / n as f64;
    if !diagonal.is_finite() {
        return Err("a second moment overflowed".into());
    }
    if diagonal <= 0.0 {
        return Err(
            "a second moment is zero: all inputs, or all gradients, of a projection are".into(),
        );
    }
    let larger = |ridge: &f64| Some((10.0 * ridge).max(FIRST_RIDGE));
    let ridges = std::iter::successors(Some(ridge), larger)
        .take_while(|tried| *tried == ridge || *tried <= LARGEST_RIDGE);
    for (attempt, ridge) in ridges.enumerate() {
        let mut damped = mean.clone();
        for i in 0..n {
            damped[(i, i)] += ridge * diagonal;
        }
        let Ok(factor) = damped.llt(Side::Lower) else {
            continue;
        };
        let l = factor.L().to_owned();
        let pivots = (0..n).map(|i| l[(i, i)]);
        let (low, high) = pivots.fold((f64::INFINITY, 0.0f64), |(lo, hi), v| {
            (lo.min(v), hi.max(v))
        });
        // Rounding leaves pivots of about the square root of f64's precision where there should be none; dividing
        // by those would amplify noise, so they count as not positive definite.
        if low.is_nan() || low <= high * 1e-7 {
            continue;
        }
        return Ok(Whitening {
            l,
            added: ridge * diagonal,
            ridge,
            condition: (high / low).powi(2),
            raised: attempt > 0,
        });
    }
    Err("a second moment is not positive definite under any reasonable ridge".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gram(rows: &[&[f32]]) -> Gram {
        let mut gram = Gram::new(rows[0].len());
        for row in rows {
            gram.add(row);
        }
        gram
    }

    #[test]
    fn the_factor_squares_to_the_damped_gram() {
        let g = gram(&[&[1.0, 2.0], &[3.0, -1.0], &[0.5, 0.5]]);
        let w = whiten(&g, 1e-3).expect("positive definite");
        assert!(!w.raised);
        let (product, mean) = (&w.l * w.l.transpose(), g.mean());
        let shift = 1e-3 * (mean[(0, 0)] + mean[(1, 1)]) / 2.0;
        for i in 0..2 {
            for j in 0..2 {
                let expected = mean[(i, j)] + if i == j { shift } else { 0.0 };
                assert!((product[(i, j)] - expected).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_dead_channel_raises_the_ridge_and_says_so() {
        let w = whiten(&gram(&[&[1.0, 0.0], &[2.0, 0.0]]), 0.0).expect("a ridge helps");
        assert!(w.raised && w.ridge > 0.0 && w.condition.is_finite());
    }

    #[test]
    fn fewer_inputs_than_channels_raise_the_ridge_too() {
        let rows: Vec<Vec<f32>> = (0..5)
            .map(|r| {
                (0..12)
                    .map(|c| ((r * 7 + c * 5) % 11) as f32 - 4.7)
                    .collect()
            })
            .collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let w = whiten(&gram(&rows), 0.0).expect("a ridge helps");
        assert!(w.raised && w.ridge <= LARGEST_RIDGE);
    }

    #[test]
    fn hopeless_inputs_are_refused() {
        assert!(whiten(&Gram::new(3), 0.0).is_err());
        assert!(whiten(&gram(&[&[0.0, 0.0]]), 1e-3).is_err());
        assert!(whiten(&gram(&[&[f32::NAN, 0.0]]), 1e-3).is_err());
    }
}
