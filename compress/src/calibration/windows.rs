//! Which tokens to calibrate on.

use cinder_models::checkpoint::sha256;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::documents;
use crate::error::{Error, Result};

pub use cinder_models::checkpoint::Piece;

/// Where calibration windows come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Draw {
    /// Each window from other documents, drawn by the seed: the most different texts that as many tokens can hold.
    #[default]
    Documents,
    /// Non-overlapping windows of the joined text, drawn by the seed.
    Text,
    /// Non-overlapping windows of the joined text, at even distances: the first, the last, and those between. The seed
    /// has no say.
    Even,
}

impl Draw {
    /// Name used in recipes and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Draw::Documents => "documents",
            Draw::Text => "text",
            Draw::Even => "even",
        }
    }
}

/// A tokenised corpus.
#[derive(Debug, Clone)]
pub enum Tokens {
    /// Token ids of each document by itself.
    Documents(Vec<Vec<u32>>),
    /// Token ids of the whole text; it counts as one document.
    Joined(Vec<u32>),
}

/// The windows statistics are collected on.
#[derive(Debug, Clone)]
pub struct Windows {
    /// `[windows][window]` token ids, in the order of the text.
    pub ids: Vec<Vec<u32>>,
    /// What each window is made of: its pieces, in its order, with separators in between.
    pub sources: Vec<Vec<Piece>>,
    /// SHA-256 of the chosen ids, little-endian u32.
    pub sha256: String,
}

/// One window: its ids and where they are from.
pub(super) type Drawn = (Vec<u32>, Vec<Piece>);

/// Takes `count` windows of `window` tokens each, in the way of `draw`. No token of the corpus is in two of them.
///
/// [`Draw::Documents`] goes through the documents in an order drawn by `seed`. One that is at least a window long gives
/// one of its non-overlapping windows, drawn by the seed; shorter ones are packed into a window, each followed by
/// `separator`, and the last is cut. Only after every document has served do they serve again, with other parts.
/// The other ways take windows of the joined text: documents one after the other with `separator` in between.
///
/// # Errors
/// [`Error::TooFewTokens`] when the corpus does not have that many windows.
pub fn draw_windows(
    tokens: &Tokens,
    separator: &[u32],
    count: usize,
    window: usize,
    seed: u64,
    draw: Draw,
) -> Result<Windows> {
    let documents: Vec<&[u32]> = match tokens {
        Tokens::Documents(documents) => documents.iter().map(Vec::as_slice).collect(),
        Tokens::Joined(text) => vec![text],
    };
    let too_few = |available| Error::TooFewTokens {
        tokens: documents.iter().map(|d| d.len()).sum(),
        window,
        available,
        wanted: count,
    };
    if count == 0 || window == 0 {
        return Err(too_few(0));
    }
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let drawn = match draw {
        Draw::Documents => {
            let mut drawn = documents::draw(&documents, separator, count, window, rng);
            drawn.sort_by_key(|(_, pieces)| pieces.first().map(|p| (p.document, p.start)));
            drawn
        }
        Draw::Text => cut(&documents, separator, window, |available| {
            drawn_indices(available, count, rng)
        }),
        Draw::Even => cut(&documents, separator, window, |available| {
            even_indices(available, count)
        }),
    };
    if drawn.len() < count {
        return Err(too_few(drawn.len()));
    }
    let (ids, sources): (Vec<Vec<u32>>, Vec<Vec<Piece>>) = drawn.into_iter().unzip();
    let bytes: Vec<u8> = ids
        .iter()
        .flatten()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    Ok(Windows {
        ids,
        sources,
        sha256: sha256(&bytes),
    })
}

/// Those of the joined text's non-overlapping windows that `choose` names, given how many there are; all of them where
/// that is too few.
fn cut(
    documents: &[&[u32]],
    separator: &[u32],
    window: usize,
    choose: impl FnOnce(usize) -> Vec<usize>,
) -> Vec<Drawn> {
    let text = documents.join(separator);
    let mut at = 0;
    let mut places = Vec::with_capacity(documents.len());
    for document in documents {
        places.push(at..at + document.len());
        at += document.len() + separator.len();
    }
    let chosen = choose(text.len() / window).into_iter();
    chosen
        .map(|index| {
            let (from, to) = (index * window, (index + 1) * window);
            let pieces = places.iter().enumerate().filter_map(|(document, place)| {
                let (start, end) = (place.start.max(from), place.end.min(to));
                (start < end).then(|| Piece {
                    document,
                    start: start - place.start,
                    tokens: end - start,
                })
            });
            (text[from..to].to_vec(), pieces.collect())
        })
        .collect()
}

/// `count` of `available`, drawn without replacement, ascending; all when that is too few.
fn drawn_indices(available: usize, count: usize, mut rng: ChaCha8Rng) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..available).collect();
    indices.shuffle(&mut rng);
    indices.truncate(count);
    indices.sort_unstable();
    indices
}

/// `count` of `available` at even distances, ascending; all when that is too few.
///
/// The distances are those of PyTorch's `torch.linspace(0, available - 1, count).long()`, f32 rounding included: papers'
/// code draws its windows so, and can then be compared with on the same ones.
pub(super) fn even_indices(available: usize, count: usize) -> Vec<usize> {
    if available <= count {
        return (0..available).collect();
    }
    let last = available - 1;
    let step = last as f32 / (count - 1).max(1) as f32;
    let rounded = |i: usize| match i < count / 2 || i == 0 {
        true => (step * i as f32) as usize,
        false => (last as f32 - step * (count - 1 - i) as f32) as usize,
    };
    let indices: Vec<usize> = (0..count).map(rounded).collect();
    // With very many windows f32 can name one twice, or one too many.
    let sound = indices.is_sorted_by(|a, b| a < b) && indices.iter().all(|i| *i <= last);
    match sound {
        true => indices,
        false => (0..count).map(|i| i * last / (count - 1)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ids below it are for separators.
    const SEPARATORS: u32 = 2;

    /// Documents of these lengths in which no token occurs twice.
    fn corpus(lengths: &[usize]) -> Vec<Vec<u32>> {
        let mut next = SEPARATORS..;
        let document = |length: &usize| next.by_ref().take(*length).collect();
        lengths.iter().map(document).collect()
    }

    /// Holds windows to what their pieces say.
    fn check(windows: &Windows, documents: &[Vec<u32>], separator: &[u32], window: usize) {
        assert_eq!(windows.ids.len(), windows.sources.len());
        for (ids, pieces) in windows.ids.iter().zip(&windows.sources) {
            let mut expected: Vec<u32> = Vec::new();
            for piece in pieces {
                expected.extend(&documents[piece.document][piece.start..][..piece.tokens]);
                expected.extend(separator);
            }
            assert!(expected.len() >= window && ids.len() == window);
            assert_eq!(*ids, expected[..window]);
        }
        let mut used: Vec<u32> = windows.ids.concat();
        used.retain(|id| *id >= SEPARATORS);
        let count = used.len();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), count, "a token is in two windows");
        let first = |pieces: &Vec<Piece>| pieces.first().map(|p| (p.document, p.start));
        assert!(windows.sources.iter().map(first).is_sorted());
    }

    proptest! {
        #[test]
        fn documents_serve_in_rounds(
            lengths in prop::collection::vec(0usize..60, 1..30),
            separator in prop::collection::vec(0u32..2, 0..3),
            count in 1usize..20,
            window in 1usize..20,
            seed in 0u64..100,
        ) {
            let documents = corpus(&lengths);
            let tokens = Tokens::Documents(documents.clone());
            let draw = |count, seed| draw_windows(&tokens, &separator, count, window, seed, Draw::Documents);
            match draw(count, seed) {
                Ok(windows) => {
                    prop_assert_eq!(windows.ids.len(), count);
                    check(&windows, &documents, &separator, window);
                    prop_assert_eq!(&draw(count, seed).unwrap().ids, &windows.ids);
                    let mut uses = vec![0; documents.len()];
                    for piece in windows.sources.iter().flatten() {
                        uses[piece.document] += 1;
                    }
                    // Whoever is left out has nothing, or others have served once at most, or an open pack took it.
                    let whole = lengths.iter().filter(|l| **l >= window).count();
                    if count <= whole {
                        prop_assert!(uses.iter().all(|n| *n <= 1), "{:?}", uses);
                    }
                    if uses.iter().any(|n| *n > 1) {
                        let long = |d: usize| lengths[d] >= window;
                        prop_assert!((0..uses.len()).all(|d| uses[d] > 0 || !long(d)), "{:?}", uses);
                    }
                }
                Err(Error::TooFewTokens { tokens, available, .. }) => {
                    prop_assert_eq!(tokens, lengths.iter().sum::<usize>());
                    // All there is was offered: less than a window is left.
                    prop_assert!(available < count && tokens < (available + 1) * window);
                    prop_assert!(available == 0 || draw(available, seed).is_ok());
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }

        #[test]
        fn windows_of_the_text_do_not_overlap(
            lengths in prop::collection::vec(0usize..60, 1..10),
            separator in prop::collection::vec(0u32..2, 0..2),
            window in 2usize..20,
            seed in 0u64..100,
        ) {
            let documents = corpus(&lengths);
            let text = documents.join(&separator[..]);
            let available = text.len() / window;
            let tokens = Tokens::Documents(documents.clone());
            let joined = Tokens::Joined(text.clone());
            for draw in [Draw::Text, Draw::Even] {
                let take = |tokens, count| draw_windows(tokens, &separator, count, window, seed, draw);
                prop_assert!(take(&tokens, available + 1).is_err());
                for count in 1..=available {
                    let windows = take(&joined, count).unwrap();
                    prop_assert_eq!(windows.ids.len(), count);
                    check(&windows, std::slice::from_ref(&text), &[], window);
                    let by_document = take(&tokens, count).unwrap();
                    prop_assert_eq!(&by_document.ids, &windows.ids);
                    for (ids, pieces) in by_document.ids.iter().zip(&by_document.sources) {
                        let there: Vec<u32> = ids.iter().filter(|id| **id >= SEPARATORS).copied().collect();
                        let pieces = pieces.iter().map(|p| &documents[p.document][p.start..][..p.tokens]);
                        prop_assert_eq!(there, pieces.collect::<Vec<_>>().concat());
                    }
                }
            }
        }

        #[test]
        fn even_windows_are_distinct(available in 1usize..200_000, part in 0.0f64..1.0) {
            let count = ((available as f64 * part) as usize).max(1);
            let indices = even_indices(available, count);
            prop_assert_eq!((indices.len(), indices[0]), (count, 0));
            prop_assert!(indices.is_sorted_by(|a, b| a < b));
            prop_assert!(count == 1 || indices[count - 1] == available - 1);
        }
    }

    #[test]
    fn even_indices_are_those_of_pytorch() {
        // torch.linspace(0, 10, 4).long(), and so on.
        assert_eq!(even_indices(11, 4), [0, 3, 6, 10]);
        assert_eq!(even_indices(10, 4), [0, 3, 6, 9]);
        assert_eq!(even_indices(100, 1), [0]);
        assert_eq!(even_indices(7, 7), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn one_text_is_drawn_from_as_ever() {
        let text: Vec<u32> = (0..1005).collect();
        let tokens = Tokens::Joined(text.clone());
        let draw = |seed| draw_windows(&tokens, &[], 20, 10, seed, Draw::Text).expect("enough");
        let mut indices: Vec<usize> = (0..100).collect();
        indices.shuffle(&mut ChaCha8Rng::seed_from_u64(3));
        indices.truncate(20);
        indices.sort_unstable();
        let expected: Vec<_> = indices
            .iter()
            .map(|i| text[i * 10..][..10].to_vec())
            .collect();
        assert_eq!(draw(3).ids, expected);
        assert_eq!(draw(3).sha256, draw(3).sha256);
        assert_ne!(draw(3).ids, draw(4).ids);
    }

    #[test]
    fn each_document_serves_once_before_any_serves_twice() {
        let documents = corpus(&[100; 30]);
        let tokens = Tokens::Documents(documents.clone());
        for (count, most) in [(10, 1), (30, 1), (31, 2), (60, 2), (90, 3)] {
            let draw = |seed| {
                draw_windows(&tokens, &[], count, 30, seed, Draw::Documents).expect("enough")
            };
            let mut uses = [0; 30];
            for piece in draw(1).sources.iter().flatten() {
                uses[piece.document] += 1;
            }
            assert_eq!(uses.iter().max(), Some(&most));
            assert!(most == 1 || uses.iter().all(|n| *n >= most - 1));
            // All there are leaves the seed nothing to decide.
            assert_eq!(draw(1).sha256 == draw(2).sha256, count == 90);
        }
    }

    #[test]
    fn short_documents_are_packed() {
        let documents = corpus(&[4; 6]);
        let tokens = Tokens::Documents(documents.clone());
        let windows = draw_windows(&tokens, &[0], 2, 10, 7, Draw::Documents).expect("enough");
        check(&windows, &documents, &[0], 10);
        for pieces in &windows.sources {
            let tokens: Vec<usize> = pieces.iter().map(|p| p.tokens).collect();
            assert_eq!(tokens, [4, 4], "4, separator, 4, separator");
        }
    }

    #[test]
    fn a_short_text_is_refused() {
        let tokens = Tokens::Joined(vec![1; 99]);
        for draw in [Draw::Documents, Draw::Text, Draw::Even] {
            for (count, window) in [(10, 10), (0, 10), (1, 0)] {
                assert!(draw_windows(&tokens, &[], count, window, 0, draw).is_err());
            }
            assert!(draw_windows(&tokens, &[], 9, 10, 0, draw).is_ok());
        }
    }
}
