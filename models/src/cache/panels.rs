//! How latents lie in memory: the order in which the attention kernel reads them.
//!
//! Sixteen tokens are a panel. In a panel the slices follow each other; in a slice the values of the panel's tokens lie
//! together: for floats, value by value, the 16 tokens of each. Codes go by quads, four values of each of the 16 tokens, so
//! that one instruction multiplies 64 of them by the same four weights: 64 bytes with 8 bits; two quads in 64 bytes, low
//! half first, with 4; and with 3 or 2 bits one plane of 64 bits for each bit, the lowest first. The codes are followed by
//! the tokens' 16 scales and 16 minimums, f16.

use half::f16;

use super::CacheFormat;

/// Tokens in a panel.
pub(crate) const PANEL: usize = 16;

/// One slice's place in a panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice {
    /// Its first value among a token's.
    pub start: usize,
    pub rank: usize,
    /// Its first byte in the panel.
    pub offset: usize,
    /// Bytes of its numbers, which scales follow where there are any.
    pub code_bytes: usize,
}

/// The places of all slices in a panel.
#[derive(Debug, Clone)]
pub(crate) struct PanelLayout {
    pub format: CacheFormat,
    pub slices: Vec<Slice>,
    /// Bytes of a panel.
    pub bytes: usize,
    /// Values of a token.
    pub rank: usize,
}

/// Quads of a slice of codes: an even number, so that 4-bit codes fill their bytes.
pub(crate) const fn quads(rank: usize) -> usize {
    2 * rank.div_ceil(8)
}

impl PanelLayout {
    /// The layout of slices of these ranks.
    pub fn new(format: CacheFormat, ranks: &[usize]) -> Self {
        let (mut start, mut bytes) = (0, 0);
        let mut slices = Vec::with_capacity(ranks.len());
        for &rank in ranks {
            let numbers = match format.is_packed() {
                true => 4 * quads(rank),
                false => rank,
            };
            let code_bytes = numbers * PANEL * format.bits() / 8;
            slices.push(Slice {
                start,
                rank,
                offset: bytes,
                code_bytes,
            });
            start += rank;
            bytes += code_bytes + if format.is_packed() { 4 * PANEL } else { 0 };
        }
        PanelLayout {
            format,
            slices,
            bytes,
            rank: start,
        }
    }

    /// Puts a token's latents, all slices one after another, into a lane of a panel. A slice with a value that is not finite,
    /// or that the format can not hold, becomes NaN as a whole.
    pub fn write(&self, panel: &mut [u8], lane: usize, values: &[f32]) {
        for slice in &self.slices {
            let values = &values[slice.start..slice.start + slice.rank];
            let place = &mut panel[slice.offset..];
            match self.format {
                CacheFormat::F32 => {
                    for (i, value) in values.iter().enumerate() {
                        let value = if value.is_finite() { *value } else { f32::NAN };
                        put(place, 4 * (i * PANEL + lane), value.to_le_bytes());
                    }
                }
                CacheFormat::F16 => {
                    for (i, value) in values.iter().enumerate() {
                        let value = f16::from_f32(*value);
                        let value = if value.is_finite() { value } else { f16::NAN };
                        put(place, 2 * (i * PANEL + lane), value.to_le_bytes());
                    }
                }
                _ => self.write_codes(place, slice, lane, values),
            }
        }
    }

    fn write_codes(&self, place: &mut [u8], slice: &Slice, lane: usize, values: &[f32]) {
        let most = ((1 << self.format.bits()) - 1) as f32;
        let (mut low, mut high, mut whole) = (f32::INFINITY, f32::NEG_INFINITY, true);
        for value in values {
            low = low.min(*value);
            high = high.max(*value);
            whole &= value.is_finite();
        }
        let (scale, minimum) = match values.is_empty() {
            true => (f16::ZERO, f16::ZERO),
            // Halves first: the distance of two finite numbers may not be finite.
            false => (
                f16::from_f32((high / most) - (low / most)),
                f16::from_f32(low),
            ),
        };
        let (scale, minimum) = match whole && scale.is_finite() && minimum.is_finite() {
            true => (scale, minimum),
            false => (f16::NAN, f16::NAN),
        };
        let (step, from) = (scale.to_f32(), minimum.to_f32());
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        for quad in 0..quads(slice.rank) {
            let mut codes = [0; 4];
            for (code, value) in codes.iter_mut().zip(values.iter().skip(4 * quad)) {
                // NaN becomes 0.
                *code = ((value - from) * inverse + 0.5).clamp(0.0, most) as u8;
            }
            self.put_quad(place, quad, lane, codes);
        }
        let at = slice.code_bytes + 2 * lane;
        put(place, at, scale.to_le_bytes());
        put(place, at + 2 * PANEL, minimum.to_le_bytes());
    }

    /// Four codes of one token.
    fn put_quad(&self, place: &mut [u8], quad: usize, lane: usize, codes: [u8; 4]) {
        match self.format {
            CacheFormat::Q4 => {
                let (at, shift) = (quad / 2 * 64 + 4 * lane, quad % 2 * 4);
                for (byte, code) in place[at..at + 4].iter_mut().zip(codes) {
                    *byte = *byte & !(15 << shift) | code << shift;
                }
            }
            CacheFormat::Q3 | CacheFormat::Q2 => {
                let (bits, shift) = (self.format.bits(), lane % 2 * 4);
                for plane in 0..bits {
                    let byte = &mut place[(quad * bits + plane) * 8 + lane / 2];
                    let mut four = 0;
                    for (i, code) in codes.into_iter().enumerate() {
                        four |= (code >> plane & 1) << i;
                    }
                    *byte = *byte & !(15 << shift) | four << shift;
                }
            }
            _ => put(place, quad * 64 + 4 * lane, codes),
        }
    }

    /// One code of one token.
    fn code(&self, place: &[u8], i: usize, lane: usize) -> u8 {
        let (quad, at) = (i / 4, 4 * lane + i % 4);
        match self.format {
            CacheFormat::Q4 => place[quad / 2 * 64 + at] >> (quad % 2 * 4) & 15,
            CacheFormat::Q3 | CacheFormat::Q2 => {
                let bits = self.format.bits();
                let planes = (0..bits).map(|plane| {
                    let byte = place[(quad * bits + plane) * 8 + at / 8];
                    (byte >> (at % 8) & 1) << plane
                });
                planes.sum()
            }
            _ => place[quad * 64 + at],
        }
    }

    /// What the numbers of one token stand for, all slices one after another.
    pub fn read(&self, panel: &[u8], lane: usize, values: &mut [f32]) {
        for slice in &self.slices {
            let place = &panel[slice.offset..];
            let half = |at: usize| f16::from_le_bytes([place[at], place[at + 1]]).to_f32();
            let values = &mut values[slice.start..slice.start + slice.rank];
            let scales = slice.code_bytes + 2 * lane;
            for (i, value) in values.iter_mut().enumerate() {
                *value = match self.format {
                    CacheFormat::F32 => {
                        let at = 4 * (i * PANEL + lane);
                        f32::from_le_bytes([place[at], place[at + 1], place[at + 2], place[at + 3]])
                    }
                    CacheFormat::F16 => half(2 * (i * PANEL + lane)),
                    _ => {
                        let code = f32::from(self.code(place, i, lane));
                        code.mul_add(half(scales), half(scales + 2 * PANEL))
                    }
                };
            }
        }
    }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

const _: () = assert!(cfg!(target_endian = "little"), "kernels read the numbers");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_read_is_within_half_a_step_of_what_was_written(
            ranks in prop::collection::vec(1usize..40, 1..4),
            format in prop::sample::select(CacheFormat::ALL.to_vec()),
            scale in prop::sample::select(vec![1e-3f32, 1.0, 300.0]), seed: u32,
        ) {
            let layout = PanelLayout::new(format, &ranks);
            prop_assert_eq!(layout.bytes as u64, PANEL as u64 * format.latent_bytes(&ranks));
            let value = |i: usize| {
                let mixed = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed).wrapping_mul(0x9e37_79b9);
                scale * ((mixed >> 8) as f32 / (1 << 24) as f32 - 0.3)
            };
            let rank: usize = ranks.iter().sum();
            let mut panel = vec![0xff; layout.bytes];
            let tokens: Vec<Vec<f32>> = (0..PANEL).map(|t| (0..rank).map(|i| value(t * rank + i)).collect()).collect();
            // Twice, the first time other numbers: a lane that is written again forgets what it held.
            for (lane, token) in tokens.iter().enumerate() {
                layout.write(&mut panel, lane, &tokens[PANEL - 1 - lane]);
                layout.write(&mut panel, lane, token);
            }
            let mut back = vec![0.0; rank];
            for (lane, token) in tokens.iter().enumerate() {
                layout.read(&panel, lane, &mut back);
                for slice in &layout.slices {
                    let range = slice.start..slice.start + slice.rank;
                    let (token, back) = (&token[range.clone()], &back[range]);
                    let low = token.iter().copied().fold(f32::INFINITY, f32::min);
                    let high = token.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let most = ((1u64 << format.bits().min(8)) - 1) as f32;
                    let half = 1.0 / 2048.0;
                    let bound = match format {
                        CacheFormat::F32 => 0.0,
                        CacheFormat::F16 => half * high.abs().max(low.abs()) + 1e-7,
                        _ => (high - low) * (0.5 / most + half) + half * low.abs() + 1e-5 * scale.max(1e-2) + most * 3e-8,
                    };
                    for (a, b) in token.iter().zip(back) {
                        prop_assert!((a - b).abs() <= bound * 1.01, "{a} became {b}, bound {bound}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_or_does_not_fit_is_not_a_number() {
        for format in CacheFormat::ALL {
            let layout = PanelLayout::new(format, &[3, 2]);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
                let mut panel = vec![0; layout.bytes];
                layout.write(&mut panel, 5, &[0.5, bad, 0.25, 2.0, 2.0]);
                let mut back = [0.0; 5];
                layout.read(&panel, 5, &mut back);
                let fits = bad == 1e30 && format == CacheFormat::F32;
                assert_eq!(back[1].is_nan(), !fits, "{format} {bad}");
                assert_eq!(back[3..], [2.0, 2.0], "{format}");
            }
        }
    }
}
