//! What each latent loses at each rank, and which rank it gets.

use cinder_models::{DecoderLayer, ModelConfig, Site};
use rayon::prelude::*;

use super::order::{order, rows};
use super::{KEYS, KvLowRankSettings, KvRule, Slice, VALUES};
use crate::allocation::{Alternative, Ladder, Matrix, Ranks, fisher, loss, scalars, uniform};
use crate::calibration::Moments;
use crate::error::{Error, Result};
use crate::linalg::{Gram, Moment, Weight, Whitening, whiten};
use crate::passes::factor::{
    AlternativePlan, Analysis, LEAST_WEIGHT, Losses, NO_GRADIENT, UnitPlan, raised, tails, weight,
};
use crate::passes::{LayerPlan, Plan, PlannedUnit};

/// Keys and values of one layer, with what weighs them.
pub(super) struct KeyValues<'a> {
    settings: &'a KvLowRankSettings,
    layer: usize,
    /// Keys, then values.
    pub weights: [Weight; 2],
    gradients: Option<[Gram; 2]>,
    /// The KV heads in the order in which they stand in all of this; none where that is the model's own.
    pub order: Option<Vec<usize>>,
}

/// What a slice's factors are made of.
pub(super) struct Weighed {
    /// Its rows, stacked.
    pub stack: Weight,
    /// The factors of their gradients' moments; none for the identity.
    pub outputs: Vec<Whitening>,
    /// What had to be done differently.
    pub notes: Vec<String>,
}

/// Whether a moment that is zero weighs nothing, or so little that the factors have a solution.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NoGradient {
    Nothing,
    Little,
}

impl<'a> KeyValues<'a> {
    pub fn new(
        settings: &'a KvLowRankSettings,
        layer: usize,
        block: &DecoderLayer,
        moments: &dyn Moments,
    ) -> Result<Self> {
        let of = |member| weight(layer, block, Site::Qkv, member);
        let gradient = |member| moments.gradient(Site::Qkv, member);
        let mut own = KeyValues {
            settings,
            layer,
            weights: [of(KEYS)?, of(VALUES)?],
            gradients: match settings.two_sided {
                true => Some([gradient(KEYS)?, gradient(VALUES)?]),
                false => None,
            },
            order: None,
        };
        if settings.reorder_heads {
            // Of the dense model's inputs, whatever the factors are solved on: plan and factors have one order.
            let input = moments.input(Site::Qkv)?;
            let input = own.numerical(whiten(&input, settings.input_ridge))?;
            let width = block.attention.head_dim;
            own.arrange(
                order(&own.weights, &input, width, settings.group_heads),
                width,
            );
        }
        Ok(own)
    }

    /// Puts heads in this order.
    fn arrange(&mut self, order: Vec<usize>, head_dim: usize) {
        let rows = rows(&order, head_dim);
        self.weights = self.weights.each_ref().map(|weight| weight.rows(&rows));
        let gradients = self.gradients.as_ref();
        self.gradients = gradients.map(|both| both.each_ref().map(|gram| gram.subset(&rows)));
        self.order = Some(order);
    }

    /// The rows of a slice, and what weighs them. What the loss does not depend on loses nothing, but factors need a
    /// weight.
    pub fn of(&self, slice: &Slice, no_gradient: NoGradient) -> Result<Weighed> {
        let rows: Vec<usize> = slice.rows.clone().collect();
        let members = || slice.members.iter().map(|m| m - KEYS);
        let parts: Vec<Weight> = members().map(|m| self.weights[m].rows(&rows)).collect();
        let grams = self.gradients.iter();
        let grams = grams.flat_map(|gradients| members().map(|m| gradients[m].subset(&rows)));
        let grams: Vec<Gram> = grams.collect();
        let asked = self.settings.output_ridge;
        let largest = grams.iter().map(Gram::mean_square).fold(0.0, f64::max);
        let weight = match (no_gradient, largest > 0.0) {
            (NoGradient::Nothing, _) => 0.0,
            // Beside others, no more than a ridge does.
            (NoGradient::Little, true) => largest * asked.max(LEAST_WEIGHT),
            (NoGradient::Little, false) => 1.0,
        };
        let mut notes = Vec::new();
        let mut output = |gram: &Gram| {
            if gram.mean_square() == 0.0 {
                notes.push(NO_GRADIENT.into());
                return Ok(Whitening::flat(gram.width(), weight));
            }
            let whitened = whiten(gram, asked)?;
            notes.extend(raised("gradient", &whitened, asked));
            Ok(whitened)
        };
        let outputs = grams.iter().map(&mut output).collect();
        Ok(Weighed {
            stack: Weight::stack(&parts.iter().collect::<Vec<_>>()),
            outputs: self.numerical(outputs)?,
            notes,
        })
    }

    pub fn numerical<T>(&self, result: std::result::Result<T, String>) -> Result<T> {
        result.map_err(|why| Error::Numerical {
            layer: self.layer,
            site: Site::Qkv.name().into(),
            why,
        })
    }
}

/// Works out one layer's latents; from shapes alone without moments.
pub(super) fn analyse(
    settings: &KvLowRankSettings,
    config: &ModelConfig,
    layer: usize,
    known: Option<(&DecoderLayer, &dyn Moments)>,
) -> Result<Analysis> {
    let slices = settings.slices(config.kv_heads, config.head_dim);
    let unit = |slice: &Slice| UnitPlan {
        site: 0,
        members: slice.members.clone(),
        out: slice.out(),
        input: config.hidden_size,
        losses: Losses::Unknown,
        score: 0.0,
    };
    let mut units: Vec<UnitPlan> = slices.iter().map(unit).collect();
    match (known, settings.rule) {
        (Some((block, moments)), KvRule::Loss) => {
            let own = KeyValues::new(settings, layer, block, moments)?;
            let input = moments.input(Site::Qkv)?;
            let input = own.numerical(whiten(&input, settings.input_ridge))?;
            let spectrum = |slice: &Slice| -> Result<Vec<f64>> {
                let weighed = own.of(slice, NoGradient::Nothing)?;
                let outputs: Vec<&Whitening> = weighed.outputs.iter().collect();
                own.numerical(Moment::of(&weighed.stack, &input, &outputs).spectrum())
            };
            let spectra: Vec<_> = slices.par_iter().map(spectrum).collect();
            for (unit, spectrum) in units.iter_mut().zip(spectra) {
                unit.losses = Losses::Ranks(tails(&spectrum?, unit.out.min(unit.input)));
            }
        }
        (Some((block, moments)), KvRule::Fisher | KvRule::FisherGroup) => {
            let own = match settings.reorder_heads {
                true => KeyValues::new(settings, layer, block, moments)?.order,
                false => None,
            };
            let own = own.unwrap_or_else(|| (0..config.kv_heads).collect());
            let rows = rows(&own, config.head_dim);
            for (unit, slice) in units.iter_mut().zip(&slices) {
                unit.score = score(settings.rule, slice, &rows, config, moments)?;
            }
        }
        (Some(_), KvRule::Uniform) | (None, _) => {}
    }
    let alone = |unit| {
        vec![AlternativePlan {
            neurons: None,
            removal_loss: 0.0,
            units: vec![unit],
            sizes: Vec::new(),
        }]
    };
    Ok(Analysis {
        layer,
        groups: units.into_iter().map(alone).collect(),
        order: Vec::new(),
        // Ridges are raised in the solution as they were here, and noted there.
        fallbacks: Vec::new(),
    })
}

/// The root of the mean squared gradient of a slice's weights, or of the projections it is of. A group's part of its
/// projection's is taken to be its part of the outputs' squared gradients, as if those did not depend on the inputs' sizes
/// (K-FAC).
fn score(
    rule: KvRule,
    slice: &Slice,
    rows: &[usize],
    config: &ModelConfig,
    moments: &dyn Moments,
) -> Result<f64> {
    let size = config.kv_heads * config.head_dim * config.hidden_size;
    let mut sum = 0.0;
    for member in &slice.members {
        let mut mean = moments.fisher(Site::Qkv, *member)? / size as f64;
        if rule == KvRule::FisherGroup {
            let sizes = moments.gradient(Site::Qkv, *member)?.rms();
            let square = |rms: &[f64]| rms.iter().map(|g| g * g).sum::<f64>() / rms.len() as f64;
            let of_slice = rows[slice.rows.clone()].iter().map(|row| sizes[*row]);
            let of_slice: Vec<f64> = of_slice.collect();
            mean *= square(&of_slice) / square(&sizes).max(f64::MIN_POSITIVE);
        }
        sum += mean;
    }
    Ok((sum / slice.members.len() as f64).sqrt())
}

/// Shares out the cache's numbers over the latents of all layers.
pub(super) fn plan(settings: &KvLowRankSettings, analyses: &[Analysis]) -> Result<Plan> {
    let unit = |group: &Vec<AlternativePlan>| group[0].units[0].clone();
    let units: Vec<UnitPlan> = analyses
        .iter()
        .flat_map(|a| a.groups.iter().map(unit))
        .collect();
    let site = |unit: &UnitPlan| {
        let losses = match &unit.losses {
            Losses::Unknown => &[][..],
            Losses::Ranks(losses) => losses,
        };
        let ranks = Ranks {
            floor: settings.rank_floor.min(unit.out).min(unit.input),
            step: settings.rank_step,
        };
        vec![Alternative {
            ladders: vec![Ladder::of_latents(unit.out, unit.input, ranks, losses)],
            scalars: 0,
            loss: 0.0,
        }]
    };
    let sites: Vec<Vec<Alternative>> = units.iter().map(site).collect();
    let dense: u64 = sites.iter().map(|s| s[0].ladders[0].dense).sum();
    let budget = (settings.keep * dense as f64).floor() as u64;
    let choices = match settings.rule {
        KvRule::Uniform => uniform(&sites, settings.keep),
        KvRule::Loss => loss(&sites, budget),
        KvRule::Fisher | KvRule::FisherGroup => {
            let scores: Vec<f64> = units.iter().map(|u| u.score).collect();
            fisher(&sites, &scores, settings.keep)
        }
    };
    let used = scalars(&sites, &choices);
    if used > budget {
        return Err(Error::Setting {
            what: "`keep`".into(),
            value: settings.keep.to_string(),
            range: format!(
                "at least {:.4}, the smallest rank of every latent",
                (1e4 * used as f64 / dense as f64).ceil() / 1e4
            ),
            hint: "raise `keep`, or lower `rank_floor`",
        });
    }
    let rungs = sites
        .iter()
        .zip(&choices)
        .map(|(s, c)| s[0].ladders[0].rungs[c.rungs[0]]);
    let mut planned = units
        .into_iter()
        .zip(rungs)
        .map(|(unit, rung)| PlannedUnit {
            site: Site::Qkv,
            members: unit.members,
            matrix: Matrix {
                out: unit.out,
                input: unit.input,
                identity: false,
            },
            rank: rung.size,
            // The second-order term of the loss is half the moments' product.
            predicted_loss: (settings.rule == KvRule::Loss).then_some(0.5 * rung.loss),
        });
    let layer = |analysis: &Analysis| LayerPlan {
        layer: analysis.layer,
        units: planned.by_ref().take(analysis.groups.len()).collect(),
        ..LayerPlan::default()
    };
    Ok(Plan {
        layers: analyses.iter().map(layer).collect(),
    })
}
