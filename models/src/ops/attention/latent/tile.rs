//! One tile of latents: unpacked, and multiplied into channels of keys or values.

use super::super::{TILE, VECTORS};
use super::expansion::{Expansion, middle};
use crate::cache::panels::{PANEL, Slice, quads};
use crate::cache::{CacheFormat, Latents};
use crate::ops::simd::{LANES, Simd};

/// The latents of up to 64 tokens of one slice, each value's tokens together.
pub(super) struct Tile {
    /// `[quads, VECTORS, 64]`: codes, where there are any.
    codes: Vec<u8>,
    /// `[rank, TILE]`: floats, where there are no codes.
    floats: Vec<f32>,
    /// The code that whole weights count from.
    zero: i32,
    scales: [f32; TILE],
    /// What the middle code of each token stands for.
    middles: [f32; TILE],
}

/// A slice of one sequence in a cache.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub slice: Slice,
    latents: Latents<'a>,
    /// Where the slice would start in the panel of the first token of all, were it held.
    start: *const u8,
    /// Bytes from there to the next panel's.
    step: usize,
}

impl<'a> Source<'a> {
    pub fn new(latents: Latents<'a>, slice: usize, sequence: usize) -> Self {
        let (slice, bytes) = (latents.layout.slices[slice], latents.layout.bytes);
        let step = latents.batch * bytes;
        let start = latents.panels.as_ptr();
        let start = start.wrapping_add(sequence * bytes + slice.offset);
        Source {
            slice,
            latents,
            start: start.wrapping_sub(latents.first / PANEL * step),
            step,
        }
    }

    pub fn format(&self) -> CacheFormat {
        self.latents.layout.format
    }

    /// Where the slice starts in a panel.
    pub fn panel(&self, panel: usize) -> *const u8 {
        self.start.wrapping_add(panel * self.step)
    }

    /// Scales and minimums of the first `count` ≤ 16 tokens of a panel of codes, zeros behind them.
    #[inline(always)]
    pub unsafe fn scales<S: Simd>(&self, panel: usize, count: usize) -> (S::F, S::F) {
        let at = self
            .panel(panel)
            .wrapping_add(self.slice.code_bytes)
            .cast::<u16>();
        // SAFETY: passed on to the caller, whose panel is one of the cache's.
        unsafe {
            match count >= LANES {
                true => (S::load_f16(at), S::load_f16(at.add(PANEL))),
                false => (
                    S::load_some_f16(at, count),
                    S::load_some_f16(at.add(PANEL), count),
                ),
            }
        }
    }
}

/// A quad of codes of `BITS` bits of the panel at `from`.
#[inline(always)]
pub(super) unsafe fn load_quad<S: Simd, const BITS: usize>(from: *const u8, quad: usize) -> S::U {
    // SAFETY: passed on to the caller: the panel has the quad.
    unsafe {
        match BITS {
            8 => S::load_u8(from.add(quad * 64)),
            4 => {
                let (low, high) = S::load_nibbles(from.add(quad / 2 * 64));
                if quad.is_multiple_of(2) { low } else { high }
            }
            _ => S::load_planes::<BITS>(from.add(quad * 8 * BITS)),
        }
    }
}

/// `count` ≤ 16 floats of `BITS` bits of the panel at `from`, zeros behind them.
#[inline(always)]
pub(super) unsafe fn load_floats<S: Simd, const BITS: usize>(
    from: *const u8,
    value: usize,
    count: usize,
) -> S::F {
    // SAFETY: passed on to the caller: the panel has the value.
    unsafe {
        match (BITS, count >= LANES) {
            (32, true) => S::load(from.cast::<f32>().add(value * PANEL)),
            (32, false) => S::load_some(from.cast::<f32>().add(value * PANEL), count),
            (_, true) => S::load_f16(from.cast::<u16>().add(value * PANEL)),
            (_, false) => S::load_some_f16(from.cast::<u16>().add(value * PANEL), count),
        }
    }
}

impl Tile {
    /// Memory for slices of up to `rank` values.
    pub fn new(rank: usize, format: CacheFormat) -> Self {
        let packed = format.is_packed();
        Tile {
            codes: vec![
                0;
                if packed {
                    quads(rank) * VECTORS * 64
                } else {
                    0
                }
            ],
            floats: vec![0.0; if packed { 0 } else { rank * TILE }],
            zero: i32::from(middle(format)),
            scales: [0.0; TILE],
            middles: [0.0; TILE],
        }
    }

    /// Unpacks `count` ≤ 64 tokens from panel `first`, of a format whose weights have `PARTS` bytes.
    #[inline(always)]
    pub unsafe fn load<S: Simd, const PARTS: usize>(
        &mut self,
        from: Source<'_>,
        first: usize,
        count: usize,
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            match (PARTS, from.format()) {
                (0, CacheFormat::F32) => self.load_floats::<S, 32>(from, first, count),
                (0, _) => self.load_floats::<S, 16>(from, first, count),
                (2, _) => self.load_codes::<S, 8>(from, first, count),
                (_, CacheFormat::Q4) => self.load_codes::<S, 4>(from, first, count),
                (_, CacheFormat::Q3) => self.load_codes::<S, 3>(from, first, count),
                _ => self.load_codes::<S, 2>(from, first, count),
            }
        }
    }

    #[inline(always)]
    unsafe fn load_floats<S: Simd, const BITS: usize>(
        &mut self,
        from: Source<'_>,
        first: usize,
        count: usize,
    ) {
        for vector in 0..VECTORS {
            let n = count.saturating_sub(vector * PANEL).min(PANEL);
            for value in 0..from.slice.rank {
                // SAFETY: panels that hold tokens are the cache's; the tile has `rank` values.
                unsafe {
                    let tokens = match n {
                        0 => S::splat(0.0),
                        _ => load_floats::<S, BITS>(from.panel(first + vector), value, n),
                    };
                    let to = self.floats.as_mut_ptr().add(value * TILE + vector * LANES);
                    S::store(to, tokens);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load_codes<S: Simd, const BITS: usize>(
        &mut self,
        from: Source<'_>,
        first: usize,
        count: usize,
    ) {
        let zero = self.zero as f32;
        for vector in 0..VECTORS {
            let n = count.saturating_sub(vector * PANEL).min(PANEL);
            // SAFETY: panels that hold tokens are the cache's; the tile has the slice's quads.
            unsafe {
                let (mut scale, mut minimum) = (S::splat(0.0), S::splat(0.0));
                // Without tokens, the codes of an earlier tile stay: times zero.
                if n > 0 {
                    (scale, minimum) = from.scales::<S>(first + vector, n);
                    let panel = from.panel(first + vector);
                    let mut to = self.codes.as_mut_ptr().add(vector * 64);
                    for quad in 0..quads(from.slice.rank) {
                        S::store_u8(to, load_quad::<S, BITS>(panel, quad));
                        to = to.wrapping_add(VECTORS * 64);
                    }
                }
                let middle = S::fma(scale, S::splat(zero), minimum);
                S::store(self.scales.as_mut_ptr().add(vector * LANES), scale);
                S::store(self.middles.as_mut_ptr().add(vector * LANES), middle);
            }
        }
    }

    /// `N` channels for `V` vectors of tokens from vector `from`, over the channels' scales.
    #[inline(always)]
    unsafe fn products<S: Simd, const PARTS: usize, const N: usize, const V: usize>(
        &self,
        by: &Expansion,
        channels: [usize; N],
        from: usize,
    ) -> [[S::F; V]; N] {
        // SAFETY: passed on to the caller: the channels are the expansion's, the tile is of its rank.
        unsafe {
            let mut out = [[S::splat(0.0); V]; N];
            for n in 0..N {
                let shift = S::splat(*by.shifts.as_ptr().add(channels[n]));
                out[n] = [shift; V];
            }
            if PARTS == 0 {
                let floats = self.floats.as_ptr().add(from * LANES);
                let mut weights = [by.floats.as_ptr(); N];
                for n in 0..N {
                    weights[n] = weights[n].add(channels[n] * by.rank);
                }
                for i in 0..by.rank {
                    let mut tokens = [S::splat(0.0); V];
                    for v in 0..V {
                        tokens[v] = S::load(floats.add(i * TILE + v * LANES));
                    }
                    for n in 0..N {
                        let weight = S::splat(*weights[n].add(i));
                        for v in 0..V {
                            out[n][v] = S::fma(weight, tokens[v], out[n][v]);
                        }
                    }
                }
                return out;
            }
            let quads = quads(by.rank);
            let codes = self.codes.as_ptr().add(from * 64);
            let mut weights = [by.codes.as_ptr(); N];
            let mut sums = [[[S::splat_i32(0); V]; PARTS]; N];
            for n in 0..N {
                weights[n] = weights[n].add(channels[n] * PARTS * 4 * quads);
                for part in 0..PARTS {
                    let sum = *by.code_sums.as_ptr().add(channels[n] * PARTS + part);
                    sums[n][part] = [S::splat_i32(-self.zero * sum); V];
                }
            }
            for quad in 0..quads {
                let mut tokens = [S::load_u8(codes.add(quad * VECTORS * 64)); V];
                for v in 1..V {
                    tokens[v] = S::load_u8(codes.add((quad * VECTORS + v) * 64));
                }
                for n in 0..N {
                    for part in 0..PARTS {
                        let weight = weights[n].add(4 * (part * quads + quad));
                        for v in 0..V {
                            sums[n][part][v] = S::dot_u8(sums[n][part][v], tokens[v], weight);
                        }
                    }
                }
            }
            for n in 0..N {
                let sum = S::splat(*by.sums.as_ptr().add(channels[n]));
                for v in 0..V {
                    let at = (from + v) * LANES;
                    let mut product = S::to_f32(sums[n][0][v]);
                    if PARTS == 2 {
                        let low = S::to_f32(sums[n][1][v]);
                        product = S::fma(product, S::splat(256.0), low);
                    }
                    let middle = S::load(self.middles.as_ptr().add(at));
                    let shifted = S::fma(middle, sum, out[n][v]);
                    let scale = S::load(self.scales.as_ptr().add(at));
                    out[n][v] = S::fma(product, scale, shifted);
                }
            }
            out
        }
    }

    /// Keys or values `[head_dim, TILE]` of one head of a group, over the channels' scales; turned by cosines and sines
    /// `[head_dim / 2, TILE]` when they are given.
    #[inline(always)]
    pub unsafe fn rebuild<S: Simd, const PARTS: usize>(
        &self,
        by: &Expansion,
        head: usize,
        turn: Option<(&[f32], &[f32])>,
        to: &mut [f32],
    ) {
        let half = to.len() / TILE / 2;
        let mut pair = 0;
        // SAFETY: passed on to the caller.
        unsafe {
            while pair < half {
                // As many sums at a time as the registers hold.
                pair += match (S::MANY_REGISTERS, PARTS) {
                    (true, 0 | 1) if pair + 2 <= half => {
                        self.pairs::<S, PARTS, 4, VECTORS>(by, head, pair, turn, to)
                    }
                    (true, _) => self.pairs::<S, PARTS, 2, VECTORS>(by, head, pair, turn, to),
                    _ => self.pairs::<S, PARTS, 2, 1>(by, head, pair, turn, to),
                };
            }
        }
    }

    /// `N` channels: pairs that a rotation mixes. Returns how many pairs.
    #[inline(always)]
    unsafe fn pairs<S: Simd, const PARTS: usize, const N: usize, const V: usize>(
        &self,
        by: &Expansion,
        head: usize,
        pair: usize,
        turn: Option<(&[f32], &[f32])>,
        to: &mut [f32],
    ) -> usize {
        let half = to.len() / TILE / 2;
        let mut channels = [0; N];
        for n in 0..N {
            channels[n] = (2 * head + n % 2) * half + pair + n / 2;
        }
        // SAFETY: passed on to the caller; `to` and `turn` have the pairs' channels.
        unsafe {
            for vector in (0..VECTORS).step_by(V) {
                let x = self.products::<S, PARTS, N, V>(by, channels, vector);
                for n in (0..N).step_by(2) {
                    for v in 0..V {
                        let (mut a, mut b) = (x[n][v], x[n + 1][v]);
                        let at = (pair + n / 2) * TILE + (vector + v) * LANES;
                        if let Some((cos, sin)) = turn {
                            let cos = S::load(cos.as_ptr().add(at));
                            let sin = S::load(sin.as_ptr().add(at));
                            (a, b) = turned::<S>(a, b, cos, sin);
                        }
                        S::store(to.as_mut_ptr().add(at), a);
                        S::store(to.as_mut_ptr().add(at + half * TILE), b);
                    }
                }
            }
        }
        N / 2
    }
}

/// A pair of channels turned.
#[inline(always)]
unsafe fn turned<S: Simd>(a: S::F, b: S::F, cos: S::F, sin: S::F) -> (S::F, S::F) {
    // SAFETY: passed on to the caller.
    unsafe {
        (
            S::sub(S::mul(a, cos), S::mul(b, sin)),
            S::fma(b, cos, S::mul(a, sin)),
        )
    }
}

/// Divides each token's key by its root mean square and turns it to its position: `keys` `[head_dim, TILE]` are over
/// `scales`.
#[inline(always)]
pub(super) unsafe fn norm_and_turn<S: Simd>(
    keys: &mut [f32],
    scales: &[f32],
    gamma: &[f32],
    epsilon: f32,
    (cos, sin): (&[f32], &[f32]),
) {
    let (d, half) = (scales.len(), scales.len() / 2);
    for vector in (0..TILE).step_by(LANES) {
        // SAFETY: keys have d rows of TILE, cosines and sines half as many.
        unsafe {
            let keys = keys.as_mut_ptr().add(vector);
            let mut squares = S::splat(0.0);
            for c in 0..d {
                let key = S::mul(S::load(keys.add(c * TILE)), S::splat(scales[c]));
                squares = S::fma(key, key, squares);
            }
            let mut inverse = [0.0; LANES];
            S::store(inverse.as_mut_ptr(), squares);
            for sum in &mut inverse {
                *sum = 1.0 / (*sum / d as f32 + epsilon).sqrt();
            }
            let inverse = S::load(inverse.as_ptr());
            for pair in 0..half {
                let (a, b) = (keys.add(pair * TILE), keys.add((pair + half) * TILE));
                let factor = S::mul(inverse, S::splat(scales[pair] * gamma[pair]));
                let other = S::mul(inverse, S::splat(scales[pair + half] * gamma[pair + half]));
                let (x, y) = turned::<S>(
                    S::mul(S::load(a), factor),
                    S::mul(S::load(b), other),
                    S::load(cos.as_ptr().add(pair * TILE + vector)),
                    S::load(sin.as_ptr().add(pair * TILE + vector)),
                );
                S::store(a, x);
                S::store(b, y);
            }
        }
    }
}
