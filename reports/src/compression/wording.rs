//! Sentences about compressions that figures, page and Markdown share.

use super::Compressed;
use crate::number;

/// Heading of the section.
pub(crate) const HEADING: &str = "How each model was compressed";

/// Said once, above the figures.
pub(crate) const INTRODUCTION: &str = "Layer by layer, from the models' own records: what each projection keeps of its \
weights, and how far its output on the calibration inputs moved.";

/// Most models that are drawn and tabled.
pub(crate) const MOST_SHOWN: usize = 12;

/// `210 projections: 200 low-rank and 10 dense.`, and what else is known in one line.
pub(crate) fn summary(model: &Compressed<'_>) -> String {
    let mut sentences = vec![format!(
        "{} projections: {}.",
        number::count(model.record.sites.len() as u64),
        counts(&model.kinds())
    )];
    sentences.push(match model.fallbacks() {
        0 => "No numerical fallback.".to_owned(),
        1 => "1 numerical fallback.".to_owned(),
        many => format!("{} numerical fallbacks.", number::count(many as u64)),
    });
    if let Some(seconds) = model.record.seconds {
        sentences.push(format!("Compressed in {}.", seconds_text(seconds)));
    }
    for evaluation in &model.evaluations {
        let result = &evaluation.result;
        sentences.push(format!(
            "Perplexity {} on {}.",
            number::significant(result.perplexity.perplexity),
            result.corpus.name
        ));
    }
    sentences.join(" ")
}

/// `200 low-rank, 10 dense`.
pub(crate) fn counts(kinds: &[(&str, usize)]) -> String {
    let parts: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| format!("{} {kind}", number::count(*count as u64)))
        .collect();
    parts.join(", ")
}

/// `48.3 s`, `12.5 min`.
fn seconds_text(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{} s", number::fixed(seconds, 1))
    } else {
        format!("{} min", number::fixed(seconds / 60.0, 1))
    }
}

/// `231–335`, `231`, or a dash.
pub(crate) fn ranks(rank: Option<(usize, usize)>) -> String {
    match rank {
        None => "–".to_owned(),
        Some((low, high)) if low == high => number::count(low as u64),
        Some((low, high)) => format!(
            "{}–{}",
            number::count(low as u64),
            number::count(high as u64)
        ),
    }
}

/// A relative error as tables show it: three digits, 0 only for nothing at all.
pub(crate) fn error(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value >= 1e-4 {
        return number::fixed(value, number::decimals(value).saturating_sub(1));
    }
    format!("{value:.2e}").replace('-', "−")
}

/// `0.0071–0.305`, or one value.
pub(crate) fn errors((low, high): (f64, f64)) -> String {
    let (low, high) = (error(low), error(high));
    if low == high {
        low
    } else {
        format!("{low}–{high}")
    }
}

/// Said where models were left out; none where all are shown.
pub(crate) fn left_out(shown: usize, all: usize) -> Option<String> {
    let more = all.checked_sub(shown).filter(|more| *more > 0)?;
    Some(format!(
        "Of {} models the {} most different are shown here; the data file has the other {}, too.",
        number::count(all as u64),
        number::count(shown as u64),
        number::count(more as u64)
    ))
}
