//! Which of ten colours a value gets, and what the colour bar says.

use plotters::style::RGBColor;

use crate::chart::palette::{ERROR, KEPT};
use crate::chart::scale::{Scale, Tick};

/// Distances between the middles of two steps of a linear ramp. None is finer: a rank is a whole number, so shares that were
/// meant equal differ by some tenths of a percent, which must not look like a decision.
const STEPS: [f64; 7] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
/// A logarithmic ramp covers at most this ratio; smaller values share the lightest colour.
const WIDEST: f64 = 1e4;

/// From this colour on, paper reads better on it than ink.
const STRONG: usize = 6;

/// Values in steps of colour.
#[derive(Debug, Clone)]
pub(super) struct Ramp {
    /// From the lower edge of the first step to the upper edge of the last.
    scale: Scale,
    colours: Vec<usize>,
    palette: &'static [RGBColor; 10],
    ticks: Vec<Tick>,
}

impl Ramp {
    /// Kept shares: steps around round numbers up to 1 (or beyond), so that equal settings have equal colours.
    pub fn kept(values: &[f64]) -> Self {
        let low = values.iter().copied().fold(1.0, f64::min);
        let high = values.iter().copied().fold(1.0, f64::max);
        let round = |value: f64, step: f64| (value / step).round();
        let fits = |step: &&f64| round(high, **step) - round(low, **step) < KEPT.len() as f64;
        let step = STEPS.iter().find(fits).copied();
        let step = step.unwrap_or((high - low) / (KEPT.len() - 1) as f64);
        let (first, last) = (round(low, step), round(high, step));
        let count = (last - first) as usize + 1;
        let scale = Scale::exactly((first - 0.5) * step, (last + 0.5) * step, false);
        let ticks = (0..count).map(|index| (first + index as f64) * step);
        let decimals = if step < 0.1 { 2 } else { 1 };
        Self {
            scale: scale.over(0.0, count as f64),
            colours: spread(count),
            palette: &KEPT,
            ticks: ticks.map(|value| Tick::fixed(value, decimals)).collect(),
        }
    }

    /// Errors above zero: ten steps of equal ratio; none when there is no error at all.
    pub fn error(values: &[f64]) -> Option<Self> {
        let above = || values.iter().copied().filter(|value| *value > 0.0);
        let high = above().fold(0.0, f64::max);
        if high <= 0.0 {
            return None;
        }
        let low = above().fold(high, f64::min).max(high / WIDEST);
        // Values that hardly differ must not span the whole ramp.
        let widen = (4.0 / (high / low)).max(1.0).sqrt();
        let scale = Scale::exactly(low / widen, high * widen, true);
        Some(Self {
            ticks: scale.ticks(6),
            scale: scale.over(0.0, ERROR.len() as f64),
            colours: spread(ERROR.len()),
            palette: &ERROR,
        })
    }

    /// The colour of a value, and whether it is one of the strong ones, on which text must be paper-coloured.
    pub fn colour(&self, value: f64) -> (RGBColor, bool) {
        let step = (self.scale.at(value).max(0.0) as usize).min(self.colours.len() - 1);
        self.step(step)
    }

    /// The colour of a step.
    pub fn step(&self, step: usize) -> (RGBColor, bool) {
        let index = self.colours[step];
        (self.palette[index], index >= STRONG)
    }

    pub fn steps(&self) -> usize {
        self.colours.len()
    }

    /// Values worth naming, with their places in steps from the lower end.
    pub fn ticks(&self) -> impl Iterator<Item = (f64, &str)> {
        let tick = |tick: &Tick| self.scale.at(tick.value);
        self.ticks
            .iter()
            .map(move |each| (tick(each), each.label.as_str()))
    }
}

/// `count` of the ten colours, as far apart as they go; a single one is the strongest.
fn spread(count: usize) -> Vec<usize> {
    let last = KEPT.len() - 1;
    (0..count)
        .map(|index| (last * index).checked_div(count - 1).unwrap_or(last))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ramp: &Ramp) -> Vec<&str> {
        ramp.ticks().map(|(_, label)| label).collect()
    }

    #[test]
    fn shares_meant_equal_have_one_colour() {
        let ramp = Ramp::kept(&[0.8021, 0.7986, 1.0]);
        assert_eq!(labels(&ramp), ["0.80", "0.85", "0.90", "0.95", "1.00"]);
        assert_eq!(ramp.colour(0.8021), ramp.colour(0.7986));
        assert_ne!(ramp.colour(0.8), ramp.colour(1.0));
        assert_eq!(
            labels(&Ramp::kept(&[0.0])),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(labels(&Ramp::kept(&[1.0])), ["1.00"]);
        assert!(Ramp::kept(&[0.0, 1e6]).steps() <= 10);
    }

    #[test]
    fn errors_have_a_logarithmic_ramp_unless_there_are_none() {
        assert!(Ramp::error(&[0.0, 0.0]).is_none() && Ramp::error(&[]).is_none());
        let ramp = Ramp::error(&[0.0, 0.001, 0.1, 0.5]).expect("errors");
        assert_eq!(ramp.colour(0.001), ramp.step(0));
        assert_eq!(ramp.colour(0.5), ramp.step(9));
        assert_eq!(ramp.colour(1e-30), ramp.step(0));
        let one = Ramp::error(&[0.1]).expect("an error");
        assert_eq!(one.colour(0.1), one.step(5));
    }
}
