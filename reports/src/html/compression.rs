//! How each model was compressed: heat maps, a summary a projection, and every projection of every layer folded away.

use maud::{Markup, PreEscaped, html};

use super::parts;
use crate::compression::{Cell, Compressed, wording as say};
use crate::number;
use crate::report::LayerFigures;
use crate::wording;

/// Bytes of the largest data file the page carries within itself; all of it is in its tables, too.
const MOST_EMBEDDED: usize = 200_000;

/// The section.
pub(crate) fn section(layers: &LayerFigures, models: &[Compressed<'_>]) -> Markup {
    let shown: Vec<&Compressed<'_>> = layers.shown.iter().map(|&index| &models[index]).collect();
    html! {
        section id="compression" {
            h2 { (say::HEADING) }
            p { (say::INTRODUCTION) }
            @if let Some(left_out) = &layers.left_out { p { (left_out) } }
            @for figure in &layers.figures {
                figure {
                    // Our own drawing: its texts were escaped when it was drawn.
                    div.wide { (PreEscaped(&figure.wide)) }
                    div.narrow { (PreEscaped(&figure.narrow)) }
                    figcaption { strong { (figure.title) "." } }
                }
            }
            @if layers.table.len() <= MOST_EMBEDDED {
                p.downloads { (parts::download(&layers.csv, "text/csv", &layers.table, "Data (CSV)")) }
            } @else {
                p.muted { "Data: " code { (layers.csv) } ", beside this page." }
            }
            @for model in shown { (article(model)) }
        }
    }
}

fn article(model: &Compressed<'_>) -> Markup {
    let record = &model.record;
    let recipe = record.recipe.as_deref().unwrap_or("recipe unknown");
    html! {
        h3 {
            (model.label) " "
            span.muted { (recipe) ", keep ratio " (wording::keep_ratio(record.keep_ratio)) }
        }
        p { (say::summary(model)) }
        div.scroll tabindex="0" role="region" aria-label={ "By projection: " (model.label) } {
            table.projections {
                thead { tr {
                    th scope="col" { "projection" }
                    th scope="col" { "kinds" span.unit { "layers" } }
                    th.number scope="col" { "kept" span.unit { "mean" } }
                    th.number scope="col" { "rank" span.unit { "least–most" } }
                    th.number scope="col" { "output error" span.unit { "least–most" } }
                    th.number scope="col" { "fallbacks" }
                } }
                tbody { @for each in model.summaries() { tr {
                    th scope="row" { (each.projection) }
                    td { (say::counts(&each.kinds)) }
                    td.number { (wording::keep_ratio(each.kept)) }
                    td.number { (say::ranks(each.rank)) }
                    td.number { (say::errors(each.error)) }
                    td.number { (each.fallbacks) }
                } } }
            }
        }
        details {
            summary { "Every projection of " (model.label) }
            (sites(model))
        }
        p.source-file.muted {
            "From " code { (record.file.display().to_string()) }
            @for also in &model.also { ", " code { (also.display().to_string()) } }
            "; model " code { (record.path.display().to_string()) } "."
        }
    }
}

/// One row a projection of a layer. Columns that no row has anything to say in are left out.
fn sites(model: &Compressed<'_>) -> Markup {
    let cells = model.cells();
    let any = |has: fn(&Cell<'_>) -> bool| cells.iter().any(has);
    let neurons = any(|cell| cell.site.record.neurons.is_some());
    let scalars = any(|cell| cell.scalars().is_some());
    let loss = any(|cell| cell.site.record.predicted_loss.is_some());
    let growth = any(|cell| cell.site.record.growth.is_some());
    let fallback = any(|cell| cell.site.record.fallback.is_some());
    let seconds = any(|cell| cell.site.seconds.is_some());
    html! {
        div.scroll tabindex="0" role="region" aria-label={ "Every projection: " (model.label) } {
            table.sites data-sortable {
                thead { tr {
                    th.number scope="col" { "layer" }
                    th scope="col" { "site" }
                    th scope="col" { "projection" }
                    th scope="col" { "kind" }
                    th.number scope="col" { "rank" }
                    @if neurons { th.number scope="col" { "neurons" } }
                    @if scalars { th.number scope="col" { "stored" span.unit { "scalars" } } }
                    th.number scope="col" { "keep ratio" }
                    th.number scope="col" { "output error" span.unit { "relative" } }
                    @if loss { th.number scope="col" { "predicted loss" span.unit { "nats/token" } } }
                    th.number scope="col" { "condition" }
                    @if growth { th.number scope="col" { "growth" span.unit { "of pivots" } } }
                    @if fallback { th scope="col" { "fallback" } }
                    @if seconds { th.number scope="col" { "time" span.unit { "s" } } }
                } }
                tbody { @for cell in &cells { @let record = &cell.site.record; tr {
                    th scope="row" { (record.layer) }
                    td { (record.site) }
                    td { (record.projection) }
                    td { (record.kind) }
                    (whole(record.rank.map(|rank| rank as u64)))
                    @if neurons { (whole(record.neurons.map(|neurons| neurons as u64))) }
                    @if scalars { (whole(cell.scalars())) }
                    (real(Some(record.keep_ratio), wording::keep_ratio))
                    (real(Some(record.error), say::error))
                    @if loss { (real(record.predicted_loss, say::error)) }
                    (real(record.condition, number::significant))
                    @if growth { (real(record.growth, number::significant)) }
                    @if fallback { td.text { (record.fallback.as_deref().unwrap_or("")) } }
                    @if seconds { (real(cell.site.seconds, |value| number::fixed(value, 2))) }
                } } }
            }
        }
    }
}

/// A cell that sorts before all numbers when there is none.
fn whole(value: Option<u64>) -> Markup {
    match value {
        Some(value) if value < 1_000 => html! { td { (value) } },
        Some(value) => html! { td data-value=(value) { (number::count(value)) } },
        None => html! { td data-value="-1" { "–" } },
    }
}

fn real(value: Option<f64>, show: fn(f64) -> String) -> Markup {
    match value {
        Some(value) => {
            let shown = show(value);
            // Six digits are enough to sort by; the data file has all of them.
            html! { td data-value=(format!("{value:.5e}")) { (shown) } }
        }
        None => html! { td data-value="-1" { "–" } },
    }
}
