//! The page: one file without a network, for people who want to see what compression cost and where it was measured.

mod compression;
mod parts;
mod sections;
mod tables;

use maud::{DOCTYPE, Markup, PreEscaped, html};

pub(crate) use parts::download;
pub(crate) use sections::table;

use crate::chart::{self, Place};
use crate::compression::{Compressed, wording as say};
use crate::error::ReportError;
use crate::findings::findings;
use crate::group::Group;
use crate::report::{Figure, LayerFigures, Options};
use crate::sections::Section;
use crate::wording;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The whole document.
pub(crate) fn page(
    options: &Options,
    groups: &[Group<'_>],
    figures: &[Vec<Figure<'_>>],
    models: &[Compressed<'_>],
    layers: Option<&LayerFigures>,
    parts: &[Markup],
    others: &[Section],
) -> Result<String, ReportError> {
    let (title, command) = (&options.title, options.command.as_deref());
    let mut sections = Vec::new();
    for (index, (group, figure)) in groups.iter().zip(figures).enumerate() {
        sections.push(section(index, group, figure, command)?);
    }
    let lead = groups
        .first()
        .map(findings)
        .and_then(|sentences| sentences.into_iter().next());
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // A report is opened by people who did not make it: whatever a result file smuggled in, it loads nothing.
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        p.eyebrow { "Cinder compression report" }
                        h1 { (title) }
                        @if let Some(lead) = &lead { p.lead { (lead) } }
                        @if groups.len() > 1 {
                            p.muted {
                                "Measured in " (groups.len()) " different ways, which cannot be compared with each other: each has its own section."
                            }
                        }
                        @if groups.len() + others.len() + usize::from(layers.is_some()) > 1 {
                            nav { ul {
                                @for (index, group) in groups.iter().enumerate() {
                                    li { a href={ "#group-" (index + 1) } { (wording::heading(group)) } }
                                }
                                @for other in others { li { a href={ "#" (other.id) } { (other.heading) } } }
                                @if layers.is_some() { li { a href="#compression" { (say::HEADING) } } }
                            } }
                        }
                    }
                    @for section in &sections { (section) }
                    @for other in others { (sections::section(other, command)) }
                    @if let Some(layers) = layers { (compression::section(layers, models)) }
                    @for part in parts { (part) }
                    footer { p.muted { "Written by cinder from evaluation results and compression records. Every number traces to a file named beside it or under Provenance." @if let Some(command) = command { " Made by " code { (command) } "." } } }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string() + "\n")
}

fn section(
    index: usize,
    group: &Group<'_>,
    figures: &[Figure<'_>],
    command: Option<&str>,
) -> Result<maud::Markup, ReportError> {
    let commands: Vec<String> = group
        .rows
        .iter()
        .map(|row| row.result.command.clone())
        .collect();
    let charts = figures.iter().map(drawn).collect::<Result<Vec<_>, _>>()?;
    // The first section's first sentence leads the page already.
    let sentences: Vec<String> = findings(group)
        .into_iter()
        .skip(usize::from(index == 0))
        .collect();
    Ok(html! {
        section id={ "group-" (index + 1) } {
            h2 { (wording::heading(group)) }
            @for sentence in &sentences { p { (sentence) } }
            @for chart in &charts { (chart) }
            (parts::commands(&commands, command))
            h3 { "Results" }
            (tables::results(group, figures))
            h3 { "How it was measured" }
            p { @for sentence in wording::protocol(group) { (sentence) " " } }
            (tables::windows(group))
            h3 { "Provenance" }
            @for row in &group.rows { (parts::provenance(row)) }
        }
    })
}

/// One chart in both widths, and its files.
fn drawn(figure: &Figure<'_>) -> Result<maud::Markup, ReportError> {
    let group = &figure.group;
    let (wide, narrow) = (
        chart::svg(group, Place::Page)?,
        chart::svg(group, Place::Phone)?,
    );
    Ok(html! {
        figure {
            // Our own drawing: its texts were escaped when it was drawn.
            div.wide { (PreEscaped(wide)) }
            div.narrow { (PreEscaped(narrow)) }
            figcaption {
                strong { (wording::chart_title(group)) "." } " " (wording::protocol_line(group)) "."
            }
        }
        p.downloads {
            (parts::download(&figure.csv, "text/csv", &figure.table, "Data (CSV)"))
            (parts::download(&figure.svg, "image/svg+xml", &figure.drawing, "Chart (SVG)"))
        }
    })
}
