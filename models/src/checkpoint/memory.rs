//! Bytes that a checkpoint's weights take in memory.

use std::collections::BTreeSet;

use burn::tensor::DType;

use super::Checkpoint;
use super::names::{is_expansion, projection_prefix};
use super::open::FRAME;
use super::quantized::{is_packed, packed_dtype};
use super::source::TensorInfo;
use super::structure::{ProjectionInfo, index_bytes};
use crate::ops::BlockFormat;
use crate::precision::Precision;
use crate::substitute::SubstituteSettings;

/// The projection, such as `q`, that a matrix is of; the first of those that share it.
fn projection_of(name: &str) -> &str {
    let ends = |part: &&str| part.ends_with("_proj") || part.ends_with("_basis");
    let part = name.split('.').find(ends).unwrap_or_default();
    part.split('_').next().unwrap_or_default()
}

impl Checkpoint {
    /// Bytes of all weights in memory at a precision: matrices in it, norms, biases and what rebuilds keys and values from
    /// latents in f32, low-bit codes as they are stored, and four for each input of an identity block.
    pub fn memory_bytes(&self, precision: Precision) -> u64 {
        self.bytes_of(precision, |_, out, input| {
            precision.matrix_bytes(out, input)
        })
    }

    /// Bytes of a low-bit copy of the model as [`Checkpoint::load_substitute`] makes it beside the model, its own embedding
    /// and head in `precision` among them.
    pub fn substitute_bytes(&self, settings: &SubstituteSettings, precision: Precision) -> u64 {
        let low = |format, out, input| BlockFormat::Low(format).bytes(out, input) as u64;
        let copy = self.bytes_of(precision, |name, out, input| {
            low(settings.format_of(projection_of(name)), out, input)
        });
        let Some(format) = settings.head else {
            return copy;
        };
        let (vocab, hidden) = (self.config().vocab_size, self.config().hidden_size);
        let replaced = match self.head_codes() {
            Some(codes) => codes.bytes,
            None if self.config().tied_embeddings => 0,
            None => precision.of_embedding().matrix_bytes(vocab, hidden),
        };
        (copy + low(format, vocab, hidden)).saturating_sub(replaced)
    }

    /// Bytes of all weights, those of a projection's matrix by its name, rows and columns.
    fn bytes_of(&self, precision: Precision, matrix: impl Fn(&str, usize, usize) -> u64) -> u64 {
        // A matrix beside pivots has an index for each of its columns too.
        let indices = |name: &str, columns: usize| {
            let pivots = name
                .strip_suffix("basis.weight")
                .map(|prefix| format!("{prefix}basis.pivots"));
            match pivots.is_some_and(|name| self.source().info(&name).is_some()) {
                true => index_bytes(columns),
                false => 0,
            }
        };
        let rebuilds = self.rebuilding();
        let bytes = |(name, info): (String, TensorInfo)| match info.shape[..] {
            _ if is_packed(&name) => info.bytes,
            [out, input] if FRAME.contains(&name.as_str()) => {
                precision.of_embedding().matrix_bytes(out, input)
            }
            [out, input] if rebuilds(&name) => Precision::F32.matrix_bytes(out, input),
            [out, input] => matrix(&name, out, input) + indices(&name, input),
            // Norms, biases and pivots alike.
            _ => info.shape.iter().product::<usize>() as u64 * 4,
        };
        self.tensors().into_iter().map(bytes).sum()
    }

    /// Tells tensors that rebuild keys or values, which stay f32 at any precision.
    fn rebuilding(&self) -> impl Fn(&str) -> bool {
        let projections = self.projections().into_iter();
        let shared = projections.filter(ProjectionInfo::is_rebuilt).map(|p| {
            let prefix = projection_prefix(p.layer, p.projection);
            format!("{prefix}.expansion.weight")
        });
        let shared: BTreeSet<String> = shared.collect();
        move |name| is_expansion(name) || shared.contains(name)
    }

    /// Of [`Checkpoint::memory_bytes`], those that are mapped from the file, which the system reads again when it has to.
    pub fn mapped_bytes(&self, precision: Precision) -> u64 {
        let rebuilds = self.rebuilding();
        let mapped = |(name, info): &(String, TensorInfo)| {
            if is_packed(name) {
                return self.source().mapped(name, packed_dtype(name)).is_some();
            }
            let dtype = match rebuilds(name) {
                true => Some(DType::F32),
                false => precision.dtype(),
            };
            info.shape.len() == 2 && dtype.is_some_and(|d| self.source().mapped(name, d).is_some())
        };
        let tensors = self.tensors();
        let mapped = tensors.iter().filter(|tensor| mapped(tensor));
        mapped.map(|(_, info)| info.bytes).sum()
    }
}
