//! One site's projections, compressed as planned.

use cinder_models::checkpoint::SiteRecord;
use cinder_models::{DecoderLayer, Site};
use rayon::prelude::*;

use super::Factorization;
use super::analysis::{NO_GRADIENT, raised, weight};
use super::install::{self, Stored};
use crate::calibration::{Moments, SiteInputs};
use crate::error::{Error, Result};
use crate::linalg::{
    Cross, Decomposition, Gram, PivotRule, Weight, Whitening, error_between, refit, removal_error,
    whiten,
};
use crate::passes::work::site_record;
use crate::passes::{LayerPlan, PlannedUnit};

/// What a site reads now, and what it was made for.
struct Reading {
    inputs: Gram,
    /// Moments of what the dense site would read, where that is something else.
    targets: Option<(Gram, Cross)>,
    /// The places of the inputs among the targets.
    kept: Vec<usize>,
}

pub(super) fn apply(
    settings: &Factorization,
    plan: &LayerPlan,
    site: Site,
    dense: &DecoderLayer,
    block: &mut DecoderLayer,
    calibrated: Option<(&SiteInputs, &dyn Moments)>,
) -> Result<Vec<SiteRecord>> {
    let units: Vec<&PlannedUnit> = plan.units.iter().filter(|u| u.site == site).collect();
    let neurons = plan.neurons.as_deref();
    let unchanged = units.iter().all(|u| u.rank.is_none());
    let own = match site {
        Site::Qkv | Site::O => None,
        Site::GateUp | Site::Down => neurons,
    };
    let refitted = calibrated.is_some_and(|(inputs, _)| inputs.targets.is_some());
    if unchanged && own.is_none() && !refitted {
        return Ok(dense_records(plan, site, &units, dense));
    }
    let Some((site_inputs, moments)) = calibrated else {
        return Err(Error::Numerical {
            layer: plan.layer,
            site: site.name().into(),
            why: "no inputs were collected".into(),
        });
    };
    let job = SiteJob {
        settings,
        plan,
        site,
        dense,
        moments,
        reading: reading(site, own, site_inputs),
        rows: own.filter(|_| site == Site::GateUp),
    };
    let numerical = |why| Error::Numerical {
        layer: plan.layer,
        site: site.name().into(),
        why,
    };
    let input = whiten(&job.reading.inputs, settings.input_ridge).map_err(numerical)?;
    // The units of a site are independent, and much of their algebra runs on one thread.
    let solved: Vec<_> = units
        .par_iter()
        .map(|unit| job.unit(unit, &input, &numerical))
        .collect();
    let mut records = Vec::new();
    for (unit, solved) in units.iter().zip(solved) {
        let (stored, record) = solved?;
        install::install(dense, block, site, &unit.members, stored, job.rows);
        records.extend(self::records(plan, site, unit, dense, record));
    }
    Ok(records)
}

/// Which inputs a site has, given which neurons are kept.
fn reading(site: Site, neurons: Option<&[usize]>, inputs: &SiteInputs) -> Reading {
    let removed = neurons.filter(|_| site == Site::Down);
    match (&inputs.targets, removed) {
        (Some((targets, cross)), kept) => Reading {
            inputs: inputs.gram.clone(),
            kept: kept.map_or_else(|| (0..targets.width()).collect(), <[usize]>::to_vec),
            targets: Some((targets.clone(), cross.clone())),
        },
        (None, Some(kept)) => Reading {
            inputs: inputs.gram.subset(kept),
            targets: Some((inputs.gram.clone(), inputs.gram.columns(kept))),
            kept: kept.to_vec(),
        },
        (None, None) => Reading {
            inputs: inputs.gram.clone(),
            targets: None,
            kept: Vec::new(),
        },
    }
}

struct SiteJob<'a> {
    settings: &'a Factorization,
    plan: &'a LayerPlan,
    site: Site,
    dense: &'a DecoderLayer,
    moments: &'a dyn Moments,
    reading: Reading,
    /// The rows of the dense weights that are kept; none keeps all.
    rows: Option<&'a [usize]>,
}

impl SiteJob<'_> {
    fn unit(
        &self,
        unit: &PlannedUnit,
        input: &Whitening,
        numerical: &(dyn Fn(String) -> Error + Sync),
    ) -> Result<(Stored, SiteRecord)> {
        let mut fallbacks = Vec::new();
        // A projection that stays as it is needs no whitening, whatever its neighbours at the site do.
        let used = unit.rank.is_some() || self.reading.targets.is_some();
        if used {
            fallbacks.extend(raised("input", input, self.settings.input_ridge));
        }
        let originals: Vec<Weight> = unit
            .members
            .iter()
            .map(|m| {
                let whole = weight(self.plan.layer, self.dense, self.site, *m)?;
                Ok(self
                    .rows
                    .map_or_else(|| whole.clone(), |rows| whole.rows(rows)))
            })
            .collect::<Result<_>>()?;
        let original = Weight::stack(&originals.iter().collect::<Vec<_>>());
        let wanted = match &self.reading.targets {
            Some((_, cross)) => refit(&original, cross, input, &self.reading.kept),
            None => original.clone(),
        };
        let mut growth = None;
        let (stored, approximation) = match unit.rank {
            None => (Stored::dense(&wanted), wanted),
            Some(rank) => {
                let outputs = self.outputs(unit, numerical, &mut fallbacks)?;
                let outputs: Vec<&Whitening> = outputs.iter().collect();
                let decomposition =
                    Decomposition::of(&wanted, input, &outputs).map_err(numerical)?;
                let factors = decomposition.factors(&wanted, input, &outputs, rank);
                let product = factors.product();
                match self.settings.identity {
                    None => (Stored::plain(&factors.balanced()), product),
                    Some(bound) => {
                        let scale = self.reading.inputs.rms();
                        let rule = PivotRule {
                            scale: &scale,
                            bound,
                        };
                        let identity = factors.identity(rule).map_err(numerical)?;
                        growth = Some(identity.growth);
                        (Stored::identity(&identity), product)
                    }
                }
            }
        };
        if !stored.is_finite() {
            return Err(numerical(format!(
                "the factors of {} are not finite",
                names(unit)
            )));
        }
        let error = match &self.reading.targets {
            Some((targets, cross)) => removal_error(
                &original,
                targets,
                &approximation,
                cross,
                &self.reading.inputs,
            ),
            None if !used => 0.0,
            None => error_between(&original, &approximation, &self.reading.inputs),
        };
        let record = SiteRecord {
            rank: unit.rank,
            error,
            predicted_loss: unit.predicted_loss,
            condition: used.then_some(input.condition),
            growth,
            fallback: joined(fallbacks),
            ..SiteRecord::default()
        };
        Ok((stored, record))
    }

    fn outputs(
        &self,
        unit: &PlannedUnit,
        numerical: &dyn Fn(String) -> Error,
        fallbacks: &mut Vec<String>,
    ) -> Result<Vec<Whitening>> {
        if !self.settings.two_sided {
            return Ok(Vec::new());
        }
        let gram = |member: &usize| {
            let whole = self.moments.gradient(self.site, *member)?;
            Ok(match self.rows {
                Some(rows) => whole.subset(rows),
                None => whole,
            })
        };
        let grams = unit.members.iter().map(gram).collect::<Result<Vec<_>>>()?;
        let asked = self.settings.output_ridge;
        // Beside others, what has no gradient weighs no more than a ridge does.
        let largest = grams.iter().map(Gram::mean_square).fold(0.0, f64::max);
        let little = match largest > 0.0 {
            true => largest * asked.max(LEAST_WEIGHT),
            false => 1.0,
        };
        let output = |gram: &Gram| {
            if gram.mean_square() == 0.0 {
                fallbacks.push(NO_GRADIENT.into());
                return Ok(Whitening::flat(gram.width(), little));
            }
            let whitened = whiten(gram, asked).map_err(numerical)?;
            fallbacks.extend(raised("gradient", &whitened, asked));
            Ok(whitened)
        };
        grams.iter().map(output).collect()
    }
}

/// Of what has no gradient, beside what has one.
pub(in super::super) const LEAST_WEIGHT: f64 = 1e-6;

/// What was done differently, each once; none where nothing was.
fn joined(mut fallbacks: Vec<String>) -> Option<String> {
    let mut seen = Vec::new();
    fallbacks.retain(|f| {
        let new = !seen.contains(f);
        seen.push(f.clone());
        new
    });
    (!fallbacks.is_empty()).then(|| fallbacks.join("; "))
}

/// What the plan's analysis and the compression of a projection did differently.
fn fallback(plan: &LayerPlan, site: Site, member: usize, own: Option<&str>) -> Option<String> {
    let of_plan = plan
        .fallbacks
        .iter()
        .filter(|f| Site::ALL.get(f.site) == Some(&site) && f.members.contains(&member));
    let own = own
        .iter()
        .flat_map(|own| own.split("; "))
        .map(str::to_owned);
    joined(of_plan.map(|f| f.what.clone()).chain(own).collect())
}

fn names(unit: &PlannedUnit) -> String {
    let names = unit
        .members
        .iter()
        .map(|m| format!("`{}`", unit.site.projections()[*m]));
    names.collect::<Vec<_>>().join(", ")
}

fn dense_records(
    plan: &LayerPlan,
    site: Site,
    units: &[&PlannedUnit],
    dense: &DecoderLayer,
) -> Vec<SiteRecord> {
    units
        .iter()
        .flat_map(|unit| {
            let whole = SiteRecord {
                predicted_loss: unit.predicted_loss,
                ..SiteRecord::default()
            };
            records(plan, site, unit, dense, whole)
        })
        .collect()
}

/// One record for each projection of a unit; a shared basis, its loss and its error are noted with the first.
fn records(
    plan: &LayerPlan,
    site: Site,
    unit: &PlannedUnit,
    dense: &DecoderLayer,
    whole: SiteRecord,
) -> Vec<SiteRecord> {
    let shared = unit.members.len() > 1;
    let kept = plan.neurons.as_ref().map(Vec::len);
    let neurons = match site {
        Site::Qkv | Site::O => None,
        Site::GateUp | Site::Down => kept,
    };
    let kind = match (unit.rank, shared, unit.matrix.identity, neurons) {
        (None, _, _, None) => "dense",
        (None, _, _, Some(_)) => "pruned",
        (Some(_), false, false, _) => "low-rank",
        (Some(_), false, true, _) => "identity-block",
        (Some(_), true, false, _) => "shared-basis",
        (Some(_), true, true, _) => "shared-identity-block",
    };
    let mut left = unit.scalars();
    let mut records: Vec<SiteRecord> = Vec::new();
    // From the last to the first, so that what is shared stays for the first.
    for member in unit.members.iter().rev() {
        let (out, input) = dense.site(site)[*member].shape();
        let own_out = match site {
            Site::GateUp => neurons.unwrap_or(out),
            _ => out,
        };
        let scalars = match (*member == unit.members[0], unit.rank) {
            (true, _) => left,
            (false, Some(rank)) => (rank * own_out) as u64,
            (false, None) => (unit.matrix.input * own_out) as u64,
        };
        left -= scalars;
        let name = site.projections()[*member];
        records.push(SiteRecord {
            kind: kind.into(),
            neurons,
            scalars,
            keep_ratio: scalars as f64 / (out * input) as f64,
            fallback: fallback(plan, site, *member, whole.fallback.as_deref()),
            rank: whole.rank,
            error: whole.error,
            predicted_loss: whole.predicted_loss,
            condition: whole.condition,
            growth: whole.growth,
            ..site_record(plan.layer, site, name, [out, input])
        });
    }
    records.reverse();
    // What removing neurons loses is noted where they were summed.
    if let (Site::Down, Some(removal)) = (site, plan.removal_loss) {
        for record in &mut records {
            record.predicted_loss = record.predicted_loss.map(|p| p + removal);
        }
    }
    for record in records.iter_mut().skip(1) {
        record.predicted_loss = record.predicted_loss.map(|_| 0.0);
    }
    records
}
