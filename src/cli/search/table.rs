//! A search as people read it.

use cinder::eval::search::{SearchResult, SearchRow};

use crate::cli::format::{bytes, table};

/// Every rung and size that was tried, then the best.
pub fn text(result: &SearchResult) -> String {
    let mut out = table(&[
        "rung",
        "candidate",
        "keep",
        "bytes",
        "windows",
        "perplexity",
    ]);
    let mut add = |label: String, row: &SearchRow| {
        let made = row.candidate.as_ref();
        out.add_row([
            label,
            made.map_or("dense", |c| &c.recipe).to_owned(),
            made.map_or("1".into(), |c| format!("{:.4}", c.keep_ratio)),
            made.map_or(String::new(), |c| bytes(c.bytes_after)),
            row.windows.to_string(),
            format!("{:.3} ± {:.3}", row.perplexity, row.stderr),
        ]);
    };
    add(String::new(), &result.dense);
    for (index, rung) in result.rungs.iter().enumerate() {
        for row in &rung.candidates {
            add((index + 1).to_string(), row);
        }
    }
    for row in result.bisection.iter().skip(1) {
        add("size".into(), row);
    }
    let best = &result.winner;
    let made = best.candidate.as_ref();
    format!(
        "{out}\n\nbest: {} at a keep ratio of {:.4}, perplexity {:.3}\nwrote {}",
        made.map_or("", |c| &c.recipe),
        made.map_or(1.0, |c| c.keep_ratio),
        best.perplexity,
        result.recipe,
    )
}
