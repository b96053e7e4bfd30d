//! The report for a pull request: one table a group and a link to its chart, and a short table a compressed model.

use crate::chart;
use crate::compression::{Compressed, wording as say};
use crate::findings::findings;
use crate::group::{Group, Row};
use crate::number;
use crate::report::{Figure, LayerFigures};
use crate::sections::{Section, Table};
use crate::sensitivity::SensitivityFigure;
use crate::wording;

/// The whole document; figures are linked by file name, relative to it.
#[expect(clippy::too_many_arguments, reason = "one for each kind of part")]
pub(crate) fn markdown(
    title: &str,
    groups: &[Group<'_>],
    figures: &[Vec<Figure<'_>>],
    models: &[Compressed<'_>],
    layers: Option<&LayerFigures>,
    sections: &[Section],
    sensitivities: &[SensitivityFigure<'_>],
    command: Option<&str>,
) -> String {
    let mut text = format!("# {}\n", escape(title));
    for (group, figures) in groups.iter().zip(figures) {
        text.push_str(&format!("\n## {}\n\n", escape(&wording::heading(group))));
        for finding in findings(group) {
            text.push_str(&format!("{}\n\n", escape(&finding)));
        }
        for figure in figures {
            let title = escape(&wording::chart_title(&figure.group));
            text.push_str(&format!("![{title}]({})\n\n", figure.png));
        }
        text.push_str(&table(group, figures));
        let data: Vec<String> = figures
            .iter()
            .map(|figure| format!("[{}]({})", figure.csv, figure.csv))
            .collect();
        text.push_str(&format!(
            "\nWeights are those in memory; tokens/s is scoring speed. Data: {}.\n\n",
            data.join(", ")
        ));
        let protocol: Vec<String> = wording::protocol(group)
            .iter()
            .map(|sentence| escape(sentence))
            .collect();
        text.push_str(&format!(
            "**How it was measured.** {}\n\n",
            protocol.join(" ")
        ));
        text.push_str(&provenance(group));
    }
    for section in sections {
        text.push_str(&part(section));
    }
    if let Some(layers) = layers {
        text.push_str(&compressions(layers, models));
    }
    for figure in sensitivities {
        text.push_str(&sensitivity(figure));
    }
    if let Some(command) = command {
        text.push_str(&format!("\nReport made by {}.\n", code(command)));
    }
    text
}

/// A part with its figures, tables and where they come from.
fn part(section: &Section) -> String {
    let mut text = format!(
        "\n## {}\n\n{}\n\n",
        escape(&section.heading),
        escape(&section.introduction)
    );
    for figure in &section.figures {
        text.push_str(&format!(
            "![{}]({}.png)\n\n",
            escape(&figure.title),
            figure.stem
        ));
    }
    for (name, table) in &section.tables {
        if !name.is_empty() {
            text.push_str(&format!("### {}\n\n", escape(name)));
        }
        text.push_str(&general(table));
        text.push('\n');
    }
    let data = section
        .figures
        .iter()
        .map(|figure| format!("[{0}.csv]({0}.csv)", figure.stem));
    let data: Vec<String> = data.collect();
    if !data.is_empty() {
        text.push_str(&format!("Data: {}.\n\n", data.join(", ")));
    }
    text.push_str(&origin(&section.files, &section.commands));
    text
}

/// A table of any kind.
fn general(table: &Table) -> String {
    let heads = table.heads.iter().map(|head| match head.unit {
        "" => escape(&head.name),
        unit => format!("{} ({unit})", escape(&head.name)),
    });
    let mut text = format!("| {} |\n", heads.collect::<Vec<_>>().join(" | "));
    let aligned = table
        .heads
        .iter()
        .map(|head| if head.number { "--:" } else { ":--" });
    text.push_str(&format!("|{}|\n", aligned.collect::<Vec<_>>().join("|")));
    for row in &table.rows {
        let cells: Vec<String> = row.iter().map(|cell| escape(cell.shown())).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

/// Files and command lines, folded away.
fn origin(files: &[String], commands: &[String]) -> String {
    let files: Vec<String> = files.iter().map(|file| code(file)).collect();
    let mut text = format!(
        "<details><summary>Where it comes from</summary>\n\n- files: {}\n",
        files.join(", ")
    );
    for command in commands {
        text.push_str(&format!("- {}\n", code(command)));
    }
    text.push_str("\n</details>\n");
    text
}

/// The heat map, and the sites that matter most: the data has all of them.
fn sensitivity(figure: &SensitivityFigure<'_>) -> String {
    let (ranking, rest) = figure.ranking();
    let mut text = format!(
        "\n## {}\n\n{}\n\n![{}]({})\n\n{}\n",
        escape(&figure.heading()),
        escape(&figure.introduction()),
        escape(chart::SITES_TITLE),
        figure.png,
        general(&ranking)
    );
    if let Some(rest) = rest {
        text.push_str(&format!("{rest} "));
    }
    text.push_str(&format!("Data: [{0}]({0}).\n\n", figure.csv));
    let (file, command) = figure.origin();
    text + &origin(&[file], &[command])
}

/// Heat maps, then a table a model with a row a projection: the page and the data have every layer.
fn compressions(layers: &LayerFigures, models: &[Compressed<'_>]) -> String {
    let mut text = format!("\n## {}\n\n{}\n\n", say::HEADING, say::INTRODUCTION);
    if let Some(left_out) = &layers.left_out {
        text.push_str(&format!("{left_out}\n\n"));
    }
    for figure in &layers.figures {
        text.push_str(&format!("![{}]({})\n\n", figure.title, figure.png));
    }
    text.push_str(&format!("Data: [{}]({}).\n", layers.csv, layers.csv));
    for model in layers.shown.iter().filter_map(|&index| models.get(index)) {
        let record = &model.record;
        text.push_str(&format!(
            "\n### {}\n\nKeeps {}. {}\n\n",
            escape(&model.label),
            wording::keep_ratio(record.keep_ratio),
            escape(&say::summary(model))
        ));
        text.push_str(
            "| projection | kinds (layers) | mean kept | rank | output error | fallbacks |\n\
             |:--|:--|--:|--:|--:|--:|\n",
        );
        for each in model.summaries() {
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {} |\n",
                escape(each.projection),
                escape(&say::counts(&each.kinds)),
                wording::keep_ratio(each.kept),
                say::ranks(each.rank),
                say::errors(each.error),
                each.fallbacks
            ));
        }
        let files = std::iter::once(&record.file).chain(&model.also);
        let files: Vec<String> = files
            .map(|file| code(&file.display().to_string()))
            .collect();
        text.push_str(&format!(
            "\nFrom {}; model {}.\n",
            files.join(", "),
            code(&record.path.display().to_string())
        ));
    }
    text
}

fn table(group: &Group<'_>, figures: &[Figure<'_>]) -> String {
    let marked = wording::fronts(group, figures);
    let mut text = String::from(
        "| model | recipe | keep ratio | perplexity | × dense | parameters (millions) | weights (MB) | tokens/s |",
    );
    text.push_str(if marked.is_some() {
        " Pareto front of |\n"
    } else {
        "\n"
    });
    text.push_str("|:--|:--|--:|--:|--:|--:|--:|--:|");
    text.push_str(if marked.is_some() { ":--|\n" } else { "\n" });
    for (index, row) in group.rows.iter().enumerate() {
        let (model, measured) = (&row.result.model, &row.result.perplexity);
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |{}\n",
            escape(&model.name),
            escape(&row.series),
            wording::keep_ratio(model.keep_ratio),
            number::with_error(measured.perplexity, row.stderr()),
            times(row),
            number::significant(model.parameters as f64 / 1e6),
            number::significant(model.bytes as f64 / 1e6),
            number::significant(measured.tokens_per_second),
            marked
                .as_ref()
                .map_or(String::new(), |fronts| format!(" {} |", fronts[index])),
        ));
    }
    text
}

/// `×3.042 ± 0.041`, `1` for the reference itself.
fn times(row: &Row<'_>) -> String {
    match row.relative {
        None => "–".to_owned(),
        Some(_) if row.reference => "1".to_owned(),
        Some(relative) => number::with_error(relative.times, relative.stderr),
    }
}

fn provenance(group: &Group<'_>) -> String {
    let mut text = String::from("<details><summary>Where each number comes from</summary>\n\n");
    for row in &group.rows {
        let result = row.result;
        text.push_str(&format!(
            "- **{}**: result {}, model {} with sha256 {}, corpus sha256 {}, cinder {}, {}\n",
            escape(&result.model.name),
            code(&row.file.display().to_string()),
            code(&result.model.path),
            code(&result.model.sha256),
            code(&result.corpus.sha256),
            escape(&result.tool_version),
            code(&result.command),
        ));
    }
    text.push_str("\n</details>\n");
    text
}

/// Text that means itself: no markup, no HTML, no table cell of its own.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A code span around any text: its fence is longer than every run of backticks inside.
pub(crate) fn code(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') {
        " "
    } else {
        ""
    };
    format!("{fence}{pad}{text}{pad}{fence}")
}

#[cfg(test)]
mod tests {
    use super::{code, escape};

    #[test]
    fn markup_in_names_stays_text() {
        assert_eq!(
            escape("a|b *c* <script>\n"),
            "a\\|b \\*c\\* &lt;script&gt; "
        );
        assert_eq!(code("plain"), "`plain`");
        assert_eq!(code("a ``b``"), "``` a ``b`` ```");
    }
}
