//! Choosing the next token from logits.

use serde::{Deserialize, Serialize};

use super::Distribution;
use super::chance::{Chance, Keyed, Purpose};
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
    /// Seed of the ChaCha8 streams the draws come from, one for each position.
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

/// Draws tokens; samplers with equal settings draw the same from the same logits at the same position.
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    settings: SamplingSettings,
}

impl Sampler {
    /// # Errors
    /// [`Error::Request`] when a setting is out of range.
    pub fn new(settings: SamplingSettings) -> Result<Self> {
        settings.check()?;
        Ok(Sampler { settings })
    }

    pub fn settings(&self) -> &SamplingSettings {
        &self.settings
    }

    /// The token for `position` of the text, of `logits` `[vocab]`. Ties go to the lowest id.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when a logit is not finite.
    pub fn sample(&self, logits: &[f32], position: usize) -> Result<u32> {
        if self.settings.temperature == 0.0 {
            check_finite(logits)?;
            return Ok(argmax(logits));
        }
        let law = self.distribution(logits)?;
        Ok(Keyed::new(self.settings.seed, Purpose::Token, position).draw(&law))
    }

    /// What the next token is drawn from, of `logits` `[vocab]`: after temperature, top-k and top-p. Greedy, it is one token.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when a logit is not finite.
    pub fn distribution(&self, logits: &[f32]) -> Result<Distribution> {
        check_finite(logits)?;
        let best = argmax(logits);
        if self.settings.temperature == 0.0 {
            return Ok(Distribution::point(best));
        }
        let top = logits[best as usize];
        let weigh = |(id, l): (usize, &f32)| {
            let scaled = f64::from(l - top) / self.settings.temperature;
            (id as u32, scaled.exp())
        };
        let mut kept: Vec<(u32, f64)> = logits.iter().enumerate().map(weigh).collect();
        let likely_first = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = self.settings.top_k.filter(|k| *k < kept.len()) {
            kept.select_nth_unstable_by(k, likely_first);
            kept.truncate(k);
        }
        if self.settings.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, p)| p).sum();
            // All tokens below this together are not needed to reach top-p; half of it, for rounding.
            let floor = 0.5 * (1.0 - self.settings.top_p) * total / kept.len() as f64;
            kept.retain(|(_, p)| *p >= floor);
            kept.sort_unstable_by(likely_first);
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
        // The most likely token weighs 1.
        Ok(Distribution::of_weights(kept).unwrap_or_else(|| Distribution::point(best)))
    }
}

fn check_finite(logits: &[f32]) -> Result<()> {
    match logits.iter().all(|l| l.is_finite()) {
        true => Ok(()),
        false => Err(Error::NonFinite {
            what: "a logit".into(),
        }),
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
        let sampler = Sampler::new(settings).expect("valid");
        (0..n)
            .map(|position| sampler.sample(&LOGITS, position).expect("finite"))
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
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        // 40 logits in no order, against sorting all of them.
        let logits: Vec<f32> = (0..40).map(|i| (i * 29 % 41) as f32 / 8.0).collect();
        let all = Sampler::new(settings(0.7, None, 1.0, 0)).expect("valid");
        let all = all.distribution(&logits).expect("finite");
        let mut sorted = all.entries().to_vec();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        for top_p in [0.01, 0.3, 0.8, 0.95, 0.9999] {
            let sampler = Sampler::new(settings(0.7, None, top_p, 0)).expect("valid");
            let law = sampler.distribution(&logits).expect("finite");
            let (mut reached, mut kept) = (0.0, Vec::new());
            for (id, p) in &sorted {
                if reached < top_p {
                    kept.push(*id);
                }
                reached += p;
            }
            kept.sort_unstable();
            let ids: Vec<u32> = law.entries().iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, kept);
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
        let sampler = Sampler::new(SamplingSettings::GREEDY).expect("valid");
        assert!(sampler.sample(&[0.0, f32::NAN], 0).is_err());
        assert!(sampler.distribution(&[0.0, f32::INFINITY]).is_err());
    }
}
