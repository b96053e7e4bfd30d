//! What a reference model predicts of a text, kept small: its most likely tokens at each position.

use std::collections::HashMap;
use std::path::Path;

use cinder_models::Decoder;
use cinder_models::cache::CacheFormat;
use cinder_models::checkpoint::sha256;
use cinder_models::ops::log_sum_exp;
use cinder_models::progress::Progress;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::perplexity::{WindowChoice, each_position};
use crate::result::{CorpusIdentity, ModelIdentity};

/// The layout of the reference files that this version writes and reads.
pub const REFERENCE_SCHEMA: u32 = 1;

/// Where the identity is in a reference file's header.
const KEY: &str = "cinder_reference";

/// Which predictions these are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReferenceIdentity {
    /// Version of the file's layout.
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    pub model: ModelIdentity,
    pub corpus: CorpusIdentity,
    /// SHA-256 over the ids that were scored, as little-endian 32-bit numbers.
    pub ids_sha256: String,
    /// Window length in tokens.
    pub window: u64,
    /// Which of the text's windows, counted from 0.
    pub window_indices: Vec<u64>,
    /// Tokens kept at each position.
    pub top_k: u64,
    /// Type the weights were computed in.
    pub dtype: String,
    /// How the KV cache stored what it kept.
    #[schemars(with = "String")]
    pub cache: CacheFormat,
}

/// The predictions of a reference model, window by window, `window - 1` positions in each.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    pub identity: ReferenceIdentity,
    /// `[positions, top_k]`: the most likely tokens, the likeliest first.
    pub(super) ids: Vec<u32>,
    /// `[positions, top_k]`: their log-probabilities in nats.
    pub(super) log_probabilities: Vec<f32>,
    /// `[positions]`: the log-probability of the text's own next token.
    pub(super) target: Vec<f32>,
}

/// What a reference is made of, besides the predictions.
#[derive(Debug, Clone)]
pub struct ReferenceQuestion {
    pub model: ModelIdentity,
    pub corpus: CorpusIdentity,
    pub dtype: String,
    pub cache: CacheFormat,
    /// Tokens to keep at each position; at most the vocabulary.
    pub top_k: usize,
    pub tool_version: String,
}

/// The ids of the chosen windows of `tokens`, and which these are.
///
/// # Errors
/// [`Error::TooShort`] and [`Error::NoSuchWindow`].
pub(super) fn windows<'a>(
    tokens: &'a [u32],
    window: usize,
    choice: &WindowChoice,
) -> Result<(Vec<usize>, Vec<&'a [u32]>)> {
    let available = tokens.len() / window.max(1);
    if window < 2 || available == 0 {
        return Err(Error::TooShort {
            tokens: tokens.len(),
            window,
        });
    }
    let indices = choice.indices(available)?;
    let ids = indices
        .iter()
        .map(|i| &tokens[i * window..(i + 1) * window]);
    let ids = ids.collect();
    Ok((indices, ids))
}

/// The hash of what is scored: models can only be compared on the same tokens.
pub(super) fn hash(windows: &[&[u32]]) -> String {
    let bytes: Vec<u8> = windows
        .concat()
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    sha256(&bytes)
}

impl Reference {
    /// Runs the reference model over the chosen windows of `tokens`.
    ///
    /// # Errors
    /// [`Error::TooShort`], [`Error::NoSuchWindow`], and [`cinder_models::Error::NonFinite`] for logits that are no numbers.
    pub fn collect(
        decoder: &Decoder,
        tokens: &[u32],
        window: usize,
        choice: &WindowChoice,
        question: ReferenceQuestion,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let (indices, windows) = windows(tokens, window, choice)?;
        let top_k = question.top_k.clamp(1, decoder.embedding.vocab());
        let mut reference = Reference {
            identity: ReferenceIdentity {
                schema: REFERENCE_SCHEMA,
                tool_version: question.tool_version,
                model: question.model,
                corpus: question.corpus,
                ids_sha256: hash(&windows),
                window: window as u64,
                window_indices: indices.into_iter().map(|i| i as u64).collect(),
                top_k: top_k as u64,
                dtype: question.dtype,
                cache: question.cache,
            },
            ids: Vec::new(),
            log_probabilities: Vec::new(),
            target: Vec::new(),
        };
        progress.start("reference", windows.len() as u64);
        for ids in windows {
            let rows = each_position(decoder, ids, 0, |_, logits, target| {
                row(logits, target, top_k)
            })?;
            for (at, (ids, log_probabilities, target)) in rows.into_iter().enumerate() {
                if !target.is_finite() {
                    let what = format!("the loss of token {} of a window", at + 1);
                    return Err(cinder_models::Error::NonFinite { what }.into());
                }
                reference.ids.extend(ids);
                reference.log_probabilities.extend(log_probabilities);
                reference.target.push(target);
            }
            progress.advance(1);
        }
        progress.finish();
        Ok(reference)
    }

    /// Writes it as safetensors: `ids` (u32) and `log_probabilities` (f32) of `[positions, top_k]`, `target` (f32) of
    /// `[positions]`, the identity in the header. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Reference`].
    pub fn write(&self, path: &Path) -> Result<()> {
        fn bytes<T: Copy, const N: usize>(values: &[T], of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
            values.iter().flat_map(|value| of(*value)).collect()
        }
        let failed = |why: String| Error::Reference {
            path: path.into(),
            why,
        };
        let (positions, top_k) = (self.target.len(), self.identity.top_k as usize);
        let ids = bytes(&self.ids, u32::to_le_bytes);
        let log_probabilities = bytes(&self.log_probabilities, f32::to_le_bytes);
        let target = bytes(&self.target, f32::to_le_bytes);
        let tensors = [
            ("ids", Dtype::U32, vec![positions, top_k], &ids),
            (
                "log_probabilities",
                Dtype::F32,
                vec![positions, top_k],
                &log_probabilities,
            ),
            ("target", Dtype::F32, vec![positions], &target),
        ];
        let tensors = tensors.into_iter().map(|(name, dtype, shape, bytes)| {
            TensorView::new(dtype, shape, bytes).map(|view| (name, view))
        });
        let tensors: Vec<_> = tensors
            .collect::<Result<_, _>>()
            .map_err(|e| failed(e.to_string()))?;
        let identity = serde_json::to_string(&self.identity).map_err(|e| failed(e.to_string()))?;
        let header = HashMap::from([(KEY.to_owned(), identity)]);
        let file =
            safetensors::serialize(tensors, Some(header)).map_err(|e| failed(e.to_string()))?;
        if let Some(folder) = path.parent() {
            fs_err::create_dir_all(folder)?;
        }
        let partial = path.with_added_extension("partial");
        fs_err::write(&partial, file)?;
        Ok(fs_err::rename(partial, path)?)
    }

    /// Reads what [`Reference::write`] wrote.
    ///
    /// # Errors
    /// [`Error::MissingFile`]; [`Error::Reference`] for a file that is something else, or damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |why: &str| Error::Reference {
            path: path.into(),
            why: why.into(),
        };
        let bytes = fs_err::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::MissingFile {
                path: path.into(),
                hint: "`cinder eval kl --save FILE` makes a reference file".into(),
            },
            _ => error.into(),
        })?;
        let not_safetensors = |e: safetensors::SafeTensorError| failed(&e.to_string());
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(not_safetensors)?;
        let identity = header.metadata().as_ref().and_then(|m| m.get(KEY));
        let identity = identity.ok_or_else(|| failed("it has no identity of a reference"))?;
        let identity: ReferenceIdentity =
            serde_json::from_str(identity).map_err(|e| failed(&e.to_string()))?;
        if identity.schema != REFERENCE_SCHEMA {
            return Err(failed("another version of Cinder wrote it"));
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(not_safetensors)?;
        let positions =
            identity.window_indices.len() * (identity.window as usize).saturating_sub(1);
        let top_k = identity.top_k as usize;
        let numbers = |name: &str, dtype: Dtype, shape: &[usize]| -> Result<Vec<[u8; 4]>> {
            let view = tensors.tensor(name).map_err(not_safetensors)?;
            match view.dtype() == dtype && view.shape() == shape {
                true => Ok(view.data().as_chunks::<4>().0.to_vec()),
                false => Err(failed(&format!("`{name}` is not {dtype:?} of {shape:?}"))),
            }
        };
        let floats = |bytes: Vec<[u8; 4]>| bytes.into_iter().map(f32::from_le_bytes).collect();
        let ids = numbers("ids", Dtype::U32, &[positions, top_k])?;
        Ok(Reference {
            ids: ids.into_iter().map(u32::from_le_bytes).collect(),
            log_probabilities: floats(numbers(
                "log_probabilities",
                Dtype::F32,
                &[positions, top_k],
            )?),
            target: floats(numbers("target", Dtype::F32, &[positions])?),
            identity,
        })
    }
}

/// The `top_k` most likely tokens of one position, their log-probabilities, and that of `target`.
pub(super) fn row(logits: &[f32], target: u32, top_k: usize) -> (Vec<u32>, Vec<f32>, f32) {
    let log_sum = log_sum_exp(logits);
    let log_probability = |id: u32| (f64::from(logits[id as usize]) - log_sum) as f32;
    let larger_first = |a: &u32, b: &u32| {
        let by_logit = logits[*b as usize].total_cmp(&logits[*a as usize]);
        by_logit.then(a.cmp(b))
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if top_k < ids.len() {
        ids.select_nth_unstable_by(top_k - 1, larger_first);
        ids.truncate(top_k);
    }
    ids.sort_unstable_by(larger_first);
    let log_probabilities = ids.iter().map(|id| log_probability(*id)).collect();
    (ids, log_probabilities, log_probability(target))
}
