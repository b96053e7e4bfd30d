//! Block-quantised weights: 2 to 8 bits a weight, one scale (and perhaps one minimum) for some consecutive weights of a row.
//!
//! `w ≈ scale · (code - zero)` with zero 128 or 8, or `w ≈ scale · code + minimum`; scale and minimum are f16. The first
//! three formats have the blocks of GGUF's Q8_0, Q4_0 and Q4_1; the order is ours. Rows are kept in panels of 16, so that the
//! same four inputs (a quad) meet 64 weights that lie together: the bytes of one panel and block of 32 inputs are, for each
//! quad in turn, the four codes of row 0, of row 1, ... of row 15. Narrower codes share a byte with those of the next quads,
//! the lowest bits first: two quads of 4 bits or four of 2. Codes of 3 bits are 2-bit ones, and behind the block's 128 bytes
//! of those 64 bytes more, whose bits are the eight quads' highest. The last panel is filled up with rows of zeros, the last
//! block with inputs of zero.

use half::f16;
use rayon::prelude::*;

/// Weights that are multiplied in one go: consecutive inputs of one output. A scale is of one or more blocks.
pub const BLOCK: usize = 32;
/// Rows (outputs) of a panel.
pub const PANEL: usize = 16;

/// Asymmetric codes of 2, 3, 4 or 8 bits whose groups of 32, 64 or 128 inputs share a scale and a minimum: a weight takes
/// `bits + 32 / group` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LowBit {
    bits: u8,
    group: u8,
}

impl LowBit {
    /// Bits that codes may have.
    pub const BITS: [usize; 4] = [2, 3, 4, 8];
    /// Inputs that may share a scale.
    pub const GROUPS: [usize; 3] = [32, 64, 128];

    /// The format of these bits and this group; none when there is no such.
    pub const fn new(bits: usize, group: usize) -> Option<Self> {
        match (bits, group) {
            (2 | 3 | 4 | 8, 32 | 64 | 128) => Some(LowBit {
                bits: bits as u8,
                group: group as u8,
            }),
            _ => None,
        }
    }

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        self.bits as usize
    }

    /// Inputs that share a scale and a minimum.
    pub const fn group(self) -> usize {
        self.group as usize
    }

    /// The largest code.
    pub const fn most(self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }
}

/// Bits and offset of a block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 8 bits, symmetric: 8.5 bits a weight.
    Q8,
    /// 4 bits, symmetric: 4.5 bits a weight.
    Q4,
    /// 4 bits with a minimum: 5 bits a weight.
    Q4Min,
    /// See [`LowBit`].
    Low(LowBit),
}

impl BlockFormat {
    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            BlockFormat::Q8 => 8,
            BlockFormat::Q4 | BlockFormat::Q4Min => 4,
            BlockFormat::Low(low) => low.bits(),
        }
    }

    /// Inputs that share a scale: a multiple of [`BLOCK`].
    pub const fn group(self) -> usize {
        match self {
            BlockFormat::Low(low) => low.group(),
            _ => BLOCK,
        }
    }

    /// Bytes of the codes of one panel and block.
    pub const fn code_bytes(self) -> usize {
        PANEL * BLOCK / 8 * self.bits()
    }

    /// Whether groups have a minimum beside their scale.
    pub const fn has_minimum(self) -> bool {
        matches!(self, BlockFormat::Q4Min | BlockFormat::Low(_))
    }

    /// The code that stands for zero, where there is no minimum.
    pub const fn zero(self) -> u8 {
        match self {
            BlockFormat::Q8 => 128,
            BlockFormat::Q4 => 8,
            BlockFormat::Q4Min | BlockFormat::Low(_) => 0,
        }
    }

    /// Bytes that a matrix of `out` × `input` takes, padding included.
    pub const fn bytes(self, out: usize, input: usize) -> usize {
        let f16s = if self.has_minimum() { 2 } else { 1 };
        let codes = input.div_ceil(BLOCK) * self.code_bytes();
        let scales = input.div_ceil(self.group()) * PANEL * 2 * f16s;
        out.div_ceil(PANEL) * (codes + scales)
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
    /// `[panels, groups, 16]`.
    pub scales: Vec<f16>,
    /// `[panels, groups, 16]`, or nothing.
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
        if let BlockFormat::Low(low) = format {
            let nearest = |group: &[f32], codes: &mut [u8]| {
                let (smallest, largest) = ends(group);
                let scale = half((largest - smallest) / f32::from(low.most()));
                let minimum = half(smallest);
                nearest_codes(group, scale, minimum, low.most(), codes);
                (scale, minimum)
            };
            return Self::build(weights, out, input, format, nearest);
        }
        Self::build(weights, out, input, format, |group, codes| {
            let mut values = [0.0; BLOCK];
            values[..group.len()].copy_from_slice(group);
            let coded = round_block(&values, format);
            codes.copy_from_slice(&coded.codes);
            (coded.scale, coded.minimum)
        })
    }

    /// Packs a matrix `[out, input]`, row-major, whose codes `round` chooses: it is given the weights of each group (fewer than
    /// the format's at the end of a row; none for the rows that fill up the last panel), writes
    /// a code for each (all are zero before) and returns the group's scale and minimum.
    ///
    /// # Panics
    /// When `weights` is not `out * input` long.
    pub fn build(
        weights: &[f32],
        out: usize,
        input: usize,
        format: BlockFormat,
        round: impl Fn(&[f32], &mut [u8]) -> (f16, f16) + Sync,
    ) -> Blocks {
        assert_eq!(weights.len(), out * input, "a matrix of {out} x {input}");
        let (size, group) = (format.code_bytes(), format.group());
        let panels = out.div_ceil(PANEL);
        let (blocks, groups) = (input.div_ceil(BLOCK), input.div_ceil(group));
        let mut codes = vec![0; panels * blocks * size];
        let mut scales = vec![f16::ZERO; panels * groups * PANEL];
        let mut minimums = vec![f16::ZERO; panels * groups * PANEL];
        let rows = codes
            .par_chunks_mut((blocks * size).max(1))
            .zip(scales.par_chunks_mut((groups * PANEL).max(1)))
            .zip(minimums.par_chunks_mut((groups * PANEL).max(1)));
        rows.enumerate()
            .for_each(|(panel, ((codes, scales), minimums))| {
                let mut chosen = vec![0; group];
                for at in 0..groups {
                    let first = at * group;
                    for row in 0..PANEL {
                        let values = match panel * PANEL + row < out {
                            true => {
                                let start = (panel * PANEL + row) * input;
                                &weights[start + first..start + input.min(first + group)]
                            }
                            false => &[],
                        };
                        chosen.fill(0);
                        let place = at * PANEL + row;
                        (scales[place], minimums[place]) = round(values, &mut chosen);
                        let parts = codes[first / BLOCK * size..].chunks_mut(size);
                        for (part, chosen) in parts.zip(chosen.chunks(BLOCK)) {
                            for (k, code) in chosen.iter().enumerate() {
                                put(part, format.bits(), row, k, *code);
                            }
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

    /// Whether weights can be rounded: numbers, and such as f16 reaches.
    pub fn can_hold(weights: &[f32]) -> bool {
        weights.iter().all(|w| w.abs() <= f16::MAX.to_f32())
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
        let (size, group) = (self.format.code_bytes(), self.format.group());
        let (blocks, groups) = (self.input.div_ceil(BLOCK), self.input.div_ceil(group));
        for (block, to) in to.chunks_mut(BLOCK).enumerate() {
            let at = row / PANEL * blocks + block;
            let place = (row / PANEL * groups + block * BLOCK / group) * PANEL + row % PANEL;
            let scale = self.scales[place].to_f32();
            let minimum = self.minimums.get(place).map_or(0.0, |m| m.to_f32());
            let zero = i32::from(self.format.zero());
            let codes = &self.codes[at * size..][..size];
            for (k, value) in to.iter_mut().enumerate() {
                let code = i32::from(take(codes, self.format.bits(), row % PANEL, k));
                *value = scale * (code - zero) as f32 + minimum;
            }
        }
    }
}

/// The highest bits of 3-bit codes are behind the block's others.
const HIGHEST: usize = PANEL * BLOCK / 4;

/// Writes the code of a row and input into a panel's block, where there are zeros.
fn put(codes: &mut [u8], bits: usize, row: usize, k: usize, code: u8) {
    let (quad, lane) = (k / 4, row * 4 + k % 4);
    match bits {
        8 => codes[quad * 64 + lane] = code,
        4 => codes[quad / 2 * 64 + lane] |= code << (quad % 2 * 4),
        _ => {
            codes[quad / 4 * 64 + lane] |= (code & 3) << (quad % 4 * 2);
            if bits == 3 {
                codes[HIGHEST + lane] |= (code >> 2) << quad;
            }
        }
    }
}

/// What [`put`] wrote.
fn take(codes: &[u8], bits: usize, row: usize, k: usize) -> u8 {
    let (quad, lane) = (k / 4, row * 4 + k % 4);
    match bits {
        8 => codes[quad * 64 + lane],
        4 => codes[quad / 2 * 64 + lane] >> (quad % 2 * 4) & 15,
        _ => {
            let low = codes[quad / 4 * 64 + lane] >> (quad % 4 * 2) & 3;
            match bits {
                3 => low | (codes[HIGHEST + lane] >> quad & 1) << 2,
                _ => low,
            }
        }
    }
}

/// The smallest and the largest; zeros for no weights.
pub(crate) fn ends(weights: &[f32]) -> (f32, f32) {
    let Some(first) = weights.first() else {
        return (0.0, 0.0);
    };
    let fold = |f: fn(f32, f32) -> f32| weights.iter().copied().fold(*first, f);
    (fold(f32::min), fold(f32::max))
}

/// As f16. A group that f16 can not scale is as good as its ends.
pub(crate) fn half(v: f32) -> f16 {
    f16::from_f32(v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// The codes up to `most` that come nearest to weights, for the scale and minimum that are stored.
pub(crate) fn nearest_codes(weights: &[f32], scale: f16, minimum: f16, most: u8, codes: &mut [u8]) {
    let inverse = inverse(scale);
    for (code, weight) in codes.iter_mut().zip(weights) {
        let value = (weight - minimum.to_f32()) * inverse;
        *code = value.round_ties_even().clamp(0.0, f32::from(most)) as u8;
    }
}

/// `1 / scale`, or 0 of none.
fn inverse(scale: f16) -> f32 {
    match scale == f16::ZERO {
        true => 0.0,
        false => 1.0 / scale.to_f32(),
    }
}

/// Round to nearest with the scale rounded to f16 first, so that codes fit the scale that is stored: the formats of one block.
fn round_block(values: &[f32; BLOCK], format: BlockFormat) -> Coded {
    let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
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
        _ => (half((largest - smallest) / 15.0), half(smallest), 15.0),
    };
    let zero = f32::from(format.zero());
    let inverse = inverse(scale);
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
            format in prop::sample::select(crate::test_data::block_formats()),
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
                let group = format.group();
                for (index, (values, rounded)) in values.chunks(group).zip(rounded.chunks(group)).enumerate() {
                    let at = (row / PANEL * input.div_ceil(group) + index) * PANEL + row % PANEL;
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever codes, scales and minimums are packed come out again, beside all others and at any tail.
        #[test]
        fn what_is_packed_is_what_comes_out(
            out in 1usize..40,
            input in 1usize..300,
            format in prop::sample::select(crate::test_data::block_formats()),
            seed in any::<u32>(),
        ) {
            let BlockFormat::Low(low) = format else { return Ok(()) };
            // A weight carries its code, and its group's scale and minimum follow from where the first code is.
            let code = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7 & u32::from(low.most());
            let weights: Vec<f32> = (0..out * input).map(|i| i as f32).collect();
            let scale = |first: f32| f16::from_f32(0.25 + (first % 7.0) / 4.0);
            let minimum = |first: f32| f16::from_f32((first % 5.0) / 2.0 - 1.0);
            let blocks = Blocks::build(&weights, out, input, format, |group, codes| {
                for (to, weight) in codes.iter_mut().zip(group) {
                    *to = code(*weight as usize) as u8;
                }
                let first = group.first().copied().unwrap_or(0.0);
                (scale(first), minimum(first))
            });
            prop_assert_eq!(blocks.codes.len() + 4 * blocks.scales.len(), format.bytes(out, input));
            for (i, value) in blocks.dequantize().into_iter().enumerate() {
                let first = (i - i % input % format.group()) as f32;
                let expected = scale(first).to_f32() * code(i) as f32 + minimum(first).to_f32();
                prop_assert_eq!(value, expected, "weight {}", i);
            }
        }
    }

    #[test]
    fn bits_a_weight_are_those_of_codes_scales_and_minimums() {
        for bits in LowBit::BITS {
            for group in LowBit::GROUPS {
                let format = BlockFormat::Low(LowBit::new(bits, group).expect("a format"));
                let each = 8.0 * format.bytes(64, 1024) as f64 / (64.0 * 1024.0);
                assert_eq!(each, bits as f64 + 32.0 / group as f64);
                // A tail of a group has a scale of its own, and no more codes than whole blocks.
                let tail = format.bytes(16, group + 1) - format.bytes(16, group);
                assert_eq!(tail, 16 * (4 * bits + 4));
            }
        }
        assert_eq!(LowBit::new(5, 64), None);
        assert_eq!(LowBit::new(4, 48), None);
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
