//! Log-likelihoods of continuations.

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor, TensorData};
use cinder_models::Decoder;
use cinder_models::ops::log_sum_exp;
use cinder_models::progress::Progress;
use rayon::prelude::*;

use super::plan::{Plan, Question};
use crate::error::Result;
use crate::perplexity::ROWS_AT_ONCE;

/// How well a continuation fits its context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Sum of the natural logarithms of its tokens' probabilities.
    pub log_likelihood: f64,
    /// Each of its tokens is the most likely one behind those before it (of equals, the one with the lowest id).
    pub greedy: bool,
}

/// Tokens to be scored: behind which row of the hidden states, and for which request of which document of a group.
#[derive(Default)]
struct Wanted(BTreeMap<usize, Vec<Target>>);

struct Target {
    document: usize,
    request: usize,
    token: u32,
}

impl Plan {
    /// The score of each request of each document, in the order in which [`Plan::new`] got them.
    ///
    /// # Errors
    /// Those of the model, and [`cinder_models::Error::NonFinite`] for a logit that is not finite.
    pub fn score(
        &self,
        decoder: &Decoder,
        task: &str,
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<Score>>> {
        let unscored = |question: &Question| {
            let score = Score {
                log_likelihood: 0.0,
                greedy: true,
            };
            vec![score; question.requests.len()]
        };
        let mut scores: Vec<Vec<Score>> = self.questions.iter().map(unscored).collect();
        progress.start(task, self.tokens() as u64);
        let mut done = 0;
        for group in &self.groups {
            let questions: Vec<&Question> = group.iter().map(|i| &self.questions[*i]).collect();
            score_group(
                decoder,
                &questions,
                &mut |document, request, logit, best| {
                    let score = &mut scores[group[document]][request];
                    score.log_likelihood += logit;
                    score.greedy &= best;
                },
            )?;
            done += group.len();
            let tokens: usize = questions.iter().map(|question| question.tokens()).sum();
            progress.advance(tokens as u64);
            progress.note(&format!("{done} of {} documents", self.questions.len()));
        }
        progress.finish();
        Ok(scores)
    }
}

/// Takes a token's log-likelihood and whether it is the most likely, by document of the group and request.
type Take<'a> = &'a mut dyn FnMut(usize, usize, f64, bool);

/// Scores documents whose prefixes are equally long.
fn score_group(decoder: &Decoder, questions: &[&Question], take: Take<'_>) -> Result<()> {
    let prefix = questions[0].prefix;
    let passes = questions.iter().map(|q| q.tails.len()).max().unwrap_or(0);
    let longest = questions
        .iter()
        .filter_map(|q| Some(q.tail(*q.tails.first()?).len()));
    let mut cache = decoder.new_cache(prefix + longest.max().unwrap_or(0));
    if prefix > 0 {
        let mut wanted = Wanted::default();
        for (document, question) in questions.iter().enumerate() {
            for request in 0..question.requests.len() {
                wanted.add(question, (document, request), 0..prefix, document * prefix);
            }
        }
        let rows = questions
            .iter()
            .map(|q| q.requests[0].input[..prefix].to_vec());
        let rows: Vec<Vec<u32>> = rows.collect();
        let kept = (passes > 0).then_some(&mut cache);
        wanted.score(decoder, decoder.hidden(&rows, kept)?, take)?;
    }
    for pass in 0..passes {
        cache.truncate(prefix);
        let tail = |question: &&Question| {
            let request = question.tails.get(pass).copied();
            request.map_or(Vec::new(), |request| question.tail(request).to_vec())
        };
        let mut rows: Vec<Vec<u32>> = questions.iter().map(tail).collect();
        let length = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut wanted = Wanted::default();
        for (document, question) in questions.iter().enumerate() {
            if let Some(request) = question.tails.get(pass) {
                let held = prefix..prefix + rows[document].len();
                wanted.add(question, (document, *request), held, document * length);
            }
            // Any token will do: nothing looks at what comes after the end of a tail.
            rows[document].resize(length, 0);
        }
        wanted.score(decoder, decoder.hidden(&rows, Some(&mut cache))?, take)?;
    }
    Ok(())
}

impl Wanted {
    /// Adds the targets of a request whose scores come from the tokens `held` of its input; these are the rows from `start`.
    fn add(
        &mut self,
        question: &Question,
        (document, request): (usize, usize),
        held: std::ops::Range<usize>,
        start: usize,
    ) {
        let encoded = &question.requests[request];
        for (position, token) in (encoded.first()..).zip(&encoded.targets) {
            if held.contains(&position) {
                self.0
                    .entry(start + position - held.start)
                    .or_default()
                    .push(Target {
                        document,
                        request,
                        token: *token,
                    });
            }
        }
    }

    /// Scores the targets by the final hidden states `[batch, tokens, width]`. Logits are made of the rows that have targets,
    /// once each.
    fn score(&self, decoder: &Decoder, hidden: Tensor<3>, take: Take<'_>) -> Result<()> {
        let [batch, tokens, width] = hidden.dims();
        let device = hidden.device();
        let hidden: Tensor<2> = hidden.reshape([batch * tokens, width]);
        let rows: Vec<(&usize, &Vec<Target>)> = self.0.iter().collect();
        for rows in rows.chunks(ROWS_AT_ONCE) {
            let indices: Vec<i32> = rows.iter().map(|(row, _)| **row as i32).collect();
            let indices = TensorData::new(indices, [rows.len()]);
            let chosen = hidden
                .clone()
                .select(0, Tensor::<1, Int>::from_data(indices, &device));
            let logits = decoder.logits(chosen);
            let vocab = logits.dims()[1];
            let values = logits.into_data().try_into_vec::<f32>().map_err(|e| {
                cinder_models::Error::Request(format!("logits could not be read: {e:?}"))
            })?;
            let scored: Vec<Vec<(f64, bool)>> = values
                .par_chunks(vocab)
                .zip(rows)
                .map(|(logits, (_, targets))| {
                    let total = log_sum_exp(logits);
                    let score = |target: &Target| {
                        let token = target.token as usize;
                        (f64::from(logits[token]) - total, is_best(logits, token))
                    };
                    targets.iter().map(score).collect()
                })
                .collect();
            for ((_, targets), scores) in rows.iter().zip(scored) {
                for (target, (logit, best)) in targets.iter().zip(scores) {
                    if !logit.is_finite() {
                        return Err(cinder_models::Error::NonFinite {
                            what: "the log-likelihood of a continuation".into(),
                        }
                        .into());
                    }
                    take(target.document, target.request, logit, best);
                }
            }
        }
        Ok(())
    }
}

/// Whether no logit is larger, and none before it as large.
fn is_best(logits: &[f32], token: usize) -> bool {
    let value = logits[token];
    logits[..token].iter().all(|other| *other < value)
        && logits[token..].iter().all(|other| *other <= value)
}

#[cfg(test)]
mod tests {
    use cinder_models::checkpoint::Checkpoint;
    use cinder_models::progress::Silent;
    use cinder_models::{Precision, cache::CacheFormat};

    use super::*;
    use crate::perplexity::token_losses;
    use crate::tasks::encode::Encoded;

    fn tiny() -> Decoder {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/goldens/gguf/tiny-llama.gguf"
        );
        let checkpoint = Checkpoint::open(std::path::Path::new(path)).unwrap();
        let device = burn::tensor::Device::flex();
        checkpoint.load(Precision::F32, &device, &Silent).unwrap()
    }

    /// Documents of several shapes: tails of many lengths and none, prefixes alike and of no token, a single request.
    fn documents() -> Vec<Vec<Encoded>> {
        let request = |context: &[u32], continuation: &[u32]| {
            let whole = [context, continuation].concat();
            Encoded {
                input: whole[..whole.len() - 1].to_vec(),
                targets: continuation.to_vec(),
                truncated: false,
            }
        };
        let choices = |context: &[u32], continuations: &[&[u32]]| -> Vec<Encoded> {
            continuations.iter().map(|c| request(context, c)).collect()
        };
        vec![
            choices(&[5, 9, 2, 7], &[&[3, 4, 8, 9, 1], &[6], &[3, 5]]),
            choices(&[8, 1, 1, 3], &[&[2, 2], &[9, 9, 9]]),
            choices(&[4, 4, 4, 1], &[&[7], &[1]]),
            choices(&[3, 6, 9, 12, 1, 2], &[&[4, 5, 6]]),
            // Two contexts, and two that share nothing.
            vec![
                request(&[1, 2, 3, 4], &[5, 6]),
                request(&[1, 2, 7, 7, 4], &[5, 6]),
            ],
            vec![request(&[10], &[5, 6, 7]), request(&[11], &[5, 6, 7])],
        ]
    }

    #[test]
    fn scores_are_those_of_each_request_alone() {
        let mut decoder = tiny();
        for format in [CacheFormat::F32, CacheFormat::F16] {
            decoder.set_cache_format(format).unwrap();
            let together = Plan::new(documents())
                .score(&decoder, "test", &Silent)
                .unwrap();
            for (document, scores) in documents().iter().zip(&together) {
                for (request, score) in document.iter().zip(scores) {
                    let mut whole = request.input.clone();
                    whole.extend(request.targets.last());
                    let losses = token_losses(&decoder, &whole).unwrap();
                    let expected: f64 = losses[request.first()..].iter().map(|loss| -loss).sum();
                    assert!(
                        (score.log_likelihood - expected).abs() < 1e-6,
                        "{score:?} {expected}"
                    );
                    let alone = Plan::new(vec![vec![request.clone()]]);
                    let alone = alone.score(&decoder, "test", &Silent).unwrap();
                    assert_eq!(alone[0][0], *score);
                }
            }
        }
    }

    #[test]
    fn the_first_of_equals_is_the_best() {
        assert!(is_best(&[1.0, 3.0, 3.0], 1));
        assert!(!is_best(&[1.0, 3.0, 3.0], 2));
        assert!(!is_best(&[4.0, 3.0], 1));
    }
}
