//! Perplexity as compression papers report it (GPTQ, SparseGPT, SVD-LLM, ...): the text is tokenised once, cut into
//! non-overlapping windows, and `window - 1` tokens are scored in each; the tail is dropped.

use std::time::Instant;

use burn::tensor::Tensor;
use cinder_models::Decoder;
use cinder_models::ops::log_sum_exp;
use cinder_models::progress::Progress;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::result::{LossAt, Perplexity};
use crate::statistics::{Estimate, doubling, mean_and_stderr};

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
    pub(crate) fn indices(&self, available: usize) -> Result<Vec<usize>> {
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
    let mut all = Vec::with_capacity(indices.len() * (window - 1));
    let mut sum = 0.0;
    for index in &indices {
        let losses = token_losses(decoder, &tokens[index * window..(index + 1) * window])?;
        sum += mean_and_stderr(&losses).0;
        all.extend(losses);
        progress.advance(1);
        let so_far = sum / (all.len() / (window - 1)) as f64;
        progress.note(&format!("perplexity {:.3}", so_far.exp()));
    }
    progress.finish();
    let seconds = start.elapsed().as_secs_f64();
    Ok(of_losses(&all, window, indices, bos_ids, seconds))
}

/// The perplexity of these windows, of the losses of all their tokens but each first.
pub(crate) fn of_losses(
    losses: &[f64],
    window: usize,
    indices: Vec<usize>,
    bos_ids: &[u32],
    seconds: f64,
) -> Perplexity {
    let each = losses.chunks(window - 1).map(mean_and_stderr);
    let (window_nll, spreads): (Vec<f64>, Vec<f64>) = each.unzip();
    let (perplexity, stderr) = mean_loss(&window_nll, spreads.last().copied().unwrap_or(0.0));
    Perplexity {
        perplexity,
        stderr,
        window: window as u64,
        stride: window as u64,
        tokens_scored: losses.len() as u64,
        windows: indices.len() as u64,
        tokens_per_second: (indices.len() * window) as f64 / seconds,
        window_indices: indices.into_iter().map(|i| i as u64).collect(),
        window_nll,
        by_position: LossAt::all(losses, window - 1),
        bos_ids: bos_ids.to_vec(),
    }
}

/// The perplexity of windows of these mean losses, and its standard error; `spread` is the error of a single one's mean.
pub(crate) fn mean_loss(window_nll: &[f64], spread: f64) -> (f64, f64) {
    let (mean, stderr) = match window_nll {
        [one] => (*one, spread),
        several => mean_and_stderr(several),
    };
    (mean.exp(), mean.exp() * stderr)
}

impl LossAt {
    /// Ranges that double, over windows of `per_window` scored tokens.
    fn all(losses: &[f64], per_window: usize) -> Vec<Self> {
        let at = |(first, end): (usize, usize)| {
            let within: Vec<f64> = losses
                .chunks(per_window)
                .flat_map(|window| &window[first..end])
                .copied()
                .collect();
            let nll = Estimate::of_windows(&within, end - first);
            LossAt {
                // The first scored token has one token before it.
                from: first as u64 + 1,
                to: end as u64,
                mean_nll: nll.mean,
                stderr: nll.stderr,
            }
        };
        doubling(per_window).into_iter().map(at).collect()
    }
}

/// Negative log-likelihood in nats of each token of `ids` after the first, given those before it.
///
/// # Errors
/// [`cinder_models::Error::NonFinite`] when a loss is no number.
pub fn token_losses(decoder: &Decoder, ids: &[u32]) -> Result<Vec<f64>> {
    token_losses_after(decoder, ids, 1)
}

/// [`token_losses`] of the tokens after the first `known`, of which there is at least one.
pub(crate) fn token_losses_after(decoder: &Decoder, ids: &[u32], known: usize) -> Result<Vec<f64>> {
    each_position(decoder, ids, known - 1, |_, logits, target| {
        log_sum_exp(logits) - f64::from(logits[target as usize])
    })
    .and_then(finite)
}

/// The losses, when all of them are finite.
pub(crate) fn finite(losses: Vec<f64>) -> Result<Vec<f64>> {
    match losses.iter().position(|l| !l.is_finite()) {
        Some(at) => Err(cinder_models::Error::NonFinite {
            what: format!("the loss of token {} of a window", at + 1),
        }
        .into()),
        None => Ok(losses),
    }
}

/// Calls `each` with every position of `ids` from `start` on but the last, its logits `[vocab]`, and the token that follows.
pub(crate) fn each_position<T: Send>(
    decoder: &Decoder,
    ids: &[u32],
    start: usize,
    each: impl Fn(usize, &[f32], u32) -> T + Sync,
) -> Result<Vec<T>> {
    let hidden = decoder.hidden(&[ids.to_vec()], None)?;
    each_position_of(decoder, hidden, ids, start, each)
}

/// [`each_position`] of final hidden states `[1, tokens, hidden]` that are known already.
pub(crate) fn each_position_of<T: Send>(
    decoder: &Decoder,
    hidden: Tensor<3>,
    ids: &[u32],
    start: usize,
    each: impl Fn(usize, &[f32], u32) -> T + Sync,
) -> Result<Vec<T>> {
    let [_, tokens, width] = hidden.dims();
    let hidden: Tensor<2> = hidden.reshape([tokens, width]);
    let mut all = Vec::with_capacity(tokens - 1 - start);
    for first in (start..tokens - 1).step_by(ROWS_AT_ONCE) {
        let rows = ROWS_AT_ONCE.min(tokens - 1 - first);
        let logits = decoder.logits(hidden.clone().narrow(0, first, rows));
        let vocab = logits.dims()[1];
        let values = logits.into_data().try_into_vec::<f32>().map_err(|e| {
            cinder_models::Error::Request(format!("logits could not be read: {e:?}"))
        })?;
        let rows = values
            .par_chunks(vocab)
            .zip(&ids[first + 1..first + 1 + rows]);
        let rows = rows
            .enumerate()
            .map(|(row, (logits, target))| each(first + row, logits, *target));
        all.extend(rows.collect::<Vec<_>>());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_by_position_are_means_of_windows() {
        // Two windows of 100 scored tokens, one of them a nat worse, both half a nat worse from the 65th token on.
        let losses: Vec<f64> = (0..200)
            .map(|i| f64::from(i / 100) + if i % 100 < 64 { 1.0 } else { 1.5 })
            .collect();
        let at = LossAt::all(&losses, 100);
        let found: Vec<_> = at.iter().map(|a| (a.from, a.to, a.mean_nll)).collect();
        assert_eq!(found, [(1, 64, 1.5), (65, 100, 2.0)]);
        assert!(at.iter().all(|a| (a.stderr - 0.5).abs() < 1e-12));
    }

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
}
