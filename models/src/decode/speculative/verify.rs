//! Which drafted tokens stay, so that the text is the target's.
//!
//! All of these are lossless for any drafter: the joint law of the text is the target's. They differ in how many tokens a
//! round keeps. What is left to chance is decided by [`Chance`], so that tests can walk through all of it.

use serde::{Deserialize, Serialize};

use super::tree::Tree;
use crate::decode::{Distribution, chance::Chance};
use crate::error::{Error, Result};

/// How drafted tokens are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verification {
    /// Draw from the target as always; go on in the tree while what was drawn stands there (SpecExec, SubSpec). The text is,
    /// token for token, the one that plain decoding draws with the same seed. Nothing keeps more of nodes that were chosen
    /// and not drawn.
    #[default]
    Match,
    /// Keep a drafted token with probability `min(1, p/q)` (Leviathan et al. 2023; Chen et al. 2023). For chains.
    Rejection,
    /// Decide from the leaves up (Weng et al. 2025, arXiv 2505.12398); on a chain it is block verification.
    Traversal,
}

impl Verification {
    pub const ALL: [Verification; 3] = [
        Verification::Match,
        Verification::Rejection,
        Verification::Traversal,
    ];

    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Verification::Match => "match",
            Verification::Rejection => "rejection",
            Verification::Traversal => "traversal",
        }
    }
}

impl std::fmt::Display for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Verification {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Verification::ALL.into_iter().find(|v| v.name() == text);
        found.ok_or_else(|| {
            let names = Verification::ALL.map(Verification::name);
            format!("verifications are {}", names.join(", "))
        })
    }
}

/// What becomes of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The nodes that are text now, from the root's child down.
    pub accepted: Vec<usize>,
    /// The target's own token behind them.
    pub bonus: u32,
}

/// What the target draws from behind a node: its distribution after the sampler.
pub type Target<'a> = &'a mut dyn FnMut(usize) -> Result<Distribution>;

/// [`Verification::Match`]; `next` draws the target's token behind a node.
///
/// # Errors
/// Those of `next`.
pub fn matching(tree: &Tree, next: &mut dyn FnMut(usize) -> Result<u32>) -> Result<Verdict> {
    let (mut node, mut accepted) = (0, Vec::new());
    loop {
        let token = next(node)?;
        match tree.child(node, token) {
            Some(child) => {
                accepted.push(child);
                node = child;
            }
            None => {
                return Ok(Verdict {
                    accepted,
                    bonus: token,
                });
            }
        }
    }
}

/// [`Verification::Rejection`].
///
/// # Errors
/// Those of `target`, and [`Error::Request`] where a node has two children.
pub fn rejection(tree: &Tree, target: Target<'_>, chance: &mut dyn Chance) -> Result<Verdict> {
    if !tree.is_chain() {
        return Err(Error::Request(
            "rejection verifies a chain of drafted tokens, and this is a tree".into(),
        ));
    }
    for node in 0..tree.levels() {
        let (p, token) = (target(node)?, tree.token(node + 1));
        let q = match tree.law(node) {
            Some(law) => law.clone(),
            None => Distribution::point(token),
        };
        if !chance.accept(p.probability(token) / q.probability(token)) {
            // Nothing is in excess only where both are the same, and then a token is rejected by rounding alone.
            let left = p.excess(1.0, &q).1.unwrap_or(p);
            return Ok(Verdict {
                accepted: (1..=node).collect(),
                bonus: chance.draw(&left),
            });
        }
    }
    Ok(Verdict {
        accepted: (1..tree.nodes()).collect(),
        bonus: chance.draw(&target(tree.levels())?),
    })
}
