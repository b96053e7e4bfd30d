//! Minimal loss under a budget, by Lagrangian relaxation and a greedy fill.

use std::collections::BinaryHeap;

use super::{Alternative, Choice, Ladder, cost};

/// Least `Σ loss + λ Σ scalars` for the λ that just meets the budget, then single steps by gain a scalar. Exceeds the
/// budget only when the smallest sizes do.
pub(super) fn lagrangian(sites: &[Vec<Alternative>], budget: u64) -> Vec<Choice> {
    let at = |log_lambda: f64| -> (Vec<Choice>, u64) {
        let choices: Vec<Choice> = sites.iter().map(|s| best(s, log_lambda.exp())).collect();
        let used = super::scalars(sites, &choices);
        (choices, used)
    };
    // Losses may be of any size; e^±200 is beyond what f64 can tell from nothing or everything.
    let (mut low, mut high) = (-200.0, 200.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        match at(middle).1 <= budget {
            true => high = middle,
            false => low = middle,
        }
    }
    let (mut choices, used) = at(high);
    if used <= budget {
        fill(sites, &mut choices, budget - used);
    }
    choices
}

fn best(site: &[Alternative], lambda: f64) -> Choice {
    let mut best: Option<(f64, Choice)> = None;
    for (alternative, a) in site.iter().enumerate() {
        let rungs = a.ladders.iter().map(|l| lowest(l, lambda)).collect();
        let choice = Choice { alternative, rungs };
        let (scalars, loss) = cost(site, &choice);
        let value = loss + lambda * scalars as f64;
        if best.as_ref().is_none_or(|(least, _)| value < *least) {
            best = Some((value, choice));
        }
    }
    best.map_or(
        Choice {
            alternative: 0,
            rungs: Vec::new(),
        },
        |(_, choice)| choice,
    )
}

fn lowest(ladder: &Ladder, lambda: f64) -> usize {
    let mut best = (f64::INFINITY, 0);
    for (i, rung) in ladder.rungs.iter().enumerate() {
        let value = rung.loss + lambda * rung.scalars as f64;
        if value < best.0 {
            best = (value, i);
        }
    }
    best.1
}

/// One step up a ladder, by what it gains a scalar.
struct Step {
    gain: f64,
    site: usize,
    ladder: usize,
    to: usize,
    scalars: u64,
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let by_place = (other.site, other.ladder).cmp(&(self.site, self.ladder));
        self.gain.total_cmp(&other.gain).then(by_place)
    }
}
impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Step {}

fn fill(sites: &[Vec<Alternative>], choices: &mut [Choice], mut left: u64) {
    let step = |choices: &[Choice], site: usize, ladder: usize| -> Option<Step> {
        let choice = &choices[site];
        let rungs = &sites[site][choice.alternative].ladders[ladder].rungs;
        let from = choice.rungs[ladder];
        let (here, next) = (rungs[from], *rungs.get(from + 1)?);
        let scalars = next.scalars - here.scalars;
        Some(Step {
            gain: (here.loss - next.loss) / scalars.max(1) as f64,
            site,
            ladder,
            to: from + 1,
            scalars,
        })
    };
    let mut steps = BinaryHeap::new();
    for site in 0..sites.len() {
        steps.extend((0..choices[site].rungs.len()).filter_map(|l| step(choices, site, l)));
    }
    while let Some(next) = steps.pop() {
        // What does not fit now never will: what is left only shrinks.
        if next.scalars <= left {
            left -= next.scalars;
            choices[next.site].rungs[next.ladder] = next.to;
            steps.extend(step(choices, next.site, next.ladder));
        }
    }
}
