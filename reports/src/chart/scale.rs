//! From values to pixels, and which values get a tick.

use crate::number;

/// Above this ratio of largest to smallest, a linear axis hides everything but the largest.
const LOG_FROM: f64 = 4.0;

/// A value on an axis and its text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tick {
    pub value: f64,
    pub label: String,
}

impl Tick {
    /// A tick with exactly this many decimals.
    pub fn fixed(value: f64, decimals: usize) -> Self {
        Self {
            value,
            label: number::fixed(value, decimals),
        }
    }
}

/// One axis: a range of values over a range of pixels, linear or logarithmic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub low: f64,
    pub high: f64,
    pub log: bool,
    /// Pixel of `low`, pixel of `high`; the second is the smaller on a y axis.
    pub pixels: (f64, f64),
}

impl Scale {
    /// A linear axis over `[low, high]` widened by the share `pad` on either side.
    pub fn linear(low: f64, high: f64, pad: f64) -> Self {
        // A single value, or values equal but for rounding, still get an axis one can read.
        let least = if low == high { 0.1 } else { 0.01 };
        let span = (high - low).max(high.abs() * least).max(1e-9);
        let middle = f64::midpoint(low, high);
        let half = span * (0.5 + pad);
        Self {
            low: middle - half,
            high: middle + half,
            log: false,
            pixels: (0.0, 1.0),
        }
    }

    /// An axis over exactly this range.
    pub fn exactly(low: f64, high: f64, log: bool) -> Self {
        Self {
            low,
            high,
            log,
            pixels: (0.0, 1.0),
        }
    }

    /// An axis for positive values, widened a little: logarithmic when they span more than a factor of four.
    ///
    /// `values` decide the kind, `extents` (error bars included) the range.
    pub fn positive(values: &[f64], extents: &[f64]) -> Self {
        let (low, high) = bounds(values);
        let (bottom, top) = bounds(extents);
        if high / low <= LOG_FROM {
            return Self::linear(bottom, top, 0.10);
        }
        // An error bar reaching to zero or below must not stretch a logarithmic axis without end.
        let bottom = bottom.max(low / 2.0);
        let pad = (top / bottom).powf(0.08);
        Self {
            low: bottom / pad,
            high: top * pad,
            log: true,
            pixels: (0.0, 1.0),
        }
    }

    /// The same axis over these pixels.
    pub fn over(self, first: f64, last: f64) -> Self {
        Self {
            pixels: (first, last),
            ..self
        }
    }

    /// Pixel of a value; values outside the range stay at its ends.
    pub fn at(&self, value: f64) -> f64 {
        let place = |value: f64| {
            if self.log {
                value.max(f64::MIN_POSITIVE).ln()
            } else {
                value
            }
        };
        let share = (place(value) - place(self.low)) / (place(self.high) - place(self.low));
        self.pixels.0 + share.clamp(0.0, 1.0) * (self.pixels.1 - self.pixels.0)
    }

    /// Ticks inside the range, at most `most` of them.
    pub fn ticks(&self, most: usize) -> Vec<Tick> {
        if self.log {
            log_ticks(self.low, self.high, most)
        } else {
            linear_ticks(self.low, self.high, most)
        }
    }
}

fn bounds(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
            (low.min(value), high.max(value))
        })
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, most: usize) -> Vec<Tick> {
    let mut exponent = ((high - low) / most as f64).log10().floor() as i32 - 1;
    loop {
        for mantissa in [1.0, 2.0, 5.0] {
            let step = mantissa * 10f64.powi(exponent);
            let (first, last) = ((low / step).ceil(), (high / step).floor());
            if last - first < most as f64 {
                let decimals = usize::try_from(-exponent).unwrap_or(0);
                let count = (last - first + 1.0).max(0.0) as usize;
                let values = (0..count).map(|index| (first + index as f64) * step);
                return values
                    .map(|value| Tick {
                        value,
                        label: label(value, decimals),
                    })
                    .collect();
            }
        }
        exponent += 1;
    }
}

/// Round numbers of every decade: as many of them as fit.
fn log_ticks(low: f64, high: f64, most: usize) -> Vec<Tick> {
    const MANTISSAS: [&[f64]; 5] = [
        &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
        &[1.0, 2.0, 5.0],
        &[1.0, 3.0],
        &[1.0],
    ];
    let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    for mantissas in MANTISSAS {
        let all = decades
            .clone()
            .flat_map(|decade| mantissas.iter().map(move |mantissa| (*mantissa, decade)));
        let inside: Vec<Tick> = all
            .map(log_tick)
            .filter(|tick| (low..=high).contains(&tick.value))
            .collect();
        if inside.len() <= most {
            return inside;
        }
    }
    let inside: Vec<Tick> = decades
        .map(|decade| log_tick((1.0, decade)))
        .filter(|tick| (low..=high).contains(&tick.value))
        .collect();
    let step = inside.len().div_ceil(most.max(1));
    inside.into_iter().step_by(step.max(1)).collect()
}

fn log_tick((mantissa, decade): (f64, i32)) -> Tick {
    let value = mantissa * 10f64.powi(decade);
    let power = || number::superscript(&decade.to_string());
    let label = if decade < 6 {
        let decimals = usize::try_from(-decade).unwrap_or(0)
            + usize::from(mantissa.fract() > 0.0 && decade < 1);
        number::fixed(value, decimals)
    } else if mantissa == 1.0 {
        format!("10{}", power())
    } else {
        format!("{mantissa}×10{}", power())
    };
    Tick { value, label }
}

fn label(value: f64, decimals: usize) -> String {
    if value.abs() >= 1e7 {
        number::significant(value)
    } else {
        number::fixed(value, decimals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_inside() {
        assert_eq!(
            labels(&linear_ticks(0.68, 1.02, 6)),
            ["0.7", "0.8", "0.9", "1.0"]
        );
        assert_eq!(
            labels(&linear_ticks(19.0, 46.0, 6)),
            ["20", "25", "30", "35", "40", "45"]
        );
        assert_eq!(
            labels(&linear_ticks(900.0, 3_100.0, 5)),
            ["1,000", "1,500", "2,000", "2,500", "3,000"]
        );
    }

    #[test]
    fn log_ticks_thin_out_with_the_range() {
        assert_eq!(
            labels(&log_ticks(18.0, 210.0, 8)),
            ["20", "30", "50", "70", "100", "150", "200"]
        );
        assert_eq!(
            labels(&log_ticks(10.0, 20_000.0, 8)),
            ["10", "30", "100", "300", "1,000", "3,000", "10,000"]
        );
        assert_eq!(
            labels(&log_ticks(15.0, 3e9, 5)),
            ["100", "10,000", "10⁶", "10⁸"]
        );
        assert_eq!(
            labels(&log_ticks(1.2, 8.0, 7)),
            ["1.5", "2", "3", "4", "5", "6", "8"]
        );
    }

    #[test]
    fn four_times_the_range_turns_the_axis_logarithmic() {
        assert!(!Scale::positive(&[20.0, 80.0], &[19.0, 81.0]).log);
        assert!(Scale::positive(&[20.0, 81.0], &[19.0, 85.0]).log);
    }

    #[test]
    fn an_error_bar_below_zero_keeps_the_axis_finite() {
        let scale = Scale::positive(&[20.0, 2_000.0], &[-5.0, 4_000.0]).over(100.0, 0.0);
        assert!(scale.low > 5.0 && scale.at(-5.0) == 100.0 && scale.at(1e9) == 0.0);
    }

    #[test]
    fn a_single_value_has_a_range_around_it() {
        let scale = Scale::linear(0.8, 0.8, 0.1).over(0.0, 100.0);
        assert!((scale.at(0.8) - 50.0).abs() < 1e-9);
        assert!(!scale.ticks(6).is_empty());
    }
}
