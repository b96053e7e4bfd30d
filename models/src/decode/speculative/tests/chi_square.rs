//! The law of drawn text on a tiny model, by Pearson's χ² test.
//!
//! The seeds are fixed, so the test does not fail by chance; and it fails for a verification that is wrong.

use std::collections::BTreeMap;

use super::models::{PROMPT, draft, target};
use super::mutants::resample_from_target;
use crate::decode::speculative::{
    Depth, ModelDrafter, SpeculationSettings, Tree, Verdict, Verification, rejection, speculate,
    traversal,
};
use crate::decode::{
    Chance, Distribution, Keyed, LanguageModel, Purpose, Sampler, SamplingSettings, rows_of,
};

const SAMPLING: SamplingSettings = SamplingSettings {
    temperature: 0.5,
    top_k: Some(4),
    top_p: 1.0,
    seed: 0,
};
/// What the law of a text passes, and what a wrong one has to exceed: of `χ²` with `f` degrees of freedom,
/// `(χ² − f) / √(2 f)` is about normal.
const LIMIT: f64 = 4.0;

/// `(χ² − f) / √(2 f)` of counts against probabilities; what is expected fewer than five times is pooled.
fn deviation(counts: &BTreeMap<Vec<u32>, usize>, law: &BTreeMap<Vec<u32>, f64>) -> f64 {
    assert!(
        counts.keys().all(|text| law.contains_key(text)),
        "a text that can not be"
    );
    let n = counts.values().sum::<usize>() as f64;
    let (mut sum, mut bins, mut pool) = (0.0, 0, (0.0, 0.0));
    for (text, p) in law {
        let (seen, expected) = (*counts.get(text).unwrap_or(&0) as f64, n * p);
        if expected < 5.0 {
            pool = (pool.0 + seen, pool.1 + expected);
            continue;
        }
        sum += (seen - expected).powi(2) / expected;
        bins += 1;
    }
    if pool.1 > 0.0 {
        sum += (pool.0 - pool.1).powi(2) / pool.1;
        bins += 1;
    }
    let freedom = f64::from(bins - 1);
    (sum - freedom) / (2.0 * freedom).sqrt()
}

/// Laws behind the prompt and a text, each asked of the model once.
struct Laws<M> {
    model: M,
    sampling: SamplingSettings,
    known: BTreeMap<Vec<u32>, Distribution>,
}

impl<M: LanguageModel> Laws<M> {
    fn of(&mut self, text: &[u32]) -> Distribution {
        if let Some(law) = self.known.get(text) {
            return law.clone();
        }
        let ids = [&PROMPT[..], text].concat();
        let mut cache = self.model.new_cache(ids.len());
        let hidden = self.model.hidden(&ids, None, &mut cache).unwrap();
        let rows = rows_of(self.model.logits(hidden.narrow(0, ids.len() - 1, 1))).unwrap();
        let law = Sampler::new(self.sampling)
            .unwrap()
            .distribution(&rows[0])
            .unwrap();
        self.known.insert(text.to_vec(), law.clone());
        law
    }

    /// The law of the next two tokens.
    fn pairs(&mut self) -> BTreeMap<Vec<u32>, f64> {
        let mut law = BTreeMap::new();
        for (first, p) in self.of(&[]).entries() {
            for (second, q) in self.of(&[*first]).entries() {
                law.insert(vec![*first, *second], p * q);
            }
        }
        law
    }
}

#[test]
fn two_tokens_of_a_round_have_the_targets_law_and_a_wrong_verification_is_seen() {
    const ROUNDS: usize = 50_000;
    let mut p = Laws {
        model: target(),
        sampling: SAMPLING,
        known: BTreeMap::new(),
    };
    let mut q = Laws {
        model: draft(),
        // Flatter, so that it differs by more than its few bits.
        sampling: SamplingSettings {
            temperature: 1.0,
            top_k: Some(6),
            ..SAMPLING
        },
        known: BTreeMap::new(),
    };
    let law = p.pairs();
    assert!(law.len() > 8, "bins");
    type Verify = fn(&Tree, &mut dyn FnMut(usize) -> Distribution, &mut dyn Chance) -> Verdict;
    let methods: [(&str, Verify, bool); 4] = [
        (
            "plain",
            |_, law, chance| Verdict {
                accepted: vec![],
                bonus: chance.draw(&law(0)),
            },
            true,
        ),
        (
            "rejection",
            |t, law, chance| rejection(t, &mut |n| Ok(law(n)), chance).unwrap(),
            true,
        ),
        (
            "traversal",
            |t, law, chance| traversal(t, &mut |n| Ok(law(n)), chance).unwrap(),
            true,
        ),
        ("resampling from p", resample_from_target, false),
    ];
    for (name, verify, right) in methods {
        for seed in [1, 2] {
            let mut counts = BTreeMap::new();
            for round in 0..ROUNDS {
                let mut chance = Keyed::new(seed, Purpose::Draft, round);
                let mut tree = Tree::new(0);
                tree.set_law(0, q.of(&[]));
                let token = chance.draw(&q.of(&[]));
                tree.push(0, token);
                let mut chance = Keyed::new(seed, Purpose::Verification, round);
                let mut law = |node: usize| p.of(&[token][..node]);
                let verdict = verify(&tree, &mut law, &mut chance);
                let mut text: Vec<u32> = verdict.accepted.iter().map(|_| token).collect();
                text.push(verdict.bonus);
                if text.len() < 2 {
                    text.push(chance.draw(&p.of(&text)));
                }
                *counts.entry(text).or_insert(0) += 1;
            }
            let deviation = deviation(&counts, &law);
            match right {
                true => assert!(deviation < LIMIT, "{name}: {deviation}"),
                false => assert!(deviation > 5.0 * LIMIT, "{name} passes: {deviation}"),
            }
        }
    }
}

#[test]
fn whole_generations_have_the_targets_law() {
    const RUNS: u64 = 1000;
    let mut p = Laws {
        model: target(),
        sampling: SAMPLING,
        known: BTreeMap::new(),
    };
    // Behind the first token, which no draft has a part in.
    let pairs = p.pairs();
    for (verification, width) in [
        (Verification::Rejection, 1),
        (Verification::Traversal, 1),
        (Verification::Traversal, 2),
    ] {
        let mut model = target();
        let mut drafter = ModelDrafter::shared(Box::new(draft()), width, None);
        let mut counts = BTreeMap::new();
        for seed in 0..RUNS {
            let settings = SpeculationSettings {
                sampling: SamplingSettings { seed, ..SAMPLING },
                depth: Depth::Fixed(2),
                verification,
                prefill_chunk: None,
            };
            let emit = &mut |_| Ok(());
            let done = speculate(&mut model, &mut drafter, &PROMPT, 3, &[], &settings, emit);
            let ids = done.unwrap().0.ids;
            *counts.entry(ids[..2].to_vec()).or_insert(0) += 1;
        }
        let deviation = deviation(&counts, &pairs);
        assert!(deviation < LIMIT, "{verification} of {width}: {deviation}");
    }
}
