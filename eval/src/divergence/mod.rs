//! How far a model's predictions are from a reference's, token by token on the same text.
//!
//! Perplexity tells how probable the text is; a compressed model can keep that and still answer differently. The
//! Kullback–Leibler divergence `Σ p ln(p/q)` of each position's next-token distributions tells how different (llama.cpp's
//! `--kl-divergence` reports the like). Only the reference's most likely tokens are kept: the others count as one event, by
//! which the divergence can only come out smaller (data processing inequality), by less the more tokens are kept.

mod reference;
mod substituted;
#[cfg(test)]
mod tests;

use cinder_models::Decoder;
use cinder_models::cache::CacheFormat;
use cinder_models::ops::log_sum_exp;
use cinder_models::progress::Progress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::perplexity::{WindowChoice, each_position, finite};
use crate::result::ModelIdentity;
use crate::statistics::{Estimate, doubling, percentile};

pub use reference::{REFERENCE_SCHEMA, Reference, ReferenceIdentity, ReferenceQuestion};
pub use substituted::Probe;

/// What `cinder eval kl --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DivergenceResult {
    /// Version of this layout: [`SCHEMA`](crate::SCHEMA).
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    pub model: ModelIdentity,
    /// Type the weights were computed in, such as `f32`.
    pub dtype: String,
    /// How the KV cache stores what it keeps, which the model is run through.
    #[schemars(with = "String")]
    pub cache: CacheFormat,
    /// Tokens that a packed cache keeps in f16 too; 0 for none.
    pub residual_window: usize,
    /// What the model is compared with, and on which windows of which text.
    pub reference: ReferenceIdentity,
    #[serde(flatten)]
    pub divergence: Divergence,
    /// Where it ran, such as `cpu (2 threads)`.
    pub device: String,
    /// The command line that made this.
    pub command: String,
    /// Seconds spent evaluating, without loading.
    pub seconds: f64,
}

/// A model beside a reference, over the scored positions. Standard errors take windows as independent draws (with one window,
/// its tokens) and are those of the paired differences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Divergence {
    /// Kullback–Leibler divergence of the model from the reference, in nats per token.
    pub kl: Estimate,
    pub kl_median: f64,
    /// 90 % of the positions are below it.
    pub kl_p90: f64,
    pub kl_p99: f64,
    pub kl_max: f64,
    /// Part of the positions at which both find the same token most likely.
    pub top1_agreement: Estimate,
    /// Change of the probability of the text's own next token.
    pub delta_p: Estimate,
    /// Root of the mean square of that change.
    pub delta_p_rms: f64,
    pub reference_perplexity: f64,
    pub perplexity: f64,
    /// Perplexity over the reference's, from the differences of the windows' losses.
    pub perplexity_ratio: Estimate,
    pub windows: u64,
    pub tokens_scored: u64,
    /// Mean divergence of each window, in nats per token.
    pub window_kl: Vec<f64>,
    /// Mean negative log-likelihood of each window, in nats per token.
    pub window_nll: Vec<f64>,
    pub reference_window_nll: Vec<f64>,
    /// Mean probability that the reference gives the tokens that were kept.
    pub covered: f64,
    /// By how far into the window the token is.
    pub by_position: Vec<AtPositions>,
}

/// Means over a range of positions of all windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AtPositions {
    /// Tokens before the first position of the range.
    pub first: u64,
    /// Tokens before the last.
    pub last: u64,
    /// Nats per token.
    pub kl: f64,
    pub nll: f64,
    pub reference_nll: f64,
}

/// One position of the model beside the reference.
#[derive(Debug, Clone, Copy)]
struct Row {
    kl: f64,
    same_top: bool,
    delta_p: f64,
    nll: f64,
    reference_nll: f64,
    covered: f64,
}

impl Divergence {
    /// Runs the model over the reference's windows of `tokens`.
    ///
    /// # Errors
    /// [`Error::OtherTokens`] when the model's tokens are not those of the reference; otherwise as
    /// [`perplexity`](crate::perplexity()).
    pub fn measure(
        decoder: &Decoder,
        tokens: &[u32],
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let identity = &reference.identity;
        let window = identity.window as usize;
        let indices = identity.window_indices.iter().map(|i| *i as usize);
        let choice = WindowChoice::Indices(indices.collect());
        let other = || Error::OtherTokens {
            reference: identity.model.name.clone(),
        };
        let (_, windows) = reference::windows(tokens, window, &choice).map_err(|_| other())?;
        if reference::hash(&windows) != identity.ids_sha256 {
            return Err(other());
        }
        let per_window = window - 1;
        let mut rows = Vec::with_capacity(windows.len() * per_window);
        progress.start("divergence", windows.len() as u64);
        for (at, ids) in windows.into_iter().enumerate() {
            let scored = each_position(decoder, ids, 0, |position, logits, target| {
                reference.row(at * per_window + position, logits, target)
            })?;
            finite(scored.iter().map(|row| row.nll).collect())?;
            rows.extend(scored);
            progress.advance(1);
            let kl = rows.iter().map(|row: &Row| row.kl).sum::<f64>() / rows.len() as f64;
            progress.note(&format!("{kl:.4} nats"));
        }
        progress.finish();
        Ok(Self::of(&rows, per_window))
    }

    fn of(rows: &[Row], per_window: usize) -> Self {
        let each = |f: fn(&Row) -> f64| rows.iter().map(f).collect::<Vec<f64>>();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let by_window = |values: &[f64]| values.chunks(per_window).map(mean).collect::<Vec<_>>();
        let estimate = |values: &[f64]| Estimate::of_windows(values, per_window);
        let kl = each(|row| row.kl);
        let mut sorted = kl.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (nll, reference_nll) = (each(|row| row.nll), each(|row| row.reference_nll));
        let delta_p = each(|row| row.delta_p);
        let squares: Vec<f64> = delta_p.iter().map(|d| d * d).collect();
        let difference = estimate(&each(|row| row.nll - row.reference_nll));
        Divergence {
            kl: estimate(&kl),
            kl_median: percentile(&sorted, 0.5),
            kl_p90: percentile(&sorted, 0.9),
            kl_p99: percentile(&sorted, 0.99),
            kl_max: percentile(&sorted, 1.0),
            top1_agreement: estimate(&each(|row| f64::from(u8::from(row.same_top)))),
            delta_p: estimate(&delta_p),
            delta_p_rms: mean(&squares).sqrt(),
            reference_perplexity: mean(&reference_nll).exp(),
            perplexity: mean(&nll).exp(),
            perplexity_ratio: difference.map(f64::exp, f64::exp),
            windows: (rows.len() / per_window) as u64,
            tokens_scored: rows.len() as u64,
            window_kl: by_window(&kl),
            window_nll: by_window(&nll),
            reference_window_nll: by_window(&reference_nll),
            covered: mean(&each(|row| row.covered)),
            by_position: AtPositions::all(rows, per_window),
        }
    }
}

impl AtPositions {
    /// Ranges that double: positions 0 to 63 of each window, 64 to 127, 128 to 255 and so on.
    fn all(rows: &[Row], per_window: usize) -> Vec<Self> {
        let of = |(first, end): (usize, usize)| {
            let within = || rows.chunks(per_window).flat_map(move |w| &w[first..end]);
            let count = within().count() as f64;
            AtPositions {
                // The first scored token has one token before it.
                first: first as u64 + 1,
                last: end as u64,
                kl: within().map(|row| row.kl).sum::<f64>() / count,
                nll: within().map(|row| row.nll).sum::<f64>() / count,
                reference_nll: within().map(|row| row.reference_nll).sum::<f64>() / count,
            }
        };
        doubling(per_window).into_iter().map(of).collect()
    }
}

impl Reference {
    /// A model's `logits` at a position beside the reference's predictions there.
    fn row(&self, position: usize, logits: &[f32], target: u32) -> Row {
        let log_sum = log_sum_exp(logits);
        let log_probability = |id: u32| f64::from(logits[id as usize]) - log_sum;
        let top_k = self.identity.top_k as usize;
        let kept = position * top_k..(position + 1) * top_k;
        let (ids, log_p) = (&self.ids[kept.clone()], &self.log_probabilities[kept]);
        let (mut kl, mut p_sum, mut q_sum) = (0.0, 0.0, 0.0);
        for (id, log_p) in ids.iter().zip(log_p) {
            let (log_p, log_q) = (f64::from(*log_p), log_probability(*id));
            kl += log_p.exp() * (log_p - log_q);
            p_sum += log_p.exp();
            q_sum += log_q.exp();
        }
        // Probabilities that add up to one leave nothing but rounding.
        const ROUNDING: f64 = 1e-6;
        let (p_rest, q_rest) = (1.0 - p_sum, 1.0 - q_sum);
        if p_rest > ROUNDING {
            kl += p_rest * (p_rest / q_rest.max(f64::MIN_POSITIVE)).ln();
        }
        // The first of equals, as in `ids`.
        let mut top = 0;
        for (id, logit) in logits.iter().enumerate() {
            if *logit > logits[top] {
                top = id;
            }
        }
        let (nll, reference_nll) = (-log_probability(target), -f64::from(self.target[position]));
        Row {
            kl: kl.max(0.0),
            same_top: ids[0] as usize == top,
            delta_p: (-nll).exp() - (-reference_nll).exp(),
            nll,
            reference_nll,
            covered: p_sum.min(1.0),
        }
    }
}
