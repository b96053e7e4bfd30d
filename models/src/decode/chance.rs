//! Random numbers that depend on where they are used, not on what was drawn before.
//!
//! A token that is drawn at position `t` always takes the same number of the seed's stream `t`. So text that is drawn with
//! the same seed is the same text, whether its tokens come one at a time or several in a round.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Distribution;

/// Decides what is left to chance.
pub trait Chance {
    /// True with this probability; always from 1 on.
    fn accept(&mut self, probability: f64) -> bool;

    /// A token of the distribution.
    fn draw(&mut self, law: &Distribution) -> u32;
}

/// What numbers are for; those for different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The token at a position.
    Token,
    /// The drafted tokens of the round that begins at a position.
    Draft,
    /// What is kept of them.
    Verification,
}

/// The numbers of a seed for one purpose at one position: a ChaCha8 stream of their own.
#[derive(Debug, Clone)]
pub struct Keyed(ChaCha8Rng);

impl Keyed {
    pub fn new(seed: u64, purpose: Purpose, position: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream((position as u64) << 2 | purpose as u64);
        Keyed(rng)
    }

    /// The next number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.0.random()
    }
}

impl Chance for Keyed {
    fn accept(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    fn draw(&mut self, law: &Distribution) -> u32 {
        law.draw(self.uniform())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_seed_purpose_and_position() {
        let first = |seed, purpose, position| Keyed::new(seed, purpose, position).uniform();
        let mut seen = Vec::new();
        for seed in [0, 1] {
            for purpose in [Purpose::Token, Purpose::Draft, Purpose::Verification] {
                for position in [0, 1, 1000] {
                    let number = first(seed, purpose, position);
                    assert_eq!(number, first(seed, purpose, position));
                    assert!(!seen.contains(&number));
                    seen.push(number);
                }
            }
        }
    }
}
