//! `Y = X Wᵀ` for block-quantised weights: the rows of X are rounded to 16 bits per block of 32, products are summed in
//! whole numbers within a block, and blocks in f32. The scale of W may be that of several blocks.
//!
//! The instructions multiply bytes, so X goes in two: a high and a low byte. With the high one alone, as llama.cpp has it,
//! products are twice as fast and the default model's perplexity is half a percent worse; decoding, which waits for the
//! weights, is as fast either way.
//!
//! A value of Y depends on its row of X and its row of W alone, never on the rows beside it.

use half::f16;

use super::blocks::{BLOCK, BlocksView, PANEL};
use super::parallel::{self, Parts};
use super::simd::{Kernel, LANES, Level, Simd};

/// Rows of X that share a walk over a panel.
const BLOCK_M: usize = 128;
/// How far ahead of their use codes are asked for, in bytes.
const AHEAD: usize = 2048;

/// The largest code: 127 high bytes, so that rounding the low byte up never overflows.
pub(super) const MOST: f32 = 127.0 * 256.0;

/// A block whose largest value is below this is taken for zeros: its scale would not be a normal number.
pub(super) const SMALLEST: f32 = 1e-30;

/// Rows rounded to 16 bits, block by block.
struct Rounded {
    /// `[rows, blocks, 2, 32]`: a value is 256 times its first byte plus its second.
    codes: Vec<i8>,
    /// `[rows, blocks]`.
    scales: Vec<f32>,
    /// `[rows, blocks]`: what the sum of products starts from, so that codes of W may count from zero.
    starts: Vec<i32>,
    /// `[rows, blocks]`: the sum of the values the codes stand for.
    sums: Vec<f32>,
}

/// `y = x wᵀ`: `x` is `[rows, w.input]`, `y` is `[rows, w.out]`.
///
/// # Panics
/// When a slice is not as long as the sizes say.
pub(crate) fn linear(rows: usize, x: &[f32], w: BlocksView<'_>, y: &mut [f32]) {
    // SAFETY: the best level is one the CPU has.
    unsafe { linear_at(Level::best(), rows, x, w, y) }
}

/// [`linear`] with the instructions of a level.
///
/// # Safety
/// The level is [`Level::available`].
unsafe fn linear_at(level: Level, rows: usize, x: &[f32], w: BlocksView<'_>, y: &mut [f32]) {
    let (panels, blocks) = (w.out.div_ceil(PANEL), w.input.div_ceil(BLOCK));
    let groups = w.input.div_ceil(w.format.group());
    assert_eq!(x.len(), rows * w.input, "rows of X");
    assert_eq!(y.len(), rows * w.out, "rows of Y");
    assert_eq!(
        w.codes.len(),
        panels * blocks * w.format.code_bytes(),
        "codes"
    );
    assert_eq!(w.scales.len(), panels * groups * PANEL, "scales");
    assert!(
        !w.format.has_minimum() || w.minimums.len() == w.scales.len(),
        "minimums"
    );
    if rows == 0 || panels == 0 {
        return;
    }
    // SAFETY: the level is the caller's.
    let rounded = unsafe { round(level, rows, x, w.input, w.format.zero()) };
    let row_blocks = rows.div_ceil(BLOCK_M);
    let share = panels_per_task(rows, panels, blocks * w.format.code_bytes());
    let y = Parts::new(y);
    parallel::for_each(row_blocks * panels.div_ceil(share), |task| {
        let (row, panel) = (task % row_blocks * BLOCK_M, task / row_blocks * share);
        let work = Panels {
            x: &rounded,
            w,
            y: y.pointer(),
            rows: (row, BLOCK_M.min(rows - row)),
            panels: (panel, share.min(panels - panel)),
        };
        // SAFETY: lengths are checked above, the ranges are inside them, and no two tasks share a value of y.
        unsafe {
            match (w.format.bits(), w.format.has_minimum()) {
                (8, false) => level.run(Codes::<8, false>(work)),
                (8, true) => level.run(Codes::<8, true>(work)),
                (4, false) => level.run(Codes::<4, false>(work)),
                (4, true) => level.run(Codes::<4, true>(work)),
                (3, _) => level.run(Codes::<3, true>(work)),
                _ => level.run(Codes::<2, true>(work)),
            }
        }
    });
}

/// Panels in one task: enough work to be worth handing out, and several tasks for each thread.
fn panels_per_task(rows: usize, panels: usize, bytes: usize) -> usize {
    // For few rows, reading W is the work: memory gives it fastest in long runs, so each thread gets two parts and no more.
    let (each, most) = if rows < 8 { (2, usize::MAX) } else { (4, 16) };
    let tasks = (each * parallel::threads()).div_ceil(rows.div_ceil(BLOCK_M));
    let least = (16384 / (bytes * rows.min(16)).max(1)).max(1);
    panels.div_ceil(tasks).clamp(least, most.max(least))
}

/// Rounds the rows of X.
///
/// # Safety
/// The level is [`Level::available`].
unsafe fn round(level: Level, rows: usize, x: &[f32], input: usize, zero: u8) -> Rounded {
    let blocks = input.div_ceil(BLOCK);
    let mut out = Rounded {
        codes: vec![0; rows * blocks * 2 * BLOCK],
        scales: vec![0.0; rows * blocks],
        starts: vec![0; rows * blocks],
        sums: vec![0.0; rows * blocks],
    };
    let codes = Parts::new(&mut out.codes);
    let (scales, starts, sums) = (
        Parts::new(&mut out.scales),
        Parts::new(&mut out.starts),
        Parts::new(&mut out.sums),
    );
    // A task has at least some thousand values.
    let share = (16384 / input.max(1)).clamp(1, rows);
    parallel::for_each(rows.div_ceil(share), |task| {
        let first = task * share;
        let count = share.min(rows - first);
        let work = Round {
            x: &x[first * input..(first + count) * input],
            input,
            zero: i32::from(zero),
            // SAFETY: the task's rows are inside the vectors.
            codes: unsafe { codes.pointer().add(first * blocks * 2 * BLOCK) },
            scales: unsafe { scales.pointer().add(first * blocks) },
            starts: unsafe { starts.pointer().add(first * blocks) },
            sums: unsafe { sums.pointer().add(first * blocks) },
        };
        // SAFETY: as above; no two tasks share a row.
        unsafe { level.run(work) };
    });
    out
}

/// Rounds some rows; the pointers are to those rows' places.
struct Round<'a> {
    x: &'a [f32],
    input: usize,
    zero: i32,
    codes: *mut i8,
    scales: *mut f32,
    starts: *mut i32,
    sums: *mut f32,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut at = 0;
        for row in self.x.chunks_exact(self.input.max(1)) {
            for block in row.chunks(BLOCK) {
                // SAFETY: the caller's places are as many as there are rows and blocks.
                unsafe {
                    let first = S::load_some(block.as_ptr(), block.len().min(LANES));
                    let second = match block.len().saturating_sub(LANES) {
                        0 => S::splat(0.0),
                        more => S::load_some(block.as_ptr().add(LANES), more),
                    };
                    let zeros = S::splat(0.0);
                    let size = S::max(
                        S::max(first, S::sub(zeros, first)),
                        S::max(second, S::sub(zeros, second)),
                    );
                    let largest = S::largest(size);
                    // What is not a number, or too large, stays so: only what is truly small is taken for zero.
                    let (scale, inverse) = match largest < SMALLEST {
                        true => (0.0, 0.0),
                        false => (largest / MOST, MOST / largest),
                    };
                    let inverse = S::splat(inverse);
                    let first = S::round(S::mul(first, inverse));
                    let second = S::round(S::mul(second, inverse));
                    let codes = self.codes.add(at * 2 * BLOCK);
                    for (half, value) in [(0, first), (LANES, second)] {
                        // A little more than the value, so that 128 goes up and the low byte stays a byte.
                        let more = S::add(value, S::splat(0.25));
                        let high = S::round(S::mul(more, S::splat(1.0 / 256.0)));
                        S::store_as_i8(codes.add(half), high);
                        S::store_as_i8(
                            codes.add(BLOCK + half),
                            S::fma(high, S::splat(-256.0), value),
                        );
                    }
                    // Sums of whole numbers this small are exact.
                    let sum = S::sum(S::add(first, second));
                    // Nothing that overflowed may look like a number further on; the sum is no number if a value is none.
                    let (scale, sum) = match sum.is_finite() {
                        true => (scale, sum),
                        false => (f32::NAN, 0.0),
                    };
                    *self.scales.add(at) = scale;
                    *self.starts.add(at) = -(self.zero * sum as i32);
                    *self.sums.add(at) = scale * sum;
                }
                at += 1;
            }
        }
    }
}

/// One task: some panels for some rows, each as (first, count).
struct Panels<'a> {
    x: &'a Rounded,
    w: BlocksView<'a>,
    y: *mut f32,
    rows: (usize, usize),
    panels: (usize, usize),
}

/// Codes of some bits, with a minimum or without.
struct Codes<'a, const BITS: usize, const MINIMUM: bool>(Panels<'a>);

impl<const BITS: usize, const MINIMUM: bool> Kernel for Codes<'_, BITS, MINIMUM> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on to the caller.
        unsafe { self.0.all::<S, BITS, MINIMUM>() }
    }
}

/// Adds the products of one quad of inputs: 64 codes with the four values of each of `M` rows, high and low bytes.
#[inline(always)]
unsafe fn quad<S: Simd, const M: usize>(
    (high, low): (&mut [S::I; M], &mut [S::I; M]),
    codes: S::U,
    x: &[*const i8; M],
    quad: usize,
) {
    for m in 0..M {
        // SAFETY: the caller's rows are as long as a block.
        unsafe {
            let x = x[m].add(quad * 4);
            high[m] = S::dot_u8(high[m], codes, x);
            low[m] = S::dot_u8(low[m], codes, x.add(BLOCK));
        }
    }
}

impl Panels<'_> {
    #[inline(always)]
    unsafe fn all<S: Simd, const BITS: usize, const MINIMUM: bool>(&self) {
        for panel in self.panels.0..self.panels.0 + self.panels.1 {
            let (mut row, end) = (self.rows.0, self.rows.0 + self.rows.1);
            while row < end {
                // SAFETY: passed on to the caller.
                row += unsafe {
                    match (S::MANY_REGISTERS, end - row) {
                        (true, 8..) => self.tile::<S, 8, BITS, MINIMUM>(panel, row),
                        (true, 4..) => self.tile::<S, 4, BITS, MINIMUM>(panel, row),
                        (_, 2..) => self.tile::<S, 2, BITS, MINIMUM>(panel, row),
                        _ => self.tile::<S, 1, BITS, MINIMUM>(panel, row),
                    }
                };
            }
        }
    }

    /// `M` rows against one panel. Returns `M`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const BITS: usize, const MINIMUM: bool>(
        &self,
        panel: usize,
        row: usize,
    ) -> usize {
        let blocks = self.w.input.div_ceil(BLOCK);
        let groups = self.w.input.div_ceil(self.w.format.group());
        // A group is 1, 2 or 4 blocks.
        let shift = (self.w.format.group() / BLOCK).trailing_zeros();
        let size = PANEL * BLOCK / 8 * BITS;
        // SAFETY: `linear` has checked the lengths; panel and rows are inside them. f16 is its bits.
        unsafe {
            let codes = self.w.codes.as_ptr().add(panel * blocks * size);
            let scales = self
                .w
                .scales
                .as_ptr()
                .cast::<u16>()
                .add(panel * groups * PANEL);
            let minimums = self
                .w
                .minimums
                .as_ptr()
                .cast::<u16>()
                .wrapping_add(panel * groups * PANEL);
            let mut acc = [S::splat(0.0); M];
            for block in 0..blocks {
                let codes = codes.add(block * size);
                let mut at = [0; M];
                let mut x = [self.x.codes.as_ptr(); M];
                let mut high = [S::splat_i32(0); M];
                let mut low = high;
                for m in 0..M {
                    at[m] = (row + m) * blocks + block;
                    x[m] = x[m].add(at[m] * 2 * BLOCK);
                    low[m] = S::splat_i32(*self.x.starts.as_ptr().add(at[m]));
                }
                for line in 0..size / 64 {
                    let codes = codes.add(line * 64);
                    if M == 1 {
                        S::prefetch(codes.wrapping_add(AHEAD));
                    }
                    if BITS == 8 {
                        quad::<S, M>((&mut high, &mut low), S::load_u8(codes), &x, line);
                    } else if BITS == 4 {
                        let (first, second) = S::load_nibbles(codes);
                        quad::<S, M>((&mut high, &mut low), first, &x, 2 * line);
                        quad::<S, M>((&mut high, &mut low), second, &x, 2 * line + 1);
                    } else if line < 2 {
                        let four = match (BITS, line) {
                            (2, _) => S::load_pairs(codes),
                            (_, 0) => S::load_threes::<0>(codes, codes.add(128)),
                            _ => S::load_threes::<4>(codes, codes.add(64)),
                        };
                        for i in 0..4 {
                            quad::<S, M>((&mut high, &mut low), four[i], &x, 4 * line + i);
                        }
                    }
                }
                let group = (block >> shift) * PANEL;
                let scale = S::load_f16(scales.add(group));
                for m in 0..M {
                    let scale = S::mul(scale, S::splat(*self.x.scales.as_ptr().add(at[m])));
                    acc[m] = S::fma(S::to_f32(S::join(high[m], low[m])), scale, acc[m]);
                }
                if MINIMUM {
                    let minimum = S::load_f16(minimums.add(group));
                    for m in 0..M {
                        acc[m] =
                            S::fma(minimum, S::splat(*self.x.sums.as_ptr().add(at[m])), acc[m]);
                    }
                }
            }
            let first = panel * PANEL;
            let count = PANEL.min(self.w.out - first);
            for m in 0..M {
                let y = self.y.add((row + m) * self.w.out + first);
                if count == PANEL {
                    S::store(y, acc[m]);
                } else {
                    let mut lanes = [0.0; LANES];
                    S::store(lanes.as_mut_ptr(), acc[m]);
                    std::ptr::copy_nonoverlapping(lanes.as_ptr(), y, count);
                }
            }
        }
        M
    }
}

const _: () = assert!(size_of::<f16>() == 2 && PANEL == LANES);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::Blocks;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn every_level_gives_the_same_bits(
            rows in 1usize..12, input in 1usize..300, out in 1usize..40, seed in any::<u64>(),
            format in prop::sample::select(crate::test_data::block_formats()),
        ) {
            let mut state = seed | 1;
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / 16_777_216.0 - 0.45
            };
            let weights: Vec<f32> = (0..out * input).map(|_| number()).collect();
            let x: Vec<f32> = (0..rows * input).map(|_| number()).collect();
            let blocks = Blocks::quantize(&weights, out, input, format);
            let run = |level| {
                let mut y = vec![0.0; rows * out];
                // SAFETY: the level is available.
                unsafe { linear_at(level, rows, &x, blocks.view(), &mut y) };
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let scalar = run(Level::Scalar);
            for level in Level::available() {
                prop_assert_eq!(run(level), scalar.clone(), "{:?}", level);
            }
        }
    }
}
