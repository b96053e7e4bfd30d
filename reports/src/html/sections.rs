//! Parts with figures and tables of any kind.

use maud::{Markup, PreEscaped, html};

use super::parts;
use crate::sections::{Section, Table, Value};

/// Bytes of the largest data file the page carries within itself; larger ones lie beside it.
const MOST_EMBEDDED: usize = 200_000;

pub(crate) fn section(section: &Section, made_by: Option<&str>) -> Markup {
    html! {
        section id=(section.id) {
            h2 { (section.heading) }
            p { (section.introduction) }
            @for figure in &section.figures {
                figure {
                    // Our own drawing: its texts were escaped when it was drawn.
                    div.wide { (PreEscaped(&figure.wide)) }
                    div.narrow { (PreEscaped(&figure.narrow)) }
                    figcaption { strong { (figure.title) "." } " " (figure.subtitle) "." }
                }
                p.downloads {
                    @if figure.csv.len() <= MOST_EMBEDDED {
                        (parts::download(&format!("{}.csv", figure.stem), "text/csv", &figure.csv, "Data (CSV)"))
                    } @else {
                        span.muted { "Data: " code { (figure.stem) ".csv" } ", beside this page" }
                    }
                    (parts::download(&format!("{}.svg", figure.stem), "image/svg+xml", &figure.drawing, "Chart (SVG)"))
                }
            }
            @for (name, table) in &section.tables {
                @if !name.is_empty() { h3 { (name) } }
                (self::table(table, &section.heading))
            }
            (parts::commands(&section.commands, made_by))
            p.source-file.muted {
                "From " @for (index, file) in section.files.iter().enumerate() { @if index > 0 { ", " } code { (file) } } "."
            }
        }
    }
}

/// A table of any kind that readers can sort; the label is for those who hear it.
pub(crate) fn table(table: &Table, label: &str) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table.general data-sortable {
                thead { tr {
                    @for head in &table.heads {
                        th.number[head.number] scope="col" { (head.name) @if !head.unit.is_empty() { span.unit { (head.unit) } } }
                    }
                } }
                tbody { @for row in &table.rows { tr {
                    @for (index, cell) in row.iter().enumerate() {
                        @match cell {
                            Value::Text(text) if index == 0 => th scope="row" { (text) },
                            Value::Text(text) => td { (text) },
                            Value::Number(value, shown) => td.number data-value=(value) title=(value) { (shown) },
                            Value::None => td.number data-value="-1" { "–" },
                        }
                    }
                } } }
            }
        }
    }
}
