//! Projections, and the output head, that are stored as low-bit codes.
//!
//! Three tensors stand in the place of a `weight`: `codes` (U8, `[panels, blocks, 64 · bits]`), `scales` and `minimums` (F16,
//! `[panels, groups, 16]`), in the order of [`Blocks`](crate::ops::Blocks) that the kernels read, so that they are mapped where
//! they lie. Bits and group follow from the shapes.

use std::path::Path;

use burn::tensor::{Bytes, DType, Device, Tensor};

use super::source::{TensorInfo, TensorSource};
use crate::error::{Error, Result};
use crate::ops::{BLOCK, BlockFormat, LowBit, PANEL};
use crate::projection::{BlockLinear, Parts};

const CODES: &str = "codes";
const SCALES: &str = "scales";
const MINIMUMS: &str = "minimums";

/// Codes as they are stored, under `{prefix}.codes` and its like.
#[derive(Debug, Clone)]
pub(crate) struct QuantizedInfo {
    prefix: String,
    /// Bits and group.
    pub format: LowBit,
    /// Bytes on disk, which are those in memory.
    pub bytes: u64,
}

impl QuantizedInfo {
    /// The codes that stand in the place of `{prefix}.weight` with `input` columns; none where there are none. The group is the
    /// smallest that the scales' number allows: for a row of one group all are the same.
    pub fn find(source: &dyn TensorSource, prefix: &str, input: usize) -> Option<Self> {
        let info = |name: &str| source.info(&format!("{prefix}.{name}"));
        let last = |info: &TensorInfo, axis: usize| info.shape.get(axis).copied().unwrap_or(0);
        let (codes, scales) = (info(CODES)?, info(SCALES)?);
        let groups = last(&scales, 1);
        let group = LowBit::GROUPS.into_iter();
        let group = group.clone().find(|g| input.div_ceil(*g) == groups);
        let bytes = |name| info(name).map_or(0, |i| i.bytes);
        Some(QuantizedInfo {
            prefix: prefix.into(),
            format: LowBit::new(last(&codes, 2) / (PANEL * BLOCK / 8), group?)?,
            bytes: codes.bytes + scales.bytes + bytes(MINIMUMS),
        })
    }

    /// The tensors' names.
    pub fn names(&self) -> [String; 3] {
        [CODES, SCALES, MINIMUMS].map(|name| format!("{}.{name}", self.prefix))
    }

    /// The map of `out` × `input`, its codes where they lie in the file if it can be mapped.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that is missing, of another shape or of another type.
    pub fn load(
        &self,
        (source, path): (&dyn TensorSource, &Path),
        (out, input): (usize, usize),
        bias: Option<Tensor<1>>,
        device: &Device,
    ) -> Result<BlockLinear> {
        let format = BlockFormat::Low(self.format);
        let panels = out.div_ceil(PANEL);
        let codes = [panels, input.div_ceil(BLOCK), format.code_bytes()];
        let groups = [panels, input.div_ceil(format.group()), PANEL];
        let [codes_name, scales, minimums] = self.names();
        let part = |name: &str, shape: [usize; 3], dtype: DType, stored: &str| {
            let wrong = |why: String| Error::Tensor {
                path: path.into(),
                name: name.into(),
                why,
            };
            let info = source
                .info(name)
                .ok_or_else(|| wrong("is missing".into()))?;
            if info.shape != shape || info.dtype != stored {
                return Err(wrong(format!(
                    "is {} of shape {:?}, where {stored} of {shape:?} is wanted",
                    info.dtype, info.shape
                )));
            }
            match source.mapped(name, dtype) {
                Some(bytes) => Ok(bytes),
                None => source.read_bytes(name).map(|bytes| match dtype {
                    // Bytes of the type's own alignment.
                    DType::F16 => {
                        let (pairs, _) = bytes.as_chunks::<2>();
                        let values = pairs.iter().map(|b| half::f16::from_le_bytes(*b));
                        Bytes::from_elems(values.collect::<Vec<_>>())
                    }
                    _ => Bytes::from_elems(bytes),
                }),
            }
        };
        let parts = Parts {
            codes: part(&codes_name, codes, DType::U8, "U8")?,
            scales: part(&scales, groups, DType::F16, "F16")?,
            minimums: Some(part(&minimums, groups, DType::F16, "F16")?),
        };
        Ok(BlockLinear::of_parts(
            format,
            (out, input),
            parts,
            bias,
            device,
        ))
    }
}

/// Whether a tensor belongs to a map that is stored as codes.
pub(crate) fn is_packed(name: &str) -> bool {
    is_codes(name) || [SCALES, MINIMUMS].iter().any(|leaf| is_leaf(name, leaf))
}

/// The type of a tensor that belongs to codes.
pub(crate) fn packed_dtype(name: &str) -> DType {
    match is_codes(name) {
        true => DType::U8,
        false => DType::F16,
    }
}

/// Whether a tensor holds codes: any byte is one.
pub(crate) fn is_codes(name: &str) -> bool {
    is_leaf(name, CODES)
}

fn is_leaf(name: &str, leaf: &str) -> bool {
    name.strip_suffix(leaf)
        .is_some_and(|rest| rest.ends_with('.'))
}
