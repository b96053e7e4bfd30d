//! Perplexity as compression papers report it (GPTQ, SparseGPT, SVD-LLM, ...): the text is tokenised once, cut into
//! non-overlapping windows, and `window - 1` tokens are scored in each; the tail is dropped.

use std::time::Instant;

use burn::tensor::Tensor;
use cinder_models::Decoder;
use cinder_models::ops::log_sum_exp;
use cinder_models::progress::Progress;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::result::Perplexity;

/// Positions whose logits are held at a time: a whole window of logits would be larger than a small model.
pub(crate) const ROWS_AT_ONCE: usize = 128;

/// Which windows of the text are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowChoice {
    /// Every whole window.
    All,
    /// The first n.
    First(usize),
    /// These, by index.
    Indices(Vec<usize>),
}

impl WindowChoice {
    fn indices(&self, available: usize) -> Result<Vec<usize>> {
        if let WindowChoice::First(n) = self
            && *n > available
        {
            return Err(Error::NoSuchWindow {
                index: n - 1,
                available,
            });
        }
        let indices: Vec<usize> = match self {
            WindowChoice::All => (0..available).collect(),
            WindowChoice::First(n) => (0..*n).collect(),
            WindowChoice::Indices(list) => list.clone(),
        };
        match indices.iter().max() {
            Some(last) if *last >= available => Err(Error::NoSuchWindow {
                index: *last,
                available,
            }),
            Some(_) => Ok(indices),
            None => Err(Error::NoSuchWindow {
                index: 0,
                available,
            }),
        }
    }
}

/// Scores `tokens` in windows of `window`.
///
/// The result is the exponential of the mean of window means. The standard error treats windows as independent
/// draws and carries over to the perplexity by its derivative; with a single window it is computed from the
/// tokens instead.
///
/// # Errors
/// [`Error::TooShort`] when there is no whole window, [`Error::NoSuchWindow`] for an index past the end, and
/// [`cinder_models::Error::NonFinite`] rather than skipping a window whose logits overflow.
pub fn perplexity(
    decoder: &Decoder,
    tokens: &[u32],
    window: usize,
    choice: &WindowChoice,
    bos_ids: &[u32],
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let available = tokens.len() / window.max(1);
    if window < 2 || available == 0 {
        return Err(Error::TooShort {
            tokens: tokens.len(),
            window,
        });
    }
    let indices = choice.indices(available)?;
    progress.start("perplexity", indices.len() as u64);
    let start = Instant::now();
    let mut window_nll = Vec::with_capacity(indices.len());
    let mut spread = 0.0;
    for index in &indices {
        let losses = token_losses(decoder, &tokens[index * window..(index + 1) * window])?;
        let (mean, stderr) = mean_and_stderr(&losses);
        window_nll.push(mean);
        spread = stderr;
        let so_far = window_nll.iter().sum::<f64>() / window_nll.len() as f64;
        progress.advance(1);
        progress.note(&format!("perplexity {:.3}", so_far.exp()));
    }
    progress.finish();
    let (mean, stderr) = match window_nll.len() {
        1 => (window_nll[0], spread),
        _ => mean_and_stderr(&window_nll),
    };
    let processed = (indices.len() * window) as f64;
    Ok(Perplexity {
        perplexity: mean.exp(),
        stderr: mean.exp() * stderr,
        window: window as u64,
        stride: window as u64,
        tokens_scored: (indices.len() * (window - 1)) as u64,
        windows: indices.len() as u64,
        window_indices: indices.into_iter().map(|i| i as u64).collect(),
        window_nll,
        tokens_per_second: processed / start.elapsed().as_secs_f64(),
        bos_ids: bos_ids.to_vec(),
    })
}

/// Negative log-likelihood in nats of each token of `ids` after the first, given those before it.
pub fn token_losses(decoder: &Decoder, ids: &[u32]) -> Result<Vec<f64>> {
    let hidden: Tensor<3> = decoder.hidden(&[ids.to_vec()], None)?;
    let [_, tokens, width] = hidden.dims();
    let hidden: Tensor<2> = hidden.reshape([tokens, width]);
    let mut losses = Vec::with_capacity(tokens - 1);
    for first in (0..tokens - 1).step_by(ROWS_AT_ONCE) {
        let rows = ROWS_AT_ONCE.min(tokens - 1 - first);
        let logits = decoder.logits(hidden.clone().narrow(0, first, rows));
        let vocab = logits.dims()[1];
        let values = logits.into_data().try_into_vec::<f32>().map_err(|e| {
            cinder_models::Error::Request(format!("logits could not be read: {e:?}"))
        })?;
        let block: Vec<f64> = values
            .par_chunks(vocab)
            .zip(&ids[first + 1..first + 1 + rows])
            .map(|(row, target)| log_sum_exp(row) - f64::from(row[*target as usize]))
            .collect();
        losses.extend(block);
    }
    match losses.iter().position(|l| !l.is_finite()) {
        Some(at) => Err(cinder_models::Error::NonFinite {
            what: format!("the loss of token {} of a window", at + 1),
        }
        .into()),
        None => Ok(losses),
    }
}

/// Mean, and its standard error from the sample variance (0 for a single value).
pub(crate) fn mean_and_stderr(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_outside_the_text_are_refused() {
        assert_eq!(WindowChoice::All.indices(3).expect("fits"), [0, 1, 2]);
        assert_eq!(
            WindowChoice::Indices(vec![2, 0]).indices(3).expect("fits"),
            [2, 0]
        );
        assert!(WindowChoice::First(4).indices(3).is_err());
        assert!(WindowChoice::First(0).indices(3).is_err());
    }

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        let (mean, stderr) = mean_and_stderr(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(mean, 2.5);
        assert!((stderr - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    }
}
