//! Colours: fixed ones in the standalone figure, theme variables in the page.

use plotters::style::RGBColor;

/// Paper.
pub(crate) const PAPER: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
/// Titles, values, the dense line.
pub(crate) const INK: RGBColor = RGBColor(0x1B, 0x20, 0x27);
/// Axis text and notes.
pub(crate) const MUTED: RGBColor = RGBColor(0x5A, 0x63, 0x70);
/// Horizontal guides.
pub(crate) const GRID: RGBColor = RGBColor(0xE4, 0xE7, 0xEC);
/// The x axis and its ticks.
pub(crate) const AXIS: RGBColor = RGBColor(0x9A, 0xA3, 0xAF);

/// Okabe and Ito's colours that stand out on white, told apart with every common kind of colour blindness.
pub(crate) const SERIES: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];

/// Kept shares from little to all: one hue whose lightness falls step by step, which every kind of colour vision sees. Ink reads
/// on the first six, paper on the last four.
pub(crate) const KEPT: [RGBColor; 10] = [
    RGBColor(0xE0, 0xF3, 0xFF),
    RGBColor(0xBE, 0xE0, 0xFB),
    RGBColor(0x9B, 0xCC, 0xF5),
    RGBColor(0x79, 0xB8, 0xEE),
    RGBColor(0x57, 0xA3, 0xE6),
    RGBColor(0x45, 0x8E, 0xD1),
    RGBColor(0x30, 0x76, 0xB9),
    RGBColor(0x1D, 0x61, 0xA3),
    RGBColor(0x19, 0x4D, 0x84),
    RGBColor(0x19, 0x3A, 0x62),
];

/// Errors from small to large, as [`KEPT`] in another hue.
pub(crate) const ERROR: [RGBColor; 10] = [
    RGBColor(0xFF, 0xEC, 0xDD),
    RGBColor(0xF7, 0xD3, 0xB8),
    RGBColor(0xEF, 0xB9, 0x94),
    RGBColor(0xE6, 0x9E, 0x71),
    RGBColor(0xDD, 0x83, 0x4E),
    RGBColor(0xC8, 0x6D, 0x3F),
    RGBColor(0xB0, 0x55, 0x2C),
    RGBColor(0x99, 0x3F, 0x1B),
    RGBColor(0x7C, 0x31, 0x19),
    RGBColor(0x5D, 0x26, 0x19),
];

/// The figure with every colour replaced by a CSS variable, so that the page's theme decides.
///
/// Replaces whole attributes as the backend writes them. Text cannot imitate one: its quotes are escaped.
pub(crate) fn themed(svg: &str) -> String {
    let names = [
        (PAPER, "paper"),
        (INK, "ink"),
        (MUTED, "muted"),
        (GRID, "grid"),
        (AXIS, "axis"),
    ];
    let names = names
        .into_iter()
        .map(|(colour, name)| (colour, name.to_owned()));
    let numbered = |colours: &'static [RGBColor], name: &'static str| {
        let colours = colours.iter().enumerate();
        colours.map(move |(index, colour)| (*colour, format!("{name}-{index}")))
    };
    let names = names
        .chain(numbered(&SERIES, "series"))
        .chain(numbered(&KEPT, "kept"))
        .chain(numbered(&ERROR, "error"));
    let mut themed = svg.to_owned();
    for (RGBColor(r, g, b), name) in names {
        for property in ["fill", "stroke"] {
            let fixed = format!(" {property}=\"#{r:02X}{g:02X}{b:02X}\"");
            themed = themed.replace(&fixed, &format!(" style=\"{property}:var(--{name})\""));
        }
    }
    themed
}

#[cfg(test)]
mod tests {
    use super::themed;

    #[test]
    fn colours_become_variables_and_text_stays() {
        let svg =
            "<line stroke=\"#0072B2\"/><text fill=\"#1B2027\">fill=&quot;#0072B2&quot;</text>";
        let expected = "<line style=\"stroke:var(--series-0)\"/><text style=\"fill:var(--ink)\">fill=&quot;#0072B2&quot;</text>";
        assert_eq!(themed(svg), expected);
    }
}
