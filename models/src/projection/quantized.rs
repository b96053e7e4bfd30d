//! A matrix of 2 to 8 bits a weight.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Bytes, DType, Device, Int, Tensor, TensorData};

use crate::ops::{self, BlockFormat, BlockTensors, Blocks};

/// The stored bytes of a [`BlockLinear`].
pub(crate) struct Parts {
    pub codes: Bytes,
    pub scales: Bytes,
    pub minimums: Option<Bytes>,
}

/// A linear map whose weights are codes, with a scale for each block of 32 inputs or some of them: `y = W x + b`.
#[derive(Module, Debug)]
pub struct BlockLinear {
    /// `[panels, blocks, bytes]`, u8: see [`Blocks`] for the order.
    codes: Param<Tensor<3, Int>>,
    /// `[panels, groups, 16]`, f16.
    scales: Param<Tensor<3>>,
    /// `[panels, groups, 16]`, f16.
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
        let parts = Parts {
            codes: Bytes::from_elems(codes),
            scales: Bytes::from_elems(scales),
            minimums: format.has_minimum().then(|| Bytes::from_elems(minimums)),
        };
        Self::of_parts(format, (out, input), parts, bias, device)
    }

    /// As [`BlockLinear::new`], of bytes wherever they lie.
    ///
    /// # Panics
    /// When they are not as many as the format has.
    pub(crate) fn of_parts(
        format: BlockFormat,
        (out, input): (usize, usize),
        parts: Parts,
        bias: Option<Tensor<1>>,
        device: &Device,
    ) -> Self {
        let panels = out.div_ceil(ops::PANEL);
        let codes = [panels, input.div_ceil(ops::BLOCK), format.code_bytes()];
        let codes = TensorData::from_bytes(parts.codes, codes, DType::U8);
        let groups = [panels, input.div_ceil(format.group()), ops::PANEL];
        let f16s = |bytes| {
            let values = TensorData::from_bytes(bytes, groups, DType::F16);
            Param::from_tensor(Tensor::from_data(values, (device, DType::F16)))
        };
        BlockLinear {
            codes: Param::initialized(
                burn::module::ParamId::new(),
                Tensor::from_data(codes, (device, DType::U8)),
            ),
            scales: f16s(parts.scales),
            minimums: parts.minimums.map(f16s),
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

    /// How the weights are coded.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Bytes of codes, scales and minimums.
    pub fn bytes(&self) -> u64 {
        self.format.bytes(self.out, self.input) as u64
    }
}
