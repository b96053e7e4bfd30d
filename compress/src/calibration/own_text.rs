//! Calibration text that the model writes itself.
//!
//! What it does: the model is sampled from, each window from a beginning of its own. When to use it: there is no text
//! like what the model was trained on, or a result should owe nothing to the choice of one. Cost: the whole model in
//! memory, and as many decoding steps as a window has tokens for every batch of windows. The idea is LLM-QAT's (Liu et
//! al. 2023, "Data-free quantization aware training"), which draws the first tokens most likely first; here all are
//! drawn.

use cinder_models::Decoder;
use cinder_models::progress::Progress;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct OwnText<'a> {
    /// What every window begins with; without it, each begins with a token drawn uniformly from those allowed.
    pub bos: &'a [u32],
    /// Tokens that are never drawn: those that end a text, and all others that are no text.
    pub forbidden: &'a [u32],
    /// How many windows.
    pub count: usize,
    /// Tokens in each, those of `bos` included.
    pub window: usize,
    /// Divides the logits; above 0. At 1 the model is taken at its word.
    pub temperature: f64,
    /// Seed of the draws; each window has a ChaCha8 stream of its own.
    pub seed: u64,
    /// Windows written side by side. It decides speed and memory only: the text is the same for every batch size.
    pub batch: usize,
}

/// One window as far as it is written.
struct Row {
    ids: Vec<u32>,
    rng: ChaCha8Rng,
}

/// Token ids `[count][window]` that `decoder` writes. A token depends on the seed, on which window it is in and on what
/// comes before it there, and on nothing else.
///
/// # Errors
/// [`Error::Setting`] when a window exceeds the model's context, or the temperature is not above 0;
/// [`cinder_models::Error::Request`] when every token is forbidden; [`cinder_models::Error::NonFinite`] when the
/// model overflows.
pub fn own_text(
    decoder: &Decoder,
    request: &OwnText<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>> {
    check(request, decoder.max_context())?;
    let mut allowed = vec![true; decoder.embedding.vocab()];
    for id in request.forbidden {
        if let Some(allowed) = allowed.get_mut(*id as usize) {
            *allowed = false;
        }
    }
    let beginnings: Vec<u32> = (0..)
        .zip(&allowed)
        .filter(|(_, a)| **a)
        .map(|(id, _)| id)
        .collect();
    if beginnings.is_empty() {
        let why = "there is no token that may be drawn: all are forbidden";
        return Err(cinder_models::Error::Request(why.into()).into());
    }
    let mut rows: Vec<Row> = (0..request.count)
        .map(|row| begin(request, row, &beginnings))
        .collect();
    progress.start(
        "writing calibration text",
        (request.count * request.window) as u64,
    );
    for batch in rows.chunks_mut(request.batch.max(1)) {
        write(decoder, request, &allowed, batch, progress)?;
    }
    progress.finish();
    Ok(rows.into_iter().map(|row| row.ids).collect())
}

fn check(request: &OwnText<'_>, context: usize) -> Result<()> {
    if request.window > context {
        return Err(Error::Setting {
            what: "`window` of the calibration".into(),
            value: format!("{} tokens", request.window),
            range: format!("at most the model's context of {context}"),
            hint: "lower it in the recipe's `[calibration]`",
        });
    }
    if !(request.temperature > 0.0 && request.temperature.is_finite()) {
        return Err(Error::Setting {
            what: "the temperature of the calibration text".into(),
            value: request.temperature.to_string(),
            range: "above 0".into(),
            hint: "1 draws as the model was trained to",
        });
    }
    Ok(())
}

fn begin(request: &OwnText<'_>, row: usize, beginnings: &[u32]) -> Row {
    let mut rng = ChaCha8Rng::seed_from_u64(request.seed);
    rng.set_stream(row as u64);
    let mut ids = request.bos.to_vec();
    if ids.is_empty() {
        ids.push(beginnings[rng.random_range(0..beginnings.len())]);
    }
    ids.truncate(request.window);
    Row { ids, rng }
}

/// Writes a batch to its end.
fn write(
    decoder: &Decoder,
    request: &OwnText<'_>,
    allowed: &[bool],
    batch: &mut [Row],
    progress: &dyn Progress,
) -> Result<()> {
    let mut cache = decoder.new_cache(request.window);
    let mut input: Vec<Vec<u32>> = batch.iter().map(|row| row.ids.clone()).collect();
    let begun = input.first().map_or(0, Vec::len);
    progress.advance((begun * batch.len()) as u64);
    for _ in begun..request.window {
        let hidden = decoder.hidden(&input, Some(&mut cache))?;
        let [rows, tokens, width] = hidden.dims();
        let last = hidden.narrow(1, tokens - 1, 1).reshape([rows, width]);
        let logits = decoder.logits(last).into_data().try_into_vec::<f32>();
        let logits = logits.map_err(|e| {
            cinder_models::Error::Request(format!("logits could not be read: {e:?}"))
        })?;
        input = batch
            .par_iter_mut()
            .zip(logits.par_chunks(allowed.len()))
            .map(|(row, logits)| {
                let id = draw(logits, allowed, request.temperature, &mut row.rng)?;
                row.ids.push(id);
                Ok(vec![id])
            })
            .collect::<Result<_>>()?;
        progress.advance(rows as u64);
    }
    Ok(())
}

/// An allowed token by its probability, with one draw of `rng`. Tokens stand in the order of their ids: sorting a
/// vocabulary, as [`Sampler`](cinder_models::decode::Sampler) does for its filters, takes longer than a small model.
fn draw(logits: &[f32], allowed: &[bool], temperature: f64, rng: &mut ChaCha8Rng) -> Result<u32> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        let what = "a logit, while writing calibration text".into();
        return Err(cinder_models::Error::NonFinite { what }.into());
    }
    let allowed = || {
        logits
            .iter()
            .zip(allowed)
            .zip(0u32..)
            .filter(|((_, a), _)| **a)
    };
    let top = allowed().fold(f32::NEG_INFINITY, |top, ((logit, _), _)| top.max(*logit));
    let weights: Vec<(u32, f64)> = allowed()
        .map(|((logit, _), id)| (id, (f64::from(logit - top) / temperature).exp()))
        .collect();
    let mut left = rng.random::<f64>() * weights.iter().map(|(_, w)| w).sum::<f64>();
    for (id, weight) in &weights {
        left -= weight;
        if left < 0.0 {
            return Ok(*id);
        }
    }
    // Rounding can leave a sliver beyond the last token.
    Ok(weights.last().map_or(0, |(id, _)| *id))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;
    use cinder_models::progress::Silent;
    use cinder_models::{Checkpoint, Precision};

    use super::*;

    /// A model of two layers with random weights.
    fn tiny() -> Decoder {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/goldens/gguf/tiny-llama.gguf"
        );
        let checkpoint = Checkpoint::open(Path::new(path)).expect("opens");
        checkpoint
            .load(Precision::F32, &Device::flex(), &Silent)
            .expect("loads")
    }

    const REQUEST: OwnText<'static> = OwnText {
        bos: &[],
        forbidden: &[0, 1, 2, 7],
        count: 9,
        window: 24,
        temperature: 1.0,
        seed: 5,
        batch: 4,
    };

    #[test]
    fn the_text_depends_on_the_seed_and_not_on_the_batch() {
        let model = tiny();
        let text = |request: &OwnText<'_>| own_text(&model, request, &Silent).expect("writes");
        let first = text(&REQUEST);
        assert_eq!(first.len(), 9);
        let vocab = model.embedding.vocab() as u32;
        for row in &first {
            assert_eq!(row.len(), 24);
            assert!(
                row.iter()
                    .all(|id| *id < vocab && !REQUEST.forbidden.contains(id))
            );
        }
        for batch in [0, 1, 3, 9, 100] {
            assert_eq!(text(&OwnText { batch, ..REQUEST }), first, "batch {batch}");
        }
        // Fewer windows are the first of more.
        assert_eq!(
            text(&OwnText {
                count: 3,
                ..REQUEST
            }),
            first[..3]
        );
        assert_ne!(text(&OwnText { seed: 6, ..REQUEST }), first);
        let rows: std::collections::BTreeSet<_> = first.iter().collect();
        assert_eq!(rows.len(), 9, "windows differ");
    }

    #[test]
    fn windows_begin_as_asked() {
        let model = tiny();
        let text = |request: &OwnText<'_>| own_text(&model, request, &Silent).expect("writes");
        // A beginning may be a token that is not drawn.
        for row in text(&OwnText {
            bos: &[1, 2],
            ..REQUEST
        }) {
            assert_eq!((row.len(), &row[..2]), (24, &[1, 2][..]));
            assert!(row[2..].iter().all(|id| !REQUEST.forbidden.contains(id)));
        }
        let short = OwnText {
            bos: &[1; 30],
            ..REQUEST
        };
        assert!(text(&short).iter().all(|row| *row == [1; 24]));
    }

    #[test]
    fn draws_follow_the_softmax_of_what_is_allowed() {
        let logits = [1.0, 3.0, 2.0, 0.0];
        let allowed = [true, false, true, true];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let n = 40_000;
        let mut seen = [0.0; 4];
        for _ in 0..n {
            seen[draw(&logits, &allowed, 2.0, &mut rng).expect("finite") as usize] += 1.0;
        }
        let weight =
            |id: usize| (f64::from(logits[id]) / 2.0).exp() * f64::from(u8::from(allowed[id]));
        let total: f64 = (0..4).map(weight).sum();
        for (id, seen) in seen.iter().enumerate() {
            // Five standard errors of a binomial frequency.
            let error = seen / f64::from(n) - weight(id) / total;
            assert!(
                error.abs() < 5.0 * (0.25 / f64::from(n)).sqrt(),
                "{id}: {error}"
            );
        }
        assert!(draw(&[f32::NAN; 4], &allowed, 1.0, &mut rng).is_err());
    }

    #[test]
    fn what_can_not_be_written_is_refused_before_work() {
        let model = tiny();
        let all: Vec<u32> = (0..model.embedding.vocab() as u32).collect();
        let window = model.max_context() + 1;
        for request in [
            OwnText { window, ..REQUEST },
            OwnText {
                temperature: 0.0,
                ..REQUEST
            },
            OwnText {
                temperature: f64::NAN,
                ..REQUEST
            },
            OwnText {
                forbidden: &all,
                ..REQUEST
            },
        ] {
            assert!(own_text(&model, &request, &Silent).is_err(), "{request:?}");
        }
    }
}
