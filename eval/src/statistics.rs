//! Means with their standard errors.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A mean and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    pub mean: f64,
    pub stderr: f64,
}

impl Estimate {
    /// Of values that are grouped by window, `window` to each but perhaps the last. Tokens of a window depend on each other, so
    /// the windows' means are what is taken to be independent; with a single window there are only its tokens.
    pub(crate) fn of_windows(values: &[f64], window: usize) -> Self {
        let means: Vec<f64> = values.chunks(window.max(1)).map(mean).collect();
        let (mean, stderr) = match means.len() {
            1 => mean_and_stderr(values),
            _ => mean_and_stderr(&means),
        };
        Estimate { mean, stderr }
    }

    /// Of a sum over a sum, where pairs of the two are independent draws (ratio estimator).
    pub(crate) fn of_ratio(pairs: &[(f64, f64)]) -> Self {
        let over: f64 = pairs.iter().map(|(_, over)| over).sum();
        let mean = pairs.iter().map(|(value, _)| value).sum::<f64>() / over;
        let squares = pairs
            .iter()
            .map(|(value, over)| (value - mean * over).powi(2));
        let n = pairs.len() as f64;
        let stderr = match pairs.len() {
            0 | 1 => 0.0,
            _ => (squares.sum::<f64>() * n / (n - 1.0)).sqrt() / over,
        };
        Estimate { mean, stderr }
    }

    /// Of `f` of the quantity: its derivative carries the error over.
    pub fn map(self, f: impl Fn(f64) -> f64, derivative: impl Fn(f64) -> f64) -> Self {
        Estimate {
            mean: f(self.mean),
            stderr: derivative(self.mean).abs() * self.stderr,
        }
    }
}

/// Ranges of a window's positions that double: 0 to 63, 64 to 127, 128 to 255 and so on, up to `positions`; first and end.
pub(crate) fn doubling(positions: usize) -> Vec<(usize, usize)> {
    const NARROWEST: usize = 64;
    let mut ranges = Vec::new();
    let (mut first, mut end) = (0, NARROWEST);
    while first < positions {
        ranges.push((first, end.min(positions)));
        (first, end) = (end, 2 * end);
    }
    ranges
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean, and its standard error from the sample variance (0 for a single value).
pub(crate) fn mean_and_stderr(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = mean(values);
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// The value below which a part `share` of the sorted values lie (nearest rank).
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        let (mean, stderr) = mean_and_stderr(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(mean, 2.5);
        assert!((stderr - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn windows_are_the_draws_and_tokens_only_of_a_single_one() {
        let values = [1.0, 3.0, 5.0, 7.0];
        let two = Estimate::of_windows(&values, 2);
        assert_eq!((two.mean, two.stderr), (4.0, 2.0));
        let one = Estimate::of_windows(&values, 4);
        assert_eq!(one.mean, 4.0);
        assert!((one.stderr - (20.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        let ratio = two.map(f64::exp, f64::exp);
        assert_eq!(ratio.stderr, 2.0 * 4.0f64.exp());
    }

    #[test]
    fn a_ratio_of_equal_weights_is_a_mean() {
        let pairs = [(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (4.0, 2.0)];
        let ratio = Estimate::of_ratio(&pairs);
        let (mean, stderr) = mean_and_stderr(&[0.5, 1.0, 1.5, 2.0]);
        assert!((ratio.mean - mean).abs() < 1e-12 && (ratio.stderr - stderr).abs() < 1e-12);
    }

    #[test]
    fn percentiles_are_values_that_occur() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        let of = |share| percentile(&sorted, share);
        assert_eq!(
            (of(0.0), of(0.5), of(0.99), of(1.0)),
            (1.0, 100.0, 198.0, 200.0)
        );
    }
}
