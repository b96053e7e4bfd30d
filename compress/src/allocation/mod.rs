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

    /// Scalars stored at a rank; none is dense.
    pub fn stored(self, rank: Option<usize>) -> u64 {
        rank.map_or(self.dense(), |rank| rank as u64 * self.rank_cost())
    }

    /// One step up from a rank: one rank more, or dense where that would cost no less; dense stays dense.
    pub fn next(self, rank: Option<usize>) -> Option<usize> {
        rank.map(|rank| rank + 1)
            .filter(|rank| self.stored(Some(*rank)) < self.dense())
    }
}
