//! One walk over the latents: the queries of some positions and all heads.

use std::ops::Range;

use super::super::tile::score_rows;
use super::super::{RUN, State, TILE, VECTORS, merge, padded};
use super::tile::{Source, Tile, norm_and_turn};
use super::values::{Rows, mix, sum_latents, turn_values};
use super::{LatentAttention, NOT_AHEAD, Values, WeightForm};
use crate::ops::simd::{Kernel, LANES, Simd};

/// The queries of some positions over some runs of keys.
pub(super) struct Work<'a> {
    pub of: LatentAttention<'a>,
    pub out: *mut f32,
    pub sequence: usize,
    /// The first position.
    pub first: usize,
    pub positions: usize,
    /// Runs from the first of all that are read from `of`; those behind it are its window's.
    pub early: usize,
    pub runs: Range<usize>,
    /// Where one run's state goes, or null when `out` gets the result.
    pub partial: *mut f32,
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
    pub(super) fn rows(&self) -> usize {
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

    /// How many keys the positions of this work can see.
    pub(super) fn reach(&self) -> usize {
        match self.of.mask {
            Some(_) => self.of.sizes.keys,
            None => self.of.past() + self.first + self.positions,
        }
    }

    /// Whether a row sees a key.
    fn sees(&self, row: usize, key: usize) -> bool {
        let (past, position) = (self.of.past(), self.position(row));
        match self.of.mask {
            _ if key < past => true,
            Some(mask) => mask[position * self.of.sizes.tokens + key - past] != 0,
            None => key <= past + position,
        }
    }

    /// The first key that some row here may not see.
    fn hidden_from(&self) -> usize {
        match self.of.mask {
            Some(_) => self.of.past(),
            None => self.of.past() + self.first + 1,
        }
    }

    fn source(&self, slice: usize) -> Source<'_> {
        Source::new(self.of.latents, slice, self.sequence)
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
        let mut total = None;
        let late = self.early.clamp(self.runs.start, self.runs.end);
        let parts = [
            (self.of, self.runs.start..late),
            (self.of.late(), late..self.runs.end),
        ];
        // SAFETY: passed on to the caller; a partial state has places for all that a state holds.
        unsafe {
            for (of, runs) in parts {
                let part = Work { of, runs, ..self };
                match WeightForm::of(of.latents.layout.format).parts() {
                    0 => part.walk::<S, 0>(&mut total),
                    1 => part.walk::<S, 1>(&mut total),
                    _ => part.walk::<S, 2>(&mut total),
                }
            }
            let (rows, width) = (self.rows(), self.of.width());
            let total = total.unwrap_or_else(|| State::new(rows, width));
            if self.partial.is_null() {
                return self.finish::<S>(&total);
            }
            let places = [0, rows * width, rows * width + rows];
            let parts = [&total.sums, &total.weights, &total.largest];
            for (place, part) in places.into_iter().zip(parts) {
                let to = self.partial.add(place);
                std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            }
        }
    }
}

impl Work<'_> {
    /// Adds the runs, all of which are read from `of`, to those before them.
    #[inline(always)]
    unsafe fn walk<S: Simd, const PARTS: usize>(&self, total: &mut Option<State>) {
        let d = self.of.sizes.head_dim;
        let (rows, width, reach) = (self.rows(), self.of.width(), self.reach());
        if self.runs.is_empty() || self.runs.start * RUN >= reach {
            return;
        }
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
        // SAFETY: `LatentAttention::check` has compared the lengths.
        unsafe {
            self.fetch::<S>(self.runs.start * RUN);
            for run in self.runs.clone() {
                let (start, end) = (run * RUN, ((run + 1) * RUN).min(reach));
                if start >= end {
                    break;
                }
                let mut state = State::new(rows, width);
                for tile in (start..end).step_by(TILE) {
                    if tile + TILE < end {
                        self.fetch::<S>(tile + TILE);
                    }
                    self.score::<S, PARTS>(tile, TILE.min(end - tile), &mut scratch);
                }
                let tiles = (end - start).div_ceil(TILE);
                for row in 0..rows {
                    let scores = scratch.scores.as_mut_ptr().add(row * TILE);
                    soften::<S>(scores, tiles, rows * TILE, row, &mut state);
                }
                self.add_values::<S, PARTS>(start, end, &mut state, &mut scratch);
                if self.of.recent.is_some() {
                    self.scale_sums(&mut state);
                }
                match total {
                    None => *total = Some(state),
                    Some(total) => merge::<S>(total, &state, width),
                }
            }
        }
    }

    /// Multiplies sums of rebuilt values by the scales of their channels: those of a window's latents have others.
    fn scale_sums(&self, state: &mut State) {
        let Values::Rebuilt(groups) = self.of.values else {
            return;
        };
        let (d, width) = (self.of.sizes.head_dim, self.of.width());
        let heads = groups.iter().flat_map(|g| g.scales.chunks_exact(d));
        let of_heads = state.sums.chunks_exact_mut(self.head_rows() * width);
        for (scales, rows) in heads.zip(of_heads) {
            for sums in rows.chunks_exact_mut(width) {
                for (sum, scale) in sums.iter_mut().zip(scales) {
                    *sum *= scale;
                }
            }
        }
    }

    /// Asks for the latents of a tile: slices that are read in turn are no run that the CPU would foresee.
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, tile: usize) {
        let latents = self.of.latents;
        let bytes = latents.layout.bytes;
        let held = tile - latents.first;
        for panel in held / LANES..(held + TILE) / LANES {
            let start = (panel * latents.batch + self.sequence) * bytes;
            for at in (start..start + bytes).step_by(64) {
                // SAFETY: asking for memory that is not there does nothing.
                unsafe { S::prefetch(latents.panels.as_ptr().wrapping_add(at)) };
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
                scratch.tile.load::<S, PARTS>(source, tile / LANES, count);
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
                            (true, 6..) => score_rows::<S, _, 6>(q, d, keys, to, NOT_AHEAD),
                            (true, 3..) => score_rows::<S, _, 3>(q, d, keys, to, NOT_AHEAD),
                            _ => score_rows::<S, _, 1>(q, d, keys, to, NOT_AHEAD),
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
                        sum_latents::<S, PARTS>(
                            source,
                            start / LANES,
                            end - start,
                            of_group,
                            to,
                            width,
                        );
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
                            scratch.tile.load::<S, PARTS>(source, tile / LANES, count);
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
    pub(super) unsafe fn finish<S: Simd>(&self, state: &State) {
        let (d, width, head_rows) = (self.of.sizes.head_dim, self.of.width(), self.head_rows());
        // Where there is a window, sums of values are over its scales.
        let values = self.of.late().values;
        let mut expanded = vec![0.0; padded(d)];
        let mut row = 0;
        let heads = match values {
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
                    match values {
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
