//! Low-bit copies of a model's own layers, made without any data: what SubSpec drafts with (Wang et al. 2025, arXiv
//! 2509.18344, §3).
//!
//! Every decoder projection becomes codes; embedding, norms, biases and head are the model's own tensors, shared, unless a
//! low-bit head is asked for too. Positions, heads and the cache's formats are the model's, so that both can use one KV cache.

mod rounding;
mod settings;

use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use crate::decoder::{Decoder, DecoderLayer, Site, TokenEmbedding};
use crate::error::{Error, Result};
use crate::ops::{Blocks, LowBit};
use crate::projection::{Basis, BlockLinear, LowRank, Matrix, Projection};

pub use rounding::{ITERATIONS, Method};
pub use settings::SubstituteSettings;

use rounding::Rounding;

/// A copy of a model whose projections are low-bit codes. Factored models keep their factors, each in codes; expansions that
/// rebuild keys and values from cached latents stay as they are, since a kernel of their own multiplies them.
///
/// # Errors
/// [`Error::NonFinite`] naming a matrix with values that are no numbers, or beyond what f16 reaches.
pub fn substitute(decoder: &Decoder, settings: &SubstituteSettings) -> Result<Decoder> {
    let mut draft = decoder.clone();
    for (index, layer) in decoder.layers.iter().enumerate() {
        draft.layers[index] = substitute_layer(layer, settings).map_err(|error| match error {
            Error::NonFinite { what } => Error::NonFinite {
                what: format!("layer {index}, {what}"),
            },
            other => other,
        })?;
    }
    draft.take_head(settings)?;
    Ok(draft)
}

impl Decoder {
    /// Puts the head of [`substitute`] in the place of its own, where the settings ask for one.
    ///
    /// # Errors
    /// As [`substitute`].
    pub(crate) fn take_head(&mut self, settings: &SubstituteSettings) -> Result<()> {
        let head = dense_head(self.lm_head.as_ref(), &self.embedding);
        if let Some(head) = substitute_head(&head, settings)? {
            self.lm_head = Some(Projection::Quantized(head));
        }
        Ok(())
    }
}

/// The output head as a dense map of weight `[hidden, vocab]`: the embedding's own values where there is no other.
pub fn dense_head(lm_head: Option<&Projection>, embedding: &TokenEmbedding) -> Linear {
    match (lm_head, embedding) {
        (Some(head), _) => head.to_dense(),
        (None, TokenEmbedding::Blocks(table)) => table.to_dense(),
        (None, TokenEmbedding::Float(table)) => Linear {
            weight: burn::module::Param::from_tensor(table.weight.val().transpose()),
            bias: None,
        },
    }
}

/// The head of [`substitute`], of a dense one; none where the settings ask for none.
///
/// # Errors
/// As [`substitute`].
pub fn substitute_head(
    head: &Linear,
    settings: &SubstituteSettings,
) -> Result<Option<BlockLinear>> {
    let format = settings.head;
    let codes = format.map(|format| low_bit(head, format, settings, "lm_head"));
    codes.transpose()
}

/// One layer of [`substitute`]: for models whose layers come one at a time.
///
/// # Errors
/// As [`substitute`].
pub fn substitute_layer(
    layer: &DecoderLayer,
    settings: &SubstituteSettings,
) -> Result<DecoderLayer> {
    let mut copy = layer.clone();
    for site in Site::ALL {
        let first = site.projections()[0];
        if let Some(basis) = copy.group_mut(site).and_then(|group| group.basis.as_mut()) {
            *basis = self::basis(basis, first, settings)?;
        }
        for (projection, name) in copy.site_mut(site).into_iter().zip(site.projections()) {
            *projection = substitute_projection(projection, name, settings)?;
        }
    }
    if let Some(latent) = &mut copy.attention.latent {
        latent.basis = match &latent.basis {
            Some(basis) => Some(matrix(basis, "k", settings)?),
            None => None,
        };
    }
    Ok(copy)
}

/// One projection of [`substitute_layer`]; `name` is `q`, `k`, `v`, `o`, `gate`, `up` or `down`.
///
/// # Errors
/// As [`substitute`].
pub fn substitute_projection(
    projection: &Projection,
    name: &str,
    settings: &SubstituteSettings,
) -> Result<Projection> {
    Ok(match projection {
        Projection::LowRank(factors) => Projection::LowRank(LowRank {
            basis: basis(&factors.basis, name, settings)?,
            expansion: matrix(&factors.expansion, name, settings)?,
        }),
        other => {
            let format = settings.format_of(name);
            Projection::Quantized(low_bit(&other.to_dense(), format, settings, name)?)
        }
    })
}

fn basis(basis: &Basis, name: &str, settings: &SubstituteSettings) -> Result<Basis> {
    Ok(match basis {
        Basis::Dense(stored) => Basis::Dense(matrix(stored, name, settings)?),
        Basis::Identity(identity) => Basis::Identity(match identity.weight() {
            Some(weight) => identity.with_weight(matrix(weight, name, settings)?),
            None => identity.clone(),
        }),
    })
}

fn matrix(matrix: &Matrix, name: &str, settings: &SubstituteSettings) -> Result<Matrix> {
    let format = settings.format_of(name);
    low_bit(&matrix.to_dense(), format, settings, name).map(Matrix::Blocks)
}

/// The codes of one map of weight `[in, out]`; the bias stays as it is.
fn low_bit(
    linear: &Linear,
    format: LowBit,
    settings: &SubstituteSettings,
    name: &str,
) -> Result<BlockLinear> {
    let weight: Tensor<2> = linear.weight.val();
    let ([input, out], device) = (weight.dims(), weight.device());
    let values = weight.transpose().cast(DType::F32).into_data();
    let values: Vec<f32> = values.try_into_vec().map_err(|error| {
        Error::Request(format!(
            "`{name}` can not be read back from its device: {error:?}"
        ))
    })?;
    if !Blocks::can_hold(&values) {
        return Err(Error::NonFinite {
            what: format!("a weight of `{name}`, as f16,"),
        });
    }
    let rounding = Rounding {
        method: settings.method,
        round_zero: settings.round_zero,
        iterations: ITERATIONS,
    };
    let blocks = rounding::quantize(&values, (out, input), format, rounding);
    let bias = linear.bias.as_ref().map(|bias| bias.val());
    Ok(BlockLinear::new(blocks, bias, &device))
}

#[cfg(test)]
mod tests;
