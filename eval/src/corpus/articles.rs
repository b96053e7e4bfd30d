//! WikiText's rows put together to articles.

/// The rows from each level-one heading to the next, joined by a blank line; rows before the first heading are an
/// article of their own. Empty rows around an article are dropped, those inside kept.
pub(super) fn articles(rows: &[String]) -> Vec<String> {
    let mut articles: Vec<Vec<&str>> = vec![Vec::new()];
    for row in rows {
        if is_title(row) {
            articles.push(Vec::new());
        }
        if let Some(article) = articles.last_mut() {
            article.push(row);
        }
    }
    articles.into_iter().map(|rows| join(&rows)).collect()
}

/// Whether these documents are WikiText's rows, as its tables on the hub have them: nothing but single lines with their
/// line breaks and empty rows, a level-one heading among them.
pub(super) fn are_rows(documents: &[String]) -> bool {
    let is_row = |d: &String| d.is_empty() || d.find('\n') == Some(d.len() - 1);
    documents.iter().all(is_row) && documents.iter().any(|d| is_title(d))
}

/// ` = Title = `, one equals sign on each side; deeper headings have several, with blanks in between.
fn is_title(row: &str) -> bool {
    let title = row
        .trim()
        .strip_prefix("= ")
        .and_then(|r| r.strip_suffix(" ="));
    title.is_some_and(|t| !t.trim().is_empty() && !t.starts_with('=') && !t.ends_with('='))
}

fn join(rows: &[&str]) -> String {
    let filled = |row: &&str| !row.trim().is_empty();
    let start = rows.iter().position(filled).unwrap_or(rows.len());
    let end = rows.iter().rposition(filled).map_or(start, |last| last + 1);
    rows[start..end].join("\n\n")
}
