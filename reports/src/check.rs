//! What one result must satisfy before a number of it is shown to anyone.

use crate::error::ReportError;
use crate::input::Evaluation;

/// How far `perplexity` may lie from the exponential of its own window means: rounding only.
const SELF_CONSISTENCY: f64 = 1e-3;

/// Rejects numbers that are not finite and fields that contradict each other.
pub(crate) fn check(evaluation: &Evaluation) -> Result<(), ReportError> {
    finite(evaluation)?;
    let (model, measured) = (&evaluation.result.model, &evaluation.result.perplexity);
    if measured.window_indices.is_empty() {
        return contradiction(evaluation, "no window was scored".to_owned());
    }
    if measured.window_indices.len() != measured.window_nll.len() {
        let message = format!(
            "{} windows but {} window means",
            measured.window_indices.len(),
            measured.window_nll.len()
        );
        return contradiction(evaluation, message);
    }
    if measured.perplexity <= 0.0 || measured.stderr < 0.0 {
        let message = format!(
            "perplexity {} with standard error {}: the first must be positive, the second not negative",
            measured.perplexity, measured.stderr
        );
        return contradiction(evaluation, message);
    }
    let mean = measured.window_nll.iter().sum::<f64>() / measured.window_nll.len() as f64;
    if (measured.perplexity.ln() - mean).abs() > SELF_CONSISTENCY {
        let message = format!(
            "perplexity {} is not the exponential of the mean of its window means, {}",
            measured.perplexity,
            mean.exp()
        );
        return contradiction(evaluation, message);
    }
    if model.keep_ratio <= 0.0 {
        return contradiction(
            evaluation,
            format!("keep ratio {} is not positive", model.keep_ratio),
        );
    }
    if model.recipe.is_none() && model.keep_ratio != 1.0 {
        let message = format!(
            "keep ratio {} without a recipe: a model no recipe made keeps everything",
            model.keep_ratio
        );
        return contradiction(evaluation, message);
    }
    Ok(())
}

fn finite(evaluation: &Evaluation) -> Result<(), ReportError> {
    let result = &evaluation.result;
    let single = [
        ("perplexity", result.perplexity.perplexity),
        ("stderr", result.perplexity.stderr),
        ("tokens_per_second", result.perplexity.tokens_per_second),
        ("model.keep_ratio", result.model.keep_ratio),
        ("seconds", result.seconds),
    ];
    let single = single
        .into_iter()
        .map(|(field, value)| (field.to_owned(), value));
    let windows = result.perplexity.window_nll.iter().enumerate();
    let windows = windows.map(|(index, &value)| (format!("window_nll[{index}]"), value));
    match single.chain(windows).find(|(_, value)| !value.is_finite()) {
        Some((field, value)) => Err(ReportError::NotFinite {
            file: evaluation.file.clone(),
            field,
            value,
        }),
        None => Ok(()),
    }
}

fn contradiction(evaluation: &Evaluation, message: String) -> Result<(), ReportError> {
    Err(ReportError::Contradiction {
        file: evaluation.file.clone(),
        message,
    })
}
