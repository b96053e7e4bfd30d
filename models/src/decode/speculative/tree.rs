//! Drafted tokens that share prefixes.

use std::ops::Range;

use crate::decode::{Distribution, TreeSlice};

/// Tokens that may follow a text: node 0 is the text's last token, and every other node continues its parent.
///
/// Nodes lie level by level, and are cached in that order; in the order of their draws among the children of a node. A chain
/// is a tree of one node a level.
#[derive(Debug, Clone)]
pub struct Tree {
    tokens: Vec<u32>,
    parents: Vec<usize>,
    depths: Vec<usize>,
    laws: Vec<Option<Distribution>>,
}

impl Tree {
    /// Nothing drafted behind the text's last token.
    pub fn new(root: u32) -> Self {
        Tree {
            tokens: vec![root],
            parents: vec![0],
            depths: vec![0],
            laws: vec![None],
        }
    }

    /// Adds a node below another; its index.
    ///
    /// # Panics
    /// Where the parent is not there, or above the level before the last.
    pub fn push(&mut self, parent: usize, token: u32) -> usize {
        let depth = self.depths[parent] + 1;
        assert!(depth >= self.levels(), "nodes come level by level");
        self.tokens.push(token);
        self.parents.push(parent);
        self.depths.push(depth);
        self.laws.push(None);
        self.nodes() - 1
    }

    /// Says what a node's children are drawn from, one after another and without those before. Where nothing is said, each
    /// child is the only one that could have been drawn.
    pub fn set_law(&mut self, node: usize, law: Distribution) {
        self.laws[node] = Some(law);
    }

    /// What a node's first child was drawn from, where that was said.
    pub fn law(&self, node: usize) -> Option<&Distribution> {
        self.laws[node].as_ref()
    }

    /// Nodes, the root included.
    pub fn nodes(&self) -> usize {
        self.tokens.len()
    }

    /// Levels below the root.
    pub fn levels(&self) -> usize {
        self.depths[self.nodes() - 1]
    }

    /// Tokens of all nodes.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn token(&self, node: usize) -> u32 {
        self.tokens[node]
    }

    pub fn parent(&self, node: usize) -> usize {
        self.parents[node]
    }

    /// Children of a node, in the order they were drawn.
    pub fn children(&self, node: usize) -> impl Iterator<Item = usize> {
        (node + 1..self.nodes()).filter(move |child| self.parents[*child] == node)
    }

    /// The child of a node with this token.
    pub fn child(&self, node: usize, token: u32) -> Option<usize> {
        self.children(node)
            .find(|child| self.tokens[*child] == token)
    }

    /// Whether every node continues the one before.
    pub fn is_chain(&self) -> bool {
        self.levels() + 1 == self.nodes()
    }

    /// Where these nodes stand and what they see, when the root is at position `start` and all nodes up to theirs are cached.
    /// None where they are simply the next tokens.
    pub fn places(&self, nodes: Range<usize>, start: usize) -> Option<Places> {
        if self.depths[nodes.end - 1] + 1 == nodes.end {
            return None;
        }
        let span = nodes.end;
        let mut mask = vec![false; nodes.len() * span];
        for (row, node) in mask.chunks_exact_mut(span).zip(nodes.clone()) {
            let mut seen = node;
            row[seen] = true;
            while seen > 0 {
                seen = self.parents[seen];
                row[seen] = true;
            }
        }
        let positions = self.depths[nodes].iter().map(|depth| start + depth);
        Some(Places {
            positions: positions.collect(),
            mask,
            span,
        })
    }
}

/// An owned [`TreeSlice`].
#[derive(Debug)]
pub struct Places {
    positions: Vec<usize>,
    mask: Vec<bool>,
    span: usize,
}

impl Places {
    pub fn slice(&self) -> TreeSlice<'_> {
        TreeSlice {
            positions: &self.positions,
            mask: &self.mask,
            span: self.span,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_see_themselves_and_their_ancestors() {
        let mut tree = Tree::new(9);
        let (a, b) = (tree.push(0, 1), tree.push(0, 2));
        let c = tree.push(b, 3);
        let d = tree.push(a, 3);
        assert_eq!(
            (tree.nodes(), tree.levels(), tree.is_chain()),
            (5, 2, false)
        );
        assert_eq!(tree.children(0).collect::<Vec<_>>(), [a, b]);
        assert_eq!(
            (tree.child(b, 3), tree.child(a, 3), tree.child(0, 3)),
            (Some(c), Some(d), None)
        );
        let places = tree.places(0..5, 10).unwrap();
        let slice = places.slice();
        assert_eq!(
            (slice.positions, slice.span),
            (&[10, 11, 11, 12, 12][..], 5)
        );
        let rows: Vec<Vec<usize>> = slice
            .mask
            .chunks(5)
            .map(|row| (0..5).filter(|i| row[*i]).collect())
            .collect();
        assert_eq!(
            rows,
            [
                vec![0],
                vec![0, 1],
                vec![0, 2],
                vec![0, 2, 3],
                vec![0, 1, 4]
            ]
        );
        let level = tree.places(3..5, 10).unwrap();
        assert_eq!(level.slice().mask, &slice.mask[15..]);
        assert!(
            tree.places(0..2, 10).is_none(),
            "the first child is simply the next token"
        );
    }
}
