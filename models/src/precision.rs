//! The precision weights are kept and multiplied in.

use std::fmt;
use std::str::FromStr;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use crate::ops::BlockFormat;

/// How the weights of a loaded model are kept in memory. Norms and biases are always f32, and so are activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE half, 16 bits; products and sums are f32.
    F16,
    /// bfloat16, 16 bits; activations are rounded to bf16 for the products, sums are f32.
    Bf16,
    /// 8 bits and an f16 scale for 32 weights (8.5 bits a weight); activations are rounded to 16 bits in blocks of 32.
    Q8,
    /// 4 bits and an f16 scale for 32 weights (4.5 bits a weight), embedding and head as [`Precision::Q8`].
    Q4,
    /// As [`Precision::Q4`], with an f16 minimum for each block (5 bits a weight).
    Q4Min,
}

impl Precision {
    /// Every precision, widest first.
    pub const ALL: [Precision; 6] = [
        Precision::F32,
        Precision::F16,
        Precision::Bf16,
        Precision::Q8,
        Precision::Q4,
        Precision::Q4Min,
    ];

    /// The name users give and results carry.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::Q8 => "q8",
            Precision::Q4 => "q4",
            Precision::Q4Min => "q4min",
        }
    }

    /// The element type of weights, where there is one.
    pub(crate) fn dtype(self) -> Option<DType> {
        match self {
            Precision::F32 => Some(DType::F32),
            Precision::F16 => Some(DType::F16),
            Precision::Bf16 => Some(DType::BF16),
            Precision::Q8 | Precision::Q4 | Precision::Q4Min => None,
        }
    }

    /// The block format of weights, where they are quantised.
    pub(crate) fn blocks(self) -> Option<BlockFormat> {
        match self {
            Precision::Q8 => Some(BlockFormat::Q8),
            Precision::Q4 => Some(BlockFormat::Q4),
            Precision::Q4Min => Some(BlockFormat::Q4Min),
            _ => None,
        }
    }

    /// The precision of embedding and head: never below 8 bits, where errors would fall on every token.
    pub fn of_embedding(self) -> Precision {
        match self {
            Precision::Q4 | Precision::Q4Min => Precision::Q8,
            other => other,
        }
    }

    /// Bytes of an `out` × `input` matrix in memory: codes, scales, minimums and the blocks' padding all counted.
    pub fn matrix_bytes(self, out: usize, input: usize) -> u64 {
        match self.blocks() {
            Some(format) => format.bytes(out, input) as u64,
            None => (out * input) as u64 * if self == Precision::F32 { 4 } else { 2 },
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Precision::ALL
            .into_iter()
            .find(|p| p.name() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Precision::ALL.iter().map(|p| p.name()).collect();
                format!("the precisions are {}", names.join(", "))
            })
    }
}
