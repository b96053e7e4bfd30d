//! Ranks from a budget: one file a rule, all exact in integers.
//!
//! What a matrix may become is a [`Ladder`] of sizes; what a site may become is a list of [`Alternative`]s, each with a
//! ladder for every matrix it factors. A rule picks one alternative for each site and one rung of each of its ladders.
//!
//! Scalars are those that the budget counts: stored ones of weights, or of a token's latents in the cache.

mod energy;
mod fill;
mod fisher;
mod lagrangian;
mod loss;
mod sensitivity;
mod uniform;

use std::ops::Range;

pub use energy::energy;
pub use fisher::fisher;
pub use loss::loss;
pub use sensitivity::SiteFactors;
pub use uniform::uniform;

/// One matrix that may be factored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Rows.
    pub out: usize,
    /// Columns.
    pub input: usize,
    /// Whether its basis has an identity block, so that a rank r costs `r (out + in - r)`.
    pub identity: bool,
}

impl Matrix {
    /// Scalars of the dense matrix.
    pub fn dense(self) -> u64 {
        self.out as u64 * self.input as u64
    }

    /// Scalars stored at a rank; none is dense.
    pub fn stored(self, rank: Option<usize>) -> u64 {
        let Some(rank) = rank.map(|r| r as u64) else {
            return self.dense();
        };
        let both = (self.out + self.input) as u64;
        match self.identity {
            true => rank * (both - rank.min(both)),
            false => rank * both,
        }
    }
}

/// Which ranks a rule may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranks {
    /// The smallest.
    pub floor: usize,
    /// All others are multiples of this.
    pub step: usize,
}

impl Ranks {
    /// Every rank from one.
    pub const ALL: Ranks = Ranks { floor: 1, step: 1 };
}

/// One size a matrix may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rung {
    /// The rank (or number of neurons); none is the matrix as it was.
    pub size: Option<usize>,
    /// Scalars it stores.
    pub scalars: u64,
    /// What it loses, in the rule's own unit.
    pub loss: f64,
}

/// The sizes a matrix may have, the smallest first, the last its full size.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder {
    /// Of rising size and falling loss.
    pub rungs: Vec<Rung>,
    /// Scalars of the dense matrix, which keep ratios are of.
    pub dense: u64,
    /// What having nothing of it would lose.
    pub whole: f64,
}

impl Ladder {
    /// The ranks of a matrix that take fewer scalars than the dense one, and the dense one. `loss[r]` is what rank r
    /// loses; an empty slice is for rules that do not ask.
    pub fn of_ranks(matrix: Matrix, ranks: Ranks, loss: &[f64]) -> Self {
        let most = matrix.out.min(matrix.input);
        let full = Rung {
            size: None,
            scalars: matrix.dense(),
            loss: 0.0,
        };
        let cost = |rank| matrix.stored(Some(rank));
        Self::up_to(full, most, ranks, loss, matrix.dense(), cost)
    }

    /// The ranks of latents that `out` outputs of `input` inputs are rebuilt from: one scalar a rank in the cache, where
    /// the outputs themselves take `out`. The last is the rank of the matrix, which loses nothing.
    pub fn of_latents(out: usize, input: usize, ranks: Ranks, loss: &[f64]) -> Self {
        let most = out.min(input);
        let full = Rung {
            size: Some(most),
            scalars: most as u64,
            loss: 0.0,
        };
        Self::up_to(full, most, ranks, loss, out as u64, |rank| rank as u64)
    }

    /// The ranks below `most` that cost less than the full size, and the full size.
    fn up_to(
        full: Rung,
        most: usize,
        ranks: Ranks,
        loss: &[f64],
        dense: u64,
        cost: impl Fn(usize) -> u64,
    ) -> Self {
        let multiples = (1..)
            .map(|i| i * ranks.step)
            .skip_while(|r| *r <= ranks.floor);
        let sizes = std::iter::once(ranks.floor).chain(multiples);
        let rungs = sizes
            .take_while(|r| *r < most)
            .map(|r| Rung {
                size: Some(r),
                scalars: cost(r),
                loss: loss.get(r).copied().unwrap_or(0.0),
            })
            .take_while(|rung| rung.scalars < full.scalars)
            .chain([full]);
        Ladder {
            rungs: rungs.collect(),
            dense,
            whole: loss.first().copied().unwrap_or(0.0),
        }
    }

    /// The same sizes with losses `factor` times as large.
    pub fn scaled(mut self, factor: f64) -> Self {
        self.whole *= factor;
        for rung in &mut self.rungs {
            rung.loss *= factor;
        }
        self
    }

    /// The highest rung of at most this many scalars, or the lowest there is.
    pub fn below(&self, scalars: f64) -> usize {
        let fits = self
            .rungs
            .iter()
            .take_while(|r| r.scalars as f64 <= scalars);
        fits.count().saturating_sub(1)
    }
}

/// One way to compress a site.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// One for each of its matrices.
    pub ladders: Vec<Ladder>,
    /// Scalars and loss that do not depend on the rungs.
    pub scalars: u64,
    /// In the unit of the rungs' losses.
    pub loss: f64,
}

/// What a rule chose for one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its place among the site's.
    pub alternative: usize,
    /// A rung of each ladder of the alternative.
    pub rungs: Vec<usize>,
}

/// Scalars of the sites as chosen.
pub fn scalars(sites: &[Vec<Alternative>], choices: &[Choice]) -> u64 {
    sites.iter().zip(choices).map(|(s, c)| cost(s, c).0).sum()
}

/// Scalars and loss of one site as chosen.
fn cost(site: &[Alternative], choice: &Choice) -> (u64, f64) {
    let alternative = &site[choice.alternative];
    let rungs = alternative.ladders.iter().zip(&choice.rungs);
    rungs.fold((alternative.scalars, alternative.loss), |sum, (l, r)| {
        (sum.0 + l.rungs[*r].scalars, sum.1 + l.rungs[*r].loss)
    })
}

/// The only ladders of sites that have one alternative, end to end, and where each site's are.
fn single(sites: &[Vec<Alternative>]) -> (Vec<&Ladder>, Vec<Range<usize>>) {
    let mut ladders = Vec::new();
    let mut ranges = Vec::new();
    for site in sites {
        let start = ladders.len();
        ladders.extend(site.first().into_iter().flat_map(|a| &a.ladders));
        ranges.push(start..ladders.len());
    }
    (ladders, ranges)
}

/// Rungs end to end as choices of each site's first alternative.
fn first_alternatives(rungs: &[usize], ranges: &[Range<usize>]) -> Vec<Choice> {
    let choice = |range: &Range<usize>| Choice {
        alternative: 0,
        rungs: rungs[range.clone()].to_vec(),
    };
    ranges.iter().map(choice).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Shapes = Vec<(usize, usize, u64)>;

    fn sites(shapes: &Shapes, identity: bool, ranks: Ranks) -> Vec<Vec<Alternative>> {
        let site = |(out, input, seed): &(usize, usize, u64)| {
            let matrix = |out, input| Matrix {
                out,
                input,
                identity,
            };
            let ladder = |m: Matrix, weight: f64| {
                let most = m.out.min(m.input);
                let loss: Vec<f64> = (0..=most)
                    .map(|r| weight * (1.0 - r as f64 / most as f64).powi(2))
                    .collect();
                Ladder::of_ranks(m, ranks, &loss)
            };
            let weight = (seed % 1000) as f64 + 0.5;
            let one = Alternative {
                ladders: vec![ladder(matrix(*out, *input), weight)],
                scalars: 0,
                loss: 0.0,
            };
            // Half of the site fixed, the other half factored: another way for some sites.
            let two = Alternative {
                ladders: vec![ladder(matrix(*out, input.div_ceil(2)), weight / 3.0)],
                scalars: (*out * (input / 2)) as u64,
                loss: weight / 50.0,
            };
            match seed % 2 {
                0 => vec![one],
                _ => vec![one, two],
            }
        };
        shapes.iter().map(site).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        // low-rank.md §2.6, invariant 5, for every rule.
        #[test]
        fn every_rule_meets_the_budget_within_one_step(
            shapes in prop::collection::vec((1usize..200, 1usize..200, any::<u64>()), 1..20),
            keep in 0.02f64..1.0, identity: bool, floor in 1usize..4, step in 1usize..5,
        ) {
            let sites = sites(&shapes, identity, Ranks { floor, step });
            let latent = |(out, input, _): &(usize, usize, u64)| {
                let ranks = Ranks { floor: floor.min(*out).min(*input), step };
                let loss: Vec<f64> = (0..=*out).map(|r| 1.0 / (r + 1) as f64).collect();
                vec![Alternative { ladders: vec![Ladder::of_latents(*out, *input, ranks, &loss)], scalars: 0, loss: 0.0 }]
            };
            let latents: Vec<Vec<Alternative>> = shapes.iter().map(latent).collect();
            let budget_of = |sites: &[Vec<Alternative>]| {
                let full: u64 = sites.iter().flat_map(|s| &s[0].ladders).map(|l| l.dense).sum();
                (keep * full as f64).floor() as u64
            };
            let budget = budget_of(&sites);
            let least_of = |site: &Vec<Alternative>| -> u64 {
                let smallest = |a: &Alternative| a.scalars + a.ladders.iter().map(|l| l.rungs[0].scalars).sum::<u64>();
                site.iter().map(smallest).min().unwrap_or(0)
            };
            let scores: Vec<f64> = shapes.iter().map(|(_, _, s)| (s % 97) as f64).collect();
            let singles: Vec<Vec<Alternative>> = sites.iter().map(|s| vec![s[0].clone()]).collect();
            for (sites, choices) in [
                (&singles, uniform(&singles, keep)),
                (&singles, energy(&singles, budget)),
                (&singles, fisher(&singles, &scores, keep)),
                (&sites, loss(&sites, budget)),
                (&latents, uniform(&latents, keep)),
                (&latents, fisher(&latents, &scores, keep)),
                (&latents, loss(&latents, budget_of(&latents))),
            ] {
                let budget = budget_of(sites);
                let used = scalars(sites, &choices);
                let least: u64 = sites.iter().map(least_of).sum();
                if least > budget {
                    prop_assert!(used >= least);
                    continue;
                }
                prop_assert!(used <= budget, "{used} of {budget}");
                let steps = sites.iter().zip(&choices).flat_map(|(s, c)| {
                    s[c.alternative].ladders.iter().zip(&c.rungs).filter_map(|(l, r)| {
                        Some(l.rungs.get(r + 1)?.scalars - l.rungs[*r].scalars)
                    })
                });
                if let Some(step) = steps.min() {
                    prop_assert!(budget - used < step, "{} left of {budget}", budget - used);
                }
            }
        }
    }

    #[test]
    fn ranks_of_the_identity_block() {
        // low-rank.md §2.4, item 4.
        for (out, input, keep, rank) in [
            (4096, 4096, 0.8, Some(2264)),
            (12288, 4096, 0.8, Some(3010)),
            (22016, 4096, 0.8, Some(3140)),
            (11008, 4096, 0.8, Some(2973)),
            (6144, 4096, 0.8, Some(2653)),
            (28672, 4096, 0.8, Some(3174)),
            (4096, 4096, 0.5, Some(1199)),
            (4096, 4096, 1.0, None),
        ] {
            let matrix = Matrix {
                out,
                input,
                identity: true,
            };
            let ladder = Ladder::of_ranks(matrix, Ranks::ALL, &[]);
            let rung = ladder.below(keep * matrix.dense() as f64);
            assert_eq!(ladder.rungs[rung].size, rank);
        }
    }
}
