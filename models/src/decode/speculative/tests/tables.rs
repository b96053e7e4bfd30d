//! Laws of tokens by table, drafts of them, and what a round makes of the text's law.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::enumerate::{Scripted, outcomes};
use crate::decode::speculative::beam::draw_different;
use crate::decode::speculative::{Tree, Verdict, Verification, matching, rejection, traversal};
use crate::decode::{Chance, Distribution};

/// How target and draft are related.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Relation {
    Any,
    /// The target never says some tokens.
    TargetZeros,
    /// The draft never says some tokens.
    DraftZeros,
    Same,
    Disjoint,
    /// The target is certain.
    Greedy,
}

impl Relation {
    pub const ALL: [Relation; 6] = [
        Relation::Any,
        Relation::TargetZeros,
        Relation::DraftZeros,
        Relation::Same,
        Relation::Disjoint,
        Relation::Greedy,
    ];
}

/// The laws of a target and of its draft behind every text of fewer than `depth + 1` tokens.
pub struct Tables {
    pub vocab: usize,
    pub depth: usize,
    laws: BTreeMap<Vec<u32>, (Distribution, Distribution)>,
}

impl Tables {
    pub fn new(vocab: usize, depth: usize, relation: Relation, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut tables = Tables {
            vocab,
            depth,
            laws: BTreeMap::new(),
        };
        for prefix in texts(vocab, depth) {
            let mut weights = || -> Vec<(u32, f64)> {
                let mut weight = |_: &u32| -> f64 { rng.random::<f64>().powi(3) + 1e-3 };
                (0..vocab as u32).map(|id| (id, weight(&id))).collect()
            };
            let (mut p, mut q) = (weights(), weights());
            let half = vocab as u32 / 2;
            match relation {
                Relation::Any => {}
                Relation::TargetZeros => p.retain(|(id, _)| *id >= half),
                Relation::DraftZeros => q.retain(|(id, _)| *id >= half),
                Relation::Same => q = p.clone(),
                Relation::Disjoint => {
                    p.retain(|(id, _)| *id < half);
                    q.retain(|(id, _)| *id >= half);
                }
                Relation::Greedy => p.truncate(1),
            }
            let laws = [p, q].map(|weights| Distribution::of_weights(weights).unwrap());
            tables.laws.insert(prefix, laws.into());
        }
        tables
    }

    pub fn target(&self, prefix: &[u32]) -> &Distribution {
        &self.laws[prefix].0
    }

    pub fn draft(&self, prefix: &[u32]) -> &Distribution {
        &self.laws[prefix].1
    }

    /// The text down to a node, without the root.
    pub fn text(&self, tree: &Tree, mut node: usize) -> Vec<u32> {
        let mut text = Vec::new();
        while node > 0 {
            text.push(tree.token(node));
            node = tree.parent(node);
        }
        text.reverse();
        text
    }

    /// The greatest difference that a round makes to the law of the next `depth + 1` tokens, those behind its own drawn from
    /// the target; and the tokens it gives on average.
    pub fn round(
        &self,
        draft: impl Fn(&Tables, &mut Scripted) -> Tree,
        verify: impl Fn(&Tables, &Tree, &mut Scripted) -> Verdict,
    ) -> (f64, f64) {
        let found = outcomes(|chance| {
            let tree = draft(self, chance);
            let verdict = verify(self, &tree, chance);
            let accepted = verdict.accepted.iter().map(|node| tree.token(*node));
            accepted.chain([verdict.bonus]).collect::<Vec<u32>>()
        });
        let total: f64 = found.values().sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
        let length: f64 = found.iter().map(|(text, p)| p * text.len() as f64).sum();
        let mut worst: f64 = 0.0;
        let all = texts(self.vocab, self.depth + 1);
        for text in all.iter().filter(|text| text.len() == self.depth + 1) {
            let rest = |from: usize| -> f64 {
                let factor = |i: usize| self.target(&text[..i]).probability(text[i]);
                (from..text.len()).map(factor).product()
            };
            let ours: f64 = (1..=text.len())
                .map(|given| found.get(&text[..given]).unwrap_or(&0.0) * rest(given))
                .sum();
            worst = worst.max((ours - rest(0)).abs());
        }
        (worst, length)
    }
}

/// All texts of at most `length` tokens.
fn texts(vocab: usize, length: usize) -> Vec<Vec<u32>> {
    let mut all = vec![vec![]];
    let mut from = 0;
    for _ in 0..length {
        let until = all.len();
        for i in from..until {
            for id in 0..vocab as u32 {
                let mut text = all[i].clone();
                text.push(id);
                all.push(text);
            }
        }
        from = until;
    }
    all
}

/// Draws `widths[d]` different children of every node of level `d`.
pub fn drawn<'a>(widths: &'a [usize]) -> impl Fn(&Tables, &mut Scripted) -> Tree + 'a {
    grown(widths, |_, _| true)
}

/// The same, but nothing below nodes that `goes_on` refuses.
pub fn grown<'a>(
    widths: &'a [usize],
    goes_on: impl Fn(&Tree, usize) -> bool + 'a,
) -> impl Fn(&Tables, &mut Scripted) -> Tree + 'a {
    move |tables, chance| {
        let mut tree = Tree::new(0);
        let mut level = vec![0];
        for width in widths {
            let mut next = Vec::new();
            level.retain(|node| goes_on(&tree, *node));
            for node in level {
                let law = tables.draft(&tables.text(&tree, node)).clone();
                for token in draw_different(&law, *width, chance) {
                    next.push(tree.push(node, token));
                }
                tree.set_law(node, law);
            }
            level = next;
        }
        tree
    }
}

/// The draft's `widths[d]` likeliest children of every node of level `d`, without a law, or with the draft's, which is wrong.
pub fn chosen(widths: &[usize], with_law: bool) -> impl Fn(&Tables, &mut Scripted) -> Tree + '_ {
    move |tables, _| {
        let mut tree = Tree::new(0);
        let mut level = vec![0];
        for width in widths {
            let mut next = Vec::new();
            for node in level {
                let law = tables.draft(&tables.text(&tree, node)).clone();
                let mut best = law.entries().to_vec();
                best.sort_by(|a, b| b.1.total_cmp(&a.1));
                for (token, _) in best.into_iter().take(*width) {
                    next.push(tree.push(node, token));
                }
                if with_law {
                    tree.set_law(node, law);
                }
            }
            level = next;
        }
        tree
    }
}

pub fn verify(how: Verification) -> impl Fn(&Tables, &Tree, &mut Scripted) -> Verdict {
    move |tables, tree, chance| {
        let law = |node: usize| tables.target(&tables.text(tree, node)).clone();
        let verdict = match how {
            Verification::Match => matching(tree, &mut |node| Ok(chance.draw(&law(node)))),
            Verification::Rejection => rejection(tree, &mut |node| Ok(law(node)), chance),
            Verification::Traversal => traversal(tree, &mut |node| Ok(law(node)), chance),
        };
        verdict.unwrap()
    }
}

const EXACT: f64 = 1e-12;

fn holds(
    tables: &Tables,
    what: &str,
    draft: impl Fn(&Tables, &mut Scripted) -> Tree,
    how: Verification,
) -> f64 {
    let (worst, length) = tables.round(draft, verify(how));
    assert!(worst < EXACT, "{how} of {what}: {worst}");
    length
}

#[test]
fn chains_keep_the_law_and_traversal_keeps_most_of_them() {
    for relation in Relation::ALL {
        for (depth, seed) in [(1, 1), (2, 2), (2, 3)] {
            let tables = Tables::new(5, depth, relation, seed);
            let widths = vec![1; depth];
            let what = format!("drawn chains of {depth}, {relation:?}");
            let length = Verification::ALL.map(|how| holds(&tables, &what, drawn(&widths), how));
            assert!(length[2] >= length[1] - EXACT, "{what}: {length:?}");
            assert!(length[1] >= length[0] - EXACT, "{what}: {length:?}");
            if relation == Relation::Same {
                assert!((length[1] - (depth + 1) as f64).abs() < EXACT, "{what}");
            }
            let what = format!("chosen chains of {depth}, {relation:?}");
            let length =
                Verification::ALL.map(|how| holds(&tables, &what, chosen(&widths, false), how));
            // Nothing keeps more of a node that was not drawn.
            assert!(
                length.iter().all(|l| (l - length[0]).abs() < EXACT),
                "{what}: {length:?}"
            );
        }
    }
}

#[test]
fn trees_keep_the_law() {
    for relation in Relation::ALL {
        for widths in [&[2, 1][..], &[3, 1], &[2, 2], &[4, 1]] {
            let tables = Tables::new(4, 2, relation, 7);
            for how in [Verification::Match, Verification::Traversal] {
                let what = format!("drawn {widths:?}, {relation:?}");
                holds(&tables, &what, drawn(widths), how);
                let what = format!("chosen {widths:?}, {relation:?}");
                holds(&tables, &what, chosen(widths, false), how);
            }
        }
    }
    let tables = Tables::new(5, 1, Relation::Any, 4);
    holds(&tables, "all tokens", drawn(&[5]), Verification::Traversal);
}

#[test]
fn drafts_that_stop_by_what_was_drawn_keep_the_law() {
    for relation in [Relation::Any, Relation::DraftZeros] {
        let tables = Tables::new(4, 2, relation, 11);
        for how in Verification::ALL {
            let unlikely = |tree: &Tree, node: usize| node == 0 || tree.token(node) != 2;
            holds(
                &tables,
                "a chain that may stop",
                grown(&[1, 1], unlikely),
                how,
            );
        }
        // The second chain's token decides for the first too.
        let together = |tree: &Tree, node: usize| node == 0 || tree.child(0, 3).is_none();
        let how = Verification::Traversal;
        holds(
            &tables,
            "chains that stop together",
            grown(&[2, 1], together),
            how,
        );
    }
}
