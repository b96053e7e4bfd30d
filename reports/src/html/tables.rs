//! The tables of the page. Cells carry the full number for sorting; people see the rounded one.

use maud::{Markup, html};

use crate::group::{Group, Row};
use crate::number;
use crate::report::Figure;
use crate::wording;

/// The numbers behind the chart.
pub(crate) fn results(group: &Group<'_>, figures: &[Figure<'_>]) -> Markup {
    let marked = wording::fronts(group, figures);
    html! {
        div.scroll tabindex="0" role="region" aria-label="Results" {
            table.results data-sortable {
                thead { tr {
                    th scope="col" { "model" }
                    th scope="col" { "recipe" }
                    th.number scope="col" { "keep ratio" }
                    th.number scope="col" { "perplexity" }
                    th.number scope="col" { "× dense" }
                    th.number scope="col" { "parameters" span.unit { "millions" } }
                    th.number scope="col" { "weights in memory" span.unit { "MB" } }
                    th.number scope="col" { "speed" span.unit { "tokens/s" } }
                    @if marked.is_some() { th scope="col" { "Pareto front" span.unit { "of perplexity and" } } }
                } }
                tbody { @for (index, row) in group.rows.iter().enumerate() {
                    (result(row, marked.as_ref().map(|fronts| fronts[index].as_str())))
                } }
            }
        }
        @if group.dense().is_none() { p.muted { (wording::NO_DENSE) } }
    }
}

fn result(row: &Row<'_>, front: Option<&str>) -> Markup {
    let (model, measured) = (&row.result.model, &row.result.perplexity);
    html! {
        tr.dense[row.is_dense()] {
            th scope="row" { (model.name) }
            td { @if row.series == "dense" { span.muted { "none (dense)" } } @else { (row.series) } }
            (cell(model.keep_ratio, &wording::keep_ratio(model.keep_ratio), &model.keep_ratio.to_string()))
            (measured_cell(measured.perplexity, row.stderr()))
            @match row.relative {
                None => td.number { "–" },
                Some(_) if row.reference => (cell(1.0, "1", "the reference")),
                Some(relative) => (measured_cell(relative.times, relative.stderr)),
            }
            (cell(model.parameters as f64, &number::significant(model.parameters as f64 / 1e6), &number::count(model.parameters)))
            (cell(model.bytes as f64, &number::significant(model.bytes as f64 / 1e6), &format!("{} bytes", number::count(model.bytes))))
            (cell(measured.tokens_per_second, &number::significant(measured.tokens_per_second), &measured.tokens_per_second.to_string()))
            @if let Some(front) = front { td { (front) } }
        }
    }
}

fn cell(value: f64, shown: &str, full: &str) -> Markup {
    html! { td.number data-value=(value) title=(full) { (shown) } }
}

/// A value with its standard error set apart, so that the values line up.
fn measured_cell(value: f64, error: Option<f64>) -> Markup {
    let shown = number::with_error(value, error);
    let (value_part, error_part) = shown.split_once(" ± ").unwrap_or((&shown, ""));
    html! {
        td.number data-value=(value) title=(value) {
            (value_part) @if !error_part.is_empty() { span.error { " ± " (error_part) } }
        }
    }
}

/// Mean negative log-likelihood of every window, folded away.
pub(crate) fn windows(group: &Group<'_>) -> Markup {
    let indices = group
        .protocol()
        .map_or(&[][..], |result| &result.perplexity.window_indices);
    html! {
        details {
            summary { "Mean negative log-likelihood of each window" }
            div.scroll tabindex="0" role="region" aria-label="Windows" {
                table data-sortable {
                    thead { tr {
                        th.number scope="col" { "window" }
                        @for row in &group.rows {
                            th.number scope="col" { (row.result.model.name) span.unit { "nats/token" } }
                        }
                    } }
                    tbody { @for (position, index) in indices.iter().enumerate() { tr {
                        th.number scope="row" data-value=(index) { (number::count(*index)) }
                        @for row in &group.rows {
                            @match row.result.perplexity.window_nll.get(position) {
                                Some(nll) => (cell(*nll, &number::fixed(*nll, 4), &nll.to_string())),
                                None => td {},
                            }
                        }
                    } } }
                }
            }
        }
    }
}
