//! Linear algebra in f64, on faer; nothing outside this folder sees faer.
//!
//! Matrices cross this boundary as row-major slices; weights are `out × in` as in the papers.

mod decompose;
mod eliminate;
mod gram;
mod identity;
mod latent;
mod neurons;
mod refit;
mod similarity;
mod weight;
mod whiten;

pub use decompose::{Decomposition, Factors, Moment, Whitened};
pub use eliminate::{Elimination, eliminate};
pub use gram::{Cross, Gram};
pub use identity::{IdentityFactors, PivotRule};
pub use neurons::NeuronSpectra;
pub use refit::{error_between, refit, removal_error};
pub use similarity::similarity;
pub use weight::Weight;
pub use whiten::{Whitening, whiten};

/// Uses the process's rayon pool, whatever its size, for every operation here.
fn parallelism() -> faer::Par {
    faer::Par::rayon(0)
}

#[cfg(test)]
mod test_data {
    use super::{Gram, Whitening, whiten};

    /// Deterministic values in (-1, 1).
    pub fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// The moment of random vectors.
    pub fn gram(width: usize, seed: u64) -> Gram {
        let mut gram = Gram::new(width);
        gram.add(&values(4 * width * width, seed));
        gram
    }

    pub fn whitening(width: usize, seed: u64) -> Whitening {
        whiten(&gram(width, seed), 0.0).expect("random vectors")
    }
}
