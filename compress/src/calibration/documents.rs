//! Windows from as many documents as possible.

use std::ops::Range;

use cinder_models::checkpoint::Piece;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::windows::Drawn;

/// Up to `count` windows as [`draw_windows`](super::draw_windows) describes; fewer when the documents have no more.
pub(super) fn draw(
    documents: &[&[u32]],
    separator: &[u32],
    count: usize,
    window: usize,
    mut rng: ChaCha8Rng,
) -> Vec<Drawn> {
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.shuffle(&mut rng);
    let mut rests: Vec<Rest> = order
        .into_iter()
        .map(|index| Rest::new(index, documents[index].len(), window, &mut rng))
        .collect();
    let mut drawn = Vec::new();
    let mut pack = Pack {
        separator,
        window,
        ids: Vec::new(),
        pieces: Vec::new(),
    };
    // One round: every document that has something left gives one part of itself.
    while rests.iter().any(|rest| !rest.is_empty()) {
        for rest in &mut rests {
            if drawn.len() == count {
                return drawn;
            }
            let Some(part) = rest.next(window) else {
                continue;
            };
            let (index, document) = (rest.document, documents[rest.document]);
            if part.len() == window {
                drawn.push((document[part.clone()].to_vec(), vec![piece(index, &part)]));
                continue;
            }
            rest.tail = pack.add(index, document, part);
            drawn.extend(pack.full());
        }
    }
    drawn
}

fn piece(document: usize, part: &Range<usize>) -> Piece {
    Piece {
        document,
        start: part.start,
        tokens: part.len(),
    }
}

/// What a document has not given yet.
struct Rest {
    document: usize,
    /// Where its whole windows start; the last is the next to be taken.
    windows: Vec<usize>,
    /// What comes after them, shorter than a window; of a short document all of it.
    tail: Range<usize>,
}

impl Rest {
    fn new(document: usize, length: usize, window: usize, rng: &mut ChaCha8Rng) -> Self {
        let whole = length / window;
        let mut windows: Vec<usize> = (0..whole).map(|i| i * window).collect();
        windows.shuffle(rng);
        Rest {
            document,
            windows,
            tail: whole * window..length,
        }
    }

    fn is_empty(&self) -> bool {
        self.windows.is_empty() && self.tail.is_empty()
    }

    fn next(&mut self, window: usize) -> Option<Range<usize>> {
        match self.windows.pop() {
            Some(start) => Some(start..start + window),
            None if self.tail.is_empty() => None,
            None => Some(std::mem::take(&mut self.tail)),
        }
    }
}

/// A window that is being filled with short parts.
struct Pack<'a> {
    separator: &'a [u32],
    window: usize,
    ids: Vec<u32>,
    pieces: Vec<Piece>,
}

impl Pack<'_> {
    fn room(&self) -> usize {
        self.window - self.ids.len()
    }

    /// Takes as much of a part as there is room for, and a separator after it; gives back what did not fit.
    fn add(&mut self, index: usize, document: &[u32], part: Range<usize>) -> Range<usize> {
        let cut = part.end.min(part.start + self.room());
        let taken = part.start..cut;
        self.ids.extend(&document[taken.clone()]);
        self.pieces.push(piece(index, &taken));
        let after = self.separator.len().min(self.room());
        self.ids.extend(&self.separator[..after]);
        cut..part.end
    }

    /// The window, once there is no room left; the next one is begun.
    fn full(&mut self) -> Option<Drawn> {
        let full = self.room() == 0;
        full.then(|| {
            (
                std::mem::take(&mut self.ids),
                std::mem::take(&mut self.pieces),
            )
        })
    }
}
