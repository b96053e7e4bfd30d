//! Records of the same compression become one, and find the evaluations of the model they made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::cells::{self, Cell, ProjectionSummary};
use super::{Compression, check};
use crate::error::ReportError;
use crate::input::Evaluation;

/// How far the keep ratios of a record and of an evaluation of its model may lie apart: rounding only.
const SAME_KEEP: f64 = 1e-4;
/// How far numbers may lie apart that were written from the same value.
const SAME_NUMBER: f64 = 1e-9;

/// A compressed model with everything known about how it was made.
#[derive(Debug)]
pub(crate) struct Compressed<'a> {
    /// All its records as one.
    pub record: Compression,
    /// Other files that tell of the same compression.
    pub also: Vec<PathBuf>,
    /// Evaluations of the model, in file order.
    pub evaluations: Vec<&'a Evaluation>,
    /// What the report calls it; no two models share one.
    pub label: String,
}

impl Compressed<'_> {
    /// Its projections, by layer, then by projection.
    pub fn cells(&self) -> Vec<Cell<'_>> {
        cells::cells(&self.record)
    }

    /// One summary a projection, over all layers.
    pub fn summaries(&self) -> Vec<ProjectionSummary<'_>> {
        cells::summaries(&self.cells())
    }

    /// Kinds with their numbers of projections, the most frequent first.
    pub fn kinds(&self) -> Vec<(&str, usize)> {
        cells::kinds(&self.cells())
    }

    /// Projections where something had to be done differently for numerical reasons.
    pub fn fallbacks(&self) -> usize {
        cells::fallbacks(&self.cells())
    }
}

/// Checks all records, joins those of the same compression, and gives each the evaluations of its model. The order of the
/// input does not matter; the result is by recipe, then from the largest keep ratio to the smallest.
///
/// An evaluation belongs to the compression of the same recipe and keep ratio. Where several have both, or none says its
/// recipe, the end of the model's path decides; where that decides nothing, the evaluation stays without one.
pub(crate) fn join<'a>(
    compressions: &[Compression],
    evaluations: &'a [Evaluation],
) -> Result<Vec<Compressed<'a>>, ReportError> {
    let mut sorted: Vec<&Compression> = compressions.iter().collect();
    sorted.sort_by(|a, b| a.file.cmp(&b.file));
    let mut models: Vec<Compressed<'a>> = Vec::new();
    for record in sorted {
        check::check(record)?;
        match models.iter_mut().find(|model| same(&model.record, record)) {
            Some(model) => complete(model, record),
            None => models.push(Compressed {
                record: record.clone(),
                also: Vec::new(),
                evaluations: Vec::new(),
                label: String::new(),
            }),
        }
    }
    let mut evaluations: Vec<&Evaluation> = evaluations.iter().collect();
    evaluations.sort_by(|a, b| a.file.cmp(&b.file));
    for evaluation in evaluations {
        if let Some(model) = owner(&mut models, evaluation) {
            model.evaluations.push(evaluation);
            if model.record.recipe.is_none() {
                model
                    .record
                    .recipe
                    .clone_from(&evaluation.result.model.recipe);
            }
        }
    }
    name(&mut models);
    models.sort_by(|a, b| {
        let (left, right) = (&a.record, &b.record);
        left.recipe
            .cmp(&right.recipe)
            .then(right.keep_ratio.total_cmp(&left.keep_ratio))
            .then_with(|| a.label.cmp(&b.label))
    });
    Ok(models)
}

/// Whether two files tell of the same compression: a manifest and what `cinder compress` printed, or copies.
fn same(a: &Compression, b: &Compression) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= SAME_NUMBER * a.abs().max(b.abs());
    let recipes = a.recipe.is_none() || b.recipe.is_none() || a.recipe == b.recipe;
    let (left, right) = (cells::cells(a), cells::cells(b));
    recipes
        && close(a.keep_ratio, b.keep_ratio)
        && left.len() == right.len()
        && left.iter().zip(&right).all(|(left, right)| {
            let (left, right) = (&left.site.record, &right.site.record);
            left.layer == right.layer
                && left.projection == right.projection
                && left.kind == right.kind
                && left.rank == right.rank
                && close(left.keep_ratio, right.keep_ratio)
                && close(left.error, right.error)
        })
}

/// Adds to a model what only `record` says of it.
fn complete(model: &mut Compressed<'_>, record: &Compression) {
    let known = &mut model.record;
    known.recipe = known.recipe.take().or_else(|| record.recipe.clone());
    known.seconds = known.seconds.or(record.seconds);
    known.details.complete(&record.details);
    let seconds: BTreeMap<(usize, &str), f64> = record
        .sites
        .iter()
        .filter_map(|site| {
            let key = (site.record.layer, site.record.projection.as_str());
            site.seconds.map(|seconds| (key, seconds))
        })
        .collect();
    for site in &mut known.sites {
        let key = (site.record.layer, site.record.projection.as_str());
        site.seconds = site.seconds.or_else(|| seconds.get(&key).copied());
    }
    if known.file != record.file && !model.also.contains(&record.file) {
        model.also.push(record.file.clone());
    }
}

/// The model that was evaluated; none where nothing tells.
fn owner<'m, 'a>(
    models: &'m mut [Compressed<'a>],
    evaluation: &Evaluation,
) -> Option<&'m mut Compressed<'a>> {
    let evaluated = &evaluation.result.model;
    let recipe = evaluated.recipe.as_ref()?;
    let path = Path::new(&evaluated.path);
    let mut candidates: Vec<(usize, &mut Compressed<'a>)> = models
        .iter_mut()
        .filter(|model| (model.record.keep_ratio - evaluated.keep_ratio).abs() <= SAME_KEEP)
        .filter_map(|model| {
            let agree = common_end(path, &model.record.path);
            let named = match &model.record.recipe {
                Some(known) => known == recipe,
                None => agree > 0,
            };
            named.then_some((agree, model))
        })
        .collect();
    candidates.sort_by_key(|(agree, _)| std::cmp::Reverse(*agree));
    let tie = matches!(candidates.as_slice(), [(a, _), (b, _), ..] if a == b);
    let best = candidates.into_iter().next().filter(|_| !tie);
    best.map(|(_, model)| model)
}

/// How many components two paths share, counted from their ends.
fn common_end(a: &Path, b: &Path) -> usize {
    let pairs = a.components().rev().zip(b.components().rev());
    pairs.take_while(|(a, b)| a == b).count()
}

/// Gives every model a name of its own: its evaluation's, else its recipe's, else its directory's.
fn name(models: &mut [Compressed<'_>]) {
    for model in models.iter_mut() {
        let record = &model.record;
        let folder = || {
            let last = record.path.file_name().map(|name| name.to_string_lossy());
            last.map_or_else(|| record.path.display().to_string(), String::from)
        };
        model.label = match (model.evaluations.first(), &record.recipe) {
            (Some(evaluation), _) => evaluation.result.model.name.clone(),
            (None, Some(recipe)) => format!("{recipe} {:.2}", record.keep_ratio),
            (None, None) => folder(),
        };
    }
    // First the directory, which says most; then, where even that is shared, a number.
    for attempt in 0..2 {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for model in models.iter() {
            *count.entry(model.label.clone()).or_default() += 1;
        }
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for model in models.iter_mut().filter(|model| count[&model.label] > 1) {
            let number = seen.entry(model.label.clone()).or_default();
            *number += 1;
            let detail = match attempt {
                0 => model.record.path.display().to_string(),
                _ => number.to_string(),
            };
            model.label = format!("{} ({detail})", model.label);
        }
    }
}

/// Indices of at most `most` models that differ most from each other, in order: the strongest compression, then always the
/// one farthest from all chosen.
pub(crate) fn most_different(models: &[Compressed<'_>], most: usize) -> Vec<usize> {
    if models.len() <= most {
        return (0..models.len()).collect();
    }
    let cells: Vec<Vec<Cell<'_>>> = models.iter().map(Compressed::cells).collect();
    let keep = |index: &usize| models[*index].record.keep_ratio;
    let Some(first) = (0..models.len()).min_by(|a, b| keep(a).total_cmp(&keep(b))) else {
        return Vec::new();
    };
    let mut chosen = vec![first];
    let mut nearest = vec![f64::INFINITY; models.len()];
    while let Some(&last) = chosen.last().filter(|_| chosen.len() < most) {
        for (index, distance) in nearest.iter_mut().enumerate() {
            *distance = distance.min(difference(&cells[index], &cells[last]));
        }
        let free = (0..models.len()).filter(|index| !chosen.contains(index));
        // The first of equals, so that the choice follows the order of the models.
        let next = free
            .rev()
            .max_by(|a, b| nearest[*a].total_cmp(&nearest[*b]));
        let Some(next) = next else { break };
        chosen.push(next);
    }
    chosen.sort_unstable();
    chosen
}

/// Mean difference of the kept shares, plus the share of projections of another kind.
fn difference(a: &[Cell<'_>], b: &[Cell<'_>]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let pair = |(a, b): (&Cell<'_>, &Cell<'_>)| {
        let other = a.site.record.kind != b.site.record.kind;
        (a.kept - b.kept).abs() + f64::from(u8::from(other))
    };
    a.iter().zip(b).map(pair).sum::<f64>() / a.len().max(1) as f64
}
