//! Whether two results differ by more than chance: what was measured on the same windows or documents is compared pair by pair.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::result::{CorpusIdentity, ModelIdentity};
use crate::statistics::{Estimate, mean_and_stderr};

/// Differences of pairs up to which all sign patterns are gone through: 65,536 of them.
const EXACT: usize = 16;
/// Sign patterns that are drawn where there are more pairs.
const DRAWS: u32 = 100_000;

/// What `cinder compare --json` prints of two perplexities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedPerplexities {
    /// Version of this layout: [`SCHEMA`](crate::SCHEMA).
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    pub first: ComparedPerplexity,
    pub second: ComparedPerplexity,
    /// The text of both.
    pub corpus: CorpusIdentity,
    /// Of the windows' mean negative log-likelihoods, in nats per token.
    pub nll: Paired,
    /// Perplexity of the second over the first's.
    pub perplexity_ratio: Estimate,
    /// The command line that made this.
    pub command: String,
}

/// One side of a comparison of perplexities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedPerplexity {
    pub model: ModelIdentity,
    pub perplexity: f64,
    /// Of this perplexity alone; the difference of the two is known better.
    pub stderr: f64,
}

/// What `cinder compare --json` prints of two results of tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedTasks {
    /// Version of this layout: [`SCHEMA`](crate::SCHEMA).
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    pub first: ComparedModel,
    pub second: ComparedModel,
    /// By name.
    pub tasks: BTreeMap<String, ComparedTask>,
    /// The command line that made this.
    pub command: String,
}

/// One side of a comparison of tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedModel {
    pub model: ModelIdentity,
}

/// One task of both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedTask {
    /// The first's `acc`.
    pub first: f64,
    /// The second's.
    pub second: f64,
    /// Of being right, document by document: 0 or 1.
    pub acc: Paired,
    /// The same by log-likelihood per character, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<Paired>,
    /// Of the log-likelihood of the right answer, in nats.
    pub gold_log_likelihood: Paired,
}

/// Two series of measurements of the same things.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Paired {
    /// Mean of the second's values less the first's, and its standard error.
    pub difference: Estimate,
    /// Probability of a mean difference at least this far from nothing, were each pair's difference as likely to be the other
    /// way round (two-sided sign-flip test; exact up to 16 differences, else from 100,000 patterns drawn).
    pub p_value: f64,
    /// Pairs.
    pub pairs: u64,
    /// Pairs of which the second is larger.
    pub larger: u64,
    /// Pairs of which the second is smaller.
    pub smaller: u64,
}

impl Paired {
    /// Compares `second` with `first`, pair by pair; `seed` is for the patterns that are drawn.
    ///
    /// # Panics
    /// When there are no pairs, or not as many of one as of the other.
    pub fn of(first: &[f64], second: &[f64], seed: u64) -> Self {
        assert_eq!(first.len(), second.len(), "pairs");
        assert!(!first.is_empty(), "pairs");
        let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| b - a).collect();
        let (mean, stderr) = mean_and_stderr(&differences);
        let count = |which: fn(f64) -> bool| differences.iter().filter(|d| which(**d)).count();
        Paired {
            difference: Estimate { mean, stderr },
            p_value: sign_flip(&differences, seed),
            pairs: differences.len() as u64,
            larger: count(|d| d > 0.0) as u64,
            smaller: count(|d| d < 0.0) as u64,
        }
    }
}

/// The part of sign patterns whose sum is at least as far from zero.
fn sign_flip(differences: &[f64], seed: u64) -> f64 {
    // Equal pairs say nothing either way.
    let sizes: Vec<f64> = differences
        .iter()
        .map(|d| d.abs())
        .filter(|d| *d > 0.0)
        .collect();
    let observed = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order differ by rounding.
    let least = observed * (1.0 - 1e-9);
    let signed = |pattern: &mut dyn FnMut(usize) -> bool| {
        let terms = sizes.iter().enumerate();
        let sum: f64 = terms.map(|(i, d)| if pattern(i) { *d } else { -d }).sum();
        sum.abs() >= least
    };
    if sizes.len() <= EXACT {
        let patterns = 1u32 << sizes.len();
        let far = (0..patterns).filter(|bits| signed(&mut |i| bits >> i & 1 == 1));
        return far.count() as f64 / f64::from(patterns);
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let far = (0..DRAWS).filter(|_| {
        let mut bits = 0u64;
        signed(&mut |i| {
            if i % 64 == 0 {
                bits = random.random();
            }
            bits >> (i % 64) & 1 == 1
        })
    });
    // The observed pattern is one of them: the probability is never nothing.
    (far.count() + 1) as f64 / f64::from(DRAWS + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_pairs_are_gone_through() {
        let first = [1.0, 2.0, 3.0, 4.0];
        let second = [2.0, 3.0, 4.0, 5.0];
        let paired = Paired::of(&first, &second, 0);
        assert_eq!(
            (paired.difference.mean, paired.difference.stderr),
            (1.0, 0.0)
        );
        // All up or all down, of 16.
        assert_eq!(paired.p_value, 2.0 / 16.0);
        assert_eq!((paired.pairs, paired.larger, paired.smaller), (4, 4, 0));
        let same = Paired::of(&first, &first, 0);
        assert_eq!((same.difference.mean, same.p_value), (0.0, 1.0));
    }

    #[test]
    fn many_pairs_agree_with_the_binomial_test_and_repeat() {
        // 30 documents that only the second got right, 10 that only the first did: two-sided binomial 0.0022.
        let first: Vec<f64> = (0..100)
            .map(|i| f64::from(u8::from(!(10..40).contains(&i))))
            .collect();
        let second: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i >= 10))).collect();
        let paired = Paired::of(&first, &second, 1);
        assert_eq!((paired.larger, paired.smaller), (30, 10));
        assert!(
            (paired.p_value - 0.0022).abs() < 0.0006,
            "{}",
            paired.p_value
        );
        assert_eq!(paired, Paired::of(&first, &second, 1));
    }
}
