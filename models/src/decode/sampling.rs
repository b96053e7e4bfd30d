//! Choosing the next token from logits.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How to choose. The filters apply in the order temperature, top-k, top-p, as in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplingSettings {
    /// Divides the logits; 0 takes the most likely token (greedy).
    pub temperature: f64,
    /// Keep the k most likely tokens; none keeps all.
    pub top_k: Option<usize>,
    /// Keep the smallest set of most likely tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f64,
    /// Seed of the ChaCha8 stream the draws come from.
    pub seed: u64,
}

impl SamplingSettings {
    /// Always the most likely token.
    pub const GREEDY: SamplingSettings = SamplingSettings {
        temperature: 0.0,
        top_k: None,
        top_p: 1.0,
        seed: 0,
    };

    /// # Errors
    /// [`Error::Request`] naming the setting that is out of range.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::Request(what.into()));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong("the temperature must be 0 (greedy) or a positive number");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top-p must be above 0 and at most 1");
        }
        if self.top_k == Some(0) {
            return wrong("top-k must be at least 1");
        }
        Ok(())
    }
}

/// Draws tokens; two samplers with equal settings draw the same from the same logits.
pub struct Sampler {
    settings: SamplingSettings,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// # Errors
    /// [`Error::Request`] when a setting is out of range.
    pub fn new(settings: SamplingSettings) -> Result<Self> {
        settings.check()?;
        Ok(Sampler {
            settings,
            rng: ChaCha8Rng::seed_from_u64(settings.seed),
        })
    }

    /// The next token for `logits` `[vocab]`. Ties go to the lowest id.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when a logit is not finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|l| !l.is_finite()) {
            return Err(Error::NonFinite {
                what: "a logit".into(),
            });
        }
        if self.settings.temperature == 0.0 {
            return Ok(argmax(logits));
        }
        let kept = self.distribution(logits);
        let total: f64 = kept.iter().map(|(_, p)| p).sum();
        let mut left = self.rng.random::<f64>() * total;
        for (id, p) in &kept {
            left -= p;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding can leave a sliver beyond the last token.
        Ok(kept.last().map_or(0, |(id, _)| *id))
    }

    /// The tokens that can be drawn, most likely first, with unnormalised probabilities.
    fn distribution(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let top = logits[argmax(logits) as usize];
        let mut kept: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(id, l)| {
                let scaled = f64::from(l - top) / self.settings.temperature;
                (id as u32, scaled.exp())
            })
            .collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        kept.truncate(self.settings.top_k.unwrap_or(usize::MAX));
        if self.settings.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, p)| p).sum();
            let mut reached = 0.0;
            let needed = kept
                .iter()
                .position(|(_, p)| {
                    reached += p;
                    reached >= self.settings.top_p * total
                })
                .map_or(kept.len(), |last| last + 1);
            kept.truncate(needed);
        }
        kept
    }
}

/// Index of the largest value; the first of equals.
pub(crate) fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 0.0];

    fn draws(settings: SamplingSettings, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings).expect("valid");
        (0..n)
            .map(|_| sampler.sample(&LOGITS).expect("finite"))
            .collect()
    }

    fn settings(temperature: f64, top_k: Option<usize>, top_p: f64, seed: u64) -> SamplingSettings {
        SamplingSettings {
            temperature,
            top_k,
            top_p,
            seed,
        }
    }

    #[test]
    fn greedy_and_filters_that_keep_one_token_agree() {
        for s in [
            SamplingSettings::GREEDY,
            settings(1.0, Some(1), 1.0, 5),
            settings(1.0, None, 0.5, 5),
        ] {
            assert!(draws(s, 20).iter().all(|id| *id == 1), "{s:?}");
        }
        assert_eq!(argmax(&[2.0, 2.0]), 0);
    }

    #[test]
    fn the_seed_decides_the_draws() {
        assert_eq!(
            draws(settings(1.0, None, 1.0, 1), 50),
            draws(settings(1.0, None, 1.0, 1), 50)
        );
        assert_ne!(
            draws(settings(1.0, None, 1.0, 1), 50),
            draws(settings(1.0, None, 1.0, 2), 50)
        );
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let n = 40_000;
        let temperature = 1.5;
        let drawn = draws(settings(temperature, Some(3), 1.0, 9), n);
        let weight = |l: f32| (f64::from(l) / temperature).exp();
        let total: f64 = LOGITS[..3].iter().map(|l| weight(*l)).sum();
        for (id, logit) in LOGITS.iter().enumerate() {
            let seen = drawn.iter().filter(|d| **d as usize == id).count() as f64 / n as f64;
            let expected = if id == 3 { 0.0 } else { weight(*logit) / total };
            // Five standard errors of a binomial frequency.
            assert!(
                (seen - expected).abs() < 5.0 * (0.25 / n as f64).sqrt(),
                "{id}: {seen} {expected}"
            );
        }
    }

    #[test]
    fn out_of_range_settings_and_logits_are_refused() {
        for s in [
            settings(-1.0, None, 1.0, 0),
            settings(f64::NAN, None, 1.0, 0),
            settings(1.0, Some(0), 1.0, 0),
            settings(1.0, None, 0.0, 0),
        ] {
            assert!(Sampler::new(s).is_err(), "{s:?}");
        }
        let mut sampler = Sampler::new(SamplingSettings::GREEDY).expect("valid");
        assert!(sampler.sample(&[0.0, f32::NAN]).is_err());
    }
}
