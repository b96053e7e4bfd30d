//! Block-quantised weights: 8 or 4 bits a weight, one scale (and perhaps one minimum) for 32 weights of a row.
//!
//! `w ≈ scale · (code - zero)` with zero 128 or 8, or `w ≈ scale · code + minimum`; scale and minimum are f16. The blocks
//! are those of GGUF's Q8_0, Q4_0 and Q4_1; the order is ours. Rows are kept in panels of 16, so that the same four inputs
//! meet 64 weights that lie together: the bytes of one panel and block are, for each four inputs in turn, the four codes of
//! row 0, of row 1, ... of row 15. Four-bit codes share a byte with those of the next four inputs (low half first).
//! The last panel is filled up with rows of zeros, the last block with inputs of zero.

use half::f16;
use rayon::prelude::*;

/// Weights that share a scale: consecutive inputs of one output.
pub const BLOCK: usize = 32;
/// Rows (outputs) of a panel.
pub const PANEL: usize = 16;

/// Bits and offset of a block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 8 bits, symmetric: 8.5 bits a weight.
    Q8,
    /// 4 bits, symmetric: 4.5 bits a weight.
    Q4,
    /// 4 bits with a minimum: 5 bits a weight.
    Q4Min,
}

impl BlockFormat {
    /// Bytes of the codes of one panel and block.
    pub const fn code_bytes(self) -> usize {
        match self {
            BlockFormat::Q8 => PANEL * BLOCK,
            BlockFormat::Q4 | BlockFormat::Q4Min => PANEL * BLOCK / 2,
        }
    }

    /// Whether blocks have a minimum beside their scale.
    pub const fn has_minimum(self) -> bool {
        matches!(self, BlockFormat::Q4Min)
    }

    /// The code that stands for zero, where there is no minimum.
    pub const fn zero(self) -> u8 {
        match self {
            BlockFormat::Q8 => 128,
            BlockFormat::Q4 => 8,
            BlockFormat::Q4Min => 0,
        }
    }

    /// Bytes that a matrix of `out` × `input` takes, padding included.
    pub const fn bytes(self, out: usize, input: usize) -> usize {
        let f16s = if self.has_minimum() { 2 } else { 1 };
        out.div_ceil(PANEL) * input.div_ceil(BLOCK) * (self.code_bytes() + PANEL * 2 * f16s)
    }
}

/// A matrix in blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks {
    pub format: BlockFormat,
    /// Rows of the matrix.
    pub out: usize,
    /// Columns of the matrix.
    pub input: usize,
    /// `[panels, blocks, code_bytes]`.
    pub codes: Vec<u8>,
    /// `[panels, blocks, 16]`.
    pub scales: Vec<f16>,
    /// `[panels, blocks, 16]`, or nothing.
    pub minimums: Vec<f16>,
}

/// One block's scale, minimum and codes.
struct Coded {
    scale: f16,
    minimum: f16,
    codes: [u8; BLOCK],
}

impl Blocks {
    /// Rounds a matrix `[out, input]`, row-major, to the nearest codes.
    ///
    /// # Panics
    /// When `weights` is not `out * input` long.
    pub fn quantize(weights: &[f32], out: usize, input: usize, format: BlockFormat) -> Blocks {
        assert_eq!(weights.len(), out * input, "a matrix of {out} x {input}");
        let (panels, blocks) = (out.div_ceil(PANEL), input.div_ceil(BLOCK));
        let mut codes = vec![0; panels * blocks * format.code_bytes()];
        let mut scales = vec![f16::ZERO; panels * blocks * PANEL];
        let mut minimums = vec![f16::ZERO; panels * blocks * PANEL];
        let rows = codes
            .par_chunks_mut((blocks * format.code_bytes()).max(1))
            .zip(scales.par_chunks_mut((blocks * PANEL).max(1)))
            .zip(minimums.par_chunks_mut((blocks * PANEL).max(1)));
        rows.enumerate()
            .for_each(|(panel, ((codes, scales), minimums))| {
                for block in 0..blocks {
                    let codes = &mut codes[block * format.code_bytes()..][..format.code_bytes()];
                    for row in 0..PANEL {
                        let mut values = [0.0; BLOCK];
                        if panel * PANEL + row < out {
                            let start = (panel * PANEL + row) * input + block * BLOCK;
                            let count = BLOCK.min(input - block * BLOCK);
                            values[..count].copy_from_slice(&weights[start..start + count]);
                        }
                        let coded = round_block(&values, format);
                        scales[block * PANEL + row] = coded.scale;
                        minimums[block * PANEL + row] = coded.minimum;
                        for (k, code) in coded.codes.into_iter().enumerate() {
                            put(codes, format, row, k, code);
                        }
                    }
                }
            });
        if !format.has_minimum() {
            minimums.clear();
        }
        Blocks {
            format,
            out,
            input,
            codes,
            scales,
            minimums,
        }
    }

    /// The values the codes stand for, `[out, input]` row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.out * self.input];
        if self.input > 0 {
            values
                .par_chunks_mut(self.input)
                .enumerate()
                .for_each(|(row, to)| self.view().row(row, to));
        }
        values
    }

    /// The matrix without its ownership.
    pub fn view(&self) -> BlocksView<'_> {
        BlocksView {
            format: self.format,
            out: self.out,
            input: self.input,
            codes: &self.codes,
            scales: &self.scales,
            minimums: &self.minimums,
        }
    }
}

/// A borrowed matrix in blocks; the fields are those of [`Blocks`].
#[derive(Clone, Copy)]
pub struct BlocksView<'a> {
    pub format: BlockFormat,
    pub out: usize,
    pub input: usize,
    pub codes: &'a [u8],
    pub scales: &'a [f16],
    pub minimums: &'a [f16],
}

impl BlocksView<'_> {
    /// Writes the values of one row to `to`, which is `input` long.
    ///
    /// # Panics
    /// When the row or the length is wrong.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        assert!(
            row < self.out && to.len() == self.input,
            "row {row} of {}",
            self.out
        );
        let blocks = self.input.div_ceil(BLOCK);
        let size = self.format.code_bytes();
        for (block, to) in to.chunks_mut(BLOCK).enumerate() {
            let at = row / PANEL * blocks + block;
            let place = at * PANEL + row % PANEL;
            let scale = self.scales[place].to_f32();
            let minimum = self.minimums.get(place).map_or(0.0, |m| m.to_f32());
            let zero = i32::from(self.format.zero());
            for (k, value) in to.iter_mut().enumerate() {
                let code = i32::from(take(
                    &self.codes[at * size..][..size],
                    self.format,
                    row % PANEL,
                    k,
                ));
                *value = scale * (code - zero) as f32 + minimum;
            }
        }
    }
}

/// Where the code of a row and input is: the byte, and whether it is the high half.
fn place(format: BlockFormat, row: usize, k: usize) -> (usize, bool) {
    let (quad, within) = (k / 4, k % 4);
    match format {
        BlockFormat::Q8 => (quad * 64 + row * 4 + within, false),
        BlockFormat::Q4 | BlockFormat::Q4Min => (quad / 2 * 64 + row * 4 + within, quad % 2 == 1),
    }
}

fn put(codes: &mut [u8], format: BlockFormat, row: usize, k: usize, code: u8) {
    let (at, high) = place(format, row, k);
    codes[at] |= if high { code << 4 } else { code };
}

fn take(codes: &[u8], format: BlockFormat, row: usize, k: usize) -> u8 {
    let (at, high) = place(format, row, k);
    match format {
        BlockFormat::Q8 => codes[at],
        _ if high => codes[at] >> 4,
        _ => codes[at] & 15,
    }
}

/// Round to nearest with the scale rounded to f16 first, so that codes fit the scale that is stored.
fn round_block(values: &[f32; BLOCK], format: BlockFormat) -> Coded {
    let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // A block that f16 can not scale is as good as its ends.
    let half = |v: f32| f16::from_f32(v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
    let (scale, minimum, most) = match format {
        BlockFormat::Q8 => (half(largest.max(-smallest) / 127.0), f16::ZERO, 255.0),
        // The end that is farther from zero gets code 0, the one with the wider reach.
        BlockFormat::Q4 => {
            let far = if -smallest > largest {
                smallest
            } else {
                largest
            };
            (half(far / -8.0), f16::ZERO, 15.0)
        }
        BlockFormat::Q4Min => (half((largest - smallest) / 15.0), half(smallest), 15.0),
    };
    let zero = f32::from(format.zero());
    let inverse = if scale == f16::ZERO {
        0.0
    } else {
        1.0 / scale.to_f32()
    };
    let codes = values.map(|v| {
        ((v - minimum.to_f32()) * inverse + zero)
            .round_ties_even()
            .clamp(0.0, most) as u8
    });
    Coded {
        scale,
        minimum,
        codes,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn codes_are_the_nearest(
            out in 1usize..40,
            input in 1usize..100,
            format in prop::sample::select(vec![BlockFormat::Q8, BlockFormat::Q4, BlockFormat::Q4Min]),
            seed in any::<u32>(),
        ) {
            let mut state = seed;
            let weights: Vec<f32> = (0..out * input).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 16_777_216.0 - 0.4
            }).collect();
            let blocks = Blocks::quantize(&weights, out, input, format);
            let stored = blocks.codes.len() + 2 * (blocks.scales.len() + blocks.minimums.len());
            prop_assert_eq!(stored, format.bytes(out, input));
            let back = blocks.dequantize();
            for (row, (values, rounded)) in weights.chunks(input).zip(back.chunks(input)).enumerate() {
                for (block, (values, rounded)) in values.chunks(BLOCK).zip(rounded.chunks(BLOCK)).enumerate() {
                    let at = (row / PANEL * input.div_ceil(BLOCK) + block) * PANEL + row % PANEL;
                    let scale = blocks.scales[at].to_f32().abs();
                    for (v, r) in values.iter().zip(rounded) {
                        // Half a step; a whole one at the symmetric format's short end; and f16's rounding of the ends.
                        let steps = if format == BlockFormat::Q4 { 1.01 } else { 0.52 };
                        prop_assert!((v - r).abs() <= steps * scale + 1e-3 * v.abs() + 3e-4, "{v} became {r}, scale {scale}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_of_the_format_survives() {
        let weights: Vec<f32> = (0..64).map(|i| 0.25 * (i % 16) as f32 - 1.5).collect();
        let blocks = Blocks::quantize(&weights, 2, 32, BlockFormat::Q4Min);
        assert_eq!(blocks.dequantize(), weights);
        let zeros = Blocks::quantize(&[0.0; 64], 2, 32, BlockFormat::Q8);
        assert_eq!(zeros.dequantize(), [0.0; 64]);
    }
}
