//! Merges of a SentencePiece vocabulary, which has scores instead.

use std::collections::HashMap;

/// Pieces longer than this are not split: SentencePiece's own limit is 16 characters, and trying every split of a
/// long one takes quadratic time.
const MAX_PIECE_BYTES: usize = 512;

/// Every way to make a piece out of two others, best score first. The order of `transformers`' converter: by score,
/// then by the length of the left and of the right part in characters, all falling; ties keep the order of ids.
///
/// `pieces` are those that merging may make or use, with id and score.
pub(super) fn merges(pieces: &[(u32, &str, f32)]) -> Vec<(String, String)> {
    let ids: HashMap<&str, u32> = pieces.iter().map(|(id, piece, _)| (*piece, *id)).collect();
    let mut merges = Vec::new();
    for (_, piece, score) in pieces {
        if piece.len() > MAX_PIECE_BYTES {
            continue;
        }
        let mut ways: Vec<_> = piece
            .char_indices()
            .skip(1)
            .enumerate()
            .filter_map(|(before, (at, _))| {
                let (left, right) = piece.split_at_checked(at)?;
                let order = (*ids.get(left)?, *ids.get(right)?);
                Some((order, *score, before + 1, left, right))
            })
            .collect();
        ways.sort_by_key(|(order, ..)| *order);
        merges.extend(
            ways.into_iter()
                .map(|(_, score, length, left, right)| (score, length, left, right)),
        );
    }
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| b.1.cmp(&a.1))
            .then_with(|| b.3.chars().count().cmp(&a.3.chars().count()))
    });
    merges
        .into_iter()
        .map(|(_, _, left, right)| (left.to_owned(), right.to_owned()))
        .collect()
}
