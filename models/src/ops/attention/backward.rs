//! What causal attention passes back to its queries, keys and values.
//!
//! For 64 queries of one head at a time, the scores with all keys they see are made again, and with them the gradients
//! of the weights; both are kept until the rows' sums are known, then each tile goes to the queries and to the keys
//! (Dao et al. 2022, arXiv 2205.14135, §B.2). Sums over queries are made per query head, in two strips of the queries,
//! and added in that order: what comes out does not depend on the number of threads.

use super::tile::{Ahead, mix_rows, score_rows, turn_keys};
use super::{Sizes, Strided, TILE, padded};
use crate::ops::parallel::{self, Parts};
use crate::ops::simd::{self, Kernel, LANES, Simd};

/// Tasks that share the queries of a head, so that few heads keep several threads busy.
const STRIPS: usize = 2;
/// Scores in a tile of queries and keys.
const SCORES: usize = TILE * TILE;

/// Where the gradients go.
pub(crate) struct Gradients<'a> {
    /// `[batch, tokens, heads, head_dim]`.
    pub q: &'a mut [f32],
    /// `[batch, tokens, kv_heads, head_dim]`.
    pub k: &'a mut [f32],
    /// As `k`.
    pub v: &'a mut [f32],
}

/// The gradients of [`super::attention`] without a mask or a past, from `gradient`, that of its output.
///
/// # Panics
/// When sizes and slices do not fit each other, or there are other keys than the new tokens' own.
pub(crate) fn attention_backward(
    sizes: Sizes,
    q: &[f32],
    k: Strided<'_>,
    v: Strided<'_>,
    gradient: &[f32],
    to: Gradients<'_>,
) {
    let Sizes {
        batch,
        tokens,
        heads,
        kv_heads,
        head_dim,
        keys,
    } = sizes;
    if q.is_empty() {
        return;
    }
    assert_eq!(q.len(), batch * tokens * heads * head_dim, "queries");
    assert_eq!(gradient.len(), q.len(), "the gradient");
    assert_eq!(to.q.len(), q.len(), "the gradient of queries");
    let of_keys = batch * tokens * kv_heads * head_dim;
    assert!(
        to.k.len() == of_keys && to.v.len() == of_keys,
        "the gradients of keys and values"
    );
    assert!(
        kv_heads > 0 && heads % kv_heads == 0 && keys == tokens,
        "{sizes:?}"
    );
    k.check(sizes);
    v.check(sizes);
    let group = heads / kv_heads;
    let size = tokens * padded(head_dim);
    // Keys' gradients, then values', of each strip of each head of one sequence.
    let mut partial = vec![0.0; heads * STRIPS * 2 * size];
    let (to_q, to_k, to_v) = (Parts::new(to.q), Parts::new(to.k), Parts::new(to.v));
    for sequence in 0..batch {
        let places = Parts::new(&mut partial);
        parallel::for_each(heads * STRIPS, |task| {
            let work = Work {
                sizes,
                q,
                k,
                v,
                gradient,
                batch: sequence,
                head: task / STRIPS,
                strip: task % STRIPS,
                to_q: to_q.pointer(),
                partial: places.pointer().wrapping_add(task * 2 * size),
            };
            // SAFETY: lengths are checked above; a task has its own place in `partial` and its own rows of `to_q`.
            unsafe { simd::run(work) };
        });
        let partial = &partial;
        parallel::for_each(tokens.div_ceil(TILE), |tile| {
            let sum = Sum {
                sizes,
                parts: partial,
                group: group * STRIPS,
                tokens: tile * TILE..((tile + 1) * TILE).min(tokens),
                first: sequence * tokens,
                to: [to_k.pointer(), to_v.pointer()],
            };
            // SAFETY: as above; a task has its own tokens.
            unsafe { simd::run(sum) };
        });
    }
}

/// Every second tile of the queries of one head.
struct Work<'a> {
    sizes: Sizes,
    q: &'a [f32],
    k: Strided<'a>,
    v: Strided<'a>,
    gradient: &'a [f32],
    batch: usize,
    head: usize,
    strip: usize,
    to_q: *mut f32,
    /// `[2, tokens, padded]`.
    partial: *mut f32,
}

/// Memory that tiles of queries use one after another.
struct Scratch {
    /// Queries, scaled: `[TILE, padded]`.
    q: Vec<f32>,
    /// The gradients of their outputs: `[TILE, padded]`.
    gradient: Vec<f32>,
    /// The queries' own gradients: `[TILE, padded]`.
    to_q: Vec<f32>,
    /// A tile of keys: `[TILE, padded]`.
    keys: Vec<f32>,
    /// A tile of keys or values by column: `[padded, TILE]`.
    turned: Vec<f32>,
    /// A tile of weights, or of their gradients, by key: `[TILE, TILE]`.
    by_key: Vec<f32>,
    /// Scores, then weights: `[tiles, TILE, TILE]`.
    weights: Vec<f32>,
    /// Gradients of weights, then of scores: `[tiles, TILE, TILE]`.
    scores: Vec<f32>,
}

const NOT_AHEAD: Ahead<f32> = Ahead {
    from: std::ptr::null(),
    step: 0,
    on: false,
};

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = padded(self.sizes.head_dim);
        let tiles = self.sizes.tokens.div_ceil(TILE);
        let rows = || vec![0.0; TILE * width];
        let mut scratch = Scratch {
            q: rows(),
            gradient: rows(),
            to_q: rows(),
            keys: rows(),
            turned: rows(),
            by_key: vec![0.0; SCORES],
            weights: vec![0.0; tiles * SCORES],
            scores: vec![0.0; tiles * SCORES],
        };
        // SAFETY: `attention_backward` has checked that all slices are as long as the sizes say.
        unsafe {
            self.partial.write_bytes(0, 2 * self.sizes.tokens * width);
            for block in (self.strip..tiles).step_by(STRIPS) {
                self.block::<S>(block, &mut scratch);
            }
        }
    }
}

impl Work<'_> {
    /// Where the query of a token starts, and its output.
    fn row_at(&self, token: usize) -> usize {
        let Sizes {
            tokens,
            heads,
            head_dim,
            ..
        } = self.sizes;
        ((self.batch * tokens + token) * heads + self.head) * head_dim
    }

    /// Keys or values from a tile on, and how far they are apart.
    fn tile_of(&self, of: &Strided<'_>, tile: usize) -> (*const f32, usize) {
        let group = self.sizes.heads / self.sizes.kv_heads;
        let at = self.batch * of.batch + self.head / group * of.head + tile * TILE * of.key;
        (of.values.as_ptr().wrapping_add(at), of.key)
    }

    /// Tokens in a tile.
    fn count(&self, tile: usize) -> usize {
        TILE.min(self.sizes.tokens - tile * TILE)
    }

    /// One tile of queries.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, block: usize, scratch: &mut Scratch) {
        let (d, width) = (self.sizes.head_dim, padded(self.sizes.head_dim));
        let (first, rows) = (block * TILE, self.count(block));
        let scale = 1.0 / (d as f32).sqrt();
        for row in 0..rows {
            let at = self.row_at(first + row);
            let q = scratch.q[row * width..][..d].iter_mut();
            q.zip(&self.q[at..at + d])
                .for_each(|(to, q)| *to = q * scale);
            scratch.gradient[row * width..][..d].copy_from_slice(&self.gradient[at..at + d]);
        }
        // SAFETY: tiles 0..=block hold tokens there are; scratch is as large as its fields say.
        unsafe {
            for tile in 0..=block {
                let count = self.count(tile);
                let weights = scratch.weights.as_mut_ptr().add(tile * SCORES);
                let (keys, step) = self.tile_of(&self.k, tile);
                turn_keys::<S, _>(keys, step, d, count, &mut scratch.turned);
                multiply::<S>(&scratch.q, width, rows, &scratch.turned, weights);
                let scores = scratch.scores.as_mut_ptr().add(tile * SCORES);
                let (values, step) = self.tile_of(&self.v, tile);
                turn_keys::<S, _>(values, step, d, count, &mut scratch.turned);
                multiply::<S>(&scratch.gradient, width, rows, &scratch.turned, scores);
            }
            for row in 0..rows {
                // On the last tile, the diagonal's, a query sees the keys up to its own.
                scratch.weights[block * SCORES + row * TILE..][row + 1..TILE]
                    .fill(f32::NEG_INFINITY);
                let weights = scratch.weights.as_mut_ptr().add(row * TILE);
                let scores = scratch.scores.as_mut_ptr().add(row * TILE);
                soften_backward::<S>(weights, scores, block + 1);
            }
            scratch.to_q.fill(0.0);
            for tile in 0..=block {
                let count = self.count(tile);
                let (mut keys, mut step) = self.tile_of(&self.k, tile);
                if d != width {
                    for j in 0..count {
                        let to = scratch.keys.as_mut_ptr().add(j * width);
                        std::ptr::copy_nonoverlapping(keys.add(j * step), to, d);
                    }
                    (keys, step) = (scratch.keys.as_ptr(), width);
                }
                let scores = scratch.scores.as_ptr().add(tile * SCORES);
                let to_q = scratch.to_q.as_mut_ptr();
                add_mixed::<S>(scores, rows, keys, step, count, to_q, width);
                let to_k = self.partial.add(tile * TILE * width);
                let to_v = to_k.add(self.sizes.tokens * width);
                turn_keys::<S, _>(scores, TILE, TILE, TILE, &mut scratch.by_key);
                let by_key = scratch.by_key.as_ptr();
                add_mixed::<S>(by_key, count, scratch.q.as_ptr(), width, rows, to_k, width);
                let weights = scratch.weights.as_ptr().add(tile * SCORES);
                turn_keys::<S, _>(weights, TILE, TILE, TILE, &mut scratch.by_key);
                let gradient = scratch.gradient.as_ptr();
                let by_key = scratch.by_key.as_ptr();
                add_mixed::<S>(by_key, count, gradient, width, rows, to_v, width);
            }
            for row in 0..rows {
                let to = self.to_q.add(self.row_at(first + row));
                for (j, value) in scratch.to_q[row * width..][..d].iter().enumerate() {
                    *to.add(j) = value * scale;
                }
            }
        }
    }
}

/// `to` `[rows, TILE]` = `x` `[rows, width]` by `turned` `[width, TILE]`.
#[inline(always)]
unsafe fn multiply<S: Simd>(x: &[f32], width: usize, rows: usize, turned: &[f32], to: *mut f32) {
    let mut row = 0;
    while row < rows {
        // SAFETY: passed on to the caller.
        row += unsafe {
            let (x, to) = (x.as_ptr().add(row * width), to.add(row * TILE));
            let turned = turned.as_ptr();
            match (S::MANY_REGISTERS, rows - row) {
                (true, 6..) => score_rows::<S, _, 6>(x, width, turned, to, NOT_AHEAD),
                (true, 4..) => score_rows::<S, _, 4>(x, width, turned, to, NOT_AHEAD),
                _ => score_rows::<S, _, 1>(x, width, turned, to, NOT_AHEAD),
            }
        };
    }
}

/// `to` `[rows, width]` += `weights` `[rows, TILE]` by `values` `[count, width]`, which are `step` apart.
#[inline(always)]
unsafe fn add_mixed<S: Simd>(
    weights: *const f32,
    rows: usize,
    values: *const f32,
    step: usize,
    count: usize,
    to: *mut f32,
    width: usize,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: passed on to the caller.
        row += unsafe {
            let (weights, to) = (weights.add(row * TILE), to.add(row * width));
            match (S::MANY_REGISTERS, rows - row) {
                (true, 6..) => {
                    mix_rows::<S, _, 6>(weights, values, step, count, to, width, NOT_AHEAD)
                }
                (true, 4..) => {
                    mix_rows::<S, _, 4>(weights, values, step, count, to, width, NOT_AHEAD)
                }
                _ => mix_rows::<S, _, 1>(weights, values, step, count, to, width, NOT_AHEAD),
            }
        };
    }
}

/// One row over `tiles` tiles: scores become softmax weights, and the gradients of weights become those of scores,
/// `weight (gradient - Σ weight gradient)`.
#[inline(always)]
unsafe fn soften_backward<S: Simd>(weights: *mut f32, scores: *mut f32, tiles: usize) {
    // SAFETY: the caller's row has TILE values in each tile.
    unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        for tile in 0..tiles {
            for j in (0..TILE).step_by(LANES) {
                top = S::max(S::load(weights.add(tile * SCORES + j)), top);
            }
        }
        let top = S::splat(S::largest(top));
        let (mut sum, mut along) = (S::splat(0.0), S::splat(0.0));
        for tile in 0..tiles {
            for j in (0..TILE).step_by(LANES) {
                let at = tile * SCORES + j;
                let weight = S::exp(S::sub(S::load(weights.add(at)), top));
                S::store(weights.add(at), weight);
                sum = S::add(sum, weight);
                along = S::fma(weight, S::load(scores.add(at)), along);
            }
        }
        let inverse = 1.0 / S::sum(sum);
        let (along, inverse) = (S::splat(S::sum(along) * inverse), S::splat(inverse));
        for tile in 0..tiles {
            for j in (0..TILE).step_by(LANES) {
                let at = tile * SCORES + j;
                let weight = S::mul(S::load(weights.add(at)), inverse);
                S::store(weights.add(at), weight);
                let score = S::sub(S::load(scores.add(at)), along);
                S::store(scores.add(at), S::mul(weight, score));
            }
        }
    }
}

/// Adds up what the strips and the query heads of a key head have for some tokens of one sequence.
struct Sum<'a> {
    sizes: Sizes,
    /// `[heads × strips, 2, tokens, padded]`.
    parts: &'a [f32],
    /// Parts of one key head.
    group: usize,
    tokens: std::ops::Range<usize>,
    /// The sequence's first token.
    first: usize,
    /// Keys' and values' gradients.
    to: [*mut f32; 2],
}

impl Kernel for Sum<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (d, width) = (self.sizes.head_dim, padded(self.sizes.head_dim));
        let size = self.sizes.tokens * width;
        for token in self.tokens {
            for head in 0..self.sizes.kv_heads {
                for (which, to) in self.to.into_iter().enumerate() {
                    let row = (self.first + token) * self.sizes.kv_heads + head;
                    for column in (0..width).step_by(LANES) {
                        // SAFETY: parts are as long as `attention_backward` made them, the row has `d` places.
                        unsafe {
                            let mut sum = S::splat(0.0);
                            for part in head * self.group..(head + 1) * self.group {
                                let at = (part * 2 + which) * size + token * width + column;
                                sum = S::add(sum, S::load(self.parts.as_ptr().add(at)));
                            }
                            let mut lanes = [0.0; LANES];
                            S::store(lanes.as_mut_ptr(), sum);
                            let n = LANES.min(d - column);
                            let to = to.add(row * d + column);
                            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
                        }
                    }
                }
            }
        }
    }
}
