//! What the sites of one layer may become, and what each size would lose.

use std::collections::BTreeMap;

use cinder_models::projection::Projection;
use cinder_models::{DecoderLayer, ModelConfig, Site};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Factorization;
use crate::calibration::Moments;
use crate::error::{Error, Result};
use crate::linalg::{Gram, Moment, NeuronSpectra, Weight, Whitened, Whitening, eliminate, whiten};

/// What one layer's sites may become. It is kept on disk between the passes over the model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Analysis {
    /// Which, from 0.
    pub layer: usize,
    /// Sites that are decided together, each with its alternatives.
    pub groups: Vec<Vec<AlternativePlan>>,
    /// The feed-forward's neurons, the first to be removed first; empty when none are.
    pub order: Vec<usize>,
    /// What had to be done differently for numerical reasons.
    pub fallbacks: Vec<Fallback>,
}

/// What was done differently for the sake of numerics, and for which projections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fallback {
    /// Place of the site in [`Site::ALL`].
    pub site: usize,
    /// Places of the projections in the site.
    pub members: Vec<usize>,
    /// In words.
    pub what: String,
}

/// One way to compress a group of sites.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlternativePlan {
    /// Neurons that are kept; none keeps all.
    pub neurons: Option<usize>,
    /// What removing the others loses.
    pub removal_loss: f64,
    /// Place of the site in [`Site::ALL`].
    pub units: Vec<UnitPlan>,
    /// Instead of units: numbers of neurons and what each loses, falling, the first all of them.
    pub sizes: Vec<(usize, f64)>,
}

/// One matrix of an alternative: a projection, or the projections that share a basis.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnitPlan {
    /// Place of the site in [`Site::ALL`].
    pub site: usize,
    /// Places of the projections in the site.
    pub members: Vec<usize>,
    /// Rows, of all of them together.
    pub out: usize,
    /// Columns.
    pub input: usize,
    /// What each rank loses.
    pub losses: Losses,
    /// Root of the mean squared gradient of its weights, where known.
    pub score: f64,
}

/// What each rank of a matrix loses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Losses {
    /// Only shapes are known.
    Unknown,
    /// By rank, from zero.
    Ranks(Vec<f64>),
}

impl UnitPlan {
    /// The site.
    pub fn site(&self) -> Site {
        Site::ALL[self.site.min(Site::ALL.len() - 1)]
    }
}

/// Where a spectrum goes once it is known: group, alternative, unit.
type Place = (usize, usize, usize);

/// Works out one layer's alternatives; from shapes alone without moments.
pub(super) fn analyse(
    settings: &Factorization,
    config: &ModelConfig,
    layer: usize,
    known: Option<(&DecoderLayer, &dyn Moments)>,
) -> Result<Analysis> {
    let mut analysis = Analysis {
        layer,
        ..Analysis::default()
    };
    let together = settings.neurons();
    for site in Site::ALL.iter().filter(|s| settings.sites.contains(s)) {
        let alternatives = structures(settings, config, *site);
        match (together, *site) {
            // Down joins the group that gate and up have begun.
            (true, Site::Down) => {
                let down = &alternatives[0].units;
                let group = analysis.groups.last_mut().into_iter().flatten();
                group.for_each(|a| a.units.extend(down.iter().cloned()));
            }
            _ => analysis.groups.push(alternatives),
        }
    }
    let Some((block, moments)) = known else {
        return Ok(analysis);
    };
    let mut solver = Solver {
        settings,
        layer,
        block,
        moments,
        queue: Vec::new(),
        fallbacks: Vec::new(),
    };
    for group in 0..analysis.groups.len() {
        solver.group(&mut analysis, group)?;
    }
    if together {
        let group = analysis.groups.len() - 1;
        solver.neurons(&mut analysis, group)?;
    }
    solver.flush(&mut analysis)?;
    analysis.fallbacks = solver.fallbacks;
    Ok(analysis)
}

/// The alternatives of a site that has all its neurons.
fn structures(settings: &Factorization, config: &ModelConfig, site: Site) -> Vec<AlternativePlan> {
    let names = site.projections();
    let position = Site::ALL.iter().position(|s| *s == site).unwrap_or(0);
    let unit = |members: Vec<usize>| {
        let shapes = || members.iter().map(|m| config.projection_shape(names[*m]));
        UnitPlan {
            site: position,
            out: shapes().map(|s| s.0).sum(),
            input: shapes().map(|s| s.1).max().unwrap_or(0),
            members,
            losses: Losses::Unknown,
            score: 0.0,
        }
    };
    let alternative = |units| AlternativePlan {
        neurons: None,
        removal_loss: 0.0,
        units,
        sizes: Vec::new(),
    };
    let mut all = Vec::new();
    let members: Vec<usize> = settings.members(site).collect();
    let shared = settings.structures.shared && members.len() > 1;
    if settings.structures.separate || !shared {
        let own = members.iter().map(|m| unit(vec![*m]));
        all.push(alternative(own.collect()));
    }
    if shared {
        all.push(alternative(vec![unit(members)]));
    }
    all
}

/// Works out spectra, a few at a time: the small matrices they come from wait in a queue, the large moments do not.
struct Solver<'a> {
    settings: &'a Factorization,
    layer: usize,
    block: &'a DecoderLayer,
    moments: &'a dyn Moments,
    queue: Vec<(Vec<Place>, Moment)>,
    fallbacks: Vec<Fallback>,
}

impl Solver<'_> {
    fn numerical<T>(&self, site: Site, result: std::result::Result<T, String>) -> Result<T> {
        result.map_err(|why| Error::Numerical {
            layer: self.layer,
            site: site.name().into(),
            why,
        })
    }

    fn weight(&self, site: Site, member: usize) -> Result<Weight> {
        weight(self.layer, self.block, site, member)
    }

    fn note(&mut self, site: Site, members: Vec<usize>, what: Option<String>) {
        let place = Site::ALL.iter().position(|s| *s == site).unwrap_or(0);
        let fallback = what.map(|what| Fallback {
            site: place,
            members,
            what,
        });
        // Moments are whitened once for each structure.
        let new = fallback.filter(|f| !self.fallbacks.contains(f));
        self.fallbacks.extend(new);
    }

    fn whitened_input(&mut self, site: Site) -> Result<Whitening> {
        let gram = self.moments.input(site)?;
        let asked = self.settings.input_ridge;
        let whitened = self.numerical(site, whiten(&gram, asked))?;
        let all = (0..site.projections().len()).collect();
        self.note(site, all, raised("input", &whitened, asked));
        Ok(whitened)
    }

    fn whitened_output(&mut self, site: Site, member: usize) -> Result<Option<Whitening>> {
        if !self.settings.two_sided {
            return Ok(None);
        }
        let gram = self.moments.gradient(site, member)?;
        // What the loss does not depend on loses nothing.
        if gram.mean_square() == 0.0 {
            self.note(site, vec![member], Some(NO_GRADIENT.into()));
            return Ok(Some(Whitening::flat(gram.width(), 0.0)));
        }
        let asked = self.settings.output_ridge;
        let whitened = self.numerical(site, whiten(&gram, asked))?;
        self.note(site, vec![member], raised("gradient", &whitened, asked));
        Ok(Some(whitened))
    }

    /// The spectra of every unit of a group.
    fn group(&mut self, analysis: &mut Analysis, group: usize) -> Result<()> {
        let mut places: Vec<(Site, Vec<usize>, Vec<Place>)> = Vec::new();
        let scores_only = self.settings.rule == super::Rule::Fisher;
        for (a, alternative) in analysis.groups[group].iter_mut().enumerate() {
            for (u, unit) in alternative.units.iter_mut().enumerate() {
                let (site, place) = (unit.site(), (group, a, u));
                if scores_only {
                    unit.score = self.score(site, &unit.members, unit.out * unit.input)?;
                    continue;
                }
                let same = places
                    .iter_mut()
                    .find(|p| p.0 == site && p.1 == unit.members);
                match same {
                    Some(found) => found.2.push(place),
                    None => places.push((site, unit.members.clone(), vec![place])),
                }
            }
        }
        for site in Site::ALL {
            let here: Vec<_> = places.iter().filter(|p| p.0 == site).collect();
            if here.is_empty() {
                continue;
            }
            let input = self.whitened_input(site)?;
            let mut whitened = BTreeMap::new();
            for member in self.settings.members(site) {
                let output = self.whitened_output(site, member)?;
                let output: Vec<&Whitening> = output.iter().collect();
                let weight = self.weight(site, member)?;
                whitened.insert(member, Whitened::of(&weight, &input, &output));
            }
            drop(input);
            for (_, members, places) in here {
                let moment = match &members[..] {
                    [member] => whitened[member].moment(),
                    all => {
                        let parts: Vec<&Whitened> = all.iter().map(|m| &whitened[m]).collect();
                        Moment::of_stack(&parts)
                    }
                };
                self.push(analysis, places.clone(), moment)?;
            }
        }
        Ok(())
    }

    fn score(&self, site: Site, members: &[usize], size: usize) -> Result<f64> {
        let squares = members.iter().map(|m| self.moments.fisher(site, *m));
        let sum: f64 = squares.collect::<Result<Vec<f64>>>()?.iter().sum();
        Ok((sum / size as f64).sqrt())
    }

    /// The alternatives with fewer neurons.
    fn neurons(&mut self, analysis: &mut Analysis, group: usize) -> Result<()> {
        let separate = analysis.groups[group][0].units.clone();
        let [gate, _, down] = &separate[..] else {
            return Ok(());
        };
        let count = gate.out;
        let grid = self.grid(count);
        let input = self.whitened_input(Site::Down)?;
        let output = self.whitened_output(Site::Down, 0)?;
        let weight = self.weight(Site::Down, 0)?;
        let eliminated = self.numerical(
            Site::Down,
            eliminate(
                &weight,
                &input,
                output.as_ref(),
                self.settings.neuron_step,
                &grid,
            ),
        )?;
        drop((input, output));
        analysis.order = eliminated.order;
        if self.settings.structures.pruned {
            analysis.groups[group].push(AlternativePlan {
                neurons: None,
                removal_loss: 0.0,
                units: Vec::new(),
                sizes: eliminated
                    .kept
                    .iter()
                    .copied()
                    .zip(eliminated.loss.iter().copied())
                    .collect(),
            });
        }
        if !self.settings.structures.hybrid {
            return Ok(());
        }
        let first = analysis.groups[group].len();
        // Spectra of growing sets of neurons come cheapest in order of growth.
        let mut moments = eliminated.moments;
        moments.sort_by_key(|(kept, _)| *kept);
        for (kept, _) in &moments {
            let at = eliminated.kept.iter().position(|k| k == kept);
            let mut units = separate.clone();
            for unit in &mut units[..2] {
                unit.out = *kept;
            }
            units[2] = UnitPlan {
                input: *kept,
                ..down.clone()
            };
            analysis.groups[group].push(AlternativePlan {
                neurons: Some(*kept),
                removal_loss: at.map_or(0.0, |i| eliminated.loss[i]),
                units,
                sizes: Vec::new(),
            });
        }
        let counts: Vec<usize> = moments.iter().map(|(kept, _)| *kept).collect();
        for (i, (_, moment)) in moments.into_iter().enumerate() {
            self.push(analysis, vec![(group, first + i, 2)], moment)?;
        }
        let input = self.whitened_input(Site::GateUp)?;
        for member in 0..2 {
            let gradient = match self.settings.two_sided {
                true => Some(self.moments.gradient(Site::GateUp, member)?),
                false => None,
            };
            let weight = self.weight(Site::GateUp, member)?;
            let ridge = self.settings.output_ridge;
            let mut spectra = NeuronSpectra::new(
                &weight,
                gradient.as_ref(),
                ridge,
                &analysis.order.clone(),
                &input,
            );
            drop::<Option<Gram>>(gradient);
            for (i, kept) in counts.iter().enumerate() {
                let moment = spectra.grow(*kept);
                self.push(analysis, vec![(group, first + i, member)], moment)?;
            }
        }
        Ok(())
    }

    /// Numbers of neurons to try factors at, between a quarter and all, reached by whole steps of removal.
    fn grid(&self, count: usize) -> Vec<usize> {
        let step = self.settings.neuron_step;
        let sizes = match self.settings.structures.hybrid {
            true => self.settings.neuron_sizes.min(count),
            false => 0,
        };
        let mut grid: Vec<usize> = (0..sizes)
            .map(|i| count / 4 + (count - count / 4) * i / sizes.max(1))
            .map(|wanted| count - (count - wanted) / step * step)
            .filter(|kept| *kept < count && *kept > 0)
            .collect();
        grid.dedup();
        grid
    }

    fn push(&mut self, analysis: &mut Analysis, places: Vec<Place>, moment: Moment) -> Result<()> {
        self.queue.push((places, moment));
        match self.queue.len() >= 2 * rayon::current_num_threads() {
            true => self.flush(analysis),
            false => Ok(()),
        }
    }

    fn flush(&mut self, analysis: &mut Analysis) -> Result<()> {
        let queue = std::mem::take(&mut self.queue);
        let spectra: Vec<_> = queue.par_iter().map(|(_, m)| m.spectrum()).collect();
        for ((places, _), spectrum) in queue.iter().zip(spectra) {
            let site = analysis.groups[places[0].0][places[0].1].units[places[0].2].site();
            let spectrum = self.numerical(site, spectrum)?;
            for (group, alternative, unit) in places {
                let unit = &mut analysis.groups[*group][*alternative].units[*unit];
                unit.losses = Losses::Ranks(tails(&spectrum, unit.out.min(unit.input)));
            }
        }
        Ok(())
    }
}

/// What a record says where a projection's gradients were zero on every token.
pub(in super::super) const NO_GRADIENT: &str = "all gradients are zero: outputs weighed alike";

/// What a record says where a moment needed a larger ridge than was asked for.
pub(in super::super) fn raised(what: &str, whitening: &Whitening, asked: f64) -> Option<String> {
    let ridge = whitening.ridge;
    let text = || format!("{what} ridge raised from {asked:e} to {ridge:e}");
    whitening.raised.then(text)
}

/// `Σ_{i>r} σᵢ²` for every rank r up to `most`; values beyond it are rounding.
pub(in super::super) fn tails(spectrum: &[f64], most: usize) -> Vec<f64> {
    let mut tails = vec![0.0; most + 1];
    for r in (0..most).rev() {
        tails[r] = tails[r + 1] + spectrum.get(r).copied().unwrap_or(0.0);
    }
    tails
}

/// A projection's matrix in f64.
pub(in super::super) fn weight(
    layer: usize,
    block: &DecoderLayer,
    site: Site,
    member: usize,
) -> Result<Weight> {
    let name = site.projections()[member];
    let linear = match block.site(site)[member] {
        Projection::Dense(linear) => linear,
        other => {
            return Err(Error::NotDense {
                layer,
                projection: name.into(),
                kind: other.kind().into(),
            });
        }
    };
    let [input, out] = linear.weight.val().dims();
    let values = linear
        .weight
        .val()
        .transpose()
        .into_data()
        .try_into_vec::<f32>();
    let values = values.map_err(|e| Error::Numerical {
        layer,
        site: site.name().into(),
        why: format!("the weight of `{name}` could not be read: {e:?}"),
    })?;
    Ok(Weight::new(&values, out, input))
}
