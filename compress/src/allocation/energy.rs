//! Every matrix loses a like share of its own energy.

use super::lagrangian::lagrangian;
use super::{Alternative, Choice};

/// Minimises the sum over matrices of the share of whitened energy `Σ_{i>r} σᵢ² / Σ σᵢ²` that each loses, of each site's
/// first alternative, within `budget` scalars.
///
/// Without gradients, energies of different sites can not be compared; shares can, if not well (frontier.md §10).
pub fn energy(sites: &[Vec<Alternative>], budget: u64) -> Vec<Choice> {
    let normalised = |site: &Vec<Alternative>| {
        let mut first = site[0].clone();
        for ladder in &mut first.ladders {
            for rung in &mut ladder.rungs {
                rung.loss /= ladder.whole.max(f64::MIN_POSITIVE);
            }
        }
        vec![first]
    };
    let sites: Vec<Vec<Alternative>> = sites.iter().map(normalised).collect();
    lagrangian(&sites, budget)
}
