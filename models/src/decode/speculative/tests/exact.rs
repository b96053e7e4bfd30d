//! Token for token the text of plain decoding.

use burn::tensor::{Device, TensorData};

use super::models::{Contrary, PROMPT, Watched, draft, load, target};
use crate::cache::{KvCache, LayerCache};
use crate::decode::speculative::{
    Depth, Drafter, ModelDrafter, NGramDrafter, Speculation, SpeculationSettings, Verification,
    speculate,
};
use crate::decode::{Generation, LanguageModel, SamplingSettings, generate};
use crate::{Decoder, Precision};

fn settings(sampling: SamplingSettings, depth: Depth) -> SpeculationSettings {
    SpeculationSettings {
        sampling,
        depth,
        verification: Verification::Match,
        prefill_chunk: None,
    }
}

fn plain(model: &mut dyn LanguageModel, prompt: &[u32], n: usize, eos: &[u32]) -> Generation {
    generate(model, prompt, n, eos, SamplingSettings::GREEDY, &mut |_| {
        Ok(())
    })
    .unwrap()
}

fn run(
    model: &mut dyn LanguageModel,
    drafter: &mut dyn Drafter,
    prompt: &[u32],
    n: usize,
    eos: &[u32],
    settings: &SpeculationSettings,
) -> (Generation, Speculation) {
    let mut given = Vec::new();
    let emit = &mut |id| {
        given.push(id);
        Ok(())
    };
    let (generation, found) = speculate(model, drafter, prompt, n, eos, settings, emit).unwrap();
    assert_eq!(given, generation.ids);
    assert_eq!(found.tokens, generation.ids.len().saturating_sub(1));
    (generation, found)
}

fn same() -> Decoder {
    target()
}

#[test]
fn greedy_text_is_the_same_with_any_draft_of_any_shape() {
    let mut model = target();
    let expected = plain(&mut model, &PROMPT, 60, &[]);
    let mut drafted = Vec::new();
    for width in [1, 2, 6] {
        for depth in [
            Depth::Fixed(1),
            Depth::Fixed(4),
            Depth::Fixed(16),
            Depth::Auto,
        ] {
            for own in [false, true] {
                let make = match own {
                    true => ModelDrafter::own,
                    false => ModelDrafter::shared,
                };
                let drafts: [(&str, Box<dyn LanguageModel>); 3] = [
                    ("low-bit", Box::new(draft())),
                    ("identical", Box::new(same())),
                    ("contrary", Box::new(Contrary(draft()))),
                ];
                for (name, draft) in drafts {
                    let what = format!("{name}, {width} wide, {depth}, own {own}");
                    let mut drafter = make(draft, width, None);
                    let settings = settings(SamplingSettings::GREEDY, depth);
                    let (got, found) = run(&mut model, &mut drafter, &PROMPT, 60, &[], &settings);
                    assert_eq!(got.ids, expected.ids, "{what}");
                    let Depth::Fixed(depth) = depth else {
                        continue;
                    };
                    if name == "identical" && width == 1 {
                        // All drafted tokens stay, but for the last round, which has no room for more.
                        assert_eq!(found.rounds, 59usize.div_ceil(depth + 1), "{what}");
                        assert!(
                            found.acceptance.iter().all(|at| at.accepted == at.tried),
                            "{what}"
                        );
                    }
                    if name == "contrary" && width == 1 {
                        assert_eq!((found.rounds, found.drafted_tokens), (59, 0), "{what}");
                    }
                    if name == "low-bit" {
                        drafted.push(found.drafted_tokens);
                    }
                }
            }
        }
    }
    // The low-bit copy is neither always right nor always wrong: both branches of a round were met.
    assert!(
        drafted.iter().any(|n| *n > 10) && drafted.iter().all(|n| *n < 59),
        "{drafted:?}"
    );
}

#[test]
fn a_wider_draft_keeps_more_of_a_low_bit_copy() {
    let mut rounds = Vec::new();
    for width in [1, 6] {
        let mut drafter = ModelDrafter::shared(Box::new(draft()), width, None);
        let settings = settings(SamplingSettings::GREEDY, Depth::Fixed(4));
        let mut total = 0;
        for first in 2..10 {
            let found = run(&mut target(), &mut drafter, &[1, first], 60, &[], &settings).1;
            total += found.rounds;
            assert!(found.levels <= 4 * found.rounds);
        }
        rounds.push(total);
    }
    assert!(rounds[1] < rounds[0], "{rounds:?}");
}

#[test]
fn drawn_text_is_the_same_with_the_same_seed() {
    let mut model = target();
    for seed in 0..6 {
        let sampling = SamplingSettings {
            temperature: [0.4, 0.8, 1.5][seed as usize % 3],
            top_k: (seed % 2 == 0).then_some(20),
            top_p: if seed > 3 { 0.9 } else { 1.0 },
            seed,
        };
        let expected = generate(&mut model, &PROMPT, 50, &[], sampling, &mut |_| Ok(())).unwrap();
        for width in [1, 3] {
            for depth in [Depth::Fixed(1), Depth::Fixed(5), Depth::Auto] {
                let mut drafter = ModelDrafter::shared(Box::new(draft()), width, None);
                let settings = settings(sampling, depth);
                let got = run(&mut model, &mut drafter, &PROMPT, 50, &[], &settings).0;
                assert_eq!(got.ids, expected.ids, "seed {seed}, {width} wide, {depth}");
            }
        }
    }
}

#[test]
fn text_ends_inside_a_draft_where_it_ends_plainly() {
    let mut model = target();
    let text = plain(&mut model, &PROMPT, 40, &[]).ids;
    for end in [0, 1, 2, 5, 11, 20] {
        let eos = [text[end]];
        let expected = plain(&mut model, &PROMPT, 40, &eos);
        assert!(expected.ended);
        for (width, depth) in [(1, 16), (2, 4), (6, 16)] {
            let mut drafter = ModelDrafter::shared(Box::new(same()), width, None);
            let settings = settings(SamplingSettings::GREEDY, Depth::Fixed(depth));
            let (got, found) = run(&mut model, &mut drafter, &PROMPT, 40, &eos, &settings);
            assert_eq!((&got.ids, got.ended), (&expected.ids, true));
            assert!(found.drafted_tokens <= found.tokens);
        }
    }
}

#[test]
fn lengths_at_their_limits() {
    let mut model = target();
    let most = model.max_context();
    let long: Vec<u32> = (0..most as u32 - 9).map(|i| i * 7 % 48).collect();
    for (prompt, n) in [
        (&long[..], 9),
        (&PROMPT[..], 1),
        (&PROMPT[..], 0),
        (&PROMPT[..], 2),
        (&[1][..], 20),
    ] {
        let expected = plain(&mut model, prompt, n, &[]);
        for (width, depth) in [
            (1, Depth::Fixed(16)),
            (6, Depth::Fixed(16)),
            (6, Depth::Auto),
        ] {
            for own in [false, true] {
                let make = match own {
                    true => ModelDrafter::own,
                    false => ModelDrafter::shared,
                };
                let mut drafter = make(Box::new(same()), width, None);
                let mut settings = settings(SamplingSettings::GREEDY, depth);
                settings.prefill_chunk = Some(5);
                let got = run(&mut model, &mut drafter, prompt, n, &[], &settings).0;
                assert_eq!(got.ids, expected.ids, "{} + {n}, {width}", prompt.len());
            }
        }
    }
    let mut drafter = NGramDrafter::new(3);
    let settings = settings(SamplingSettings::GREEDY, Depth::Auto);
    for (prompt, n) in [(&[][..], 3), (&long[..], 10)] {
        let emit = &mut |_| Ok(());
        assert!(speculate(&mut model, &mut drafter, prompt, n, &[], &settings, emit).is_err());
    }
}

#[test]
fn the_text_itself_drafts() {
    let mut model = target();
    let repeated: Vec<u32> = PROMPT.iter().copied().cycle().take(40).collect();
    let expected = plain(&mut model, &repeated, 100, &[]);
    for depth in [Depth::Fixed(1), Depth::Fixed(8), Depth::Auto] {
        let mut drafter = NGramDrafter::new(3);
        for verification in Verification::ALL {
            let settings = SpeculationSettings {
                verification,
                ..settings(SamplingSettings::GREEDY, depth)
            };
            let (got, found) = run(&mut model, &mut drafter, &repeated, 100, &[], &settings);
            assert_eq!(got.ids, expected.ids, "{verification}, {depth}");
            if depth != Depth::Auto {
                assert!(found.drafted_tokens > 10, "{found:?}");
            }
        }
    }
}

#[test]
fn greedy_drafts_that_are_drawn_or_of_another_model_change_nothing() {
    let mut model = target();
    let expected = plain(&mut model, &PROMPT, 60, &[]);
    for (verification, width) in [
        (Verification::Rejection, 1),
        (Verification::Traversal, 1),
        (Verification::Traversal, 3),
        (Verification::Match, 3),
    ] {
        let settings = SpeculationSettings {
            verification,
            ..settings(SamplingSettings::GREEDY, Depth::Fixed(4))
        };
        // Another family with the same vocabulary; and draws that leave the most likely token.
        let other = load("mistral", Precision::F32);
        for mut drafter in [
            ModelDrafter::shared(Box::new(draft()), width, Some(1.0)),
            ModelDrafter::own(Box::new(other), width, Some(1.0)),
        ] {
            // A drafter can serve one text after another.
            for _ in 0..2 {
                let got = run(&mut model, &mut drafter, &PROMPT, 60, &[], &settings).0;
                assert_eq!(got.ids, expected.ids, "{verification}, {width} wide");
            }
        }
    }
}

/// Keys and values of the first `length` tokens, layer by layer.
fn held(cache: &KvCache, length: usize) -> Vec<[TensorData; 2]> {
    let mut cache = cache.clone();
    let mut held = Vec::new();
    for layer in cache.layers_mut() {
        let LayerCache::Dense(layer) = layer else {
            panic!("keys and values in full");
        };
        let token = burn::tensor::Tensor::zeros([1, 2, 1, 8], &Device::flex());
        let (k, v, _) = layer.append(token.clone(), token);
        held.push([k, v].map(|kept| kept.narrow(2, 0, length).into_data()));
    }
    held
}

#[test]
fn the_cache_holds_the_bits_of_plain_decoding() {
    let mut watched = Watched {
        model: target(),
        before: None,
        passes: 0,
    };
    plain(&mut watched, &PROMPT, 41, &[]);
    let expected = watched.before.take().unwrap();
    for (width, depth) in [(1, 4), (2, 4), (6, 16)] {
        for draft in [draft(), same()] {
            let mut drafter = ModelDrafter::shared(Box::new(draft), width, None);
            let settings = settings(SamplingSettings::GREEDY, Depth::Fixed(depth));
            watched.passes = 0;
            let found = run(&mut watched, &mut drafter, &PROMPT, 41, &[], &settings).1;
            assert_eq!(watched.passes, 1 + found.rounds);
            // As it was before the last round: what earlier ones left.
            let cache = watched.before.take().unwrap();
            let length = cache.length();
            assert!(length > PROMPT.len());
            assert_eq!(
                held(&cache, length),
                held(&expected, length),
                "{width} wide, {depth}"
            );
        }
    }
}

#[test]
fn what_can_not_be_is_refused() {
    let mut model = target();
    let mut drafter = ModelDrafter::shared(Box::new(draft()), 2, None);
    let settings = SpeculationSettings {
        verification: Verification::Rejection,
        ..settings(SamplingSettings::GREEDY, Depth::Fixed(4))
    };
    let emit = &mut |_| Ok(());
    let refused = speculate(&mut model, &mut drafter, &PROMPT, 4, &[], &settings, emit);
    assert!(refused.unwrap_err().to_string().contains("2 wide"));
}
