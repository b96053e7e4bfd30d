//! Numbers as people read them.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// Bytes with a decimal unit and three significant digits or so: `98.4 MB`.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return match unit {
                "B" => format!("{n} B"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Bytes as people write them: `500MB`, `1.5 GB`, `2GiB`, or a plain number.
///
/// # Errors
/// A sentence for what is no size.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: give one such as 500MB, 1.5GB or 2GiB");
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.'));
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        _ => return Err(wrong()),
    };
    Ok((number * unit).round() as u64)
}

/// A count with thousands separated: `134,515,008`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A table without rules; every column but the first is aligned right.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    align(&mut table);
    table
}

/// Names and values, without a header.
pub fn pairs(rows: &[(&str, String)]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for (name, value) in rows {
        table.add_row(vec![*name, value]);
    }
    align(&mut table);
    table
}

fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_separators() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, wanted) in [
            ("500MB", 500_000_000),
            ("1.5 GB", 1_500_000_000),
            ("2GiB", 2 << 30),
            ("1e3", 0),
            ("4096", 4096),
            ("0.5kib", 512),
            ("12 b", 12),
            ("", 0),
            ("MB", 0),
            ("-1MB", 0),
            ("1.2.3MB", 0),
            ("5 bytes", 0),
        ] {
            match wanted {
                0 => assert!(parse_bytes(text).is_err(), "{text}"),
                _ => assert_eq!(parse_bytes(text), Ok(wanted), "{text}"),
            }
        }
    }
}
