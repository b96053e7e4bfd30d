//! Runs of keys that were summed by themselves, put together in order.

use crate::ops::simd::{LANES, Simd};

/// Keys that are summed by themselves before they are merged with those before them.
pub(super) const RUN: usize = 256;

/// Sums over keys for some rows: `rows` of `width` each, the sums of weights, and the largest scores.
pub(super) struct State {
    pub(super) sums: Vec<f32>,
    pub(super) weights: Vec<f32>,
    pub(super) largest: Vec<f32>,
}

impl State {
    pub(super) fn new(rows: usize, width: usize) -> State {
        State {
            sums: vec![0.0; rows * width],
            weights: vec![0.0; rows],
            largest: vec![f32::NEG_INFINITY; rows],
        }
    }

    /// Leaves the state where [`merged`] finds it.
    ///
    /// # Safety
    /// There is room for all of it, which nobody else uses.
    pub(super) unsafe fn leave(&self, place: *mut f32) {
        let mut at = place;
        for part in [&self.sums, &self.weights, &self.largest] {
            // SAFETY: the parts lie one behind the other in that room.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), at, part.len());
                at = at.add(part.len());
            }
        }
    }
}

/// Adds the keys of `other`, which come after those of `total`.
#[inline(always)]
pub(super) unsafe fn merge<S: Simd>(total: &mut State, other: &State, width: usize) {
    for row in 0..total.weights.len() {
        let largest = total.largest[row].max(other.largest[row]);
        if largest == f32::NEG_INFINITY {
            continue;
        }
        // SAFETY: both states have `width` sums in each row.
        unsafe {
            let (ours, theirs) = (total.largest[row] - largest, other.largest[row] - largest);
            let ours = S::sum(S::exp(S::splat(ours))) / LANES as f32;
            let theirs = S::sum(S::exp(S::splat(theirs))) / LANES as f32;
            for j in (0..width).step_by(LANES) {
                let at = total.sums.as_mut_ptr().add(row * width + j);
                let add = S::mul(
                    S::load(other.sums.as_ptr().add(row * width + j)),
                    S::splat(theirs),
                );
                S::store(at, S::fma(S::load(at), S::splat(ours), add));
            }
            total.weights[row] = total.weights[row].mul_add(ours, other.weights[row] * theirs);
        }
        total.largest[row] = largest;
    }
}

/// The first `runs` of the states that were [left](State::leave) `size` apart from `places` on, each of `rows` of `width`, as
/// one. Runs beyond what the queries see were left empty: they need not be among these.
///
/// # Safety
/// There are so many, at least one, and each has that room.
#[inline(always)]
pub(super) unsafe fn merged<S: Simd>(
    places: *const f32,
    size: usize,
    runs: usize,
    rows: usize,
    width: usize,
) -> State {
    // SAFETY: passed on to the caller.
    unsafe {
        let state = |run: usize| {
            let at = places.add(run * size);
            let part = |from: usize, n: usize| std::slice::from_raw_parts(at.add(from), n).to_vec();
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
        total
    }
}
