//! Runs that were summed by themselves, put together.

use super::super::{RUN, merged};
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
        let runs = self.work.reach().div_ceil(RUN);
        // SAFETY: each run's place has the sums, weights and largest scores of the rows.
        unsafe {
            let total = merged::<S>(self.work.partial, self.size, runs, rows, width);
            self.work.finish::<S>(&total);
        }
    }
}
