//! Numbers as a reader sees them: four significant digits, thousands separators, no exponent below ten million.

/// Significant digits of a measured value.
const DIGITS: i32 = 4;
/// From here on a number is written as `1.235×10⁷`: nobody compares eight digits of a collapsed perplexity.
const SCIENTIFIC: f64 = 1e7;

/// Decimals that give `value` four significant digits, none for large values.
pub(crate) fn decimals(value: f64) -> usize {
    if value == 0.0 || !value.is_finite() {
        return 0;
    }
    let exponent = value.abs().log10().floor() as i32;
    // Rounding may carry into the next decade: 99.996 is 100.0, not 100.00.
    let exponent =
        if (value.abs() / 10f64.powi(exponent - DIGITS + 1)).round() >= 10f64.powi(DIGITS) {
            exponent + 1
        } else {
            exponent
        };
    usize::try_from(DIGITS - 1 - exponent).unwrap_or(0).min(9)
}

/// `value` with four significant digits: `20.97`, `1,235`, `1.235×10⁷`.
pub(crate) fn significant(value: f64) -> String {
    if value.abs() >= SCIENTIFIC {
        scientific(value)
    } else {
        fixed(value, decimals(value))
    }
}

/// `value ± error` with both at the value's precision; a single-window value stands alone.
pub(crate) fn with_error(value: f64, error: Option<f64>) -> String {
    match error {
        Some(error) if value.abs() >= SCIENTIFIC => {
            format!("{} ± {}", scientific(value), scientific(error))
        }
        Some(error) => format!(
            "{} ± {}",
            significant(value),
            rounded(error, decimals(value))
        ),
        None => significant(value),
    }
}

/// An error at the precision of its value; one that would read as zero is given as a bound, as it is not zero.
fn rounded(error: f64, decimals: usize) -> String {
    let smallest = 10f64.powi(-(decimals as i32));
    if error > 0.0 && error < smallest / 2.0 {
        format!("<{}", fixed(smallest, decimals))
    } else {
        fixed(error, decimals)
    }
}

/// `value` with exactly `decimals` decimals and thousands separators.
pub(crate) fn fixed(value: f64, decimals: usize) -> String {
    let plain = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    // "-0.00" would claim a sign that the shown digits do not have.
    let negative = value < 0.0 && plain.chars().any(|c| c.is_ascii_digit() && c != '0');
    let sign = if negative { "−" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}", grouped(whole))
}

/// A count with thousands separators: `134,515,008`.
pub(crate) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// `share` as a percentage without needless decimals: `80 %`, `79.5 %`.
pub(crate) fn percent(share: f64) -> String {
    let text = format!("{:.1}", share * 100.0);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

/// Indices as ranges: `0–15`, `0, 4, 8–9`.
pub(crate) fn ranges(indices: &[u64]) -> String {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for &index in indices {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(index) => *last = index,
            _ => parts.push((index, index)),
        }
    }
    let parts = parts.iter().map(|(first, last)| {
        if first == last {
            count(*first)
        } else {
            format!("{}–{}", count(*first), count(*last))
        }
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn grouped(digits: &str) -> String {
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `3×10⁷` for ticks, `1.235×10⁷` for values.
fn scientific(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let written = format!("{value:.3e}");
    let (mantissa, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    format!("{mantissa}×10{}", superscript(exponent))
}

/// An integer in superscript digits.
pub(crate) fn superscript(integer: &str) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    integer
        .chars()
        .map(|c| c.to_digit(10).map_or('⁻', |digit| DIGITS[digit as usize]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_four_significant_digits() {
        for (value, shown) in [
            (20.9712, "20.97"),
            (63.8, "63.80"),
            (3.0424, "3.042"),
            (99.996, "100.0"),
            (182.06, "182.1"),
            (9_999.6, "10,000"),
            (1_234_567.2, "1,234,567"),
            (12_345_678.0, "1.235×10⁷"),
            (0.012_345, "0.01235"),
            (0.0, "0"),
        ] {
            assert_eq!(significant(value), shown);
        }
    }

    #[test]
    fn errors_are_shown_at_the_precision_of_the_value() {
        assert_eq!(with_error(20.9712, Some(0.8349)), "20.97 ± 0.83");
        assert_eq!(with_error(1_234.5, Some(56.4)), "1,234 ± 56");
        assert_eq!(with_error(20.9712, None), "20.97");
        assert_eq!(with_error(1.34, Some(0.0001)), "1.340 ± <0.001");
        assert_eq!(with_error(1.34, Some(0.0)), "1.340 ± 0.000");
        assert_eq!(with_error(2e9, Some(1.5e8)), "2.000×10⁹ ± 1.500×10⁸");
    }

    #[test]
    fn counts_percentages_and_ranges() {
        assert_eq!(count(134_515_008), "134,515,008");
        assert_eq!(count(7), "7");
        assert_eq!(percent(0.8), "80 %");
        assert_eq!(percent(0.7949), "79.5 %");
        assert_eq!(ranges(&[0, 1, 2, 3]), "0–3");
        assert_eq!(ranges(&[0, 4, 8, 9]), "0, 4, 8–9");
        assert_eq!(fixed(-0.001, 2), "0.00");
        assert_eq!(fixed(-1_234.5, 1), "−1,234.5");
    }
}
