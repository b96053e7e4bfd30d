//! Verifications that are wrong, as they are found in public code: the tests have to see it.

use super::enumerate::Scripted;
use super::tables::{Relation, Tables, chosen, drawn, verify};
use crate::decode::speculative::{Tree, Verdict, Verification, rejection};
use crate::decode::{Chance, Distribution};

/// Rejection that draws from the target itself in place of what the draft leaves of it.
pub fn resample_from_target(
    tree: &Tree,
    target: &mut dyn FnMut(usize) -> Distribution,
    chance: &mut dyn Chance,
) -> Verdict {
    let mut node = 0;
    while let Some(child) = tree.children(node).next() {
        let (p, q, token) = (target(node), tree.law(node).unwrap(), tree.token(child));
        if !chance.accept(p.probability(token) / q.probability(token)) {
            break;
        }
        node = child;
    }
    Verdict {
        accepted: (1..=node).collect(),
        bonus: chance.draw(&target(node)),
    }
}

fn law<'a>(tables: &'a Tables, tree: &'a Tree) -> impl Fn(usize) -> Distribution + 'a {
    |node| tables.target(&tables.text(tree, node)).clone()
}

fn caught(what: &str, difference: f64) {
    assert!(difference > 1e-3, "{what} differs by {difference} only");
}

#[test]
fn walking_through_all_of_chance_finds_each_of_them() {
    let tables = Tables::new(5, 2, Relation::Any, 2);
    let resample = |tables: &Tables, tree: &Tree, chance: &mut Scripted| {
        resample_from_target(tree, &mut law(tables, tree), chance)
    };
    caught(
        "drawing from p after a rejection",
        tables.round(drawn(&[1, 1]), resample).0,
    );

    // Nodes that were chosen have no law to divide by.
    for how in [Verification::Rejection, Verification::Traversal] {
        let (difference, _) = tables.round(chosen(&[1, 1], true), verify(how));
        caught("p/q of a chosen chain", difference);
    }
    let (difference, _) = tables.round(chosen(&[3, 1], true), verify(Verification::Traversal));
    caught("p/q of a chosen tree", difference);

    let first_for_free = |tables: &Tables, tree: &Tree, chance: &mut Scripted| {
        let law = law(tables, tree);
        match tree.levels() {
            1 => Verdict {
                accepted: vec![1],
                bonus: chance.draw(&law(1)),
            },
            _ => rejection(tree, &mut |node| Ok(law(node)), chance).unwrap(),
        }
    };
    let short = Tables::new(5, 1, Relation::Any, 2);
    caught(
        "a draft of one that always stays",
        short.round(drawn(&[1]), first_for_free).0,
    );

    // Siblings that were drawn without each other, but are verified as if they had been drawn with each other.
    let unaware = |tables: &Tables, chance: &mut Scripted| {
        let drafted = drawn(&[2])(tables, chance);
        let mut tree = Tree::new(0);
        // The second first.
        for child in drafted.children(0).collect::<Vec<_>>().into_iter().rev() {
            tree.push(0, drafted.token(child));
        }
        tree.set_law(0, tables.draft(&[]).clone());
        tree
    };
    caught(
        "siblings out of order",
        short.round(unaware, verify(Verification::Traversal)).0,
    );
}
