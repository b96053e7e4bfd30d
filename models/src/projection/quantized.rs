//! A matrix of 8 or 4 bits a weight.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Bytes, DType, Device, Int, Tensor, TensorData};

use crate::ops::{self, BlockFormat, BlockTensors, Blocks};

/// A linear map whose weights are codes in blocks of 32 with a scale each: `y = W x + b`.
#[derive(Module, Debug)]
pub struct BlockLinear {
    /// `[panels, blocks, bytes]`, u8: see [`Blocks`] for the order.
    codes: Param<Tensor<3, Int>>,
    /// `[panels, blocks, 16]`, f16.
    scales: Param<Tensor<3>>,
    /// `[panels, blocks, 16]`, f16.
    minimums: Option<Param<Tensor<3>>>,
    /// `[out]`, f32.
    bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    format: BlockFormat,
    #[module(skip)]
    out: usize,
    #[module(skip)]
    input: usize,
}

impl BlockLinear {
    /// Puts codes on a device; `bias` is `[out]`.
    pub fn new(blocks: Blocks, bias: Option<Tensor<1>>, device: &Device) -> Self {
        let Blocks {
            format,
            out,
            input,
            codes,
            scales,
            minimums,
        } = blocks;
        let shape = |last: usize| [out.div_ceil(ops::PANEL), input.div_ceil(ops::BLOCK), last];
        let data = |bytes: Bytes, last, dtype| TensorData::from_bytes(bytes, shape(last), dtype);
        let codes = data(Bytes::from_elems(codes), format.code_bytes(), DType::U8);
        let f16s = |values| {
            let values = data(Bytes::from_elems(values), ops::PANEL, DType::F16);
            Param::from_tensor(Tensor::from_data(values, (device, DType::F16)))
        };
        BlockLinear {
            codes: Param::initialized(
                burn::module::ParamId::new(),
                Tensor::from_data(codes, (device, DType::U8)),
            ),
            scales: f16s(scales),
            minimums: format.has_minimum().then(|| f16s(minimums)),
            bias: bias.map(Param::from_tensor),
            format,
            out,
            input,
        }
    }

    /// Rounds a dense map to the nearest codes.
    ///
    /// # Errors
    /// When the weight can not be read back from its device.
    pub fn quantize(linear: &Linear, format: BlockFormat) -> Result<Self, burn::tensor::DataError> {
        let weight = linear.weight.val();
        let ([input, out], device) = (weight.dims(), weight.device());
        let values = weight
            .transpose()
            .into_data()
            .convert::<f32>()
            .try_into_vec::<f32>()?;
        let blocks = Blocks::quantize(&values, out, input, format);
        Ok(Self::new(
            blocks,
            linear.bias.as_ref().map(|b| b.val()),
            &device,
        ))
    }

    /// The parameters as [`ops::block_linear`] takes them.
    pub(crate) fn tensors(&self) -> BlockTensors {
        BlockTensors {
            format: self.format,
            out: self.out,
            input: self.input,
            codes: self.codes.val(),
            scales: self.scales.val(),
            minimums: self.minimums.as_ref().map(|m| m.val()),
        }
    }

    /// Applies the map: `[..., in]` to `[..., out]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        super::flattened(input, |x| {
            let y = ops::block_linear(x, self.tensors());
            match &self.bias {
                Some(bias) => y + bias.val().unsqueeze(),
                None => y,
            }
        })
    }

    /// The rows of W for some outputs: `[ids, in]`.
    ///
    /// # Panics
    /// For an id that is not below `out`.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        ops::block_rows(self.tensors(), ids)
    }

    /// The values the codes stand for, as a dense [`Linear`] of weight `[in, out]`.
    pub fn to_dense(&self) -> Linear {
        Linear {
            weight: Param::from_tensor(ops::dequantize(self.tensors()).transpose()),
            bias: self.bias.clone(),
        }
    }

    /// `(out, in)` of the map.
    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.input)
    }

    /// Bytes of codes, scales and minimums.
    pub fn bytes(&self) -> u64 {
        self.format.bytes(self.out, self.input) as u64
    }
}
