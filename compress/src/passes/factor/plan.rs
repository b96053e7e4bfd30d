//! From analyses to a plan: the allocation rules behind one door.

use super::analysis::{AlternativePlan, Analysis, Losses};
use super::{Factorization, Rule};
use crate::allocation::{
    Alternative, Choice, Ladder, Matrix, Ranks, Rung, energy, fisher, loss, scalars, uniform,
};
use crate::error::{Error, Result};
use crate::linalg::Elimination;
use crate::passes::{LayerPlan, Plan, PlannedUnit};
use cinder_models::Site;

pub(super) fn plan(settings: &Factorization, analyses: &[Analysis]) -> Result<Plan> {
    let groups = || analyses.iter().flat_map(|a| &a.groups);
    let sites: Vec<Vec<Alternative>> = analyses
        .iter()
        .flat_map(|analysis| alternatives(settings, analysis))
        .collect();
    let dense: u64 = sites.iter().map(|s| dense_scalars(&s[0])).sum();
    let budget = (settings.keep * dense as f64).floor() as u64;
    let choices = match settings.rule {
        // Everything, exactly: no rounding of ranks can say so.
        _ if settings.keep >= 1.0 => sites.iter().map(|s| dense_choice(s)).collect(),
        Rule::Uniform => uniform(&sites, settings.keep),
        Rule::Energy => energy(&sites, budget),
        Rule::Fisher => {
            let units = groups().flat_map(|g| &g[0].units);
            let scores: Vec<f64> = units.map(|u| u.score).collect();
            fisher(&sites, &scores, settings.keep)
        }
        Rule::Loss => loss(&sites, budget),
    };
    let used = scalars(&sites, &choices);
    if used > budget {
        return Err(Error::Setting {
            what: "`keep`".into(),
            value: settings.keep.to_string(),
            range: format!(
                "at least {:.4}, the smallest size of everything",
                (1e4 * used as f64 / dense as f64).ceil() / 1e4
            ),
            hint: "raise it in the recipe, or with `--keep`",
        });
    }
    let mut rest = &choices[..];
    let mut layers = Vec::with_capacity(analyses.len());
    let mut places = &sites[..];
    for analysis in analyses {
        let (own, after) = rest.split_at(analysis.groups.len());
        let (alternatives, later) = places.split_at(analysis.groups.len());
        layers.push(layer_plan(settings, analysis, alternatives, own));
        (rest, places) = (after, later);
    }
    Ok(Plan { layers })
}

/// The plan of one layer where each group of sites keeps `settings.keep` of its own scalars, by its first structure.
pub(super) fn layer_at_keep(settings: &Factorization, analysis: &Analysis) -> LayerPlan {
    let sites = alternatives(settings, analysis);
    let choices: Vec<Choice> = sites
        .iter()
        .flat_map(|site| uniform(std::slice::from_ref(site), settings.keep))
        .collect();
    layer_plan(settings, analysis, &sites, &choices)
}

/// What the groups of a layer may become, as the allocation rules see it.
fn alternatives(settings: &Factorization, analysis: &Analysis) -> Vec<Vec<Alternative>> {
    let group = |group: &Vec<AlternativePlan>| {
        let each = group.iter();
        each.map(|a| alternative(settings, analysis.layer, group, a))
            .collect()
    };
    analysis.groups.iter().map(group).collect()
}

/// An alternative as the allocation rules see it, its losses scaled by what was measured of its sites.
fn alternative(
    settings: &Factorization,
    layer: usize,
    group: &[AlternativePlan],
    plan: &AlternativePlan,
) -> Alternative {
    if !plan.sizes.is_empty() {
        // What one neuron stores: a row of gate and of up, and a column of down.
        let units = &group[0].units;
        let gate_up = units.iter().filter(|u| u.site() == Site::GateUp);
        let down = units.iter().filter(|u| u.site() == Site::Down);
        let each = gate_up.map(|u| u.input * u.members.len()).sum::<usize>()
            + down.map(|u| u.out).sum::<usize>();
        // What is lost is lost where neurons are summed.
        let ladder = neuron_ladder(plan, each).scaled(settings.factor(layer, Site::Down));
        return Alternative {
            ladders: vec![ladder],
            scalars: 0,
            loss: 0.0,
        };
    }
    let ladder = |unit: &super::UnitPlan| {
        let losses = match &unit.losses {
            Losses::Unknown => &[][..],
            Losses::Ranks(losses) => losses,
        };
        let most = unit.out.min(unit.input);
        let ranks = Ranks {
            floor: settings.ranks.floor.min(most),
            step: settings.ranks.step,
        };
        let ladder = Ladder::of_ranks(matrix(settings, unit.out, unit.input), ranks, losses);
        ladder.scaled(settings.factor(layer, unit.site()))
    };
    Alternative {
        ladders: plan.units.iter().map(ladder).collect(),
        scalars: 0,
        loss: plan.removal_loss * settings.factor(layer, Site::Down),
    }
}

fn matrix(settings: &Factorization, out: usize, input: usize) -> Matrix {
    Matrix {
        out,
        input,
        identity: settings.identity.is_some(),
    }
}

/// Numbers of neurons, the smallest first, of `each` scalars.
fn neuron_ladder(plan: &AlternativePlan, each: usize) -> Ladder {
    let full = plan.sizes.first().map_or(0, |s| s.0);
    let mut rungs: Vec<Rung> = plan
        .sizes
        .iter()
        .rev()
        .map(|(size, loss)| Rung {
            size: Some(*size).filter(|s| *s < full),
            scalars: (size * each) as u64,
            loss: *loss,
        })
        .collect();
    if let Some(last) = rungs.last_mut() {
        last.loss = 0.0;
    }
    Ladder {
        dense: (full * each) as u64,
        whole: rungs.first().map_or(0.0, |r| r.loss),
        rungs,
    }
}

fn dense_scalars(alternative: &Alternative) -> u64 {
    alternative.ladders.iter().map(|l| l.dense).sum()
}

fn dense_choice(site: &[Alternative]) -> Choice {
    Choice {
        alternative: 0,
        rungs: site[0].ladders.iter().map(|l| l.rungs.len() - 1).collect(),
    }
}

fn layer_plan(
    settings: &Factorization,
    analysis: &Analysis,
    sites: &[Vec<Alternative>],
    choices: &[Choice],
) -> LayerPlan {
    let removed_at = settings.factor(analysis.layer, Site::Down);
    let mut plan = LayerPlan {
        layer: analysis.layer,
        fallbacks: analysis.fallbacks.clone(),
        ..LayerPlan::default()
    };
    // The second-order term of the loss is half the moments' product.
    let predicted = |loss: f64| (settings.rule == Rule::Loss).then_some(0.5 * loss);
    for ((group, site), choice) in analysis.groups.iter().zip(sites).zip(choices) {
        let chosen = &group[choice.alternative];
        let rungs: Vec<Rung> = site[choice.alternative]
            .ladders
            .iter()
            .zip(&choice.rungs)
            .map(|(l, r)| l.rungs[*r])
            .collect();
        let (kept, removal, units) = match chosen.sizes.is_empty() {
            false => (rungs[0].size, rungs[0].loss, &group[0].units),
            true => (
                chosen.neurons,
                chosen.removal_loss * removed_at,
                &chosen.units,
            ),
        };
        if let Some(kept) = kept {
            plan.neurons = Some(Elimination::survivors(&analysis.order, kept));
            plan.removal_loss = predicted(removal);
        }
        for (i, unit) in units.iter().enumerate() {
            let (mut out, mut input) = (unit.out, unit.input);
            if let Some(kept) = kept {
                match unit.site() {
                    Site::GateUp => out = kept * unit.members.len(),
                    Site::Down => input = kept,
                    Site::Qkv | Site::O => {}
                }
            }
            let rung = match chosen.sizes.is_empty() {
                true => Some(rungs[i]),
                false => None,
            };
            plan.units.push(PlannedUnit {
                site: unit.site(),
                members: unit.members.clone(),
                matrix: matrix(settings, out, input),
                rank: rung.and_then(|r| r.size),
                predicted_loss: predicted(rung.map_or(0.0, |r| r.loss)),
            });
        }
    }
    plan
}
