//! The analyses' singular values, thinned to what a chart can show.

use std::collections::{BTreeMap, BTreeSet};

use cinder_models::Site;
use cinder_models::checkpoint::Spectrum;

use crate::passes::{Analysis, Losses, UnitPlan};

/// Ranks that are kept of a spectrum.
const POINTS: usize = 64;
/// Significant digits that are kept: a chart shows three.
const DIGITS: i32 = 5;

/// One spectrum for each projection of each layer whose losses an analysis knows; projections that are only ever stacked have
/// one together.
pub(super) fn spectra(analyses: &[Vec<Analysis>]) -> Vec<Spectrum> {
    let mut all = Vec::new();
    for analysis in analyses.iter().flatten() {
        let found = of_layer(analysis);
        let alone: BTreeSet<(usize, usize)> = found
            .keys()
            .filter_map(|(site, members)| match members[..] {
                [member] => Some((*site, member)),
                _ => None,
            })
            .collect();
        for ((site, members), losses) in found {
            let repeated = members.len() > 1
                && members
                    .iter()
                    .all(|member| alone.contains(&(site, *member)));
            if !repeated && let Some(spectrum) = thinned(analysis.layer, site, &members, &losses) {
                all.push(spectrum);
            }
        }
    }
    all.sort_by(|a, b| (a.layer, &a.site).cmp(&(b.layer, &b.site)));
    all
}

/// The losses of a layer's matrices as they are, before any neuron is removed. Heads that are factored apart are summed.
fn of_layer(analysis: &Analysis) -> BTreeMap<(usize, Vec<usize>), Vec<f64>> {
    let mut found: BTreeMap<(usize, Vec<usize>), Vec<f64>> = BTreeMap::new();
    for group in &analysis.groups {
        for alternative in group.iter().filter(|a| a.neurons.is_none()) {
            let mut here: BTreeMap<(usize, Vec<usize>), Vec<f64>> = BTreeMap::new();
            for unit in &alternative.units {
                let Losses::Ranks(losses) = &unit.losses else {
                    continue;
                };
                add(&mut here, unit, losses);
            }
            for (key, losses) in here {
                found.entry(key).or_insert(losses);
            }
        }
    }
    found
}

fn add(into: &mut BTreeMap<(usize, Vec<usize>), Vec<f64>>, unit: &UnitPlan, losses: &[f64]) {
    let sum = into
        .entry((unit.site, unit.members.clone()))
        .or_insert_with(|| vec![0.0; losses.len()]);
    // A shorter matrix has lost nothing at the ranks that it does not have.
    if sum.len() < losses.len() {
        sum.resize(losses.len(), 0.0);
    }
    for (sum, loss) in sum.iter_mut().zip(losses) {
        *sum += loss;
    }
}

/// The spectrum at ranks that lie closer where it falls faster; none for a matrix without any output.
fn thinned(layer: usize, site: usize, members: &[usize], losses: &[f64]) -> Option<Spectrum> {
    let all = *losses
        .first()
        .filter(|all| all.is_finite() && **all > 0.0)?;
    let full = losses.len() - 1;
    let mut ranks: Vec<usize> = (0..POINTS)
        .map(|point| {
            let share = point as f64 / (POINTS - 1) as f64;
            (full as f64 * share * share).round() as usize
        })
        .collect();
    ranks.dedup();
    let left_out = ranks.iter().map(|rank| rounded(losses[*rank] / all));
    let site = Site::ALL[site.min(Site::ALL.len() - 1)];
    let name = |member: &usize| site.projections().get(*member).map(|p| (*p).to_owned());
    Some(Spectrum {
        layer,
        site: site.name().to_owned(),
        projections: members.iter().filter_map(name).collect(),
        left_out: left_out.collect(),
        ranks,
    })
}

fn rounded(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 0.0;
    }
    let unit = 10f64.powi(value.log10().floor() as i32 - DIGITS + 1);
    // Dividing by a whole power of ten prints short; multiplying by its inverse does not.
    match unit < 1.0 {
        true => (value / unit).round() / (1.0 / unit).round(),
        false => (value / unit).round() * unit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::AlternativePlan;

    fn unit(members: Vec<usize>, losses: Vec<f64>) -> UnitPlan {
        UnitPlan {
            site: 0,
            members,
            out: 8,
            input: 8,
            losses: Losses::Ranks(losses),
            score: 0.0,
        }
    }

    fn analysis(alternatives: Vec<Vec<UnitPlan>>) -> Vec<Vec<Analysis>> {
        let alternatives = alternatives.into_iter().map(|units| AlternativePlan {
            neurons: None,
            removal_loss: 0.0,
            units,
            sizes: Vec::new(),
        });
        vec![vec![Analysis {
            groups: vec![alternatives.collect()],
            ..Analysis::default()
        }]]
    }

    #[test]
    fn stacks_are_left_out_where_their_members_are_known() {
        let separate = vec![
            unit(vec![0], vec![4.0, 1.0, 0.0]),
            unit(vec![1], vec![2.0, 0.0]),
        ];
        let shared = vec![unit(vec![0, 1], vec![6.0, 2.0, 0.0])];
        let found = spectra(&analysis(vec![separate, shared.clone()]));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].projections, ["q"]);
        assert_eq!(
            (&found[0].ranks[..], &found[0].left_out[..]),
            (&[0, 1, 2][..], &[1.0, 0.25, 0.0][..])
        );
        let found = spectra(&analysis(vec![shared]));
        assert_eq!(found[0].projections, ["q", "k"]);
        assert_eq!(found[0].left_out, [1.0, 0.33333, 0.0]);
    }

    #[test]
    fn heads_are_summed_and_long_spectra_are_thinned() {
        let heads = vec![unit(vec![1], vec![3.0, 1.0]), unit(vec![1], vec![1.0, 1.0])];
        assert_eq!(spectra(&analysis(vec![heads]))[0].left_out, [1.0, 0.5]);
        let losses: Vec<f64> = (0..=576).map(|rank| f64::from(576 - rank)).collect();
        let found = &spectra(&analysis(vec![vec![unit(vec![0], losses)]]))[0];
        assert!(found.ranks.len() <= 64 && found.ranks.last() == Some(&576));
        assert!(found.left_out.windows(2).all(|pair| pair[1] < pair[0]));
        // What has no output has no spectrum.
        assert!(spectra(&analysis(vec![vec![unit(vec![0], vec![0.0; 4])]])).is_empty());
    }
}
