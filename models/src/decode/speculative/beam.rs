//! The nodes of a level, of a draft model's logits.

use super::tree::Tree;
use crate::decode::{Distribution, Sampler, chance::Chance, sampling::argmax};
use crate::error::Result;

/// Weights below this part of the greatest are left out of a sum: the order of nodes does not depend on them.
const NEGLIGIBLE: f64 = -20.0;

/// A node of the last level.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaf {
    pub node: usize,
    /// Logarithm of the product of its path's sharpened probabilities: what nodes are chosen by.
    score: f64,
    /// The same of the probabilities that speak for how likely it stays.
    pub likely: f64,
}

impl Leaf {
    pub const ROOT: Leaf = Leaf {
        node: 0,
        score: 0.0,
        likely: 0.0,
    };
}

/// How nodes are chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub width: usize,
    /// Divides logits for the score; below 1 it sharpens.
    pub temperature: f64,
    /// Divides logits for how likely a node stays; none where nobody asks.
    pub likely: Option<f64>,
}

/// Adds the level of the `width` best children of all leaves, whose logits `rows` are: a beam over the cumulative, sharpened
/// probability (SubSpec, Wang et al. 2025, arXiv 2509.18344). Ties go to the earlier leaf and the lower token.
pub(super) fn choose(
    tree: &mut Tree,
    leaves: &[Leaf],
    rows: &[Vec<f32>],
    how: Choice,
) -> Vec<Leaf> {
    let mut found = Vec::new();
    for (leaf, logits) in leaves.iter().zip(rows) {
        let best = top(logits, how.width);
        let highest = logits[best[0] as usize];
        let sum = |temperature: f64| {
            let scaled = |l: &f32| f64::from(l - highest) / temperature;
            let counted = logits.iter().map(scaled).filter(|s| *s > NEGLIGIBLE);
            counted.map(f64::exp).sum::<f64>().ln()
        };
        // A chain's only candidate needs no score.
        let score_sum = match how.width {
            1 => 0.0,
            _ => sum(how.temperature),
        };
        let likely_sum = how
            .likely
            .map(|temperature| (temperature, sum(temperature)));
        for token in best {
            let below = f64::from(logits[token as usize] - highest);
            let likely = likely_sum.map_or(0.0, |(temperature, sum)| below / temperature - sum);
            let child = Leaf {
                node: leaf.node,
                score: leaf.score + below / how.temperature - score_sum,
                likely: leaf.likely + likely,
            };
            found.push((child, token));
        }
    }
    // Stable: what comes first of equals is what the order promises.
    found.sort_by(|a, b| b.0.score.total_cmp(&a.0.score));
    found.truncate(how.width);
    // By parent, so that a level's nodes lie as its parents do.
    let push = |(leaf, token): (Leaf, u32)| Leaf {
        node: tree.push(leaf.node, token),
        ..leaf
    };
    found.into_iter().map(push).collect()
}

/// Adds a level of drawn nodes: `width` children of the root, then one child of every leaf. Their laws go into the tree.
///
/// # Errors
/// [`Error::NonFinite`](crate::Error::NonFinite).
pub(super) fn draw(
    tree: &mut Tree,
    leaves: &[Leaf],
    rows: &[Vec<f32>],
    width: usize,
    sampler: &Sampler,
    chance: &mut dyn Chance,
) -> Result<Vec<Leaf>> {
    let mut drawn = Vec::new();
    for (leaf, logits) in leaves.iter().zip(rows) {
        let law = sampler.distribution(logits)?;
        let children = if leaf.node == 0 { width } else { 1 };
        for token in draw_different(&law, children, chance) {
            drawn.push(Leaf {
                node: tree.push(leaf.node, token),
                score: 0.0,
                likely: leaf.likely + law.probability(token).ln(),
            });
        }
        tree.set_law(leaf.node, law);
    }
    Ok(drawn)
}

/// Up to `most` tokens, one after another, each from what the law leaves without those before.
pub(super) fn draw_different(law: &Distribution, most: usize, chance: &mut dyn Chance) -> Vec<u32> {
    let (mut left, mut drawn) = (Some(law.clone()), Vec::new());
    while let Some(law) = left.filter(|_| drawn.len() < most) {
        let token = chance.draw(&law);
        drawn.push(token);
        left = law.without(token);
    }
    drawn
}

/// The `k` highest logits' tokens, highest first; of equals the lower first.
fn top(logits: &[f32], k: usize) -> Vec<u32> {
    if k == 1 {
        return vec![argmax(logits)];
    }
    let before = |a: u32, b: u32| {
        let (x, y) = (logits[a as usize], logits[b as usize]);
        x > y || x == y && a < b
    };
    let mut best: Vec<u32> = Vec::with_capacity(k + 1);
    for token in 0..logits.len() as u32 {
        if best.len() == k && !before(token, best[k - 1]) {
            continue;
        }
        let at = best.partition_point(|kept| before(*kept, token));
        best.insert(at, token);
        best.truncate(k);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_all_leaves_are_kept() {
        assert_eq!(top(&[1.0, 5.0, 2.0, 5.0, 3.0], 3), [1, 3, 4]);
        assert_eq!(top(&[1.0, 2.0], 6), [1, 0]);
        let how = Choice {
            width: 2,
            temperature: 0.5,
            likely: Some(1.0),
        };
        let mut tree = Tree::new(0);
        // Probabilities 0.6, 0.3, 0.1.
        let row = |p: [f32; 3]| p.map(f32::ln).to_vec();
        let level = choose(&mut tree, &[Leaf::ROOT], &[row([0.3, 0.6, 0.1])], how);
        assert_eq!(tree.tokens(), [0, 1, 0]);
        assert!((level[0].likely - 0.6f64.ln()).abs() < 1e-6);
        let squares = 0.36 + 0.09 + 0.01;
        assert!((level[1].score - (0.09f64 / squares).ln()).abs() < 1e-6);
        // The first leaf's two children beat both of the second, whose score is a quarter.
        let rows = [row([0.5, 0.49, 0.01]), row([0.9, 0.05, 0.05])];
        let level = choose(&mut tree, &level, &rows, how);
        assert_eq!(
            level
                .iter()
                .map(|l| tree.parent(l.node))
                .collect::<Vec<_>>(),
            [1, 1]
        );
        assert_eq!(tree.tokens(), [0, 1, 0, 0, 1]);
    }
}
