//! Measurements of different windows of one text, put together: what has been measured need not be measured again.

use crate::error::{Error, Result};
use crate::perplexity::mean_loss;
use crate::result::{EvalResult, LossAt, Perplexity};

impl EvalResult {
    /// The result over the windows of both, `more`'s behind; its seconds are those of both, and its name and command this one's.
    ///
    /// # Errors
    /// [`Error::OtherMeasurement`] when the two are of different models, texts or ways of measuring, or share a window.
    pub fn together(self, more: EvalResult) -> Result<EvalResult> {
        let of = |r: &EvalResult| {
            let model = r.model.sha256.clone();
            let how = (r.dtype.clone(), r.device.clone(), r.tool_version.clone());
            let cache = (r.cache, r.kv_bytes_per_token, r.residual_window);
            (model, r.corpus.clone(), how, cache)
        };
        let (own, other) = (of(&self), of(&more));
        same("models", own.0 == other.0)?;
        same("texts", own.1 == other.1)?;
        same("types, devices or versions", own.2 == other.2)?;
        same("caches", own.3 == other.3)?;
        Ok(EvalResult {
            perplexity: self.perplexity.together(more.perplexity)?,
            seconds: self.seconds + more.seconds,
            ..self
        })
    }
}

impl Perplexity {
    /// The perplexity over the windows of both, `more`'s behind: what scoring all of them at once gives. The means of windows are
    /// kept, so the perplexity and its error are those to the last digit; losses by position are pooled from means and errors.
    ///
    /// # Errors
    /// [`Error::OtherMeasurement`] when the two cut the text in different ways, or share a window.
    pub fn together(self, more: Perplexity) -> Result<Perplexity> {
        let cut = |p: &Perplexity| (p.window, p.stride, p.bos_ids.clone());
        same("windows", cut(&self) == cut(&more))?;
        let apart = more
            .window_indices
            .iter()
            .all(|index| !self.window_indices.contains(index));
        same("windows, some of them twice", apart)?;
        let processed = |p: &Perplexity| (p.windows * p.window) as f64;
        let seconds = |p: &Perplexity| processed(p) / p.tokens_per_second;
        let tokens_per_second =
            (processed(&self) + processed(&more)) / (seconds(&self) + seconds(&more));
        let by_position = LossAt::together(
            (&self.by_position, self.windows),
            (&more.by_position, more.windows),
        );
        let window_nll = [self.window_nll, more.window_nll].concat();
        let (perplexity, stderr) = mean_loss(&window_nll, 0.0);
        Ok(Perplexity {
            perplexity,
            stderr,
            windows: self.windows + more.windows,
            window_indices: [self.window_indices, more.window_indices].concat(),
            window_nll,
            by_position,
            tokens_scored: self.tokens_scored + more.tokens_scored,
            tokens_per_second,
            ..self
        })
    }
}

impl LossAt {
    /// Of so many windows each. None where one of the two does not say.
    fn together((own, windows): (&[Self], u64), (more, others): (&[Self], u64)) -> Vec<Self> {
        if own.len() != more.len() {
            return Vec::new();
        }
        let (a, b) = (windows as f64, others as f64);
        let n = a + b;
        // Sums of squared differences from the mean (Chan, Golub & LeVeque 1979, "Updating formulae", eq. 1.5). The error of a
        // single window is that of its tokens, and among windows it says nothing.
        let squares = |at: &LossAt, n: f64| n * (n - 1.0) * at.stderr * at.stderr;
        let pair = |(own, more): (&LossAt, &LossAt)| {
            let apart = more.mean_nll - own.mean_nll;
            let squares = squares(own, a) + squares(more, b) + apart * apart * a * b / n;
            LossAt {
                from: own.from,
                to: own.to,
                mean_nll: (a * own.mean_nll + b * more.mean_nll) / n,
                stderr: (squares / (n - 1.0) / n).sqrt(),
            }
        };
        own.iter().zip(more).map(pair).collect()
    }
}

fn same(what: &'static str, same: bool) -> Result<()> {
    match same {
        true => Ok(()),
        false => Err(Error::OtherMeasurement { what }),
    }
}

#[cfg(test)]
mod tests {
    use crate::perplexity::of_losses;

    use super::*;

    const WINDOW: usize = 101;

    /// Losses of these windows that differ from token to token and from window to window.
    fn measured(windows: std::ops::Range<usize>) -> Perplexity {
        let loss = |i: usize| 2.0 + (i as f64 * 0.37).sin() + 0.01 * (i / 100) as f64;
        let losses: Vec<f64> = windows
            .clone()
            .flat_map(|w| (w * 100..(w + 1) * 100).map(loss))
            .collect();
        of_losses(&losses, WINDOW, windows.collect(), &[], 2.0)
    }

    #[test]
    fn parts_are_the_whole() {
        let whole = measured(0..9);
        let parts = [0..1, 1..3, 3..9].map(measured);
        let found = parts
            .into_iter()
            .reduce(|all, part| all.together(part).expect("of one text"))
            .expect("there are some");
        let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        assert_eq!(
            (found.perplexity, found.stderr),
            (whole.perplexity, whole.stderr)
        );
        assert_eq!(found.window_nll, whole.window_nll);
        assert_eq!(found.window_indices, whole.window_indices);
        assert_eq!(
            (found.windows, found.tokens_scored),
            (whole.windows, whole.tokens_scored)
        );
        assert_eq!(found.by_position.len(), 2);
        for (a, b) in found.by_position.iter().zip(&whole.by_position) {
            assert_eq!((a.from, a.to), (b.from, b.to));
            close(a.mean_nll, b.mean_nll);
            close(a.stderr, b.stderr);
        }
        // Nine windows in three times two seconds.
        close(found.tokens_per_second, 9.0 * WINDOW as f64 / 6.0);
    }

    #[test]
    fn what_is_no_part_is_refused() {
        let refused = |more: Perplexity| {
            let error = measured(0..2).together(more).expect_err("is no part");
            error.to_string()
        };
        assert!(refused(measured(1..3)).contains("twice"));
        let mut other = measured(2..3);
        other.window = 64;
        assert!(refused(other).contains("windows"));
    }
}
