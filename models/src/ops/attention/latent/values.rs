//! The two forms of the values' part: rebuilt tile by tile, or summed as latents.

use super::super::{TILE, mix_rows};
use super::LateExpansion;
use super::tile::{Source, load_floats, load_quad};
use crate::cache::CacheFormat;
use crate::cache::panels::PANEL;
use crate::ops::simd::{LANES, Simd};

/// `[channels, TILE]` turned to `[TILE, width]`, zeros behind `channels`.
#[inline(always)]
pub(super) unsafe fn turn_values<S: Simd>(
    from: &[f32],
    channels: usize,
    to: &mut [f32],
    width: usize,
) {
    for channel in (0..width).step_by(LANES) {
        for token in (0..TILE).step_by(LANES) {
            // SAFETY: `from` has `channels` rows of TILE, `to` has TILE rows of whole vectors.
            unsafe {
                let mut rows = [S::splat(0.0); LANES];
                for i in 0..LANES.min(channels - channel) {
                    rows[i] = S::load(from.as_ptr().add((channel + i) * TILE + token));
                }
                let turned = S::transpose(rows);
                for i in 0..LANES {
                    S::store(
                        to.as_mut_ptr().add((token + i) * width + channel),
                        turned[i],
                    );
                }
            }
        }
    }
}

/// Rows of weights over a run, tile by tile: those of one tile are TILE apart, tiles are `tile` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub weights: *mut f32,
    pub tile: usize,
    pub count: usize,
}

impl Rows {
    /// Where the weights of a row and a panel are.
    fn at(&self, row: usize, panel: usize) -> *mut f32 {
        let at = panel * PANEL / TILE * self.tile + row * TILE + panel * PANEL % TILE;
        self.weights.wrapping_add(at)
    }
}

/// Sums over the latents of one slice, of `tokens` tokens from panel `first`, into `to` `[rows, width]`.
///
/// The rows' weights are used up. The format is one whose weights have `PARTS` bytes.
#[inline(always)]
pub(super) unsafe fn sum_latents<S: Simd, const PARTS: usize>(
    from: Source<'_>,
    first: usize,
    tokens: usize,
    rows: Rows,
    to: *mut f32,
    width: usize,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        match (PARTS, from.format()) {
            (0, CacheFormat::F32) => sum::<S, 32>(from, first, tokens, rows, to, width),
            (0, _) => sum::<S, 16>(from, first, tokens, rows, to, width),
            (2, _) => sum::<S, 8>(from, first, tokens, rows, to, width),
            (_, CacheFormat::Q4) => sum::<S, 4>(from, first, tokens, rows, to, width),
            (_, CacheFormat::Q3) => sum::<S, 3>(from, first, tokens, rows, to, width),
            _ => sum::<S, 2>(from, first, tokens, rows, to, width),
        }
    }
}

#[inline(always)]
unsafe fn sum<S: Simd, const BITS: usize>(
    from: Source<'_>,
    first: usize,
    tokens: usize,
    rows: Rows,
    to: *mut f32,
    width: usize,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut offsets = [0.0; 8];
        let mut row = 0;
        while row < rows.count {
            let left = rows.count - row;
            let many = if S::MANY_REGISTERS { left.min(6) } else { 1 };
            let many = if many < 3 { 1 } else { many / 3 * 3 };
            for m in 0..many {
                offsets[m] = match BITS <= 8 {
                    true => scale_weights::<S>(from, first, tokens, rows, row + m),
                    false => 0.0,
                };
            }
            let to = to.add(row * width);
            let at = |more: usize| Rows {
                weights: rows.weights.wrapping_add((row + more) * TILE),
                ..rows
            };
            for four in 0..from.slice.rank.div_ceil(4) {
                let place = (first, tokens, four);
                let to = to.add(4 * four);
                match many {
                    6 => dots::<S, BITS, 6>(from, place, at(0), &offsets, to, width),
                    3 => dots::<S, BITS, 3>(from, place, at(0), &offsets, to, width),
                    _ => dots::<S, BITS, 1>(from, place, at(0), &offsets, to, width),
                }
            }
            row += many;
        }
    }
}

/// Multiplies a row's weights by the tokens' scales; returns their sum times the minimums.
#[inline(always)]
unsafe fn scale_weights<S: Simd>(
    from: Source<'_>,
    first: usize,
    tokens: usize,
    rows: Rows,
    row: usize,
) -> f32 {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut offset = S::splat(0.0);
        for panel in 0..tokens.div_ceil(PANEL) {
            let n = (tokens - panel * PANEL).min(PANEL);
            let (scale, minimum) = from.scales::<S>(first + panel, n);
            let at = rows.at(row, panel);
            let weight = S::load(at);
            offset = S::fma(weight, minimum, offset);
            S::store(at, S::mul(weight, scale));
        }
        S::sum(offset)
    }
}

/// Four latent values summed for `M` rows.
#[inline(always)]
unsafe fn dots<S: Simd, const BITS: usize, const M: usize>(
    from: Source<'_>,
    (first, tokens, four): (usize, usize, usize),
    rows: Rows,
    offsets: &[f32; 8],
    to: *mut f32,
    width: usize,
) {
    // SAFETY: the run's panels are the cache's; the rows are there, and `to` has whole vectors for each.
    unsafe {
        let mut acc = [[S::splat(0.0); 4]; M];
        for panel in 0..tokens.div_ceil(PANEL) {
            let place = from.panel(first + panel);
            let mut values = [S::splat(0.0); 4];
            if BITS <= 8 {
                values = S::spread_u8(load_quad::<S, BITS>(place, four));
            } else {
                let n = (tokens - panel * PANEL).min(PANEL);
                for j in 0..4.min(from.slice.rank - 4 * four) {
                    values[j] = load_floats::<S, BITS>(place, 4 * four + j, n);
                }
            }
            for m in 0..M {
                let weight = S::load(rows.at(m, panel));
                for j in 0..4 {
                    acc[m][j] = S::fma(weight, values[j], acc[m][j]);
                }
            }
        }
        for m in (0..M).step_by(2) {
            let (a, b) = (acc[m], acc[(m + 1).min(M - 1)]);
            let sums = S::sums([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]);
            for (k, sum) in sums.into_iter().enumerate().take(4 * (M - m).min(2)) {
                *to.add((m + k / 4) * width + k % 4) = sum + offsets[m + k / 4];
            }
        }
    }
}

/// Adds weighted values `[count, width]` to the sums of some rows.
#[inline(always)]
pub(super) unsafe fn mix<S: Simd>(
    rows: usize,
    weights: *const f32,
    values: *const f32,
    count: usize,
    sums: *mut f32,
    width: usize,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: passed on to the caller.
        row += unsafe {
            let (weights, sums) = (weights.add(row * TILE), sums.add(row * width));
            match (S::MANY_REGISTERS, rows - row) {
                (true, 6..) => mix_rows::<S, _, 6>(
                    weights,
                    values,
                    width,
                    count,
                    sums,
                    width,
                    super::NOT_AHEAD,
                ),
                (true, 3..) => mix_rows::<S, _, 3>(
                    weights,
                    values,
                    width,
                    count,
                    sums,
                    width,
                    super::NOT_AHEAD,
                ),
                _ => mix_rows::<S, _, 1>(
                    weights,
                    values,
                    width,
                    count,
                    sums,
                    width,
                    super::NOT_AHEAD,
                ),
            }
        };
    }
}

impl LateExpansion {
    /// One head's values of summed latents times `factor`, into `to` `[padded head_dim]`.
    #[inline(always)]
    pub(super) unsafe fn expand<S: Simd>(
        &self,
        head: usize,
        sums: &[f32],
        factor: f32,
        to: &mut [f32],
    ) {
        let width = to.len();
        let weights = &self.weights[head * self.rank * width..][..self.rank * width];
        for column in (0..width).step_by(LANES) {
            // SAFETY: weights have `rank` rows of `width`.
            unsafe {
                let mut acc = S::load(self.bias.as_ptr().add(head * width + column));
                for (i, sum) in sums[..self.rank].iter().enumerate() {
                    let weight = S::load(weights.as_ptr().add(i * width + column));
                    acc = S::fma(S::splat(sum * factor), weight, acc);
                }
                S::store(to.as_mut_ptr().add(column), acc);
            }
        }
    }
}
