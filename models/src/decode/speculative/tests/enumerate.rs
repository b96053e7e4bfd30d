//! Walks through everything that chance can decide.

use std::collections::BTreeMap;

use crate::decode::{Chance, Distribution};

/// Chance that follows a script, and says what else it could have decided.
#[derive(Default)]
pub struct Scripted {
    /// Which of its options each decision took, and how many it had.
    script: Vec<(usize, usize)>,
    at: usize,
    /// The probability of all decisions so far.
    weight: f64,
}

impl Scripted {
    fn choose(&mut self, weights: &[f64]) -> usize {
        let options: Vec<usize> = (0..weights.len()).filter(|i| weights[*i] > 0.0).collect();
        if self.at == self.script.len() {
            self.script.push((0, options.len()));
        }
        let chosen = options[self.script[self.at].0];
        self.at += 1;
        self.weight *= weights[chosen];
        chosen
    }
}

impl Chance for Scripted {
    fn accept(&mut self, probability: f64) -> bool {
        let probability = probability.min(1.0);
        self.choose(&[probability, 1.0 - probability]) == 0
    }

    fn draw(&mut self, law: &Distribution) -> u32 {
        let weights: Vec<f64> = law.entries().iter().map(|(_, p)| *p).collect();
        law.entries()[self.choose(&weights)].0
    }
}

/// The probability of everything that `run` can come to.
pub fn outcomes<T: Ord>(mut run: impl FnMut(&mut Scripted) -> T) -> BTreeMap<T, f64> {
    let mut found = BTreeMap::new();
    let mut chance = Scripted::default();
    loop {
        (chance.at, chance.weight) = (0, 1.0);
        let outcome = run(&mut chance);
        *found.entry(outcome).or_insert(0.0) += chance.weight;
        chance.script.truncate(chance.at);
        while chance
            .script
            .pop_if(|(chosen, options)| *chosen + 1 == *options)
            .is_some()
        {}
        match chance.script.last_mut() {
            Some((chosen, _)) => *chosen += 1,
            None => return found,
        }
    }
}

#[test]
fn every_outcome_is_met_once() {
    let law = Distribution::of_weights(vec![(0, 1.0), (1, 3.0)]).unwrap();
    let found = outcomes(|chance| match chance.accept(0.5) {
        true => vec![chance.draw(&law), chance.draw(&law)],
        false => vec![chance.draw(&law)],
    });
    assert_eq!(found.len(), 6);
    assert_eq!(found[&vec![1]], 0.375);
    assert_eq!(found[&vec![1, 0]], 0.09375);
    assert_eq!(found.values().sum::<f64>(), 1.0);
}
