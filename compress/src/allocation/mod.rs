//! Ranks from a budget: one file a rule, all exact in integers.

mod uniform;

pub use uniform::uniform;

/// One matrix that may be factored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    pub out: usize,
    pub input: usize,
}

impl Matrix {
    /// Scalars of the dense matrix.
    pub fn dense(self) -> u64 {
        self.out as u64 * self.input as u64
    }

    /// Scalars one rank of `B A` takes.
    pub fn rank_cost(self) -> u64 {
        (self.out + self.input) as u64
    }
}
