//! The one font of every chart, embedded, so that a chart has the same shape on every machine.

use std::sync::{Arc, LazyLock};

use resvg::usvg::{self, fontdb::Database};

/// What a standalone SVG asks for. Verdana is as wide as DejaVu Sans, so a viewer without the latter keeps the layout.
pub(crate) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

static DATABASE: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut database = Database::new();
    database.load_font_data(dejavu::sans::regular().to_vec());
    database.load_font_data(dejavu::sans::bold().to_vec());
    database.set_sans_serif_family("DejaVu Sans");
    Arc::new(database)
});

/// Parser options that know the embedded fonts and nothing else.
pub(crate) fn options() -> usvg::Options<'static> {
    usvg::Options {
        fontdb: Arc::clone(&DATABASE),
        font_family: "DejaVu Sans".to_owned(),
        ..usvg::Options::default()
    }
}

/// Width of `text` in pixels at `size` pixels, shaped as the PNG shapes it.
pub(crate) fn width(text: &str, size: f64, bold: bool) -> f64 {
    let weight = if bold { "bold" } else { "normal" };
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"9\" height=\"9\"><text font-family=\"{FAMILY}\" \
         font-size=\"100\" font-weight=\"{weight}\">{}</text></svg>",
        escape(text)
    );
    let measured = usvg::Tree::from_str(&svg, &options())
        .ok()
        .map(|tree| f64::from(tree.root().bounding_box().width()));
    // Nothing visible, or nothing the parser can read: the average glyph is a safe guess for a margin.
    let hundredths = measured.unwrap_or_else(|| 60.0 * text.chars().count() as f64);
    hundredths * size / 100.0
}

/// `text`, shortened with an ellipsis until it fits `limit` pixels.
pub(crate) fn fit(text: &str, size: f64, bold: bool, limit: f64) -> String {
    if width(text, size, bold) <= limit {
        return text.to_owned();
    }
    let characters: Vec<char> = text.chars().collect();
    let shortened = |keep: usize| {
        format!(
            "{}…",
            characters[..keep].iter().collect::<String>().trim_end()
        )
    };
    // The width grows with the number of characters, so halving finds the longest that fits.
    let (mut fits, mut too_long) = (0, characters.len());
    while too_long - fits > 1 {
        let middle = usize::midpoint(fits, too_long);
        if width(&shortened(middle), size, bold) <= limit {
            fits = middle
        } else {
            too_long = middle
        }
    }
    shortened(fits)
}

/// `text` in lines of at most `limit` pixels, broken between words.
pub(crate) fn wrap(text: &str, size: f64, limit: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), size, false) <= limit => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(fit(word, size, false, limit)),
        }
    }
    lines
}

/// `text` as XML character data; characters XML forbids become replacement characters.
pub(crate) fn escape(text: &str) -> String {
    clean(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// `text` without the characters that no XML document may hold.
pub(crate) fn clean(text: &str) -> String {
    let forbidden = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    text.chars()
        .map(|c| if forbidden(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_grows_with_size_weight_and_text() {
        let base = width("keep ratio", 12.0, false);
        assert!((50.0..90.0).contains(&base), "{base}");
        assert!((width("keep ratio", 24.0, false) - 2.0 * base).abs() < 1e-6);
        assert!(width("keep ratio", 12.0, true) > base);
        assert!(width("a < b & c \u{1}", 12.0, false) > 0.0);
    }

    #[test]
    fn long_text_is_shortened_and_wrapped_to_the_limit() {
        let name = "a-model-with-a-name-that-goes-on-and-on";
        let short = fit(name, 12.0, false, 100.0);
        assert!(short.ends_with('…') && width(&short, 12.0, false) <= 100.0);
        assert_eq!(fit("short", 12.0, false, 100.0), "short");
        let lines = wrap(
            "keep ratio (stored decoder-projection scalars, after / before)",
            12.0,
            200.0,
        );
        assert!(lines.len() > 1 && lines.iter().all(|line| width(line, 12.0, false) <= 200.0));
    }
}
