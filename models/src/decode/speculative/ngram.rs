//! Drafts that repeat the text (prompt lookup decoding, Saxena 2023; LLMA, Yang et al. 2023, arXiv 2304.04487).

use super::drafter::{Drafter, Round};
use super::tree::Tree;
use crate::error::Result;

/// Proposes what came after the latest earlier place where the text's last tokens stood: as many of them as stood anywhere,
/// up to a number. Costs no model, and wins where a text repeats itself or its prompt.
#[derive(Debug, Clone, Copy)]
pub struct NGramDrafter {
    longest: usize,
}

impl NGramDrafter {
    /// Looks for the last `longest` tokens, then for fewer.
    pub fn new(longest: usize) -> Self {
        NGramDrafter { longest }
    }
}

impl Drafter for NGramDrafter {
    fn draft(&mut self, round: Round<'_>) -> Result<Tree> {
        let text = round.tokens;
        let mut tree = Tree::new(text[text.len() - 1]);
        if let Some(next) = continuation(text, self.longest) {
            // A repetition shorter than the draft is repeated.
            let repeated = text[next..].iter().cycle();
            // Levels take no time here, but nothing yet says what they are worth.
            let levels = round
                .pause
                .map_or(round.depth, |pause| pause.levels.min(round.depth));
            for (node, token) in repeated.take(levels).enumerate() {
                tree.push(node, *token);
            }
        }
        Ok(tree)
    }
}

/// Where the text went on when its last `longest` tokens, or as many as ever stood before, stood last.
fn continuation(text: &[u32], longest: usize) -> Option<usize> {
    (1..=longest.min(text.len() - 1)).rev().find_map(|n| {
        let last = &text[text.len() - n..];
        let earlier = &text[..text.len() - 1];
        let at = earlier.windows(n).rposition(|window| window == last)?;
        Some(at + n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_latest_match_is_continued() {
        assert_eq!(continuation(&[1, 2, 3, 9, 2, 3, 8, 3, 7, 2, 3], 3), Some(6));
        assert_eq!(
            continuation(&[1, 2, 3, 9, 2, 3, 8, 3, 7, 1, 2, 3], 3),
            Some(3)
        );
        assert_eq!(
            continuation(&[1, 2, 3, 9, 2, 3, 8, 3, 7, 1, 2, 3], 1),
            Some(8)
        );
        assert_eq!(continuation(&[1, 2, 3], 3), None);
        assert_eq!(continuation(&[5], 3), None);
        assert_eq!(continuation(&[5, 5, 5], 3), Some(2));
    }
}
