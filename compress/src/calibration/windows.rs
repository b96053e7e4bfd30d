//! Which tokens to calibrate on.

use cinder_models::checkpoint::sha256;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// The windows statistics are collected on.
#[derive(Debug, Clone)]
pub struct Windows {
    /// `[windows][window]` token ids, in the order of the text.
    pub ids: Vec<Vec<u32>>,
    /// Which of the text's non-overlapping windows these are, ascending.
    pub indices: Vec<usize>,
    /// SHA-256 of the chosen ids, little-endian u32.
    pub sha256: String,
}

/// Cuts `tokens` into non-overlapping windows of `window` and takes `count` of them, drawn without
/// replacement by `seed`.
///
/// # Errors
/// [`Error::TooFewTokens`] when the text does not have that many.
pub fn choose_windows(tokens: &[u32], count: usize, window: usize, seed: u64) -> Result<Windows> {
    let available = tokens.len() / window.max(1);
    if count == 0 || available < count {
        return Err(Error::TooFewTokens {
            tokens: tokens.len(),
            window,
            available,
            wanted: count,
        });
    }
    let mut indices: Vec<usize> = (0..available).collect();
    indices.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    indices.truncate(count);
    indices.sort_unstable();
    let ids: Vec<Vec<u32>> = indices
        .iter()
        .map(|i| tokens[i * window..(i + 1) * window].to_vec())
        .collect();
    let bytes: Vec<u8> = ids
        .iter()
        .flatten()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    Ok(Windows {
        ids,
        indices,
        sha256: sha256(&bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_distinct_and_decided_by_the_seed() {
        let tokens: Vec<u32> = (0..1005).collect();
        let a = choose_windows(&tokens, 20, 10, 3).expect("enough");
        assert!(a.indices.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(a.ids[4], tokens[a.indices[4] * 10..][..10]);
        assert_eq!(
            a.sha256,
            choose_windows(&tokens, 20, 10, 3).expect("enough").sha256
        );
        assert_ne!(
            a.indices,
            choose_windows(&tokens, 20, 10, 4).expect("enough").indices
        );
    }

    #[test]
    fn a_short_text_is_refused() {
        assert!(choose_windows(&[1; 99], 10, 10, 0).is_err());
        assert!(choose_windows(&[1; 99], 0, 10, 0).is_err());
    }
}
