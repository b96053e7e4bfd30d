//! The cross-entropy of rows of logits, and its gradient in the logits' place.

use super::parallel::{self, Parts};
use super::simd::{self, Kernel, LANES, Simd};

/// Probabilities that are summed by themselves; a draw looks for its piece first.
const PIECE: usize = 64 * LANES;

/// The token that a row of logits is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// This token.
    Token(u32),
    /// One drawn from the row's own distribution: the token in whose share of the unit interval, shares in the order of
    /// ids, this place in 0..1 falls.
    Draw(f64),
}

/// The index at which the running sum of `weights` passes `place` of the whole.
pub(crate) fn pick(weights: &[f32], place: f64) -> usize {
    let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    within(weights, place * total)
}

/// The index at which the running sum of `weights` passes `left`.
fn within(weights: &[f32], mut left: f64) -> usize {
    for (i, weight) in weights.iter().enumerate() {
        left -= f64::from(*weight);
        if left < 0.0 {
            return i;
        }
    }
    // Rounding can leave a sliver beyond the last that has any weight.
    weights.iter().rposition(|w| *w > 0.0).unwrap_or(0)
}

/// Rows of `vocab` logits become the gradient, `losses` gets each row's loss in nats; see [`super::cross_entropy`].
///
/// # Panics
/// When the slices do not fit, or a token is outside the row.
pub(crate) fn cross_entropy(logits: &mut [f32], targets: &[Target], losses: &mut [f32]) {
    let rows = targets.len();
    if rows == 0 {
        return;
    }
    let vocab = logits.len() / rows;
    assert!(
        vocab > 0 && logits.len() == rows * vocab && losses.len() == rows,
        "{rows} rows"
    );
    let (logits, losses) = (Parts::new(logits), Parts::new(losses));
    parallel::for_each(rows, |row| {
        // SAFETY: the row and its loss are inside the slices, and no other task has them.
        unsafe {
            let logits = std::slice::from_raw_parts_mut(logits.pointer().add(row * vocab), vocab);
            *losses.pointer().add(row) = simd::run(Row {
                logits,
                target: targets[row],
            });
        }
    });
}

struct Row<'a> {
    logits: &'a mut [f32],
    target: Target,
}

impl Kernel for Row<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let top = self
            .logits
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        let mut pieces = Vec::with_capacity(self.logits.len().div_ceil(PIECE));
        // From the logit itself where the token is known: its weight may be too small for f32.
        let known = match self.target {
            Target::Token(token) => f64::from(self.logits[token as usize]) - f64::from(top),
            Target::Draw(_) => 0.0,
        };
        for piece in self.logits.chunks_mut(PIECE) {
            let whole = piece.len() / LANES * LANES;
            // SAFETY: `whole` values of the piece are whole vectors.
            unsafe {
                let mut sum = S::splat(0.0);
                for i in (0..whole).step_by(LANES) {
                    let at = piece.as_mut_ptr().add(i);
                    let weight = S::exp(S::sub(S::load(at), S::splat(top)));
                    S::store(at, weight);
                    sum = S::add(sum, weight);
                }
                let mut rest = 0.0;
                for x in &mut piece[whole..] {
                    *x = (*x - top).exp();
                    rest += f64::from(*x);
                }
                pieces.push(f64::from(S::sum(sum)) + rest);
            }
        }
        let total: f64 = pieces.iter().sum();
        let (token, weight) = match self.target {
            Target::Token(token) => (token as usize, known),
            Target::Draw(place) => {
                let token = draw(self.logits, &pieces, place * total);
                (token, f64::from(self.logits[token]).ln())
            }
        };
        let inverse = (1.0 / total) as f32;
        for piece in self.logits.chunks_mut(LANES) {
            if let Ok(lanes) = <&mut [f32; LANES]>::try_from(&mut *piece) {
                // SAFETY: the array is a whole vector.
                unsafe {
                    let weight = S::load(lanes.as_ptr());
                    S::store(lanes.as_mut_ptr(), S::mul(weight, S::splat(inverse)));
                }
            } else {
                piece.iter_mut().for_each(|x| *x *= inverse);
            }
        }
        self.logits[token] -= 1.0;
        (total.ln() - weight) as f32
    }
}

/// The token at which the running sum passes `left`, by pieces first.
fn draw(weights: &[f32], pieces: &[f64], mut left: f64) -> usize {
    for (i, (piece, sum)) in weights.chunks(PIECE).zip(pieces).enumerate() {
        if left < *sum || i + 1 == pieces.len() {
            return i * PIECE + within(piece, left);
        }
        left -= sum;
    }
    0
}
