//! The calibration text of a recipe, from its name to windows of tokens.

use anyhow::Result;
use cinder::compress::calibration::{Draw, OWN_TEXT, OwnText, Tokens, draw_windows, own_text};
use cinder::compress::passes::Needs;
use cinder::compress::pipeline::CalibrationText;
use cinder::compress::recipe::{Calibration, Recipe};
use cinder::models::Precision;
use cinder::models::checkpoint::Checkpoint;
use cinder::models::tokenizer::Tokenizer;
use rayon::prelude::*;

use crate::cli::context::Context;

/// Bytes that the KV cache may take while the model writes; more windows side by side are faster.
const OWN_TEXT_CACHE: u64 = 1 << 30;
const OWN_TEXT_BATCH: u64 = 32;

/// The text and the windows that a recipe is calibrated on; none where no pass needs any.
pub fn calibration_text(
    context: &Context,
    checkpoint: &Checkpoint,
    recipe: &Recipe,
) -> Result<Option<CalibrationText>> {
    match &recipe.calibration {
        Some(settings) if recipe.needs() > Needs::Nothing => {
            let text = match settings.corpus == OWN_TEXT {
                true => written(context, checkpoint, settings),
                false => read(context, checkpoint, settings),
            };
            text.map(Some)
        }
        _ => Ok(None),
    }
}

fn read(
    context: &Context,
    checkpoint: &Checkpoint,
    settings: &Calibration,
) -> Result<CalibrationText> {
    let corpus = context.corpus(&settings.corpus)?;
    let tokenizer = checkpoint.tokenizer()?;
    let bos_ids = tokenizer.bos_ids().to_vec();
    let (tokens, separator) = match settings.draw {
        Draw::Documents => {
            let articles = corpus.articles();
            let ids = articles.par_iter().map(|a| tokenizer.encode_prompt(a));
            // Where a tokenizer marks beginnings, the mark is what stands between two documents.
            let separator = match bos_ids.is_empty() {
                true => tokenizer.encode_plain("\n\n")?,
                false => Vec::new(),
            };
            (Tokens::Documents(ids.collect::<Result<_, _>>()?), separator)
        }
        Draw::Text | Draw::Even => (
            Tokens::Joined(tokenizer.encode(&corpus.text())?),
            Vec::new(),
        ),
    };
    let windows = draw_windows(
        &tokens,
        &separator,
        settings.windows,
        settings.window,
        settings.seed,
        settings.draw,
    )?;
    Ok(CalibrationText {
        corpus: (corpus.name.clone(), corpus.sha256()),
        windows,
        bos_ids,
    })
}

/// Text that the model writes itself.
fn written(
    context: &Context,
    checkpoint: &Checkpoint,
    settings: &Calibration,
) -> Result<CalibrationText> {
    let tokenizer = checkpoint.tokenizer()?;
    context
        .printer
        .say("the model writes its calibration text; all of it is loaded for that");
    let decoder = checkpoint.load(Precision::F32, &context.device, &context.printer)?;
    let request = OwnText {
        bos: tokenizer.bos_ids(),
        forbidden: &no_text(&tokenizer, checkpoint.config().vocab_size),
        count: settings.windows,
        window: settings.window,
        temperature: 1.0,
        seed: settings.seed,
        batch: own_text_batch(checkpoint, settings.window),
    };
    let written = Tokens::Documents(own_text(&decoder, &request, &context.printer)?);
    let windows = draw_windows(
        &written,
        &[],
        settings.windows,
        settings.window,
        settings.seed,
        Draw::Documents,
    )?;
    Ok(CalibrationText {
        // Its tokens are the text: as words it never existed.
        corpus: (OWN_TEXT.into(), windows.sha256.clone()),
        windows,
        bos_ids: tokenizer.bos_ids().to_vec(),
    })
}

/// Ids that stand for no text: special tokens, ends, and rows of the embedding that the tokenizer does not know.
fn no_text(tokenizer: &Tokenizer, vocab: usize) -> Vec<u32> {
    let mut ids = tokenizer.special_ids();
    ids.extend(tokenizer.eos_ids());
    ids.extend(tokenizer.vocab_size() as u32..vocab as u32);
    ids
}

/// Windows that the model writes side by side.
pub fn own_text_batch(checkpoint: &Checkpoint, window: usize) -> usize {
    let bytes = checkpoint.kv_bytes_per_token(checkpoint.cache_format()) * window as u64;
    (OWN_TEXT_CACHE / bytes.max(1)).clamp(1, OWN_TEXT_BATCH) as usize
}
