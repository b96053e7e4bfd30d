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
    let mut sentences: Vec<String> = series
        .iter()
        .filter_map(|(name, rows)| sentence(group.dense(), several.then_some(*name), rows))
        .collect();
    if group.dense().is_none() {
        sentences.push(wording::NO_DENSE.to_owned());
    }
    sentences
}

fn sentence(dense: Option<&Row<'_>>, recipe: Option<&str>, rows: &[&Row<'_>]) -> Option<String> {
    let (first, last) = (rows.first()?, rows.last()?);
    let subject = recipe.map_or_else(String::new, |name| format!("{name}: "));
    let share = |row: &Row<'_>| number::percent(row.result.model.keep_ratio);
    let keeping = if subject.is_empty() {
        "Keeping"
    } else {
        "keeping"
    };
    let mut text = format!(
        "{subject}{keeping} {} of the decoder-projection weights ",
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
