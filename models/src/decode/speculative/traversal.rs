//! Verification from the leaves up (Weng et al. 2025, "Traversal Verification for Speculative Tree Decoding",
//! arXiv 2505.12398, algorithm 3).
//!
//! A leaf stays, with all its ancestors, with the probability that its whole path is worth; what it loses goes to its parent's
//! residual and to the siblings drawn after it. So a token that is unlikely by itself can stay for what follows it.

use super::tree::Tree;
use super::verify::{Target, Verdict};
use crate::decode::{Distribution, chance::Chance};
use crate::error::Result;

/// A node on the way to the leaf that is looked at.
struct Step {
    node: usize,
    /// The probability that its path is worth: `a` of the paper.
    worth: f64,
    /// What the target draws from behind it, less what rejected children took; asked for when needed.
    target: Option<Distribution>,
    children: Vec<usize>,
    /// What the next of its children was drawn from; none where the tree says nothing.
    law: Option<Distribution>,
}

impl Step {
    fn new(tree: &Tree, node: usize, worth: f64) -> Self {
        let mut children: Vec<usize> = tree.children(node).collect();
        children.reverse();
        Step {
            node,
            worth,
            target: None,
            children,
            law: tree.law(node).cloned(),
        }
    }

    fn target(&mut self, target: Target<'_>) -> Result<&mut Distribution> {
        let p = match self.target.take() {
            Some(p) => p,
            None => target(self.node)?,
        };
        Ok(self.target.insert(p))
    }

    /// What this child was drawn from.
    fn law(&self, token: u32) -> Distribution {
        let law = self.law.clone();
        law.unwrap_or_else(|| Distribution::point(token))
    }
}

/// [`Verification::Traversal`](super::Verification::Traversal).
///
/// # Errors
/// Those of `target`.
pub fn traversal(tree: &Tree, target: Target<'_>, chance: &mut dyn Chance) -> Result<Verdict> {
    let mut path = Vec::new();
    let mut at = Step::new(tree, 0, 1.0);
    loop {
        if let Some(child) = at.children.pop() {
            let token = tree.token(child);
            let q = at.law(token);
            let p = at.target(target)?;
            let worth = at_most_one(p.probability(token) / q.probability(token), at.worth);
            path.push(std::mem::replace(&mut at, Step::new(tree, child, worth)));
            continue;
        }
        // The root is text already.
        let Some(mut parent) = path.pop() else {
            let bonus = chance.draw(at.target(target)?);
            return Ok(Verdict {
                accepted: Vec::new(),
                bonus,
            });
        };
        if chance.accept(at.worth) {
            let bonus = chance.draw(at.target(target)?);
            let above = path.iter().skip(1).map(|step| step.node);
            let mut accepted: Vec<usize> = above.collect();
            if !path.is_empty() {
                accepted.push(parent.node);
            }
            accepted.push(at.node);
            return Ok(Verdict { accepted, bonus });
        }
        parent.reject(tree.token(at.node), target)?;
        at = parent;
    }
}

impl Step {
    /// Takes the last child out, after it and all below it were rejected.
    fn reject(&mut self, token: u32, target: Target<'_>) -> Result<()> {
        let q = self.law(token);
        let worth = self.worth;
        let p = self.target(target)?;
        let (mass, left) = p.excess(worth, &q);
        // Nothing is in excess only where nothing could be rejected, but for rounding; then the target's own law stays.
        self.worth = match left {
            Some(left) => {
                *p = left;
                mass / (mass + 1.0 - worth)
            }
            None => 0.0,
        };
        self.law = self.law.take().and_then(|law| law.without(token));
        Ok(())
    }
}

fn at_most_one(ratio: f64, worth: f64) -> f64 {
    (worth * ratio).min(1.0)
}
