//! Downloads and provenance.

use maud::{Markup, html};

use crate::group::Row;
use crate::number;
use crate::wording;

/// A link that carries its file within itself.
pub(crate) fn download(name: &str, media_type: &str, content: &str, label: &str) -> Markup {
    let address = format!(
        "data:{media_type};charset=utf-8,{}",
        percent_encoded(content)
    );
    html! { a download=(name) href=(address) { (label) } }
}

/// The commands that made a figure's numbers and the report, folded away.
pub(crate) fn commands(commands: &[String], made_by: Option<&str>) -> Markup {
    let mut all: Vec<&str> = Vec::new();
    for command in commands.iter().map(String::as_str).chain(made_by) {
        if !all.contains(&command) {
            all.push(command);
        }
    }
    html! {
        @if !all.is_empty() {
            details {
                summary { "Commands that made this" }
                @for command in all {
                    div.command { pre { code { (command) } } button type="button" data-copy hidden { "Copy" } }
                }
            }
        }
    }
}

/// Every byte that is not a letter, a digit or harmless punctuation as `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~,:/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Everything needed to trace or repeat one row.
pub(crate) fn provenance(row: &Row<'_>) -> Markup {
    let result = row.result;
    let keep = wording::keep_ratio(result.model.keep_ratio);
    html! {
        article.source {
            h4 {
                (result.model.name)
                span.muted { " " (row.series) @if !row.is_dense() { ", keep ratio " (keep) } }
            }
            dl {
                dt { "Result file" }
                dd { code { (row.file.display().to_string()) }
                    @for also in &row.also { ", " code { (also.display().to_string()) } } }
                dt { "Model" } dd { code { (result.model.path) } }
                dt { "Model SHA-256" } dd { (hash(&result.model.sha256)) }
                dt { "Corpus SHA-256" } dd { (hash(&result.corpus.sha256)) }
                dt { "Run on" } dd { (result.device) ", " (result.dtype) ", stored as " (result.model.stored_as) ", "
                    (number::significant(result.seconds)) " s" }
                dt { "Cinder" } dd { (result.tool_version) }
            }
            div.command { pre { code { (result.command) } } button type="button" data-copy hidden { "Copy" } }
        }
    }
}

/// The first characters; the rest on demand, and always on paper.
fn hash(full: &str) -> Markup {
    let short: String = full.chars().take(12).collect();
    html! {
        details.hash { summary title=(full) { code { (short) "…" } } code { (full) } }
    }
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn data_addresses_hold_any_text() {
        assert_eq!(
            percent_encoded("a,b\n\"é\" <x>#&%"),
            "a,b%0A%22%C3%A9%22%20%3Cx%3E%23%26%25"
        );
    }
}
