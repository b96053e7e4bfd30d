//! Attention over latents: keys and values are rebuilt where they are read, and never kept.
//!
//! The walk is that of [`attention`](super::attention): tiles of 64 keys, runs of 256 that are summed by themselves and
//! merged in order. The rows of all heads walk together, so that a tile of latents is unpacked once for all that read it;
//! keys are rebuilt from it (codes multiply whole numbers, scale and minimum follow), normed and turned to their positions.
//! Values are either rebuilt likewise, or latents are summed in their place and expanded once for each query and head (Palu,
//! Chang et al. 2024, arXiv 2407.21118, §3.2; by linearity the same).

mod expansion;
#[cfg(test)]
mod tests;
mod tile;
mod values;

use std::ops::Range;

use super::tile::{Ahead, score_rows};
use super::{RUN, Sizes, State, TILE, VECTORS, merge, padded};
use crate::cache::{CacheFormat, Latents};
use crate::decoder::KeyRotary;
use crate::ops::parallel::{self, Parts};
use crate::ops::simd::{Kernel, LANES, Level, Simd};
use tile::{Source, Tile};
use values::{Rows, mix, sum_latents, turn_values};

pub(crate) use expansion::{Expansion, LateExpansion, Stored, WeightForm};

/// Rows (queries of all heads) that share a walk over the latents: many, since each walk rebuilds the keys.
const ROWS: usize = 512;
/// New tokens up to which latents are summed, however many there are: a token verified among others is the token decoded
/// alone.
const FEW_TOKENS: usize = 32;
/// Nothing is asked for ahead of its use: tiles are rebuilt in memory that is near.
const NOT_AHEAD: Ahead = Ahead {
    from: std::ptr::null(),
    step: 0,
    on: false,
};

/// What weighted values are summed from; the results differ by rounding alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueForm {
    /// Values, rebuilt for each walk over the cache.
    Rebuilt,
    /// Latents, expanded once for each query and head.
    Summed,
}

impl ValueForm {
    /// The form that is taken by itself: latents for up to 32 new tokens; for more, the one with fewer products. `ranks` are
    /// those of each value head's slice.
    ///
    /// A latent's products cost twice a value's, since it is unpacked for every few rows; products with codes cost a quarter.
    pub(crate) fn of(
        tokens: usize,
        heads: usize,
        head_dim: usize,
        format: CacheFormat,
        ranks: &[usize],
    ) -> Self {
        let kv_heads = ranks.len();
        let rows = (ROWS / heads).clamp(1, tokens) * heads / kv_heads;
        let rank: usize = ranks.iter().sum();
        let rebuild = rank * head_dim / if format.is_packed() { 4 } else { 1 };
        let rebuilt = rows * head_dim * kv_heads + rebuild;
        match tokens <= FEW_TOKENS || 2 * rows * rank <= rebuilt {
            true => ValueForm::Summed,
            false => ValueForm::Rebuilt,
        }
    }
}

/// The values' expansions, group by group, in one of the two forms.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    Rebuilt(&'a [Expansion]),
    Summed(&'a [LateExpansion]),
}

/// One attention over latents. The last `sizes.tokens` of the cache's tokens are the queries' own.
#[derive(Clone, Copy)]
pub(crate) struct LatentAttention<'a> {
    pub sizes: Sizes,
    /// `[batch, tokens, heads, head_dim]`, turned to their positions.
    pub q: &'a [f32],
    pub latents: Latents<'a>,
    /// The keys' expansions, group by group; their slices are the first.
    pub keys: &'a [Expansion],
    pub values: Values<'a>,
    /// Whether the values' slices are the keys'.
    pub joint: bool,
    pub rotary: &'a KeyRotary,
    /// Weights `[head_dim]` and epsilon of the keys' norm.
    pub k_norm: Option<(&'a [f32], f32)>,
    /// `[tokens, tokens]`, as for [`attention`](super::attention).
    pub mask: Option<&'a [u8]>,
}

impl LatentAttention<'_> {
    fn check(&self, out: &[f32]) {
        let Sizes {
            batch,
            tokens,
            heads,
            kv_heads,
            head_dim,
            keys,
        } = self.sizes;
        let slices = &self.latents.layout.slices;
        let fits = |groups: &mut dyn Iterator<Item = (usize, usize)>, first: usize| {
            let mut seen = 0;
            for (group, (rank, heads)) in groups.enumerate() {
                let slice = slices.get(first + group);
                assert_eq!(
                    slice.map(|s| s.rank),
                    Some(rank),
                    "ranks of a slice and its group"
                );
                seen += heads;
            }
            assert_eq!(seen, kv_heads, "heads of all groups");
        };
        fits(&mut self.keys.iter().map(|g| (g.rank, g.heads)), 0);
        match self.values {
            Values::Rebuilt(groups) => {
                fits(
                    &mut groups.iter().map(|g| (g.rank, g.heads)),
                    self.first_value(),
                );
            }
            Values::Summed(groups) => {
                fits(
                    &mut groups.iter().map(|g| (g.rank, g.heads)),
                    self.first_value(),
                );
            }
        }
        assert_eq!(self.q.len(), batch * tokens * heads * head_dim, "queries");
        assert_eq!(out.len(), self.q.len(), "output");
        assert!(heads % kv_heads == 0 && keys >= tokens, "{:?}", self.sizes);
        assert!(self.mask.is_none_or(|m| m.len() == tokens * tokens), "mask");
        assert!(
            self.k_norm.is_none_or(|(gamma, _)| gamma.len() == head_dim),
            "norm"
        );
        assert_eq!(
            (self.latents.batch, self.latents.length),
            (batch, keys),
            "latents"
        );
        let form = WeightForm::of(self.latents.layout.format);
        let parts = self.keys.iter().all(|g| g.form() == form);
        assert!(parts, "expansions for another format");
    }

    /// The slice of the first value group.
    fn first_value(&self) -> usize {
        if self.joint { 0 } else { self.keys.len() }
    }

    /// Sums of a row, in whole vectors.
    fn width(&self) -> usize {
        match self.values {
            Values::Rebuilt(_) => padded(self.sizes.head_dim),
            Values::Summed(groups) => {
                let ranks = groups.iter().map(|g| g.rank);
                padded(ranks.max().unwrap_or(0))
            }
        }
    }

    /// Does it at a level the CPU has, into `out` of the queries' shape.
    ///
    /// # Panics
    /// When sizes, slices and groups do not fit each other.
    pub fn run(&self, level: Level, out: &mut [f32]) {
        if self.q.is_empty() {
            return;
        }
        self.check(out);
        let Sizes {
            batch,
            tokens,
            heads,
            keys,
            ..
        } = self.sizes;
        let positions = (ROWS / heads).clamp(1, tokens);
        let blocks = tokens.div_ceil(positions);
        let runs = keys.div_ceil(RUN);
        let units = batch * blocks;
        let out = Parts::new(out);
        let work = |unit: usize, runs: Range<usize>, partial: *mut f32| {
            let first = unit % blocks * positions;
            Work {
                of: *self,
                out: out.pointer(),
                sequence: unit / blocks,
                first,
                positions: positions.min(tokens - first),
                runs,
                partial,
            }
        };
        if units >= 2 * parallel::threads() || runs == 1 {
            // Later queries see more keys: start with them, so that the last task is a short one.
            parallel::for_each(units, |unit| {
                let unit = unit % batch * blocks + (blocks - 1 - unit / batch);
                // SAFETY: `check` has compared lengths; no two units share a row of `out`; the level is there.
                unsafe { level.run(work(unit, 0..runs, std::ptr::null_mut())) };
            });
            return;
        }
        let size = positions * heads * (self.width() + 2);
        let mut partial = vec![0.0; units * runs * size];
        let places = Parts::new(&mut partial);
        parallel::for_each(units * runs, |task| {
            let (unit, run) = (task / runs, task % runs);
            // SAFETY: as above; each task has a place of its own.
            unsafe { level.run(work(unit, run..run + 1, places.pointer().add(task * size))) };
        });
        for unit in 0..units {
            // SAFETY: as above.
            unsafe {
                level.run(Merge {
                    work: work(unit, 0..runs, places.pointer().add(unit * runs * size)),
                    size,
                });
            }
        }
    }
}

/// The queries of some positions over some runs of keys.
struct Work<'a> {
    of: LatentAttention<'a>,
    out: *mut f32,
    sequence: usize,
    first: usize,
    positions: usize,
    runs: Range<usize>,
    /// Where one run's state goes, or null when `out` gets the result.
    partial: *mut f32,
}

/// Memory that tiles use one after another.
struct Scratch {
    /// `[rows, head_dim]`.
    q: Vec<f32>,
    tile: Tile,
    /// Keys or values of a head `[head_dim, TILE]`.
    channels: Vec<f32>,
    /// Values of a head `[TILE, width]`.
    turned: Vec<f32>,
    /// `[RUN / TILE, rows, TILE]`.
    scores: Vec<f32>,
}

impl Work<'_> {
    fn group(&self) -> usize {
        self.of.sizes.heads / self.of.sizes.kv_heads
    }

    /// Rows of one key head.
    fn head_rows(&self) -> usize {
        self.positions * self.group()
    }

    /// Rows: key heads turn slowest, then positions.
    fn rows(&self) -> usize {
        self.positions * self.of.sizes.heads
    }

    fn position(&self, row: usize) -> usize {
        self.first + row % self.head_rows() / self.group()
    }

    /// Where a row's query and output start.
    fn row_at(&self, row: usize) -> usize {
        let sizes = self.of.sizes;
        let head = row / self.head_rows() * self.group() + row % self.group();
        let token = self.sequence * sizes.tokens + self.position(row);
        (token * sizes.heads + head) * sizes.head_dim
    }

    fn past(&self) -> usize {
        self.of.sizes.keys - self.of.sizes.tokens
    }

    /// How many keys the positions of this work can see.
    fn reach(&self) -> usize {
        match self.of.mask {
            Some(_) => self.of.sizes.keys,
            None => self.past() + self.first + self.positions,
        }
    }

    /// Whether a row sees a key.
    fn sees(&self, row: usize, key: usize) -> bool {
        let (past, position) = (self.past(), self.position(row));
        match self.of.mask {
            _ if key < past => true,
            Some(mask) => mask[position * self.of.sizes.tokens + key - past] != 0,
            None => key <= past + position,
        }
    }

    /// The first key that some row here may not see.
    fn hidden_from(&self) -> usize {
        match self.of.mask {
            Some(_) => self.past(),
            None => self.past() + self.first + 1,
        }
    }

    fn source(&self, slice: usize) -> Source<'_> {
        Source {
            latents: self.of.latents,
            slice: self.of.latents.layout.slices[slice],
            sequence: self.sequence,
        }
    }

    /// The queries, scaled: by `1/√head_dim`, and by the scales of the channels that they meet, unless a norm comes between.
    fn queries(&self) -> Vec<f32> {
        let d = self.of.sizes.head_dim;
        let scale = 1.0 / (d as f32).sqrt();
        let mut q = Vec::with_capacity(self.rows() * d);
        let mut row = 0;
        for group in self.of.keys {
            for scales in group.scales.chunks_exact(d) {
                for _ in 0..self.head_rows() {
                    let values = &self.of.q[self.row_at(row)..][..d];
                    match self.of.k_norm {
                        Some(_) => q.extend(values.iter().map(|v| v * scale)),
                        None => q.extend(values.iter().zip(scales).map(|(v, s)| v * (scale * s))),
                    }
                    row += 1;
                }
            }
        }
        q
    }
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on to the caller.
        unsafe {
            match WeightForm::of(self.of.latents.layout.format).parts() {
                0 => self.walk::<S, 0>(),
                1 => self.walk::<S, 1>(),
                _ => self.walk::<S, 2>(),
            }
        }
    }
}

impl Work<'_> {
    #[inline(always)]
    unsafe fn walk<S: Simd, const PARTS: usize>(&self) {
        let d = self.of.sizes.head_dim;
        let (rows, width, reach) = (self.rows(), self.of.width(), self.reach());
        let layout = self.of.latents.layout;
        let rank = layout.slices.iter().map(|s| s.rank).max().unwrap_or(0);
        let mut scratch = Scratch {
            q: self.queries(),
            tile: Tile::new(rank, layout.format),
            channels: vec![0.0; d * TILE],
            turned: match self.of.values {
                Values::Rebuilt(_) => vec![0.0; TILE * width],
                Values::Summed(_) => Vec::new(),
            },
            scores: vec![0.0; rows * RUN],
        };
        let mut total = State::new(rows, width);
        // SAFETY: `LatentAttention::check` has compared the lengths.
        unsafe {
            for run in self.runs.clone() {
                let (start, end) = (run * RUN, ((run + 1) * RUN).min(reach));
                if start >= end {
                    break;
                }
                let mut state = State::new(rows, width);
                for tile in (start..end).step_by(TILE) {
                    self.score::<S, PARTS>(tile, TILE.min(end - tile), &mut scratch);
                }
                let tiles = (end - start).div_ceil(TILE);
                for row in 0..rows {
                    let scores = scratch.scores.as_mut_ptr().add(row * TILE);
                    soften::<S>(scores, tiles, rows * TILE, row, &mut state);
                }
                self.add_values::<S, PARTS>(start, end, &mut state, &mut scratch);
                match run == self.runs.start {
                    true => total = state,
                    false => merge::<S>(&mut total, &state, width),
                }
            }
            match self.partial.is_null() {
                true => self.finish::<S>(&total),
                false => {
                    let places = [0, rows * width, rows * width + rows];
                    let parts = [&total.sums, &total.weights, &total.largest];
                    for (place, part) in places.into_iter().zip(parts) {
                        let to = self.partial.add(place);
                        std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
                    }
                }
            }
        }
    }

    /// Scores of all rows with `count` keys from `tile`.
    #[inline(always)]
    unsafe fn score<S: Simd, const PARTS: usize>(
        &self,
        tile: usize,
        count: usize,
        scratch: &mut Scratch,
    ) {
        let (d, rows, head_rows) = (self.of.sizes.head_dim, self.rows(), self.head_rows());
        let turn = self.of.rotary.tile(tile / TILE);
        assert!(turn.0.len() >= d / 2 * TILE, "rotations of heads of {d}");
        let at = tile % RUN / TILE * rows * TILE;
        let mut head = 0;
        // SAFETY: passed on to the caller.
        unsafe {
            let scores = scratch.scores.as_mut_ptr().add(at);
            for (slice, group) in self.of.keys.iter().enumerate() {
                let source = self.source(slice);
                scratch.tile.load::<S>(source, tile / LANES, count);
                for member in 0..group.heads {
                    let keys = &mut scratch.channels;
                    match self.of.k_norm {
                        None => {
                            scratch
                                .tile
                                .rebuild::<S, PARTS>(group, member, Some(turn), keys);
                        }
                        Some((gamma, epsilon)) => {
                            scratch.tile.rebuild::<S, PARTS>(group, member, None, keys);
                            let scales = &group.scales[member * d..][..d];
                            norm_and_turn::<S>(keys, scales, gamma, epsilon, turn);
                        }
                    }
                    let mut row = head * head_rows;
                    let end = row + head_rows;
                    while row < end {
                        let q = scratch.q.as_ptr().add(row * d);
                        let (keys, to) = (scratch.channels.as_ptr(), scores.add(row * TILE));
                        row += match (S::MANY_REGISTERS, end - row) {
                            (true, 6..) => score_rows::<S, 6>(q, d, keys, to, NOT_AHEAD),
                            (true, 3..) => score_rows::<S, 3>(q, d, keys, to, NOT_AHEAD),
                            _ => score_rows::<S, 1>(q, d, keys, to, NOT_AHEAD),
                        };
                    }
                    head += 1;
                }
            }
            if count < TILE || tile + TILE > self.hidden_from() {
                for row in 0..rows {
                    for j in 0..TILE {
                        if j >= count || !self.sees(row, tile + j) {
                            *scores.add(row * TILE + j) = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }

    /// Adds the weighted values of the keys `start..end`, a run's, to the state.
    #[inline(always)]
    unsafe fn add_values<S: Simd, const PARTS: usize>(
        &self,
        start: usize,
        end: usize,
        state: &mut State,
        scratch: &mut Scratch,
    ) {
        let (rows, head_rows, width) = (self.rows(), self.head_rows(), self.of.width());
        let first = self.of.first_value();
        let mut row = 0;
        // SAFETY: passed on to the caller.
        unsafe {
            let weights = scratch.scores.as_mut_ptr();
            let sums = state.sums.as_mut_ptr();
            match self.of.values {
                Values::Summed(groups) => {
                    for (slice, group) in groups.iter().enumerate() {
                        let of_group = Rows {
                            weights: weights.add(row * TILE),
                            tile: rows * TILE,
                            count: group.heads * head_rows,
                        };
                        let source = self.source(first + slice);
                        let to = sums.add(row * width);
                        sum_latents::<S>(source, start / LANES, end - start, of_group, to, width);
                        row += of_group.count;
                    }
                }
                Values::Rebuilt(groups) => {
                    for tile in (start..end).step_by(TILE) {
                        let count = TILE.min(end - tile);
                        let weights = weights.add(tile % RUN / TILE * rows * TILE);
                        row = 0;
                        for (slice, group) in groups.iter().enumerate() {
                            let source = self.source(first + slice);
                            scratch.tile.load::<S>(source, tile / LANES, count);
                            for member in 0..group.heads {
                                let values = &mut scratch.channels;
                                scratch
                                    .tile
                                    .rebuild::<S, PARTS>(group, member, None, values);
                                let d = self.of.sizes.head_dim;
                                turn_values::<S>(values, d, &mut scratch.turned, width);
                                let (weights, sums) =
                                    (weights.add(row * TILE), sums.add(row * width));
                                let values = scratch.turned.as_ptr();
                                mix::<S>(head_rows, weights, values, count, sums, width);
                                row += head_rows;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Divides by the sums of weights, expands what was summed as latents, and writes the result.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, state: &State) {
        let (d, width, head_rows) = (self.of.sizes.head_dim, self.of.width(), self.head_rows());
        let mut expanded = vec![0.0; padded(d)];
        let mut row = 0;
        let heads = match self.of.values {
            Values::Rebuilt(groups) => groups.iter().map(|g| g.heads).collect::<Vec<_>>(),
            Values::Summed(groups) => groups.iter().map(|g| g.heads).collect(),
        };
        for (group, heads) in heads.into_iter().enumerate() {
            for head in 0..heads {
                for _ in 0..head_rows {
                    let sums = &state.sums[row * width..][..width];
                    let inverse = 1.0 / state.weights[row];
                    // SAFETY: the row's output has d places, which no other work writes.
                    let to = unsafe {
                        std::slice::from_raw_parts_mut(self.out.add(self.row_at(row)), d)
                    };
                    match self.of.values {
                        Values::Rebuilt(groups) => {
                            let (scales, bias) = (&groups[group].scales, &groups[group].bias);
                            for j in 0..d {
                                let channel = head * d + j;
                                to[j] = (sums[j] * inverse).mul_add(scales[channel], bias[channel]);
                            }
                        }
                        Values::Summed(groups) => {
                            // SAFETY: passed on to the caller.
                            unsafe {
                                groups[group].expand::<S>(head, sums, inverse, &mut expanded)
                            };
                            to.copy_from_slice(&expanded[..d]);
                        }
                    }
                    row += 1;
                }
            }
        }
    }
}

impl LateExpansion {
    /// One head's values of summed latents times `factor`, into `to` `[padded head_dim]`.
    #[inline(always)]
    unsafe fn expand<S: Simd>(&self, head: usize, sums: &[f32], factor: f32, to: &mut [f32]) {
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

/// Divides each token's key by its root mean square and turns it to its position: `keys` `[head_dim, TILE]` are over
/// `scales`.
#[inline(always)]
unsafe fn norm_and_turn<S: Simd>(
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
                let (x, y) = tile::turned::<S>(
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

/// Turns a row's scores of a run, in `tiles` tiles that are `step` apart, into weights relative to the largest.
#[inline(always)]
unsafe fn soften<S: Simd>(
    scores: *mut f32,
    tiles: usize,
    step: usize,
    row: usize,
    state: &mut State,
) {
    // SAFETY: the row has TILE scores in each tile.
    unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        let mut any = S::splat(0.0);
        for tile in 0..tiles {
            for j in 0..VECTORS {
                let scores = S::load(scores.add(tile * step + j * LANES));
                top = S::max(scores, top);
                any = S::add(any, scores);
            }
        }
        let largest = S::largest(top);
        if largest == f32::NEG_INFINITY {
            // No key is seen; or what is seen is no number, which must not be lost.
            if S::sum(any).is_nan() {
                state.weights[row] = f32::NAN;
                state.largest[row] = 0.0;
            }
            for tile in 0..tiles {
                for j in 0..VECTORS {
                    S::store(scores.add(tile * step + j * LANES), S::splat(0.0));
                }
            }
            return;
        }
        let mut sum = S::splat(0.0);
        for tile in 0..tiles {
            for j in 0..VECTORS {
                let at = scores.add(tile * step + j * LANES);
                let weight = S::exp(S::sub(S::load(at), S::splat(largest)));
                S::store(at, weight);
                sum = S::add(sum, weight);
            }
        }
        state.weights[row] = S::sum(sum);
        state.largest[row] = largest;
    }
}

/// Merges the runs that [`Work`] left in `work.partial`, `size` apart.
struct Merge<'a> {
    work: Work<'a>,
    size: usize,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (rows, width) = (self.work.rows(), self.work.of.width());
        // Runs beyond what the queries see were left empty.
        let runs = self.work.reach().div_ceil(RUN);
        // SAFETY: each run's place has the sums, weights and largest scores of the rows.
        unsafe {
            let state = |run: usize| {
                let at = self.work.partial.add(run * self.size);
                let part =
                    |from: usize, n: usize| std::slice::from_raw_parts(at.add(from), n).to_vec();
                State {
                    sums: part(0, rows * width),
                    weights: part(rows * width, rows),
                    largest: part(rows * width + rows, rows),
                }
            };
            let mut total = state(0);
            for run in 1..runs {
                merge::<S>(&mut total, &state(run), width);
            }
            self.work.finish::<S>(&total);
        }
    }
}
