//! Queries that see some of the last keys only.

use super::{Sizes, TILE};

/// What each query of a tree sees.
pub(super) struct Tree {
    /// Keys that all of them see, the first ones.
    past: usize,
    /// The keys that each sees behind those, in order.
    seen: Vec<Vec<usize>>,
}

impl Tree {
    pub fn new(sizes: Sizes, mask: &[u8]) -> Tree {
        let span = mask.len() / sizes.tokens;
        assert!(
            mask.len() == sizes.tokens * span && (sizes.tokens..=sizes.keys).contains(&span),
            "a mask of {} for {sizes:?}",
            mask.len()
        );
        let past = sizes.keys - span;
        let seen = mask.chunks_exact(span).map(|row| {
            let keys = row.iter().enumerate().filter(|(_, seen)| **seen != 0);
            keys.map(|(key, _)| past + key).collect()
        });
        Tree {
            past,
            seen: seen.collect(),
        }
    }

    /// The first tile that is not the same for every query.
    pub fn shared(&self) -> usize {
        self.past / TILE * TILE
    }

    /// How many keys a query sees.
    pub fn reach(&self, query: usize) -> usize {
        self.past + self.seen[query].len()
    }

    /// The `index`th key that a query sees.
    pub fn key(&self, query: usize, index: usize) -> usize {
        match index.checked_sub(self.past) {
            None => index,
            Some(behind) => self.seen[query][behind],
        }
    }
}
