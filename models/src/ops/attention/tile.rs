//! One tile of keys: scores, softmax, weighted values.

use half::f16;

use super::{State, TILE, VECTORS};
use crate::ops::simd::{LANES, Simd};

/// What keys and values are stored as; products and sums are those of f32.
pub(crate) trait Element: Copy + Default + Send + Sync {
    /// 16 values.
    unsafe fn load<S: Simd>(from: *const Self) -> S::F;
    /// `count` ≤ 16 values, zeros behind them.
    unsafe fn load_some<S: Simd>(from: *const Self, count: usize) -> S::F;
}

// SAFETY of the blocks: pointers and CPU are the caller's to vouch for.
impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::F {
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(from: *const f32, count: usize) -> S::F {
        unsafe { S::load_some(from, count) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f16) -> S::F {
        unsafe { S::load_f16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(from: *const f16, count: usize) -> S::F {
        unsafe { S::load_some_f16(from.cast(), count) }
    }
}

/// Rows that will be read soon.
#[derive(Clone, Copy)]
pub(super) struct Ahead<E> {
    pub from: *const E,
    pub step: usize,
    pub on: bool,
}

impl<E: Element> Ahead<E> {
    /// Values in a cache line.
    const LINE: usize = 64 / size_of::<E>();

    /// Asks for row `i`, of `width` values.
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, i: usize, width: usize) {
        if self.on {
            for j in (0..width).step_by(Self::LINE) {
                // SAFETY: asking for memory that is not there does nothing.
                unsafe { S::prefetch(self.from.wrapping_add(i * self.step + j).cast()) };
            }
        }
    }
}

/// Keys `[count, d]` with the given step become `[d, TILE]`, zeros behind `count`.
#[inline(always)]
pub(super) unsafe fn turn_keys<S: Simd, E: Element>(
    keys: *const E,
    step: usize,
    d: usize,
    count: usize,
    to: &mut [f32],
) {
    for first in (0..TILE).step_by(LANES) {
        for column in (0..d).step_by(LANES) {
            let n = LANES.min(d - column);
            // SAFETY: key and column are inside what the caller vouches for; `to` has whole vectors for each column.
            unsafe {
                let at = keys.wrapping_add(first * step + column);
                let mut rows = [S::splat(0.0); LANES];
                if first + LANES <= count && n == LANES {
                    for j in 0..LANES {
                        rows[j] = E::load::<S>(at.add(j * step));
                    }
                } else {
                    for j in 0..LANES.min(count.saturating_sub(first)) {
                        rows[j] = E::load_some::<S>(at.add(j * step), n);
                    }
                }
                let turned = S::transpose(rows);
                for i in 0..LANES {
                    S::store(to.as_mut_ptr().add((column + i) * TILE + first), turned[i]);
                }
            }
        }
    }
}

/// Scores of `M` queries with a tile of keys. Returns `M`.
#[inline(always)]
pub(super) unsafe fn score_rows<S: Simd, E: Element, const M: usize>(
    q: *const f32,
    d: usize,
    keys: *const f32,
    scores: *mut f32,
    ahead: Ahead<E>,
) -> usize {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut acc = [[S::splat(0.0); VECTORS]; M];
        for i in 0..d {
            if i < TILE {
                ahead.fetch::<S>(i, d);
            }
            let mut key = [S::splat(0.0); VECTORS];
            for j in 0..VECTORS {
                key[j] = S::load(keys.add(i * TILE + j * LANES));
            }
            for m in 0..M {
                let q = S::splat(*q.add(m * d + i));
                for j in 0..VECTORS {
                    acc[m][j] = S::fma(q, key[j], acc[m][j]);
                }
            }
        }
        for m in 0..M {
            for j in 0..VECTORS {
                S::store(scores.add(m * TILE + j * LANES), acc[m][j]);
            }
        }
    }
    M
}

/// Turns a row's scores into weights relative to the largest score so far, and scales what was summed before.
#[inline(always)]
pub(super) unsafe fn soften<S: Simd>(
    scores: *mut f32,
    row: usize,
    state: &mut State,
    width: usize,
) {
    // SAFETY: the row has TILE scores; the state's row has `width` sums, a whole number of vectors.
    unsafe {
        let mut s = [S::splat(0.0); VECTORS];
        for j in 0..VECTORS {
            s[j] = S::load(scores.add(j * LANES));
        }
        let top = S::max(S::max(s[0], s[1]), S::max(s[2], s[3]));
        let before = state.largest[row];
        let largest = S::largest(top).max(before);
        if largest == f32::NEG_INFINITY {
            // No key of this tile, nor any before it, is seen; or what is seen is no number, which must not be lost.
            if S::sum(S::add(S::add(s[0], s[1]), S::add(s[2], s[3]))).is_nan() {
                state.weights[row] = f32::NAN;
                state.largest[row] = 0.0;
            }
            for j in 0..VECTORS {
                S::store(scores.add(j * LANES), S::splat(0.0));
            }
            return;
        }
        let mut p = s;
        for j in 0..VECTORS {
            p[j] = S::exp(S::sub(s[j], S::splat(largest)));
            S::store(scores.add(j * LANES), p[j]);
        }
        let sum = S::sum(S::add(S::add(p[0], p[1]), S::add(p[2], p[3])));
        let mut kept = 1.0;
        if largest > before {
            kept = S::sum(S::exp(S::splat(before - largest))) / LANES as f32;
            for j in (0..width).step_by(LANES) {
                let at = state.sums.as_mut_ptr().add(row * width + j);
                S::store(at, S::mul(S::load(at), S::splat(kept)));
            }
            state.largest[row] = largest;
        }
        state.weights[row] = state.weights[row] * kept + sum;
    }
}

/// Adds `count` weighted values to the sums of `M` rows. Returns `M`.
#[inline(always)]
pub(super) unsafe fn mix_rows<S: Simd, E: Element, const M: usize>(
    weights: *const f32,
    values: *const E,
    step: usize,
    count: usize,
    sums: *mut f32,
    width: usize,
    ahead: Ahead<E>,
) -> usize {
    let mut column = 0;
    while column < width {
        // SAFETY: passed on to the caller.
        column += LANES
            * unsafe {
                let (values, sums) = (values.add(column), sums.add(column));
                match (width - column) / LANES {
                    4.. => mix::<S, E, M, 4>(weights, values, step, count, sums, width, ahead),
                    _ => mix::<S, E, M, 1>(weights, values, step, count, sums, width, ahead),
                }
            };
    }
    M
}

/// [`mix_rows`] for `N` vectors of the values. Returns `N`.
#[inline(always)]
unsafe fn mix<S: Simd, E: Element, const M: usize, const N: usize>(
    weights: *const f32,
    values: *const E,
    step: usize,
    count: usize,
    sums: *mut f32,
    width: usize,
    ahead: Ahead<E>,
) -> usize {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut acc = [[S::splat(0.0); N]; M];
        for m in 0..M {
            for n in 0..N {
                acc[m][n] = S::load(sums.add(m * width + n * LANES));
            }
        }
        for key in 0..count {
            ahead.fetch::<S>(key, width);
            let mut value = [S::splat(0.0); N];
            for n in 0..N {
                value[n] = E::load::<S>(values.add(key * step + n * LANES));
            }
            for m in 0..M {
                let weight = S::splat(*weights.add(m * TILE + key));
                for n in 0..N {
                    acc[m][n] = S::fma(weight, value[n], acc[m][n]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                S::store(sums.add(m * width + n * LANES), acc[m][n]);
            }
        }
    }
    N
}
