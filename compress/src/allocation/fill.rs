//! Spending what a rule's roundings left over.

use super::Ladder;

/// Goes up single rungs within `budget`, the ladders of highest `priority` first, until no step fits; before that, goes
/// down from the largest ladders while the budget is exceeded. Equal priorities go by position.
pub(super) fn fill(
    ladders: &[&Ladder],
    rungs: &mut [usize],
    budget: u64,
    priority: impl Fn(usize) -> f64,
) {
    let at = |i: usize, rung: usize| ladders[i].rungs[rung].scalars;
    let mut spent: u64 = (0..rungs.len()).map(|i| at(i, rungs[i])).sum();
    while spent > budget {
        let lower = (0..rungs.len()).filter(|i| rungs[*i] > 0);
        let Some(i) = lower.max_by_key(|i| at(*i, rungs[*i])) else {
            return;
        };
        spent -= at(i, rungs[i]) - at(i, rungs[i] - 1);
        rungs[i] -= 1;
    }
    let mut left = budget - spent;
    let mut order: Vec<usize> = (0..rungs.len()).collect();
    order.sort_by(|a, b| priority(*b).total_cmp(&priority(*a)).then(a.cmp(b)));
    loop {
        let before = left;
        for &i in &order {
            if rungs[i] + 1 < ladders[i].rungs.len() {
                let step = at(i, rungs[i] + 1) - at(i, rungs[i]);
                if step <= left {
                    rungs[i] += 1;
                    left -= step;
                }
            }
        }
        if left == before {
            return;
        }
    }
}
