//! Causal grouped-query attention over cached keys and values, with an online softmax.
//!
//! Scores are made for a tile of 64 keys at a time and never kept (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et
//! al. 2022, arXiv 2205.14135, §3.1). Runs of 256 keys are summed by themselves and merged in order, so that a single
//! query over a long context can be shared among threads. Tiles and runs begin at fixed keys: what a query gets does not
//! depend on the queries beside it or on how many there are. With a mask, the keys that a query sees are brought together
//! before they are summed: it gets the very bits it would get if the keys between them were not there.

pub(crate) mod backward;
pub(crate) mod latent;
mod runs;
mod tile;
mod tree;

use super::parallel::{self, Parts};
use super::simd::{self, Kernel, LANES, Simd};
use runs::{RUN, State, merge, merged};
use tile::{Ahead, mix_rows, score_rows, soften, turn_keys};
use tree::Tree;

pub(crate) use tile::Element;

/// Keys in a tile.
const TILE: usize = 64;
/// Vectors in a tile.
const VECTORS: usize = TILE / LANES;
/// Rows that are bound by reading keys rather than by products.
const FEW: usize = 16;
/// Rows (queries of one key head) that share a walk over the keys.
const ROWS: usize = 64;

/// The sizes of one attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub batch: usize,
    /// New tokens: queries of each head.
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Keys there are, the new tokens' own included.
    pub keys: usize,
}

/// Keys or values: `[batch, kv_heads, keys, head_dim]` with steps, in elements, between batches, heads and keys.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a, E = f32> {
    pub values: &'a [E],
    pub batch: usize,
    pub head: usize,
    pub key: usize,
}

impl<E> Strided<'_, E> {
    fn check(&self, sizes: Sizes) {
        let last = (sizes.batch - 1) * self.batch
            + (sizes.kv_heads - 1) * self.head
            + (sizes.keys - 1) * self.key
            + sizes.head_dim;
        assert!(
            last <= self.values.len(),
            "keys or values end at {last} of {}",
            self.values.len()
        );
    }
}

/// Attention of `q` `[batch, tokens, heads, head_dim]`, scaled by `1/√head_dim`, into `out` of the same shape.
///
/// The query of new token i sees every key before the new tokens and, of these, the keys up to i. Or, with a `mask`
/// `[tokens, span]`, `span` ≥ `tokens`: every key before the last `span`, and of these those marked with other than 0.
///
/// # Panics
/// When sizes and slices do not fit each other.
pub(crate) fn attention<E: Element>(
    sizes: Sizes,
    q: &[f32],
    k: Strided<'_, E>,
    v: Strided<'_, E>,
    mask: Option<&[u8]>,
    out: &mut [f32],
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
    assert_eq!(out.len(), q.len(), "output");
    assert!(
        kv_heads > 0 && heads % kv_heads == 0 && keys >= tokens,
        "{sizes:?}"
    );
    let tree = mask.map(|mask| Tree::new(sizes, mask));
    let tree = tree.as_ref();
    k.check(sizes);
    v.check(sizes);
    let group = heads / kv_heads;
    let positions = (ROWS / group).clamp(1, tokens);
    let blocks = tokens.div_ceil(positions);
    let runs = keys.div_ceil(RUN);
    let units = batch * kv_heads * blocks;
    let out = Parts::new(out);
    let work = |unit: usize, runs: std::ops::Range<usize>, partial: *mut f32| {
        let (head, block) = (unit / blocks, unit % blocks);
        let first = block * positions;
        Work {
            sizes,
            q,
            k,
            v,
            tree,
            out: out.pointer(),
            batch: head / kv_heads,
            kv_head: head % kv_heads,
            first,
            positions: positions.min(tokens - first),
            runs,
            partial,
        }
    };
    if units >= 2 * parallel::threads() || runs == 1 {
        // Later queries see more keys: start with them, so that the last task is a short one.
        parallel::for_each(units, |unit| {
            let unit =
                (unit % (batch * kv_heads)) * blocks + (blocks - 1 - unit / (batch * kv_heads));
            // SAFETY: lengths are checked above; no two units share a row of `out`.
            unsafe { simd::run(work(unit, 0..runs, std::ptr::null_mut())) };
        });
        return;
    }
    // Too few queries to keep every thread busy: share out the runs of keys as well, then merge them.
    let size = positions * group * (padded(head_dim) + 2);
    let mut partial = vec![0.0; units * runs * size];
    let places = Parts::new(&mut partial);
    parallel::for_each(units * runs, |task| {
        let (unit, run) = (task / runs, task % runs);
        // SAFETY: as above; each task has a place of its own.
        unsafe { simd::run(work(unit, run..run + 1, places.pointer().add(task * size))) };
    });
    for unit in 0..units {
        // SAFETY: as above.
        unsafe {
            simd::run(Merge {
                work: work(unit, 0..runs, places.pointer().add(unit * runs * size)),
                size,
            });
        }
    }
}

/// The head width filled up to whole vectors.
fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// The queries of some positions and of all heads that share one key head, over some runs of keys.
struct Work<'a, E> {
    sizes: Sizes,
    q: &'a [f32],
    k: Strided<'a, E>,
    v: Strided<'a, E>,
    tree: Option<&'a Tree>,
    out: *mut f32,
    batch: usize,
    kv_head: usize,
    first: usize,
    positions: usize,
    runs: std::ops::Range<usize>,
    /// Where one run's state goes, or null when `out` gets the result.
    partial: *mut f32,
}

impl<E: Element> Work<'_, E> {
    fn group(&self) -> usize {
        self.sizes.heads / self.sizes.kv_heads
    }

    /// Rows: positions turn slowest.
    fn rows(&self) -> usize {
        self.positions * self.group()
    }

    /// Where a row's query and output start.
    fn row_at(&self, row: usize) -> usize {
        let Sizes {
            tokens,
            heads,
            head_dim,
            ..
        } = self.sizes;
        let (position, head) = (self.first + row / self.group(), row % self.group());
        ((self.batch * tokens + position) * heads + self.kv_head * self.group() + head) * head_dim
    }

    /// How many keys the positions of this work can see.
    fn reach(&self) -> usize {
        let past = self.sizes.keys - self.sizes.tokens;
        let positions = self.first..self.first + self.positions;
        match self.tree {
            Some(tree) => positions.map(|query| tree.reach(query)).max().unwrap_or(0),
            None => past + positions.end,
        }
    }

    /// Whether a row sees a key of a tile that all rows share.
    fn sees(&self, row: usize, key: usize) -> bool {
        let past = self.sizes.keys - self.sizes.tokens;
        self.tree.is_some() || key <= past + self.first + row / self.group()
    }

    /// The first key, of the tiles that all rows share, that some row here may not see.
    fn hidden_from(&self) -> usize {
        let past = self.sizes.keys - self.sizes.tokens;
        match self.tree {
            Some(tree) => tree.shared(),
            None => past + self.first + 1,
        }
    }
}

impl<E: Element> Kernel for Work<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let d = self.sizes.head_dim;
        let (rows, width, reach) = (self.rows(), padded(d), self.reach());
        // SAFETY: `attention` has checked that queries, keys, values and output are as long as the sizes say.
        unsafe {
            let scale = 1.0 / (d as f32).sqrt();
            let mut q = vec![0.0; rows * d];
            for row in 0..rows {
                let at = self.row_at(row);
                for (to, from) in q[row * d..][..d].iter_mut().zip(&self.q[at..at + d]) {
                    *to = from * scale;
                }
            }
            let mut scratch = Scratch {
                keys: vec![0.0; d.next_multiple_of(LANES) * TILE],
                values: if d == width {
                    Vec::new()
                } else {
                    vec![E::default(); width * TILE]
                },
                scores: vec![0.0; rows * TILE],
                together: match self.tree {
                    Some(_) => vec![E::default(); 2 * TILE * d],
                    None => Vec::new(),
                },
            };
            let shared = self.tree.map_or(usize::MAX, Tree::shared);
            let mut total = State::new(rows, width);
            for run in self.runs.clone() {
                let (start, end) = (run * RUN, ((run + 1) * RUN).min(reach));
                if start >= end {
                    break;
                }
                let mut state = State::new(rows, width);
                for tile in (start..end).step_by(TILE) {
                    let count = TILE.min(end - tile);
                    match tile < shared {
                        true => self.tile::<S>(&q, tile, count, &mut state, &mut scratch),
                        false => self.own_tiles::<S>(&q, tile, &mut state, &mut scratch),
                    }
                }
                match run == self.runs.start {
                    true => total = state,
                    false => merge::<S>(&mut total, &state, width),
                }
            }
            match self.partial.is_null() {
                true => self.finish::<S>(&total),
                false => total.leave(self.partial),
            }
        }
    }
}

/// Memory that tiles use one after another.
struct Scratch<E> {
    /// `[head_dim, TILE]`.
    keys: Vec<f32>,
    /// `[TILE, padded]`, where the head width is not a whole number of vectors.
    values: Vec<E>,
    /// `[rows, TILE]`.
    scores: Vec<f32>,
    /// Keys and values, `[2, TILE, head_dim]`, that one query of a tree sees.
    together: Vec<E>,
}

/// A tile of keys and its values where they lie, and how far on the next key or value is.
#[derive(Clone, Copy)]
struct Place<E> {
    keys: *const E,
    values: *const E,
    key_step: usize,
    value_step: usize,
}

impl<E: Element> Work<'_, E> {
    /// Where a head's key or value is.
    #[inline(always)]
    fn at(&self, of: &Strided<'_, E>, key: usize) -> *const E {
        let at = self.batch * of.batch + self.kv_head * of.head + key * of.key;
        of.values[at..].as_ptr()
    }

    /// Adds `count` keys from `tile`, which are the same for all rows, to the state.
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        q: &[f32],
        tile: usize,
        count: usize,
        state: &mut State,
        scratch: &mut Scratch<E>,
    ) {
        let place = Place {
            keys: self.at(&self.k, tile),
            values: self.at(&self.v, tile),
            key_step: self.k.key,
            value_step: self.v.key,
        };
        // SAFETY: passed on to the caller.
        unsafe { self.rows_of_tile::<S>(q, 0..self.rows(), place, tile, count, state, scratch) };
    }

    /// Adds the keys from `tile` on that each query of a tree sees, brought together, to the state.
    #[inline(always)]
    unsafe fn own_tiles<S: Simd>(
        &self,
        q: &[f32],
        tile: usize,
        state: &mut State,
        scratch: &mut Scratch<E>,
    ) {
        let Some(tree) = self.tree else { return };
        let (d, group) = (self.sizes.head_dim, self.group());
        for position in 0..self.positions {
            let query = self.first + position;
            let count = TILE.min(tree.reach(query).saturating_sub(tile));
            if count == 0 {
                continue;
            }
            let mut together = std::mem::take(&mut scratch.together);
            for j in 0..count {
                let key = tree.key(query, tile + j);
                // SAFETY: the key is one of those there are, each of `d` numbers; there is room for TILE of them, twice.
                unsafe {
                    let to = together.as_mut_ptr().add(j * d);
                    std::ptr::copy_nonoverlapping(self.at(&self.k, key), to, d);
                    let to = to.add(TILE * d);
                    std::ptr::copy_nonoverlapping(self.at(&self.v, key), to, d);
                }
            }
            let place = Place {
                keys: together.as_ptr(),
                values: together[TILE * d..].as_ptr(),
                key_step: d,
                value_step: d,
            };
            let rows = position * group..(position + 1) * group;
            // SAFETY: passed on to the caller.
            unsafe { self.rows_of_tile::<S>(q, rows, place, tile, count, state, scratch) };
            scratch.together = together;
        }
    }

    /// Adds `count` keys from `tile`, which lie at `place`, to the state of some rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the parts of one loop")]
    unsafe fn rows_of_tile<S: Simd>(
        &self,
        q: &[f32],
        of: std::ops::Range<usize>,
        place: Place<E>,
        tile: usize,
        count: usize,
        state: &mut State,
        scratch: &mut Scratch<E>,
    ) {
        let d = self.sizes.head_dim;
        let (rows, width) = (of.end, padded(d));
        // SAFETY: passed on to the caller.
        unsafe {
            // Few rows do little with each key: what comes next has to be on its way meanwhile.
            let ahead = |from: *const E, step: usize| Ahead {
                from,
                step,
                on: of.len() <= FEW,
            };
            let Place {
                keys,
                mut values,
                key_step,
                value_step: mut step,
            } = place;
            let (next_values, next_keys) = (
                ahead(values.wrapping_add(TILE * step), step),
                ahead(keys.wrapping_add(TILE * key_step), key_step),
            );
            turn_keys::<S, _>(keys, key_step, d, count, &mut scratch.keys);
            let scores = scratch.scores.as_mut_ptr();
            let mut row = of.start;
            while row < rows {
                let q = q.as_ptr().add(row * d);
                let to = scores.add(row * TILE);
                row += match (S::MANY_REGISTERS, rows - row) {
                    (true, 6..) => {
                        score_rows::<S, _, 6>(q, d, scratch.keys.as_ptr(), to, next_values)
                    }
                    (true, 3..) => {
                        score_rows::<S, _, 3>(q, d, scratch.keys.as_ptr(), to, next_values)
                    }
                    _ => score_rows::<S, _, 1>(q, d, scratch.keys.as_ptr(), to, next_values),
                };
            }
            let all_seen = count == TILE && tile + TILE <= self.hidden_from();
            for row in of.clone() {
                let scores = scores.add(row * TILE);
                if !all_seen {
                    for j in 0..TILE {
                        if j >= count || !self.sees(row, tile + j) {
                            *scores.add(j) = f32::NEG_INFINITY;
                        }
                    }
                }
                soften::<S>(scores, row, state, width);
            }
            if d != width {
                for j in 0..count {
                    let to = scratch.values.as_mut_ptr().add(j * width);
                    std::ptr::copy_nonoverlapping(values.add(j * step), to, d);
                }
                (values, step) = (scratch.values.as_ptr(), width);
            }
            let mut row = of.start;
            while row < rows {
                let scores = scores.add(row * TILE);
                let sums = state.sums.as_mut_ptr().add(row * width);
                row += match (S::MANY_REGISTERS, rows - row) {
                    (true, 6..) => {
                        mix_rows::<S, _, 6>(scores, values, step, count, sums, width, next_keys)
                    }
                    (true, 3..) => {
                        mix_rows::<S, _, 3>(scores, values, step, count, sums, width, next_keys)
                    }
                    _ => mix_rows::<S, _, 1>(scores, values, step, count, sums, width, next_keys),
                };
            }
        }
    }

    /// Divides by the sums of weights and writes the result.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, state: &State) {
        let d = self.sizes.head_dim;
        for row in 0..self.rows() {
            let inverse = 1.0 / state.weights[row];
            // SAFETY: the row's output has d places, which no other work writes.
            unsafe {
                let to = self.out.add(self.row_at(row));
                for (j, sum) in state.sums[row * padded(d)..][..d].iter().enumerate() {
                    *to.add(j) = sum * inverse;
                }
            }
        }
    }
}

/// Merges the runs that [`Work`] left in `work.partial`, `size` apart.
struct Merge<'a, E> {
    work: Work<'a, E>,
    size: usize,
}

impl<E: Element> Kernel for Merge<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (rows, width) = (self.work.rows(), padded(self.work.sizes.head_dim));
        let runs = self.work.reach().div_ceil(RUN);
        // SAFETY: each run's place has the sums, weights and largest scores of the rows.
        unsafe {
            let total = merged::<S>(self.work.partial, self.size, runs, rows, width);
            self.work.finish::<S>(&total);
        }
    }
}

#[cfg(test)]
mod tests;
