//! What the numbers say, in plain sentences computed from them.

use crate::group::{Group, Row};
use crate::number;
use crate::wording;

/// One sentence a recipe: its mildest point and its strongest, against the dense model.
pub(crate) fn findings(group: &Group<'_>) -> Vec<String> {
    let series = group.series();
    if series.is_empty() {
        return group.dense().map_or_else(Vec::new, |dense| {
            vec![format!("The dense model has perplexity {}; there is no compressed model to compare it with.", perplexity(dense))]
        });
    }
    let several = series.len() > 1;
    let mut sentences: Vec<String> = comparison(&series).into_iter().collect();
    sentences.extend(
        series
            .iter()
            .filter_map(|(name, rows)| sentence(group.dense(), several.then_some(*name), rows)),
    );
    if group.dense().is_none() {
        sentences.push(wording::NO_DENSE.to_owned());
    }
    sentences
}

fn sentence(dense: Option<&Row<'_>>, recipe: Option<&str>, rows: &[&Row<'_>]) -> Option<String> {
    let (first, last) = (rows.first()?, rows.last()?);
    let keeping = recipe.map_or_else(
        || "Keeping".to_owned(),
        |name| format!("With {name}, keeping"),
    );
    let share = |row: &Row<'_>| number::percent(row.result.model.keep_ratio);
    let mut text = format!(
        "{keeping} {} of the decoder-projection weights ",
        share(first)
    );
    match dense {
        Some(dense) => {
            let verb = effect(dense, first);
            text.push_str(&format!(
                "{verb} perplexity from {} to {}",
                perplexity(dense),
                reached(first)
            ));
        }
        None => text.push_str(&format!("gives perplexity {}", perplexity(first))),
    }
    if rows.len() > 1 {
        text.push_str(&format!("; keeping {}, to {}", share(last), reached(last)));
    }
    text.push('.');
    Some(text)
}

/// How far apart two keep ratios may lie to be called the same.
const SAME_KEEP: f64 = 0.005;

/// The recipes against each other where they can be compared: at the smallest keep ratio that two of them share.
fn comparison(series: &[(&str, Vec<&Row<'_>>)]) -> Option<String> {
    let at = |keep: f64| -> Vec<&Row<'_>> {
        let near = |row: &&&Row<'_>| (row.result.model.keep_ratio - keep).abs() <= SAME_KEEP;
        series
            .iter()
            .filter_map(|(_, rows)| rows.iter().find(near).copied())
            .collect()
    };
    let ratios = series
        .iter()
        .flat_map(|(_, rows)| rows.iter().map(|row| row.result.model.keep_ratio));
    let shared = ratios
        .filter(|&keep| at(keep).len() > 1)
        .min_by(f64::total_cmp)?;
    let mut rows = at(shared);
    rows.sort_by(|a, b| {
        a.result
            .perplexity
            .perplexity
            .total_cmp(&b.result.perplexity.perplexity)
    });
    let (best, others) = rows.split_first()?;
    let others: Vec<String> = others
        .iter()
        .map(|row| format!("{} with {}", reached(row), row.series))
        .collect();
    Some(format!(
        "Keeping {} of the decoder-projection weights, {} has the lowest perplexity, {}, against {}.",
        number::percent(shared),
        best.series,
        reached(best),
        others.join(" and ")
    ))
}

fn effect(dense: &Row<'_>, row: &Row<'_>) -> &'static str {
    if row.result.perplexity.perplexity < dense.result.perplexity.perplexity {
        "lowers"
    } else {
        "raises"
    }
}

fn perplexity(row: &Row<'_>) -> String {
    number::significant(row.result.perplexity.perplexity)
}

/// `63.80 (×3.042)`.
fn reached(row: &Row<'_>) -> String {
    match row.relative {
        Some(relative) => format!(
            "{} (×{})",
            perplexity(row),
            number::significant(relative.times)
        ),
        None => perplexity(row),
    }
}
