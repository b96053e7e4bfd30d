//! Runs that were summed by themselves, put together.

use super::super::{RUN, State, merge};
use super::walk::Work;
use crate::ops::simd::{Kernel, Simd};

/// Merges the runs that [`Work`] left in `work.partial`, `size` apart.
pub(super) struct Merge<'a> {
    pub work: Work<'a>,
    pub size: usize,
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
