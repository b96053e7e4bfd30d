//! Attention with a residual window: against plain operations, and the same however tokens are fed.

use super::*;

fn packed() -> impl Strategy<Value = CacheFormat> {
    use CacheFormat::{Q2, Q3, Q4, Q8};
    prop::sample::select(vec![Q8, Q4, Q3, Q2])
}

fn windows() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1usize, 7, 60, 128, 256, 300, 5000])
}

impl Layer {
    fn windowed(&self, window: usize) -> LatentCache {
        LatentCache::new(&self.parts.ranks(), self.format, 0).with_residual_window(window)
    }

    /// Attention of the queries `[batch, tokens, ..]` of all latents, in chunks of these sizes.
    fn fed(
        &self,
        cache: &mut LatentCache,
        latents: &Tensor<3>,
        q: &Tensor<4>,
        sizes: impl Iterator<Item = usize>,
        form: Option<ValueForm>,
    ) -> Tensor<4> {
        let (mut parts, mut first) = (Vec::new(), cache.length());
        for size in sizes {
            let tokens = size.min(latents.dims()[1] - first);
            if tokens == 0 {
                break;
            }
            cache.append(latents.clone().narrow(1, first, tokens));
            let q = q.clone().narrow(1, first, tokens);
            parts.push(self.attend(q, cache, None, form));
            first += tokens;
        }
        Tensor::cat(parts, 1)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn with_a_window_it_is_plain_attention_over_both_kinds_of_latents(
        shape in shapes(), format in packed(), window in windows(), batch in 1usize..3, few in 1usize..40, many: bool,
        past in prop::sample::select(vec![0usize, 1, 63, 255, 300, 500, 560, 900]), masked: bool,
    ) {
        let layer = shape.layer(format);
        let tokens = if many { few * 8 } else { few };
        let latents = layer.latents(batch, past + tokens);
        let mut cache = layer.windowed(window);
        if past > 0 {
            cache.append(latents.clone().narrow(1, 0, past));
        }
        cache.append(latents.narrow(1, past, tokens));
        let q = layer.queries(batch, tokens);
        let mask = masked.then(|| tree(tokens));
        let expected = layer.plain(q.clone(), &cache, mask.clone());
        let most = if format == CacheFormat::Q8 { 5e-4 } else { 5e-5 };
        for form in [None, Some(FORMS[0]), Some(FORMS[1])] {
            let ours = layer.attend(q.clone(), &cache, mask.clone(), form);
            let apart = difference(ours, expected.clone());
            prop_assert!(apart <= most, "{form:?}: {apart:e}");
        }
    }

    #[test]
    fn what_a_query_gets_depends_on_its_position_alone(
        shape in shapes(), format in packed(), window in windows(), batch in 1usize..3,
        sizes in prop::collection::vec(1usize..33, 4), at in prop::sample::select(vec![0usize, 240, 500, 700]),
    ) {
        let layer = shape.layer(format);
        let total = at + 60;
        let (latents, q) = (layer.latents(batch, total), layer.queries(batch, total));
        // A prompt at once, and then few at a time, to the bit as one at a time.
        let start = |cache: &mut LatentCache| {
            let prompt = at.max(1);
            layer.fed(cache, &latents, &q, std::iter::once(prompt), Some(ValueForm::Summed))
        };
        let (mut alone, mut some) = (layer.windowed(window), layer.windowed(window));
        let first = start(&mut alone);
        prop_assert_eq!(values(start(&mut some)), values(first.clone()));
        let rest = layer.fed(&mut alone, &latents, &q, std::iter::repeat(1), None);
        let same = layer.fed(&mut some, &latents, &q, sizes.iter().copied().cycle(), None);
        prop_assert_eq!(values(same), values(rest.clone()));
        // At once, and in large parts.
        let expected = Tensor::cat(vec![first, rest.clone()], 1);
        for size in [total, 200] {
            for form in FORMS {
                let mut cache = layer.windowed(window);
                let ours = layer.fed(&mut cache, &latents, &q, std::iter::repeat(size), Some(form));
                let apart = difference(ours, expected.clone());
                prop_assert!(apart <= 5e-5, "{form:?} by {size}: {apart:e}");
            }
        }
        // Tokens taken back to where they were added leave nothing.
        let mut taken = layer.windowed(window);
        start(&mut taken);
        for size in sizes {
            let length = taken.length();
            taken.append(layer.latents(batch, 30) * f32::NAN);
            taken.truncate(length + 1);
            taken.truncate(length);
            if length + size <= total {
                let ours = layer.fed(&mut taken, &latents, &q, std::iter::once(size), None);
                prop_assert_eq!(values(ours), values(expected.clone().narrow(1, length, size)));
            }
        }
    }

    #[test]
    fn a_window_over_all_tokens_is_a_cache_of_halves(
        shape in shapes(), format in packed(), tokens in 1usize..70, past in 0usize..600, summed: bool,
    ) {
        let mut layer = shape.layer(format);
        let latents = layer.latents(1, past + tokens);
        let q = layer.queries(1, tokens);
        let form = Some(FORMS[usize::from(summed)]);
        let mut cache = layer.windowed(past + tokens);
        cache.append(latents.clone());
        let ours = layer.attend(q.clone(), &cache, None, form);
        layer.format = CacheFormat::F16;
        let halves = layer.attend(q, &layer.cache(&latents), None, form);
        prop_assert_eq!(values(ours), values(halves));
    }
}

/// Each query against plain attention over the numbers that the definition says it reads.
#[test]
fn runs_that_end_before_the_window_are_read_packed() {
    let total = 1100;
    for (window, format) in [(100, CacheFormat::Q2), (256, CacheFormat::Q4)] {
        let mut layer = separate(16, 12).layer(format);
        let (latents, q) = (layer.latents(1, total), layer.queries(1, total));
        let mut cache = layer.windowed(window);
        let ours = layer.fed(&mut cache, &latents, &q, std::iter::repeat(1), None);
        let stands_for = |format| {
            let mut cache = LatentCache::new(&layer.parts.ranks(), format, 0);
            cache.append(latents.clone());
            cache.values().expect("tokens")
        };
        let (codes, halves) = (stands_for(format), stands_for(CacheFormat::F16));
        layer.format = CacheFormat::F32;
        for position in [0, 99, 255, 354, 355, 356, 510, 511, 512, 611, 1099] {
            let seen = position + 1;
            let runs = (1..).take_while(|run| run * 256 + window <= seen).count();
            let late = halves.clone().narrow(1, 256 * runs, seen - 256 * runs);
            let read = match runs {
                0 => late,
                _ => Tensor::cat(vec![codes.clone().narrow(1, 0, 256 * runs), late], 1),
            };
            let expected = layer.plain(q.clone().narrow(1, position, 1), &layer.cache(&read), None);
            let apart = difference(ours.clone().narrow(1, position, 1), expected);
            assert!(apart < 5e-5, "{window} at {position}: {apart:e}");
        }
    }
}

/// The bytes that are promised, at every length.
#[test]
fn a_window_takes_what_it_needs() {
    let layer = separate(16, 12).layer(CacheFormat::Q3);
    let ranks = layer.parts.ranks();
    let half = CacheFormat::F16.latent_bytes(&ranks);
    for window in [1, 100, 256] {
        let plain = |tokens: usize| {
            let mut cache = LatentCache::new(&ranks, CacheFormat::Q3, 2000);
            cache.append(layer.latents(1, tokens));
            cache.bytes()
        };
        let mut cache =
            LatentCache::new(&ranks, CacheFormat::Q3, 2000).with_residual_window(window);
        cache.append(layer.latents(1, 1200));
        assert_eq!(cache.bytes() - plain(1200), half * 1200);
        let promised = CacheFormat::residual_bytes(window, &ranks);
        assert!(promised < half * (window as u64 + 271));
        for _ in 0..600 {
            cache.append(layer.latents(1, 1));
            assert_eq!(cache.bytes() - plain(1200), promised);
        }
        // From nothing it grows to that, and no further.
        let mut cache = LatentCache::new(&ranks, CacheFormat::Q3, 0).with_residual_window(window);
        for length in 1..900 {
            let before = cache.bytes();
            cache.append(layer.latents(1, 1));
            let (_, recent) = cache.recent().expect("a window");
            assert!(recent.panels.len() as u64 <= promised && cache.bytes() >= before);
            assert!(recent.first + recent.panels.len() / half as usize >= length);
        }
    }
    assert_eq!(CacheFormat::residual_bytes(0, &ranks), 0);
}

/// Behind a longer way back the window begins with what the codes stand for, and goes on in full.
#[test]
fn what_was_forgotten_of_a_window_is_taken_from_the_codes() {
    let layer = separate(16, 12).layer(CacheFormat::Q4);
    let (latents, q) = (layer.latents(2, 1000), layer.queries(2, 1000));
    let mut cache = layer.windowed(100);
    let _ = layer.fed(&mut cache, &latents, &q, std::iter::repeat(1), None);
    cache.truncate(400);
    let ours = layer.fed(&mut cache, &latents, &q, std::iter::repeat(1), None);
    let stands_for = |tokens: usize| {
        let mut cache = LatentCache::new(&layer.parts.ranks(), CacheFormat::Q4, 0);
        cache.append(latents.clone().narrow(1, 0, tokens));
        cache.values().expect("tokens")
    };
    let mut fresh = layer.windowed(100);
    let rest = latents.clone().narrow(1, 400, 600);
    // Codes of what codes stand for are, but for rounding, those codes.
    let mixed = Tensor::cat(vec![stands_for(400), rest], 1);
    let _ = layer.fed(&mut fresh, &mixed, &q, std::iter::once(400), None);
    let expected = layer.fed(&mut fresh, &mixed, &q, std::iter::repeat(1), None);
    let apart = difference(ours.clone(), expected);
    assert!(apart < 2e-2, "{apart:e}");
    // Where the forgotten tokens are packed again, all is as if nothing had been forgotten.
    let mut straight = layer.windowed(100);
    let whole = layer.fed(&mut straight, &latents, &q, std::iter::repeat(1), None);
    let (ours, whole) = (ours.narrow(1, 300, 300), whole.narrow(1, 700, 300));
    assert_eq!(values(ours), values(whole));
}
