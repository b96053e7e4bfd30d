//! GGML's block formats, turned into f32.
//!
//! Blocks of 32 (`Q*_0`, `Q*_1`) or 256 (`Q*_K`) weights share scales. The arithmetic keeps the order of
//! operations of ggml's reference code (scale times sub-scale, times code, minus offset; no fused multiply-add), so
//! results are equal bit for bit.

use half::{bf16, f16};
use rayon::prelude::*;

/// One storage type.
pub(super) struct Format {
    /// GGML's number for it.
    id: u32,
    pub name: &'static str,
    /// Weights in one block.
    pub block_length: usize,
    /// Bytes of one block.
    pub block_bytes: usize,
    /// Decodes whole blocks: as many bytes as `block_bytes` for each `block_length` of output.
    decode: fn(&[u8], &mut [f32]),
}

impl std::fmt::Debug for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

/// A row of the table: applies a decoder of one block to every block.
macro_rules! format_row {
    ($id:literal, $name:literal, $length:literal, $bytes:literal, $decode:expr) => {
        Format {
            id: $id,
            name: $name,
            block_length: $length,
            block_bytes: $bytes,
            decode: |input, output| {
                let (blocks, _) = input.as_chunks::<$bytes>();
                let (outputs, _) = output.as_chunks_mut::<$length>();
                for (block, output) in blocks.iter().zip(outputs) {
                    $decode(block, output);
                }
            },
        }
    };
}

/// Every type Cinder reads.
static FORMATS: [Format; 13] = [
    format_row!(0, "F32", 1, 4, |b: &[u8; 4], y: &mut [f32; 1]| {
        *y = [f32::from_le_bytes(*b)];
    }),
    format_row!(1, "F16", 1, 2, |b: &[u8; 2], y: &mut [f32; 1]| {
        *y = [f16::from_le_bytes(*b).to_f32()];
    }),
    format_row!(30, "BF16", 1, 2, |b: &[u8; 2], y: &mut [f32; 1]| {
        *y = [bf16::from_le_bytes(*b).to_f32()];
    }),
    format_row!(2, "Q4_0", 32, 18, q4_0),
    format_row!(3, "Q4_1", 32, 20, q4_1),
    format_row!(6, "Q5_0", 32, 22, q5_0),
    format_row!(7, "Q5_1", 32, 24, q5_1),
    format_row!(8, "Q8_0", 32, 34, q8_0),
    format_row!(10, "Q2_K", 256, 84, q2_k),
    format_row!(11, "Q3_K", 256, 110, q3_k),
    format_row!(12, "Q4_K", 256, 144, q4_k),
    format_row!(13, "Q5_K", 256, 176, q5_k),
    format_row!(14, "Q6_K", 256, 210, q6_k),
];

/// Types that exist but are not decoded, so that a message can name them.
const OTHER_TYPES: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// The type with this number, if Cinder reads it.
pub(super) fn format(id: u32) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.id == id)
}

/// GGML's name of a type Cinder may not read.
pub(super) fn type_name(id: u32) -> String {
    OTHER_TYPES
        .iter()
        .find(|(other, _)| *other == id)
        .map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned())
}

/// The names of [`FORMATS`], for hints.
pub(super) fn supported_names() -> String {
    FORMATS.each_ref().map(|format| format.name).join(", ")
}

/// Decodes `input`, which holds rows of `row_length` weights, into `output`, whose row `r` is row `source_row(r)` of
/// the input: rows are reordered on the way instead of in a second buffer. Parallel over rows.
///
/// `row_length` is a positive multiple of the format's block; a `source_row` past the end leaves its row as it is.
pub(super) fn decode_rows(
    format: &Format,
    input: &[u8],
    row_length: usize,
    output: &mut [f32],
    source_row: impl Fn(usize) -> usize + Sync,
) {
    let row_bytes = row_length / format.block_length * format.block_bytes;
    if row_bytes == 0 {
        return;
    }
    output
        .par_chunks_mut(row_length)
        .enumerate()
        .with_min_len((1 << 14) / row_length.min(1 << 14))
        .for_each(|(row, output)| {
            if let Some(input) = input.chunks_exact(row_bytes).nth(source_row(row)) {
                (format.decode)(input, output);
            }
        });
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half(b[0], b[1]);
    for j in 0..16 {
        let q = b[2 + j];
        y[j] = (f32::from(q & 15) - 8.0) * d;
        y[j + 16] = (f32::from(q >> 4) - 8.0) * d;
    }
}

fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half(b[0], b[1]), half(b[2], b[3]));
    for j in 0..16 {
        let q = b[4 + j];
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// Codes of five bits: the low four in `low` as in `Q4_0`, the fifth of weight `j` is bit `j` of `high`.
fn five_bits(high: [u8; 4], low: &[u8], j: usize) -> (u8, u8) {
    let high = u32::from_le_bytes(high);
    let first = (((high >> j) & 1) as u8) << 4;
    let second = (((high >> (j + 16)) & 1) as u8) << 4;
    (low[j] & 15 | first, low[j] >> 4 | second)
}

fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = half(b[0], b[1]);
    for j in 0..16 {
        let (first, second) = five_bits([b[2], b[3], b[4], b[5]], &b[6..], j);
        y[j] = (f32::from(first) - 16.0) * d;
        y[j + 16] = (f32::from(second) - 16.0) * d;
    }
}

fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (half(b[0], b[1]), half(b[2], b[3]));
    for j in 0..16 {
        let (first, second) = five_bits([b[4], b[5], b[6], b[7]], &b[8..], j);
        y[j] = f32::from(first) * d + m;
        y[j + 16] = f32::from(second) * d + m;
    }
}

fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half(b[0], b[1]);
    for j in 0..32 {
        y[j] = f32::from(b[2 + j] as i8) * d;
    }
}

/// 16 sub-blocks of 16; a byte each of 4-bit scale and 4-bit minimum, then 2-bit codes.
fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    let (d, dmin) = (half(b[80], b[81]), half(b[82], b[83]));
    for (sub, y) in y.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(b[sub] & 15);
        let minimum = dmin * f32::from(b[sub] >> 4);
        let (codes, shift) = two_bit_place(sub);
        for (l, y) in y.iter_mut().enumerate() {
            let q = (b[16 + codes + l] >> shift) & 3;
            *y = scale * f32::from(q) - minimum;
        }
    }
}

/// Where `Q2_K` and `Q3_K` keep the two low bits of sub-block `sub`: byte of its first weight, and shift. Each half
/// of the block has 32 bytes; a byte holds weights 32 apart, and two sub-blocks share a shift.
fn two_bit_place(sub: usize) -> (usize, usize) {
    let (half, within) = (sub / 8, sub % 8);
    (32 * half + 16 * (within % 2), 2 * (within / 2))
}

/// Codes of three bits (the third, in a mask, is *set* for codes that are not lowered by four), 16 scales of 6 bits.
fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = half(b[108], b[109]);
    let scales = &b[96..108];
    for (sub, y) in y.chunks_exact_mut(16).enumerate() {
        let low = (scales[sub % 8] >> (4 * (sub / 8))) & 15;
        let high = (scales[8 + sub % 4] >> (2 * (sub / 4))) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (codes, shift) = two_bit_place(sub);
        for (l, y) in y.iter_mut().enumerate() {
            let q = f32::from((b[32 + codes + l] >> shift) & 3);
            let lowered = (b[16 * (sub % 2) + l] >> (sub / 2)) & 1 == 0;
            *y = scale * if lowered { q - 4.0 } else { q };
        }
    }
}

/// The 6-bit scale and minimum of sub-block `j` of 8, packed in 12 bytes by `Q4_K` and `Q5_K`.
fn scale_and_minimum(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            packed[j + 4] & 15 | (packed[j - 4] >> 6) << 4,
            packed[j + 4] >> 4 | (packed[j] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// 8 sub-blocks of 32; a pair of them shares 32 bytes, the even one in the low nibbles.
fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (half(b[0], b[1]), half(b[2], b[3]));
    for (sub, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&b[4..16], sub);
        let (scale, minimum) = (d * scale, dmin * minimum);
        for (l, y) in y.iter_mut().enumerate() {
            let q = (b[16 + 32 * (sub / 2) + l] >> (4 * (sub % 2))) & 15;
            *y = scale * f32::from(q) - minimum;
        }
    }
}

/// As `Q4_K`, with the fifth bit of sub-block `sub` in bit `sub` of 32 shared bytes.
fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin) = (half(b[0], b[1]), half(b[2], b[3]));
    for (sub, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&b[4..16], sub);
        let (scale, minimum) = (d * scale, dmin * minimum);
        for (l, y) in y.iter_mut().enumerate() {
            let low = (b[48 + 32 * (sub / 2) + l] >> (4 * (sub % 2))) & 15;
            let high = (b[16 + l] >> sub) & 1;
            *y = scale * f32::from(low | high << 4) - minimum;
        }
    }
}

/// 16 sub-blocks of 16 with 8-bit scales. Each half of the block has 64 bytes of low nibbles and 32 of high pairs.
fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = half(b[208], b[209]);
    for (sub, y) in y.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(b[192 + sub] as i8);
        // `quarter` is which 32 weights of the half, `within` which 16 of those.
        let (part, quarter, within) = (sub / 8, sub % 8 / 2, 16 * (sub % 2));
        for (l, y) in y.iter_mut().enumerate() {
            let low = b[64 * part + 32 * (quarter % 2) + within + l] >> (4 * (quarter / 2));
            let high = b[128 + 32 * part + within + l] >> (2 * quarter);
            let q = low & 15 | (high & 3) << 4;
            *y = scale * (f32::from(q) - 32.0);
        }
    }
}
