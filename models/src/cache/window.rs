//! The residual window: recent tokens, which packed caches also keep in f16.
//!
//! Codes of few bits cost most where attention looks most, at the latest tokens; KIVI (Liu et al. 2024, arXiv 2402.02750,
//! §3.3) leaves those as they are. Here the tokens change their form 256 at a time, the runs in which attention sums: which
//! of them a query reads packed depends on the query's position alone, however its tokens were fed.

use super::CacheFormat;
use super::panels::PANEL;

/// Tokens that change their form together.
pub(crate) const STEP: usize = 256;

/// The format of the tokens in the window.
pub(crate) const RECENT: CacheFormat = CacheFormat::F16;

/// Tokens, the query's own included, that every query reads in f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResidualWindow(pub usize);

impl ResidualWindow {
    /// How many keys, from the first of all, the query at `position` reads packed: whole steps, all before its window.
    pub fn packed(self, position: usize) -> usize {
        (position + 1).saturating_sub(self.0) / STEP * STEP
    }

    /// The first position behind `position` whose query reads more keys packed.
    pub fn until(self, position: usize) -> usize {
        let next = self.packed(position) + STEP - 1;
        self.0.saturating_add(next)
    }

    /// Tokens that there has to be room for when tokens come one at a time: the window and what is left of a step, in whole
    /// panels.
    pub fn room(self) -> usize {
        self.0.saturating_add(STEP + PANEL - 2) / PANEL * PANEL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_reads_its_window_and_less_than_a_step_more() {
        for window in [1, 15, 16, 100, 256, 300] {
            let window = ResidualWindow(window);
            let mut most = 0;
            for position in 0..1500 {
                let recent = position + 1 - window.packed(position);
                assert!(recent >= window.0.min(position + 1) && recent < window.0 + STEP);
                assert_eq!(window.packed(position) % STEP, 0);
                let until = window.until(position);
                assert!(until > position);
                assert_eq!(window.packed(until - 1), window.packed(position));
                assert_eq!(window.packed(until), window.packed(position) + STEP);
                most = most.max(recent);
            }
            assert_eq!(window.room(), most.next_multiple_of(PANEL));
        }
        let all = ResidualWindow(usize::MAX);
        assert_eq!((all.packed(5000), all.until(5000)), (0, usize::MAX));
        assert!(all.room() > usize::MAX / 2);
    }
}
