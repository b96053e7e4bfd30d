//! Attention that reads its latest tokens in another format than the others.

use std::ops::Range;

use super::{Expansion, LatentAttention, ROWS, RUN, Values, WeightForm};
use crate::cache::Latents;
use crate::cache::window::{ResidualWindow, STEP};

const _: () = assert!(STEP.is_multiple_of(RUN), "a run is of one format");

/// The latents of a residual window, in f16, and the expansions that go with them.
#[derive(Clone, Copy)]
pub(crate) struct Recent<'a> {
    pub window: ResidualWindow,
    pub latents: Latents<'a>,
    pub keys: &'a [Expansion],
    pub values: Values<'a>,
}

impl<'a> LatentAttention<'a> {
    /// The same over the residual window's latents, which finishes what was begun over all; itself where there is no window.
    pub(super) fn late(&self) -> LatentAttention<'a> {
        match self.recent {
            None => *self,
            Some(recent) => LatentAttention {
                latents: recent.latents,
                keys: recent.keys,
                values: recent.values,
                recent: None,
                ..*self
            },
        }
    }

    /// Tokens before the new ones.
    pub(super) fn past(&self) -> usize {
        self.sizes.keys - self.sizes.tokens
    }

    /// Runs that the query of a new token reads from `latents`; those behind are the window's.
    pub(super) fn early_runs(&self, position: usize) -> usize {
        match self.recent {
            None => usize::MAX,
            Some(recent) => recent.window.packed(self.past() + position) / RUN,
        }
    }

    /// Positions that walk together, in order: as many as share the rows, all with the same early runs.
    pub(super) fn blocks(&self) -> Vec<Range<usize>> {
        let tokens = self.sizes.tokens;
        let most = (ROWS / self.sizes.heads).clamp(1, tokens);
        let mut blocks = Vec::with_capacity(tokens.div_ceil(most));
        let mut first = 0;
        while first < tokens {
            let same = match self.recent {
                None => tokens,
                Some(recent) => recent.window.until(self.past() + first) - self.past(),
            };
            let end = tokens.min(first + most).min(same);
            blocks.push(first..end);
            first = end;
        }
        blocks
    }

    /// That the window's latents are those of the tokens which the first query reads there, and all behind them.
    pub(super) fn check_recent(&self, recent: Recent<'_>) {
        assert_eq!(
            WeightForm::of(recent.latents.layout.format),
            WeightForm::Float,
            "a window's latents"
        );
        let first = recent.latents.first;
        assert!(
            first.is_multiple_of(RUN) && first / RUN <= self.early_runs(0),
            "the residual window begins at token {first}: tokens it had before were truncated or not asked for"
        );
    }
}
