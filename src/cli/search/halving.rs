//! Which candidates are measured on how much, and which is left.

use std::path::Path;

use anyhow::Result;
use cinder::eval::Corpus;
use cinder::eval::search::{SearchCandidate, SearchRow, SearchRung};
use cinder::models::checkpoint::Checkpoint;
use fs_err as fs;
use serde::Deserialize;

use super::budget::middle;
use super::candidates::Candidate;
use super::{Args, NOMINAL};
use crate::cli::context::Context;
use crate::cli::sweep::Maker;

/// One candidate of `ETA` is kept from rung to rung, and each rung has as many times the windows.
const ETA: usize = 3;
/// The least keep ratio that is tried when the budget is one of quality.
const LEAST: f64 = 0.2;

/// A search that found nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "no size that was tried stays within the perplexity: the largest, a keep ratio of {keep}, is at {ratio:.4} of the dense model's"
)]
pub struct NothingWithin {
    keep: f64,
    ratio: f64,
}

impl cinder::models::Hint for NothingWithin {
    fn hint(&self) -> Option<String> {
        Some("allow a larger `--max-ppl-increase`, or more `--steps`".into())
    }
}

/// A search that is under way.
pub struct Search<'a> {
    pub context: &'a Context,
    pub args: &'a Args,
    pub corpus: &'a Corpus,
    pub checkpoint: &'a Checkpoint,
    pub maker: Maker<'a>,
    /// Where the search is being written.
    pub folder: &'a Path,
}

impl Search<'_> {
    /// Successive halving: every rung, and what is left with its last measurement.
    pub fn halve(
        &mut self,
        tried: Vec<(Candidate, f64)>,
    ) -> Result<(Vec<SearchRung>, (Candidate, SearchRow))> {
        let sizes = rungs(tried.len());
        let mut left = tried;
        let mut all = Vec::new();
        for (rung, size) in sizes.iter().enumerate() {
            left.truncate(*size);
            let fewer = ETA.pow((sizes.len() - 1 - rung) as u32);
            let windows = (self.args.windows as usize / fewer).max(1);
            self.context.printer.say(&format!(
                "rung {} of {}: {size} candidates on {windows} windows",
                rung + 1,
                sizes.len()
            ));
            let mut measured = Vec::with_capacity(left.len());
            for (candidate, keep) in left {
                let row = self.tried(&candidate, keep, windows)?;
                measured.push((row, (candidate, keep)));
            }
            measured.sort_by(|(a, _), (b, _)| a.perplexity.total_cmp(&b.perplexity));
            let (rows, ranked): (Vec<_>, Vec<_>) = measured.into_iter().unzip();
            left = ranked;
            all.push(SearchRung {
                windows: windows as u64,
                candidates: rows,
            });
        }
        let best = all.last().and_then(|rung| rung.candidates.first()).cloned();
        match (best, left.into_iter().next()) {
            (Some(measured), Some((candidate, _))) => Ok((all, (candidate, measured))),
            _ => anyhow::bail!("there is no candidate"),
        }
    }

    /// Halves in on the least keep ratio of a recipe within a ratio of perplexities: every step, and the best.
    pub fn smallest(
        &mut self,
        winner: &Candidate,
        first: SearchRow,
        dense: &SearchRow,
        most: f64,
    ) -> Result<(Vec<SearchRow>, SearchRow)> {
        let asked = |row: &SearchRow| row.candidate.as_ref().map_or(NOMINAL, |c| c.asked_keep);
        let (mut low, mut high) = (LEAST, 1.0);
        let (mut best, mut largest) = (None, (0.0, 0.0));
        let (mut all, mut next) = (Vec::new(), first);
        for step in 0..=self.args.steps {
            let (keep, ratio) = (asked(&next), next.perplexity / dense.perplexity);
            next.perplexity_ratio = Some(ratio);
            all.push(next.clone());
            match ratio <= most {
                true => {
                    high = keep;
                    best = Some(next);
                }
                false => low = keep,
            }
            if keep > largest.0 {
                largest = (keep, ratio);
            }
            let keep = middle(low, high);
            if step == self.args.steps || keep <= low || keep >= high {
                break;
            }
            self.context.printer.say(&format!(
                "step {} of {}: a keep ratio of {keep:.4}",
                step + 1,
                self.args.steps
            ));
            next = self.tried(winner, keep, self.args.windows as usize)?;
        }
        let (keep, ratio) = largest;
        let best = best.ok_or(NothingWithin { keep, ratio })?;
        Ok((all, best))
    }

    /// Makes and measures a candidate, as far as an interrupted search has not.
    fn tried(&mut self, candidate: &Candidate, keep: f64, windows: usize) -> Result<SearchRow> {
        let name = format!("{}-{keep:.4}", candidate.name);
        let model = self.folder.join("models").join(&name);
        let record = self.folder.join("compress").join(format!("{name}.json"));
        if !record.is_file() || !model.is_dir() {
            let shown = self.args.out.join("models").join(&name);
            let recipe = candidate.recipe(keep)?;
            self.maker.make(&name, &recipe, (&model, &shown), &record)?;
        }
        let made: Made = serde_json::from_str(&fs::read_to_string(&record)?)?;
        let mut row = self.measured(&name, Some(&model), windows)?;
        row.candidate = Some(SearchCandidate {
            recipe: candidate.name.clone(),
            asked_keep: keep,
            keep_ratio: made.keep_ratio,
            bytes_after: made.bytes_after,
            seconds: made.seconds,
        });
        Ok(row)
    }
}

/// What the record of a compression says that a search tells.
#[derive(Deserialize)]
struct Made {
    keep_ratio: f64,
    bytes_after: u64,
    seconds: f64,
}

/// How many candidates each rung has, of so many: a third from each to the next, while there is anything to decide.
fn rungs(candidates: usize) -> Vec<usize> {
    let mut sizes = vec![candidates];
    let mut left = candidates.div_ceil(ETA);
    while left > 1 {
        sizes.push(left);
        left = left.div_ceil(ETA);
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_end_with_a_choice_of_few() {
        assert_eq!(rungs(13), [13, 5, 2]);
        assert_eq!(rungs(9), [9, 3]);
        assert_eq!(rungs(3), [3]);
        assert_eq!(rungs(1), [1]);
    }
}
