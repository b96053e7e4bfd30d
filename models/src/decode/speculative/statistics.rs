//! What speculation did, and where the time went.

use serde::Serialize;

/// Counts and seconds of one generation.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Speculation {
    /// Passes of the target after the prompt.
    pub rounds: usize,
    /// Of them, those without a draft.
    pub plain_rounds: usize,
    /// Tokens that rounds gave; the first, which comes from the prompt, is not among them.
    pub tokens: usize,
    /// Of them, those that had been drafted.
    pub drafted_tokens: usize,
    /// Nodes that the target verified, roots included.
    pub nodes_verified: usize,
    /// Levels drafted, summed over rounds.
    pub levels: usize,
    /// How often a drafted token stayed, by its depth in the draft, from 1 on.
    pub acceptance: Vec<DepthAcceptance>,
    /// Seconds until the first token.
    pub prefill_seconds: f64,
    /// Seconds of drafting.
    pub draft_seconds: f64,
    /// Seconds of the target's passes, its logits included.
    pub verify_seconds: f64,
    /// Seconds of everything else in rounds: choosing tokens, moving cached ones, giving text out.
    pub overhead_seconds: f64,
}

/// Drafted tokens at one depth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DepthAcceptance {
    /// Rounds that had accepted everything above and drafted something here.
    pub tried: usize,
    /// Rounds that accepted a token here.
    pub accepted: usize,
}

impl Speculation {
    /// Acceptance length τ: tokens a round, the target's own token among them.
    pub fn tau_with_bonus(&self) -> Option<f64> {
        self.per_round(self.tokens)
    }

    /// Drafted tokens that stayed, a round.
    pub fn tau_without_bonus(&self) -> Option<f64> {
        self.per_round(self.drafted_tokens)
    }

    /// Mean levels of a round's draft, plain rounds included.
    pub fn mean_depth(&self) -> Option<f64> {
        self.per_round(self.levels)
    }

    /// Adds what another generation did.
    pub fn add(&mut self, other: &Speculation) {
        self.rounds += other.rounds;
        self.plain_rounds += other.plain_rounds;
        self.tokens += other.tokens;
        self.drafted_tokens += other.drafted_tokens;
        self.nodes_verified += other.nodes_verified;
        self.levels += other.levels;
        let deepest = self.acceptance.len().max(other.acceptance.len());
        self.acceptance.resize(deepest, DepthAcceptance::default());
        for (at, more) in self.acceptance.iter_mut().zip(&other.acceptance) {
            at.tried += more.tried;
            at.accepted += more.accepted;
        }
        self.prefill_seconds += other.prefill_seconds;
        self.draft_seconds += other.draft_seconds;
        self.verify_seconds += other.verify_seconds;
        self.overhead_seconds += other.overhead_seconds;
    }

    /// Share of the rounds with a draft that accepted it to at least each depth, from 1 on.
    pub fn reached(&self) -> Vec<f64> {
        let rounds = self.rounds.saturating_sub(self.plain_rounds).max(1) as f64;
        let shares = self.acceptance.iter();
        shares.map(|at| at.accepted as f64 / rounds).collect()
    }

    fn per_round(&self, count: usize) -> Option<f64> {
        (self.rounds > 0).then(|| count as f64 / self.rounds as f64)
    }

    /// Counts a round that accepted `accepted` nodes, behind the last of which something was drafted (`open`) or nothing.
    pub(super) fn count_acceptance(&mut self, accepted: usize, open: bool) {
        let tried = accepted + usize::from(open);
        if self.acceptance.len() < tried {
            self.acceptance.resize(tried, DepthAcceptance::default());
        }
        for (depth, at) in self.acceptance[..tried].iter_mut().enumerate() {
            at.tried += 1;
            at.accepted += usize::from(depth < accepted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_add_up() {
        let mut one = Speculation {
            rounds: 3,
            plain_rounds: 1,
            tokens: 4,
            ..Speculation::default()
        };
        one.count_acceptance(1, true);
        one.count_acceptance(0, true);
        let mut all = Speculation {
            rounds: 2,
            tokens: 6,
            ..Speculation::default()
        };
        all.count_acceptance(2, false);
        all.count_acceptance(2, true);
        all.add(&one);
        assert_eq!((all.rounds, all.plain_rounds, all.tokens), (5, 1, 10));
        let at = |tried, accepted| DepthAcceptance { tried, accepted };
        assert_eq!(all.acceptance, [at(4, 3), at(3, 2), at(1, 0)]);
        assert_eq!(all.reached(), [0.75, 0.5, 0.0]);
        assert_eq!(all.tau_with_bonus(), Some(2.0));
    }
}
