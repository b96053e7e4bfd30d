//! What figures and tables show of each projection, and its summary over the layers.

use std::collections::BTreeMap;

use super::{CompressedSite, Compression};

/// The projections in the order of the data's way through a block.
const PROJECTIONS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

/// Each kind's letter in a figure.
pub(crate) const KINDS: [(&str, &str); 9] = [
    ("dense", "D"),
    ("low-rank", "L"),
    ("identity-block", "I"),
    ("shared-basis", "S"),
    ("shared-identity-block", "X"),
    ("pruned", "P"),
    ("group-head", "G"),
    ("joint-group-head", "J"),
    ("quantized", "Q"),
];

/// Place of a projection in the order of [`PROJECTIONS`]; unknown ones come last.
pub(crate) fn position(projection: &str) -> usize {
    let place = PROJECTIONS.iter().position(|name| *name == projection);
    place.unwrap_or(PROJECTIONS.len())
}

/// One projection of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub site: &'a CompressedSite,
    /// Stored scalars, after / before. The record counts a shared basis with the first of its projections; here all of them
    /// carry it in proportion, or the first would seem to grow and the others to vanish.
    pub kept: f64,
}

impl Cell<'_> {
    /// Letter of the kind; `?` for one this version does not know.
    pub fn letter(&self) -> &'static str {
        let known = KINDS
            .iter()
            .find(|(kind, _)| *kind == self.site.record.kind);
        known.map_or("?", |(_, letter)| letter)
    }

    /// Stored scalars; none where an old manifest does not say.
    pub fn scalars(&self) -> Option<u64> {
        let record = &self.site.record;
        (record.scalars > 0 || record.keep_ratio == 0.0).then_some(record.scalars)
    }
}

/// All cells, by layer, then by projection.
pub(super) fn cells(compression: &Compression) -> Vec<Cell<'_>> {
    let shared = |site: &CompressedSite| {
        let kind = site.record.kind.as_str();
        kind.starts_with("shared") || kind.starts_with("joint")
    };
    let mut sums: BTreeMap<(usize, &str), (f64, f64)> = BTreeMap::new();
    for site in compression.sites.iter().filter(|site| shared(site)) {
        let record = &site.record;
        let before = record.shape[0] as f64 * record.shape[1] as f64;
        let sum = sums.entry((record.layer, &record.site)).or_default();
        sum.0 += record.keep_ratio * before;
        sum.1 += before;
    }
    let kept = |site: &CompressedSite| {
        let key = (site.record.layer, site.record.site.as_str());
        match sums.get(&key).filter(|_| shared(site)) {
            Some((after, before)) if *before > 0.0 => after / before,
            _ => site.record.keep_ratio,
        }
    };
    let mut cells: Vec<Cell<'_>> = compression
        .sites
        .iter()
        .map(|site| Cell {
            site,
            kept: kept(site),
        })
        .collect();
    cells.sort_by(|a, b| {
        let (a, b) = (&a.site.record, &b.site.record);
        (a.layer, position(&a.projection), &a.projection).cmp(&(
            b.layer,
            position(&b.projection),
            &b.projection,
        ))
    });
    cells
}

/// One kind of projection over all layers.
#[derive(Debug)]
pub(crate) struct ProjectionSummary<'a> {
    pub projection: &'a str,
    /// Kinds with how many layers have them, the most frequent first.
    pub kinds: Vec<(&'a str, usize)>,
    /// Mean over the layers.
    pub kept: f64,
    /// Smallest and largest; none where no layer has a rank.
    pub rank: Option<(usize, usize)>,
    /// Smallest and largest.
    pub error: (f64, f64),
    pub fallbacks: usize,
}

/// A summary for every projection there is, in their order.
pub(super) fn summaries<'a>(cells: &[Cell<'a>]) -> Vec<ProjectionSummary<'a>> {
    let mut by_projection: BTreeMap<(usize, &str), Vec<Cell<'a>>> = BTreeMap::new();
    for cell in cells {
        let name = cell.site.record.projection.as_str();
        let of = by_projection.entry((position(name), name)).or_default();
        of.push(*cell);
    }
    let summary = |((_, projection), cells): ((usize, &'a str), Vec<Cell<'a>>)| {
        let errors = || cells.iter().map(|cell| cell.site.record.error);
        let ranks = || cells.iter().filter_map(|cell| cell.site.record.rank);
        ProjectionSummary {
            projection,
            kinds: kinds(&cells),
            kept: cells.iter().map(|cell| cell.kept).sum::<f64>() / cells.len() as f64,
            rank: ranks().min().zip(ranks().max()),
            error: (
                errors().fold(f64::INFINITY, f64::min),
                errors().fold(0.0, f64::max),
            ),
            fallbacks: fallbacks(&cells),
        }
    };
    by_projection.into_iter().map(summary).collect()
}

/// Kinds with their numbers of projections, the most frequent first.
pub(super) fn kinds<'a>(cells: &[Cell<'a>]) -> Vec<(&'a str, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for cell in cells {
        *counts.entry(&cell.site.record.kind).or_default() += 1;
    }
    let mut kinds: Vec<_> = counts.into_iter().collect();
    kinds.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    kinds
}

/// Projections where something had to be done differently for numerical reasons.
pub(super) fn fallbacks(cells: &[Cell<'_>]) -> usize {
    let fell = |cell: &&Cell<'_>| cell.site.record.fallback.is_some();
    cells.iter().filter(fell).count()
}
