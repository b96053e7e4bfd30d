//! Linear algebra in f64, on faer; nothing outside this folder sees faer.
//!
//! Matrices cross this boundary as row-major slices; weights are `out × in` as in the papers.

mod gram;
mod svd;
mod whiten;

pub use gram::Gram;
pub use svd::{Factors, LowRankSvd};
pub use whiten::{Whitening, whiten};

/// Uses the process's rayon pool, whatever its size, for every operation here.
fn parallelism() -> faer::Par {
    faer::Par::rayon(0)
}
