//! What proposes tokens.

use std::time::Instant;

use super::tree::Tree;
use crate::cache::KvCache;
use crate::decode::{Sampler, chance::Chance};
use crate::error::Result;

/// What a drafter is asked for.
pub struct Round<'a> {
    /// The text so far, the prompt included; its last token is the root of the tree.
    pub tokens: &'a [u32],
    /// The target's cache, which holds all of the text but its last token. What a drafter adds to it is forgotten before the
    /// target verifies.
    pub cache: &'a mut KvCache,
    /// Levels at most, below the root.
    pub depth: usize,
    /// How the target's tokens are drawn.
    pub sampler: &'a Sampler,
    /// Draws the nodes, from a law that the tree has to state; without, they are chosen and no law is needed.
    pub chance: Option<&'a mut dyn Chance>,
    /// Below this logarithm of the probability of the likeliest leaf, another level costs more than it wins.
    pub stop: Option<f64>,
    /// When to leave it at the levels there are.
    pub pause: Option<Pause>,
}

/// A moment after which no level is begun, but for the first `levels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    pub levels: usize,
    pub at: Instant,
}

impl Pause {
    /// Whether a draft of so many levels is to be left at that.
    pub fn is_due(&self, levels: usize) -> bool {
        levels >= self.levels && Instant::now() >= self.at
    }
}

/// Proposes what may follow a text. What it proposes decides how fast text comes, never which.
pub trait Drafter {
    /// Gets ready for a prompt; a drafter that has a cache of its own fills it.
    ///
    /// # Errors
    /// Those of the model that drafts.
    fn prepare(&mut self, _prompt: &[u32]) -> Result<()> {
        Ok(())
    }

    /// A tree below the text's last token.
    ///
    /// # Errors
    /// Those of the model that drafts.
    fn draft(&mut self, round: Round<'_>) -> Result<Tree>;

    /// Nodes a level that it makes when there is room for them.
    fn width(&self) -> usize {
        1
    }
}
