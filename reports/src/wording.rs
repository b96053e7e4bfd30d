//! Sentences and headings that chart, page and Markdown share, so that they never disagree.

use crate::group::{Axis, Group};
use crate::number;
use crate::report::Figure;

/// `Perplexity against keep ratio: smollm2`.
pub(crate) fn chart_title(group: &Group<'_>) -> String {
    let title = match group.axis {
        Axis::KeepRatio => "Perplexity against keep ratio",
        Axis::CacheBytes => "KV cache bytes per token against perplexity",
        Axis::WeightBytes => "Perplexity against weights in memory",
        Axis::Scoring => "Perplexity against scoring speed",
        Axis::Decoding => "Perplexity against decoding speed",
    };
    match group.model() {
        Some(model) => format!("{title}: {model}"),
        None => title.to_owned(),
    }
}

/// Corpus and window, the heading of a group: `wiki.test.raw, 16 windows of 2,048 tokens`.
pub(crate) fn heading(group: &Group<'_>) -> String {
    let Some(result) = group.protocol() else {
        return String::new();
    };
    format!("{}, {}", result.corpus.name, windows(group))
}

/// `16 windows of 2,048 tokens`.
fn windows(group: &Group<'_>) -> String {
    let Some(result) = group.protocol() else {
        return String::new();
    };
    let measured = &result.perplexity;
    let count = measured.window_indices.len() as u64;
    let noun = if count == 1 { "window" } else { "windows" };
    format!(
        "{} {noun} of {} tokens",
        number::count(count),
        number::count(measured.window)
    )
}

/// The measurement in one line: model, corpus, windows, tokens scored.
pub(crate) fn protocol_line(group: &Group<'_>) -> String {
    let Some(result) = group.protocol() else {
        return String::new();
    };
    let scored = number::count(result.perplexity.tokens_scored);
    format!(
        "{} · {} · {scored} tokens scored",
        result.corpus.name,
        windows(group)
    )
}

/// What the marks mean that no axis explains.
pub(crate) fn chart_note(group: &Group<'_>) -> String {
    let single = group.rows.iter().all(|row| row.stderr().is_none());
    let bars = match (single, group.dense().is_some()) {
        (true, _) => "No error bars: a single window was scored.",
        (false, true) => {
            "Bars and grey band: ± 1 standard error over the windows; bars shorter than their marker are left out."
        }
        (false, false) => {
            "Bars: ± 1 standard error over the windows; bars shorter than their marker are left out."
        }
    };
    let mut note = bars.to_owned();
    if group.series().len() > 1 {
        note.push_str(" Values without room are in the table only.");
    }
    if group.has_front() {
        note.push_str(
            " Ringed and joined in grey: the Pareto front, where nothing is better on both axes (across, by half a percent or more).",
        );
    }
    if group.dense().is_none() {
        note.push_str(" No dense reference was given.");
    }
    note
}

/// The chart in words, for readers who cannot see it.
pub(crate) fn chart_description(group: &Group<'_>) -> String {
    let mut parts = Vec::new();
    for row in &group.rows {
        let value = number::with_error(row.result.perplexity.perplexity, row.stderr());
        parts.push(match group.axis {
            Axis::KeepRatio if row.is_dense() => format!("dense: {value}"),
            Axis::KeepRatio => {
                let keep = keep_ratio(row.result.model.keep_ratio);
                format!("{} at keep ratio {keep}: {value}", row.series)
            }
            Axis::CacheBytes => {
                let bytes = number::count(row.result.kv_bytes_per_token.unwrap_or(0));
                format!("{} with {bytes} bytes a token: {value}", row.series)
            }
            Axis::WeightBytes => {
                let bytes = number::significant(group.x(row));
                format!("{} with {bytes} MB: {value}", row.series)
            }
            Axis::Scoring | Axis::Decoding => {
                let speed = number::significant(group.x(row));
                format!("{} at {speed} tokens/s: {value}", row.series)
            }
        });
    }
    format!("Perplexity, lower is better. {}.", parts.join("; "))
}

/// For each row, which charts' Pareto fronts it is on; none where no chart has a front worth marking.
pub(crate) fn fronts(group: &Group<'_>, figures: &[Figure<'_>]) -> Option<Vec<String>> {
    let marked: Vec<_> = figures
        .iter()
        .map(|figure| &figure.group)
        .filter(|view| view.has_front())
        .collect();
    if marked.is_empty() {
        return None;
    }
    let on = |file: &std::path::Path| {
        let names = marked.iter().filter(|view| {
            let front = view.front();
            front.iter().any(|&index| view.rows[index].file == file)
        });
        let names = names.map(|view| match view.axis {
            Axis::KeepRatio => "keep ratio",
            Axis::CacheBytes => "cache",
            Axis::WeightBytes => "bytes",
            Axis::Scoring => "scoring",
            Axis::Decoding => "decoding",
        });
        names.collect::<Vec<_>>().join(", ")
    };
    Some(group.rows.iter().map(|row| on(row.file)).collect())
}

/// A keep ratio as tables show it.
pub(crate) fn keep_ratio(value: f64) -> String {
    number::fixed(value, 3)
}

/// The protocol in full sentences.
pub(crate) fn protocol(group: &Group<'_>) -> Vec<String> {
    let Some(result) = group.protocol() else {
        return Vec::new();
    };
    let (corpus, measured) = (&result.corpus, &result.perplexity);
    let documents = if corpus.documents == 1 {
        "1 document".to_owned()
    } else {
        format!(
            "{} documents joined by a blank line",
            number::count(corpus.documents)
        )
    };
    let text = format!(
        "The text is {} ({documents}, {} tokens), cut into windows of {} tokens.",
        corpus.name,
        number::count(corpus.tokens),
        number::count(measured.window)
    );
    let overlap = if measured.stride == measured.window {
        "Windows do not overlap".to_owned()
    } else {
        format!(
            "Windows start every {} tokens",
            number::count(measured.stride)
        )
    };
    let scored = format!(
        "{overlap}; in each, every token but the first is scored given the ones before it in the same window, {} a window. \
         Scored: {} {}, {} tokens in all.",
        number::count(measured.window.saturating_sub(1)),
        if measured.window_indices.len() == 1 {
            "window"
        } else {
            "windows"
        },
        number::ranges(&measured.window_indices),
        number::count(measured.tokens_scored)
    );
    let bos = if measured.bos_ids.is_empty() {
        "The tokenizer puts no beginning-of-sequence token before the text, and none was added."
            .to_owned()
    } else {
        let ids: Vec<String> = measured.bos_ids.iter().map(u32::to_string).collect();
        format!(
            "The tokenizer puts beginning-of-sequence token {} before the text.",
            ids.join(", ")
        )
    };
    let mut sentences = vec![text, scored, bos];
    sentences.push(
        "Perplexity is the exponential of the mean of the windows' mean negative log-likelihoods (nats per token).".to_owned(),
    );
    sentences.push(if measured.window_indices.len() > 1 {
        "± is one standard error over the windows. For × dense it comes from the differences window by window: both models \
         read the same text, so most of the spread between windows cancels."
            .to_owned()
    } else {
        "A single window was scored, which says nothing about the spread: no standard error is given.".to_owned()
    });
    sentences.push(format!(
        "Run on {}, computed in {}; weights stored on disk as {}.",
        distinct(group, |row| &row.device),
        distinct(group, |row| &row.dtype),
        distinct(group, |row| &row.model.stored_as)
    ));
    sentences
}

/// Said wherever numbers are compared and there is nothing to compare them with.
pub(crate) const NO_DENSE: &str =
    "No dense reference was given for these windows, so no row can be stated as a multiple of it.";

/// The different values of a field, in row order: `cpu (2 threads)` or `f32 and bf16`.
fn distinct<'a>(
    group: &Group<'a>,
    field: impl Fn(&'a cinder_eval::EvalResult) -> &'a String,
) -> String {
    let mut values: Vec<&str> = Vec::new();
    for row in &group.rows {
        let value = field(row.result).as_str();
        if !values.contains(&value) {
            values.push(value);
        }
    }
    match values.as_slice() {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        _ => values.concat(),
    }
}
