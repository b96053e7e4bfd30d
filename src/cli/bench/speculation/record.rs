//! What a way of decoding is recorded as.

use cinder::eval::speculation::{SpeculationRun, SpeculationSeconds};
use cinder::models::decode::speculative::{Depth, Speculation, Verification};

use super::measure::Found;
use crate::cli::draft::DraftPlan;

/// A way without a draft.
pub fn baseline(
    label: &str,
    found: &Found,
    speedup: Option<f64>,
    identical: u64,
) -> SpeculationRun {
    SpeculationRun {
        label: label.into(),
        speedup_over_plain: speedup,
        seconds: SpeculationSeconds {
            prefill: found.prefill_seconds,
            read: found.wait_seconds,
            verify: (found.decode_seconds - found.wait_seconds).max(0.0),
            ..SpeculationSeconds::default()
        },
        ..common(found, identical)
    }
}

/// A way with a draft, beside the plain decoding that it is compared with.
pub fn drafted(plan: &DraftPlan, found: &Found, plain: &Found, identical: u64) -> SpeculationRun {
    let none = Speculation::default();
    let counts = found.speculation.as_ref().unwrap_or(&none);
    SpeculationRun {
        label: plan.label(),
        draft: plan.given().into(),
        depth: match plan.depth() {
            Depth::Fixed(depth) => depth as u64,
            Depth::Auto => mean_depth(counts),
        },
        width: plan.width() as u64,
        verify: match plan.verification() {
            Verification::Match => "greedy".into(),
            Verification::Rejection => "greedy, rejection".into(),
            Verification::Traversal => "greedy, traversal".into(),
        },
        tokens_per_round_with_bonus: counts.tau_with_bonus(),
        accepted_per_round: counts.tau_without_bonus(),
        acceptance_by_depth: counts.reached(),
        seconds: SpeculationSeconds {
            prefill: found.prefill_seconds,
            draft: counts.draft_seconds,
            read: found.wait_seconds,
            verify: (counts.verify_seconds - found.wait_seconds).max(0.0),
            overhead: counts.overhead_seconds,
        },
        predicted_speedup: predicted(counts, plain),
        speedup_over_plain: Some(found.tokens_per_second() / plain.tokens_per_second()),
        ..common(found, identical)
    }
}

fn common(found: &Found, identical: u64) -> SpeculationRun {
    let streamed = found.streamed.as_ref();
    SpeculationRun {
        bandwidth_bytes_per_second: streamed.and_then(|s| s.link_bytes_per_second),
        resident_blocks: found.resident_blocks,
        tokens: found.tokens(),
        tokens_per_second: found.tokens_per_second(),
        prompts: found.ids.len() as u64,
        identical,
        bytes_read_per_token: found.bytes_per_token(),
        ..SpeculationRun::default()
    }
}

/// Levels of a round with a draft, to the nearest whole one.
fn mean_depth(counts: &Speculation) -> u64 {
    let rounds = counts.rounds.saturating_sub(counts.plain_rounds).max(1);
    (counts.levels as f64 / rounds as f64).round() as u64
}

/// `S = τ / (D·t_draft/t_target + γ)`, `γ = t_verify/t_target` (SubSpec, arXiv 2509.18344, §3): `t_target` is a pass of plain
/// decoding over one token, `D·t_draft` and `t_verify` a round's drafting and verifying. What the model leaves out is the
/// rest of a round.
fn predicted(counts: &Speculation, plain: &Found) -> Option<f64> {
    let tau = counts.tau_with_bonus()?;
    let target = plain.decode_seconds / plain.passes as f64;
    let of_target = |seconds: f64| seconds / counts.rounds as f64 / target;
    let speedup = tau / (of_target(counts.draft_seconds) + of_target(counts.verify_seconds));
    speedup.is_finite().then_some(speedup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_model_is_the_published_one() {
        // 4 tokens a round; 0.1 s of drafting and 0.3 s of verifying against 0.2 s of the model a token: γ is 1.5.
        let counts = Speculation {
            rounds: 10,
            tokens: 40,
            draft_seconds: 1.0,
            verify_seconds: 3.0,
            ..Speculation::default()
        };
        let plain = Found {
            decode_seconds: 8.0,
            passes: 40,
            ..Found::default()
        };
        let speedup = predicted(&counts, &plain).expect("a prediction");
        assert!((speedup - 4.0 / (0.5 + 1.5)).abs() < 1e-12);
        assert_eq!(predicted(&Speculation::default(), &plain), None);
    }
}
