//! The matrices of a layer: listed, written to a block, and made again of a block's bytes.
//!
//! Which parameters are a block's follows from their shape alone: matrices of floating-point numbers are, in the order of
//! the module's fields; norms, biases and pivots stay with the layer. A layer that lacks its matrices is *hollow*.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::buffer::BlockBytes;
use super::layout::{Block, StoredTensor};
use crate::checkpoint::StoredDtype;
use crate::decoder::DecoderLayer;
use crate::error::{Error, Result};

/// The matrices of a layer, hollow or not, with offsets that are still to be set.
pub(super) fn matrices(layer: &DecoderLayer) -> Vec<StoredTensor> {
    let mut lister = Lister::default();
    layer.visit(&mut lister);
    lister.found
}

/// Writes the matrices of layer `index` to the places that the block gives them in `to`.
///
/// # Errors
/// [`Error::NonFinite`] for a weight that is not a number.
pub(super) fn write(
    layer: &DecoderLayer,
    index: usize,
    block: &Block,
    to: &mut [u8],
) -> Result<()> {
    let mut writer = Writer {
        index,
        tensors: block.tensors.iter(),
        to,
        outcome: Ok(()),
    };
    layer.visit(&mut writer);
    writer.outcome
}

/// The layer with the matrices that the block's bytes are, without a copy of them.
pub(super) fn filled(
    hollow: &DecoderLayer,
    block: &Block,
    bytes: &BlockBytes,
    device: &Device,
) -> DecoderLayer {
    let mut filler = Filler {
        tensors: block.tensors.iter(),
        bytes,
        device,
    };
    hollow.clone().map(&mut filler)
}

#[derive(Default)]
struct Lister {
    path: Vec<String>,
    found: Vec<StoredTensor>,
}

impl ModuleVisitor for Lister {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let weight = param.val();
        if let [input, out] = weight.dims()[..] {
            self.found.push(StoredTensor {
                name: self.path.join("."),
                shape: [out, input],
                dtype: match weight.dtype() {
                    DType::F16 => StoredDtype::F16,
                    DType::BF16 => StoredDtype::Bf16,
                    _ => StoredDtype::F32,
                },
                offset: 0,
            });
        }
    }
}

struct Writer<'a> {
    index: usize,
    tensors: std::slice::Iter<'a, StoredTensor>,
    to: &'a mut [u8],
    outcome: Result<()>,
}

impl ModuleVisitor for Writer<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D != 2 || self.outcome.is_err() {
            return;
        }
        let Some(tensor) = self.tensors.next() else {
            return;
        };
        let data = param.val().transpose().into_data();
        let bytes = data.as_bytes();
        if !finite(bytes, tensor.dtype) {
            self.outcome = Err(Error::NonFinite {
                what: format!("a weight of layer {}, `{}`,", self.index, tensor.name),
            });
            return;
        }
        self.to[tensor.offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

struct Filler<'a> {
    tensors: std::slice::Iter<'a, StoredTensor>,
    bytes: &'a BlockBytes,
    device: &'a Device,
}

impl ModuleMapper for Filler<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D != 2 {
            return param;
        }
        let Some(tensor) = self.tensors.next() else {
            return param;
        };
        let dtype = match tensor.dtype {
            StoredDtype::F32 => DType::F32,
            StoredDtype::F16 => DType::F16,
            StoredDtype::Bf16 => DType::BF16,
        };
        let data = TensorData::from_bytes(self.bytes.tensor(tensor), tensor.shape, dtype);
        // The kernels read a weight in this order: `[in, out]` is a view of it.
        let weight = Tensor::<D>::from_data(data, (self.device, dtype)).transpose();
        let (id, _, mapper) = param.consume();
        Param::from_mapped_value(id, weight, mapper)
    }
}

/// Whether no value has all bits of its exponent set.
fn finite(bytes: &[u8], dtype: StoredDtype) -> bool {
    let wide = |bytes: &[u8]| {
        let exponent = 0x7F80_0000;
        let mut values = bytes.chunks_exact(4);
        !values.any(|v| u32::from_le_bytes([v[0], v[1], v[2], v[3]]) & exponent == exponent)
    };
    let narrow = |bytes: &[u8], exponent: u16| {
        let mut values = bytes.chunks_exact(2);
        !values.any(|v| u16::from_le_bytes([v[0], v[1]]) & exponent == exponent)
    };
    match dtype {
        StoredDtype::F32 => wide(bytes),
        StoredDtype::F16 => narrow(bytes, 0x7C00),
        StoredDtype::Bf16 => narrow(bytes, 0x7F80),
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn what_is_not_a_number_is_found_in_every_type() {
        let bytes = |v: f32| v.to_le_bytes().to_vec();
        assert!(finite(&bytes(f32::MAX), StoredDtype::F32));
        assert!(!finite(&bytes(f32::NAN), StoredDtype::F32));
        assert!(!finite(&bytes(f32::NEG_INFINITY), StoredDtype::F32));
        let half = |v: f16| v.to_le_bytes().to_vec();
        assert!(finite(&half(f16::MIN), StoredDtype::F16));
        assert!(!finite(&half(f16::NAN), StoredDtype::F16));
        let brain = |v: bf16| v.to_le_bytes().to_vec();
        assert!(finite(&brain(bf16::MAX), StoredDtype::Bf16));
        assert!(!finite(&brain(bf16::INFINITY), StoredDtype::Bf16));
    }
}
