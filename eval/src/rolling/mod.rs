//! Perplexity per word and per byte, document by document: lm-evaluation-harness' `loglikelihood_rolling` (0.4.13).
//!
//! Each document stands alone. The first of its tokens is predicted from one prefix token (beginning of text, else end of text),
//! and every token is scored once, in windows that do not overlap. Words and bytes are those of the document as it is; the
//! model reads it after its task's detokeniser.

mod detokenize;

use std::time::Instant;

use cinder_models::Decoder;
use cinder_models::cache::CacheFormat;
use cinder_models::progress::Progress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::perplexity::token_losses_after;
use crate::result::{CorpusIdentity, ModelIdentity};
use crate::statistics::Estimate;

pub use detokenize::{Detokenizer, wikitext_pages, words};

/// What `cinder eval rolling --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RollingResult {
    /// Version of this layout: [`SCHEMA`](crate::SCHEMA).
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    pub model: ModelIdentity,
    pub corpus: CorpusIdentity,
    /// Type the weights were computed in, such as `f32`.
    pub dtype: String,
    /// How the KV cache stores what it keeps, which the model is run through.
    #[schemars(with = "String")]
    pub cache: CacheFormat,
    /// Tokens that a packed cache keeps in f16 too; 0 for none.
    pub residual_window: usize,
    #[serde(flatten)]
    pub rolling: Rolling,
    /// Where it ran, such as `cpu (2 threads)`.
    pub device: String,
    /// The command line that made this.
    pub command: String,
    /// Seconds spent evaluating, without loading.
    pub seconds: f64,
}

/// The result of [`rolling`], over all documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rolling {
    /// exp of the negative log-likelihood per word.
    pub word_perplexity: f64,
    /// exp of the negative log-likelihood per byte.
    pub byte_perplexity: f64,
    /// The negative log-likelihood in bits per byte; the standard error takes documents as independent draws.
    pub bits_per_byte: Estimate,
    pub documents: u64,
    /// What white space separates, empty ends counted, as lm-evaluation-harness counts words.
    pub words: u64,
    /// UTF-8 bytes.
    pub bytes: u64,
    pub tokens_scored: u64,
    /// Tokens that a window predicts at most.
    pub window: u64,
    /// Sum over all tokens, in nats.
    pub nll: f64,
    /// What the model read before a document.
    pub prefix_id: u32,
    pub detokenizer: Detokenizer,
    pub tokens_per_second: f64,
}

/// A document and the tokens that the model reads of it.
#[derive(Debug, Clone)]
pub struct RollingDocument {
    /// As it is.
    pub text: String,
    /// Of the detokenised text.
    pub ids: Vec<u32>,
}

/// Scores every token of every document, in windows that predict up to `window` of them.
///
/// # Errors
/// [`Error::EmptyCorpus`] when no document has tokens; [`cinder_models::Error::NonFinite`] for a loss that is no number.
pub fn rolling(
    decoder: &Decoder,
    documents: &[RollingDocument],
    window: usize,
    prefix_id: u32,
    detokenizer: Detokenizer,
    progress: &dyn Progress,
) -> Result<Rolling> {
    let total: usize = documents.iter().map(|d| d.ids.len()).sum();
    if total == 0 {
        return Err(Error::EmptyCorpus {
            name: "the text".into(),
        });
    }
    progress.start("perplexity", total as u64);
    let start = Instant::now();
    // Per document: nats and bytes.
    let mut sums = Vec::with_capacity(documents.len());
    for document in documents {
        let mut nll = 0.0;
        for (context, predicted) in windows(&document.ids, window) {
            let mut ids = match context {
                [] => vec![prefix_id],
                context => context.to_vec(),
            };
            let known = ids.len();
            ids.extend(predicted);
            nll += token_losses_after(decoder, &ids, known)?
                .iter()
                .sum::<f64>();
            progress.advance(predicted.len() as u64);
        }
        sums.push((nll, document.text.len() as f64));
    }
    progress.finish();
    let nll: f64 = sums.iter().map(|(nll, _)| nll).sum();
    let bytes: f64 = sums.iter().map(|(_, bytes)| bytes).sum();
    let words: u64 = documents.iter().map(|d| words(&d.text) as u64).sum();
    Ok(Rolling {
        word_perplexity: (nll / words as f64).exp(),
        byte_perplexity: (nll / bytes).exp(),
        bits_per_byte: Estimate::of_ratio(&sums).map(
            |nats| nats / std::f64::consts::LN_2,
            |_| 1.0 / std::f64::consts::LN_2,
        ),
        documents: documents.len() as u64,
        words,
        bytes: bytes as u64,
        tokens_scored: total as u64,
        window: window as u64,
        nll,
        prefix_id,
        detokenizer,
        tokens_per_second: total as f64 / start.elapsed().as_secs_f64(),
    })
}

/// Context and predicted tokens of each window. The first has no context but the prefix; those after it have one token, and the
/// last, when it is a short one, as many as fill the window (as `make_disjoint_window` leaves them).
fn windows(ids: &[u32], window: usize) -> Vec<(&[u32], &[u32])> {
    let first = window.min(ids.len());
    let mut all = Vec::new();
    if first > 0 {
        all.push((&ids[..0], &ids[..first]));
    }
    let mut done = first;
    while done < ids.len() {
        let end = (done + window).min(ids.len());
        let context = window - (end - done) + 1;
        all.push((&ids[done - context..done], &ids[done..end]));
        done = end;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_those_of_the_harness() {
        let ids: Vec<u32> = (0..10).collect();
        let of = |window| -> Vec<(Vec<u32>, Vec<u32>)> {
            let all = windows(&ids, window).into_iter();
            all.map(|(context, predicted)| (context.to_vec(), predicted.to_vec()))
                .collect()
        };
        // What `make_disjoint_window` makes of `get_rolling_token_windows(range(10), prefix, 4, 1)`.
        assert_eq!(
            of(4),
            [
                (vec![], vec![0, 1, 2, 3]),
                (vec![3], vec![4, 5, 6, 7]),
                (vec![5, 6, 7], vec![8, 9]),
            ]
        );
        assert_eq!(of(10), [(vec![], ids.clone())]);
        assert_eq!(of(100), [(vec![], ids.clone())]);
        assert_eq!(of(9)[1], ((0..9).collect(), vec![9]));
        assert!(windows(&[], 4).is_empty());
    }
}
