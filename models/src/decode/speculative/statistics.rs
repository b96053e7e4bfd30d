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
